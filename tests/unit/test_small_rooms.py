# SPDX-License-Identifier: Apache-2.0
"""Placement and requests."""

from __future__ import annotations

from ipaddress import IPv4Address

from controlplane import placement, requests
from controlplane.model import Endpoint, Host, Shadow, ShadowState
from tests.fakes import FakeStore

PARENT = Endpoint("web-1", "web", IPv4Address("10.0.0.1"), 80, host="a")
HOSTS = {name: Host(name, slots=2) for name in "abc"}


def on(host: str, k: int, parent: str = "web-1", state: ShadowState = ShadowState.READY) -> Shadow:
    return Shadow(f"{parent}-s{k}", "web", parent, host, "netns", state, 0.0, 0.0)


def test_a_shadow_goes_beside_its_parent_only_when_no_other_host_is_free():
    assert placement.choose(HOSTS, ("a", "b"), [], PARENT) == "b"
    assert placement.choose(HOSTS, ("a", "b"), [on("b", 1), on("b", 2)], PARENT) == "a"


def test_the_next_goes_where_fewest_of_the_same_parent_are_then_to_the_emptiest():
    assert placement.choose(HOSTS, ("b", "c"), [on("b", 1)], PARENT) == "c"
    assert placement.choose(HOSTS, ("b", "c"), [on("b", 1, "web-2")], PARENT) == "c"


def test_a_failed_shadow_keeps_its_slot_and_a_full_fleet_is_none():
    full = [on("b", 1, state=ShadowState.FAILED), on("b", 2, state=ShadowState.REMOVING)]
    assert placement.choose(HOSTS, ("b",), full, PARENT) is None


def test_names_are_the_first_that_is_free():
    assert placement.name("web-1", ["web-1-s1", "web-1-s3"]) == "web-1-s2"


def test_requests_are_taken_once_and_freeze_and_drain_stay():
    store = FakeStore()
    requests.request_freeze(store, True)
    requests.request_drain(store, "web-1", True)
    requests.request_shadow_add(store, "web-1", "b")
    requests.request_shadow_remove(store, "web-1-s1")
    requests.request_reload(store)
    taken = requests.take(store, ["web-1"], ["web-1-s1"])
    assert taken.frozen
    assert taken.drained == {"web-1"}
    assert taken.add == (("web-1", "b"),)
    assert taken.remove == ("web-1-s1",)
    assert taken.reload
    again = requests.take(store, ["web-1"], ["web-1-s1"])
    assert (again.add, again.remove, again.reload) == ((), (), False)
    assert again.frozen
    assert again.drained == {"web-1"}
    assert again.serial == taken.serial == requests.serial(store)


def test_a_request_for_a_name_that_is_not_there_is_left_alone():
    store = FakeStore()
    requests.request_shadow_add(store, "nobody", None)
    assert requests.take(store, ["web-1"], []).add == ()
