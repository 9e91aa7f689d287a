# SPDX-License-Identifier: Apache-2.0
"""A climb from the first reading on: nobody knows yet what is usual, so it is taken to go on.

Demand that is met for the first time is often on its way to what it will be: a service that has just been
given its traffic, or a controller that has just been started. Rules of the past (``rules.py``) have none yet.
"""

from __future__ import annotations

import numpy as np

_LINE_S = 120.0
"""So long the line through all demands is followed."""
_STAYS_S = 300.0
"""What it came to is held for so long after."""
_TIMES = 2.0
"""At most so many times the highest demand: a line through two points may lead anywhere."""


class Climb:
    """Told demand, in members, step by step."""

    def __init__(self, interval_s: float, lead: int) -> None:
        """:param lead: steps of the lead time."""
        self._ahead = lead + 1
        self._line = round(_LINE_S / interval_s)
        self._stays = self._line + round(_STAYS_S / interval_s)
        self._needs: list[float] = []
        self._highest, self._steps = 0.0, 0
        self._was_idle = False
        """There was no demand yet: the step in which it begins tells of a part of it."""

    @property
    def need(self) -> float:
        """What to hold members for; 0: nothing is known of a climb, or it is long ago."""
        return self._highest if self.is_followed else 0.0

    @property
    def is_followed(self) -> bool:
        """It is not long ago."""
        return self._steps <= self._stays

    def after(self, need: float) -> None:
        if not self._needs and (need == 0.0 or self._was_idle):
            self._was_idle = need == 0.0
            return
        self._steps += 1
        if self._steps > self._line:
            return
        self._needs.append(need)
        count = len(self._needs)
        if count < 2:
            return
        times = np.arange(count) - (count - 1) / 2
        gain = max(float(times @ self._needs / (times @ times)), 0.0) * self._ahead
        level = (self._needs[-1] + self._needs[-2]) / 2
        self._highest = max(self._highest, min(level + gain, _TIMES * max(self._needs)) if gain else 0.0)

    def skip(self) -> None:
        """A step without a reading."""
        self._steps += 1
