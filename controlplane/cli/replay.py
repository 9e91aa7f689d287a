# SPDX-License-Identifier: Apache-2.0
"""Decisions of ``penumbra run --record``, made again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path

from controlplane import config
from controlplane.cli.output import EXIT_FAILED, EXIT_USAGE, clock_time, counted, fail, say
from controlplane.record import RecordError, Redone, redone

_HOLD = "hold"


def replay(path: Path, *, as_json: bool) -> None:
    """Prints what was decided, and what is now where that differs. Ends with 1 if anything does."""
    total = other = 0
    try:
        with path.open("rb") as file:
            for one in redone(_lines(file), config.parse):
                total, other = total + 1, other + (not one.is_same)
                if as_json:
                    say(json.dumps(_told(one)))
                elif one.act != _HOLD or not one.is_same:
                    say(f"{clock_time(one.unix_s)}  {one.act:8} {one.reason}{_difference(one)}")
    except RecordError as error:
        before = f" (before that {counted(total, 'decision')}, {total - other} as recorded)" if total else ""
        fail(f"--replay {path}: {error}{before}", EXIT_USAGE)
    except OSError as error:
        fail(f"--replay {path}: {error.strerror or error}", EXIT_USAGE)
    if other:
        fail(f"{other} of {counted(total, 'decision')} are not as they were recorded", EXIT_FAILED)
    if not as_json:
        say(f"{counted(total, 'decision')}, all as recorded")


def _lines(file: Iterable[bytes]) -> Iterator[str]:
    for number, line in enumerate(file, 1):
        try:
            yield line.decode()
        except UnicodeDecodeError:
            so = ", so no record of penumbra run --record" if number == 1 else ""
            raise RecordError(f"line {number}: it is no text{so}") from None


def _difference(one: Redone) -> str:
    if one.is_same:
        return ""
    return "   (recorded: nothing)" if one.was is None else f"   (recorded: {one.was[0]} {one.was[2]})"


def _told(one: Redone) -> dict[str, object]:
    return {
        "t": one.unix_s,
        "endpoint": one.endpoint,
        "act": one.act,
        "shadow": one.shadow,
        "reason": one.reason,
        "same": one.is_same,
    }
