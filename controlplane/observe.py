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
class Rates:
    """Between two readings, for the names asked; NaN where either reading lacks the member."""

    over_s: float
    completed: Floats
    flows: Floats
    rtt_us: Floats


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
    grown = growth(before, after, rows, ("completed", "flows", "rtt_count", "rtt_sum_us"))
    if grown is None or before is None:
        return None
    over_s = after.at_s - before.at_s
    samples = grown["rtt_count"]
    mean = np.divide(grown["rtt_sum_us"], samples, out=np.full(len(rows), np.nan), where=samples > 0)
    return Rates(over_s, grown["completed"] / over_s, grown["flows"] / over_s, mean)


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
