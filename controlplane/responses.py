# SPDX-License-Identifier: Apache-2.0
"""What became of the requests to each member: rates of the last tick, times of the last minute or half."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from controlplane import histogram
from controlplane.observe import Rows, growth
from controlplane.ports import Counters
from controlplane.status import RequestStatus, all_known

TIMES_S = 5.0
"""So often the times are looked at: thousands of histograms are not read in no time."""
WINDOW_S = 30.0
"""The times are those of the last one to two of these."""
_SHARES = (0.5, 0.99)
_MEAN_OF = 20.0
"""Timed requests that the mean forgets by."""
_MEAN_LEAST = 5.0
Histograms = npt.NDArray[np.uint32]


@dataclass(frozen=True, slots=True)
class _Reading:
    at_s: float
    names: Sequence[str]
    rows: npt.NDArray[np.intp]
    times: Histograms


class Responses:
    def __init__(self) -> None:
        self._status: Mapping[str, RequestStatus] = {}
        self._times_ms: Mapping[str, tuple[float | None, ...]] = {}
        self._readings: list[_Reading] = []
        self._due_s = -np.inf
        self._means: dict[str, tuple[float, float]] = {}
        """Of the last timed requests: how many count, and their times' sum in us."""

    def due(self, now_s: float) -> bool:
        """Whether ``take_times`` is to be called."""
        return now_s >= self._due_s

    def take_times(self, names: Sequence[str], times: Histograms, counters: Counters) -> None:
        """:param times: (names, histogram.BUCKETS), as they are now."""
        self._due_s = counters.at_s + TIMES_S
        rows = np.array([counters.rows.get(name, -1) for name in names], np.intp)
        reading = _Reading(counters.at_s, tuple(names), rows, times)
        while len(self._readings) > 1 and self._readings[1].at_s <= counters.at_s - WINDOW_S:
            del self._readings[0]
        passed = _passed(self._readings[0] if self._readings else reading, reading)
        if (passed < 0).any():  # the maps were made anew
            self._readings.clear()
            passed[:] = 0
        if not self._readings or self._readings[-1].at_s <= counters.at_s - WINDOW_S:
            self._readings.append(reading)
        found = histogram.quantiles_us(passed, _SHARES) / 1000
        self._times_ms = dict(zip(names, zip(*map(all_known, found.T), strict=True), strict=True))

    def observe(
        self,
        names: Sequence[str],
        before: Counters | None,
        after: Counters,
        in_flight: npt.NDArray[np.integer],
    ) -> None:
        """:param in_flight: (names,) requests without an answer yet."""
        read = before is not None and before.requests_read and after.requests_read
        fields = ("requests", "aborted", "response_count", "response_sum_us")
        grown = growth(before, after, Rows(names), fields) if read else None
        self._learn_means(names, grown)
        over_s = after.at_s - before.at_s if grown and before else np.nan
        nothing = np.full(len(names), np.nan)
        started, aborted = (grown["requests"], grown["aborted"]) if grown else (nothing, nothing)
        there = np.flatnonzero([name in after.rows for name in names])
        rows = [after.rows[names[i]] for i in there.tolist()]
        unknown = (None, None)
        self._status = {
            name: RequestStatus(*counts, *self._times_ms.get(name, unknown))
            for name, *counts in zip(
                (names[i] for i in there.tolist()),
                after.requests[rows].tolist(),
                after.answered[rows].tolist(),
                after.aborted[rows].tolist(),
                all_known(started[there] / over_s),
                all_known(aborted[there] / over_s),
                in_flight[there].tolist(),
                strict=True,
            )
        }

    def _learn_means(self, names: Sequence[str], grown: Mapping[str, npt.NDArray[np.float64]] | None) -> None:
        self._means = {name: self._means[name] for name in names if name in self._means}
        if grown is None:
            return
        counts, sums = grown["response_count"], grown["response_sum_us"]
        for i in np.flatnonzero(counts > 0).tolist():
            count, total = self._means.get(names[i], (0.0, 0.0))
            left = math.exp(-float(counts[i]) / _MEAN_OF)
            self._means[names[i]] = left * count + float(counts[i]), left * total + float(sums[i])

    def mean_us(self, name: str) -> float:
        """How long the last requests to a member took, on the mean; NaN: too few were timed."""
        count, total = self._means.get(name, (0.0, 0.0))
        return total / count if count >= _MEAN_LEAST else math.nan

    def status(self, name: str) -> RequestStatus | None:
        """None: its requests are not told."""
        return self._status.get(name)


def _passed(before: _Reading, now: _Reading) -> npt.NDArray[np.int32]:
    """What came between two readings. A member that was not there, or in another row, has nothing yet."""
    if before.names == now.names and (before.rows == now.rows).all():
        return (now.times - before.times).view(np.int32)
    places = {name: at for at, name in enumerate(before.names)}
    at = np.array([places.get(name, -1) for name in now.names], np.intp)
    same = np.flatnonzero(at >= 0)
    same = same[before.rows[at[same]] == now.rows[same]]
    passed = np.zeros(now.times.shape, np.int32)
    passed[same] = (now.times[same] - before.times[at[same]]).view(np.int32)
    return passed
