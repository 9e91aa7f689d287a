# SPDX-License-Identifier: Apache-2.0
"""Observed errors of forecasts: each is observed when the horizon of its own group has passed."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]

_ERRORS = 60
"""Observed errors that are remembered."""
_ROWS, _ROWS_MOST = 16, 1024
"""Forecasts that wait for their time: as many as the longest horizon has ticks, and not more than these; of
longer horizons no error is observed."""


class Errors:
    """Of all groups; forecasts are made for all of them at once, and wait in a ring of (rows, groups)."""

    def __init__(self, groups: int) -> None:
        self._points = np.full((_ROWS, groups), np.nan)
        self._due_s = np.full((_ROWS, groups), np.inf)
        self._made_s = np.zeros(_ROWS)
        self._made = 0
        """Forecasts so far."""
        self._taken = np.zeros(groups, dtype=np.intp)
        """Those of them whose time has come, per group."""
        self._columns = np.arange(groups)
        self._errors = np.full((groups, _ERRORS), np.nan)

    def resume(self, other: Errors, to: Indices, source: Indices) -> None:
        """Takes the groups ``source`` of another one as its own ``to``; before anything else."""
        rows, groups = len(other._points), len(self._taken)
        self._points = np.full((rows, groups), np.nan)
        self._due_s = np.full((rows, groups), np.inf)
        self._points[:, to], self._due_s[:, to] = other._points[:, source], other._due_s[:, source]
        self._made_s, self._made = other._made_s.copy(), other._made
        self._taken[:] = self._made
        self._taken[to] = other._taken[source]
        self._errors[to] = other._errors[source]

    def forget(self, groups: npt.NDArray[np.bool_]) -> None:
        """What was forecast of these was of another time."""
        if groups.any():
            self._errors[groups] = np.nan
            self._points[:, groups] = np.nan

    def rescale(self, groups: slice | npt.NDArray[np.bool_], factor: Floats) -> None:
        """As if all had been forecast, and missed, by so many times as much."""
        self._points[:, groups] *= factor
        self._errors[groups] *= factor[:, None]

    def await_(self, points: Floats, made_s: float, due_s: Floats) -> None:
        if self._made - int(self._taken.min(initial=self._made)) == len(self._points):
            self._make_room()
        row = self._made % len(self._points)
        self._points[row], self._due_s[row], self._made_s[row] = points, due_s, made_s
        self._made += 1

    def _make_room(self) -> None:
        rows = len(self._points)
        if rows == _ROWS_MOST:
            self._taken = np.maximum(self._taken, self._made - rows + 1)
            return
        kept = np.arange(self._made - rows, self._made)
        for attribute in ("_points", "_due_s", "_made_s"):
            before = getattr(self, attribute)
            wider = np.zeros((2 * rows, *before.shape[1:]))
            wider[kept % (2 * rows)] = before[kept % rows]
            setattr(self, attribute, wider)

    def observe(self, level: Floats, now_s: float, since_s: Floats) -> None:
        """:param level: what is there now. ``since_s``: errors of forecasts that were made before tell
        nothing, nor does the level; inf: of none does it."""
        rows, columns = len(self._points), self._columns
        while True:
            row = self._taken % rows
            due = (self._taken < self._made) & (self._due_s[row, columns] <= now_s)
            if not due.any():
                return
            error = np.where(self._made_s[row] >= since_s, level - self._points[row, columns], np.nan)
            at = np.flatnonzero(due)
            self._errors[at, self._taken[at] % _ERRORS] = error[at]
            self._taken += due

    def quantile(self, quantile: Floats) -> tuple[Floats, npt.NDArray[np.intp]]:
        """(groups,) that quantile of the errors observed, 0 where there are none; and how many there are."""
        ordered = np.sort(self._errors, axis=1)  # NaN come last
        count = _ERRORS - np.isnan(ordered).sum(axis=1)
        rank = np.clip(np.ceil(quantile * count).astype(np.intp) - 1, 0, None)
        return np.where(count > 0, ordered[self._columns, rank], 0.0), count
