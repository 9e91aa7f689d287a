# SPDX-License-Identifier: Apache-2.0
"""What is started again and again: never a third time in a short while, and on the whole no more than HPA.

Operators judge a scaler by what reactive scaling does. So HPA is led beside it, told the same demand, and its
starts are the allowance: the more of it is used up, the longer members are to be kept.
"""

from __future__ import annotations

import math
from collections import deque

from controlplane.rivals import Rival, scaler

_PART = 0.8
"""Of HPA's starts are free."""
_STRAIN = 20.0
"""Per start above them, as a part of them."""
_STRAIN_MOST = 8.0
_AT_FIRST = 0.2
"""Of the usual group may be started before HPA has started anything."""
_HALF_LIFE_S = 200_000.0
"""Of starts: those of the last days count."""


class Allowance:
    """Told demand and the own size step by step."""

    def __init__(self, capacity: float, lead_time_s: float, interval_s: float, initial: int) -> None:
        self._hpa = scaler(Rival.HPA, capacity, lead_time_s, interval_s, initial)
        self._its, self._own = initial, initial
        self._its_starts = self._own_starts = 0.0
        self._remaining = 0.5 ** (interval_s / _HALF_LIFE_S)

    def strain(self, usual: float) -> float:
        """0, while there are few starts; up to eight. ``usual``: members of the usual group."""
        free = _PART * self._its_starts
        above = (self._own_starts - free) / (free + _AT_FIRST * usual)
        return min(max(_STRAIN * above, 0.0), _STRAIN_MOST)

    @property
    def left(self) -> int:
        """Starts that HPA has made more."""
        return max(round(self._its_starts - self._own_starts), 0)

    def after(self, demand: float, own: int) -> None:
        """:param own: members from now on."""
        its = self._hpa.wanted(demand, self._its)
        self._its_starts = self._remaining * self._its_starts + max(its - self._its, 0)
        self._own_starts = self._remaining * self._own_starts + max(own - self._own, 0)
        self._its, self._own = its, own


class Thrice:
    """Whoever was started twice within so many steps stays until they have passed."""

    def __init__(self, steps: int, initial: int) -> None:
        self.steps, self._now, self._there = steps, 0, initial
        self._started: deque[tuple[int, int, int]] = deque()
        """The step, and members before and after."""

    def after(self, wanted: int) -> int:
        """Members to have from now on, no fewer than are wanted."""
        self._now += 1
        while self._started and self._now - self._started[0][0] >= self.steps:
            self._started.popleft()
        if wanted > self._there:
            self._started.append((self._now, self._there, wanted))
        elif wanted < self._there:
            wanted = max(wanted, self._twice())
        self._there = wanted
        return wanted

    def _twice(self) -> int:
        """The highest member that was started twice."""
        least = math.inf
        for _, before, after in sorted(self._started, key=lambda start: -start[2]):
            if least < after:
                return min(after, self._there)
            least = min(least, before)
        return 0
