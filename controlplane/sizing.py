# SPDX-License-Identifier: Apache-2.0
"""How many members a group should have: what would have cost least, member by member.

There are some 160 rules (``forecast/rules.py``, ``forecast/analogs.py``), and none suits every load. So each
is held against what came: had it been followed, when would the n-th member have been there in vain, and when
missing? Members are weighed apart, for the second is needed all day and the twelfth at noon. Rules have
exponential weights (Vovk, "Aggregating strategies", 1990; Littlestone and Warmuth, "The weighted majority
algorithm", 1994) by their costs, which are slowly forgotten; the n-th member is wanted where the weighted
majority wants it.

What a second over capacity costs is given in seconds of the usual group, so that one number suits groups of
any size. What is usual is the mean of what a lead time's highest demand needs.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from controlplane.forecast import analogs, rules
from controlplane.forecast.analogs import Analogs
from controlplane.forecast.quantiles import Quantiles
from controlplane.forecast.rules import Rules

NAMES = (*rules.NAMES, *analogs.NAMES)
"""(rules,) in words."""

OVER_COST = 6.0
"""A second over capacity costs as much as so many seconds of the usual group."""
STABLE_S = 300.0
"""A member stays for so long after it was wanted last: so none is started three times in ten minutes."""
_HALF_LIFE_S = 52_000.0
"""Of costs: yesterday's count a third."""
_LEARNING_S = 750.0
"""A rule's weight falls by e for so many seconds' cost of the usual group."""
_WHOLE = 0.05
"""So much as its own costs tell of a member, those of the whole group do."""
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
    ) -> None:
        """:param capacity: requests/s of a member. ``lead_time_s``: until one that is ordered serves.
        ``interval_s``: of a step. ``initial``: members that there are, which stay until something is known.
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
        self._recent: deque[int] = deque([initial], maxlen=max(1, round(STABLE_S / interval_s)))

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
        return self._chosen(asked)

    @property
    def _usual_members(self) -> float:
        return max(self._usual, _USUAL_LEAST)

    def _blind(self) -> Size:
        """Nobody moves and nobody learns; what was asked for goes on to be."""
        self._quantiles.skip()
        self._analogs.skip()
        if self._asked:
            self._asked.append(self._asked[-1])
        self._recent.append(max(self._recent))
        return Size(self._recent[-1], f"no reading: {self._recent[-1]} as before")

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

    def _chosen(self, asked: npt.NDArray[np.float64]) -> Size:
        columns = int(np.searchsorted(_LEVELS, asked.max())) + 1
        if (missing := columns - self._costs.shape[1]) > 0:
            # Nobody has asked for so many yet, and whoever needed them was missed by all alike.
            self._costs = np.pad(self._costs, ((0, 0), (0, missing)))
        asking = asked[:, None] > _LEVELS[: self._costs.shape[1]]
        costs = self._costs + _WHOLE * (self._whole - self._whole.min())[:, None]
        weights = np.exp((costs.min(axis=0) - costs) * (self._interval_s / _LEARNING_S))
        share = np.sum(weights * asking, axis=0) / np.sum(weights, axis=0)
        level = int(np.flatnonzero(share <= 0.5)[0])  # nobody asks for the last one
        return self._held(self._reason(asked, weights[:, max(level - 1, 0)], level), int(_LEVELS[level]))

    def _reason(self, asked: npt.NDArray[np.float64], weights: npt.NDArray[np.float64], level: int) -> str:
        if self._steps == 1:
            return "half of the rules ask for no more, and nothing is known of them yet"
        # Of those who ask for just so many; mostly there are some.
        just = (asked <= _LEVELS[level]) & (asked > (_LEVELS[level - 1] if level else 0.0))
        best = int(np.where(just, weights, 0.0).argmax()) if just.any() else int(weights.argmax())
        return f"the majority of what costs least, most of all {NAMES[best]}: {asked[best]:.0f}"

    def _held(self, reason: str, wanted: int) -> Size:
        self._recent.append(wanted)
        most = max(self._recent)
        if most > wanted:
            reason = f"{most} were wanted within {STABLE_S:.0f} s, now {wanted}: {reason}"
        return Size(most, reason, *self._ahead)


def _levels() -> npt.NDArray[np.float64]:
    """Sizes that are told apart: each one, and of larger groups what is three per cent apart."""
    levels = [1.0]
    while levels[-1] < _MEMBERS_MOST:
        levels.append(max(levels[-1] + 1.0, math.ceil(levels[-1] * _APART)))
    return np.array(levels)


_LEVELS = _levels()
_WIDTHS = np.diff(_LEVELS, append=_LEVELS[-1] * _APART)
