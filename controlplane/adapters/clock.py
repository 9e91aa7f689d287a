# SPDX-License-Identifier: Apache-2.0
"""The machine's clocks, and a wait that a signal or a finding ends early."""

from __future__ import annotations

import math
import os
import select
import time
import weakref
from contextlib import suppress
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class MachineClock:
    """``ports.Clock`` on CLOCK_MONOTONIC, CLOCK_REALTIME and CLOCK_BOOTTIME."""

    def __init__(self, kept: Path | None = None) -> None:
        """:param kept: where the beginning of ``record_s`` is kept for the next process of this boot."""
        # Not a threading.Event: set by a signal handler, it waits for a lock that its own thread may hold.
        self._wakings = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        weakref.finalize(self, os.close, self._wakings)
        self._poll = select.poll()
        self._poll.register(self._wakings, select.POLLIN)
        self._began_unix_s = _began_unix_s() if kept is None else _kept_began_unix_s(kept)

    def now_s(self) -> float:
        return time.monotonic()

    def unix_s(self) -> float:
        return time.time()

    def record_s(self) -> float:
        return self._began_unix_s + time.clock_gettime(time.CLOCK_BOOTTIME)

    def wait_until(self, at_s: float) -> None:
        self._poll.poll(math.ceil(max(0.0, at_s - time.monotonic()) * 1000))
        with suppress(BlockingIOError):
            os.eventfd_read(self._wakings)

    def wake(self) -> None:
        """Ends the present wait, or the next one at once. Safe from any thread and from signal handlers."""
        with suppress(BlockingIOError):
            os.eventfd_write(self._wakings, 1)


def _began_unix_s() -> float:
    """When this machine was started, as the clock is set now."""
    return time.time() - time.clock_gettime(time.CLOCK_BOOTTIME)


def _kept_began_unix_s(kept: Path) -> float:
    """What the first process of this boot found, however the clock was set since."""
    boot_id = _BOOT_ID.read_text().strip()
    with suppress(OSError, ValueError):
        kept_id, _, text = kept.read_text().partition(" ")
        if kept_id == boot_id and math.isfinite(float(text)):
            return float(text)
    began_unix_s = _began_unix_s()
    with suppress(OSError):  # without it ages are as right as the clock is at the next start
        kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fresh = kept.with_suffix(".new")
        fresh.write_text(f"{boot_id} {began_unix_s!r}")
        fresh.replace(kept)
    return began_unix_s
