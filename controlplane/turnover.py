# SPDX-License-Identifier: Apache-2.0
"""How long flows live, and so how fast load can be moved: spill moves only new ones.

A mean life is that by Little's law (1961): flows that are open, by new ones per second; both as means of the
last minutes. A shadow that is ready has 1 - exp(-t / life) of its share of the load t seconds later, as old
flows of its parent end. Until it has half of it the parent is as loaded as if it were not there yet: by so
much earlier shadows are ordered.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_MEMORY_S = 300.0
"""Time constant of the means."""
_LEAST_FLOWS = 30.0
"""New ones that tell a life."""
_EARLIEST_S = 60.0
"""What ends so late can't be waited for."""
_REMARKABLE_S = 1.0


class Turnover:
    """Of services; arrays have shape (services,)."""

    def __init__(self, services: Iterable[str]) -> None:
        self._index = {name: i for i, name in enumerate(services)}
        n = len(self._index)
        self._since, self._since_s = np.zeros(n), np.zeros(n)
        """New flows since they were counted last, and how long that is."""
        self._new, self._open_s = np.zeros(n), np.zeros(n)
        """Means' sums: new flows, and open ones times seconds."""

    def resume(self, other: Turnover) -> None:
        """The same knowledge for another configuration."""
        for name in self._index.keys() & other._index.keys():
            i, j = self._index[name], other._index[name]
            self._new[i], self._open_s[i] = other._new[j], other._open_s[j]

    def take(self, demand: Floats, over_s: float) -> None:
        """:param demand: completed new flows/s; NaN: not read."""
        read = ~np.isnan(demand)
        self._since[read] += demand[read] * over_s
        self._since_s[read] += over_s

    def count(self, open_flows: Mapping[str, int]) -> None:
        """Now so many are open, whose handshakes are done."""
        counted = np.array([open_flows.get(name, 0) for name in self._index], dtype=np.float64)
        remaining = np.exp(-self._since_s / _MEMORY_S)
        self._new = remaining * self._new + self._since
        self._open_s = remaining * self._open_s + self._since_s * counted
        self._since[:], self._since_s[:] = 0.0, 0.0

    def lives_s(self) -> dict[str, float]:
        """Service -> mean life of a flow; absent: not known."""
        known = {name: i for name, i in self._index.items() if self._new[i] >= _LEAST_FLOWS}
        return {name: round(float(self._open_s[i] / self._new[i]), 1) for name, i in known.items()}


def earlier_s(life_s: float | None) -> float:
    """By so much shadows are ordered earlier, as flows live so long. None: not known."""
    half_s = 0.0 if life_s is None else life_s * math.log(2.0)
    return min(half_s, _EARLIEST_S) if half_s >= _REMARKABLE_S else 0.0
