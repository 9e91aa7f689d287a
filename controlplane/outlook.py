# SPDX-License-Identifier: Apache-2.0
"""What is known of the load of one service: demand, what is coming, deviation, and the members that pay.

The service is what is foreseen in the long run; a group's demand is its share of it. Shares are measured over
a minute; while few flows tell of them, they are those of the weights.
"""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from controlplane import model, weights
from controlplane.baseline import Baseline, Deviation
from controlplane.forecast import Forecaster, Prediction
from controlplane.foresight import Foresight, step_s
from controlplane.observe import Rates

Floats = npt.NDArray[np.float64]

REMARKABLE = 0.5
"""A deviation that is not chance."""
_SHARES_S = 60.0
"""Time constant of measured shares."""
_TELLING = 30.0
"""Flows of the mean group that tell as much of shares as the weights do."""
_ALIKE = 0.02
"""Who has so nearly its capacity's share of the demand is sized like the service."""


@dataclass(frozen=True, slots=True)
class Sized:
    """Members of one group that pay in the long run."""

    wanted: int
    reason: str
    p50: float
    """Quantiles of its demand a lead time from now, flows/s; NaN: not known."""
    p90: float
    standing: int
    """Of those wanted, how many stand by for more than the forecast's ninth decile."""


NOT_KNOWN = Sized(1, "", math.nan, math.nan, 0)


class Outlook:
    """Arrays have shape (groups,); the index is the position of the live endpoint."""

    def __init__(self, service: model.Service, tick_s: float) -> None:
        self.service = service
        self.names = tuple(endpoint.name for endpoint in service.endpoints)
        self.index = {name: i for i, name in enumerate(self.names)}
        n = len(self.names)
        settings = service.shadows
        # The newsvendor's ratio: a second too few costs so many seconds of one too many.
        quantile = settings.over_cost / (1.0 + settings.over_cost)
        self.step_s = step_s(settings.lead_time_s + settings.warm_up_s, tick_s)
        method = service.forecast.method
        self.foresight: Foresight | None = None
        self._capacity = _capacities(service)
        self._has_capacity = np.array([endpoint.capacity is not None for endpoint in service.endpoints])
        if method is model.ForecastMethod.AUTO and not np.isnan(self._capacity).any():
            self.foresight = Foresight(
                self.step_s,
                settings.lead_time_s + settings.warm_up_s,
                float(self._capacity.sum()),
                settings,
            )
        if self.step_s <= tick_s:  # nothing is seen between steps
            method = model.ForecastMethod.NONE
        self.forecaster = Forecaster(method, quantile, self.names)
        self.baseline = Baseline(self.names)
        self.demand: Floats = np.full(n, np.nan)
        self.rtt_us: Floats = np.full(n, np.nan)
        self.deviation = Deviation(np.zeros(n), np.zeros(n))
        nothing = np.full(n, np.nan)
        self.prediction = Prediction(0.0, nothing, nothing, nothing)
        by_weight = weights.ring_weights({e.name: e for e in service.endpoints})
        self._by_weight = np.array([by_weight[name] for name in self.names])
        self._flows = np.zeros(n)
        """Of the last minute, older ones counting less."""
        self._shares: Floats = self._by_weight / self._by_weight.sum()

    def regroup(self, service: model.Service, tick_s: float) -> Outlook:
        """The same knowledge for another configuration of the service."""
        other = Outlook(service, tick_s)
        if (other.forecaster.method, other.forecaster.quantile) == (
            self.forecaster.method,
            self.forecaster.quantile,
        ):
            other.forecaster = self.forecaster.regroup(other.names)
        other.baseline = self.baseline.regroup(other.names)
        for name, i in other.index.items():
            if name in self.index:
                other._flows[i] = self._flows[self.index[name]]
        if self.foresight is not None and other.foresight is not None and other.step_s == self.step_s:
            other.foresight.resume(self.foresight)
        return other

    def take(self, reading: Rates, down: Set[str], now_s: float, now_unix_s: float) -> None:
        """:param down: whose share others have. ``now_s``: when it was read."""
        self.demand, self.rtt_us = reading.completed, reading.rtt_us
        self.deviation = self.baseline.update(reading.completed, reading.rtt_us, reading.over_s)
        self.forecaster.update(reading.completed, now_s)
        self._share(reading, np.array([name not in down for name in self.names]))
        if self.foresight is not None:
            self.foresight.observe(float(reading.completed.sum()), reading.over_s, now_unix_s)

    def _share(self, reading: Rates, up: npt.NDArray[np.bool_]) -> None:
        self._flows *= math.exp(-reading.over_s / _SHARES_S)
        self._flows += np.nan_to_num(reading.completed) * reading.over_s
        if not up.any():
            up = np.ones_like(up)
        by_weight = np.where(up, self._by_weight, 0.0)
        told = np.where(up, self._flows, 0.0) + _TELLING * up.sum() * by_weight / by_weight.sum()
        self._shares = told / told.sum()

    def forecast(self, horizon_s: float, now_s: float) -> None:
        self.prediction = self.forecaster.predict(horizon_s, now_s)
        if self.foresight is not None:
            self.foresight.reckon(horizon_s, float(self._capacity.sum()))

    def busy(self) -> npt.NDArray[np.bool_]:
        """(groups,) who may want more than the live one: for what is coming, is there, deviates, or pays.
        Who has no capacity does not."""
        need = np.fmax(self.prediction.high, self.prediction.level)
        wants = ~(need <= self._capacity)
        wants |= (self.deviation.rate >= REMARKABLE) | (self.deviation.latency >= REMARKABLE)
        if self.foresight is not None and self.foresight.size is not None:
            size = self.foresight.size
            load = self._shares * self._capacity.sum() / self._capacity
            wants |= np.where(np.abs(load - 1.0) < _ALIKE, float(size.wanted), size.exact * load) > 1.0
        return np.asarray(wants & self._has_capacity, dtype=np.bool_)

    def sized(self, i: int) -> Sized:
        """Of the group with this index."""
        size = None if self.foresight is None else self.foresight.size
        if size is None:
            return NOT_KNOWN
        share, capacity = float(self._shares[i]), float(self._capacity[i])
        load = share * float(self._capacity.sum()) / capacity
        wanted = size.wanted if abs(load - 1.0) < _ALIKE else max(1, math.ceil(size.exact * load - 1e-9))
        p50 = math.nan if size.p50 is None else share * size.p50
        p90 = math.nan if size.p90 is None else share * size.p90
        needed = max(1, math.ceil(np.fmax(p90, self.demand[i]) / capacity - 1e-9)) if p90 == p90 else wanted
        return Sized(wanted, size.reason, p50, p90, max(0, wanted - needed))


def _capacities(service: model.Service) -> Floats:
    """(groups,) what each live endpoint can be counted on for, flows/s; where it is not given, the mean of
    the others; NaN: none is."""
    given = np.array([math.nan if e.capacity is None else e.capacity for e in service.endpoints])
    known = ~np.isnan(given)
    if known.any():
        given[~known] = given[known].mean()
    return np.asarray(given * (1.0 - service.shadows.headroom), dtype=np.float64)
