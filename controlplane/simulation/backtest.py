# SPDX-License-Identifier: Apache-2.0
"""Forecasts of recorded load against what came, and against who says that all stays as it is."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from controlplane.forecast.analogs import Analogs
from controlplane.forecast.quantiles import PROBABILITIES, Quantiles
from controlplane.forecast.recent import Floats
from controlplane.simulation.lines import Sample
from controlplane.simulation.plant import lead_steps

_FIRST = 40
"""Steps before which nobody's forecast is judged."""
_ERRORS, _ANEW = 4000, 20
_RISING, _RISING_STEPS = 1.02, 8


@dataclass(frozen=True, slots=True)
class Forecast:
    sample: Sample
    quantiles: Floats | None
    """(PROBABILITIES,) of demand a horizon after the last reading, requests/s; None: there was none yet."""


def foreseen(samples: Iterable[Sample], horizon_s: float, interval_s: float) -> Iterator[Forecast]:
    """One for each sample, before the next one is asked for."""
    lead = lead_steps(horizon_s, interval_s)
    analogs = Analogs(interval_s, lead)
    quantiles, last = Quantiles(interval_s, lead, analogs), None
    for sample in samples:
        if math.isnan(sample.rate):
            quantiles.skip()
            analogs.skip()
        else:
            analogs.after(sample.rate)
            last = quantiles.after(sample.rate)
        yield Forecast(sample, last)


@dataclass(frozen=True, slots=True)
class Backtest:
    steps: int
    """That were judged."""
    wape: float
    """Of the median: the sum of its errors as a share of demand."""
    pinball: float
    """Mean over the quantiles, requests/s."""
    coverage: tuple[float, ...]
    """(PROBABILITIES,) share of steps whose demand was not above the quantile."""
    rising: float
    """The same of the P90, where demand was above its mean of the last steps."""
    wape_last: float
    """Of the last value; the following with its errors observed so far as quantiles."""
    pinball_last: float


def judged(forecasts: Sequence[Forecast], horizon_s: float, interval_s: float) -> Backtest | None:
    """None: too few steps to judge."""
    lead = lead_steps(horizon_s, interval_s)
    demand = np.array([forecast.sample.rate for forecast in forecasts], dtype=np.float64)
    told = np.array(
        [
            np.full(len(PROBABILITIES), np.nan) if forecast.quantiles is None else forecast.quantiles
            for forecast in forecasts
        ]
    )
    at = np.arange(_FIRST + lead, len(demand) - lead)
    unmoved = _unmoved(demand, lead)
    at = at[~np.isnan(demand[at + lead]) & ~np.isnan(told[at, 0]) & ~np.isnan(unmoved[at, 0])]
    if not at.size:
        return None
    came, foretold, unmoved = demand[at + lead], told[at], unmoved[at]
    total = max(float(came.sum()), 1e-300)
    recent = np.lib.stride_tricks.sliding_window_view(demand, _RISING_STEPS).mean(axis=1)
    rising = demand[at] > _RISING * recent[at - _RISING_STEPS + 1]
    return Backtest(
        steps=int(at.size),
        wape=float(np.abs(came - foretold[:, 1]).sum()) / total,
        pinball=_pinball(foretold, came),
        coverage=tuple(np.mean(came[:, None] <= foretold * (1 + 1e-12), axis=0).tolist()),
        rising=float(np.mean(came[rising] <= foretold[rising, 2])) if rising.any() else math.nan,
        wape_last=float(np.abs(came - demand[at]).sum()) / total,
        pinball_last=_pinball(unmoved, came),
    )


def _unmoved(demand: Floats, lead: int) -> Floats:
    """(steps, PROBABILITIES) the last value, and the quantiles of what it was wrong by until then."""
    errors = np.full(len(demand), np.nan)
    errors[lead:] = demand[lead:] - demand[:-lead]
    told = np.full((len(demand), len(PROBABILITIES)), np.nan)
    for begin in range(_FIRST + lead, len(demand), _ANEW):
        known = errors[max(lead, begin - _ERRORS) : begin + 1]
        known = known[~np.isnan(known)]
        end = min(begin + _ANEW, len(demand))
        if known.size:
            told[begin:end] = demand[begin:end, None] + np.quantile(known, PROBABILITIES)
    return told


def _pinball(quantiles: Floats, came: Floats) -> float:
    missed = came[:, None] - quantiles
    return float(np.mean(np.maximum(PROBABILITIES * missed, (PROBABILITIES - 1.0) * missed)))
