# SPDX-License-Identifier: Apache-2.0
"""Long series for the eye: of steps that would share a pixel, the lowest and the highest."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
_UNITS = ((2.0 * 86_400, 86_400.0, "days"), (2.0 * 3600, 3600.0, "hours"), (300.0, 60.0, "minutes"))
"""From so many seconds on, so many seconds, in words."""


@dataclass(frozen=True, slots=True)
class Slots:
    """Runs of steps that are drawn as one."""

    begins: npt.NDArray[np.int64]
    """(slots,) index of the first step of each, ascending from 0."""
    steps: int

    def line(self, values: Floats) -> npt.NDArray[np.int64]:
        """(drawn,) indices of the steps to draw a line through, ascending; NaN only where all is."""
        if len(self.begins) == self.steps:
            return np.arange(self.steps)
        ends = [self._first(values, self.low(values)), self._first(values, self.high(values))]
        return np.unique(np.concatenate(ends))

    def low(self, values: Floats) -> Floats:
        """(slots,) the lowest; NaN: there is none."""
        return np.asarray(np.fmin.reduceat(values, self.begins), dtype=np.float64)

    def high(self, values: Floats) -> Floats:
        """(slots,) the highest; NaN: there is none."""
        return np.asarray(np.fmax.reduceat(values, self.begins), dtype=np.float64)

    def any(self, holds: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """(slots,)"""
        return np.asarray(np.logical_or.reduceat(holds, self.begins), dtype=np.bool_)

    def _first(self, values: Floats, of_slots: Floats) -> npt.NDArray[np.int64]:
        """(slots,) index of the first step of each that has its value."""
        each = np.repeat(of_slots, np.diff(self.begins, append=self.steps))
        hit = (values == each) | np.isnan(each)
        at = np.where(hit, np.arange(self.steps), self.steps)
        return np.asarray(np.minimum.reduceat(at, self.begins), dtype=np.int64)


def slots(steps: int, most: int) -> Slots:
    """:param most: slots, at least 1."""
    return Slots(np.unique(np.arange(min(steps, most)) * steps // min(steps, most)), steps)


def unit(length_s: float) -> tuple[float, str]:
    """Seconds of the unit that suits a time axis of this length, and its name."""
    return next(((unit_s, name) for least_s, unit_s, name in _UNITS if length_s >= least_s), (1.0, "seconds"))
