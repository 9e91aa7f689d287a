# SPDX-License-Identifier: Apache-2.0
"""What was a season ago, at the level of today. The season is what the autocorrelation shows."""

from __future__ import annotations

import math

import numpy as np

from controlplane.forecast.recent import Floats, Recent

_STEPS_MOST = 12_000
_SHORTEST = 40
"""Steps; what is shorter, averages see."""
_LOOK_ANEW = 500
_CORRELATED = 0.3
_NEARLY = 0.9
_LEVEL_S = 120.0
_SEASON_GAIN = 0.3
"""Of each phase, once in a period."""


class Season:
    """Seasonal naive forecast, told demand step by step."""

    def __init__(self, interval_s: float, lead: int) -> None:
        self._lead, self._level = lead, max(1, round(_LEVEL_S / interval_s))
        self._demand = Recent((), _STEPS_MOST)
        self._count = 0
        self.period: int | None = None
        """Steps; None: there is none, or not yet."""
        self.following = math.nan
        """Demand one step later than what is forecast; NaN without a season."""

    def after(self, demand: float) -> float:
        """Demand ``lead`` steps later; NaN without a season."""
        self.following = math.nan
        self._demand.push(demand)
        self._count += 1
        if self._count % _LOOK_ANEW == 0:
            self.period = period(self._demand.last(_STEPS_MOST))
        if self.period is None or self.period <= self._lead:
            return math.nan
        steps = min(self._level, self.period)
        past = self._demand.last(self.period + steps)
        if len(past) < self.period + steps:
            return math.nan
        level, now = past[:steps].mean(), self._demand.last(steps).mean()
        by = float(now / level) if level > 0 else 1.0
        at = steps - 1 + self._lead
        self.following = float(past[min(at + 1, len(past) - 1)]) * by
        return float(past[at]) * by

    def last(self, count: int) -> Floats:
        """(at most count,) the demand of the last steps."""
        return self._demand.last(count).copy()

    def skip(self) -> None:
        """A step without a reading: the season goes on."""
        if len(self._demand):
            self._demand.push(float(self._demand.last(1)[0]))
            self._count += 1


class HoltWinters:
    """Level, damped trend and a season that is added, all smoothed; told demand step by step. Winters,
    "Forecasting sales by exponentially weighted moving averages", Management Science 6, 1960."""

    def __init__(self, season: Season, lead: int, gain: float, trend_gain: float, damping: float) -> None:
        """:param season: told the same before. ``gain``: of the level, as ``trend_gain`` per step."""
        self._its, self._lead = season, lead
        self._gain, self._trend_gain, self._damping = gain, trend_gain, damping
        self._reach = damping * (1.0 - damping**lead) / (1.0 - damping)
        self._level = self._trend = 0.0
        self._season: Floats = np.zeros(0)
        """(period,) what each phase adds."""
        self._phase = 0

    def after(self, demand: float) -> float:
        """Demand ``lead`` steps later; NaN without a season."""
        period = self._its.period
        if period is None or period <= self._lead:
            return math.nan
        if period != len(self._season):
            past = self._its.last(period)
            if len(past) < period:
                return math.nan
            self._level, self._trend, self._phase = float(past.mean()), 0.0, 0
            self._season = past - self._level
        usual = float(self._season[self._phase])
        before, expected = self._level, self._level + self._damping * self._trend
        self._level = expected + self._gain * (demand - usual - expected)
        self._trend = self._damping * self._trend + self._trend_gain * (
            self._level - before - self._damping * self._trend
        )
        self._season[self._phase] += _SEASON_GAIN * (demand - self._level - usual)
        self._phase = (self._phase + 1) % period
        then = float(self._season[(self._phase - 1 + self._lead) % period])
        return max(self._level + self._reach * self._trend + then, 0.0)

    def skip(self) -> None:
        """A step without a reading: the season goes on."""
        if len(self._season):
            self._phase = (self._phase + 1) % len(self._season)


def period(demand: Floats) -> int | None:
    """Steps after which a series is most like itself; None: it never is. Of at least two periods, and the
    shortest of those that do nearly as well: a season's double is one too."""
    count = len(demand)
    apart = demand - demand.mean()
    power = float(apart @ apart)
    if count < 4 * _SHORTEST or power <= 0:
        return None
    spectrum = np.fft.rfft(apart, 2 * count)
    alike = np.fft.irfft(spectrum * np.conj(spectrum))[: count // 2 + 1]
    alike = alike / power * count / (count - np.arange(len(alike)))
    peaks = np.flatnonzero((alike[1:-1] > alike[:-2]) & (alike[1:-1] >= alike[2:])) + 1
    peaks = peaks[(peaks >= _SHORTEST) & (alike[peaks] >= _CORRELATED)]
    if not peaks.size:
        return None
    return int(peaks[alike[peaks] >= _NEARLY * alike[peaks].max()][0])
