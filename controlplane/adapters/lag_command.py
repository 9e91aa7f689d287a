# SPDX-License-Identifier: Apache-2.0
"""Lag as the user's own command tells it: seconds, or bytes with a B."""

from __future__ import annotations

import asyncio
import math
import os
import signal
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from controlplane import model

_OUTPUT_MOST = 4096


class Command:
    def __init__(self, target: model.LagTarget) -> None:
        self._target = target
        self._lag = partial(model.Lag, target.shadow, target.service)
        given = target.sync.variables["lag"]
        self._command = ["/bin/sh", "-c", str(given)]
        if isinstance(given, Sequence) and not isinstance(given, str):
            self._command = [str(part) for part in given]
        self._was_copied = False

    async def read(self) -> model.Lag:
        """Read when the command began: what it tells was so not earlier."""
        began_s = asyncio.get_running_loop().time()
        process = await asyncio.create_subprocess_exec(
            *self._command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=os.environ | self._environment(),
            start_new_session=True,
        )
        try:
            out, said = await process.communicate()
        finally:
            with suppress(ProcessLookupError):  # with all that it started
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        if process.returncode:
            return self._failed(process.returncode, said, began_s)
        lag_s, lag_bytes = parsed(out[:_OUTPUT_MOST].decode(errors="replace"))
        self._was_copied = True
        return self._lag(began_s, lag_s, lag_bytes)

    def _failed(self, code: int, said: bytes, began_s: float) -> model.Lag:
        lines = said[-_OUTPUT_MOST:].decode(errors="replace").strip().splitlines()
        why = f"the lag command ended with {code}{f': {lines[-1]}' if lines else ''}"
        if self._was_copied:
            raise ValueError(why)
        return self._lag(began_s, copied=False, reason=why)

    def _environment(self) -> dict[str, str]:
        target = self._target
        address, port = target.primary
        return {
            "PENUMBRA_SHADOW": target.shadow,
            "PENUMBRA_INSTANCE": target.instance,
            "PENUMBRA_SERVICE": target.service,
            "PENUMBRA_SHADOW_ADDRESS": str(target.address),
            "PENUMBRA_SHADOW_PORT": str(target.port),
            "PENUMBRA_PRIMARY_ADDRESS": str(address),
            "PENUMBRA_PRIMARY_PORT": str(port),
        }

    async def close(self) -> None:
        """Nothing is kept between readings."""


def parsed(text: str) -> tuple[float | None, int | None]:
    """Seconds and bytes, one of them."""
    told = text.strip()
    in_bytes = told.endswith("B")
    try:
        number = float(told.removesuffix("B"))
    except ValueError:
        number = math.nan
    if not 0.0 <= number < math.inf:
        # Not what it printed, which goes to the log: it may be a secret.
        raise ValueError("the lag command printed no number: seconds, or bytes with a B, are allowed")
    return (None, round(number)) if in_bytes else (number, None)
