# SPDX-License-Identifier: Apache-2.0
"""Live endpoints that are slow or failing while others are not: they get fewer new flows."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane import penalties
from controlplane.conditions import Conditions
from controlplane.fleet import Fleet
from controlplane.loads import Loads
from controlplane.penalties import Penalties
from tests.unit.test_troubled_loop import DEMAND, ENDPOINTS, FOUND, calm, said
from tests.world import World, config

ILL = "web-1"
MOVED = 30
"""Seconds until the ring has followed."""


@pytest.fixture(scope="module")
def learned() -> World:
    """Three endpoints at a third of their capacity, which may have no shadows."""
    return calm(config(endpoints=3, max_per_endpoint=0))


def share(world: World) -> float:
    return world.dataplane.served[ILL] / sum(world.dataplane.served.values())


def failing(world: World) -> World:
    world.dataplane.resets[ILL] = 0.4
    world.ticks(FOUND + MOVED, DEMAND)
    return world


def slow(world: World) -> World:
    world.dataplane.response_us[ILL] = 50_000.0
    world.ticks(FOUND + MOVED, DEMAND)
    return world


def test_who_fails_more_than_is_normal_loses_as_much_of_its_share(learned):
    world = failing(copy.deepcopy(learned))
    assert share(world) == pytest.approx(0.6 / 2.6, abs=0.05)
    reason = said(world, "penalty")[0]
    assert "of flows are reset" in reason
    assert "to its neighbours" in reason


def test_who_is_slow_has_as_many_requests_waiting_as_before(learned):
    world = copy.deepcopy(learned)
    before = share(world) * 10_000
    assert share(slow(world)) * 50_000 < 1.6 * before


def test_negative_control_without_penalties_more_fail_and_more_wait(learned, monkeypatch):
    monkeypatch.setattr(Penalties, "take", lambda *_: None)
    world = failing(copy.deepcopy(learned))
    assert world.controller.status().services[0].groups[0].error_deviation >= 0.5, "it was found"
    assert share(world) > 0.3
    assert share(slow(copy.deepcopy(learned))) > 0.3


def test_its_share_comes_back_step_by_step_when_it_is_well(learned):
    world = failing(copy.deepcopy(learned))
    least, changes = share(world), len(said(world, "ring"))
    world.dataplane.resets[ILL] = 0.005
    world.ticks(int(penalties._WELL_S), DEMAND)
    assert share(world) < least + 0.03, "not at once"
    world.ticks(150, DEMAND)
    assert share(world) == pytest.approx(1 / 3, abs=0.03)
    assert said(world, "penalty")[-1] == f"{ILL}: it has its usual share of new flows again"
    changes = len(said(world, "ring")) - changes
    assert changes <= 8
    world.ticks(60, DEMAND)
    assert len(said(world, "penalty")) == 2


def test_it_loses_its_share_at_once_though_the_ring_has_just_moved_and_gets_it_back_when_that_may_move(
    learned,
):
    world = copy.deepcopy(learned)
    world.dataplane.resets[ILL] = 0.4
    paused = world.controller._ring_changed_s
    for _ in range(FOUND):
        paused["web"] = world.clock.now
        world.ticks(1, DEMAND)
    least = share(world)
    assert least == pytest.approx(0.6 / 2.6, abs=0.05)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Fleet, "fitness", lambda _, those, now_s: {n: 0.3 if n == ILL else 1.0 for n in those})
        for _ in range(5):
            paused["web"] = world.clock.now
            world.ticks(1, DEMAND)
        assert share(world) == pytest.approx(least, abs=0.01), "that is no news of its penalty"
    world.dataplane.resets[ILL] = 0.005
    for _ in range(150):
        paused["web"] = world.clock.now
        world.ticks(1, DEMAND)
    assert ILL not in world.controller._fleet.kept
    assert share(world) <= least + 0.01


def overloaded(world: World, demand: float) -> int:
    """One of them is slow until four seconds after that was found. For how long it loses some, at this
    demand."""
    world.dataplane.response_us[ILL] = 50_000.0
    while ILL not in world.controller._fleet.kept:
        world.ticks(1, demand)
    world.ticks(4, demand)
    world.dataplane.response_us[ILL] = 10_000.0
    seconds = 4
    while ILL in world.controller._fleet.kept:
        world.ticks(1, demand)
        seconds += 1
    return seconds


def test_who_was_slow_by_more_demand_than_usual_gets_its_share_back_soon_once(learned):
    world = copy.deepcopy(learned)
    assert overloaded(world, 1.6 * DEMAND) <= 30
    assert overloaded(world, 1.6 * DEMAND) > 60, "again it is no chance"
    assert overloaded(copy.deepcopy(learned), DEMAND) > 60, "at usual demand it is ill"


def test_negative_control_where_what_it_is_asked_for_is_not_seen_it_loses_for_long(learned, monkeypatch):
    monkeypatch.setattr(Conditions, "is_asked_more", lambda *_: False)
    assert overloaded(copy.deepcopy(learned), 1.6 * DEMAND) > 60


def test_who_is_slow_again_as_it_gets_its_share_back_gets_it_slowly(learned):
    world = copy.deepcopy(learned)
    world.dataplane.response_us[ILL] = 50_000.0
    while ILL not in world.controller._fleet.kept:
        world.ticks(1, 1.6 * DEMAND)
    world.ticks(4, 1.6 * DEMAND)
    kept = world.controller._fleet.kept
    least = kept[ILL]
    world.dataplane.response_us[ILL] = 10_000.0
    while kept[ILL] == least:
        world.ticks(1, 1.6 * DEMAND)
    world.dataplane.response_us[ILL] = 50_000.0
    world.ticks(10, 1.6 * DEMAND)
    world.dataplane.response_us[ILL] = 10_000.0
    world.ticks(40, 1.6 * DEMAND)
    assert ILL in world.controller._fleet.kept


def test_what_the_others_have_no_room_for_stays(learned):
    world = copy.deepcopy(learned)
    world.ticks(60, 205.0)
    world.dataplane.response_us[ILL] = 50_000.0
    world.ticks(FOUND + MOVED, 205.0)
    assert world.controller.status().services[0].groups[0].latency_deviation >= 0.5
    others = (1.0 - share(world)) * 205.0
    assert others < 2 * 80.0, "two of 100 flows/s each, a fifth of it kept free"


def test_what_fails_is_not_kept_for_want_of_room_nor_given_back_because_others_are_ill_too(learned):
    world = copy.deepcopy(learned)
    world.ticks(60, 205.0)
    world.dataplane.resets[ILL] = 0.95
    world.ticks(FOUND + MOVED, 205.0)
    assert share(world) < 0.1
    for name in ("web-2", "web-3"):
        world.dataplane.response_us[name] = 50_000.0
    world.ticks(120, 205.0)
    assert all(group.latency_deviation >= 0.5 for group in world.controller.status().services[0].groups[1:])
    assert share(world) < 0.1


def test_at_most_half_lose_some(learned):
    world = failing(copy.deepcopy(learned))
    world.dataplane.resets[ILL] = 0.005
    world.dataplane.resets["web-2"] = 0.4
    while ILL in world.controller._fleet.kept:
        assert "web-2" not in world.controller._fleet.kept
        world.ticks(1, DEMAND)
    world.ticks(5, DEMAND)
    assert "web-2" in world.controller._fleet.kept, "then it is its turn"


def test_what_all_have_is_no_reason_to_take_from_anybody(learned):
    world = copy.deepcopy(learned)
    for name in ENDPOINTS:
        world.dataplane.resets[name] = 0.4
    world.ticks(FOUND + MOVED, DEMAND)
    assert share(world) == pytest.approx(1 / 3, abs=0.02)
    assert said(world, "penalty") == []


def test_a_restart_gives_nothing_back_to_who_is_still_ill(learned):
    world = failing(copy.deepcopy(learned))
    least = share(world)
    world.restart()
    for _ in range(MOVED):
        world.ticks(1, DEMAND)
        assert share(world) < least + 0.03
    assert len(said(world, "penalty")) == 1


def test_what_is_no_penalty_is_refused():
    for text in ("", "[]", "{", '{"web-1": "x"}', '{"web-1": [0.5]}'):
        with pytest.raises(ValueError, match="penalties"):
            Penalties(["web-1"]).recall(text)
    one = Penalties(["web-1"])
    one.recall('{"web-1": 7, "web-2": 0.5}')
    assert one.kept == {}


def with_a_shadow() -> World:
    """Two endpoints, each on its own, the first of which becomes slow."""
    whole = config(endpoints=2, idle_s=300.0)
    web = whole.services["web"]
    apart = (replace(web.endpoints[0], weight=2.0), *web.endpoints[1:])
    world = calm(replace(whole, services={"web": replace(web, endpoints=apart)}))
    world.dataplane.response_us[ILL] = 50_000.0
    world.ticks(FOUND + MOVED, DEMAND)
    return world


def test_its_shadow_takes_what_it_loses_and_its_neighbour_seems_to_have_no_more_demand():
    world = with_a_shadow()
    assert world.orders() == [f"{ILL}-s1"]
    group = world.controller.status().services[0].groups[0]
    assert group.penalty > 0.7
    assert group.spill > 0.75, "of the group's flows, of which the shadow alone would take half"
    assert 0.5 * 4 / 3 < group.ring_weight < 4 / 3, "and the group keeps what the shadow serves"


def test_negative_control_where_what_the_ring_moves_counts_as_demand_the_neighbour_gets_a_shadow(monkeypatch):
    monkeypatch.setattr(Loads, "_rescale", lambda *_: None)
    world = with_a_shadow()
    assert said(world, "penalty") != []
    assert "web-2-s1" in world.orders()


@settings(max_examples=100, deadline=None)
@given(
    need=st.floats(0.0, 1e6),
    others=st.floats(0.0, 1e6),
    own_share=st.floats(0.01, 0.99),
    kept=st.floats(0.0, 1.0),
)
def test_others_get_no_more_than_they_can_be_counted_on_for(need, others, own_share, kept):
    least = penalties.least_kept(need, others, own_share)
    moved = need * own_share * (1.0 - max(least, kept))
    assert need * (1.0 - own_share) + moved <= max(others, need * (1.0 - own_share)) + 1e-6
