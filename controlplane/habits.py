# SPDX-License-Identifier: Apache-2.0
"""What was most at this time of day, on the days before; of many rows at once, as ``deviation/usual.py``
tells of one."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_DAYS = 7
_PARTS = 48
"""Of a day: half hours. Beside the same one the ones before and after count."""
_PART_S = 86_400.0 / _PARTS
_SEEN = 2
"""Days that make a habit."""
_RING = _PARTS * (_DAYS + 1)


class Habits:
    """Of ``kinds`` of values, none below 0 where it matters, of named rows."""

    def __init__(self, kinds: int, rows: int) -> None:
        self._most = np.full((_RING, kinds, rows), np.nan)
        self._part = np.full(_RING, -1, dtype=np.int64)
        """Which half hour since 1970 each has."""
        self._now = -1
        self._usual = np.full((kinds, rows), np.nan)

    def usual(self, at_unix_s: float) -> Floats:
        """(kinds, rows) the most at this time of the days before; NaN: it was seen on too few."""
        part = math.floor(at_unix_s / _PART_S)
        if part != self._now:
            self._now, self._usual = part, self._of(part)
        return self._usual

    def _of(self, part: int) -> Floats:
        before = part - _PARTS * np.arange(1, _DAYS + 1)[:, None] + np.array([-1, 0, 1])
        there = self._part[before % _RING] == before
        values = np.where(there[:, :, None, None], self._most[before % _RING], np.nan)
        known = ~np.isnan(values)
        most = np.max(np.where(known, values, -np.inf), axis=(0, 1))
        return np.where(known.any(axis=1).sum(axis=0) >= _SEEN, most, np.nan)

    def take(self, at_unix_s: float, values: Floats) -> None:
        """:param values: (kinds, rows) NaN: none, or none that counts."""
        part = math.floor(at_unix_s / _PART_S)
        slot = part % _RING
        if self._part[slot] != part:
            self._part[slot] = part
            self._most[slot] = np.nan
        np.fmax(self._most[slot], values, out=self._most[slot])

    def resume(self, other: Habits, to: list[int], source: list[int]) -> None:
        """Takes the rows ``source`` of another one as its own ``to``."""
        self._part[:] = other._part
        self._most[:, :, to] = other._most[:, :, source]
        self._now = -1

    def days(self, row: int, since_part: int) -> Iterator[tuple[int, str | None]]:
        """Number and text of each day with a part from this one on; None: of one to be forgotten."""
        parts = self._part[self._part >= since_part]
        for day in np.unique(parts // _PARTS).tolist():
            at = np.arange(day * _PARTS, (day + 1) * _PARTS)
            at = at[self._part[at % _RING] == at]
            told = {
                str(part): [None if math.isnan(one) else float(f"{one:.6g}") for one in values]
                for part, values in zip(at.tolist(), self._most[at % _RING, :, row].tolist(), strict=True)
            }
            yield day, json.dumps({"most": told})
            yield day - _DAYS - 1, None

    def recall(self, row: int, at_unix_s: float, read: Callable[[int], str | None]) -> list[str]:
        """Takes what was kept of the days up to now. What can't be made sense of is left out, and said.

        :param read: the text of the day with this number; None: there is none."""
        wrong, today = [], math.floor(at_unix_s / _PART_S) // _PARTS
        for day in range(today - _DAYS, today + 1):
            if (text := read(day)) is None:
                continue
            try:
                for part, values in json.loads(text)["most"].items():
                    if not day * _PARTS <= int(part) < (day + 1) * _PARTS:
                        raise ValueError(f"{part} is not of that day")
                    most = np.array([math.nan if one is None else float(one) for one in values])
                    if most.shape != self._usual.shape[:1] or np.isinf(most).any():
                        raise ValueError(f"{values!r} are no values")
                    self._put(int(part), row, most)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                wrong.append(f"day {day}: {type(error).__name__}: {error}")
        self._now = -1
        return wrong

    def _put(self, part: int, row: int, most: Floats) -> None:
        slot = part % _RING
        if self._part[slot] < part:
            self._part[slot] = part
            self._most[slot] = np.nan
        if self._part[slot] == part:
            self._most[slot, :, row] = most

    @staticmethod
    def part(at_unix_s: float) -> int:
        return math.floor(at_unix_s / _PART_S)
