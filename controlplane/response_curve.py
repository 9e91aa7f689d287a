# SPDX-License-Identifier: Apache-2.0
"""How fast endpoints answered at which rate: windows of some seconds, gathered in bins of rate."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from controlplane.queueing import BINS, RATIO, TELLING, floor_of, proven, served

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

_MOST = 30.0
"""Windows that a bin remembers: later ones count a thirtieth."""
_HALF_LIFE_S = 43_200.0
"""Of a window: last night's floor is remembered at noon."""
_ONE = 0.9
"""Window that is not old: in a ramp no bin has more, and a floor need not be exact."""
_SHIFTED = 1.5
"""Who is slower by this, and by three deviations, than it was at no lower rate, is not so by load."""


class ResponseCurve:
    """Arrays have shape (n,) or (n, BINS)."""

    def __init__(self, n: int) -> None:
        self.origin = np.zeros(n)
        """The log of the lowest bin's lower edge, in steps of ``RATIO``."""
        self.count = np.zeros((n, BINS))
        self.mean = np.zeros((n, BINS))
        """Of log response times, as the next one."""
        self.variance = np.zeros((n, BINS))

    def add(self, rate: Floats, log_time: Floats, which: Flags) -> None:
        """A window of those ``which``."""
        rows = np.flatnonzero(which)
        steps = _steps(rate[rows])
        empty = ~(self.count[rows] > 0.0).any(axis=1)
        self.origin[rows[empty]] = steps[empty] - BINS + 1
        self._make_room(rows, steps - (self.origin[rows] + BINS - 1))
        bins = self._bins(rows, rate[rows])
        count = np.minimum(self.count[rows, bins] + 1.0, _MOST)
        off = log_time[rows] - self.mean[rows, bins]
        self.count[rows, bins] = count
        self.mean[rows, bins] += off / count
        before = self.variance[rows, bins]
        self.variance[rows, bins] = (1.0 - 1.0 / count) * (before + off**2 / count)

    def _make_room(self, rows: npt.NDArray[np.intp], above: Floats) -> None:
        """The highest bin is the highest rate's; what was so low that it has no bin any more is forgotten."""
        up = above > 0
        for row, by in zip(rows[up].tolist(), np.minimum(above[up], BINS).astype(int).tolist(), strict=True):
            for values in (self.count, self.mean, self.variance):
                values[row, : BINS - by] = values[row, by:]
                values[row, BINS - by :] = 0.0
        self.origin[rows[up]] += above[up]

    def _bins(self, rows: npt.NDArray[np.intp], rate: Floats) -> npt.NDArray[np.intp]:
        return np.clip(_steps(rate) - self.origin[rows], 0, BINS - 1).astype(np.intp)

    def shifted(self, rate: Floats, log_time: Floats, which: Flags) -> Flags:
        """Who is slower than it was at this rate or at a higher one: it is not load."""
        rows = np.flatnonzero(which)
        bins = self._bins(rows, rate[rows])
        above = (self.count[rows] >= TELLING) & (np.arange(BINS) >= bins[:, None])
        usual = np.where(above, self.mean[rows], np.inf)
        fastest = usual.argmin(axis=1)
        usual, spread = usual.min(axis=1), np.sqrt(self.variance[rows, fastest])
        found = np.zeros(len(which), dtype=np.bool_)
        found[rows] = log_time[rows] - usual > np.maximum(np.log(_SHIFTED), 3.0 * spread)
        return found

    def age(self, by_s: float) -> None:
        self.count *= 0.5 ** (by_s / _HALF_LIFE_S)

    def forget(self, which: Flags) -> None:
        self.count[which] = 0.0
        self.mean[which] = 0.0
        self.variance[which] = 0.0

    def forget_above(self, rows: npt.NDArray[np.intp], rate: Floats) -> None:
        """What was served at a higher rate, once."""
        lower_edges = self.origin[rows][:, None] + np.arange(BINS)
        self.count[rows] = np.where(lower_edges > _steps(rate)[:, None], 0.0, self.count[rows])

    def told(self, rows: npt.NDArray[np.intp]) -> tuple[Floats, Floats, Floats]:
        """(rows,) log response time where it is least, NaN: not known; the highest rate that was served
        without slowing down much, 0: none was; and the same as some windows at that rate or more tell."""
        count, mean, unit = self.count[rows], self.mean[rows], self.unit(rows)
        floor = floor_of(count, mean, _ONE)
        return floor, proven(count, mean) * unit, served(count, mean, floor) * unit

    def unit(self, rows: npt.NDArray[np.intp]) -> Floats:
        """(rows,) the lowest bin's lower edge."""
        return np.asarray(RATIO ** self.origin[rows], dtype=np.float64)


def _steps(rate: Floats) -> Floats:
    return np.asarray(np.floor(np.log(rate) / np.log(RATIO)), dtype=np.float64)
