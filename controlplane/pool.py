# SPDX-License-Identifier: Apache-2.0
"""Who is decided about together: one group, or a pool.

Where any endpoint can serve any flow, and all can serve about as many, the groups of a service are one pool.
It is sized as a whole, and ring weights give each group what its members can serve: ten endpoints that are
each a little too small need one shadow, not ten.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from controlplane.forecast import Forecaster, Prediction
from controlplane.model import Affinity, Endpoint, ForecastMethod, Service

Floats = npt.NDArray[np.float64]

_ALIKE, _STILL_ALIKE = 1.25, 1.5
"""The largest capacity is at most so many times the least: members are counted, not added up. Learned ones
vary: who is a pool stays one up to the second."""


@dataclass(frozen=True, slots=True)
class Unit:
    """A group, or all groups of a service."""

    service: Service
    endpoints: tuple[Endpoint, ...]
    """Its live ones: one, or all of the service's."""
    is_pool: bool = False

    @property
    def name(self) -> str:
        """The endpoint's, or the service's."""
        return self.service.name if self.is_pool else self.endpoints[0].name

    @property
    def key(self) -> str:
        """Unlike that of any other; an endpoint may have a service's name."""
        return f"{self.service.name}/*" if self.is_pool else self.endpoints[0].name

    @property
    def capacity(self) -> float | None:
        """Of a member, flows/s; None: not known."""
        known = [one.capacity for one in self.endpoints if one.capacity is not None]
        return sum(known) / len(known) if known else None


def is_pool(service: Service, *, was_one: bool = False) -> bool:
    """Clients are not bound to endpoints, nobody asked for other shares, capacities are alike."""
    capacities = [one.capacity for one in service.endpoints if one.capacity is not None]
    return (
        len(service.endpoints) > 1
        and service.affinity is Affinity.NONE
        and len({one.weight for one in service.endpoints}) == 1
        and len(capacities) == len(service.endpoints)
        and max(capacities) <= (_STILL_ALIKE if was_one else _ALIKE) * min(capacities)
    )


def units(service: Service) -> tuple[Unit, ...]:
    if is_pool(service):
        return (Unit(service, service.endpoints, True),)
    return tuple(Unit(service, (endpoint,)) for endpoint in service.endpoints)


@dataclass(frozen=True, slots=True)
class Seen:
    """What is seen coming within a horizon, flows/s; NaN: there was no reading yet."""

    point: float
    high: float
    """The demand that is exceeded as rarely as ``quantile`` says."""
    level: float
    """Demand now, smoothed."""
    quantile: float

    @property
    def need(self) -> float:
        """What has to be served."""
        return float(np.fmax(self.high, self.level))


class Pools:
    """What comes within seconds for each pool as a whole. Arrays have shape (pools,) or (services,)."""

    def __init__(self, services: Sequence[Service], methods: Sequence[ForecastMethod]) -> None:
        self.services: npt.NDArray[np.intp] = np.flatnonzero([is_pool(one) for one in services])
        """(pools,) indices."""
        them = self.services.tolist()
        self._index = {services[k].name: at for at, k in enumerate(them)}
        over_costs = np.array([services[k].shadows.over_cost for k in them])
        self.quantile: Floats = over_costs / (1.0 + over_costs)
        self._forecaster = Forecaster([methods[k] for k in them], self.quantile, list(self._index))
        self._prediction = Prediction(*np.full((4, len(them)), np.nan))

    def resume(self, other: Pools) -> None:
        self._forecaster.resume(other._forecaster)

    def take(self, demand: Floats, now_s: float) -> None:
        """:param demand: (services,) flows/s; NaN: not read of all groups."""
        self._forecaster.update(demand[self.services], now_s)

    def begin_anew(self, services: npt.NDArray[np.bool_]) -> None:
        """:param services: (services,) of whose demand until now tells nothing of what comes."""
        if (anew := services[self.services]).any():
            self._forecaster.rescale(anew, np.full(int(anew.sum()), np.nan))

    def forecast(self, horizons_s: Floats, now_s: float) -> Prediction:
        """:param horizons_s: (services,)"""
        self._prediction = self._forecaster.predict(horizons_s[self.services], now_s)
        return self._prediction

    def seen(self, service: str) -> Seen | None:
        """None: it is no pool."""
        at = self._index.get(service)
        if at is None:
            return None
        told = self._prediction
        point, high, level = float(told.point[at]), float(told.high[at]), float(told.level[at])
        return Seen(point, high, level, float(self.quantile[at]))
