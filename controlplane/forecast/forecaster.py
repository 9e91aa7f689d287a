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

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from controlplane.forecast import normal
from controlplane.forecast.errors import Errors
from controlplane.forecast.onset import READINGS, Onset
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
_CARRIED = (
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
)
_PROPORTIONAL = (
    "_level", "_trend", "_variance", "_climb_level", "_climb_trend", "_fit_level", "_fit_trend",
)  # fmt: skip
"""To a group's share of its service; of counts the variance is as well."""
_FORGET_S = 30.0
"""A gap longer than this starts a group anew."""
_PRIOR_ERRORS = 10.0
"""So many observed errors weigh as much as the errors expected of a Poisson process."""


@dataclass(frozen=True, slots=True)
class Prediction:
    """Per group, in the order of ``Forecaster.names``; NaN where there was no reading yet."""

    horizon_s: Floats
    point: Floats
    high: Floats
    """The quantile of demand at the horizon; never below 0."""
    level: Floats
    """Demand now, smoothed."""


class Forecaster:
    """The groups of all services; each has its method, quantile and horizon. State is arrays of shape
    (groups,)."""

    def __init__(
        self,
        method: ForecastMethod | Sequence[ForecastMethod],
        quantile: float | Floats,
        names: Sequence[str],
    ) -> None:
        """:param quantile: that is told as the high one, 0..1. Like ``method``, of all groups or of each."""
        self.names = tuple(names)
        n = len(self.names)
        methods = [method] * n if isinstance(method, ForecastMethod) else method
        self._auto = np.array([one is ForecastMethod.AUTO for one in methods], dtype=np.bool_)
        self.quantile: Floats = np.full(n, quantile, dtype=np.float64)
        self._deviations = normal.quantile(self.quantile)
        self._level_gain = np.where(self._auto, _LEVEL_GAIN, _PRESENT_GAIN)
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
        self._errors = Errors(n)
        self._trend_noise = _trend_noise(_LEVEL_GAIN, _TREND_GAIN)

    def resume(self, other: Forecaster) -> None:
        """Takes what another one knows of groups with the same name, method and quantile; before anything
        else."""
        old = {name: i for i, name in enumerate(other.names)}
        pairs = [
            (i, old[name])
            for i, name in enumerate(self.names)
            if name in old
            and self._auto[i] == other._auto[old[name]]
            and self.quantile[i] == other.quantile[old[name]]
        ]
        to, source = np.array(pairs, dtype=np.intp).reshape(-1, 2).T
        for attribute in _CARRIED:
            getattr(self, attribute)[to] = getattr(other, attribute)[source]
        self._onset.resume(other._onset, to, source)
        self._errors.resume(other._errors, to, source)

    def rescale(self, groups: slice | npt.NDArray[np.bool_], factor: Floats) -> None:
        """From now on these are given so many times as much: that is no change of demand.

        :param factor: (groups,) NaN: it begins anew."""
        for attribute in _PROPORTIONAL:
            getattr(self, attribute)[groups] *= factor
        for attribute in ("_onset_noise", "_climb_noise"):
            getattr(self, attribute)[groups] *= factor**2
        self._onset.rescale(groups, factor)
        self._errors.rescale(groups, factor)

    def update(self, values: Floats, now_s: float) -> None:
        """Takes one reading per group, per second; NaN: no reading, the group's state stays."""
        values = np.where(np.isfinite(values) & (values >= 0), values, np.nan)
        read = ~np.isnan(values)
        gap_s = now_s - self._seen_s
        # Who had no demand yet begins with the first one: that is no climb from nought.
        begins = read & (self._level == 0.0) & (values > 0.0)
        if begins.any():
            self._onset.rescale(begins, np.full(int(begins.sum()), np.nan))
        fresh = read & (np.isnan(self._level) | (gap_s > _FORGET_S) | begins)
        self._level[fresh] = values[fresh]
        self._trend[fresh] = 0.0
        self._count[fresh] = 0.0
        self._variance[fresh] = np.maximum(values[fresh], 1.0)
        self._errors.forget(fresh)

        known = read & ~fresh & (gap_s > 0)
        before = np.where(self._count < _LEARNED, np.nan, self._level)
        self._count += read
        self._smooth(values, np.where(known, gap_s, 1.0), known)
        self._fit(before, values, gap_s)
        self._seen_s[read] = now_s
        # Nobody could know of an onset before it: that error says nothing of forecasts made since.
        since_s = np.where(self._lasted_s == 0.0, -np.inf, now_s - self._lasted_s)
        self._errors.observe(self._fit_level, now_s, np.where(read, since_s, np.inf))

    def predict(self, horizon_s: float | Floats, now_s: float) -> Prediction:
        """Demand at ``now_s + horizon_s``. Call it once per tick: the errors are observed of it."""
        auto, level = self._auto, self._fit_level.copy()
        horizon_s = np.full(level.shape, horizon_s, dtype=np.float64)
        if not auto.any():
            return Prediction(horizon_s, level, level, level)
        point = np.maximum(level + self._fit_trend * np.minimum(horizon_s, self._reach_s), 0.0)
        self._errors.await_(point, now_s, now_s + np.where(auto, horizon_s, 0.0))
        high = np.maximum(point + self._margin(horizon_s), self._climb_high(horizon_s))
        high = np.where(auto, np.maximum(high, 0.0), level)
        return Prediction(horizon_s, np.where(auto, point, level), high, level)

    def _smooth(self, values: Floats, gap_s: Floats, known: npt.NDArray[np.bool_]) -> None:
        # The first readings are averaged alike: else the very first one would weigh for long.
        gain = np.maximum(1.0 - (1.0 - self._level_gain) ** gap_s, 1.0 / (self._count + 1.0))
        trend = np.where(self._auto, self._sure_trend(), 0.0)
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
        if not self._auto.any():
            return
        self._fit_trend = np.where(self._auto, self._sure_trend(), 0.0)
        gain = self._level_gain
        # Of few readings the level was less certain than smoothing makes it in the long run.
        noise: Floats = np.maximum(gain / (2.0 - gain), 1.0 / np.maximum(self._count - 1.0, 1.0))
        found = self._onset.update(before, values, gap_s, self._variance, noise)
        # After a climb Holt's level overshoots: its trend takes long to learn that the climb is over.
        followed, _ = self._onset.not_above_recent(self._fit_level, self._fit_trend, self._variance)
        best, climb, seen = found.best, found.climb, found.seen & self._auto
        followed = np.where(self._auto, followed, self._level)
        self._fit_level = np.maximum(np.where(seen, best.level, followed), 0.0)
        self._fit_trend = np.where(seen, best.trend, self._fit_trend)
        # A climb is trusted to go on for as long as it has lasted.
        self._reach_s = np.where(seen, best.lasted, np.inf)
        self._onset_noise = np.where(seen, best.trend_noise * self._variance, 0.0)
        self._lasted_s = np.where(seen, best.lasted, 0.0)
        is_step = seen & (best.trend_noise == 0.0)
        self._climb_share = np.where(is_step, found.climb_share, 0.0)
        self._climb_level, self._climb_trend, self._climb_s = climb.level, climb.trend, climb.lasted
        self._climb_noise = climb.trend_noise * self._variance
        # Holt takes a step down for a trend that goes on below it: once it has lasted, it begins there.
        fallen = is_step & (best.lasted >= READINGS) & (self._fit_level < self._level)
        self._level = np.where(fallen, self._fit_level, self._level)
        self._trend = np.where(fallen, 0.0, self._trend)

    def _sure_trend(self) -> Floats:
        """The trend shrunk by its noise."""
        noise = _TREND_DOUBT**2 * self._trend_noise * self._variance
        power = np.maximum(self._trend**2, 1e-12)
        shrunk: Floats = self._trend * np.maximum(1.0 - noise / power, 0.0)
        return shrunk

    def _margin(self, horizon_s: Floats) -> Floats:
        """From point to the high quantile: observed errors, while there are few those of counting noise;
        and after an onset what the few readings since then leave open about its trend."""
        gain = self._level_gain
        expected = self._deviations * np.sqrt(2.0 * self._variance * gain / (2.0 - gain))
        observed, count = self._errors.quantile(self.quantile)
        weight = count / (count + _PRIOR_ERRORS)
        margin: Floats = np.maximum(weight * observed + (1.0 - weight) * expected, 0.0)
        reach_s = self._lasted_s + np.minimum(horizon_s, self._reach_s)
        whole: Floats = np.hypot(margin, self._deviations * reach_s * np.sqrt(self._onset_noise))
        return whole

    def _climb_high(self, horizon_s: Floats) -> Floats:
        """Demand, if what looks like a step is a climb, that is exceeded as rarely as the quantile says when
        the probability of a climb is reckoned with; -inf where it is less than that anyway."""
        beyond = (1.0 - self.quantile) / np.maximum(self._climb_share, 1e-9)
        reach_s = np.minimum(horizon_s, self._climb_s)
        doubt = np.full(beyond.shape, -np.inf)
        doubt[beyond < 1.0] = -normal.quantile(beyond[beyond < 1.0])
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
