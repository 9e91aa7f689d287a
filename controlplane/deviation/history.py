# SPDX-License-Identifier: Apache-2.0
"""How rare a value is among those before it, in decades: 3 is once in a thousand."""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from dataclasses import dataclass

_FIRST = 20
"""Values before which nothing is rare."""
_TAIL = 10
"""Extremes that tell how a tail goes on."""
_BEYOND = 3.0
"""Decades for what is past a tail in which all are alike."""
_DECADES_MOST = 300.0
"""So that none of them is infinite."""


class History:
    """The last values of a series, sorted. A value costs microseconds, up to some 10 000 of them."""

    def __init__(self, memory: int) -> None:
        self._sorted, self._order = array("d"), array("d")
        self._oldest, self._memory = 0, memory

    def __len__(self) -> int:
        return len(self._sorted)

    @property
    def known(self) -> bool:
        return len(self._sorted) >= _FIRST

    @property
    def median(self) -> float:
        return self._sorted[len(self._sorted) // 2]

    @property
    def least(self) -> float:
        return self._sorted[0]

    @property
    def most(self) -> float:
        return self._sorted[-1]

    def push(self, value: float) -> None:
        if len(self._order) < self._memory:
            self._order.append(value)
        else:
            del self._sorted[bisect_left(self._sorted, self._order[self._oldest])]
            self._order[self._oldest] = value
            self._oldest = (self._oldest + 1) % self._memory
        self._sorted.insert(bisect_right(self._sorted, value), value)

    def nearest(self, value: float) -> float:
        """Distance to the nearest of them; 0 as long as they are few."""
        if not self.known:
            return 0.0
        at = bisect_left(self._sorted, value)
        below = value - self._sorted[at - 1] if at else math.inf
        above = self._sorted[at] - value if at < len(self._sorted) else math.inf
        return min(below, above)

    def above(self, value: float) -> float:
        """Decades: how rarely one is as large."""
        if not self.known:
            return 0.0
        beyond = len(self._sorted) - bisect_left(self._sorted, value)
        return self._decades(value, beyond, self._sorted[: -_TAIL - 2 : -1])

    def below(self, value: float) -> float:
        """Decades: how rarely one is as small."""
        if not self.known:
            return 0.0
        return self._decades(value, bisect_right(self._sorted, value), self._sorted[: _TAIL + 1])

    def _decades(self, value: float, beyond: int, tail: array[float]) -> float:
        """Of the rank, conformally: as if the value were one of them (Vovk, Algorithmic Learning in a Random
        World, 2005). Where ranks end, of an exponential tail (excesses as in Siffer et al., KDD 2017).
        """
        count = len(self._sorted)
        ranked = math.log10((count + 1) / (beyond + 1))
        if beyond >= _TAIL:
            return ranked
        size = min(_TAIL, count // 10 + 1)
        edge = tail[size]
        mean = sum(abs(one - edge) for one in tail[:size]) / size
        if mean > 0:
            fitted = math.log10((count + 1) / (size + 1)) + abs(value - edge) / mean * math.log10(math.e)
            return min(max(ranked, fitted), _DECADES_MOST)
        return ranked if beyond else ranked + _BEYOND


@dataclass(frozen=True, slots=True)
class Look:
    distance: float
    """From the nearest before."""
    decades: float
    """How rare such a distance is."""


class Novelty:
    """How far values are from all before them."""

    def __init__(self, memory: int) -> None:
        self.values = History(memory)
        self._distances = History(memory)

    def look(self, value: float) -> Look:
        distance = self.values.nearest(value)
        return Look(distance, self._distances.above(distance))

    def push(self, value: float, look: Look) -> None:
        if self.values.known:
            self._distances.push(look.distance)
        self.values.push(value)
