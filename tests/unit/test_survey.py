# SPDX-License-Identifier: Apache-2.0
"""No orphans: what exists and what is recorded are brought together, whatever was lost."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import pytest

from controlplane import model, roster
from controlplane.model import ShadowState
from controlplane.ports import DamagedRecordsError
from tests.world import World, config, grown


def found(name: str = "web-1-s1", host: str = "host-b", parent: str = "web-1") -> model.Found:
    address = IPv4Address("10.9.0.1") + int(name.rsplit("s", 1)[1])
    return model.Found(name, host, "netns", "web", parent, address, 8080)


def lay(world: World, one: model.Found) -> None:
    """It exists, and nobody remembers it."""
    world.provisioner.exists.add(one.shadow)
    world.provisioner.found[one.shadow, one.host] = one


def test_a_lost_store_loses_no_shadow_and_no_flow():
    world = grown()
    world.ticks(10, 110.0)
    at = world.store.records["web-1-s1"].host
    world.store.records.clear()
    world.restart()
    lost = world.dataplane.lost
    world.ticks(20, 110.0)
    assert world.orders() == []
    assert world.states() == [ShadowState.READY]
    assert world.store.records["web-1-s1"].host == at
    assert world.dataplane.lost == lost
    assert world.dataplane.served["web-1-s1"] > 20
    world.ticks(150, 20.0)
    assert world.provisioner.exists == set()
    assert list(world.dataplane.members) == ["web-1"]


def test_negative_control_without_a_survey_its_host_is_never_known_and_it_is_not_removed(monkeypatch):
    world = grown()
    world.store.records.clear()
    world.restart()
    monkeypatch.setattr(world.provisioner, "surveyed", lambda: None)
    world.ticks(200, 20.0)
    assert world.provisioner.exists == {"web-1-s1"}


def test_an_orphan_that_no_map_and_no_record_names_is_adopted_and_goes_when_it_is_not_needed():
    world = World(config())
    lay(world, found())
    world.ticks(8, 20.0)
    assert world.states() == [ShadowState.READY]
    world.ticks(60, 20.0)
    assert world.provisioner.exists == set()


def test_an_orphan_of_an_endpoint_that_nobody_configured_is_removed_where_it_is():
    world = World(config())
    lay(world, found("old-s1", parent="old"))
    world.ticks(8, 20.0)
    assert world.provisioner.exists == set()
    assert world.orders("deprovision") == ["old-s1"]


def test_an_orphan_that_appears_later_is_found_by_a_later_survey():
    world = World(config())
    world.ticks(10, 20.0)
    lay(world, found("old-s1", parent="old"))
    world.ticks(310, 20.0)
    assert world.provisioner.exists == set()
    assert world.provisioner.surveys == 2


def test_a_record_whose_shadow_no_longer_exists_fails_and_is_made_again_when_needed():
    world = grown()
    world.prober.dead.add("web-1-s1")
    world.provisioner.found.clear()
    world.provisioner.exists.clear()
    world.restart()
    world.prober.dead.add("web-1-s1")
    world.ticks(4, 110.0)
    assert world.store.records["web-1-s1"].reason.startswith("no longer exists on host-")
    world.prober.dead.clear()
    world.ticks(30, 110.0)
    assert world.provisioner.exists == {"web-1-s1"}
    assert world.states() == [ShadowState.READY]


def test_one_that_answers_is_not_given_up_because_a_list_lacks_it():
    world = grown()
    world.provisioner.found.clear()
    world.restart()
    world.ticks(20, 110.0)
    assert world.states() == [ShadowState.READY]
    assert any(row.action == "doubt" for row in world.store.rows)


def test_a_host_that_could_not_be_asked_is_unknown_and_not_empty():
    world = grown()
    host = world.store.records["web-1-s1"].host
    world.restart()
    world.prober.dead.add("web-1-s1")
    world.provisioner.unasked = {host: "unreachable"}
    world.ticks(10, 110.0)
    assert world.states() == [ShadowState.READY]
    assert "unreachable" in world.controller.status().troubles["hosts"]
    assert world.provisioner.surveys == 2, "at the start, and when it was seen not to answer"
    world.provisioner.unasked = {}
    world.ticks(30, 110.0)
    assert world.provisioner.surveys == 3
    assert "hosts" not in world.controller.status().troubles


def test_an_address_that_changed_behind_our_back_is_a_failure():
    world = grown()
    where = ("web-1-s1", world.store.records["web-1-s1"].host)
    moved = replace(world.provisioner.found[where], address=IPv4Address("10.9.9.9"))
    world.provisioner.found[where] = moved
    world.restart()
    world.ticks(4, 110.0)
    assert any("found at 10.9.9.9:8080, not at" in row.reason for row in world.store.rows)


def test_a_second_copy_on_another_host_is_removed_there_and_the_first_serves_on():
    world = grown()
    host = world.store.records["web-1-s1"].host
    other = "host-a" if host == "host-b" else "host-b"
    lay(world, replace(found(host=other), address=IPv4Address("10.9.9.9")))
    world.restart()
    world.ticks(6, 110.0)
    assert set(world.provisioner.found) == {("web-1-s1", host)}
    assert world.states() == [ShadowState.READY]


def test_a_store_that_can_not_be_read_at_the_start_stops_nothing_and_loses_nothing():
    world = grown()
    world.store.broken = True
    world.restart()
    lost = world.dataplane.lost
    world.ticks(20, 110.0)
    assert world.dataplane.lost == lost
    assert world.dataplane.served["web-1-s1"] > 20
    assert "records" in world.controller.status().troubles
    assert world.provisioner.orders == []
    world.store.broken = False
    world.ticks(5, 110.0)
    assert world.controller.status().troubles == {}
    assert world.states() == [ShadowState.READY]
    assert world.store.records["web-1-s1"].host != ""


@pytest.mark.parametrize("exists", [True, False])
def test_one_damaged_record_does_not_lose_the_others(monkeypatch, exists):
    world = grown(hosts=("host-a", "host-b"))
    records = dict(world.store.records)
    if exists:
        lay(world, found("web-1-s2"))
    world.restart()
    store = world.store

    def shadows():
        raise DamagedRecordsError("web-1-s2 is damaged", records, {"web-1-s2"})

    monkeypatch.setattr(store, "shadows", shadows)
    world.controller = world._controller()
    forgotten = []
    monkeypatch.setattr(store, "forget_shadow", lambda name: forgotten.append(name))
    world.ticks(5, 110.0)
    assert "web-1-s1" in store.records
    assert ("web-1-s2" in store.records) is exists
    assert forgotten == ([] if exists else ["web-1-s2"])
    assert world.controller.status().troubles == {}


def gone_while_ready(world: World) -> None:
    """Its host lost it, with its record in place."""
    world.provisioner.exists.discard("web-1-s1")
    del world.provisioner.found["web-1-s1", world.store.records["web-1-s1"].host]
    world.prober.dead.add("web-1-s1")


def test_a_shadow_that_stops_to_answer_is_looked_for_and_made_again_if_it_is_gone():
    world = grown()
    world.ticks(10, 110.0)
    gone_while_ready(world)
    world.ticks(12, 110.0)
    assert any("no longer exists on" in one.reason for one in world.store.decisions(50))
    world.prober.dead.clear()
    world.ticks(25, 110.0)
    assert world.states() == [ShadowState.READY]
    assert world.provisioner.exists == {"web-1-s1"}


def test_negative_control_unless_it_is_looked_for_a_minute_goes_by(monkeypatch):
    monkeypatch.setattr(roster, "_SURVEY_UNHEALTHY_S", 1e9)
    world = grown()
    world.ticks(10, 110.0)
    gone_while_ready(world)
    world.ticks(37, 110.0)
    assert world.provisioner.exists == set()
    assert world.store.records["web-1-s1"].healthy_unix_s is None, "it is known not to answer"
