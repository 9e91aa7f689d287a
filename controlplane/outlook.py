# SPDX-License-Identifier: Apache-2.0
"""What will be needed of one service, and which members of its groups pay.

The service is what is foreseen in the long run; a group's demand is its share of it (``loads.py``).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from controlplane import model
from controlplane.foresight import Foresight, step_s
from controlplane.loads import ALIKE, Loads, capacities


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
    """Of one service. Its groups are indexed as in ``Loads``."""

    def __init__(self, service: model.Service, tick_s: float) -> None:
        self.service = service
        self.names = tuple(endpoint.name for endpoint in service.endpoints)
        settings = service.shadows
        lead_time_s = settings.lead_time_s + settings.warm_up_s
        self.step_s = step_s(lead_time_s, tick_s)
        self.foresight: Foresight | None = None
        self._capacity = float(capacities(service).sum())
        if service.forecast.method is model.ForecastMethod.AUTO and not math.isnan(self._capacity):
            self.foresight = Foresight(self.step_s, lead_time_s, self._capacity, settings)
        # Where a step is no longer than a tick, nothing is seen between steps.
        self.method = service.forecast.method if self.step_s > tick_s else model.ForecastMethod.NONE

    def resume(self, other: Outlook) -> None:
        """The same knowledge for another configuration of the service."""
        if self.foresight is not None and other.foresight is not None and other.step_s == self.step_s:
            self.foresight.resume(other.foresight)

    def reckon(self, lead_time_s: float) -> None:
        """With this one from now on."""
        if self.foresight is not None:
            self.foresight.reckon(lead_time_s, self._capacity)

    def sized(self, loads: Loads, i: int) -> Sized:
        """Of the group with this index."""
        size = None if self.foresight is None else self.foresight.size
        if size is None:
            return NOT_KNOWN
        share, capacity, load = loads.share(i), float(loads.capacity[i]), loads.load(i)
        wanted = size.wanted if abs(load - 1.0) < ALIKE else max(1, math.ceil(size.exact * load - 1e-9))
        p50 = math.nan if size.p50 is None else share * size.p50
        p90 = math.nan if size.p90 is None else share * size.p90
        demand = loads.demand[i]
        needed = max(1, math.ceil(np.fmax(p90, demand) / capacity - 1e-9)) if p90 == p90 else wanted
        return Sized(wanted, size.reason, p50, p90, max(0, wanted - needed))
