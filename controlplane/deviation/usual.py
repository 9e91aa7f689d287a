# SPDX-License-Identifier: Apache-2.0
"""What came at the same time of day, on the days before."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

_DAYS = 14
_PARTS = 48
"""Of a day: half hours. Beside the same one the ones before and after count."""
_PARTS_MOST = 2.0**53
_SEEN = 2
"""Days that make a habit."""


@dataclass(frozen=True, slots=True)
class Range:
    least: float
    most: float
    days: int

    def outside(self, value: float) -> float:
        """By how much."""
        return max(value - self.most, self.least - value, 0.0)


class Usual:
    """The least and the most of each part of the last days; a day may be any other season."""

    def __init__(self, day_s: float) -> None:
        self._part_s = day_s / _PARTS
        size = _PARTS * (_DAYS + 1)
        self._part = np.full(size, np.iinfo(np.int64).min, dtype=np.int64)
        self._least, self._most = np.full(size, np.inf), np.full(size, -np.inf)
        back = _PARTS * np.arange(1, _DAYS + 1, dtype=np.int64)
        self._before = np.array([-1, 0, 1], dtype=np.int64) - back[:, None]
        self._now: int | None = None
        self._range: Range | None = None

    def at(self, at_s: float) -> Range | None:
        """None: too few days were seen at this time."""
        part = self._part_of(at_s)
        if part != self._now:
            self._now, self._range = part, self._of(part)
        return self._range

    def push(self, at_s: float, value: float) -> None:
        part = self._part_of(at_s)
        slot = part % len(self._part)
        if self._part[slot] != part:
            self._part[slot] = part
            self._least[slot] = self._most[slot] = value
        else:
            self._least[slot] = min(self._least[slot], value)
            self._most[slot] = max(self._most[slot], value)

    def _part_of(self, at_s: float) -> int:
        return int(min(max(at_s // self._part_s, -_PARTS_MOST), _PARTS_MOST))

    def _of(self, part: int) -> Range | None:
        wanted = part + self._before
        slots = wanted % len(self._part)
        there = self._part[slots] == wanted
        days = int(np.count_nonzero(there.any(axis=1)))
        if days < _SEEN:
            return None
        slots = slots[there]
        return Range(float(self._least[slots].min()), float(self._most[slots].max()), days)
