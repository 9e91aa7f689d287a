# SPDX-License-Identifier: Apache-2.0
"""The load of all groups at once: demand, what is coming within seconds, shares of their services.

A group's demand in the long run is its share of its service's. In a pool that is its share of the ring; else
shares are measured over a minute, and while few flows tell of them, they are those of the ring.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence, Set
from dataclasses import replace
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from controlplane import model, weights
from controlplane.baseline import REMARKABLE
from controlplane.conditions import Conditions
from controlplane.forecast import Forecaster, Prediction
from controlplane.observe import Rates
from controlplane.pool import Pools, Seen
from controlplane.relief import Relief

Floats = npt.NDArray[np.float64]

ALIKE = 0.02
"""Who has so nearly its capacity's share of the demand is sized like the service."""
_SHARES_S = 60.0
"""Time constant of measured shares."""
_TELLING = 30.0
"""Flows of the mean group that tell as much of shares as the weights do."""


class Loads:
    """Arrays have shape (groups,), those of one service beside each other, or (services,)."""

    def __init__(self, services: Collection[model.Service], methods: Sequence[model.ForecastMethod]) -> None:
        """:param methods: of the forecasts, of each service."""
        self.services = tuple(services)
        self.endpoints = tuple(endpoint for service in services for endpoint in service.endpoints)
        self.names = tuple(endpoint.name for endpoint in self.endpoints)
        self.index = {name: i for i, name in enumerate(self.names)}
        n = len(self.names)
        self._service = np.repeat(np.arange(len(services)), [len(one.endpoints) for one in services])
        self.conditions = Conditions(services, self._service)
        # The newsvendor's ratio: a second too few costs so many seconds of one too many.
        over_costs = np.array([service.shadows.over_cost for service in services])
        self.quantile: Floats = self._of_groups(over_costs / (1.0 + over_costs))
        keys = [f"{endpoint.service}/{endpoint.name}" for endpoint in self.endpoints]
        self._forecaster = Forecaster([methods[k] for k in self._service.tolist()], self.quantile, keys)
        self.demand: Floats = np.full(n, np.nan)
        self.rtt_us: Floats = np.full(n, np.nan)
        nothing = np.full(n, np.nan)
        self.prediction = Prediction(np.zeros(n), nothing, nothing, nothing)
        self.pools = Pools(self.services, methods)
        self._pooled: npt.NDArray[np.bool_] = np.isin(self._service, self.pools.services)
        """(groups,)"""
        self._pool = np.searchsorted(self.pools.services, self._service[self._pooled])
        """Of those groups, the index of their pool."""
        self.capacity: Floats = np.full(n, np.nan)
        self.together: Floats = np.full(len(services), np.nan)
        """(services,) capacity; NaN: it is not known."""
        self._has_capacity = np.zeros(n, dtype=np.bool_)
        self._by_weight = np.ones(n)
        self._rings: dict[str, Mapping[str, float]] = {}
        self._covered: Floats = np.ones(len(services))
        """(services,) the groups' part of the ring; the rest are endpoints that are configured no more, until
        the ring follows."""
        ends = np.cumsum([0, *(len(service.endpoints) for service in services)]).tolist()
        self._services = {one.name: range(*of) for one, of in zip(services, pairwise(ends), strict=True)}
        """Service -> indices of its groups."""
        for service in services:
            self.use(service)
        self._flows = np.zeros(n)
        """Of the last minute, older ones counting less."""
        self._relief, self._pools_relief = Relief(n), Relief(len(services))
        self._helped = np.zeros(n, dtype=np.bool_)
        """Who got one more member since the last reading."""
        self._shares: Floats = self._by_weight / self._of_groups(self._of_services(self._by_weight))

    def _of_services(self, values: npt.NDArray[np.float64 | np.bool_]) -> Floats:
        """(services,) sums of what their groups have."""
        return np.bincount(self._service, values, len(self.services)).astype(np.float64)

    def _of_groups(self, values: Floats) -> Floats:
        """(groups,) what their services have."""
        return np.asarray(values[self._service], dtype=np.float64)

    def use(self, service: model.Service) -> None:
        """One of the services, with other capacities."""
        groups = self.groups(service.name)
        self.capacity[groups] = capacities(service)
        self.together[self._service[groups]] = self.capacity[groups].sum()
        self._has_capacity[groups] = [one.capacity is not None for one in service.endpoints]
        if service.name not in self._rings:
            self._by_weight[groups] = _ring_weights(service)

    def groups(self, service: str) -> slice:
        """Where its groups are."""
        them = self._services[service]
        return slice(them.start, them.stop)

    def services_of(self, groups: npt.NDArray[np.bool_]) -> list[model.Service]:
        """Those that have some of these groups, as they are configured."""
        return [self.services[at] for at in np.unique(self._service[groups]).tolist()]

    def service(self, i: int) -> model.Service:
        """Of the group with this index."""
        return self.services[int(self._service[i])]

    def resume(self, other: Loads) -> None:
        """The same knowledge for another configuration; before anything else."""
        self.take_rings(other._rings)
        self._forecaster.resume(other._forecaster)
        self.pools.resume(other.pools)
        self.conditions.resume(other.conditions)
        if self.names == other.names:
            self.demand, self.rtt_us, self.prediction = other.demand, other.rtt_us, other.prediction
        for name, i in self.index.items():
            j = other.index.get(name)
            if j is not None and other.endpoints[j].service == self.endpoints[i].service:
                self._flows[i] = other._flows[j]

    def take_rings(self, rings: Mapping[str, Mapping[str, float]]) -> None:
        """Service -> the weights that its groups' shares of new flows follow from now on."""
        for name, ring in rings.items():
            if ring == self._rings.get(name) or name not in self._services:
                continue
            them = self.groups(name)
            now = np.array([ring.get(one, 0.0) for one in self.names[them]])
            if now.any():
                whole, before = sum(ring.values()), self._rings.get(name)
                if before is not None:
                    self._rescale(them, self._by_weight[them] / sum(before.values()), now / whole)
                self._rings[name] = ring
                self._by_weight[them] = now
                is_all = ring.keys() <= set(self.names[them])
                self._covered[self._service[them.start]] = 1.0 if is_all else now.sum() / whole

    def _rescale(self, groups: slice, before: Floats, now: Floats) -> None:
        """What is moved between groups by the ring is no change of demand, nor unusual.

        :param before: shares of the ring that these had; ``now``: that they have."""
        stays, comes = (before > 0) & (now > 0), (before == 0) & (now > 0)
        factor = np.divide(now, before, out=np.ones(now.shape), where=stays)
        flows = self._flows[groups] * factor
        flows[now == 0] = 0.0
        if stays.any():  # so much would who comes have had
            flows[comes] = now[comes] * flows[stays].sum() / now[stays].sum()
        self._flows[groups] = flows
        self.conditions.rescale(groups, factor)
        # Who comes back had no demand: of what is to come of it that says nothing.
        self._forecaster.rescale(groups, np.where(comes, np.nan, factor))

    def take(
        self, reading: Rates, down: Set[str], now_s: float, now_unix_s: float, new_flows: float
    ) -> Floats:
        """(services,) flows/s; NaN: not read of all groups.

        :param down: whose share others have. ``now_s``, ``now_unix_s``: when it was read. ``new_flows``: per
            second that the program remembered, of all members."""
        self.demand, self.rtt_us = reading.completed, reading.rtt_us
        self._begin_relieved_anew(reading, now_s)
        self._forecaster.update(reading.completed, now_s)
        up = np.ones(len(self.names), dtype=np.bool_)
        up[[self.index[name] for name in down if name in self.index]] = False
        self.conditions.take(reading, up, self._shares, new_flows, now_unix_s)
        self._share(reading, up)
        together = np.where(self._covered < 1.0, np.nan, self._of_services(reading.completed))
        self.pools.take(together, now_s)
        return together

    def _begin_relieved_anew(self, reading: Rates, now_s: float) -> None:
        """Whose completed flows rise, as there is help at last."""
        counted, over_s = reading.counted, reading.over_s
        relieved = self._relief.take(counted.offered, counted.completed, self._helped, over_s, now_s)
        offered, completed = (
            self._of_services(np.nan_to_num(one)) for one in (counted.offered, counted.completed)
        )
        are_helped = self._of_services(self._helped) > 0
        together = self._pools_relief.take(offered, completed, are_helped, over_s, now_s)
        if relieved.any():
            self._forecaster.rescale(relieved, np.full(int(relieved.sum()), np.nan))
        self.pools.begin_anew(together)
        self._helped[:] = False

    def help_came(self, endpoint: str) -> None:
        """One more member of its group can take new flows."""
        if endpoint in self.index:
            self._helped[self.index[endpoint]] = True

    def is_relieved(self, i: int, now_s: float) -> bool:
        """The group with this index, or its pool, had too few members until a moment ago."""
        if self._pooled[i]:
            return self._pools_relief.is_recent(int(self._service[i]), now_s)
        return self._relief.is_recent(i, now_s)

    def _share(self, reading: Rates, up: npt.NDArray[np.bool_]) -> None:
        learned = self.conditions.teaches[self._service]
        self._flows[learned] *= math.exp(-reading.over_s / _SHARES_S)
        self._flows[learned] += np.nan_to_num(reading.completed[learned]) * reading.over_s
        nobody = self._of_services(np.where(up, self._by_weight, 0.0)) == 0.0
        up = up | nobody[self._service]
        by_weight = np.where(up, self._by_weight, 0.0)
        telling = _TELLING * self._of_services(up) / self._of_services(by_weight)
        told = np.where(up, self._flows, 0.0) + self._of_groups(telling) * by_weight
        told = np.where(self._pooled, self._by_weight, told)
        self._shares = told * self._of_groups(self._covered / self._of_services(told))

    def forecast(self, horizons_s: Sequence[float], now_s: float) -> None:
        """:param horizons_s: (services,)"""
        of_services = np.array(horizons_s)
        own = self._forecaster.predict(self._of_groups(of_services), now_s)
        whole = self.pools.forecast(of_services, now_s)
        groups = len(self.names)
        _widen(own, self.conditions.rate[:groups])
        _widen(whole, self.conditions.rate[groups:][self.pools.services])
        for values, those in ((own.point, whole.point), (own.high, whole.high), (own.level, whole.level)):
            together = those[self._pool] * self._shares[self._pooled]
            values[self._pooled] = np.where(np.isnan(together), values[self._pooled], together)
        self.prediction = own

    def seen(self, i: int) -> Seen:
        """What is seen coming for the group."""
        told = self.prediction
        return Seen(float(told.point[i]), float(told.high[i]), float(told.level[i]), float(self.quantile[i]))

    @property
    def need(self) -> Floats:
        """(groups,) what each has to be ready for, flows/s."""
        return np.fmax(self.prediction.high, self.prediction.level)

    def high(self, i: int) -> float:
        """What the group has to be ready for, flows/s."""
        return self.seen(i).need

    def load(self, i: int) -> float:
        """Of what this group's capacity is for the service's, it has so many times as much of the demand."""
        together = self.together[self._service[i]]
        return float(self._shares[i] * together / self.capacity[i])

    def share(self, i: int) -> float:
        return float(self._shares[i])

    def busy(self, wanted: Floats, exact: Floats) -> npt.NDArray[np.bool_]:
        """(groups,) who may want more than the live one: for what is coming, is there, deviates, or pays.
        Who has no capacity does not.

        :param wanted: (services,) members that pay for each live one. ``exact``: the same before it was
            rounded up; NaN: not known."""
        wants = ~(self.need <= self.capacity)
        there = self.conditions
        wants |= there.rate[: len(self.names)] >= REMARKABLE
        wants |= there.in_trouble & ~there.others_too
        load = self._shares * self._of_groups(self.together) / self.capacity
        wants |= (
            np.where(np.abs(load - 1.0) < ALIKE, self._of_groups(wanted), self._of_groups(exact) * load) > 1.0
        )
        return np.asarray(wants & self._has_capacity, dtype=np.bool_)


def _widen(prediction: Prediction, deviation: Floats) -> None:
    """What is unusual now may go on so.

    :param deviation: of the rate, as scores."""
    by = np.where(deviation >= REMARKABLE, deviation, 0.0)
    prediction.high[...] += by * (prediction.high - prediction.point)


def _ring_weights(service: model.Service) -> Floats:
    by_name = weights.ring_weights({endpoint.name: endpoint for endpoint in service.endpoints})
    return np.array([by_name[endpoint.name] for endpoint in service.endpoints])


def capacities(service: model.Service) -> Floats:
    """(groups,) what each live endpoint can be counted on for, flows/s; where it is not given, the mean of
    the others; NaN: none is."""
    given = np.array([math.nan if e.capacity is None else e.capacity for e in service.endpoints])
    known = ~np.isnan(given)
    if known.any():
        given[~known] = given[known].mean()
    return np.asarray(given * (1.0 - service.shadows.headroom), dtype=np.float64)


def with_capacities(service: model.Service, capacities: Floats) -> model.Service:
    """The same service with these capacities; NaN: it is not known."""
    known = [None if math.isnan(one) else one for one in capacities.tolist()]
    endpoints = tuple(
        one if one.capacity == capacity else replace(one, capacity=capacity)
        for one, capacity in zip(service.endpoints, known, strict=True)
    )
    return replace(service, endpoints=endpoints)
