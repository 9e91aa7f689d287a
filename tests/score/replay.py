# SPDX-License-Identifier: Apache-2.0
"""A recorded trace as demand that a policy meets: on a grid of 5 s, decided every 15.

A sample that stands for more than a minute is replayed in one; between samples demand goes a random way that
rises or falls all along, so that no sample is given away by the one before, and policies see it with the
noise of counting. Both are seeded. A member's capacity is such that sixteen serve all but the busiest
hundredth.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

TICK_S, STEP_S = 5.0, 15.0
TICKS = round(STEP_S / TICK_S)
SAMPLE_MOST_S = 60.0
_PARTS = 12
"""Steps of the random way between two samples."""
_WAY_SEED, _NOISE_SEED = 7, 11
_MEMBERS = 16
_SERVED = 99
"""Per cent of minutes that they serve."""
_COUNTED_PER_S = 50.0
"""Requests/s of a member at capacity, as far as noise is concerned."""


@dataclass(frozen=True, slots=True)
class Trace:
    name: str
    demand: Floats
    """(ticks,) requests/s, what is judged."""
    seen: Floats
    """(steps,) what policies are told: the mean of each step, with noise where the samples were long."""
    capacity: float
    """Requests/s of a member."""


def traces(folder: Path, speed: float = 1.0) -> Iterator[Trace]:
    """Of ``meta.json``: {NAME: {"period_s": seconds of a sample}} with ``NAME.csv`` beside it, a header and
    ``timestamp,value`` lines.

    :param speed: samples longer than a tick go by so many times faster."""
    for name, about in json.loads((folder / "meta.json").read_text()).items():
        values = np.loadtxt(folder / f"{name}.csv", delimiter=",", skiprows=1, usecols=1)
        yield replayed(name, np.maximum(values, 0.0), float(about["period_s"]), speed)


def replayed(name: str, values: Floats, period_s: float, speed: float = 1.0) -> Trace:
    """:param values: (samples,) of any unit, each the mean of ``period_s``."""
    is_long = period_s > TICK_S
    demand = _way(values, min(period_s, SAMPLE_MOST_S) / speed) if is_long else _binned(values, int(period_s))
    demand = demand[: len(demand) // TICKS * TICKS]
    minutes = np.convolve(demand, np.full(12, 1 / 12), "valid")
    capacity = max(float(np.percentile(minutes, _SERVED)) / _MEMBERS, 1e-9)
    seen = _noisy(demand, capacity) if is_long else demand
    return Trace(name, demand, seen.reshape(-1, TICKS).mean(axis=1), capacity)


def _binned(values: Floats, period_s: int) -> Floats:
    seconds = np.repeat(values, period_s)
    whole = len(seconds) // int(TICK_S) * int(TICK_S)
    return np.asarray(seconds[:whole].reshape(-1, int(TICK_S)).mean(axis=1) / period_s, dtype=np.float64)


def _way(values: Floats, sample_s: float) -> Floats:
    ticks = int(len(values) * sample_s // TICK_S)
    at = np.clip((np.arange(ticks) + 0.5) * TICK_S / sample_s - 0.5, 0.0, len(values) - 1 - 1e-9)
    before = at.astype(np.intp)
    gone = np.cumsum(np.random.default_rng(_WAY_SEED).gamma(0.5, size=(len(values), _PARTS)), axis=1)
    gone /= gone[:, -1:]
    part = ((at - before) * _PARTS).astype(np.intp)
    way: Floats = values[before] + gone[before, part] * (values[before + 1] - values[before])
    return way


def _noisy(demand: Floats, capacity: float) -> Floats:
    counted = _COUNTED_PER_S * TICK_S / capacity
    return np.random.default_rng(_NOISE_SEED).poisson(demand * counted) / counted
