# SPDX-License-Identifier: Apache-2.0
"""How many members simple rules want, while too little is known for anything better.

None of them (``rules.py``) suits every load. So each is held against what came: had it been followed, when
would the n-th member have been there in vain, and when missing? Members are weighed apart, for the second is
needed all the time and the twelfth now and then. Rules have exponential weights (Vovk, "Aggregating
strategies", 1990; Littlestone and Warmuth, "The weighted majority algorithm", 1994) by their costs, which are
slowly forgotten; the n-th member is wanted where enough of the weight wants it.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from controlplane.forecast import rules
from controlplane.forecast.recent import Floats
from controlplane.forecast.rules import Rules

NAMES = rules.NAMES
"""(rules,) in words."""
MEMBERS_MOST = 1e7
_HALF_LIFE_S = 52_000.0
"""Of costs: yesterday's count a third."""
_LEARNING_S = 750.0
"""A rule's weight falls by e for so many seconds' cost of the usual group."""
_WHOLE = 0.1
"""So much as its own costs tell of a member, those of the whole group do."""
_APART = 1.03
_ROUNDING = 1e-9


class Majority:
    """Told the need, in members, step by step."""

    def __init__(self, interval_s: float, lead_time_s: float, lead: int, over_cost: float) -> None:
        """:param lead: steps of the lead time. ``over_cost``: of a second, in seconds of the usual group."""
        self._interval_s, self._over_cost = interval_s, over_cost
        self._rules = Rules(interval_s, lead_time_s)
        self._asked: deque[Floats] = deque(maxlen=lead + 1)
        """(rules,) members that each asked for, of the last lead time: the least of them would be there."""
        self._remaining = 0.5 ** (interval_s / _HALF_LIFE_S)
        self._costs = np.zeros((len(NAMES), 1))
        """(rules, levels) of having more members than that, and of having no more when they were needed; in
        steps of the usual group."""
        self._whole = np.zeros(len(NAMES))

    def after(self, need: float, usual_then: float) -> None:
        """:param usual_then: members of the usual group, before this step was known."""
        if self._asked:
            self._settle(math.ceil(need - _ROUNDING), usual_then)
        held = self._rules.of(need)
        asked = np.clip(np.ceil(held - _ROUNDING), 1.0, _LEVELS[-2])
        self._asked.append(asked)
        columns = int(np.searchsorted(_LEVELS, asked.max())) + 1
        if (missing := columns - self._costs.shape[1]) > 0:
            # Nobody has asked for so many yet, and whoever needed them was missed by all alike.
            self._costs = np.pad(self._costs, ((0, 0), (0, missing)))

    def skip(self) -> None:
        """A step without a reading: what was asked for goes on to be."""
        if self._asked:
            self._asked.append(self._asked[-1])

    def wanted(self, there: int, starting: float, staying: float) -> tuple[int, str]:
        """Members from now on, and who is for it.

        :param starting: the part of the weight that has to want one who is not there. ``staying``: or is."""
        asked, levels = self._asked[-1], _LEVELS[: self._costs.shape[1]]
        costs = self._costs + _WHOLE * (self._whole - self._whole.min())[:, None]
        weights = np.exp((costs.min(axis=0) - costs) * (self._interval_s / _LEARNING_S))
        share = np.sum(weights * (asked[:, None] > levels), axis=0) / np.sum(weights, axis=0)
        wanted = share > np.where(levels < there, staying, starting)
        wanted[-1] = False  # nobody asks for that one
        level = int(np.flatnonzero(~wanted)[0])
        by_weight = weights[:, max(level - 1, 0)]
        # Of those who ask for just so many; mostly there are some.
        just = (asked <= _LEVELS[level]) & (asked > (_LEVELS[level - 1] if level else 0.0))
        best = int(np.where(just, by_weight, 0.0).argmax()) if just.any() else int(by_weight.argmax())
        return int(_LEVELS[level]), f"{NAMES[best]}: {asked[best]:.0f}"

    def _settle(self, needed: int, usual: float) -> None:
        """What the step that ended has cost each rule, had it been followed."""
        asked, there = self._asked[-1], np.minimum.reduce(self._asked)
        self._whole *= self._remaining
        self._whole += asked / usual + self._over_cost * (there < needed)
        self._costs *= self._remaining
        columns = self._costs.shape[1]
        levels = _LEVELS[:columns]
        self._costs += (asked[:, None] > levels) * (_WIDTHS[:columns] / usual)
        missed = int(np.searchsorted(levels, needed))
        self._costs[:, :missed] += self._over_cost * (there[:, None] <= levels[:missed])


def _levels() -> Floats:
    """Sizes that are told apart: each one, and of larger groups what is three per cent apart."""
    levels = [1.0]
    while levels[-1] < MEMBERS_MOST:
        levels.append(max(levels[-1] + 1.0, math.ceil(levels[-1] * _APART)))
    return np.array(levels)


_LEVELS = _levels()
_WIDTHS = np.diff(_LEVELS, append=_LEVELS[-1] * _APART)
