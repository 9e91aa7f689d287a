# SPDX-License-Identifier: Apache-2.0
"""Requests by command."""

from __future__ import annotations

from controlplane import requests
from tests.fakes import FakeStore


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
