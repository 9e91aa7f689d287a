# SPDX-License-Identifier: Apache-2.0
"""Weights follow what members can serve, as their use, their answers and their agents tell."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace

import pytest

from controlplane import model, weights
from controlplane.model import ShadowState
from tests.world import World, config

POLL_S = 5
SOURCE = model.UsageSource(model.UsageKind.NODE_EXPORTER, "http://{address}:9100/metrics")


class Plant:
    """Endpoints of these real capacities, flows/s, none of which is configured; each tells every five
    seconds what it used since the last time."""

    def __init__(self, capacities: Mapping[str, float], late_s: int = 0, given: float | None = None) -> None:
        whole = config(endpoints=len(capacities), hosts=())
        web = whole.services["web"]
        endpoints = tuple(replace(one, capacity=given) for one in web.endpoints)
        self.world = World(replace(whole, services={"web": replace(web, endpoints=endpoints, usage=SOURCE)}))
        self.capacities = dict(capacities)
        self.used: dict[str, deque[float]] = {name: deque(maxlen=POLL_S) for name in capacities}
        self.memory: dict[str, float] = {}
        self.asked: dict[str, float] = {}
        self.silent = False
        self.late_s = late_s
        self.waiting: deque[dict[str, float]] = deque([{}] * late_s)

    def tick(self, demand: float) -> None:
        tells = self.world.load_source.tells
        tells.clear()
        if self.world.clock.now % POLL_S == 0 and not self.silent:
            told = {name: sum(used) / POLL_S for name, used in self.used.items() if len(used) == POLL_S}
            for name, cpu in told.items():
                self.world.load_source.tell(
                    name, cpu=cpu, memory=self.memory.get(name), weight=self.asked.get(name)
                )
        self.world.tick(demand)
        for name, capacity in self.capacities.items():
            self.used[name].append(min(self.world.dataplane.served.get(name, 0.0) / capacity, 1.0))

    def ticks(self, count: int, demand: float) -> None:
        for _ in range(count):
            self.tick(demand)

    @property
    def shares(self) -> dict[str, float]:
        ring = self.world.dataplane.services["web"].ring
        return {name: ring[name] / sum(ring.values()) for name in ring}

    def busiest(self, demand: float) -> float:
        """The highest utilisation, as multiples of the mean one."""
        used = [share * demand / self.capacities[name] for name, share in self.shares.items()]
        return max(used) / (sum(used) / len(used))


UNEVEN = {"web-1": 40.0, "web-2": 80.0, "web-3": 160.0}


@pytest.mark.parametrize("demand", [60.0, 140.0, 260.0])
def test_within_a_minute_nobody_is_much_busier_than_the_others(demand):
    plant = Plant(UNEVEN)
    plant.ticks(60, demand)
    assert plant.busiest(demand) <= 1.15
    for _ in range(10):
        plant.ticks(20, demand)
        assert plant.busiest(demand) <= 1.15, "and it stays so"


def test_negative_control_without_readings_the_smallest_is_far_busier():
    plant = Plant(UNEVEN)
    plant.silent = True
    plant.ticks(60, 140.0)
    assert plant.busiest(140.0) > 1.5


def test_given_capacities_are_put_right_by_half_at_most():
    plant = Plant({"web-1": 80.0, "web-2": 100.0, "web-3": 120.0}, given=100.0)
    plant.ticks(90, 200.0)
    assert plant.busiest(200.0) <= 1.15
    plant = Plant({"web-1": 10.0, "web-2": 100.0, "web-3": 100.0}, given=100.0)
    plant.ticks(90, 100.0)
    assert plant.shares["web-1"] == pytest.approx(1 / 1.5 / (2 + 1 / 1.5), abs=0.02)


def test_without_readings_weights_stay_for_three_minutes_and_then_follow_capacities():
    plant = Plant(UNEVEN)
    plant.ticks(60, 140.0)
    told = plant.shares
    plant.silent = True
    plant.ticks(170, 140.0)
    assert plant.shares == told
    seen = []
    for _ in range(60):
        plant.tick(140.0)
        seen.append(plant.shares["web-3"])
    assert seen[-1] == pytest.approx(1 / 3, abs=0.01)
    assert len(set(seen)) <= 4


def test_a_restart_leaves_the_ring_as_it_was_until_use_is_known_again():
    plant = Plant(UNEVEN)
    plant.ticks(60, 140.0)
    told = plant.shares
    assert told["web-3"] > 0.5
    plant.world.restart()
    plant.silent = True
    plant.ticks(60, 140.0)
    assert plant.shares == told
    plant.silent = False
    plant.ticks(60, 140.0)
    assert plant.busiest(140.0) <= 1.15
    plant.world.restart()
    plant.silent = True
    plant.ticks(220, 140.0)
    assert plant.shares["web-3"] == pytest.approx(1 / 3, abs=0.01), "it is not told any more"


def test_who_is_nearly_out_of_memory_or_asks_for_less_gets_less():
    plant = Plant(dict.fromkeys(UNEVEN, 100.0))
    plant.memory["web-1"] = 0.95
    plant.ticks(60, 140.0)
    assert plant.shares["web-1"] == pytest.approx(0.5 / 2.5, abs=0.03)
    plant.memory.clear()
    plant.asked["web-2"] = 0.25
    plant.ticks(60, 140.0)
    assert plant.shares["web-2"] == pytest.approx(0.25 / 2.25, abs=0.03)
    assert plant.shares["web-1"] == pytest.approx(1.0 / 2.25, abs=0.03)


@pytest.mark.parametrize("told", [True, False])
def test_who_uses_all_it_has_is_saturated_and_gets_one_shadow(told):
    """Its capacity is not given, and a kernel that takes every connection hides it."""
    whole = config()
    web = whole.services["web"]
    unknown = tuple(replace(one, capacity=None) for one in web.endpoints)
    world = World(replace(whole, services={"web": replace(web, endpoints=unknown, usage=SOURCE)}))
    for k in range(900):
        for name, served in world.dataplane.served.items():
            world.load_source.tell(name, cpu=min(served / 80.0, 1.0) if told else None)
        world.tick(40.0 if k < 60 else 110.0)
    assert world.orders() == (["web-1-s1"] if told else [])
    assert world.orders("deprovision") == []
    if told:
        assert "saturated" in next(row.reason for row in world.store.rows if row.action == "add")
        assert world.states() == [ShadowState.READY]


@pytest.mark.parametrize("told", [True, False])
def test_who_uses_all_it_has_below_its_given_capacity_gets_one_shadow(told):
    world = World(replace(config(), services={"web": replace(given_far_too_high(), usage=SOURCE)}))
    for k in range(400):
        for name, served in world.dataplane.served.items():
            world.load_source.tell(name, cpu=min(served / 80.0, 1.0) if told else None)
        world.tick(40.0 if k < 60 else 110.0)
    assert world.orders() == (["web-1-s1"] if told else [])
    assert world.states() == ([ShadowState.READY] if told else [])
    if told:
        assert "as busy as can be" in next(row.reason for row in world.store.rows if row.action == "add")
        assert world.dataplane.served["web-1-s1"] > 10.0


def given_far_too_high() -> model.Service:
    web = config().services["web"]
    return replace(web, endpoints=tuple(replace(one, capacity=1000.0) for one in web.endpoints))


class Cold:
    """A group whose shadow serves a fifth of what it should for its first twenty seconds; requests wait."""

    def __init__(self, slow_s: int = 20, *, timed: bool = True) -> None:
        whole = config(max_per_endpoint=1, headroom=0.0)
        web = replace(whole.services["web"], requests=model.Requests.HTTP1)
        self.world = World(replace(whole, services={"web": web}))
        self.slow_s, self.timed = slow_s, timed
        self.waiting: dict[str, float] = {}
        self.done, self.since = 0.0, 0

    def tick(self, demand: float) -> None:
        self.world.tick(demand, noisy=False)
        plane = self.world.dataplane
        ready = any(one.state is ShadowState.READY for one in self.world.store.records.values())
        self.since += ready
        for name, given in plane.served.items():
            rate = 100.0 if name == "web-1" or self.since > self.slow_s else 20.0
            there = self.waiting.get(name, 0.0) + given
            served = min(there, rate)
            self.waiting[name] = min(there - served, 3.0 * rate)  # who waits for longer has gone
            self.done += served
            row = plane.rows[name]
            if self.timed:
                plane.count["response_count"][row] += int(served)
                each_us = 1e6 / rate + 1e6 * self.waiting[name] / rate
                plane.count["response_sum_us"][row] += int(served * each_us)

    def done_in(self, ticks: int, demand: float) -> float:
        before = self.done
        for _ in range(ticks):
            self.tick(demand)
        return self.done - before


@pytest.mark.parametrize("timed", [True, False])
def test_a_shadow_that_is_slow_at_first_lowers_no_throughput(timed):
    cold = Cold(timed=timed)
    cold.done_in(60, 40.0)
    while cold.since == 0:
        cold.done_in(1, 118.0)
    done = [cold.done_in(1, 118.0) for _ in range(20)]
    if timed:
        assert min(done) >= 100.0, "no less than without it"
        cold.done_in(60, 118.0)
        assert cold.done_in(20, 118.0) == pytest.approx(20 * 118.0), "warm, it takes its share"
    else:
        assert min(done) < 100.0, "negative control: nobody tells how slow it is"


@pytest.mark.parametrize(
    ("own", "parents", "own_us", "parents_us", "part"),
    [
        (50.0, 100.0, 1.0, 1.0, 0.5),
        (150.0, 100.0, 9.0, 1.0, 1.0),
        (float("nan"), 100.0, 5.0, 1.0, 0.2),
        (float("nan"), 100.0, 1.4, 1.0, 1.0),
        (float("nan"), 100.0, float("nan"), 1.0, 1.0),
        (1.0, 100.0, 1.0, 1.0, 0.1),
    ],
)
def test_the_part_that_a_shadow_can_serve(own, parents, own_us, parents_us, part):
    assert weights.fit_part(own, parents, own_us, parents_us) == pytest.approx(part)
