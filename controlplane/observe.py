# SPDX-License-Identifier: Apache-2.0
"""From counters that only grow to rates per tick. Absent is NaN, never zero."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from controlplane.ports import Counters

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Counted:
    """By how much counters grew, each (names,); see ``ports.Counters``."""

    offered: Floats
    completed: Floats
    spilled: Floats
    flows: Floats
    unremembered: Floats
    resets: Floats
    rtt_count: Floats
    rtt_sum_us: Floats
    requests: Floats
    """NaN, as all that follow, where requests are not read."""
    aborted: Floats
    response_count: Floats
    response_sum_us: Floats


COUNTED = tuple(Counted.__dataclass_fields__)
_OF_REQUESTS = frozenset({"requests", "aborted", "response_count", "response_sum_us"})


@dataclass(frozen=True, slots=True)
class Rates:
    """Between two readings, for the names asked; NaN where either reading lacks the member."""

    over_s: float
    completed: Floats
    flows: Floats
    rtt_us: Floats
    counted: Counted


class Rows:
    """Where names are in the arrays of a reading; looked up anew only when members came or went."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._rows: Mapping[str, int] = {}
        self._index = np.full(len(names), -1, dtype=np.intp)

    def __len__(self) -> int:
        return len(self._names)

    def of(self, counters: Counters) -> npt.NDArray[np.intp]:
        """(names,) rows; -1: it is not there."""
        rows = counters.rows
        if rows is not self._rows and rows != self._rows:
            self._index = np.array([rows.get(name, -1) for name in self._names], dtype=np.intp)
        self._rows = rows
        return self._index


def rates(before: Counters | None, after: Counters, rows: Rows) -> Rates | None:
    """None when there is nothing to compare with, or time stood still."""
    if before is None:
        return None
    are_told = before.requests_read and after.requests_read
    wanted = COUNTED if are_told else [name for name in COUNTED if name not in _OF_REQUESTS]
    grown = growth(before, after, rows, wanted)
    if grown is None:
        return None
    nothing = np.full(len(rows), np.nan)
    counted = Counted(**{name: grown.get(name, nothing) for name in COUNTED})
    over_s = after.at_s - before.at_s
    rtt_us = mean(counted.rtt_sum_us, counted.rtt_count)
    return Rates(over_s, counted.completed / over_s, counted.flows / over_s, rtt_us, counted)


def mean(sums: Floats, counts: Floats) -> Floats:
    """NaN where nothing was counted."""
    out: Floats = np.full(counts.shape, np.nan)
    np.divide(sums, counts, out=out, where=counts > 0)
    return out


def growth(
    before: Counters | None, after: Counters, rows: Rows, fields: Sequence[str]
) -> Mapping[str, Floats] | None:
    """Field -> (names,) by how much it grew. None when there is nothing to compare with, or time stood still.
    A counter that fell was made anew: its member has no growth this time."""
    if before is None or after.at_s <= before.at_s:
        return None
    old, new = rows.of(before), rows.of(after)
    there = (new >= 0) & (new == old)

    def grown(field: str) -> Floats:
        now = np.asarray(getattr(after, field))[new[there]].astype(np.float64)
        then = np.asarray(getattr(before, field))[old[there]].astype(np.float64)
        out = np.full(len(rows), np.nan)
        out[there] = now - then
        out[out < 0] = np.nan
        return out

    return {field: grown(field) for field in fields}


@dataclass(frozen=True, slots=True)
class Work:
    """What live endpoints themselves did between two readings; sums, NaN where either reading lacks one."""

    over_s: float
    completed: Floats
    """New flows of the whole group."""
    asked: Floats
    """Requests where they are told, else new flows, as the next one."""
    done: Floats
    answers: Floats
    """That were timed, and the sum of their times: responses where requests are told, else handshakes."""
    time_us: Floats
    resets: Floats
    unanswered: Floats
    """Requests, or new flows whose SYN was not answered at all; 0 where nobody answers with one."""
    done_by_shadows: Floats
    """Requests; 0 where they are not told."""


_ALL_TIMED = 5000.0
"""New flows/s; of many more the program times the handshakes of some only (``HANDSHAKES_TIMED``)."""


def work(reading: Rates, answered: Floats, by_shadows: Floats, told: npt.NDArray[np.bool_]) -> Work:
    """:param answered: (names,) requests. ``by_shadows``: the same by their shadows. ``told``: (names,) whose
    requests are told."""
    counted = reading.counted
    # What is completed is counted for the group; shadows complete as much of what they are given.
    own = np.divide(counted.flows, counted.offered, out=np.ones(len(told)), where=counted.offered > 0)
    served = counted.completed * np.minimum(own, 1.0)
    # What is not remembered is never seen to be completed.
    flows = counted.flows - counted.unremembered
    answers = np.where(told, counted.response_count, counted.rtt_count)
    all_timed = np.nansum(counted.flows) <= _ALL_TIMED * reading.over_s
    unanswered = np.where(all_timed & (answers > 0), np.maximum(flows - answers, 0.0), 0.0)
    asked, done = np.where(told, counted.requests, flows), np.where(told, answered, served)
    return Work(
        reading.over_s,
        counted.completed,
        asked,
        done,
        answers,
        np.where(told, counted.response_sum_us, counted.rtt_sum_us),
        counted.resets,
        np.where(told, np.maximum(asked - done, 0.0), unanswered),
        by_shadows,
    )
