# SPDX-License-Identifier: Apache-2.0
"""Deviation from what is normal: request rate and RTT of groups, as z-scores against their own past.

Mean and variance are exponentially weighted (West, CACM 22, 1979) and take outliers in clipped to three
standard deviations, so that a burst does not become normal at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_GAIN = 0.02
"""Memory of about 50 readings."""
_LEARNED = 30
"""Readings until a deviation is believed."""
_LASTING = 3
"""Readings that have to deviate, one after another."""
_CERTAIN = 6.0
"""Standard deviations that score 1; half of it is remarkable."""


@dataclass(frozen=True, slots=True)
class Deviation:
    """Scores 0..1 per group, the least of the last readings: one alone is chance. 0.5 and above is
    remarkable."""

    rate: Floats
    latency: Floats

    def reason(self, group: int) -> str:
        """In words; empty when both are normal."""
        said = []
        if self.rate[group] >= 0.5:
            said.append(f"request rate {self.rate[group] * _CERTAIN:.1f} sd above normal")
        if self.latency[group] >= 0.5:
            said.append(f"RTT {self.latency[group] * _CERTAIN:.1f} sd above normal")
        return ", ".join(said)


class _Normal:
    def __init__(self, groups: int, floor: float) -> None:
        self._mean = np.full(groups, np.nan)
        self._variance = np.zeros(groups)
        self._count = np.zeros(groups)
        self._floor = floor
        self._last = np.zeros((_LASTING, groups))

    def carry(self, other: _Normal, to: npt.NDArray[np.intp], source: npt.NDArray[np.intp]) -> None:
        for attribute in ("_mean", "_variance", "_count"):
            getattr(self, attribute)[to] = getattr(other, attribute)[source]
        self._last[:, to] = other._last[:, source]

    def score(self, values: Floats, least_variance: Floats) -> Floats:
        """How far above normal the last readings all were, 0..1; then learns. NaN: nothing learned, nothing
        changes."""
        read = np.isfinite(values)
        self._mean = np.where(read & np.isnan(self._mean), values, self._mean)
        mean = np.nan_to_num(self._mean)
        spread = np.sqrt(np.maximum(self._variance, np.maximum(least_variance, (self._floor * mean) ** 2)))
        spread = np.maximum(spread, 1e-9)
        z = np.where(read, (np.nan_to_num(values) - mean) / spread, 0.0)
        known = self._count >= _LEARNED
        score = np.where(known, np.clip(z / _CERTAIN, 0.0, 1.0), 0.0)
        step = np.where(known, np.clip(z, -3.0, 3.0), z) * spread
        gain = np.where(known, _GAIN, 1.0 / (self._count + 1.0))
        self._mean = np.where(read, mean + gain * step, self._mean)
        self._variance = np.where(read, (1 - gain) * (self._variance + gain * step**2), self._variance)
        self._count += read
        self._last = np.where(read, np.vstack([score, self._last[:-1]]), self._last)
        return np.asarray(self._last.min(axis=0), dtype=np.float64)


class Baseline:
    """What is normal for groups, of all services together."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        self._rate = _Normal(len(self.names), floor=0.05)
        self._latency = _Normal(len(self.names), floor=0.0)

    def regroup(self, names: Sequence[str]) -> Baseline:
        """The same knowledge for another set of groups."""
        other = Baseline(names)
        old = {name: i for i, name in enumerate(self.names)}
        to = np.array([i for i, name in enumerate(other.names) if name in old], dtype=np.intp)
        source = np.array([old[name] for name in other.names if name in old], dtype=np.intp)
        other._rate.carry(self._rate, to, source)
        other._latency.carry(self._latency, to, source)
        return other

    def update(self, rate: Floats, rtt_us: Floats, tick_s: float) -> Deviation:
        """One reading per group: completed flows per second over ``tick_s``, mean RTT; NaN: none."""
        counting = np.nan_to_num(np.maximum(rate, 1.0), nan=1.0) / tick_s
        # RTTs are lognormal: their logarithm is what is normal.
        logs = np.log(np.where(rtt_us > 0, rtt_us, np.nan))
        return Deviation(self._rate.score(rate, counting), self._latency_score(logs))

    def _latency_score(self, logs: Floats) -> Floats:
        # A third more than usual, at least, is one standard deviation.
        return self._latency.score(logs, np.full(logs.shape, 0.3**2))
