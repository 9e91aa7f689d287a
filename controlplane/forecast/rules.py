# SPDX-License-Identifier: Apache-2.0
"""Simple rules of how much demand to hold members for: each is right for some load and wrong for other.

The highest of a while and some more; a line through the last two minutes, led by the lead time, and its
highest of a while; a mean and so many standard deviations. Who of them is right is ``sizing.py``'s affair.
"""

from __future__ import annotations

import numpy as np

from controlplane.forecast.recent import Floats, Recent, steps, windows

_HIGHEST_S = (30, 60, 120, 300, 600, 1200, 2400, 4800, 9600, 19_200, 57_600)
_HIGHEST_TIMES = (1.0, 1.1, 1.25, 1.45, 1.7, 2.0, 2.5, 3.2)
_TREND_S, _LEVEL_S = 120, 30
_TREND_TIMES = (0.5, 1.0, 2.0)
_TREND_HIGHEST_S = (15, 120, 300, 1200)
_TREND_MORE = (1.05, 1.2, 1.43, 1.8)
_SPREAD_S = (300, 1200, 4800, 19_200)
_SPREADS = (1.0, 2.0, 3.0, 4.5, 7.0)


class Rules:
    """All of them, told the demand step by step."""

    def __init__(self, interval_s: float, lead_time_s: float) -> None:
        self._highest = windows(_HIGHEST_S, interval_s)
        self._trend_highest = windows(_TREND_HIGHEST_S, interval_s)
        self._spread = windows(_SPREAD_S, interval_s)
        self._level = steps(_LEVEL_S, interval_s)
        count = max(2, steps(_TREND_S, interval_s))
        times = np.arange(count) - (count - 1) / 2
        self._slope = times / (times @ times) * (lead_time_s + interval_s) / interval_s
        """Dot the last demands: what the line through them gains until what is ordered now serves."""
        self._demand = Recent((), int(max(self._highest[-1], self._spread[-1])))
        self._squares = Recent((), int(self._spread[-1]))
        self._trend = Recent((len(_TREND_TIMES),), int(self._trend_highest[-1]))

    def of(self, demand: float) -> Floats:
        """(rules,) the demand to hold members for after a step of this one; in the order of ``NAMES``."""
        self._demand.push(demand)
        last = self._demand.last
        gain = 0.0
        if len(self._demand) >= len(self._slope):
            gain = max(0.0, float(self._slope @ last(len(self._slope))))
        self._trend.push(self._demand.mean(self._level) + gain * np.array(_TREND_TIMES))
        self._squares.push(demand * demand)
        highest = self._demand.highest(self._highest)
        trend = self._trend.highest(self._trend_highest)
        mean = self._demand.means(self._spread)
        sigma = np.sqrt(np.maximum(self._squares.means(self._spread) - mean * mean, 0.0))
        above = mean[:, None] + np.multiply.outer(sigma, _SPREADS)
        return np.concatenate(
            [
                np.outer(highest, _HIGHEST_TIMES).ravel(),
                np.multiply.outer(trend.T, _TREND_MORE).ravel(),
                np.maximum(above, highest[0]).ravel(),
            ]
        )


NAMES = (
    *(f"the highest of {seconds} s x {times:g}" for seconds in _HIGHEST_S for times in _HIGHEST_TIMES),
    *(
        f"{times:g} x the trend's highest of {seconds} s x {more:g}"
        for times in _TREND_TIMES
        for seconds in _TREND_HIGHEST_S
        for more in _TREND_MORE
    ),
    *(f"the mean of {seconds} s + {spreads:g} sigma" for seconds in _SPREAD_S for spreads in _SPREADS),
)
"""(rules,) in words."""
