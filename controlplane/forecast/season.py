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


class Season:
    """Seasonal naive forecast, told demand step by step."""

    def __init__(self, interval_s: float, lead: int) -> None:
        self._lead, self._level = lead, max(1, round(_LEVEL_S / interval_s))
        self._demand = Recent((), _STEPS_MOST)
        self._count = 0
        self.period: int | None = None
        """Steps; None: there is none, or not yet."""

    def after(self, demand: float) -> float:
        """Demand ``lead`` steps later; NaN without a season."""
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
        then = past[steps - 1 + self._lead]
        return float(then * now / level) if level > 0 else float(then)

    def skip(self) -> None:
        """A step without a reading: the season goes on."""
        if len(self._demand):
            self._demand.push(float(self._demand.last(1)[0]))
            self._count += 1


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
