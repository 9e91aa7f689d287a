# SPDX-License-Identifier: Apache-2.0
"""What becomes of the members that a policy wants: ordered ones serve after the lead time, unwanted ones are
gone at once, and demand above what is ready is lost.

Steps are of one length. A decision taken after a step holds from the next one on, also where readings are
missing. Of a whole run each reading is a step.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from controlplane.bounds import UNBOUNDED, Bounds
from controlplane.rivals import steps

_ROUNDING = 1e-9
_REVERSAL_S = 600.0


class Plant:
    def __init__(self, capacity: float, lead_time_s: float, interval_s: float, initial: int) -> None:
        """:param capacity: requests/s of a member. ``initial`` are ready at first."""
        self._capacity = capacity
        self._lead = lead_time_s / interval_s
        self._step = 0.0
        self._least: deque[tuple[float, int]] = deque([(math.inf, initial)])
        """(step until which it was wanted, wanted), ascending in both: whoever is followed by less is the
        least of nothing."""

    @property
    def ready(self) -> int:
        """The least that was wanted in the last lead time."""
        return self._least[0][1]

    def is_over(self, demand: float) -> bool:
        """Whether this demand, requests/s, exceeds what is ready."""
        return demand > self.ready * self._capacity * (1.0 + _ROUNDING)

    def wait(self, steps: float) -> None:
        """So many go by in which nobody decides anything."""
        self._step += steps
        while self._least[0][0] <= self._step - self._lead + _ROUNDING:
            self._least.popleft()

    def take(self, wanted: int, steps: float = 1.0) -> None:
        """:param steps: since the last decision, or what was waited for after it."""
        until = self._step + steps
        self._least[-1] = (until, self._least[-1][1])
        while self._least and self._least[-1][1] >= wanted:
            self._least.pop()
        self._least.append((math.inf, wanted))
        self.wait(steps)


def lead_steps(lead_time_s: float, interval_s: float) -> int:
    """What is ordered serves from so many steps later on; a part of a step is a whole one."""
    return math.ceil(lead_time_s / interval_s - _ROUNDING)


def needed(
    demand: npt.NDArray[np.float64], capacity: float, bounds: Bounds = UNBOUNDED
) -> npt.NDArray[np.int64]:
    """Members that serve each, as far as there may be so many."""
    return np.clip(np.ceil(demand / capacity - _ROUNDING), bounds.least, bounds.most).astype(np.int64)


def oracle(need: npt.NDArray[np.int64], lead: int) -> npt.NDArray[np.int64]:
    """(steps,) the least wanted in each step so that nothing is ever lost: whoever is needed within ``lead``
    steps has to be there already."""
    lead = min(lead, len(need))  # nobody is needed past the end
    padded = np.concatenate([need, np.full(lead, need[-1])])
    windows = np.lib.stride_tricks.sliding_window_view(padded, lead + 1)
    return np.asarray(windows.max(axis=1), dtype=np.int64)


@dataclass(frozen=True, slots=True)
class Score:
    """Of a whole run."""

    over: float
    """Share of time in which demand exceeded what was ready."""
    lost: float
    """Share of demand above it."""
    endpoint_s: float
    cost: float
    """Endpoint-seconds as a multiple of the oracle's."""
    starts: int
    reversals: int
    """Starts of a level that had been started, and stopped again, in the ten minutes before."""


def score(
    wanted: npt.NDArray[np.int64],
    demand: npt.NDArray[np.float64],
    capacity: float,
    lead_time_s: float,
    interval_s: float,
    bounds: Bounds = UNBOUNDED,
) -> Score:
    """:param wanted: (steps,) in each step, decided before it. ``demand``: (steps,) requests/s. ``bounds``:
    the oracle's, as everybody's."""
    lead = lead_steps(lead_time_s, interval_s)
    unserved = excess(demand, ready(wanted, lead), capacity)
    total = float(demand.sum())
    least = oracle(needed(demand, capacity, bounds), lead)
    return Score(
        over=float(np.mean(unserved > 0)),
        lost=float(unserved.sum()) / total if total else 0.0,
        endpoint_s=float(wanted.sum()) * interval_s,
        cost=float(wanted.sum()) / float(least.sum()),
        starts=int(np.maximum(np.diff(wanted), 0).sum()),
        reversals=_reversals(wanted, steps(_REVERSAL_S, interval_s)),
    )


def ready(wanted: npt.NDArray[np.int64], lead: int) -> npt.NDArray[np.int64]:
    """(steps,) the least that was wanted in the last ``lead`` steps and now."""
    lead = min(lead, len(wanted))
    padded = np.concatenate([np.full(lead, wanted[0]), wanted])
    windows = np.lib.stride_tricks.sliding_window_view(padded, lead + 1)
    return np.asarray(windows.min(axis=1), dtype=np.int64)


def excess(
    demand: npt.NDArray[np.float64], ready: npt.NDArray[np.int64], capacity: float
) -> npt.NDArray[np.float64]:
    """(steps,) demand above what is ready."""
    return np.asarray(np.maximum(0.0, demand - ready * capacity * (1.0 + _ROUNDING)), dtype=np.float64)


def _reversals(wanted: npt.NDArray[np.int64], within: int) -> int:
    started = np.full(int(wanted.max()) + 1, -within - 1, dtype=np.int64)
    """(level,) the step that started it last."""
    found = 0
    for at in np.flatnonzero(np.diff(wanted) > 0).tolist():
        levels = slice(int(wanted[at]) + 1, int(wanted[at + 1]) + 1)
        found += int(np.count_nonzero(at - started[levels] <= within))
        started[levels] = at
    return found
