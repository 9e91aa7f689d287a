# SPDX-License-Identifier: Apache-2.0
"""The controller where no capacity is given: it learns one, and until then it reacts."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from controlplane import capacity, fleet, model, requests, saturation
from controlplane.ceilings import Ceilings
from controlplane.fleet import Fleet
from controlplane.model import ShadowState
from controlplane.record import redone
from tests.queues import QueueingDataplane
from tests.world import CAPACITY, World, config

ONE, POOL = 4, 200
"""Servers of an endpoint; where there are many, no answer is slow before all are busy."""


def unknown(
    servers: int = ONE,
    given: float | None = None,
    endpoints: int = 1,
    *,
    records: bool = False,
    **more: object,
) -> World:
    whole = config(endpoints=endpoints, headroom=0.0, **{"idle_s": 120.0, **more})
    web = whole.services["web"]
    told = tuple(replace(one, capacity=given) for one in web.endpoints)
    world = World(replace(whole, services={"web": replace(web, endpoints=told)}), records=records)
    world.dataplane = QueueingDataplane(world.clock, CAPACITY, servers)
    if records:
        world.recorded.clear()
        world.configs.clear()
    world.controller = world._controller()
    return world


def group(world: World, at: int = 0) -> dict[str, object]:
    return json.loads(world.shown[-1])["services"][0]["groups"][at]


def swing(world: World, seconds: int, low: float = 45.0, high: float = 88.0) -> None:
    for second in range(seconds):
        world.tick((low + high) / 2 + (high - low) / 2 * math.sin(second / 25))


@pytest.fixture(scope="module")
def grown() -> tuple[World, np.ndarray]:
    """Learned from nothing, then load rises to 1.5 of what one serves, and stays; spill of the last while."""
    world = unknown(endpoints=2, records=True)
    for second in range(600):
        world.tick(2 * (66.0 + 20.0 * math.sin(second / 25)))
    for second in range(200):
        world.tick(2 * (66.0 + 84.0 * second / 200))
    spill = []
    for _ in range(500):
        world.tick(300.0)
        spill.append([world.dataplane.members[name].spill for name in ("web-1", "web-2")])
    return world, np.array(spill[200:])


def a_little_too_much() -> World:
    """Four endpoints learn what they can serve, and then are asked for a tenth more."""
    world = unknown(endpoints=4)
    for second in range(450):
        world.tick(4 * (66.0 + 20.0 * math.sin(second / 25)))
    for second in range(100):
        world.tick(4 * (66.0 + 36.0 * second / 100))
    for _ in range(60):
        world.tick(4 * 102.0)
    assert all(group(world, at)["capacity_from"] == "learned" for at in range(4))
    return world


def test_endpoints_whose_capacities_are_learned_and_alike_are_a_pool():
    world = a_little_too_much()
    service = json.loads(world.shown[-1])["services"][0]
    assert service["pool"]["wanted"] < 8
    assert len(world.store.records) <= 3
    assert max(world.dataplane.served.values()) < CAPACITY
    assert world.controller.status().troubles == {}


def test_negative_control_where_they_are_none_each_gets_a_shadow(monkeypatch):
    monkeypatch.setattr(fleet, "is_pool", lambda _, was_one: was_one)
    assert len(a_little_too_much().store.records) == 4


@pytest.mark.parametrize("given", [CAPACITY, None])
def test_who_serves_less_as_it_is_ill_stays_in_a_pool_by_what_is_given(given):
    known = unknown(endpoints=3, given=given).controller._fleet
    known.capacities.used[:] = CAPACITY
    known._apply_capacities()
    assert known.views["web"].is_pool
    known.capacities.used[2] = 0.2 * CAPACITY
    known._apply_capacities()
    known._regroup()  # as another service's capacities may ask for
    assert known.views["web"].is_pool is (given is not None)
    assert known.loads.capacity.tolist() == [CAPACITY, CAPACITY, 0.2 * CAPACITY]


def test_what_is_learned_makes_groups_grow_and_nothing_swings(grown):
    world, spill = grown
    for at in range(2):
        shown = group(world, at)
        assert shown["capacity_from"] == "learned"
        assert 0.7 * CAPACITY <= shown["capacity"] <= 1.05 * CAPACITY
        assert shown["wanted"] >= 2
    assert spill.std(axis=0).max() <= 0.02
    assert len(world.orders("deprovision")) <= 1, "of two that were started before anything was known"
    assert len(world.orders()) <= 4
    assert max(world.dataplane.served.values()) < CAPACITY
    assert world.controller.status().troubles == {}
    assert sum(row.action == "capacity" for row in world.store.rows) == 2, "each is said once"


def test_what_was_learned_is_decided_about_again(grown):
    world, _ = grown
    decisions = list(redone(world.recorded, lambda number: world.configs[int(number)]))
    assert [one for one in decisions if not one.is_same] == []
    assert "add" in {one.act for one in decisions}


def test_negative_control_what_was_learned_of_is_in_the_record(grown):
    lines = []
    for line in grown[0].recorded:
        raw = json.loads(line)
        for counts in raw.get("counters", {}).values():
            counts[4] = counts[3] * 1000  # no answer takes longer than another
        lines.append(json.dumps(raw))
    assert any(not one.is_same for one in redone(lines, lambda number: grown[0].configs[int(number)]))


def test_a_restart_and_a_reload_keep_what_was_learned():
    world = unknown()
    swing(world, 400)
    known = group(world)["capacity"]
    assert known is not None
    world.ticks(61, 60.0)
    world.restart()
    world.ticks(3, 60.0)
    assert group(world)["capacity"] == pytest.approx(known, rel=0.05)
    world.config = replace(world.config, max_shadows=3)
    requests.request_reload(world.store)
    world.ticks(3, 60.0)
    assert group(world)["capacity"] == pytest.approx(known, rel=0.05)
    assert world.controller.status().troubles == {}
    world.store.values["capacity:web"] = "{"
    world.restart()
    world.tick(60.0)
    assert group(world)["capacity_from"] == "unknown", "damaged: it is learned anew"


def saturated_pool() -> World:
    world = unknown(POOL)
    world.ticks(90, 60.0)
    assert world.orders() == []
    world.ticks(25, 140.0)
    return world


def test_unknown_and_saturated_one_shadow_is_ordered_and_no_more_until_it_is_known():
    world = saturated_pool()
    assert group(world)["capacity_from"] == "unknown"
    assert world.orders() == ["web-1-s1"]
    said = [row.reason for row in world.store.rows if row.action == "add"]
    assert "its capacity is not known, and at " in said[0]
    world.ticks(20, 90.0)
    assert world.orders() == ["web-1-s1"]
    assert "until it is" in group(world)["reason"]


def test_unknown_and_still_saturated_with_help_that_is_there_for_long_one_more_is_ordered():
    world = unknown(POOL)
    world.ticks(90, 60.0)
    world.ticks(25, 400.0)
    assert world.orders() == ["web-1-s1"]
    world.ticks(30, 400.0)
    assert len(world.orders()) >= 2


def test_negative_control_nobody_reacts_where_saturation_is_not_told(monkeypatch):
    monkeypatch.setattr(saturation, "_SLOW", 1e9)
    assert saturated_pool().orders() == []


def test_unknown_the_shadow_goes_when_load_is_what_the_live_one_has_served():
    world = saturated_pool()
    world.ticks(300, 40.0)
    assert world.states() == []
    assert world.orders("deprovision") == ["web-1-s1"]


def test_overload_is_learned_from_and_then_sized_with():
    world = unknown(POOL, max_per_endpoint=1)
    world.ticks(90, 60.0)
    world.provisioner.hang = True
    world.ticks(90, 140.0)
    assert group(world)["capacity_from"] == "learned"
    assert 85.0 <= group(world)["capacity"] <= 105.0


def test_a_flood_of_spoofed_syns_starts_nothing_where_no_capacity_is_known():
    world = unknown()
    world.ticks(100, 40.0)
    row = world.dataplane.rows["web-1"]
    for _ in range(60):
        for counted in ("offered", "flows"):
            world.dataplane.count[counted][row] += np.uint64(100_000)
        world.tick(40.0)
    assert world.orders() == []
    assert group(world)["capacity_from"] == "unknown"


def test_limits_ring_and_spill_follow_what_is_known():
    world = unknown(endpoints=2)
    world.ticks(5, 100.0)
    assert {one.limit for one in world.dataplane.members.values()} == {0}
    learned = world.controller._fleet.capacities
    learned.low[:], learned.high[:], learned.used[:] = [50.0, 150.0], [60.0, 160.0], [50.0, 150.0]
    world.ticks(15, 100.0)
    assert world.dataplane.members["web-1"].limit < world.dataplane.members["web-2"].limit
    assert world.dataplane.services["web"].ring == {"web-1": 0.5, "web-2": 1.5}


def telling(world: World) -> list[bool]:
    """Whose work the last tick would have learned from at a usual rate."""
    fleet = world.controller._fleet
    common = fleet._troubles.common(fleet.loads, world.controller._roster)
    return (fleet._telling(world.clock.now) & ~common).tolist()


def test_the_unhealthy_and_the_warming_are_not_learned_from():
    world = unknown(endpoints=2, warm_up_s=5.0)
    assert telling(world) == [False, False], "nothing is known of them yet"
    world.ticks(5, 100.0)
    assert telling(world) == [True, True]
    world.prober.dead.add("web-1")
    world.ticks(5, 100.0)
    assert telling(world) == [False, True]
    world.prober.dead.clear()
    world.ticks(4, 100.0)
    assert telling(world) == [False, True], "it warms up"
    world.ticks(20, 100.0)
    assert telling(world) == [True, True]


def test_a_common_cause_is_not_learned_from():
    world = unknown(given=CAPACITY)
    world.ticks(60, 40.0)
    world.controller._roster.order("web-1", "by hand", by_hand=True)
    world.until(ShadowState.READY, 60.0)
    world.ticks(40, 80.0)
    assert telling(world) == [True]
    world.dataplane.slower = 20.0
    world.ticks(35, 80.0)  # until then the rate is higher than is usual, too
    assert telling(world) == [False], "its shadow is as slow"


def test_what_is_stale_is_not_learned_from(monkeypatch):
    world = unknown()
    world.ticks(10, 60.0)
    taken = []
    monkeypatch.setattr(capacity.Capacities, "take", lambda self, work, *_: taken.append(work))
    world.dataplane.still = True
    world.ticks(20, 60.0)
    assert taken == []
    world.dataplane.still = False
    world.ticks(2, 60.0)
    assert [work.over_s for work in taken] == [21.0, 1.0]


def test_services_keep_what_is_configured_where_nothing_is_learned():
    given = config(endpoints=2)
    fleet = Fleet(given)
    assert fleet.service("web") == given.services["web"]
    assert isinstance(fleet.service("web"), model.Service)


def test_who_is_overloaded_from_the_first_on_gets_help_too():
    world = unknown(POOL)
    world.ticks(60, 150.0)
    assert world.orders()[:1] == ["web-1-s1"]
    world.ticks(120, 150.0)
    assert group(world)["capacity_from"] == "learned"
    assert group(world)["capacity"] <= 1.05 * CAPACITY
    assert group(world)["wanted"] >= 2
    assert world.dataplane.served["web-1"] < CAPACITY


def collapsing() -> World:
    """Asked for half more than it can serve from the first on; answers less than half of what it could."""
    world = unknown(POOL)
    world.dataplane.collapses = True
    world.ticks(90, 150.0)
    return world


def test_what_is_answered_in_a_collapse_is_no_capacity():
    world = collapsing()
    assert world.orders() == ["web-1-s1"]
    assert max(world.dataplane.served.values()) < CAPACITY


def test_negative_control_whoever_learns_from_a_collapse_starts_too_many(monkeypatch):
    monkeypatch.setattr(Ceilings, "collapsed", lambda self, rate, *_: np.zeros(len(rate), dtype=np.bool_))
    assert len(collapsing().orders()) > 2


@pytest.mark.parametrize("told", [True, False])
def test_a_collapse_after_better_times_does_not_lower_what_is_known(told, monkeypatch):
    """And without that being told apart it does."""
    if not told:
        monkeypatch.setattr(Ceilings, "collapsed", lambda self, rate, *_: np.zeros(len(rate), dtype=np.bool_))
    world = unknown()
    world.provisioner.hang = True
    swing(world, 400)
    known = group(world)["capacity"]
    world.dataplane.collapses = True
    world.ticks(150, 150.0)
    assert (group(world)["capacity"] >= 0.9 * known) == told
    assert world.controller._fleet.capacities.saturated.all(), "that it can do no more is seen all the same"
