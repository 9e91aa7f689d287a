# SPDX-License-Identifier: Apache-2.0
"""The last rows of a series."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

STEPS_MOST = 16_384
"""Of a window, however short a step is."""


def steps(seconds: float, interval_s: float) -> int:
    """Of a window of so many seconds."""
    return min(max(1, round(seconds / interval_s)), STEPS_MOST)


def windows(seconds: Sequence[int], interval_s: float) -> npt.NDArray[np.intp]:
    """Steps of each."""
    return np.array([steps(one, interval_s) for one in seconds])


class Recent:
    """The last so many rows, always in one piece: a window of them is a view."""

    def __init__(self, shape: tuple[int, ...], most: int) -> None:
        self._most, self._end = most, 0
        self._rows = np.zeros((64, *shape))

    def __len__(self) -> int:
        return min(self._end, self._most)

    def push(self, row: npt.ArrayLike) -> None:
        if self._end == len(self._rows):
            kept = self._rows[self._end - len(self) :].copy()
            if len(self._rows) < 2 * self._most:
                self._rows = np.zeros((2 * len(self._rows), *self._rows.shape[1:]))
            self._rows[: len(kept)], self._end = kept, len(kept)
        self._rows[self._end] = row
        self._end += 1

    def clear(self) -> None:
        self._end = 0

    def last(self, count: int) -> Floats:
        """(at most count, ...)"""
        return self._rows[max(self._end - min(count, self._most), 0) : self._end]

    def mean(self, count: int) -> float:
        """Of the last so many numbers; what numpy's own mean does besides takes longer than the sum."""
        rows = self.last(count)
        return float(np.add.reduce(rows)) / len(rows)

    def highest(self, steps: npt.NDArray[np.intp]) -> Floats:
        """(windows, ...) of the last so many rows each; ``steps`` ascend."""
        return _nested(np.maximum, self.last(int(steps[-1])), steps)

    def means(self, steps: npt.NDArray[np.intp]) -> Floats:
        """(windows, ...) as above."""
        rows = self.last(int(steps[-1]))
        counts = np.minimum(steps, len(rows))
        totals = _nested(np.add, rows, steps)
        return np.asarray(totals.T / counts, dtype=np.float64).T


def _nested(ufunc: np.ufunc, rows: Floats, steps: npt.NDArray[np.intp]) -> Floats:
    """All windows in one go: each is the next shorter one and what lies before it."""
    begins = np.maximum(len(rows) - steps[::-1], 0)
    parts = ufunc.reduceat(rows, begins, axis=0)
    # Where there are too few rows, windows are the same one: reduceat gives the first row then.
    parts[:-1][begins[:-1] == begins[1:]] = ufunc.identity if ufunc.identity is not None else -np.inf
    return np.asarray(ufunc.accumulate(parts[::-1], axis=0), dtype=np.float64)
