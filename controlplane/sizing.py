# SPDX-License-Identifier: Apache-2.0
"""How many members a group should have: what would have cost least, member by member.

There are some 160 rules (``forecast/rules.py``, ``forecast/analogs.py``), and none suits every load. So each
is held against what came: had it been followed, when would the n-th member have been there in vain, and when
missing? Members are weighed apart, for the second is needed all day and the twelfth at noon. Rules have
exponential weights (Vovk, "Aggregating strategies", 1990; Littlestone and Warmuth, "The weighted majority
algorithm", 1994) by their costs, which are slowly forgotten; the n-th member is wanted where the weighted
majority wants it, and kept while a fifth does.

What a second over capacity costs is given in seconds of the usual group, so that one number suits groups of
any size. What is usual is the mean of what a lead time's highest demand needs.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from controlplane.forecast import analogs, rules
from controlplane.forecast.analogs import Analogs
from controlplane.forecast.quantiles import Quantiles
from controlplane.forecast.rules import Rules
from controlplane.hold import Hold

NAMES = (*rules.NAMES, *analogs.NAMES)
"""(rules,) in words."""
_NOVEL_S = np.append(rules.NOVEL_S, np.zeros(len(analogs.NAMES)))

OVER_COST = 6.0
"""A second over capacity costs as much as so many seconds of the usual group."""
STABLE_S = 300.0
"""A member stays for so long after it was wanted last: so none is started three times in ten minutes."""
_HELD_MOST_S = 600.0
"""Who is started again and again stays for so long."""
_HALF_LIFE_S = 52_000.0
"""Of costs: yesterday's count a third."""
_LEARNING_S = 750.0
"""A rule's weight falls by e for so many seconds' cost of the usual group."""
_WHOLE = 0.05
"""So much as its own costs tell of a member, those of the whole group do."""
_WANTING, _KEEPING = 0.5, 0.4
"""The part of the weight that has to ask for a member that is not there, and for one that is: opinions that
part at a threshold neither start nor stop anything."""
_LEARNED = 40
"""Steps until members may stand by: before, nobody knows whether that pays."""
_USUAL_LEAST = 0.3
_APART = 1.03
_MEMBERS_MOST = 1e7
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


class Sizing:
    """One group, or service, whose members have the same capacity; told its demand step by step."""

    def __init__(
        self,
        capacity: float,
        lead_time_s: float,
        interval_s: float,
        initial: int = 1,
        over_cost: float = OVER_COST,
        stable_s: float = STABLE_S,
        standing: bool = True,
    ) -> None:
        """:param capacity: requests/s of a member. ``lead_time_s``: until one that is ordered serves.
        ``interval_s``: of a step. ``initial``: members that there are, which stay until something is known.
        ``stable_s``: a member stays for so long after it was wanted last. ``standing``: members may stand
        by for more than the ninth decile of demand a lead time from now, if that pays.
        """
        self._capacity, self._interval_s, self._over_cost = capacity, interval_s, over_cost
        steps = math.ceil(lead_time_s / interval_s - _ROUNDING)
        self._foresees, lead = steps <= _LEAD_STEPS_MOST, min(steps, _LEAD_STEPS_MOST)
        self._rules, self._analogs = Rules(interval_s, lead_time_s), Analogs(interval_s, lead)
        self._quantiles = Quantiles(interval_s, lead, self._analogs)
        self._ahead: tuple[float | None, float | None] = (None, None)
        self._asked: deque[npt.NDArray[np.float64]] = deque(maxlen=lead + 1)
        """(rules,) members that each asked for, of the last lead time: the least of them would be there."""
        self._needed: deque[float] = deque(maxlen=lead + 1)
        self._usual, self._steps = 0.0, 0
        self._remaining = 0.5 ** (interval_s / _HALF_LIFE_S)
        self._costs = np.zeros((len(NAMES), 1))
        """(rules, levels) of having more members than that, and of having no more when they were needed; in
        steps of the usual group."""
        self._whole = np.zeros(len(NAMES))
        self._standing = standing
        self._level = 0
        """Index of the size that was chosen last."""
        stable = max(1, round(stable_s / interval_s))
        self._hold = Hold(stable, round(_HELD_MOST_S / interval_s), int(np.searchsorted(_LEVELS, initial)))
        self._recent: deque[float] = deque([initial - 1.0], maxlen=stable)

    def after(self, demand: float) -> Size:
        """:param demand: requests/s, the mean of the step that has ended; NaN: no reading."""
        if math.isnan(demand):
            return self._blind()
        need = demand / self._capacity
        if self._asked:
            self._settle(math.ceil(need - _ROUNDING))
        self._needed.append(need)
        self._steps += 1
        self._usual += (max(self._needed) - self._usual) / self._steps
        self._analogs.after(need)
        _, p50, p90, _ = (self._quantiles.after(need) * self._capacity).tolist()
        if self._foresees:
            self._ahead = p50, p90
        held = np.concatenate([self._rules.of(need), self._analogs.held(self._usual_members)])
        asked = np.clip(np.ceil(held - _ROUNDING), 1.0, _LEVELS[-2])
        self._asked.append(asked)
        return self._chosen(held, asked)

    @property
    def _usual_members(self) -> float:
        return max(self._usual, _USUAL_LEAST)

    def _blind(self) -> Size:
        """Nobody moves and nobody learns; what was asked for goes on to be."""
        self._quantiles.skip()
        self._analogs.skip()
        if self._asked:
            self._asked.append(self._asked[-1])
        wanted = int(_LEVELS[self._hold.there])
        return Size(wanted, f"no reading: {wanted} as before", min(max(self._recent), float(wanted)))

    def _settle(self, needed: int) -> None:
        """What the step that ended has cost each rule, had it been followed."""
        usual = self._usual_members
        asked, there = self._asked[-1], np.minimum.reduce(self._asked)
        self._whole *= self._remaining
        self._whole += asked / usual + self._over_cost * (there < needed)
        self._costs *= self._remaining
        columns = self._costs.shape[1]
        levels = _LEVELS[:columns]
        self._costs += (asked[:, None] > levels) * (_WIDTHS[:columns] / usual)
        missed = int(np.searchsorted(levels, needed))
        self._costs[:, :missed] += self._over_cost * (there[:, None] <= levels[:missed])

    def _chosen(self, held: npt.NDArray[np.float64], asked: npt.NDArray[np.float64]) -> Size:
        columns = int(np.searchsorted(_LEVELS, asked.max())) + 1
        if (missing := columns - self._costs.shape[1]) > 0:
            # Nobody has asked for so many yet, and whoever needed them was missed by all alike.
            self._costs = np.pad(self._costs, ((0, 0), (0, missing)))
        asking = asked[:, None] > _LEVELS[: self._costs.shape[1]]
        costs = self._costs + _WHOLE * (self._whole - self._whole.min())[:, None]
        weights = np.exp((costs.min(axis=0) - costs) * (self._interval_s / _LEARNING_S))
        weights[self._steps * self._interval_s <= _NOVEL_S] = 0.0  # else one opinion has many votes
        share = np.sum(weights * asking, axis=0) / np.sum(weights, axis=0)
        least = np.where(np.arange(len(share)) < self._level, _KEEPING, _WANTING)
        level = self._level = int(np.flatnonzero(share <= least)[0])  # nobody asks for the last one
        column = weights[:, max(level - 1, 0)]
        fewer = float(_LEVELS[level - 1]) if level else 0.0
        exact = min(max(_median(held, column), math.nextafter(fewer, math.inf)), float(_LEVELS[level]))
        size = Size(int(_LEVELS[level]), self._reason(asked, column, level), exact, *self._ahead)
        if not self._standing or self._steps < _LEARNED:
            size = self._not_standing(size)
            level = int(np.searchsorted(_LEVELS, size.wanted))
        return self._held(size, level)

    def _not_standing(self, size: Size) -> Size:
        forecast = self._needed[-1] if size.p90 is None else max(size.p90 / self._capacity, self._needed[-1])
        enough = int(np.searchsorted(_LEVELS, max(1, math.ceil(forecast - _ROUNDING))))
        most = int(_LEVELS[min(enough, len(_LEVELS) - 1)])
        if size.wanted <= most:
            return size
        why = "too little is known for more to stand by" if self._standing else "none may stand by"
        reason = f"{most} for the ninth decile of what is coming, as {why}: {size.reason}"
        return replace(size, wanted=most, exact=min(size.exact, max(forecast, _ROUNDING)), reason=reason)

    def _reason(self, asked: npt.NDArray[np.float64], weights: npt.NDArray[np.float64], level: int) -> str:
        if self._steps == 1:
            return "half of the rules ask for no more, and nothing is known of them yet"
        # Of those who ask for just so many, or, when these are kept for those who ask for more, of them.
        enough = asked > (_LEVELS[level - 1] if level else 0.0)
        just = enough & (asked <= _LEVELS[level])
        best = int(np.where(just if just.any() else enough, weights, -1.0).argmax())
        return f"the majority of what costs least, most of all {NAMES[best]}: {asked[best]:.0f}"

    def _held(self, size: Size, level: int) -> Size:
        self._recent.append(size.exact)
        held = self._hold.after(level)
        if held == level:
            return replace(size, exact=min(max(self._recent), float(size.wanted)))
        most = int(_LEVELS[held])
        exact = min(max(*self._recent, float(most - 1)), float(most))
        reason = f"{most} were wanted not long ago, now {size.wanted}: {size.reason}"
        return replace(size, wanted=most, exact=exact, reason=reason)


def _median(values: npt.NDArray[np.float64], weights: npt.NDArray[np.float64]) -> float:
    """The least value that is no less than what half of the weight asks for."""
    order = values.argsort()
    summed = weights[order].cumsum()
    return float(values[order[np.searchsorted(summed, 0.5 * summed[-1])]])


def _levels() -> npt.NDArray[np.float64]:
    """Sizes that are told apart: each one, and of larger groups what is three per cent apart."""
    levels = [1.0]
    while levels[-1] < _MEMBERS_MOST:
        levels.append(max(levels[-1] + 1.0, math.ceil(levels[-1] * _APART)))
    return np.array(levels)


_LEVELS = _levels()
_WIDTHS = np.diff(_LEVELS, append=_LEVELS[-1] * _APART)
