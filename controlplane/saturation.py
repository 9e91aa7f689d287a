# SPDX-License-Identifier: Apache-2.0
"""Who is saturated: clearly slower than it is without load, and what it does no longer follows what it is
asked for, or more is in flight than ever."""

from __future__ import annotations

import math

import numpy as np

from controlplane.observe import Work
from controlplane.response_curve import Flags, Floats

_RECENT_S = 5.0
"""Time constant of what tells saturation at once."""
_SLOW = 2.5
"""So many times the floor is clearly above it."""
_LACKING = 0.1
"""Part of what is asked for that is not done, or reset: it no longer follows."""
_CROWDED = 0.9
"""Of the highest rate that was proven."""
_BEYOND = 1.1
"""Times what it was seen to serve quickly, and more than chance makes of that: load is higher than ever."""
_FLOOD = 10.0
"""Who is asked for so many times what it does is flooded."""
_LASTING = 3
"""Readings that have to tell saturation, one after another."""
_FOR_LONG_S = 6.0
"""Nobody is so by a chance of arrivals for so long."""


_SUMS = (
    "completed",
    "asked",
    "done",
    "answers",
    "time_us",
    "resets",
    "unanswered",
    "done_by_shadows",
)


class Sums:
    """Of a stretch of time."""

    def __init__(self, n: int) -> None:
        self.over_s = 0.0
        self.completed = np.zeros(n)
        self.asked = np.zeros(n)
        self.done = np.zeros(n)
        self.answers = np.zeros(n)
        self.time_us = np.zeros(n)
        self.resets = np.zeros(n)
        self.unanswered = np.zeros(n)
        self.done_by_shadows = np.zeros(n)

    def add(self, work: Work) -> None:
        self.over_s += work.over_s
        self.completed += work.completed
        self.asked += work.asked
        self.done += work.done
        self.answers += np.nan_to_num(work.answers)
        self.time_us += np.nan_to_num(work.time_us)
        self.resets += work.resets
        self.unanswered += work.unanswered
        self.done_by_shadows += work.done_by_shadows

    def fade(self, over_s: float) -> None:
        left = math.exp(-over_s / _RECENT_S)
        self.over_s *= left
        for name in _SUMS:
            values: Floats = getattr(self, name)
            np.nan_to_num(values, copy=False)  # a gap is not for ever
            values *= left

    @property
    def log_time(self) -> Floats:
        """NaN: nothing was answered."""
        answered = self.answers > 0
        log_time: Floats = np.log(
            np.divide(self.time_us, self.answers, out=np.full(len(answered), np.nan), where=answered)
        )
        return log_time

    @property
    def lacks(self) -> Flags:
        """More is asked for than done, not by chance."""
        chance = 3.0 * np.sqrt(np.maximum(self.asked, 1.0))
        lacking = self.asked - self.done > np.maximum(_LACKING * self.asked, chance)
        reset = self.resets > np.maximum(_LACKING * self.asked, chance)
        return np.asarray(lacking | reset, dtype=np.bool_)

    @property
    def starves(self) -> Flags:
        """It lacks, and SYNs are not even answered: whoever is flooded with these answers them, and one that
        was lost is sent again."""
        return np.asarray(self.lacks & (self.unanswered > _LACKING * self.asked), dtype=np.bool_)

    def beyond(self, served: Floats) -> Flags:
        """More is done than was seen to be served quickly: who is slow then is so by load, whoever else is.

        :param served: that rate; 0: not known."""
        usual = served * self.over_s
        return np.asarray(
            (served > 0.0) & (self.done > _BEYOND * usual + 3.0 * np.sqrt(usual)), dtype=np.bool_
        )

    @property
    def flooded(self) -> Flags:
        """Nothing is learned of that."""
        return np.asarray(self.asked > _FLOOD * self.done, dtype=np.bool_)


class Saturation:
    """Of all live endpoints, as of the last reading; arrays have shape (n,)."""

    def __init__(self, n: int) -> None:
        self.told = np.zeros(n, dtype=np.bool_)
        self._recent, self._lasting, self._lasting_s = Sums(n), np.zeros(n), np.zeros(n)
        self._loaded_s, self._loaded_done = np.zeros(n), np.zeros(n)
        """For how long it is so by load, and what was done meanwhile."""

    def take(
        self,
        work: Work,
        usable: Flags,
        common: Flags,
        starved: Flags,
        floor: Floats,
        proven: Floats,
        served: Floats,
    ) -> None:
        """:param common: others are slow as well. ``starved``: in all of the last windows; who is overloaded
        from the first on has no floor to be slower than. ``floor``: log response time without load; NaN: not
        known. ``proven``: the highest rate of what is done that did not slow answers down much. ``served``:
        the same, told by less."""
        recent = self._recent
        recent.fade(work.over_s)
        recent.add(work)
        slow = recent.log_time - floor > np.log(_SLOW)
        # By Little's law more are in flight than ever: as many are done as ever, and each takes longer.
        crowded = (recent.done >= _CROWDED * proven * recent.over_s) & (proven > 0.0)
        beyond = recent.beyond(served)
        now = slow & (recent.lacks | crowded | beyond) | starved & recent.lacks
        now = usable & (~common | beyond) & now & ~recent.flooded
        self._lasting = np.where(now, self._lasting + 1, 0)
        self._lasting_s = np.where(now, self._lasting_s + work.over_s, 0.0)
        self.told = np.asarray(self._lasting >= _LASTING, dtype=np.bool_)
        # Who is slow at its usual rate may be so by something else.
        loaded = now & (recent.lacks | beyond)
        self._loaded_s = np.where(loaded, self._loaded_s + work.over_s, 0.0)
        self._loaded_done = np.where(loaded, self._loaded_done + np.nan_to_num(work.done), 0.0)

    @property
    def is_sure(self) -> Flags:
        return np.asarray(self.told & (self._lasting_s >= _FOR_LONG_S), dtype=np.bool_)

    @property
    def is_loaded(self) -> Flags:
        """The same, and it is by load."""
        return np.asarray(self.told & (self._loaded_s >= _FOR_LONG_S), dtype=np.bool_)

    @property
    def rate(self) -> Floats:
        """Of what was done while it was so by load; 0: it is not."""
        return np.divide(
            self._loaded_done, self._loaded_s, out=np.zeros(len(self.told)), where=self._loaded_s > 0.0
        )
