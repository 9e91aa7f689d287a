# SPDX-License-Identifier: Apache-2.0
"""Shadows that stand by: kept ready, given nothing, and members in the tick in which one more is wanted."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane import config as config_room
from controlplane import model, standbys, weights
from controlplane.model import Mode, Shadow, ShadowState
from controlplane.record import redone
from tests.world import World, config

CALM, MUCH = 40.0, 110.0


def standing_by(world: World) -> list[Shadow]:
    return [one for one in world.store.records.values() if one.standby]


def members(world: World) -> list[Shadow]:
    return [one for one in world.store.records.values() if not one.standby]


def kept(world: World, count: int = 1, ticks: int = 30) -> World:
    for _ in range(ticks):
        ready = [one for one in standing_by(world) if one.state is ShadowState.READY]
        if len(ready) == count:
            return world
        world.tick(CALM)
    raise AssertionError(f"{standing_by(world)}: {world.store.rows[-3:]}")


def reserve(**settings: object) -> World:
    return kept(World(config(standby=1, **settings)))


def ticks_until_served(world: World) -> int:
    """From the tick in which one more is wanted until a shadow is given new flows."""
    for _ in range(60):
        if members(world):
            break
        world.tick(MUCH)
    (wanted,) = members(world)
    for ticks in range(20):
        slots = world.dataplane.members["web-1"].slots
        if slots.get(wanted.name, 0.0) > 0.0 and world.dataplane.members["web-1"].spill > 0.0:
            return ticks
        world.tick(MUCH)
    raise AssertionError("nobody serves")


def test_one_stands_by_installed_and_healthy_without_a_new_flow():
    world = reserve()
    world.ticks(10, CALM)
    (one,) = standing_by(world)
    assert (one.state, one.parent, one.by_hand) == (ShadowState.READY, "web-1", False)
    assert one.name in world.dataplane.members
    assert world.dataplane.members["web-1"].slots == {}
    assert world.dataplane.served[one.name] == 0.0
    (group,) = world.controller.status().services[0].groups
    assert [shadow.state for shadow in group.shadows] == ["standby"]
    assert group.wanted == 1
    labels = [sample.labels for sample in world.metrics.samples if sample.name == "shadows"]
    assert [one["state"] for one in labels] == ["standby"]


def test_it_serves_in_the_tick_that_wants_one_more_and_another_is_made_behind_it():
    world = reserve()
    (one,) = standing_by(world)
    assert ticks_until_served(world) == 0
    assert [member.name for member in members(world)] == [one.name]
    assert 0.0 < world.dataplane.members["web-1"].slots[one.name] <= 1.0
    world.ticks(8, MUCH)
    assert world.dataplane.served[one.name] > 0.0
    assert world.dataplane.members["web-1"].slots[one.name] == 1.0
    (behind,) = standing_by(world)
    assert behind.name != one.name
    assert behind.state is ShadowState.READY
    assert len(world.orders()) == 2


def test_negative_control_where_none_is_promoted_flows_wait_for_a_new_one(monkeypatch):
    monkeypatch.setattr(standbys, "best", lambda those: None)
    world = reserve()
    assert ticks_until_served(world) >= 3
    assert not any(one.standby for one in members(world))
    assert len(world.orders()) == 2, "the fault hit: a second one was made"


def test_negative_control_one_that_is_weighed_like_others_gets_flows(monkeypatch):
    whole = weights.shadow_weight
    monkeypatch.setattr(
        weights,
        "shadow_weight",
        lambda shadow, *rest: whole(replace(shadow, standby=False), *rest),
    )
    world = reserve()
    world.ticks(3, CALM)
    (one,) = standing_by(world)
    assert world.dataplane.members["web-1"].slots == {one.name: 1.0}


def test_the_policy_sees_the_same_with_and_without_one():
    def verdicts(standby: int) -> list[str]:
        world = World(config(standby=standby))
        told = []
        for _ in range(30):
            world.tick(CALM, noisy=False)
            told.append(world.controller.status().services[0].groups[0].reason)
        return told

    assert verdicts(1) == verdicts(0)


def test_what_is_recorded_with_standbys_is_decided_again():
    world = World(config(standby=1), records=True)
    kept(world)
    world.ticks(25, MUCH)
    world.ticks(40, CALM)
    assert any(row.action == "standby" for row in world.store.rows)
    assert any("has stood by" in row.reason for row in world.store.rows)
    found = list(redone(world.recorded, lambda text: world.configs[int(text)]))
    assert found
    assert all(one.is_same for one in found)


def test_it_survives_a_restart():
    world = reserve()
    before = standing_by(world)
    world.restart()
    world.ticks(5, CALM)
    assert [one.name for one in standing_by(world)] == [before[0].name]
    assert world.orders() == []
    assert ticks_until_served(world) == 0


@pytest.mark.parametrize("fault", ["dead", "its run fails"])
def test_one_that_dies_or_fails_is_made_again(fault):
    if fault == "dead":
        world = reserve()
        (one,) = standing_by(world)
        world.prober.dead.add(one.name)
        for _ in range(90):
            world.tick(CALM)
            if standing_by(world)[0].state is not ShadowState.READY:
                break
        assert standing_by(world)[0].attempts == 1
        world.prober.dead.clear()
    else:
        world = World(config(standby=1))
        world.provisioner.fail = True
        world.ticks(6, CALM)
        assert standing_by(world)[0].state is ShadowState.FAILED
        assert members(world) == []
        world.provisioner.fail = False
    kept(world, ticks=60)
    assert len(standing_by(world)) == 1


def test_one_that_is_down_is_not_promoted():
    world = reserve()
    (one,) = standing_by(world)
    world.prober.dead.add(one.name)
    world.ticks(6, CALM)
    for _ in range(60):
        if members(world):
            break
        world.tick(MUCH)
    assert members(world)[0].name != one.name


@pytest.mark.parametrize("mode", [Mode.ADVISE, Mode.FORECAST_ONLY, "frozen"])
def test_none_is_made_where_nothing_may_be(mode):
    world = World(config(standby=1, mode=Mode.ACT if mode == "frozen" else mode))
    if mode == "frozen":
        world.store.put("frozen", "1")
    world.ticks(10, CALM)
    assert world.orders() == []


def test_of_a_live_endpoint_that_dies_it_takes_the_flows_at_once():
    world = reserve()
    (one,) = standing_by(world)
    world.prober.dead.add("web-1")
    world.ticks(4, CALM)
    assert world.dataplane.members["web-1"].spill == 1.0
    assert one.name in world.dataplane.members["web-1"].slots
    assert [member.name for member in members(world)] == [one.name]


def test_where_there_is_no_room_it_is_said_and_others_are_not_kept_out():
    whole = config(endpoints=2, standby=1, max_per_service=1)
    world = kept(World(whole))
    world.ticks(3, CALM)
    (one,) = standing_by(world)
    groups = {group.name: group for group in world.controller.status().services[0].groups}
    (lacking,) = groups.keys() - {one.parent}
    assert groups[lacking].standby_lacks == "its service web has 1 shadows, max_per_service"
    assert any(row.subject == lacking and "no shadow stands by" in row.reason for row in world.store.rows)


def test_who_needs_a_place_gets_that_of_one_that_stands_by_for_another():
    whole = config(endpoints=2, standby=1, hosts=("host-a",))
    world = kept(World(replace(whole, hosts={"host-a": model.Host("host-a", slots=2)})), 2)
    roster = world.controller._roster
    assert roster.order("web-1", "shadow web-1 +1: much")
    assert not roster.order("web-1", "shadow web-1 +1: more")
    assert "web-2-s1 makes room" in world.store.rows[-1].reason
    (leaving,) = standing_by(world)
    assert (leaving.parent, leaving.state) == ("web-2", ShadowState.REMOVING)
    world.ticks(3, CALM)
    assert roster.order("web-1", "shadow web-1 +1: more")


def drained_again(world: World) -> None:
    """The only one that may be there was wanted, and then no longer."""
    for _ in range(60):
        if members(world):
            break
        world.tick(MUCH)
    assert standing_by(world) == []
    for _ in range(120):
        world.tick(CALM)
        if not members(world):
            return
    raise AssertionError(members(world))


def test_a_member_whose_drain_is_over_stands_by_where_one_lacks():
    world = reserve(max_per_service=1)
    drained_again(world)
    world.ticks(3, CALM)
    (one,) = standing_by(world)
    assert (one.name, one.state) == ("web-1-s1", ShadowState.READY)
    assert world.orders("deprovision") == []
    installed = world.dataplane.members[one.name]
    assert (installed.draining, installed.evicted) == (False, 0.0)
    assert ticks_until_served(world) == 0


def test_negative_control_whose_drain_is_over_is_removed(monkeypatch):
    monkeypatch.setattr(standbys, "may_retire", lambda shadow: False)
    world = reserve(max_per_service=1)
    drained_again(world)
    world.ticks(3, CALM)
    assert world.orders("deprovision") == ["web-1-s1"]


def test_whose_flows_were_cut_does_not_stand_by():
    ended = Shadow("web-1-s1", "web", "web-1", "host-a", "netns", ShadowState.DRAINING, 1.0, 2.0)
    ended = replace(ended, healthy_unix_s=1.5)
    assert standbys.may_retire(ended)
    assert not standbys.may_retire(replace(ended, evicted=0.4))
    assert not standbys.may_retire(replace(ended, by_hand=True))
    assert not standbys.may_retire(replace(ended, state=ShadowState.FAILED))


def test_fewer_by_reload_go():
    world = reserve()
    world.controller.reconfigure(config(standby=0))
    world.ticks(6, CALM)
    assert standing_by(world) == []
    assert world.orders("deprovision") == ["web-1-s1"]


def test_at_most_two_are_made_at_once():
    world = World(config(endpoints=5, standby=1))
    world.provisioner.hang = True
    world.ticks(5, CALM)
    assert len(world.orders()) == 2


def test_its_price_is_told():
    whole = config(standby=1)
    hosts = {name: replace(one, price_per_hour=0.25) for name, one in whole.hosts.items()}
    world = kept(World(replace(whole, hosts=hosts)))
    world.ticks(1, CALM)
    service = world.controller.status().services[0]
    assert (service.cost_per_hour, service.standbys_cost_per_hour) == (0.25, 0.25)
    ticks_until_served(world)
    service = world.controller.status().services[0]
    assert service.standbys_cost_per_hour == service.cost_per_hour - 0.25


YAML = """
interfaces: [eth1]
hosts: {a: {}}
services:
  web:
    vip: 198.51.100.10
    port: 80
    endpoints: {web-1: {address: 10.0.1.10, port: 8080}}
    shadows: {%s}
"""


@pytest.mark.parametrize(
    ("shadows", "problem"),
    [
        ("standby: 5, hosts: [a]", "services.web.shadows.standby: 5 is more than max_per_endpoint, 4; "),
        ("standby: 1", "services.web.shadows.standby: 1 have no host to be on; "),
    ],
)
def test_what_can_not_be_is_refused(shadows, problem):
    with pytest.raises(config_room.ConfigError, match=problem):
        config_room.parse(YAML % shadows)
    assert config_room.parse(YAML % "standby: 2, hosts: [a]").services["web"].shadows.standby == 2
