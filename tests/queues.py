# SPDX-License-Identifier: Apache-2.0
"""A data plane whose members serve no more than they can, and answer slower the more they have to do."""

from __future__ import annotations

import math
from collections.abc import Collection
from functools import cache

import numpy as np

from tests.fakes import FakeClock, FakeDataplane

LATEST = 0.97
"""Of what it can serve: past that a queue has no mean, but grows."""


@cache
def _erlang(servers: int) -> tuple[np.ndarray, np.ndarray]:
    loads = np.linspace(0.0, LATEST, 200)
    times = []
    for load in loads.tolist():
        lost = 1.0
        for one in range(1, servers + 1):
            lost = load * servers * lost / (one + load * servers * lost)
        waits = lost / (1.0 - load * (1.0 - lost))
        times.append(1.0 + waits / (servers * (1.0 - load)))
    return loads, np.array(times)


def response_time(load: float | np.ndarray, servers: int) -> np.ndarray:
    """As a multiple of the unloaded one, of so many servers before which there is one queue (Erlang's C)."""
    return np.interp(load, *_erlang(servers))


class QueueingDataplane(FakeDataplane):
    def __init__(self, clock: FakeClock, capacity: float, servers: int) -> None:
        super().__init__(clock)
        self.capacity, self.servers = capacity, servers
        self.slower = 1.0
        """So many times as long each answer takes, whatever the load."""
        self.collapses = False
        """The more is asked for than it can serve, the less of that is answered in time."""
        self.random = np.random.default_rng(4)
        self.backlog: dict[str, float] = {}

    def offer(self, service: str, flows: float, dead: Collection[str] = ()) -> None:
        self.served = dict.fromkeys(self.members, 0.0)
        ring = self.services[service].ring if service in self.services else {}
        for name, weight in ring.items():
            share = flows * weight / sum(ring.values())
            member = self.members[name]
            slots = {n: w for n, w in member.slots.items() if n in self.members and not self.members[n].down}
            spilled = share * member.spill if slots else 0.0
            self._count(name, "offered", share)
            self._count(name, "spilled", spilled)
            self._count(name, "completed", self._serve(name, share - spilled, dead))
            for shadow, slot in slots.items():
                done = self._serve(shadow, spilled * slot / sum(slots.values()), dead)
                self._count(name, "completed", done)

    def _serve(self, name: str, flows: float, dead: Collection[str]) -> float:
        """Flows that are answered; at most as many as are served in a second wait for the next one."""
        self._count(name, "flows", flows)
        if name in dead:
            return 0.0
        there = flows + self.backlog.get(name, 0.0)
        done = min(there, self.capacity)
        self.backlog[name] = min(there - done, self.capacity)
        if self.collapses and flows > self.capacity:
            done *= (self.capacity / flows) ** 2
        waiting = self.backlog[name] / self.capacity * self.servers
        took = response_time(flows / self.capacity, self.servers) + waiting
        took *= self.slower * math.exp(0.1 * self.random.normal())
        self.served[name] = done
        self._count(name, "rtt_count", done)
        self._count(name, "rtt_sum_us", done * 1000.0 * float(took))
        return done


class KeepingDataplane(QueueingDataplane):
    """A part of the requests comes on connections that stay where they are for ``life_s``; all are told. Half
    of who is refused tries again, and who is given to others comes back at once."""

    def __init__(self, clock: FakeClock, capacity: float, servers: int, old: float, demand: float) -> None:
        """:param old: that part. ``demand``: new flows/s that there have always been, of one endpoint."""
        super().__init__(clock, capacity, servers)
        self.old, self.demand, self.life_s = old, demand, 60.0
        self.open: dict[str, float] = {}
        self.before_evictions: dict[str, float] = {}
        self.again = 0.0

    def offer(self, service: str, flows: float, dead: Collection[str] = ()) -> None:
        self._evict()
        again, self.again = self.again, 0.0
        before = dict(self.open)
        super().offer(service, flows + again, dead)
        for name in self.open.keys() & before.keys():
            if self.open[name] == before[name]:  # it got no new ones
                self._serve(name, 0.0, dead)

    def _evict(self) -> None:
        for name, there in list(self.open.items()):
            member = self.members.get(name)
            stays = 0.0 if member is None else there
            if member is not None and member.draining and member.evicted > 0.0:
                whole = self.before_evictions.setdefault(name, there)
                stays = min(there, whole * (1.0 - member.evicted))
            self.again += there - stays
            self.open[name] = stays
            if member is None:
                del self.open[name]
                self.before_evictions.pop(name, None)

    def _serve(self, name: str, flows: float, dead: Collection[str]) -> float:
        self._count(name, "flows", flows)
        if name in dead:
            return 0.0
        there = self.open.setdefault(name, self.demand * self.life_s if name.count("-") == 1 else 0.0)
        load = (1.0 - self.old) * flows + self.old * there / self.life_s
        asked = load + self.backlog.get(name, 0.0)
        done = min(asked, self.capacity)
        self.backlog[name] = min(asked - done, self.capacity)
        waiting = self.backlog[name] / self.capacity * self.servers
        took = response_time(load / self.capacity, self.servers) + waiting
        took *= self.slower * math.exp(0.1 * self.random.normal())
        self.served[name] = done
        new = flows * min(1.0, done / load) if load else 0.0
        self.again += 0.5 * (flows - new)
        self.open[name] = there * math.exp(-1.0 / self.life_s) + new
        self.flows[name] = round(self.open[name])
        each = 1.0 / (1.0 - self.old)
        self._count(name, "rtt_count", new)
        self._count(name, "rtt_sum_us", new * 1000.0)
        self._count(name, "requests", load * each)
        self._count(name, "answered", done * each)
        self._count(name, "response_count", done * each)
        self._count(name, "response_sum_us", done * each * 1000.0 * float(took))
        return new
