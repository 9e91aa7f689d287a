# SPDX-License-Identifier: Apache-2.0
"""How many members a group should have: what followed moments like this one, and whom it pays to keep.

What is ordered now serves a lead time from now, so members are started for the highest demand until then, as
it followed the moments of the past most like this one (``forecast/analogs.py``). Whoever is there stays for
what may come within ten minutes: to be let go and missed costs more than to wait. How long members wait is
told by their starts: the more of those that HPA would have made are used up, the less anybody is started or
let go for (``starts.py``). While too few moments are known, simple rules vote (``forecast/majority.py``).

What a second over capacity costs is given in seconds of the usual group, so that one number suits groups of
any size. What is usual is the mean of what a lead time's highest demand needs.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

from controlplane.forecast.analogs import HIGHEST, SOON, Analogs
from controlplane.forecast.climb import Climb
from controlplane.forecast.majority import MEMBERS_MOST, Majority
from controlplane.forecast.quantiles import Quantiles
from controlplane.model import ShadowSettings
from controlplane.starts import Allowance, Thrice

_USUAL = ShadowSettings()
STABLE_S = 300.0
"""Nobody is started a third time in twice as long."""
_STARTING, _STAYING = 1.7, 0.6
"""Whoever is over once is mostly over for longer, and he who is not needed within the lead time may be let go
later: so many times the cost of a second is what being over counts."""
_SURGE = 0.35
"""Of what is needed now is at least taken for the usual group, to start members: in a surge more is lost."""
_VOTE, _VOTE_MORE, _VOTE_STRAIN = 0.45, 0.25, 8.0
"""The part of the weight that starts and keeps a member; more and less of it, at such strain."""
_STRAINED = 1.0
"""Strain from which nobody is started that HPA would not have, but for demand that is there."""
_USUAL_LEAST = 0.3
_LEAD_STEPS_MOST = 2000
"""Of what is remembered of a lead time: no more tells anything."""
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class Size:
    wanted: int
    """Members from now on, at least one."""
    reason: str
    exact: float = 1.0
    """The same before it was rounded up, for groups with another share of the demand."""
    p50: float | None = None
    """Quantiles of demand a lead time from now, requests/s; None: nothing is known, or that is too far."""
    p90: float | None = None
    is_blind: bool = False
    """It is what was wanted before: there was no reading to learn from."""


class Sizing:
    """One group, or service, whose members have the same capacity; told its demand step by step."""

    def __init__(
        self,
        capacity: float,
        lead_time_s: float,
        interval_s: float,
        initial: int = 1,
        over_cost: float = _USUAL.over_cost,
        stable_s: float = STABLE_S,
        standing: bool = True,
        cautious: bool = False,
    ) -> None:
        """:param capacity: requests/s of a member. ``lead_time_s``: until one that is ordered serves.
        ``interval_s``: of a step. ``initial``: members that there are, which stay until something is known.
        ``stable_s``: as ``STABLE_S`` says. ``standing``: members may stand by for more than the ninth decile
        of demand a lead time from now, if that pays. ``cautious``: not before that is known.
        """
        self._capacity, self._over_cost, self._there = capacity, over_cost, initial
        self._standing, self._cautious, self._exact = standing, cautious, initial - 1.0
        steps = math.ceil(lead_time_s / interval_s - _ROUNDING)
        self._foresees, lead = steps <= _LEAD_STEPS_MOST, min(steps, _LEAD_STEPS_MOST)
        self._analogs = Analogs(interval_s, lead)
        self._quantiles = Quantiles(interval_s, lead, self._analogs)
        self._majority: Majority | None = Majority(interval_s, lead_time_s, lead, over_cost)
        self._climb = Climb(interval_s, lead)
        self._allowance = Allowance(capacity, lead_time_s, interval_s, initial)
        self._thrice = Thrice(max(1, round(2 * stable_s / interval_s)), initial)
        self._initial, self._initial_steps = initial, stable_s / interval_s
        self._needed: deque[float] = deque(maxlen=lead + 1)
        self._likely: deque[float] = deque(maxlen=max(lead, 1))
        """The median of what is forecast for each step of the lead time to come."""
        self._seasonal: deque[float] = deque(maxlen=max(lead, 1) + 1)
        """What the season says of them and of the one after: who is ordered now serves from there on."""
        self._usual, self._steps = 0.0, 0

    def after(self, demand: float) -> Size:
        """:param demand: requests/s, the mean of the step that has ended; NaN: no reading."""
        if math.isnan(demand):
            return self._blind()
        need, usual_then = demand / self._capacity, self._usual_members
        self._needed.append(need)
        self._steps += 1
        self._usual += (max(self._needed) - self._usual) / self._steps
        self._analogs.after(need)
        _, p50, p90, _ = (self._quantiles.after(need) * self._capacity).tolist()
        self._likely.append(p50 / self._capacity if self._foresees else 0.0)
        seasonal = self._quantiles.seasonal
        self._seasonal.append(seasonal if self._foresees and seasonal == seasonal else 0.0)
        if self._analogs.is_telling:
            self._majority = None
        most = self._most(need, p90 / self._capacity)
        strain = self._allowance.strain(self._usual_members)
        if self._majority:
            self._majority.after(need, usual_then)
            self._climb.after(need)
            wanted, reason = self._voted(self._majority, strain)
            # Rules tell whole members: a group with a little more of the demand does not need one more.
            exact = wanted - 0.5 if wanted > 1 else need
        else:
            wanted, exact, reason = self._foreseen(need, strain)
        # HPA starts for what a season brings, too, only later.
        allowed = max(self._there + self._allowance.left, _members(max(need, *self._seasonal)))
        if wanted > allowed and strain >= _STRAINED and not self._climb.is_followed:
            wanted, reason = allowed, f"{allowed} within what HPA would have started: {reason}"
        if wanted > most:
            why = "too little is known for more to stand by" if self._standing else "none may stand by"
            wanted, reason = int(most), f"{most} for the ninth decile of what is coming, as {why}: {reason}"
        if self._is_guessing:  # those are no starts that were meant
            self._thrice = Thrice(self._thrice.steps, wanted)
        held = self._thrice.after(wanted)
        if held > wanted:
            reason = f"{held} stay, started twice of late, now {wanted}: {reason}"
        self._there, self._exact = held, min(max(exact, held - 1.0), float(held))
        self._allowance.after(demand, held)
        return Size(held, reason, self._exact, *((p50, p90) if self._foresees else ()))

    def _most(self, need: float, p90: float) -> float:
        """Members that there may be: at first, and where none may stand by, those that are forecast."""
        if self._standing and not self._is_guessing:
            return math.inf
        is_told = self._foresees and (self._quantiles.is_telling or not self._is_guessing)
        return max(1, math.ceil(max(p90 if is_told else need, need) - _ROUNDING))

    @property
    def _is_guessing(self) -> bool:
        """Too little is known to tell whether it pays to stand by, and caution is asked for."""
        return self._cautious and self._majority is not None

    @property
    def _usual_members(self) -> float:
        return max(self._usual, _USUAL_LEAST)

    def _blind(self) -> Size:
        """Nobody moves and nobody learns."""
        self._quantiles.skip()
        self._analogs.skip()
        if self._majority:
            self._majority.skip()
            self._climb.skip()
        self._there = self._thrice.after(self._there)
        reason = f"no reading to learn from: {self._there} as before"
        return Size(self._there, reason, self._exact, is_blind=True)

    def _foreseen(self, need: float, strain: float) -> tuple[int, float, str]:
        """Whoever is missing is started, whoever will not be is let go, and the rest stays as it is."""
        usual, starting = self._usual_members, 2.0 ** (-min(strain, 3.0) / 2.0)
        worth = self._over_cost * max(usual, _SURGE * need)
        coming = self._analogs.cheapest(HIGHEST, _STARTING * starting * worth)
        likely = max(*self._likely, *self._seasonal)
        is_likely = _members(likely) > _members(coming)
        coming = max(coming, likely)
        soon = max(coming, self._analogs.cheapest(SOON, _STAYING * 2.0**strain * self._over_cost * usual))
        start, stay = _members(coming), _members(soon)
        wanted = min(max(start, self._there), stay)
        reason = f"{start} for what {'is forecast' if is_likely else 'followed moments like this one'}"
        if wanted > start:
            reason += f", and up to {stay} stay for what may soon: {wanted}"
        return wanted, min(max(coming, self._exact), soon), reason

    def _voted(self, majority: Majority, strain: float) -> tuple[int, str]:
        more = _VOTE_MORE * min(strain / _VOTE_STRAIN, 1.0)
        wanted, name = majority.wanted(self._there, _VOTE + more, _VOTE - more)
        reason = f"the majority of simple rules, most of all {name}"
        if (climbed := _members(self._climb.need)) > wanted:
            wanted, reason = climbed, f"{climbed} for the climb from the first reading on, or {reason}"
        if wanted < self._initial and self._steps <= self._initial_steps:
            return self._initial, f"{self._initial} were there at first, now {wanted}: {reason}"
        return wanted, reason


def _members(need: float) -> int:
    return max(1, math.ceil(min(need, MEMBERS_MOST) - _ROUNDING))
