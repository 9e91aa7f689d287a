# SPDX-License-Identifier: Apache-2.0
"""Endpoints that can take each other's flows are sized together, and share them by what groups can serve."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise

import pytest

from controlplane import model, requests, weights
from controlplane.cli import explain
from controlplane.fleet import Fleet
from controlplane.model import ShadowState
from controlplane.pool import is_pool
from tests.world import CAPACITY, World, config

FEW = 5


def world(endpoints: int = FEW, affinity: model.Affinity = model.Affinity.NONE, **settings: object) -> World:
    whole = config(endpoints=endpoints, headroom=0.0, **settings)
    web = replace(whole.services["web"], affinity=affinity)
    return World(replace(whole, services={"web": web}))


def each(one: World, ticks: int, demand: float) -> Iterator[dict[str, float]]:
    """What members were given in each tick."""
    for _ in range(ticks):
        one.tick(demand, noisy=False)
        yield dict(one.dataplane.served)


def slowly_to(one: World, share: float) -> None:
    """From half of what the endpoints can serve, over five minutes."""
    for k in range(300):
        one.tick((0.5 + (share - 0.5) * k / 300) * CAPACITY * FEW, noisy=False)
    one.ticks(30, share * CAPACITY * FEW, noisy=False)


def shares(one: World) -> dict[str, float]:
    ring = one.dataplane.services["web"].ring
    return {name: round(ring[name] / sum(ring.values()), 3) for name in ring}


def test_five_that_are_a_little_too_small_get_one_shadow_and_nobody_is_above_capacity():
    a = world()
    slowly_to(a, 1.04)
    assert len(a.orders()) == 1
    assert shares(a)[a.store.records[a.orders()[0]].parent] == pytest.approx(2 / 6, abs=0.01)
    for served in each(a, 60, 1.04 * CAPACITY * FEW):
        assert max(served.values()) <= CAPACITY, "the ring follows what groups can serve"


def test_negative_control_bound_clients_get_a_shadow_for_each_endpoint():
    a = world(affinity=model.Affinity.SOURCE)
    slowly_to(a, 1.04)
    assert len(a.orders()) == FEW
    assert len(set(shares(a).values())) == 1


def test_who_is_uneven_by_chance_needs_nobody_while_siblings_have_room():
    a = world()
    a.ticks(60, 0.6 * CAPACITY * FEW)
    a.dataplane.services["web"] = replace(
        a.dataplane.services["web"], ring={"web-1": 2.0, **{f"web-{k}": 0.75 for k in range(2, FEW + 1)}}
    )
    a.ticks(1, 0.6 * CAPACITY * FEW)
    assert a.dataplane.served["web-1"] > CAPACITY, "the fault hit"
    a.ticks(20, 0.6 * CAPACITY * FEW)
    assert set(shares(a).values()) == {1 / FEW}
    assert a.orders() == []


def test_a_drain_begins_with_the_ring_and_brings_nobody_above_capacity():
    a = world(idle_s=20.0)
    slowly_to(a, 1.5)
    a.ticks(60, 1.5 * CAPACITY * FEW, noisy=False)
    assert a.states().count(ShadowState.READY) >= 3
    draining = 0
    for k in range(500):
        a.tick(max(1.5 - 0.01 * k, 0.5) * CAPACITY * FEW, noisy=False)
        draining += ShadowState.DRAINING in a.states()
        assert max(a.dataplane.served.values()) <= CAPACITY
    assert draining > 0
    assert a.states() == []


def test_the_ring_is_steady_at_constant_demand():
    a = world()
    a.ticks(60, 0.9 * CAPACITY * FEW)
    a.ticks(120, 1.3 * CAPACITY * FEW)
    rings = []
    for _ in range(300):
        a.tick(1.3 * CAPACITY * FEW)
        rings.append(shares(a))
    assert all(ring == rings[0] for ring in rings)
    assert a.controller.status().troubles == {}


def test_when_one_of_many_is_down_the_others_carry_it_or_get_a_shadow():
    a = world(4)
    a.ticks(60, 0.5 * CAPACITY * 4)
    a.prober.dead.add("web-1")
    a.ticks(60, 0.5 * CAPACITY * 4)
    assert a.orders() == []
    assert "web-1" not in shares(a)
    a.ticks(60, 0.8 * CAPACITY * 4)
    assert a.orders() != []
    assert "web-1" not in {shadow.parent for shadow in a.store.records.values()}, "who is up is cloned first"


def test_who_is_drained_by_command_is_neither_counted_on_nor_cloned():
    a = world(3)
    a.ticks(60, 0.5 * CAPACITY * 3)
    assert a.orders() == []
    requests.request_drain(a.store, "web-1", True)
    a.ticks(60, 0.9 * CAPACITY * 3)
    assert a.orders() != [], "two serve less than three"
    assert {shadow.parent for shadow in a.store.records.values()} <= {"web-2", "web-3"}
    assert "web-1" not in shares(a)
    pool = a.controller.status().services[0].pool
    assert pool.capacity == pytest.approx(CAPACITY * (2 + a.states().count(ShadowState.READY)))


def test_a_shadow_of_one_that_is_drained_serves_on():
    a = world(3)
    a.ticks(60, 0.5 * CAPACITY * 3)
    a.ticks(60, 1.1 * CAPACITY * 3)
    assert any(shadow.parent == "web-1" for shadow in a.store.records.values())
    requests.request_drain(a.store, "web-1", True)
    a.ticks(30, 1.1 * CAPACITY * 3)
    served = a.dataplane.served
    assert served["web-1"] == 0.0
    assert served["web-1-s1"] > 0.5 * CAPACITY


def test_while_a_drain_ramps_the_ring_is_changed_once():
    a = world(idle_s=60.0, min_life_s=60.0, drain_s=30.0)
    usage = model.UsageSource(model.UsageKind.NODE_EXPORTER, "http://{address}:9100/metrics")
    a.config = replace(a.config, services={"web": replace(a.config.services["web"], usage=usage)})
    a.restart()
    a.ticks(60, 0.5 * CAPACITY * FEW)
    a.ticks(60, 1.3 * CAPACITY * FEW)
    rings, ramps = [], 0
    for _ in range(200):
        for name, served in a.dataplane.served.items():
            a.load_source.tell(name, cpu=min(served / CAPACITY * a.random.uniform(0.95, 1.05), 1.0))
        a.tick(0.6 * CAPACITY * FEW)
        rings.append(shares(a))
        ramps += any(one.state is ShadowState.DRAINING and one.share > 0 for one in a.store.records.values())
    assert ramps > 20
    changes = sum(one != before for before, one in pairwise(rings))
    assert changes <= 2 * len(set(a.orders()))


def restless(monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """While a drain ramps, and what each can serve is told anew each tick, by chance. Of each move of the
    ring within ten seconds of the one before it by how much weights grew; the ring is to move by chance."""
    a = world(idle_s=30.0, min_life_s=30.0, drain_s=30.0)
    a.ticks(40, 0.5 * CAPACITY * FEW)
    a.ticks(50, 1.3 * CAPACITY * FEW)
    monkeypatch.setattr(
        Fleet, "fitness", lambda _, those, now_s: {n: a.random.uniform(0.6, 1.4) for n in those}
    )
    moved_s, grown, ring = -math.inf, [], shares(a)
    for _ in range(120):
        a.tick(0.6 * CAPACITY * FEW)
        before, ring = ring, shares(a)
        if before == ring:
            continue
        if a.clock.now - moved_s < 10.0:
            grown.append(sorted(ring[name] / before[name] for name in ring))
        moved_s = a.clock.now
    assert "deprovision" in {what for what, _ in a.provisioner.orders}
    return grown


def uneven(grown: list[float]) -> bool:
    """Those that do not lose do not keep what they have to each other."""
    more = [one for one in grown if one >= 0.95]
    return max(more) > 1.02 * min(more)


def test_within_ten_seconds_the_ring_takes_from_who_loses_a_member_and_moves_nothing_else(monkeypatch):
    grown = restless(monkeypatch)
    assert grown
    for each_one in grown:
        assert each_one[0] < 0.95
        assert not uneven(each_one)


def test_negative_control_where_all_that_is_wanted_comes_with_it_everything_moves(monkeypatch):
    monkeypatch.setattr(weights, "reduce_ring", lambda was, to, names: dict(to if names else was))
    assert any(map(uneven, restless(monkeypatch)))


def test_a_shadow_of_one_that_is_down_serves_on_while_others_have_room():
    a = world(3, idle_s=20.0)
    a.ticks(60, 0.8 * CAPACITY * 3)
    a.ticks(40, 1.2 * CAPACITY * 3)
    assert any(shadow.parent == "web-1" for shadow in a.store.records.values())
    a.prober.dead.add("web-1")
    a.ticks(200, 0.3 * CAPACITY * 3)
    assert a.states() == [ShadowState.READY]
    assert a.dataplane.members["web-1"].spill == 1.0
    assert shares(a)["web-1"] == pytest.approx(1 / 3, abs=0.01)
    a.prober.dead.clear()
    a.ticks(120, 0.3 * CAPACITY * 3)
    assert a.states() == []


def test_the_pool_is_told_as_a_whole():
    a = world()
    a.ticks(60, 0.9 * CAPACITY * FEW)
    a.ticks(60, 1.2 * CAPACITY * FEW)
    pool = a.controller.status().services[0].pool
    assert pool is not None
    assert pool.capacity == pytest.approx(CAPACITY * (FEW + len(a.states())))
    assert pool.wanted == FEW + len(a.states())
    names = {sample.name for sample in a.metrics.samples}
    assert {"pool_demand_flows_per_second", "pool_members_wanted"} <= names


def test_pool_and_group_say_how_much_is_expected_and_can_be_served():
    a = world()
    a.ticks(60, 0.5 * CAPACITY * FEW, noisy=False)
    told = json.loads(a.shown[-1])["services"][0]
    why = "expected demand 250/s <= 500/s that 5 members can serve"
    assert re.sub(r"2[5-9]\d/s", "250/s", told["pool"]["reason"]) == f"web: {why}"
    group = told["groups"][0]
    assert re.sub(r"2[5-9]\d/s", "250/s", group["reason"]) == f"1 of 5 members of web, sized together: {why}"
    lines = list(explain._of_group({**group, **told, "name": "web-1", "horizon_s": 4.0, "service": "web"}))
    said = [line.removeprefix("  decided    ") for line in lines if line.startswith("  decided")]
    assert said == [f"5 members of web, sized together: {told['pool']['reason'].removeprefix('web: ')}"]


@pytest.mark.parametrize(
    ("capacities", "weights", "affinity", "pooled"),
    [
        ((100.0, 100.0), (1.0, 1.0), model.Affinity.NONE, True),
        ((100.0, 124.0), (3.0, 3.0), model.Affinity.NONE, True),
        ((100.0, 126.0), (1.0, 1.0), model.Affinity.NONE, False),
        ((100.0, None), (1.0, 1.0), model.Affinity.NONE, False),
        ((100.0, 100.0), (1.0, 2.0), model.Affinity.NONE, False),
        ((100.0, 100.0), (1.0, 1.0), model.Affinity.SOURCE, False),
        ((100.0,), (1.0,), model.Affinity.NONE, False),
    ],
)
def test_who_is_a_pool(capacities, weights, affinity, pooled):
    web = config(endpoints=len(capacities)).services["web"]
    endpoints = tuple(
        replace(one, capacity=capacity, weight=weight)
        for one, capacity, weight in zip(web.endpoints, capacities, weights, strict=True)
    )
    assert is_pool(replace(web, endpoints=endpoints, affinity=affinity)) is pooled
