# SPDX-License-Identifier: Apache-2.0
"""A data plane whose flows live on: part of the load is that of old ones, and who is cut comes again."""

from __future__ import annotations

import math
from collections.abc import Collection

from controlplane import model
from tests.fakes import FakeClock, FakeDataplane
from tests.world import World


class FlowingDataplane(FakeDataplane):
    def __init__(self, clock: FakeClock, life_s: float, old: float) -> None:
        """:param life_s: mean life of a flow. ``old``: the share of a flow's load, which is one new flow's,
        that comes over its life; the rest comes when it is opened."""
        super().__init__(clock)
        self._life_s, self._old = life_s, old
        self.active: dict[str, float] = {}
        self.load: dict[str, float] = {}
        """Of each member in the last second, in new flows/s."""
        self.cut = 0.0
        """Flows that were evicted or lost their member in the last second: they come again in the next."""
        self._cut_since = 0.0

    def apply(self, step: model.Step) -> None:
        match step:
            case model.SetDraining(name, _, evicted):
                before = self.members[name].evicted
                if evicted > before:
                    self._evict(name, (evicted - before) / (1.0 - before))
            case model.RemoveMember(name):
                self._evict(name, 1.0)
                self.active.pop(name, None)
        super().apply(step)

    def _evict(self, name: str, part: float) -> None:
        self._cut_since += part * self.active.get(name, 0.0)
        self.active[name] = (1.0 - part) * self.active.get(name, 0.0)

    def offer(self, service: str, flows: float, dead: Collection[str] = ()) -> None:
        self.cut, self._cut_since = self._cut_since, 0.0
        super().offer(service, flows + self.cut, dead)
        for name, given in self.served.items():
            ended = self.active.get(name, 0.0) * (1.0 - math.exp(-1.0 / self._life_s))
            self._count(name, "fins", ended)
            self.active[name] = self.active.get(name, 0.0) - ended + given
            self.flows[name] = math.ceil(self.active[name] - 0.5)
            self.load[name] = (1.0 - self._old) * given + self._old * self.active[name] / self._life_s


class FlowingWorld(World):
    def __init__(
        self, configuration: model.Config, life_s: float, old: float, *, records: bool = False
    ) -> None:
        super().__init__(configuration)
        self.records = records
        self.dataplane: FlowingDataplane = FlowingDataplane(self.clock, life_s, old)
        self.controller = self._controller()
