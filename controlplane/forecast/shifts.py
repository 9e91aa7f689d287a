# SPDX-License-Identifier: Apache-2.0
"""Shifts of quantiles, so that they hold as often as they say while demand rises and falls too.

Errors are observed of all moments alike, but a surge has others than a calm hour. So each quantile is shifted
by a part of the spread between P10 and P90 that depends on how far demand stands above or below its means of
the last while. How much is learned of each forecast whose time has come: a step up if more came than the
quantile, a smaller one down if not, so that they even out where it holds as often as it says. That is
adaptive conformal inference (Gibbs and Candès, "Adaptive conformal inference under distribution shift",
NeurIPS 2021), here given the moment: a subgradient step of the pinball loss.
"""

from __future__ import annotations

import math

import numpy as np

from controlplane.forecast.recent import Floats

_MEANS_S = np.array([5.0, 40.0, 300.0, 3600.0])
"""Time constants."""
_USUAL_S = 14_400.0
"""Time constant of how far demand usually stands from each of those means."""
_FARTHEST = 5.0
"""Times as far as usual; what is farther counts no more."""
_STEPS = np.array([0.002, 0.001, 0.002, 0.005])
"""(probabilities,) of the spread, learned of one forecast."""
_LEAD_MOST = 8
"""Steps. With longer horizons less is learned of each forecast: until it is known whether that was enough,
all tell the same."""
_MOST = 1.0
"""Of the spread, for each thing that a moment is told by."""
_SPREAD_LEAST = 1e-6
"""Of what is added before a logarithm is taken. Of less, misses are rounding: nothing is learned."""


class Shifts:
    """Told demand step by step."""

    def __init__(self, interval_s: float, lead: int, probabilities: Floats) -> None:
        """:param lead: steps of the horizon."""
        self._gains = -np.expm1(-interval_s / _MEANS_S)
        self._usual_gain, self._count = -math.expm1(-interval_s / _USUAL_S), 0
        self._means, self._usual = np.zeros(len(_MEANS_S)), np.zeros(len(_MEANS_S))
        self._probabilities, self._steps = probabilities, _STEPS * min(1.0, _LEAD_MOST / lead)
        self._shifts: Floats = np.zeros((len(probabilities), 1 + 2 * len(_MEANS_S)))

    def after(self, demand: float, quantiles: Floats, soft: float) -> tuple[Floats, Floats]:
        """(probabilities,) shifted, each for itself: they may be below zero, or below one another; and the
        moment, (1 + above + below,) how far demand stands above and below its means.

        :param soft: what is added before a logarithm is taken."""
        self._count += 1
        least = 1.0 / self._count
        apart = math.log(demand + soft) - self._means
        gained = np.maximum(self._gains, least) * apart
        self._means += gained
        apart -= gained
        self._usual += max(self._usual_gain, least) * (np.abs(apart) - self._usual)
        far = apart / np.maximum(self._usual, 1e-9)
        moment = np.concatenate([[1.0], np.maximum(far, 0.0), np.minimum(far, 0.0)])
        moment = np.minimum(np.maximum(moment, -_FARTHEST), _FARTHEST)
        spread = float(quantiles[2] - quantiles[0])
        if spread <= _SPREAD_LEAST * soft:
            return quantiles, np.zeros_like(moment)
        return quantiles + (self._shifts @ moment) * spread, moment

    def learn(self, shifted: Floats, moment: Floats, demand: float) -> None:
        """:param shifted: of a forecast made at ``moment``, and ``demand``: what came."""
        above = (demand > shifted) - (1.0 - self._probabilities)
        moved = self._shifts + (self._steps * above)[:, None] * moment
        self._shifts = np.minimum(np.maximum(moved, -_MOST), _MOST)
