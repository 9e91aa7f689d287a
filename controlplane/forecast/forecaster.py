# SPDX-License-Identifier: Apache-2.0
"""Online forecasts of noisy rates, vectorised over groups.

Of what comes within seconds, tick by tick; what comes in the long run is ``quantiles.py``'s and
``sizing.py``'s. Holt's linear trend: Holt, "Forecasting seasonals and trends by
exponentially weighted moving averages", ONR 52/1957. Counts per second are noisy, and a trend multiplied
by the horizon multiplies the noise. So Holt's gains are small, its trend is shrunk by what noise alone
would make of it (positive-part James-Stein, 1961), and what it is too slow for is found by a generalised
likelihood ratio (Willsky and Jones, 1976): did the last k readings step away from the level before them, or
climb away from it, more than noise does? (``onset.py``) The point is the likelier of the two; the high
quantile is that of both together.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from controlplane.forecast.onset import Onset
from controlplane.model import ForecastMethod

Floats = npt.NDArray[np.float64]

_LEVEL_GAIN, _TREND_GAIN = 0.07, 0.02
"""Holt's smoothing per second."""
_PRESENT_GAIN = 0.3
"""Without a forecast the level is all that there is: it follows readings sooner."""
_TREND_DOUBT = 2.0
"""Holt's trend below so many standard deviations of what noise makes of it counts as none."""
_NOISE_GAIN = 0.03
"""Smoothing of the noise's variance per tick of 1 s."""
_LEARNED = 5
"""Readings until an onset is told from the level; how uncertain it is of so few is reckoned with."""
_FORGET_S = 30.0
"""A gap longer than this starts a group anew."""
_ERRORS = 60
"""Observed errors that are remembered."""
_PRIOR_ERRORS = 10.0
"""So many observed errors weigh as much as the errors expected of a Poisson process."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Per group, in the order of ``Forecaster.names``; NaN where there was no reading yet."""

    horizon_s: float
    point: Floats
    high: Floats
    """The quantile of demand at the horizon; never below 0."""
    level: Floats
    """Demand now, smoothed."""


class Forecaster:
    """All groups of one service: same method, same horizon. State is arrays of shape (groups,)."""

    def __init__(self, method: ForecastMethod, quantile: float, names: Sequence[str]) -> None:
        """:param quantile: that is told as the high one, 0..1."""
        self.method, self.quantile = method, quantile
        self._level_gain = _LEVEL_GAIN if method is ForecastMethod.AUTO else _PRESENT_GAIN
        self.names = tuple(names)
        n = len(self.names)
        self._level = np.full(n, np.nan)
        self._trend = np.zeros(n)
        self._variance = np.zeros(n)
        self._seen_s = np.full(n, -np.inf)
        self._count = np.zeros(n)
        self._reach_s = np.full(n, np.inf)
        self._onset_noise = np.zeros(n)
        """Variance of the trend since an onset."""
        self._lasted_s = np.zeros(n)
        self._climb_share = np.zeros(n)
        """How probable it is that what looks like a step is a climb; the other four describe that climb."""
        self._climb_level = np.zeros(n)
        self._climb_trend = np.zeros(n)
        self._climb_s = np.zeros(n)
        self._climb_noise = np.zeros(n)
        self._onset = Onset(n)
        self._fit_level = np.full(n, np.nan)
        self._fit_trend = np.zeros(n)
        self._pending: deque[tuple[float, float, Floats]] = deque()
        self._errors = np.full((_ERRORS, n), np.nan)
        self._next_error = 0
        self._trend_noise = _trend_noise(self._level_gain, _TREND_GAIN)

    def regroup(self, names: Sequence[str]) -> Forecaster:
        """The same knowledge for another set of groups; new ones start without any."""
        other = Forecaster(self.method, self.quantile, names)
        old = {name: i for i, name in enumerate(self.names)}
        pairs = [(i, old[name]) for i, name in enumerate(other.names) if name in old]
        to, source = (
            np.array(side, dtype=np.intp) for side in (zip(*pairs, strict=True) if pairs else ((), ()))
        )

        def carried(row: Floats) -> Floats:
            values = np.full(len(other.names), np.nan)
            values[to] = row[source]
            return values

        for attribute in (
            "_level",
            "_trend",
            "_variance",
            "_seen_s",
            "_count",
            "_reach_s",
            "_onset_noise",
            "_lasted_s",
            "_climb_share",
            "_climb_level",
            "_climb_trend",
            "_climb_s",
            "_climb_noise",
            "_fit_level",
            "_fit_trend",
        ):
            getattr(other, attribute)[to] = getattr(self, attribute)[source]
        other._onset = self._onset.regroup(carried)
        other._errors[:, to] = self._errors[:, source]
        other._next_error = self._next_error
        other._pending.extend((due, made, carried(row)) for due, made, row in self._pending)
        return other

    def update(self, values: Floats, now_s: float) -> None:
        """Takes one reading per group, per second; NaN: no reading, the group's state stays."""
        values = np.where(np.isfinite(values) & (values >= 0), values, np.nan)
        read = ~np.isnan(values)
        gap_s = now_s - self._seen_s
        fresh = read & (np.isnan(self._level) | (gap_s > _FORGET_S))
        self._level[fresh] = values[fresh]
        self._trend[fresh] = 0.0
        self._count[fresh] = 0.0
        self._variance[fresh] = np.maximum(values[fresh], 1.0)
        self._errors[:, fresh] = np.nan
        for _, _, row in self._pending:
            row[fresh] = np.nan

        known = read & ~fresh & (gap_s > 0)
        before = np.where(self._count < _LEARNED, np.nan, self._level)
        self._count += read
        self._smooth(values, np.where(known, gap_s, 1.0), known)
        self._fit(before, values, gap_s)
        self._seen_s[read] = now_s
        self._observe_errors(now_s, read)

    def predict(self, horizon_s: float, now_s: float) -> Prediction:
        """Demand at ``now_s + horizon_s``. Call it once per tick: the errors are observed of it."""
        level = self._fit_level.copy()
        if self.method is ForecastMethod.NONE:
            return Prediction(horizon_s, level, level, level)
        point = np.maximum(level + self._fit_trend * np.minimum(horizon_s, self._reach_s), 0.0)
        self._pending.append((now_s + horizon_s, now_s, point.copy()))
        high = np.maximum(point + self._margin(horizon_s), self._climb_high(horizon_s))
        return Prediction(horizon_s, point, np.maximum(high, 0.0), level)

    def _smooth(self, values: Floats, gap_s: Floats, known: npt.NDArray[np.bool_]) -> None:
        # The first readings are averaged alike: else the very first one would weigh for long.
        gain = np.maximum(1.0 - (1.0 - self._level_gain) ** gap_s, 1.0 / (self._count + 1.0))
        trend = self._sure_trend() if self.method is ForecastMethod.AUTO else 0.0
        expected = self._level + trend * gap_s
        # The innovation's own variance, at least that of counting: a rate over dt has variance rate / dt.
        noise_gain = 1.0 - (1.0 - _NOISE_GAIN) ** gap_s
        # Against the fit where there is one: after an onset Holt lags, and that is no noise.
        fitted = np.where(self._lasted_s > 0, self._fit_level + self._fit_trend * gap_s, expected)
        surprise = np.minimum((values - fitted) ** 2, 9.0 * self._variance)
        variance = self._variance + noise_gain * (surprise - self._variance)
        variance = np.maximum(variance, np.maximum(expected, 1.0) / np.maximum(gap_s, 1.0))
        level = expected + gain * (values - expected)
        trend_gain = 1.0 - (1.0 - _TREND_GAIN) ** gap_s
        new_trend = self._trend + trend_gain * ((level - self._level) / gap_s - self._trend)
        self._variance = np.where(known, variance, self._variance)
        self._trend = np.where(known, new_trend, self._trend)
        self._level = np.where(known, np.maximum(level, 0.0), self._level)

    def _fit(self, before: Floats, values: Floats, gap_s: Floats) -> None:
        """Level and trend now: Holt's, or the onset's where there was one."""
        self._fit_level = self._level.copy()
        self._fit_trend = np.zeros_like(self._level)
        if self.method is ForecastMethod.NONE:
            return
        self._fit_trend = self._sure_trend()
        gain = self._level_gain
        # Of few readings the level was less certain than smoothing makes it in the long run.
        noise: Floats = np.maximum(gain / (2.0 - gain), 1.0 / np.maximum(self._count - 1.0, 1.0))
        found = self._onset.update(before, values, gap_s, self._variance, noise)
        # After a climb Holt's level overshoots: its trend takes long to learn that the climb is over.
        followed, _ = self._onset.not_above_recent(self._fit_level, self._fit_trend, self._variance)
        best, climb = found.best, found.climb
        self._fit_level = np.maximum(np.where(found.seen, best.level, followed), 0.0)
        self._fit_trend = np.where(found.seen, best.trend, self._fit_trend)
        # A climb is trusted to go on for as long as it has lasted.
        self._reach_s = np.where(found.seen, best.lasted, np.inf)
        self._onset_noise = np.where(found.seen, best.trend_noise * self._variance, 0.0)
        self._lasted_s = np.where(found.seen, best.lasted, 0.0)
        is_step = found.seen & (best.trend_noise == 0.0)
        self._climb_share = np.where(is_step, found.climb_share, 0.0)
        self._climb_level, self._climb_trend, self._climb_s = climb.level, climb.trend, climb.lasted
        self._climb_noise = climb.trend_noise * self._variance

    def _sure_trend(self) -> Floats:
        """The trend shrunk by its noise."""
        noise = _TREND_DOUBT**2 * self._trend_noise * self._variance
        power = np.maximum(self._trend**2, 1e-12)
        shrunk: Floats = self._trend * np.maximum(1.0 - noise / power, 0.0)
        return shrunk

    def _observe_errors(self, now_s: float, read: npt.NDArray[np.bool_]) -> None:
        while self._pending and self._pending[0][0] <= now_s:
            _, made_s, predicted = self._pending.popleft()
            # Nobody could know of an onset before it: that error says nothing of forecasts made since.
            known = read & ((self._lasted_s == 0.0) | (made_s >= now_s - self._lasted_s))
            self._errors[self._next_error] = np.where(known, self._fit_level - predicted, np.nan)
            self._next_error = (self._next_error + 1) % len(self._errors)

    def _margin(self, horizon_s: float) -> Floats:
        """From point to the high quantile: observed errors, while there are few those of counting noise;
        and after an onset what the few readings since then leave open about its trend."""
        quantile = self.quantile
        gain = self._level_gain
        expected = NormalDist().inv_cdf(quantile) * np.sqrt(2.0 * self._variance * gain / (2.0 - gain))
        missing = np.isnan(self._errors)
        count = len(self._errors) - np.sum(missing, axis=0)
        # Partition sorts NaN to the end: the k-th of those present is the quantile, k differing by group.
        rank = np.clip(np.ceil(quantile * count).astype(np.intp) - 1, 0, None)
        ordered = np.sort(self._errors, axis=0)
        observed = np.where(count > 0, np.take_along_axis(ordered, rank[None, :], axis=0)[0], 0.0)
        weight = count / (count + _PRIOR_ERRORS)
        margin: Floats = np.maximum(weight * observed + (1.0 - weight) * expected, 0.0)
        reach_s = self._lasted_s + np.minimum(horizon_s, self._reach_s)
        unsure = NormalDist().inv_cdf(quantile) * reach_s * np.sqrt(self._onset_noise)
        whole: Floats = np.hypot(margin, unsure)
        return whole

    def _climb_high(self, horizon_s: float) -> Floats:
        """Demand, if what looks like a step is a climb, that is exceeded as rarely as the quantile says when
        the probability of a climb is reckoned with; -inf where it is less than that anyway."""
        beyond = (1.0 - self.quantile) / np.maximum(self._climb_share, 1e-9)
        reach_s = np.minimum(horizon_s, self._climb_s)
        doubt = np.array([-NormalDist().inv_cdf(share) if share < 1.0 else -np.inf for share in beyond])
        deviation = (self._climb_s + reach_s) * np.sqrt(self._climb_noise)
        high = self._climb_level + self._climb_trend * reach_s + doubt * np.maximum(deviation, 1e-9)
        return np.where(np.isnan(high), -np.inf, high)


def _trend_noise(level_gain: float, trend_gain: float) -> float:
    """Variance of Holt's trend per variance of white noise around a flat line: the energy of its
    response to one impulse."""
    level = trend = energy = 0.0
    for k in range(1000):
        following = level + level_gain * ((k == 0) - level)
        trend += trend_gain * (following - level - trend)
        level = following
        energy += trend**2
    return energy
