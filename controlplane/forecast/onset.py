# SPDX-License-Identifier: Apache-2.0
"""The onset of a change: a generalised likelihood ratio over when it began and what it is.

For each of the last k readings: a step (they have another mean than the level before them) or a ramp
(they climb from that level). The most likely of the 2 k explanations is taken, if noise is unlikely to have
made it, and beside it the most likely ramp and how probable ramps are: a climb that begins with a jump looks
like a step for some readings, and to wait for certainty takes the time that a shadow needs. Willsky and
Jones, "A generalized likelihood ratio approach to the detection and estimation of jumps in linear systems",
IEEE Trans. Automatic Control 21, 1976.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

READINGS = 20
"""How far back an onset is looked for; older ones the level has followed."""
_DOUBT = 4.0
"""Standard deviations of noise from which on a change is believed."""
_RECENT = 3
"""Readings that tell the level now."""
_BENT = 8
"""Readings that tell the trend now, of an onset that is older than they are."""
_CLIMB = 3
"""Readings that make a climb; fewer are a step as well."""
_GAP_S = 3.0
"""After a longer time without readings no onset is looked for before it."""


@dataclass(frozen=True, slots=True)
class Change:
    """One per group, arrays of shape (groups,)."""

    level: Floats
    trend: Floats
    lasted: Floats
    """Readings since the onset."""
    trend_noise: Floats
    """Variance of the trend per variance of one reading; 0 for a step."""


@dataclass(frozen=True, slots=True)
class Found:
    seen: npt.NDArray[np.bool_]
    best: Change
    climb: Change
    """The most likely ramp."""
    climb_share: Floats
    """How probable ramps are, together, if all explanations were equally so before these readings; told where
    the best one is a step, else 0."""


class Onset:
    """Readings and the levels before them, newest first, shape (readings, groups)."""

    def __init__(self, groups: int) -> None:
        self._readings = np.full((READINGS, groups), np.nan)
        self._before = np.full((READINGS, groups), np.nan)
        self._noise = np.full((READINGS, groups), np.nan)
        """Variance of those levels per variance of a reading."""

    def resume(self, other: Onset, to: npt.NDArray[np.intp], source: npt.NDArray[np.intp]) -> None:
        """Takes the groups ``source`` of another one as its own ``to``."""
        self._readings[:, to] = other._readings[:, source]
        self._before[:, to] = other._before[:, source]
        self._noise[:, to] = other._noise[:, source]

    def rescale(self, groups: slice | npt.NDArray[np.bool_], factor: Floats) -> None:
        """As if readings had been so many times as much."""
        self._readings[:, groups] *= factor
        self._before[:, groups] *= factor

    def not_above_recent(self, level: Floats, trend: Floats, variance: Floats) -> tuple[Floats, Floats]:
        """Level and trend, but at most a standard deviation above what the last readings say of them: a
        climb that has ended is still the best straight line for a while."""
        x = (_BENT - 1) / 2 - np.arange(_BENT, dtype=np.float64)[:, None]
        slope = np.sum(x * self._readings[:_BENT], axis=0) / np.sum(x**2)
        trend = np.fmin(trend, slope + np.sqrt(variance / np.sum(x**2)))  # NaN: too few readings to say
        mean = np.sum(self._readings[:_RECENT], axis=0) / _RECENT
        return np.fmin(level, mean + trend * (_RECENT - 1) / 2 + np.sqrt(variance / _RECENT)), trend

    def update(
        self, before: Floats, values: Floats, gap_s: Floats, variance: Floats, level_noise: Floats
    ) -> Found:
        """:param before: the smoothed level before this reading. :param values: NaN: no reading, skipped.
        :param gap_s: since the last reading.
        :param variance: of one reading. :param level_noise: variance of ``before`` per variance of a reading.
        """
        read = ~np.isnan(values)
        self._readings[:, read & (gap_s > _GAP_S)] = np.nan  # goes through the sums
        self._readings = np.where(read, np.vstack([values, self._readings[:-1]]), self._readings)
        self._before = np.where(read, np.vstack([before, self._before[:-1]]), self._before)
        self._noise = np.where(read, np.vstack([level_noise, self._noise[:-1]]), self._noise)
        k = np.arange(1, READINGS + 1, dtype=np.float64)[:, None]
        sum_k = k * (k + 1) / 2
        squares_k = k * (k + 1) * (2 * k + 1) / 6
        sums = np.cumsum(self._readings, axis=0)
        step = sums - k * self._before
        ramp = np.cumsum(sums, axis=0) - sum_k * self._before
        step_score = step**2 / (k + k**2 * self._noise)
        ramp_score = ramp**2 / (squares_k + sum_k**2 * self._noise)
        step_score[:1] = 0.0  # one reading is an outlier
        ramp_score[: _CLIMB - 1] = 0.0
        scores = np.vstack([step_score, ramp_score])
        scores[np.isnan(scores)] = 0.0
        column = np.arange(values.size)

        def change(which: npt.NDArray[np.intp]) -> Change:
            is_ramp = which >= READINGS
            row = which % READINGS
            length = k[row, 0]
            trend = np.where(is_ramp, ramp[row, column] / squares_k[row, 0], 0.0)
            by = np.where(is_ramp, trend * length, step[row, column] / length)
            trend_noise = np.where(is_ramp, 1.0 / squares_k[row, 0], 0.0)
            level, bent = self.not_above_recent(self._before[row, column] + by, trend, variance)
            return Change(level, np.where(length > _BENT, bent, trend), length, trend_noise)

        step_at, climb = scores[:READINGS].argmax(axis=0), scores[READINGS:].argmax(axis=0) + READINGS
        best = np.where(scores[climb, column] > scores[step_at, column], climb, step_at)
        most = scores[best, column]
        seen = most > _DOUBT**2 * variance
        # Of most groups nothing is seen: the likelihoods are asked for where they tell something.
        at = np.flatnonzero(seen & (best < READINGS))
        likelihood = np.exp((scores[:, at] - most[at]) / (2.0 * np.maximum(variance[at], 1.0)))
        climb_share = np.zeros(values.size)
        climb_share[at] = np.sum(likelihood[READINGS:], axis=0) / np.sum(likelihood, axis=0)
        return Found(seen, change(best), change(climb), climb_share)
