# SPDX-License-Identifier: Apache-2.0
"""Help that comes to who can't complete all that is offered.

Until then what is completed is what it can do; then it rises to what is asked for, and above that while those
wait who were refused before. That is a step, of which the time before tells nothing, though it looks like a
climb.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

_RECENT_S = 5.0
_LACKING = 0.1
"""Part of what is offered that is not completed; and more than chance makes it."""
_LASTS_S = 10.0
"""Then those who were refused have come again."""
_NEW_S = 20.0
"""The first readings of all tell as little."""


class Relief:
    """Of groups or services; arrays have shape (n,)."""

    def __init__(self, n: int) -> None:
        self._offered, self._completed = np.zeros(n), np.zeros(n)
        """Flows of the last seconds."""
        self._at_s = np.full(n, np.nan)
        """When they were relieved; at first as if they had been, for few readings tell then, too."""

    def take(self, offered: Floats, completed: Floats, helped: Flags, over_s: float, now_s: float) -> Flags:
        """Who is relieved in the time that this reading is of.

        :param offered: new flows in it. ``helped``: who got one more member before it."""
        relieved = helped & (self._lacking > 0.0)
        self._at_s[np.isnan(self._at_s)] = now_s + _NEW_S - _LASTS_S
        self._at_s[relieved] = now_s
        left = math.exp(-over_s / _RECENT_S)
        self._offered = left * self._offered + np.nan_to_num(offered)
        self._completed = left * self._completed + np.nan_to_num(completed)
        return relieved

    @property
    def _lacking(self) -> Floats:
        """Flows beyond those that chance or a few failures explain."""
        expected = np.maximum(_LACKING * self._offered, 3.0 * np.sqrt(np.maximum(self._offered, 1.0)))
        return self._offered - self._completed - expected

    def is_recent(self, at: int, now_s: float) -> bool:
        """Of this one."""
        return bool(now_s - self._at_s[at] <= _LASTS_S)
