# SPDX-License-Identifier: Apache-2.0
"""Moments of the past that looked like this one, and what followed them.

Nearest neighbours (Lorenz, "Atmospheric predictability as revealed by naturally occurring analogues", 1969):
a moment is told by slopes, volatility and where demand stands among its recent highest, lowest and mean
values, all as logarithms of ratios, so that it is likened to moments of any level. What followed is the
highest demand until what is ordered now serves, as a multiple of demand then. The neighbours' multiples are
a sample of what may come, the nearer the weightier; of it is chosen what costs least, when a second over
capacity costs so much.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np
import numpy.typing as npt

from controlplane.forecast.recent import Floats, Recent, steps, windows

_MOMENTS, _LEAST, _NEIGHBOURS, _PART = 12_000, 200, 600, 1500
_SCALED_ANEW = 240
"""Steps after which features are scaled by their spread anew."""
HIGHEST, _AHEAD, SOON, _SEQUELS = 0, 1, 2, 3
"""What followed a moment, as logarithms of multiples of its demand: the highest until what is ordered then
serves, demand a lead time later, and the highest of ten minutes."""
_SOON_S = 600
_NEAR = 0.5
"""A moment's weight falls by e for so much of the squared distance that the farthest neighbour has."""
_SOFT = 0.02
"""Of the mean is added before a logarithm is taken: demand may be zero."""
_SLOPES_S = (15, 60, 120, 300)
_VOLATILITY_S = (120, 1200)
_HIGHEST_S = (60, 300, 1200, 4800, 19_200)
_MEANS_S = (600, 2400, 14_400)
_LOWEST_S = 600
_WEIGHTS = np.array([1.0, 0.6, 1.0, 1.0, 0.7, 0.8, 0.5, 0.8, 1.0, 0.7, 1.0, 1.0, 1.0, 1.0, 0.5, 1.0, 1.0])
"""(features,) how much each counts for likeness, in its own spread."""


class Analogs:
    """Told demand, in members, step by step."""

    def __init__(self, interval_s: float, lead: int) -> None:
        """:param lead: steps until what is ordered now serves, at least one."""

        self._lead = max(lead, 1)
        self._slopes = windows(_SLOPES_S, interval_s).tolist()
        self._volatility = windows(_VOLATILITY_S, interval_s)
        self._highest = windows(_HIGHEST_S, interval_s)
        self._means, self._lowest = windows(_MEANS_S, interval_s), steps(_LOWEST_S, interval_s)
        self._soon = max(steps(_SOON_S, interval_s), self._lead + 1)
        longest = int(max(self._highest[-1], self._means[-1], self._soon + 1))
        self._need, self._logs, self._moves = Recent((), longest), Recent((), longest), Recent((), longest)
        self._mean, self._count = 0.0, 0
        self._waiting = Recent((len(_WEIGHTS) + 1,), self._lead + 1)
        """Features and logarithm of moments whose sequel is not known yet."""
        self._now = 0.0
        self._near: tuple[Floats, Floats] | None = None
        """(neighbours, sequels) and (neighbours,) their weights."""
        self._awaiting: deque[tuple[int, int, float]] = deque()
        """When the ten minutes after a moment are known, its number, and its logarithm."""
        self._known = _Moments(_MOMENTS)

    def after(self, need: float) -> None:
        """:param need: of the step that has ended, in members or whatever demand is told in."""
        self._observe(need)
        self._now, features = float(self._logs.last(1)[0]), self._features()
        self._near = self._known.like(features)
        self._waiting.push([*features, self._now])

    def skip(self) -> None:
        """A step without a reading: what comes after it follows no moment before it."""
        self._waiting.clear()
        self._awaiting.clear()

    @property
    def is_telling(self) -> bool:
        """Enough moments are known."""
        return self._near is not None

    def cheapest(self, sequel: int, worth: float) -> float:
        """The need to hold members for: each costs one, and being over costs ``worth``. Enough moments are
        known.

        :param sequel: ``HIGHEST`` or ``SOON``."""
        if self._near is None:
            raise ValueError("too little is known")
        near, weights = self._near
        order = near[:, sequel].argsort()
        coming = np.exp(self._now + near[order, sequel]) - self.soft
        members = np.maximum(1.0, np.ceil(coming - 1e-9))
        weights = weights[order]
        upto = np.cumsum(weights)
        # Of members that are as many, the last counts: those after it need more. Half a moment is in doubt.
        exceeded = (upto[-1] - upto + 0.5) / upto[-1]
        return float(coming[np.argmin(members + worth * exceeded)])

    def ahead(self, probabilities: Floats) -> Floats | None:
        """(probabilities,) quantiles of the need ``lead`` steps from now; None: too little is known."""
        if self._near is None:
            return None
        coming = np.maximum(np.exp(self._now + self._near[0][:, _AHEAD]) - self.soft, 0.0)
        coming.sort()
        ranks = np.ceil(probabilities * len(coming)).astype(np.intp) - 1
        found: Floats = coming[np.maximum(ranks, 0)]
        return found

    @property
    def soft(self) -> float:
        """What is added to demand before a logarithm is taken."""
        return _SOFT * self._mean + 1e-9

    def _observe(self, need: float) -> None:
        self._count += 1
        self._mean += (need - self._mean) / self._count
        log = math.log(need + self.soft)
        self._moves.push(abs(log - self._logs.last(1)[0]) if len(self._logs) else 0.0)
        self._need.push(need)
        self._logs.push(log)
        if len(self._waiting) == self._lead + 1:
            row = self._waiting.last(self._lead + 1)[0]
            since = self._logs.last(self._lead + 1)
            highest = since.max() - row[-1]
            number = self._known.add(row[:-1], (highest, since[-2] - row[-1], highest))
            self._awaiting.append((self._count + self._soon - self._lead - 1, number, row[-1]))
        if self._awaiting and self._awaiting[0][0] <= self._count:
            _, number, log = self._awaiting.popleft()
            self._known.correct(number, SOON, self._logs.last(self._soon + 1).max() - log)

    def _features(self) -> Floats:
        last = self._logs.last
        now = last(1)[0]
        before = [last(steps + 1)[0] for steps in self._slopes]
        return np.array(
            [
                now - before[0],
                before[0] - last(2 * self._slopes[0] + 1)[0],
                *(now - earlier for earlier in before[1:]),
                *np.log(self._moves.means(self._volatility) + 1e-3),
                *(self._logs.highest(self._highest) - now),
                *(self._logs.means(self._means) - now),
                last(self._lowest).min() - now,
                *np.log(self._need.means(self._means[-1:]) + 1e-9),
            ]
        )


class _Moments:
    """Features of moments and what followed, the latest so many."""

    def __init__(self, most: int) -> None:
        self._most, self._count, self._next_scaling = most, 0, _LEAST
        self._features = np.zeros((most, len(_WEIGHTS)), dtype=np.float32)
        self._scaled = np.zeros_like(self._features)
        self._norms = np.zeros(most, dtype=np.float32)
        self._sequels = np.zeros((most, _SEQUELS))
        self._scale: npt.NDArray[np.float32] = _WEIGHTS.astype(np.float32)

    def add(self, features: Floats, sequels: tuple[float, ...]) -> int:
        """The moment's number."""
        at = self._count % self._most
        self._features[at], self._sequels[at] = features, sequels
        self._scaled[at] = self._features[at] * self._scale
        self._norms[at] = self._scaled[at] @ self._scaled[at]
        self._count += 1
        if self._count >= self._next_scaling:
            self._rescale()
        return self._count - 1

    def correct(self, number: int, sequel: int, value: float) -> None:
        """What followed is known by now; it was not when the moment was added."""
        if self._count - number <= self._most:
            self._sequels[number % self._most, sequel] = value

    def _rescale(self) -> None:
        there = min(self._count, self._most)
        spread = self._features[:there].std(axis=0) + 1e-6
        self._scale = (_WEIGHTS / spread).astype(np.float32)
        self._scaled[:there] = self._features[:there] * self._scale
        self._norms[:there] = np.einsum("ij,ij->i", self._scaled[:there], self._scaled[:there])
        self._next_scaling = self._count + min(_SCALED_ANEW, self._count // 3)

    def like(self, features: Floats) -> tuple[Floats, Floats] | None:
        """(some 600, sequels) what followed the moments most like this one, and (some 600,) their weights;
        None while too few are known."""
        there = min(self._count, self._most)
        if there < _LEAST:
            return None
        near = features.astype(np.float32) * self._scale
        apart = self._norms[:there] - 2.0 * (self._scaled[:there] @ near)
        # How near is near enough is told by a part of them: to sort all would take most of the time.
        part = apart[:: max(1, there // _PART)]
        rank = min(_NEIGHBOURS, there // 2) * len(part) // there
        farthest = np.partition(part, rank)[rank]
        chosen = np.flatnonzero(apart <= farthest)
        own = near @ near  # what is missing of all the squared distances
        distances = np.maximum(apart[chosen] + own, 0.0).astype(np.float64)
        return self._sequels[chosen], np.exp(-distances / (_NEAR * max(float(farthest + own), 1e-9)))
