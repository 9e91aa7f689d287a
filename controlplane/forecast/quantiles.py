# SPDX-License-Identifier: Apache-2.0
"""Quantiles of demand at a horizon: several ways to foresee it, weighed by how well they lately did.

Each point forecast (the last value, a moving average, simple exponential smoothing, Holt's damped trend, what
was a season ago) gets its quantiles from its own observed errors, once as multiples and once as differences;
beside them stands what was usual in the last hours. The learned method is analogs (``analogs.py``); it joins
only while its recent loss is the least. Loss is the pinball loss (Koenker and Bassett, "Regression
quantiles", Econometrica 46, 1978), whose mean over the quantiles is least for who knows the distribution.
What comes of the mixture is shifted by what moments like this one missed (``shifts.py``).
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from controlplane.forecast.analogs import Analogs
from controlplane.forecast.recent import Floats, Recent, steps
from controlplane.forecast.season import HoltWinters, Season
from controlplane.forecast.shifts import Shifts

PROBABILITIES = np.array([0.1, 0.5, 0.9, 0.99])
POINTS = ("last value", "moving average", "smoothing", "damped trend", "season", "Holt-Winters")
METHODS = (*POINTS, *(f"{point} +" for point in POINTS), "usual", "analogs")
"""Points by their errors as multiples and, +, as differences."""
_USUAL, _LEARNED = len(METHODS) - 2, len(METHODS) - 1
_SEASON = METHODS.index("season")
_ERRORS, _ERRORS_LEAST, _ANEW = 2000, 8, 16
_USUAL_S = 14_400.0
_AVERAGE_S = 300.0
_GAIN_S = 60.0
"""Time constant of smoothing; Holt's level has it too."""
_TREND_S = 240.0
_DAMPING_S = 120.0
"""A trend is trusted for so long, exponentially less."""
_LOSS_S = 3600.0
"""Losses are forgotten with this time constant."""
_PERIODS, _SEASON_WINS = 3.0, 0.5
"""The season is judged over so many periods; it is believed with less than this part of another loss."""
_SHARPNESS = 30.0
"""A tenth more loss than the best makes a method's weight this many tenths of e smaller."""
_DOUBT, _UNMOVED = 32.0, 40.0
"""Lead times, as errors within one are nearly the same: after so many, losses weigh half as sharply as in the
end; and the last value, which others have yet to do better than, weighs twice as much."""
_LAST_VALUE = slice(0, 2 * len(POINTS), len(POINTS))
_MOST = 3.0
"""No quantile is above so many times the highest demand so far: what followed a stop may be any multiple."""
_AT_FIRST = np.array([0.5, 1.0, 1.6, 2.5])
"""Multiples of the last value, while errors are too few."""


@dataclass(frozen=True, slots=True)
class _Told:
    """A forecast whose time is to come."""

    points: Floats
    each: Floats
    """(methods, probabilities) their quantiles."""
    called: bool
    """The season called for more members."""
    shifted: Floats
    moment: Floats
    """As ``Shifts`` has them."""


class Quantiles:
    """Told demand step by step; the analogs are those that were told the same before."""

    def __init__(self, interval_s: float, lead: int, analogs: Analogs) -> None:
        """:param lead: steps of the horizon."""
        self._lead, self._analogs = max(lead, 1), analogs
        self._average = Recent((), steps(_AVERAGE_S, interval_s))
        self._gain, self._trend_gain = -math.expm1(-interval_s / _GAIN_S), -math.expm1(-interval_s / _TREND_S)
        damping = math.exp(-interval_s / _DAMPING_S)
        self._reach = damping * (1.0 - damping**self._lead) / (1.0 - damping)
        self._damping = damping
        self._season = Season(interval_s, self._lead)
        self._seasonal = HoltWinters(self._season, self._lead, self._gain, self._trend_gain, damping)
        self._smooth = self._level = math.nan
        self._trend = self._most = 0.0
        self._count = 0
        self._pending: deque[_Told | None] = deque()
        """Forecasts whose time is to come; None: there was none."""
        self._errors = Recent((2 * len(POINTS),), _ERRORS)
        self._multiples: Floats = np.tile(_AT_FIRST, (len(POINTS), 1))
        self._differences: Floats = np.full((len(POINTS), len(PROBABILITIES)), np.nan)
        self._recent = Recent((), max(_ERRORS_LEAST, steps(_USUAL_S, interval_s)))
        self._usual: Floats = np.full(len(PROBABILITIES), np.nan)
        self._kept = math.exp(-interval_s / _LOSS_S)
        self._loss, self._weight = np.zeros(len(METHODS)), np.zeros(len(METHODS))
        self._called = np.zeros(2)
        """Losses of the season and of the last value when the season called for more members, with a memory
        of some periods."""
        self._last: Floats = np.full((len(METHODS), len(PROBABILITIES)), np.nan)
        """What each method says now."""
        self._told = np.ones(len(METHODS), dtype=bool)
        self._settled = 0
        self._shifts = Shifts(interval_s, self._lead, PROBABILITIES)

    def after(self, demand: float) -> Floats:
        """(probabilities,) of demand ``lead`` steps after this one; rising."""
        self._count += 1
        if len(self._pending) == self._lead and (forecast := self._pending.popleft()):
            self._settle(forecast, demand)
        self._recent.push(demand)
        if self._is_due(len(self._recent)):
            self._usual = _by_rank(self._recent.last(self._count)[:, None])[0]
        points = self._points(demand)
        ahead = self._analogs.ahead(PROBABILITIES)
        soft = self._analogs.soft
        each = np.vstack(
            [
                np.maximum((points[:, None] + soft) * self._multiples - soft, 0.0),
                np.maximum(points[:, None] + self._differences, 0.0),
                self._usual,
                np.full(len(PROBABILITIES), np.nan) if ahead is None else ahead,
            ]
        )
        self._most = max(self._most, demand)
        each = np.minimum(each, _MOST * self._most)
        self._last, self._told = each, ~np.isnan(each[:, 0])
        mixed = np.maximum.accumulate(self.weights() @ np.where(self._told[:, None], each, 0.0))
        shifted, moment = self._shifts.after(demand, mixed, soft)
        self._pending.append(_Told(points, each, self._calls_for_more(each), shifted, moment))
        return np.asarray(np.sort(np.minimum(np.maximum(shifted, 0.0), _MOST * self._most)))

    @property
    def is_telling(self) -> bool:
        """Errors were observed; until then quantiles are a guess that is wide enough for most."""
        return len(self._errors) >= _ERRORS_LEAST

    @property
    def seasonal(self) -> float:
        """What the season says of the horizon and one step later, whichever is more; NaN where it was not
        right, over some periods, in calling for members that nothing else did: what comes once a day is
        worth nothing in most hours."""
        by_season, without = self._called
        if not by_season < _SEASON_WINS * without:
            return math.nan
        return float(np.fmax(self._last[_SEASON, 1], self._season.following))

    def _calls_for_more(self, each: Floats) -> bool:
        """The season, for more members than are likely to be needed soon by what is there now."""
        return bool(math.ceil(each[_SEASON, 1]) > math.ceil(each[0, 2])) if self._told[_SEASON] else False

    def skip(self) -> None:
        """A step without a reading."""
        if len(self._pending) == self._lead:
            self._pending.popleft()
        self._pending.append(None)
        self._season.skip()
        self._seasonal.skip()

    def weights(self) -> Floats:
        """(methods,) in the order of ``METHODS``, of those that say something now; they sum up to one."""
        known = (self._weight > 0) & self._told
        if not known.any():
            first = np.zeros(len(METHODS))
            first[0] = 1.0
            return first
        mean = np.where(known, self._loss / np.maximum(self._weight, 1e-300), np.inf)
        if mean[_LEARNED] > mean[:_LEARNED].min():
            mean[_LEARNED] = np.inf
        least = max(float(mean.min()), 5e-11 * self._analogs.soft)
        doubt = _DOUBT * self._lead / self._settled
        weights = np.exp(-_SHARPNESS / (1.0 + doubt) * np.minimum(mean / least - 1.0, 1e3))
        weights[_LAST_VALUE] *= 1.0 + _UNMOVED * self._lead / self._settled
        weights[np.isinf(mean)] = 0.0
        return np.asarray(weights / weights.sum(), dtype=np.float64)

    def _points(self, demand: float) -> Floats:
        self._average.push(demand)
        if math.isnan(self._level):
            self._smooth = self._level = demand
        self._smooth += self._gain * (demand - self._smooth)
        expected = self._level + self._damping * self._trend
        level = expected + self._gain * (demand - expected)
        self._trend = (1.0 - self._trend_gain) * self._damping * self._trend + self._trend_gain * (
            level - self._level
        )
        self._level = level
        return np.array(
            [
                demand,
                self._average.mean(self._count),
                self._smooth,
                max(level + self._reach * self._trend, 0.0),
                self._season.after(demand),
                self._seasonal.after(demand),
            ]
        )

    def _settle(self, told: _Told, demand: float) -> None:
        """What came, of a forecast made ``lead`` steps ago."""
        self._settled += 1
        self._shifts.learn(told.shifted, told.moment, demand)
        missed = demand - told.each
        losses = np.maximum(PROBABILITIES * missed, (PROBABILITIES - 1.0) * missed)
        pinball = np.add.reduce(losses, axis=1) / len(PROBABILITIES)
        known = ~np.isnan(pinball)
        self._loss = self._kept * self._loss + np.where(known, pinball, 0.0)
        self._weight = self._kept * self._weight + known
        if told.called:
            self._called += pinball[[_SEASON, 0]]
        self._called *= math.exp(-1.0 / (_PERIODS * (self._season.period or 1)))
        soft = self._analogs.soft
        multiples = np.log((demand + soft) / (told.points + soft))
        self._errors.push(np.concatenate([multiples, demand - told.points]))
        if self._is_due(len(self._errors)):
            quantiles = _by_rank(self._errors.last(_ERRORS))
            self._multiples = np.exp(quantiles[: len(POINTS)])
            self._differences = quantiles[len(POINTS) :]

    def _is_due(self, known: int) -> bool:
        """Quantiles of so many values are to be taken anew."""
        return known >= _ERRORS_LEAST and (known < 200 or self._count % _ANEW == 0)


def _by_rank(errors: Floats) -> npt.NDArray[np.float64]:
    """(methods, probabilities) of (errors, methods); a method that has none: NaN."""
    ordered = np.sort(errors, axis=0)  # NaN come last
    count = np.sum(~np.isnan(errors), axis=0)
    ranks = np.maximum(np.ceil(PROBABILITIES * (count[:, None] + 1)).astype(np.intp) - 1, 0)
    ranks = np.minimum(ranks, np.maximum(count[:, None] - 1, 0))
    return np.take_along_axis(ordered.T, ranks, axis=1)
