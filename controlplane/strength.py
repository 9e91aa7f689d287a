# SPDX-License-Identifier: Apache-2.0
"""What one member can serve, by what it did and used: work over busy time, of as long as both go together.

A ratio of sums and not a mean of ratios: one reading of some seconds tells little, for what it counts is
Poisson, and work that was begun in it is done in the next one. How far the ratio is off is told by how far
each reading is from it (Cochran, "Sampling Techniques", 1977, section 6.4).
"""

from __future__ import annotations

import math

_LONG_S, _RECENT_S = 120.0, 20.0
"""Memory of what a member does, and of what tells that it can do something else now."""
GOOD_S = 180.0
"""So long it is believed without another reading."""
_KNOWN = 0.1
"""A standard error of this part, or less: some two hundred flows tell that."""
_SURELY, _CLEARLY = 3.0, 0.1
"""So many standard errors, and this part, are no chance: it is another one now."""
_CHANCE = 2.0
"""Standard deviations of a count."""
_TOO_MUCH = 0.7


class _Sums:
    """Of readings, the last ones more than older ones."""

    def __init__(self, memory_s: float) -> None:
        self._memory_s = memory_s
        self._work = self._busy_s = self._squares = 0.0

    def add(self, work: float, busy_s: float, over_s: float) -> None:
        kept = math.exp(-over_s / self._memory_s)
        self._work = self._work * kept + work
        self._busy_s = self._busy_s * kept + busy_s
        off = work - self.rate * busy_s
        # Its flows are chance, and so is what each of them asks for, in later readings too.
        self._squares = self._squares * kept * kept + off * off + work

    def follow(self, other: _Sums) -> None:
        self._work, self._busy_s, self._squares = other._work, other._busy_s, other._squares

    @property
    def rate(self) -> float:
        return self._work / self._busy_s

    @property
    def error(self) -> float:
        """Standard error, as a part of it."""
        return math.sqrt(self._squares) / self._work


class Strength:
    """New flows/s."""

    def __init__(self) -> None:
        self._at_s = math.nan
        self._forget()

    def _forget(self) -> None:
        self._long, self._recent = _Sums(_LONG_S), _Sums(_RECENT_S)
        self._most = math.inf
        """By readings that tell only that it is no more than that."""
        self._rate, self._error = math.nan, math.inf

    def take(self, work: float, busy_s: float, over_s: float, at_s: float) -> None:
        """A reading. All of them are above 0.

        :param work: new flows that it completed. ``busy_s``: by the share that it used meanwhile."""
        self._begin(at_s)
        self._long.add(work, busy_s, over_s)
        self._recent.add(work, busy_s, over_s)
        apart = abs(math.log(self._recent.rate / self._long.rate))
        if apart > max(_CLEARLY, _SURELY * self._recent.error):
            self._long.follow(self._recent)
        self._most = math.sqrt(self._most * work / busy_s)
        if self._most >= self._long.rate:
            self._most = math.inf
        self._rate, self._error = min(self._long.rate, self._most), self._long.error

    def bound(self, work: float, over_s: float, at_s: float) -> None:
        """A reading of who was as busy as can be: it was given too much, nobody knows by how much, unless
        what is known already tells that."""
        self._begin(at_s)
        is_known = self._error <= _KNOWN
        at_most = work + _CHANCE * math.sqrt(work)
        if is_known and math.isinf(self._most) and at_most >= self._rate * over_s:
            return
        most = _TOO_MUCH * work / over_s
        self._most = self._rate = min(self._rate, most) if is_known else most
        self._error = min(self._error, _KNOWN)

    def _begin(self, at_s: float) -> None:
        if not at_s - self._at_s <= GOOD_S:
            self._forget()
        self._at_s = at_s

    def keep(self, at_s: float) -> None:
        """A reading that tells nothing of another one: it is believed for longer."""
        if at_s - self._at_s <= GOOD_S:
            self._at_s = at_s

    def rate(self, now_s: float) -> float:
        """NaN: not known."""
        return self._rate if self._error <= _KNOWN and now_s - self._at_s <= GOOD_S else math.nan

    def error(self, now_s: float) -> float:
        """Standard error, as a part of it; infinite: nothing is known."""
        return self._error if now_s - self._at_s <= GOOD_S else math.inf
