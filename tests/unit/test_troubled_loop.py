# SPDX-License-Identifier: Apache-2.0
"""Slow answers, errors, floods and storms, in the loop of the controller and what it acts upon."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from controlplane import baseline, conditions, model
from controlplane.fleet import Fleet
from controlplane.ports import Counters
from controlplane.signs import Count
from tests.fakes import FakeDataplane
from tests.world import World, config

LEARNED, FOUND = 240, 30
DEMAND = 90.0
ENDPOINTS = ("web-1", "web-2", "web-3")

SHIFTS = {
    "RTT three times as long": (lambda plant, name: plant.rtt_us.update({name: 1500.0}), "RTT "),
    "responses three times as slow": (
        lambda plant, name: plant.response_us.update({name: 30_000.0}),
        "response time ",
    ),
    "a tenth is reset": (lambda plant, name: plant.resets.update({name: 0.1}), "of flows are reset"),
    "a fifth of SYNs gets no SYN-ACK": (
        lambda plant, name: plant.unanswered.update({name: 0.2}),
        "of SYNs get no SYN-ACK",
    ),
    "a tenth of requests is aborted": (
        lambda plant, name: plant.aborts.update({name: 0.1}),
        "of requests are aborted",
    ),
}
Befall = Callable[[FakeDataplane, str], None]


@pytest.fixture(scope="module")
def learned() -> World:
    """Three endpoints, a pool, whose requests are told, at a third of their capacity: all is normal."""
    return calm(config(endpoints=3, idle_s=300.0))


@pytest.fixture(scope="module")
def apart() -> World:
    """The same, each on its own."""
    whole = config(endpoints=3, idle_s=300.0)
    web = whole.services["web"]
    endpoints = (replace(web.endpoints[0], capacity=150.0), *web.endpoints[1:])
    return calm(replace(whole, services={"web": replace(web, endpoints=endpoints)}))


def calm(whole: model.Config) -> World:
    web = replace(whole.services["web"], requests=model.Requests.HTTP1)
    world = World(replace(whole, services={"web": web}))
    world.dataplane.noise = np.random.default_rng(7)
    shadows = [f"{name}-s{k}" for name in ENDPOINTS for k in (1, 2, 3, 4)]
    world.dataplane.response_us = dict.fromkeys([*ENDPOINTS, *shadows], 10_000.0)
    world.dataplane.resets = dict.fromkeys(ENDPOINTS, 0.005)
    world.ticks(LEARNED, DEMAND)
    assert world.orders() == []
    return world


def said(world: World, action: str) -> list[str]:
    return [row.reason for row in world.store.rows if row.action == action]


@pytest.mark.parametrize(("befall", "why"), SHIFTS.values(), ids=SHIFTS.keys())
def test_a_shift_of_one_endpoint_is_found_within_30_s_and_answered_by_one_shadow(learned, befall, why):
    world = copy.deepcopy(learned)
    befall(world.dataplane, "web-1")
    world.ticks(FOUND, DEMAND)
    assert world.orders() == ["web-1-s1"]
    assert any(why in reason and "without rising demand" in reason for reason in said(world, "add")), said(
        world, "add"
    )
    status = world.controller.status()
    assert status is not None
    group = status.services[0].groups[0]
    assert why in group.deviation_reason
    assert max(group.latency_deviation, group.error_deviation) >= 0.5
    world.ticks(60, DEMAND)
    assert world.orders() == ["web-1-s1"]
    assert world.dataplane.members["web-1"].spill >= 0.5, "its shadow helps"


@pytest.mark.parametrize(("befall", "why"), SHIFTS.values(), ids=SHIFTS.keys())
def test_a_shift_of_all_endpoints_is_a_common_cause_that_is_told_and_starts_nothing(learned, befall, why):
    world = copy.deepcopy(learned)
    for name in ENDPOINTS:
        befall(world.dataplane, name)
    world.ticks(FOUND, DEMAND)
    told = said(world, "common-cause")
    assert len(told) == 1
    assert "of 3 endpoints at once: " in told[0]
    assert why in told[0]
    world.ticks(120, DEMAND)
    assert world.orders() == []


@pytest.mark.parametrize(("demand", "is_common"), [(DEMAND, True), (2.5 * DEMAND, False)])
def test_slow_answers_of_all_are_a_common_cause_unless_demand_is_unusual(learned, demand, is_common):
    world = copy.deepcopy(learned)
    world.dataplane.response_us = dict.fromkeys(world.dataplane.response_us, 30_000.0)
    world.ticks(FOUND, demand)
    assert all(group.latency_deviation >= 0.5 for group in world.controller.status().services[0].groups)
    assert bool(said(world, "common-cause")) is is_common


def all_reset(world: World) -> World:
    for name in ENDPOINTS:
        world.dataplane.resets[name] = 0.1
    world.ticks(FOUND, DEMAND)
    return world


def test_who_is_on_his_own_is_helped_and_has_a_common_cause_with_others_all_the_same(apart):
    world = copy.deepcopy(apart)
    world.dataplane.resets["web-2"] = 0.1
    world.ticks(FOUND, DEMAND)
    assert world.orders() == ["web-2-s1"]
    together = all_reset(copy.deepcopy(apart))
    assert together.orders() == []
    assert len(said(together, "common-cause")) == 1


def test_negative_control_where_nobody_looks_at_the_others_each_is_cloned(apart, monkeypatch):
    monkeypatch.setattr(conditions, "_ALIKE", 2.0)
    assert len(all_reset(copy.deepcopy(apart)).orders()) == 3


def test_negative_control_where_error_signs_are_withheld_nothing_is_found(learned, monkeypatch):
    observe = Fleet.observe_counters

    def without(fleet: Fleet, before: Counters | None, after: Counters, *more: object) -> bool:
        def withheld(one: Counters) -> Counters:
            return replace(one, resets=np.zeros_like(one.resets))

        return observe(fleet, None if before is None else withheld(before), withheld(after), *more)

    monkeypatch.setattr(Fleet, "observe_counters", without)
    world = copy.deepcopy(learned)
    world.dataplane.resets["web-1"] = 0.1
    world.ticks(2 * FOUND, DEMAND)
    assert world.orders() == []


# ---- who fails outright ------------------------------------------------------------------------


def share_of(world: World, name: str) -> float:
    """Of new flows, in the last second."""
    return world.dataplane.served[name] / sum(world.dataplane.served.values())


def silent_from_the_first_minute_on() -> World:
    """One endpoint answers no SYN from the 20th second on, before anything is known of what is normal."""
    whole = config(endpoints=3, idle_s=300.0)
    world = World(whole)
    world.ticks(20, DEMAND)
    world.dataplane.unanswered["web-2"] = 1.0
    world.ticks(FOUND, DEMAND)
    return world


def silent_while_its_neighbours_are_slow(learned: World) -> World:
    """They take half as many flows again, and answer three times as late."""
    world = copy.deepcopy(learned)
    world.dataplane.response_us.update({"web-1": 40_000.0, "web-3": 40_000.0})
    world.ticks(2 * FOUND, DEMAND)
    world.dataplane.unanswered["web-2"] = 1.0
    world.ticks(FOUND, DEMAND)
    return world


def test_who_answers_nobody_loses_its_share_whatever_was_learned():
    assert share_of(silent_from_the_first_minute_on(), "web-2") < 0.06


def test_who_answers_nobody_has_no_common_cause_with_those_that_are_slow(learned):
    world = silent_while_its_neighbours_are_slow(learned)
    assert share_of(world, "web-2") < 0.06
    assert world.controller._fleet.loads.conditions.fails_outright.tolist() == [False, True, False]
    world.dataplane.unanswered.clear()
    world.ticks(240, DEMAND)
    assert share_of(world, "web-2") > 0.2, "it is well again"


@pytest.mark.parametrize("constant", ["_APART", "_OUTRIGHT"])
def test_negative_control_who_answers_nobody_goes_on_to_be_fed(learned, monkeypatch, constant):
    monkeypatch.setattr(conditions, constant, 2.0)
    if constant == "_OUTRIGHT":
        world = silent_from_the_first_minute_on()
    else:
        world = silent_while_its_neighbours_are_slow(learned)
    assert share_of(world, "web-2") > 0.3


def test_a_pool_makes_up_for_who_fails_outright(learned):
    """Two of three could not serve all of this; three could."""
    world = copy.deepcopy(learned)
    world.dataplane.unanswered["web-2"] = 1.0
    world.ticks(3 * FOUND, 2.6 * DEMAND)
    assert world.states().count(model.ShadowState.READY) >= 2
    assert share_of(world, "web-2") < 0.06
    members = len(world.states()) + 2
    assert world.controller.status().services[0].pool.capacity == pytest.approx(100.0 * members)


def test_shadows_go_while_one_fails_outright_and_the_others_do_not(learned):
    world = copy.deepcopy(learned)
    world.config = replace(
        world.config,
        services={
            name: replace(one, shadows=replace(one.shadows, idle_s=30.0))
            for name, one in world.config.services.items()
        },
    )
    world.restart()
    world.ticks(90, DEMAND)
    world.dataplane.unanswered["web-2"] = 1.0
    world.ticks(90, 2.6 * DEMAND)
    before = world.states().count(model.ShadowState.READY)
    assert before >= 2
    world.ticks(240, 0.9 * DEMAND)
    assert world.states().count(model.ShadowState.READY) < before
    assert world.controller._fleet.loads.conditions.fails_outright.tolist() == [False, True, False]


def test_of_no_flows_nothing_is_told_for_ever(learned):
    """Who failed, and gets no flows any more, fails no more; shadows of that time go."""
    world = copy.deepcopy(learned)
    world.dataplane.unanswered["web-2"] = 1.0
    world.ticks(2 * FOUND, 2.1 * DEMAND)
    assert world.states()
    world.ticks(900, 0.0)
    assert world.states() == []


def test_a_shadow_that_is_as_slow_has_a_common_cause_and_goes_again():
    world = World(config())
    world.ticks(LEARNED, 40.0)
    members = ("web-1", "web-1-s1", "web-1-s2")
    world.dataplane.rtt_us = dict.fromkeys(members, 5000.0)
    world.ticks(FOUND, 40.0)
    assert world.orders() == ["web-1-s1"]
    world.ticks(300, 40.0)
    assert world.orders() == ["web-1-s1"]
    told = said(world, "common-cause")
    assert len(told) == 1
    assert told[0].startswith("web-1: RTT ")
    assert "so with its shadows: a common cause, no more shadows" in told[0]
    assert world.states() == [], "it did not help"


# ---- floods ------------------------------------------------------------------------------------


def flooded(world: World, answers: float, lost: float) -> World:
    """After 100 000 forged SYNs/s for a minute, of which so many are answered, and of the clients' own so
    many are not; and two minutes more. Endpoints answer later meanwhile."""
    plant = world.dataplane
    plant.rtt_us = dict.fromkeys(ENDPOINTS, 2500.0)
    plant.unanswered = dict.fromkeys(["web-1"], lost)
    for _ in range(60):
        plant.flood("web-1", 100_000, answers)
        world.tick(DEMAND)
    plant.rtt_us, plant.unanswered = {}, {}
    world.ticks(120, DEMAND)
    return world


@pytest.mark.parametrize(("answers", "lost"), [(1.0, 0.0), (0.1, 0.5)], ids=["SYN cookies", "a full backlog"])
def test_a_flood_of_forged_syns_starts_nothing(learned, answers, lost):
    assert flooded(copy.deepcopy(learned), answers, lost).orders() == []


def test_negative_control_what_a_flood_looks_like_starts_a_shadow_where_it_is_not_seen_to_be_one(
    learned, monkeypatch
):
    monkeypatch.setattr(conditions, "_FLOOD", math.inf)
    assert flooded(copy.deepcopy(learned), 0.1, 0.5).orders() == ["web-1-s1"]


# ---- what is learned ---------------------------------------------------------------------------


def stormed(world: World) -> World:
    """Errors everywhere for a minute, and then three times as many connect; then it is over."""
    usual = dict(world.dataplane.resets)
    world.dataplane.resets = dict.fromkeys(ENDPOINTS, 0.4)
    world.ticks(60, DEMAND)
    world.ticks(30, 2.0 * DEMAND)
    world.dataplane.resets = usual
    world.ticks(120, DEMAND)
    return world


def learned_demand(world: World) -> list[float]:
    """Of all steps, those that count."""
    foresight = world.controller._fleet.views["web"].foresight
    assert foresight is not None
    return [one for one in foresight.past.since(0) if not math.isnan(one)]


def normal_resets(world: World) -> float:
    learned = world.controller._fleet.loads.conditions._baseline
    return float(learned.normal_count()[Count.RESETS, 0])


def test_a_storm_is_kept_but_nothing_is_learned_of_it(learned):
    world = stormed(copy.deepcopy(learned))
    assert max(learned_demand(world)) < 1.3 * DEMAND
    past = world.controller._fleet.views["web"].foresight.past
    assert max(one for one in past._demand if not math.isnan(one)) > 1.8 * DEMAND, "it is kept"
    assert normal_resets(world) < 0.01
    world.dataplane.resets["web-1"] = 0.1
    world.ticks(FOUND, DEMAND)
    assert any(order.startswith("web-1-s") for order in world.orders()), "the next one is found"


def test_negative_control_who_learns_of_a_storm_takes_it_for_normal(learned, monkeypatch):
    monkeypatch.setattr(conditions, "SUSPECT", 2.0)
    monkeypatch.setattr(conditions, "_STORM_LEAST", math.inf)
    monkeypatch.setattr(baseline, "SUSPECT", 2.0)
    monkeypatch.setattr(baseline, "_BETTER_S", math.inf)
    world = stormed(copy.deepcopy(learned))
    assert max(learned_demand(world)) > 1.8 * DEMAND
    assert normal_resets(world) > 0.01


def test_that_playbooks_run_slower_than_they_need_is_told_until_they_no_longer_do():
    world = World(config())
    world.ticks(2, 40.0)
    assert "playbooks" not in world.controller.status().troubles
    world.provisioner.slow = "playbooks run without the server: no memory"
    world.ticks(1, 40.0)
    assert "no memory" in world.controller.status().troubles["playbooks"]
    world.provisioner.slow = ""
    world.ticks(1, 40.0)
    assert "playbooks" not in world.controller.status().troubles
