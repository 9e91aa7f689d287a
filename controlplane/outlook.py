# SPDX-License-Identifier: Apache-2.0
"""What will be needed of one service, and which members of its groups pay.

The service is what is foreseen in the long run; a group's demand is its share of it (``loads.py``). A pool's
members are counted together: one of them serves what its mean endpoint can.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from controlplane import model
from controlplane.foresight import Foresight, step_s
from controlplane.loads import ALIKE, Loads, capacities
from controlplane.pool import is_pool, units
from controlplane.sizing import Size


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
    is_blind: bool = False
    """That is what was wanted before, for lack of readings to learn from."""


NOT_KNOWN = Sized(1, "", math.nan, math.nan, 0)


class Outlook:
    """Of one service. Its groups are indexed as in ``Loads``."""

    def __init__(self, service: model.Service, tick_s: float) -> None:
        self.service = service
        self.names = tuple(endpoint.name for endpoint in service.endpoints)
        settings = service.shadows
        lead_time_s = settings.lead_time_s + settings.warm_up_s
        self.step_s = step_s(lead_time_s, tick_s)
        self.foresight: Foresight | None = None
        self.units = units(service)
        self.is_pool = is_pool(service)
        self._least = len(self.names) if self.is_pool else 1
        self.capacity = float(capacities(service).sum()) / self._least
        """What is foreseen in units of: of a pool's mean endpoint, or of all live ones together; flows/s."""
        if service.forecast.method is model.ForecastMethod.AUTO:
            self.foresight = Foresight(self.step_s, lead_time_s, self.capacity, settings, self._least)
        # Where a step is no longer than a tick, nothing is seen between steps.
        self.method = service.forecast.method if self.step_s > tick_s else model.ForecastMethod.NONE

    def resume(self, other: Outlook) -> None:
        """The same knowledge for another configuration of the service."""
        if self.foresight is not None and other.foresight is not None and other.step_s == self.step_s:
            self.foresight.begin(self.capacity)
            self.foresight.resume(other.foresight)

    def use(self, service: model.Service) -> None:
        """The same one, with other capacities."""
        self.service = service
        self.capacity = float(capacities(service).sum()) / self._least
        now = {one.name: one for one in service.endpoints}
        self.units = tuple(
            replace(unit, service=service, endpoints=tuple(now[one.name] for one in unit.endpoints))
            for unit in self.units
        )

    def reckon(self, lead_time_s: float) -> None:
        """With this one from now on, and the capacities that are known."""
        if self.foresight is not None:
            self.foresight.reckon(lead_time_s, self.capacity)

    def sized(self, loads: Loads, i: int) -> Sized:
        """Of the group with this index."""
        size = None if self.foresight is None else self.foresight.size
        if size is None:
            return NOT_KNOWN
        share, capacity, load = loads.share(i), float(loads.capacity[i]), loads.load(i)
        if self.is_pool:
            wanted = 1
        elif abs(load - 1.0) < ALIKE:
            wanted = size.wanted
        else:
            wanted = max(1, math.ceil(size.exact * load - 1e-9))
        return _sized(size, wanted, share, capacity, float(loads.demand[i]))

    def sized_together(self, demand: float) -> Sized:
        """All members of a pool. ``demand``: of its service now, flows/s."""
        size = None if self.foresight is None else self.foresight.size
        if size is None:
            return NOT_KNOWN
        return _sized(size, size.wanted, 1.0, self.capacity, demand, len(self.names))


def _sized(size: Size, wanted: int, share: float, capacity: float, demand: float, least: int = 1) -> Sized:
    """:param least: members that there are anyway."""
    p50 = math.nan if size.p50 is None else share * size.p50
    p90 = math.nan if size.p90 is None else share * size.p90
    needed = max(least, math.ceil(np.fmax(p90, demand) / capacity - 1e-9)) if p90 == p90 else wanted
    return Sized(wanted, size.reason, p50, p90, max(0, wanted - needed), size.is_blind)
