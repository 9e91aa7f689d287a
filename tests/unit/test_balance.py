# SPDX-License-Identifier: Apache-2.0
"""Weights follow what members can serve, as their use, their answers and their agents tell."""

from __future__ import annotations

import json
import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import pytest

from controlplane import balance, fitness, model, strength, weights
from controlplane.balance import Balance
from controlplane.model import ShadowState
from controlplane.penalties import Penalties
from controlplane.ports import Counters
from tests.fakes import FIELDS
from tests.world import World, config

POLL_S = 5
SOURCE = model.UsageSource(model.UsageKind.NODE_EXPORTER, "http://{address}:9100/metrics")


class Plant:
    """Endpoints of these real capacities, flows/s, none of which is configured; each tells every five
    seconds what it used since the last time."""

    def __init__(
        self, capacities: Mapping[str, float], given: float | None = None, poll_s: int = POLL_S
    ) -> None:
        whole = config(endpoints=len(capacities), hosts=())
        web = whole.services["web"]
        endpoints = tuple(replace(one, capacity=given) for one in web.endpoints)
        self.world = World(replace(whole, services={"web": replace(web, endpoints=endpoints, usage=SOURCE)}))
        self.capacities = dict(capacities)
        self.poll_s = poll_s
        self.used: dict[str, deque[float]] = {name: deque(maxlen=poll_s) for name in capacities}
        self.memory: dict[str, float] = {}
        self.asked: dict[str, float] = {}
        self.silent = False
        self.rings: list[tuple[float, ...]] = []
        """After each tick."""
        self.asked_of: Callable[[str, float], float] = lambda _, given: given
        """Of a member that is given so many new flows: what that is to it now."""

    def tick(self, demand: float) -> None:
        tells = self.world.load_source.tells
        tells.clear()
        every = self.poll_s
        if self.world.clock.now % every == 0 and not self.silent:
            told = {name: sum(used) / every for name, used in self.used.items() if len(used) == every}
            for name, cpu in told.items():
                self.world.load_source.tell(
                    name, cpu=cpu, memory=self.memory.get(name), weight=self.asked.get(name)
                )
        self.world.tick(demand)
        for name, capacity in self.capacities.items():
            asked = self.asked_of(name, self.world.dataplane.served.get(name, 0.0))
            self.used[name].append(min(asked / capacity, 1.0))
        self.rings.append(tuple(self.world.dataplane.services["web"].ring.values()))

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


def strength_of(plant: Plant, name: str) -> float:
    return plant.world.controller._fleet.use.balance.strength(name, plant.world.clock.now)


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


def test_given_capacities_are_put_right_by_half_at_most_unless_one_was_as_busy_as_can_be():
    plant = Plant({"web-1": 80.0, "web-2": 100.0, "web-3": 120.0}, given=100.0)
    plant.ticks(90, 200.0)
    assert plant.busiest(200.0) <= 1.15
    plant = Plant({"web-1": 10.0, "web-2": 100.0, "web-3": 100.0}, given=100.0)
    plant.ticks(90, 20.0)
    assert plant.shares["web-1"] == pytest.approx(1 / 1.5 / (2 + 1 / 1.5), abs=0.02)
    plant.ticks(90, 100.0)
    assert plant.shares["web-1"] == pytest.approx(10 / 210, abs=0.02)


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


def constant(seed: int, seconds: int = 300) -> Plant:
    """Three equal endpoints at half load, read every two seconds. A flow asks for one or more requests, three
    seconds apart."""
    plant, random = Plant(dict.fromkeys(UNEVEN, 20.0), given=20.0, poll_s=2), np.random.default_rng(seed)
    coming = {name: np.zeros(seconds + 60) for name in UNEVEN}

    def asked(name: str, given: float) -> float:
        k = len(plant.rings)
        for _ in range(round(given)):
            coming[name][k : k + 3 * random.geometric(0.5) : 3] += 0.5
        return float(coming[name][k])

    plant.asked_of = asked
    plant.ticks(seconds, 30.0)
    return plant


def test_a_constant_demand_of_equal_endpoints_moves_no_ring():
    moves = [len(set(constant(seed).rings)) - 1 for seed in range(2)]
    assert moves == [0, 0]


def test_negative_control_where_each_reading_is_believed_the_ring_follows_chance(monkeypatch):
    monkeypatch.setattr(strength, "_LONG_S", 3.0)
    monkeypatch.setattr(strength, "_KNOWN", 1.0)
    monkeypatch.setattr(fitness, "_BAND_ERRORS", 0.0)
    assert len(set(constant(0, 120).rings)) > 4


def dying(monkeypatch: pytest.MonkeyPatch) -> Plant:
    """Nobody sees that one of three equal endpoints answers nothing after two minutes: it is idle, but for
    old flows."""
    monkeypatch.setattr(Penalties, "take", lambda *_: None)
    plant = Plant(dict.fromkeys(UNEVEN, 100.0), given=100.0)
    plant.ticks(120, 150.0)
    plant.world.dataplane.unanswered["web-2"] = 1.0
    plant.asked_of = lambda name, given: given * (0.2 if name == "web-2" else 1.0)
    plant.ticks(120, 150.0)
    return plant


def test_who_completes_nothing_is_idle_and_gets_no_more_for_it(monkeypatch):
    plant = dying(monkeypatch)
    assert plant.shares["web-2"] <= 0.34
    assert strength_of(plant, "web-2") == pytest.approx(100.0, rel=0.1)


def test_negative_control_by_what_it_is_given_it_seems_to_be_the_strongest(monkeypatch):
    monkeypatch.setattr(balance, "_completing", lambda *_: 1.0)
    assert dying(monkeypatch).shares["web-2"] > 0.4


def test_who_completes_nothing_gets_no_more_when_the_others_are_as_busy_as_can_be(monkeypatch):
    plant = dying(monkeypatch)
    before = plant.shares["web-2"]
    plant.ticks(60, 390.0)
    assert plant.world.controller._fleet.use.used_up >= {"web-1", "web-3"}
    assert plant.shares["web-2"] <= before + 0.01


def test_of_who_fails_only_now_and_then_what_it_completes_counts():
    plant = Plant(dict.fromkeys(UNEVEN, 100.0))
    plant.world.dataplane.unanswered["web-2"] = 0.1
    plant.asked_of = lambda name, given: given * (0.9 if name == "web-2" else 1.0)
    plant.ticks(120, 150.0)
    assert strength_of(plant, "web-2") == pytest.approx(100.0, rel=0.05)


def busy(demand: float, given: float | None, *, told: bool = True, burnt_from: int = 10_000) -> World:
    """A member serves 80/s and a kernel that takes every connection hides it; after a minute of 40/s this
    demand for six minutes. Something else burns all of the live endpoint's CPU from then on."""
    whole = config(headroom=0.0)
    web = whole.services["web"]
    endpoints = tuple(replace(one, capacity=given) for one in web.endpoints)
    world = World(replace(whole, services={"web": replace(web, endpoints=endpoints, usage=SOURCE)}))
    used: dict[str, deque[float]] = {}
    for k in range(420):
        world.load_source.tells.clear()
        if told and world.clock.now % POLL_S == 0:
            for name, last in used.items():
                world.load_source.tell(name, cpu=sum(last) / len(last))
        world.tick(40.0 if k < 60 else demand)
        for name, served in world.dataplane.served.items():
            is_burnt = name == "web-1" and k >= burnt_from
            cpu = 1.0 if is_burnt else min(served / 80.0, 1.0)
            used.setdefault(name, deque(maxlen=POLL_S)).append(cpu)
    return world


def capacity(world: World) -> float:
    return json.loads(world.shown[-1])["services"][0]["groups"][0]["capacity"]


@pytest.mark.parametrize("given", [None, 400.0])
def test_who_was_as_busy_as_can_be_gets_as_many_shadows_as_it_needs(given):
    world = busy(250.0, given)
    assert 3 <= len(world.states()) <= 4
    assert max(world.dataplane.served.values()) <= 80.0
    assert any(row.action == "capacity" for row in world.store.rows)
    assert 65.0 <= capacity(world) <= 85.0


@pytest.mark.parametrize("given", [None, 400.0])
def test_negative_control_where_use_is_not_told_nobody_knows(given):
    assert max(busy(250.0, given, told=False).dataplane.served.values()) > 200.0


@pytest.mark.parametrize("burnt_from", [60, 0])
def test_what_something_else_burns_starts_one_shadow_and_no_more(burnt_from):
    world = busy(40.0, 100.0, burnt_from=burnt_from)
    assert world.orders() == ["web-1-s1"]
    assert world.orders("deprovision") == []
    assert capacity(world) == 100.0
    assert world.states() == [ShadowState.READY]
    assert world.dataplane.served["web-1-s1"] > 5.0


def test_negative_control_whoever_takes_it_for_load_believes_in_ever_less(monkeypatch):
    monkeypatch.setattr(balance, "_BY_LOAD", 0.0)
    assert capacity(busy(40.0, 100.0, burnt_from=60)) < 40.0


class Read:
    """What is told of an endpoint every two seconds, and of its shadow, by counters of each second."""

    def __init__(self, flows_each: float | None = None) -> None:
        self.balance, self.random, self.each = Balance(), np.random.default_rng(5), flows_each
        self.answered = 0.0
        self.known, self.now = {"web-1": math.nan}, 0
        self.flows = dict.fromkeys(("web-1", "web-1-s1"), 0.0)
        self.given: deque[float] = deque(maxlen=2)

    def second(self, rate: float, used: float, helpers: float, requests: float = 0.0) -> float:
        """:param helpers: flows/s that the shadow could serve, of which it is given 5. ``requests``: that the
        endpoint answers, per second."""
        self.now += 1
        self.answered += requests
        self.flows["web-1"] += self.random.poisson(rate)
        self.flows["web-1-s1"] += self.random.poisson(5.0)
        table = {field: np.zeros(2, dtype=np.uint64) for field in FIELDS}
        table["flows"] = np.array(list(self.flows.values()), dtype=np.uint64)
        table["answered"] = np.array([self.answered, 0.0], dtype=np.uint64)
        self.balance.count(Counters(at_s=float(self.now), rows={"web-1": 0, "web-1-s1": 1}, **table))
        if self.now % 2 == 0:
            noise = np.exp(0.15 * self.random.normal(size=2))
            usages = [
                model.Usage("web-1", float(self.now), cpu=min(1.0, used * noise[0]) if used < 1.0 else 1.0),
                model.Usage("web-1-s1", float(self.now), cpu=5.0 / helpers * noise[1]),
            ]
            self.known = self.balance.take(usages, self.known, lambda _: ["web-1-s1"], lambda _: self.each)
        return self.known["web-1"]


def an_overload(seconds: int = 30) -> list[float]:
    """What is known of one that can serve 40/s, asked for 30, then for too much, then for 25 to 32 as it has
    help of one that is a little stronger."""
    read = Read()
    for _ in range(60):
        read.second(30.0, 0.75, 50.0)
    for _ in range(seconds):
        read.second(44.0, 1.0, 50.0)
    return [read.second(rate, rate / 40.0, 50.0) for rate in (32.0, 25.0, 30.0) for _ in range(100)]


def test_what_use_told_of_an_overload_stays_and_does_not_swing_with_each_reading():
    known = np.array(an_overload())
    assert np.isfinite(known).all()
    assert 32.0 < known.min() <= known.max() < 48.0
    assert np.count_nonzero(np.diff(known)) <= 6


def test_negative_control_whoever_goes_by_single_readings_swings(monkeypatch):
    monkeypatch.setattr(balance, "_LASTING_S", 0.0)
    monkeypatch.setattr(balance, "_BUSY_MOST_S", 0.1)
    monkeypatch.setattr(balance, "_BUSY_S", 0.0)
    monkeypatch.setattr(balance, "_FLOWS_TELL", 1.0)
    assert np.count_nonzero(np.diff(an_overload())) > 20


def test_a_burst_of_some_seconds_tells_nothing():
    assert np.isnan(an_overload(seconds=6)).all()


def test_negative_control_it_would_if_it_need_not_last(monkeypatch):
    monkeypatch.setattr(balance, "_LASTING_S", 0.0)
    monkeypatch.setattr(balance, "_HELPED_S", 0.0)
    assert np.isfinite(an_overload(seconds=6)).any()


def moved(flows_each: float | None) -> float:
    """What is known of one that can answer 80 requests/s, two to a flow, when new flows were moved away at
    once, and old ones' requests keep it busy for another minute."""
    read = Read(flows_each)
    for _ in range(60):
        read.second(30.0, 0.75, 40.0, 60.0)
    for _ in range(14):
        read.second(44.0, 1.0, 40.0, 80.0)
    return [read.second(30.0, 1.0, 40.0, 80.0) for _ in range(60)][-1]


def test_requests_of_old_flows_are_work_too():
    assert 36.0 < moved(0.5) < 42.0


def test_negative_control_by_new_flows_alone_it_could_serve_less():
    assert moved(None) < 32.0


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
