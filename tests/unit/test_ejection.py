# SPDX-License-Identifier: Apache-2.0
"""Who is ejected, held down, checked at once and let in again: the whole loop on a fake clock."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane import health, model
from controlplane.model import ShadowState
from controlplane.record import redone
from tests.world import World, config, grown


def with_probe(endpoints: int, **probe: object) -> model.Config:
    made = config(endpoints=endpoints, hosts=())
    service = made.services["web"]
    return replace(made, services={"web": replace(service, probe=replace(service.probe, **probe))})


def down(world: World) -> set[str]:
    return {name for name, one in world.dataplane.members.items() if one.down}


def said(world: World, action: str) -> list[str]:
    return [row.reason for row in world.store.rows if row.action == action]


def sample(world: World, name: str, endpoint: str) -> float | None:
    found = [s.value for s in world.metrics.samples if s.name == name and s.labels["endpoint"] == endpoint]
    return found[0] if found else None


def die(world: World, *names: str, demand: float = 60.0) -> None:
    """One after the other."""
    for name in names:
        world.prober.dead.add(name)
        world.ticks(4, demand)


def flap(world: World, name: str, times: int) -> None:
    for _ in range(times):
        die(world, name)
        world.prober.dead.clear()
        world.ticks(3, 60.0)


# ---- max_ejected ----------------------------------------------------------------------------------


def half_fail() -> World:
    world = World(with_probe(4, max_ejected=0.5))
    world.ticks(5, 60.0)
    die(world, "web-3", "web-2", "web-4")
    return world


def test_no_more_than_its_share_is_ejected_and_who_waits_is_told():
    world = half_fail()
    assert down(world) == {"web-3", "web-2"}
    assert set(world.dataplane.services["web"].ring) == {"web-1", "web-4"}
    assert not world.controller.status().services[0].fail_open
    status = {group.name: group.ejection for group in world.controller.status().services[0].groups}
    assert status["web-4"].not_ejected
    assert status["web-4"].reason == "fails: refused; not ejected, as max_ejected allows no more"
    assert status["web-2"].ejected
    assert status["web-1"] is None
    assert [sample(world, "endpoint_not_ejected", name) for name in ("web-4", "web-2", "web-1")] == [
        1,
        0,
        None,
    ]
    assert sample(world, "endpoint_ejected", "web-2") == 1
    assert len(said(world, "not-ejected")) == 1
    world.prober.dead.remove("web-3")
    world.ticks(3, 60.0)
    assert down(world) == {"web-2", "web-4"}, "who failed next was next"
    assert said(world, "not-ejected")[-1] == "web-4: is ejected now, unless nobody is well"
    world.prober.dead.add("web-3")
    world.prober.dead.add("web-1")
    world.ticks(4, 60.0)
    assert down(world) == set(), "nobody is well: it fails open"
    assert world.controller.status().services[0].fail_open


def test_negative_control_without_the_share_all_that_fail_are_ejected(monkeypatch):
    hit = []
    monkeypatch.setattr(health.math, "floor", lambda value: hit.append(value) or 99)
    world = half_fail()
    assert hit
    assert down(world) == {"web-3", "web-2", "web-4"}


# ---- hold-down ------------------------------------------------------------------------------------


def flapped() -> World:
    world = World(with_probe(3))
    world.ticks(5, 60.0)
    flap(world, "web-2", 1)
    assert down(world) == set(), "the first time it is back at once"
    flap(world, "web-2", 1)
    return world


def test_who_flaps_is_held_down_comes_back_slowly_and_is_not_held_where_it_is_needed():
    world = flapped()
    assert down(world) == {"web-2"}
    ejection = world.controller.status().services[0].groups[1].ejection
    assert (ejection.ejected, ejection.flaps) == (True, 2)
    assert 0 < ejection.held_s < 10
    assert ejection.reason.startswith("held down for ")
    assert world.controller.status().services[0].groups[1].up is False
    assert any("it went down 2 times, and is held down for 10 s" in one for one in said(world, "health"))
    world.ticks(7, 60.0)
    assert down(world) == {"web-2"}
    shares = []
    for _ in range(6):
        world.tick(60.0)
        shares.append(world.dataplane.members["web-2"].spill)
    assert down(world) == set()
    assert shares[0] > 0.5 or shares[1] > 0.5, "its neighbours take most while it warms up"
    assert shares[-1] == 0.0
    assert said(world, "hold-down") == ["web-2: no longer held down"]
    flap(world, "web-2", 1)
    assert down(world) == {"web-2"}
    die(world, "web-1", "web-3")
    assert down(world) == {"web-1", "web-3"}, "nobody else is healthy: it is needed"


def test_negative_control_without_hold_down_it_is_back_at_once(monkeypatch):
    hit = []
    monkeypatch.setattr(health, "hold_down_s", lambda flaps: hit.append(flaps) or 0.0)
    assert down(flapped()) == set()
    assert hit == [1, 2]


# ---- passive signs --------------------------------------------------------------------------------


def test_signs_of_trouble_have_members_checked_at_once_and_eject_nobody():
    world = World(with_probe(3))
    world.ticks(30, 90.0)
    assert world.prober.checked == []
    world.dataplane.unanswered["web-2"] = 0.9
    world.ticks(2, 90.0)
    assert set(world.prober.checked) == {"web-2"}
    world.dataplane.unanswered.clear()
    world.prober.checked.clear()
    world.dataplane.resets["web-3"] = 0.9
    world.ticks(20, 90.0)
    assert set(world.prober.checked) == {"web-3"}
    assert down(world) == set(), "probes are answered"
    world.prober.dead.add("web-3")
    world.ticks(4, 90.0)
    assert down(world) == {"web-3"}
    world.prober.checked.clear()
    world.ticks(3, 90.0)
    assert world.prober.checked == [], "it is known to be down"


def test_checks_go_to_the_port_that_is_given_or_each_members_own():
    world = World(with_probe(2, port=9000))
    world.ticks(2, 20.0)
    assert [port for _, port, _ in world.prober.targets.values()] == [9000, 9000]
    world = World(with_probe(2))
    world.ticks(2, 20.0)
    assert [port for _, port, _ in world.prober.targets.values()] == [8080, 8080]


def test_who_can_not_be_checked_is_told_as_a_trouble_and_ejected_by_nobody():
    world = World(with_probe(2))
    world.ticks(5, 20.0)
    world.prober.silent = True
    world.prober.unable["web-2"] = "source: 192.0.2.7: Cannot assign requested address"
    world.ticks(30, 20.0)
    assert world.controller.status().troubles["probes"].startswith("web-2: source: 192.0.2.7")
    assert down(world) == set()


def test_shadows_are_looked_at_as_well():
    world = grown()
    world.ticks(5, 110.0)
    world.dataplane.resets["web-1-s1"] = 0.9
    world.ticks(2, 110.0)
    assert set(world.prober.checked) == {"web-1-s1"}


# ---- shadows --------------------------------------------------------------------------------------


def test_a_shadow_that_was_down_is_let_in_slowly():
    world = grown(warm_up_s=5.0)
    world.ticks(10, 110.0)
    world.prober.dead.add("web-1-s1")
    world.ticks(4, 110.0)
    assert world.dataplane.members["web-1-s1"].down
    world.prober.dead.clear()
    shares = []
    for _ in range(9):
        world.tick(110.0)
        shares.append(world.dataplane.members["web-1"].slots.get("web-1-s1", 0.0))
    assert 0.0 < next(share for share in shares if share) <= 0.4
    assert shares[-1] == 1.0
    assert shares == sorted(shares)


def false_alarm() -> World:
    """Probes fail, and clients are served all the same."""
    world = grown()
    world.ticks(10, 110.0)
    world.prober.dead = {"web-1", "web-1-s1"}
    for _ in range(90):
        world.clock.advance(1.0)
        world.dataplane.offer("web", 110.0, set())
        world.controller.tick()
    return world


def test_where_all_fail_shadows_get_flows_too_and_are_not_given_up_while_they_answer():
    world = false_alarm()
    assert world.controller.status().services[0].fail_open
    assert down(world) == set()
    assert world.dataplane.members["web-1"].spill > 0.0
    assert world.states() == [ShadowState.READY]
    assert world.orders("deprovision") == []
    assert "(web-1, web-1-s1)" in said(world, "fail-open")[0]
    world.dataplane.unanswered = dict.fromkeys(world.prober.dead, 1.0)
    world.ticks(90, 110.0)
    assert world.orders("deprovision") == ["web-1-s1"], "it answers nobody: another one may help"


def test_negative_control_a_shadow_that_is_not_asked_what_it_answers_is_given_up(monkeypatch):
    monkeypatch.setattr("controlplane.fleet.Fleet.answers_clients", lambda *_: False)
    assert false_alarm().orders("deprovision") != []


# ---- the record -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recorded() -> World:
    configuration = with_probe(4, max_ejected=0.5)
    service = configuration.services["web"]
    service = replace(service, shadows=replace(service.shadows, hosts=("host-a", "host-b")))
    world = World(replace(configuration, services={"web": service}), records=True)
    world.ticks(25, 200.0)
    flap(world, "web-2", 2)
    die(world, "web-3", "web-4", "web-1", demand=330.0)
    world.ticks(20, 330.0)
    return world


def differing(world: World) -> list[object]:
    found = list(redone(world.recorded, lambda text: world.configs[int(text)]))
    assert len(found) > 20
    return [one for one in found if not one.is_same]


def test_a_record_gives_the_same_decisions_again(recorded):
    assert differing(recorded) == []


def test_negative_control_without_ejections_in_the_replay_decisions_differ(recorded, monkeypatch):
    monkeypatch.setattr("controlplane.record.Fleet.judge_health", lambda *_: False)
    assert differing(recorded) != []
