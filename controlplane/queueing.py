# SPDX-License-Identifier: Apache-2.0
"""From how answers slow down under load to what can be served: a curve of queueing theory is fitted, of all
endpoints at once.

Response time under load is R = S (1 + r^(sqrt(2(c+1))-1) / (c (1-r))), r = rate / capacity, of c servers
before which there is one queue (Sakasegawa, Annals of the Institute of Statistical Mathematics 29, 1977; with
c = 1 it is the textbook's S / (1-r)). Few of its parameters can be told from response times alone, but what
is sought, the capacity, is where the curve goes up: S and c are whatever suits best at each capacity (a
profile likelihood), and capacities that suit hardly worse are the interval. So a curve that does not rise
tells of no capacity, which is right: one that is flat may go on for long.
Estimating demands from throughput and response times is surveyed in Spinner et al., Performance Evaluation
92, 2015. That latency against its own floor tells of a queue is TCP Vegas' idea (Brakmo and Peterson, 1994),
used by Netflix's concurrency-limits and Envoy's adaptive concurrency; these look for a number of requests in
flight that is to be held, here nobody is held back to find out.

Rates lie in bins, a fourteenth apart, so that the curves of all capacities are one table, and all fits are
products of matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

RATIO = 2.0**0.1
"""Of a bin's upper edge to its lower one."""
BINS = 32
"""The lowest has a ninth of the highest's rate."""
_BELOW, _ABOVE = 20, 12
"""Capacities that are tried: so many steps below the highest bin's upper edge and above it."""
_SERVERS = np.array([1.0, 2.0, 4.0, 10.0, 30.0, 100.0])
_CONSTANT = np.array([0.0, 3.0])
"""Of an answer's time that no queue is before (the network, another machine), in unloaded services."""
_GROWTH_MOST = 20.0
"""What is slower than so many times its floor is as slow: how slow an overload is depends on its length."""
_ERROR = 0.08
"""Of a bin's mean log response time, at least: no curve is exact."""
_CORRELATED = 3.0
"""Windows beside each other share their queue: so many count as one."""
_PART = 16
"""Endpoints whose products are so small that no threads are woken for them: where all cores are busy, waiting
for these takes a hundred times as long."""
_HARDLY_WORSE = 4.0
"""The chi square of two standard deviations."""
_FAST = 3.0
"""What takes at most so many times the floor was served: the capacity is above it."""
_HALF_BIN = RATIO**0.5
TELLING = 3.0
"""Windows that a bin must hold to be gone by alone."""


def growth(load: Floats, servers: Floats, constant: Floats) -> Floats:
    """Response time as a multiple of the unloaded one; ``load`` is 0..1 and above."""
    below = np.minimum(load, 0.999)
    waiting = below ** (np.sqrt(2.0 * (servers + 1.0)) - 1.0) / (servers * (1.0 - below))
    grown = np.minimum(1.0 + waiting / (1.0 + constant), _GROWTH_MOST)
    return np.where(load < 1.0, grown, _GROWTH_MOST)


def _table() -> Floats:
    """(BINS, curves x capacities) log growth."""
    load = RATIO ** (np.arange(BINS) + 0.5)[:, None, None] / CAPACITIES
    servers, constant = (one.reshape(-1, 1) for one in np.meshgrid(_SERVERS, _CONSTANT))
    return np.asarray(np.log(growth(load, servers, constant)).reshape(BINS, -1), dtype=np.float32)


CAPACITIES: Floats = RATIO ** np.arange(BINS - _BELOW, BINS + _ABOVE + 1.0)
"""Those that are tried, in units of the lowest bin's lower edge."""
_LOG_GROWTH = _table()
_CURVES = len(_SERVERS) * len(_CONSTANT)
_LOG_GROWTH_SQUARED = _LOG_GROWTH**2


@dataclass(frozen=True, slots=True)
class Fit:
    """(n,) each; capacities in units of the lowest bin's lower edge."""

    low: Floats
    best: Floats
    high: Floats
    """Infinite: nothing speaks against any capacity above ``low``."""
    grown: Floats
    """How many times as slow as the fastest bin the slowest one is; 1: flat."""


def fit(count: Floats, mean: Floats, variance: Floats) -> Fit:
    """:param count: (n, BINS) windows in each bin. ``mean``, ``variance``: of their log response times."""
    there = count > 0.0
    precision = np.where(there, 1.0 / (_ERROR**2 + _CORRELATED * variance / np.maximum(count, 1.0)), 0.0)
    # A bin of one or two windows has no variance of its own.
    precision = np.where(count < TELLING, precision * 0.1, precision)
    floor = floor_of(count, mean)
    told = np.where(there, np.minimum(mean - floor[:, None], np.log(_GROWTH_MOST)), 0.0)
    chi = _chi_square(precision, told)
    chi = np.where(proven(count, mean)[:, None] > CAPACITIES, np.inf, chi)
    least = chi.min(axis=1)
    free = np.maximum((count >= TELLING).sum(axis=1) - 3.0, 1.0)
    limit = least + _HARDLY_WORSE * np.maximum(least / free, 1.0)
    best = chi.argmin(axis=1)
    low, high = _crossing(chi, limit, best, -1), _crossing(chi, limit, best, 1)
    grown = np.exp(np.where(count >= TELLING, told, 0.0).max(axis=1))
    return Fit(low / _HALF_BIN, CAPACITIES[best], high * _HALF_BIN, grown)


def proven(count: Floats, mean: Floats) -> Floats:
    """(n,) the highest rate that was served without slowing down much; 0: none was."""
    slow = np.log(_FAST) + np.nan_to_num(floor_of(count, mean))[:, None]
    highest = np.where((count >= TELLING) & (mean <= slow), np.arange(BINS), -1).max(axis=1)
    return np.where(highest >= 0, RATIO**highest, 0.0)


def served(count: Floats, mean: Floats, floor: Floats) -> Floats:
    """(n,) the highest rate that, or a higher one, was served in enough windows without slowing down much; 0:
    none was. Where load varies much, no bin has enough of its own.

    :param floor: (n,) log response time without load; NaN: not known."""
    quick = np.where(mean <= (np.log(_FAST) + floor)[:, None], count, 0.0)
    bins = (quick[:, ::-1].cumsum(axis=1) >= TELLING).sum(axis=1)  # the lowest ones
    return np.where(bins > 0, RATIO ** (bins - 1.0), 0.0)


def floor_of(count: Floats, mean: Floats, windows: float = TELLING) -> Floats:
    """(n,) the least mean log response time of all bins that hold so many; NaN: none does."""
    found = np.where(count >= windows, mean, np.inf).min(axis=1)
    return np.where(np.isfinite(found), found, np.nan)


def _chi_square(precision: Floats, told: Floats) -> Floats:
    """(n, capacities) of the curve that suits each best."""
    short = precision.astype(np.float32), told.astype(np.float32)
    parts = [slice(first, first + _PART) for first in range(0, len(told), _PART)]
    return np.concatenate([_chi_square_of(*(one[part] for one in short)) for part in parts])


def _chi_square_of(precision: npt.NDArray[np.float32], told: npt.NDArray[np.float32]) -> Floats:
    weighted = precision * told
    total = np.maximum(precision.sum(axis=1), np.float32(1e-9))[:, None]
    # With the log of S that suits best, sum((told - log S - growth)^2).
    left = weighted.sum(axis=1)[:, None] - precision @ _LOG_GROWTH
    chi = precision @ _LOG_GROWTH_SQUARED - np.float32(2.0) * (weighted @ _LOG_GROWTH)
    chi -= left * left / total
    best = chi.reshape(len(told), _CURVES, len(CAPACITIES)).min(axis=1)
    return np.asarray(best + (weighted * told).sum(axis=1)[:, None], dtype=np.float64)


def _crossing(chi: Floats, limit: Floats, best: npt.NDArray[np.intp], side: int) -> Floats:
    """(n,) where chi square passes the limit on this side of its least, between two capacities."""
    steps = np.arange(chi.shape[1])
    beyond = (chi > limit[:, None]) & (side * (steps - best[:, None]) > 0)
    some = beyond.any(axis=1)
    at = np.where(side > 0, beyond.argmax(axis=1), chi.shape[1] - 1 - beyond[:, ::-1].argmax(axis=1))
    rows, inner = np.arange(len(chi)), np.clip(at - side, 0, chi.shape[1] - 1)
    outside, inside = chi[rows, at], chi[rows, inner]
    with np.errstate(invalid="ignore"):
        part = np.nan_to_num((limit - inside) / np.maximum(outside - inside, 1e-12))
    step = inner + side * np.clip(part, 0.0, 1.0)
    found = CAPACITIES[0] * RATIO**step
    return np.where(some, found, np.inf if side > 0 else CAPACITIES[0])
