# SPDX-License-Identifier: Apache-2.0
"""What a service will need: its demand, gathered into steps, and what ``sizing.py`` makes of them.

A step is a quarter of the lead time, 5 to 15 s. When the lead time that is measured, or the capacity,
turns out to be another one, everything is learned again from the past, a little in each tick; until that
is done what was learned before goes on to decide.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from controlplane.model import ShadowSettings
from controlplane.past import Past
from controlplane.sizing import STABLE_S, Size, Sizing

_STEP_LEAST_S, _STEP_MOST_S = 5.0, 15.0
_STEPS_OF_LEAD = 4
_SHORT_S = 30.0
"""Who can have more within less than this looks ahead less far: all times are taken shorter in proportion."""
_OTHER = 1.25
"""A lead time is another one when it is so many times the one that was reckoned with, or less by that."""
_OTHER_CAPACITY = 1.1
"""A capacity likewise: one that is learned moves on and on."""
_AT_ONCE = 60
"""Steps that are learned from before the first decision."""
_ROUNDING_S = 1e-6
_READ_LEAST = 0.5
"""A step of which less was read is one without a reading."""


def step_s(lead_time_s: float, tick_s: float) -> float:
    """Of a service with this lead time; a whole number of ticks."""
    wanted_s = min(max(lead_time_s / _STEPS_OF_LEAD, _STEP_LEAST_S), _STEP_MOST_S)
    return tick_s * max(1, math.floor(wanted_s / tick_s + 1e-9))


class Foresight:
    """Of one service: told its demand tick by tick."""

    def __init__(
        self,
        step_s: float,
        lead_time_s: float,
        capacity: float,
        settings: ShadowSettings,
        initial: int = 1,
    ) -> None:
        """:param capacity: flows/s that its live endpoints can serve together; NaN: it is not known yet, and
        nothing is sized, only gathered. ``settings``: what being over
        costs, and whether members may stand by. ``initial``: members that there are."""
        self._step_s, self._settings = step_s, settings
        self._lead_time_s, self.capacity, self._initial = lead_time_s, capacity, initial
        self.past = Past(step_s)
        self._sizing = self._new()
        self._concluded = 0
        """Number of the first step that was not learned from yet."""
        self._next: Sizing | None = None
        self._next_step = 0
        self._number: int | None = None
        """Of the step that goes on."""
        self._sums = _Sums()
        self.size: Size | None = None
        """Members for each live endpoint with its capacity's share of the demand; None: not known yet."""

    def _new(self) -> Sizing:
        stretch = max(1.0, _SHORT_S / max(self._lead_time_s, self._step_s))
        return Sizing(
            self.capacity,
            self._lead_time_s * stretch,
            self._step_s * stretch,
            self._initial,
            over_cost=self._settings.over_cost,
            stable_s=STABLE_S * stretch,
            standing=self._settings.standing,
            cautious=stretch > 1.0,
        )

    def begin(self, capacity: float) -> None:
        """With this capacity; before anything is learned."""
        self.capacity = capacity
        self._start_anew()

    def recall(self, now_unix_s: float, read: Callable[[int], str | None]) -> list[str]:
        """Learns from what was kept of the past, the last of it now and all of it by ``learn_again``. What
        is wrong with it.

        :param read: the text of a chunk of it."""
        wrong = self.past.recall(self.past.number(now_unix_s), read)
        self._start_anew()
        return wrong

    def resume(self, other: Foresight) -> None:
        """Knows what another one with the same steps knew; where costs or capacity differ, learns anew."""
        self.past = other.past
        self._number, self._sums = other._number, other._sums
        if self._settings != other._settings or _are_apart(self.capacity, other.capacity):
            self._start_anew()
            return
        self._lead_time_s, self.size, self.capacity = other._lead_time_s, other.size, other.capacity
        self._sizing, self._concluded = other._sizing, other._concluded
        self._next, self._next_step = other._next, other._next_step

    def reckon(self, lead_time_s: float, capacity: float) -> None:
        """With these from now on, if they are others."""
        apart = max(lead_time_s, self._lead_time_s) / max(min(lead_time_s, self._lead_time_s), 1e-9)
        if apart >= _OTHER or _are_apart(capacity, self.capacity):
            self._lead_time_s, self.capacity = lead_time_s, capacity
            self._start_anew()

    def _start_anew(self) -> None:
        self._sizing = self._new()
        if math.isnan(self.capacity):
            self.size, self._next, self._concluded = None, None, self.past.end
            return
        recent = self.past.since(self.past.end - _AT_ONCE)
        for demand in recent:
            self.size = self._sizing.after(demand)
        self._concluded = self.past.end
        is_all = self.past.end - self.past.begin == len(recent)
        self._next, self._next_step = (None, 0) if is_all else (self._new(), self.past.begin)

    @property
    def is_learning(self) -> bool:
        """There is more in the past than was learned from."""
        return self._next is not None

    def learn_again(self, steps: int) -> None:
        """From so many of the past; each takes half a millisecond."""
        if self._next is None:
            return
        coming, size = self.past.since(self._next_step), self.size
        for demand in coming[:steps]:
            size = self._next.after(demand)
        self._next_step = max(self._next_step, self.past.begin) + min(len(coming), steps)
        if self._next_step == self.past.end:
            self._sizing, self._next, self.size = self._next, None, size
            self._concluded = self.past.end

    def observe(self, demand: float, over_s: float, now_unix_s: float) -> bool:
        """As ``gather``, and concludes it."""
        has_ended = self.gather(demand, over_s, now_unix_s)
        self.conclude()
        return has_ended

    def conclude(self) -> None:
        """Learns from the steps that have ended, and tells the size; each takes half a millisecond."""
        unread = self.past.since(max(self._concluded, self.past.end - _AT_ONCE))
        for mean in () if math.isnan(self.capacity) else unread:
            self.size = self._sizing.after(mean)
        self._concluded = self.past.end

    def gather(self, demand: float, over_s: float, now_unix_s: float, teaches: bool = True) -> bool:
        """True if a step has ended: it is to be concluded.

        :param demand: flows/s, the mean of the ``over_s`` that end now; NaN: no reading. ``teaches``: they
            are as others are."""
        if self._number is None:
            self._number = self.past.number(now_unix_s - over_s / 2)
        self._sums.add(demand, over_s, teaches)
        following = self.past.number(now_unix_s + _ROUNDING_S)
        if following <= self._number:
            return False
        self.past.add(self._number, *self._sums.mean(_READ_LEAST * self._step_s))
        if following - self._number > 1:
            self.past.add(following - 1, math.nan)  # nobody told of the steps between
        self._number, self._sums = following, _Sums()
        return True


@dataclass(slots=True)
class _Sums:
    """Of one step: of all of it, and of what teaches."""

    demand: float = 0.0
    read_s: float = 0.0
    taught: float = 0.0
    taught_s: float = 0.0

    def add(self, demand: float, over_s: float, teaches: bool) -> None:
        if math.isnan(demand):
            return
        self.demand += demand * over_s
        self.read_s += over_s
        if teaches:
            self.taught += demand * over_s
            self.taught_s += over_s

    def mean(self, least_s: float) -> tuple[float, bool]:
        """flows/s, and whether it teaches; NaN: too little was read."""
        if self.taught_s >= least_s:
            return self.taught / self.taught_s, True
        return (self.demand / self.read_s, False) if self.read_s >= least_s else (math.nan, True)


def _are_apart(capacity: float, other: float) -> bool:
    if math.isnan(capacity) or math.isnan(other):
        return math.isnan(capacity) != math.isnan(other)
    return max(capacity, other) >= _OTHER_CAPACITY * min(capacity, other)
