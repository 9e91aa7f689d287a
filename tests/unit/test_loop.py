# SPDX-License-Identifier: Apache-2.0
"""The whole loop on a fake clock, against a data plane in memory that counts what it steers."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Address

import numpy as np
import pytest

from controlplane import model, requests
from controlplane.model import ShadowState
from controlplane.ports import Sample
from tests.world import CAPACITY, World, config, grown


def test_a_shadow_is_ordered_serves_drains_and_is_gone_when_load_is_back():
    world = grown()
    world.ticks(10, 120.0)
    assert world.dataplane.members["web-1"].spill > 0.3
    assert world.dataplane.served["web-1"] < CAPACITY
    assert world.dataplane.served["web-1-s1"] > 30
    world.ticks(150, 30.0)
    assert world.store.records == {}
    assert world.provisioner.exists == set()
    assert list(world.dataplane.members) == ["web-1"]
    assert world.orders() == ["web-1-s1"]
    actions = [row.action for row in world.store.rows if row.subject == "web-1-s1"]
    assert [a for a in actions if a in {"add", "warming", "ready", "drain", "remove", "gone"}] == [
        "add", "warming", "ready", "drain", "remove", "gone"
    ]  # fmt: skip


def test_twenty_decisions_within_one_lead_time_order_once():
    world = World(config(lead_time_s=40.0))
    world.provisioner.lead_s = 30.0
    world.ticks(150, 40.0)
    world.ticks(25, 90.0)
    assert world.orders() == ["web-1-s1"]


def test_negative_control_without_counting_what_is_on_order_it_orders_again(monkeypatch):
    monkeypatch.setattr("controlplane.policy.counted", lambda group, now: [])
    world = World(config(lead_time_s=40.0))
    world.provisioner.lead_s = 30.0
    world.ticks(25, 40.0)
    world.ticks(25, 110.0)
    assert len(world.orders()) > 1


@pytest.mark.parametrize("demand", [20.0, 40.0])
def test_steady_load_starts_nothing(demand):
    world = World(config())
    world.ticks(600, demand)
    assert world.orders() == []


def test_steady_high_load_neither_starts_nor_stops_anything():
    world = grown()
    world.ticks(60, 115.0)
    steps = len([s for s in world.dataplane.steps if not isinstance(s, model.SetSpill)])
    orders = list(world.provisioner.orders)
    world.ticks(300, 115.0)
    assert world.provisioner.orders == orders
    assert len([s for s in world.dataplane.steps if not isinstance(s, model.SetSpill)]) == steps


def test_a_failed_order_is_retried_with_pauses_and_the_endpoint_keeps_its_traffic():
    world = World(config(retry_after_s=6.0, max_per_endpoint=1))
    world.provisioner.fail = True
    world.ticks(25, 40.0)
    world.until(ShadowState.FAILED, 110.0)
    shadow = next(iter(world.store.records.values()))
    assert shadow.reason == "rc 2: no such image"
    world.ticks(40, 110.0)
    assert 2 <= len(world.orders()) <= 5
    assert set(world.orders()) <= {"web-1-s1", "web-1-s2"}, "in its place on the other host, when that fails"
    assert world.dataplane.members["web-1"].spill == 0.0
    assert world.dataplane.lost == 0.0
    world.provisioner.fail = False
    world.ticks(400, 110.0)
    assert world.states() == [ShadowState.READY]


@pytest.mark.parametrize("mended", [False, True], ids=["the same", "mended"])
def test_what_failed_is_tried_again_at_once_after_a_reload_that_is_about_it(mended):
    settings = {"retry_after_s": 40.0, "max_per_endpoint": 1, "retries": 9}
    world = World(config(**settings))
    world.provisioner.fail = True
    world.ticks(25, 40.0)
    world.ticks(170, 110.0)  # the pause is 80 s by now, or 160 s
    assert world.states() == [ShadowState.FAILED]
    orders, world.provisioner.fail = len(world.orders()), False
    world.config = config(**settings, variables={"command": ["serve"]} if mended else {})
    requests.request_reload(world.store)
    world.ticks(15, 110.0)
    assert (len(world.orders()) > orders) is mended
    assert (world.states() == [ShadowState.READY]) is mended


def test_a_hanging_run_blocks_neither_the_loop_nor_a_second_order_for_ever():
    world = World(config(lead_time_s=4.0))
    world.provisioner.hang = True
    world.ticks(25, 40.0)
    world.ticks(60, 110.0)
    assert len(world.orders()) > 1
    assert len(world.orders()) <= 4
    assert world.dataplane.lost == 0.0


def test_a_dead_live_endpoint_hands_everything_to_its_shadow_which_stays():
    world = grown()
    world.prober.dead.add("web-1")
    world.ticks(5, 90.0)
    assert world.dataplane.members["web-1"].down
    lost = world.dataplane.lost
    world.ticks(200, 10.0)
    assert world.dataplane.lost == lost
    assert world.dataplane.members["web-1"].spill == 1.0
    assert world.states() == [ShadowState.READY]
    world.prober.dead.clear()
    world.ticks(10, 10.0)
    assert not world.dataplane.members["web-1"].down
    assert world.dataplane.members["web-1"].spill < 1.0


def test_negative_control_without_health_writes_the_dead_keep_getting_packets():
    world = grown()
    world.prober.dead.add("web-1")
    world.prober.silent = True
    world.ticks(5, 90.0)
    lost = world.dataplane.lost
    world.ticks(20, 50.0)
    assert world.dataplane.lost > lost + 100


def test_a_dead_endpoint_without_shadow_leaves_the_ring_and_comes_back():
    world = World(config(endpoints=3))
    world.ticks(5, 30.0)
    world.prober.dead.add("web-2")
    world.ticks(4, 30.0)
    assert set(world.dataplane.services["web"].ring) == {"web-1", "web-3"}
    world.prober.dead.clear()
    world.ticks(4, 30.0)
    assert set(world.dataplane.services["web"].ring) == {"web-1", "web-2", "web-3"}


def test_the_last_one_is_never_ejected():
    world = World(config(endpoints=2, hosts=()))
    world.ticks(5, 30.0)
    world.prober.dead |= {"web-1", "web-2"}
    world.ticks(10, 30.0)
    assert set(world.dataplane.services["web"].ring) == {"web-1", "web-2"}
    assert not any(member.down for member in world.dataplane.members.values())
    assert world.controller.status().services[0].fail_open
    begun = [row.reason for row in world.store.rows if row.action in {"fail-open", "up"}]
    assert begun == ["web: all members are down: fails open, packets go to all of them (web-1, web-2)"]
    world.prober.dead.remove("web-2")
    world.ticks(4, 30.0)
    world.prober.dead.clear()
    world.ticks(4, 30.0)
    ended = [row.reason for row in world.store.rows if row.action in {"fail-closed", "up"}]
    assert ended == ["web: no longer fails open, packets go to who is healthy (web-2)", "web-1 is up again"]


def test_who_was_never_down_is_not_up_again_and_who_stays_without_need_says_until_when():
    world = grown()
    said = [row.reason for row in world.store.rows if row.action == "up"]
    assert said == ["web-1-s1 is up"]
    world.ticks(8, 20.0, noisy=False)
    reason = world.controller.status().services[0].groups[0].reason
    assert reason.endswith("that 2 members can serve; 1 can go when that has been so for 10 s")


@pytest.mark.parametrize(
    "state", [s for s in ShadowState if s is not ShadowState.FAILED], ids=lambda s: s.value
)
def test_a_restart_in_any_state_continues_and_starts_no_second_shadow(state):
    world = World(config(max_per_endpoint=1))
    world.ticks(25, 40.0)
    demand = 110.0
    if state in (ShadowState.DRAINING, ShadowState.REMOVING):
        world.until(ShadowState.READY, demand)
        world.dataplane.flows["web-1-s1"] = 3
        demand = 20.0
        world.until(ShadowState.DRAINING, demand, 200)
    if state is ShadowState.REQUESTED:
        world.provisioner.provision = _crash
        with pytest.raises(KeyboardInterrupt):
            world.ticks(60, demand)
        world.store.records["web-1-s1"] = replace(
            world.store.records["web-1-s1"], state=ShadowState.REQUESTED
        )
    world.until(state, demand, 200)
    world.restart()
    lost = world.dataplane.lost
    world.ticks(60, demand)
    assert world.dataplane.lost == lost
    if demand > 100:
        assert world.states() == [ShadowState.READY]
        assert set(world.provisioner.exists) == {"web-1-s1"}
    else:
        assert world.states() == []
        assert world.provisioner.exists == set()


def _crash(order):
    raise KeyboardInterrupt


def test_a_restart_installs_nothing_anew():
    world = grown()
    world.ticks(20, 110.0)
    world.restart()
    before = len(world.dataplane.steps)
    world.ticks(3, 110.0)
    assert all(isinstance(s, model.SetSpill | model.SetSlots) for s in world.dataplane.steps[before:])


def test_stale_counters_freeze_weights_and_forbid_removal():
    world = grown()
    world.ticks(10, 110.0)
    world.ticks(5, 20.0)
    world.dataplane.still = True
    world.ticks(4, 20.0)
    spill = world.dataplane.members["web-1"].spill
    world.ticks(120, 20.0)
    assert world.dataplane.members["web-1"].spill == spill
    assert world.states() == [ShadowState.READY]
    assert not world.controller.status().fresh


def test_a_broken_data_plane_or_store_is_survived_and_named():
    world = grown()
    world.dataplane.broken = True
    world.ticks(10, 110.0)
    assert "observe" in world.controller.status().troubles
    world.dataplane.broken = False
    world.store.broken = True
    world.ticks(10, 110.0)
    world.store.broken = False
    world.ticks(3, 110.0)
    assert world.controller.status().troubles == {}
    assert world.states() == [ShadowState.READY]


def test_an_interface_that_is_no_longer_steered_is_named_until_it_is_again():
    world = grown()
    name = world.config.interfaces[0]
    world.dataplane.detached.add(name)
    world.ticks(2, 20.0)
    assert f"{name} (it is gone)" in world.controller.status().troubles["steering"]
    assert Sample("interface_steered", {"interface": name}, 0.0) in world.metrics.samples
    world.dataplane.detached.clear()
    world.ticks(2, 20.0)
    assert world.controller.status().troubles == {}
    assert Sample("interface_steered", {"interface": name}, 1.0) in world.metrics.samples


def test_drain_returns_to_ready_when_load_returns():
    world = grown(drain_s=60.0)
    world.dataplane.flows["web-1-s1"] = 2
    world.until(ShadowState.DRAINING, 20.0, 200)
    world.until(ShadowState.READY, 110.0)
    assert world.orders() == ["web-1-s1"]


def test_advise_says_what_it_would_do_once_and_does_nothing():
    world = World(config(mode=model.Mode.ADVISE))
    world.ticks(25, 40.0)
    world.ticks(60, 110.0)
    assert world.orders() == []
    assert sum(row.action == "advise" for row in world.store.rows) == 1


def test_frozen_nothing_automatic_happens_until_thawed():
    world = World(config())
    requests.request_freeze(world.store, True)
    world.ticks(25, 40.0)
    world.ticks(30, 110.0)
    assert world.orders() == []
    requests.request_freeze(world.store, False)
    world.ticks(2, 110.0)
    assert world.orders()


def test_shadows_by_hand_are_left_alone_until_removed_by_hand():
    world = World(config())
    world.ticks(2, 20.0)
    requests.request_shadow_add(world.store, "web-1", "host-b")
    world.ticks(150, 20.0)
    assert world.states() == [ShadowState.READY]
    assert next(iter(world.store.records.values())).host == "host-b"
    requests.request_shadow_remove(world.store, "web-1-s1")
    world.ticks(20, 20.0)
    assert world.states() == []
    assert world.provisioner.exists == set()


def test_a_drained_endpoint_leaves_the_ring_until_undrained():
    world = World(config(endpoints=2))
    world.ticks(3, 20.0)
    requests.request_drain(world.store, "web-1", True)
    world.ticks(2, 20.0)
    assert set(world.dataplane.services["web"].ring) == {"web-2"}
    requests.request_drain(world.store, "web-1", False)
    world.ticks(2, 20.0)
    assert set(world.dataplane.services["web"].ring) == {"web-1", "web-2"}


def with_capacity(whole: model.Config, capacity: float) -> model.Service:
    web = whole.services["web"]
    return replace(web, endpoints=tuple(replace(one, capacity=capacity) for one in web.endpoints))


def test_a_reload_neither_thaws_nor_undrains_for_a_tick():
    world = World(config(endpoints=2))
    world.ticks(3, 20.0)
    requests.request_freeze(world.store, True)
    requests.request_drain(world.store, "web-1", True)
    world.ticks(2, 20.0)
    said, steps = len(world.store.rows), len(world.dataplane.steps)
    world.config = replace(world.config, services={"web": with_capacity(world.config, 200.0)})
    requests.request_reload(world.store)
    world.ticks(3, 20.0)
    assert [row.action for row in world.store.rows[said:]] == ["reload"]
    assert world.dataplane.steps[steps:] == []


def test_reload_adds_and_removes_endpoints_without_losing_a_flow():
    world = World(config(endpoints=2))
    world.ticks(5, 20.0)
    world.config = config(endpoints=3)
    requests.request_reload(world.store)
    world.ticks(3, 20.0)
    assert set(world.dataplane.services["web"].ring) == {"web-1", "web-2", "web-3"}
    world.config = config(endpoints=1)
    requests.request_reload(world.store)
    world.ticks(3, 20.0)
    assert set(world.dataplane.members) == {"web-1"}
    assert world.dataplane.lost == 0.0


def test_run_keeps_its_cadence_and_stops():
    world = World(config())
    waited = []
    world.clock.on_wait = lambda: (
        waited.append(world.clock.now),
        len(waited) == 5 and world.controller.stop(),
    )
    world.controller.run()
    assert np.allclose(np.diff(waited), 1.0)


def draining() -> World:
    """Half of the ramp is over."""
    world = grown(drain_s=10.0)
    world.dataplane.flows["web-1-s1"] = 3
    for _ in range(400):
        world.tick(60.0)
        if 0.0 < world.store.records["web-1-s1"].share < 0.6:
            return world
    raise AssertionError("it is not drained")


def test_frozen_a_drain_under_way_is_held_and_nothing_is_cut_until_thawed():
    world = draining()
    slots = world.dataplane.members["web-1"].slots
    assert 0.0 < slots["web-1-s1"] < 1.0
    requests.request_freeze(world.store, True)
    world.ticks(60, 60.0)
    assert world.states() == [ShadowState.DRAINING]
    assert world.dataplane.members["web-1"].slots == slots, "no step of the ramp is taken"
    requests.request_freeze(world.store, False)
    world.ticks(3, 60.0)
    assert world.dataplane.members["web-1"].slots != {}, "nor are steps made up for"
    world.ticks(5, 60.0)
    requests.request_freeze(world.store, True)
    world.ticks(60, 60.0)
    assert world.states() == [ShadowState.DRAINING], "its flows are not cut"
    assert world.dataplane.members["web-1"].slots == {}, "it gets no new flows all the while"
    requests.request_freeze(world.store, False)
    world.ticks(20, 60.0)
    assert world.states() == []


def test_frozen_a_dead_live_endpoint_still_hands_its_flows_to_the_draining_shadow():
    world = draining()
    requests.request_freeze(world.store, True)
    world.prober.dead.add("web-1")
    world.ticks(5, 20.0)
    lost = world.dataplane.lost
    world.ticks(10, 20.0)
    assert world.dataplane.lost == lost
    assert world.dataplane.served["web-1-s1"] > 5


def test_forecast_only_forecasts_and_acts_on_health_alone():
    world = World(config(endpoints=2, mode=model.Mode.FORECAST_ONLY))
    world.ticks(25, 80.0)
    steps = len(world.dataplane.steps)
    world.ticks(60, 220.0)
    assert world.orders() == []
    assert len(world.dataplane.steps) == steps
    assert world.controller.status().services[0].groups[0].high > CAPACITY
    world.prober.dead.add("web-1")
    world.ticks(5, 60.0)
    assert set(world.dataplane.services["web"].ring) == {"web-2"}


def test_stale_probes_freeze_weights_and_forbid_removal_but_nobody_is_down():
    world = grown()
    world.ticks(10, 110.0)
    world.prober.silent = True
    world.ticks(10, 110.0)
    spill = world.dataplane.members["web-1"].spill
    world.ticks(100, 20.0)
    assert world.dataplane.members["web-1"].spill == spill
    assert world.states() == [ShadowState.READY]
    assert not any(member.down for member in world.dataplane.members.values())


def test_after_three_blind_minutes_weights_move_to_capacity_shares_in_limited_steps():
    world = grown()
    world.ticks(10, 95.0)
    world.dataplane.still = True
    world.ticks(170, 95.0)
    before = world.dataplane.members["web-1"].spill
    assert before != 0.5
    world.ticks(30, 95.0)
    assert world.dataplane.members["web-1"].spill == pytest.approx(0.5, abs=0.05)


def test_unneeded_shadows_go_one_after_another_without_waiting_for_old_flows():
    world = World(config(idle_s=10.0, min_life_s=10.0, drain_s=600.0))
    world.ticks(25, 40.0)
    world.ticks(60, 210.0)
    count = world.states().count(ShadowState.READY)
    assert count >= 2
    for name in world.store.records:
        world.dataplane.flows[name] = 5
    world.until(ShadowState.DRAINING, 20.0, 200)
    world.ticks(60 * count, 20.0)
    assert world.states() == [ShadowState.DRAINING] * count
    members = [world.dataplane.members[name] for name in world.store.records]
    assert [one.draining for one in members] == [True] * count


def test_a_failed_shadow_survives_a_restart_with_its_pause():
    world = World(config(max_per_endpoint=1, retry_after_s=20.0))
    world.provisioner.fail = True
    world.ticks(25, 40.0)
    world.until(ShadowState.FAILED, 110.0)
    world.restart()
    world.ticks(10, 110.0)
    assert world.orders() == []
    world.ticks(40, 110.0)
    assert world.states() == [ShadowState.READY]


def test_shadows_that_never_become_healthy_are_replaced_once():
    world = World(config())
    world.prober.dead |= {f"web-1-s{k}" for k in range(1, 9)}
    world.ticks(25, 40.0)
    world.ticks(100, 90.0)
    orders = world.orders()
    assert 2 <= len(orders) <= 3
    world.ticks(20, 90.0)
    assert world.orders() == orders


def test_a_common_cause_orders_nothing_more():
    world = grown()
    world.prober.dead |= {"web-1", "web-1-s1"}
    world.ticks(5, 50.0)
    world.config = config(max_per_endpoint=4)
    requests.request_reload(world.store)
    world.ticks(40, 50.0)
    assert world.orders() == ["web-1-s1"]


def test_after_a_long_stop_it_goes_on_from_now_and_makes_up_for_no_tick():
    world = World(config())
    waited: list[float] = []

    def on_wait() -> None:
        if len(waited) == 3:
            world.clock.now += 28.0
        waited.append(world.clock.now)
        if len(waited) == 7:
            world.controller.stop()

    world.clock.on_wait = on_wait
    world.controller.run()
    assert np.allclose(np.diff(waited[3:]), 1.0), "no burst of ticks, whose rates would be noise"


# ---- what playbooks say is not believed ---------------------------------------------------

WRONG = [
    ("192.0.2.1", 80, "the vip of service web"),
    ("192.0.2.1", 8080, "the vip of service web"),
    ("10.0.0.1", 8080, "endpoint web-1"),
    ("10.0.0.2", 8080, "endpoint web-2"),
    ("10.0.0.254", 8080, "an address of the access point itself"),
    ("127.0.0.1", 8080, "no address of one host"),
    ("0.0.0.0", 8080, "no address of one host"),
    ("224.0.0.1", 8080, "no address of one host"),
    ("255.255.255.255", 8080, "no address of one host"),
    ("10.9.0.9", 0, "no port"),
    ("10.9.0.9", 99999, "no port"),
    ("10.9.0.9", -1, "no port"),
]


@pytest.mark.parametrize(("address", "port", "why"), WRONG, ids=[f"{a}:{p}" for a, p, _ in WRONG])
def test_a_shadow_where_none_can_be_is_never_installed_said_retried_and_removed(address, port, why):
    world = World(config(endpoints=2, max_per_endpoint=1, retry_after_s=4.0))
    world.provisioner.answer = IPv4Address(address), port
    world.ticks(25, 80.0)
    world.until(ShadowState.FAILED, 220.0)
    world.ticks(30, 220.0)
    assert set(world.dataplane.members) == {"web-1", "web-2"}
    assert world.dataplane.lost == 0.0
    assert world.controller.status().troubles == {}
    shadow = next(s for s in world.store.records.values() if s.parent == "web-1")
    assert why in shadow.reason
    assert any(sample.labels.get("reason") == shadow.reason for sample in world.metrics.samples)
    assert 2 <= world.orders().count(shadow.name) <= 6
    assert world.orders("deprovision").count(shadow.name) >= 1, (
        "what was made is removed before it is tried again"
    )
    world.ticks(400, 20.0)
    assert world.provisioner.exists == set()
    assert world.store.records == {}


def test_two_shadows_at_one_place_the_second_is_refused():
    world = grown()
    world.config = config(max_per_endpoint=4)
    requests.request_reload(world.store)
    first = world.store.records["web-1-s1"]
    world.provisioner.answer = first.address, first.port
    world.ticks(20, 250.0)
    second = world.store.records["web-1-s2"]
    assert second.state is not ShadowState.READY
    assert any("shadow web-1-s1, which no shadow may have" in row.reason for row in world.store.rows)
    assert world.store.records["web-1-s1"].state is ShadowState.READY
    assert set(world.dataplane.members) == {"web-1", "web-1-s1"}


def test_an_orphan_that_claims_an_endpoints_place_is_not_installed_but_removed():
    world = World(config())
    world.provisioner.exists.add("web-1-s1")
    world.provisioner.found["web-1-s1", "host-b"] = model.Found(
        "web-1-s1", "host-b", "netns", "web", "web-1", IPv4Address("10.0.0.1"), 8080
    )
    world.ticks(60, 20.0)
    assert world.provisioner.exists == set()
    assert not any(
        isinstance(s, model.InstallMember) and "-s" in s.member.name for s in world.dataplane.steps
    )
    assert world.controller.status().troubles == {}


def test_a_reload_that_puts_an_endpoint_where_a_shadow_serves_is_refused():
    world = grown()
    shadow = world.store.records["web-1-s1"]
    fresh = config(endpoints=2)
    web = fresh.services["web"]
    second = replace(web.endpoints[1], address=shadow.address, port=shadow.port)
    world.config = replace(fresh, services={"web": replace(web, endpoints=(web.endpoints[0], second))})
    requests.request_reload(world.store)
    world.ticks(3, 110.0)
    refused = next(row for row in world.store.rows if row.action == "refuse")
    assert "penumbra shadow remove web-1-s1" in refused.reason
    assert set(world.dataplane.members) == {"web-1", "web-1-s1"}
    assert world.states() == [ShadowState.READY]
    # Started with it nobody refuses: the endpoint has the place, and the shadow goes.
    world.restart()
    world.ticks(5, 110.0)
    assert world.dataplane.members["web-2"].address == shadow.address
    assert ShadowState.FAILED in world.states()
    assert world.controller.status().troubles == {}


def test_an_endpoint_renamed_by_reload_keeps_its_place():
    world = World(config(endpoints=2))
    world.ticks(5, 20.0)
    web = world.config.services["web"]
    renamed = tuple(replace(e, name=e.name.replace("web", "www")) for e in web.endpoints)
    world.config = replace(world.config, services={"web": replace(web, endpoints=renamed)})
    requests.request_reload(world.store)
    world.ticks(5, 20.0)
    assert world.controller.status().troubles == {}
    assert set(world.dataplane.services["web"].ring) == {"www-1", "www-2"}


# ---- limits, and the way back --------------------------------------------------------------


def limits(world: World) -> dict[str, int]:
    return {name: member.limit for name, member in world.dataplane.members.items()}


def test_live_endpoints_and_shadows_are_limited_by_capacity_and_a_restart_changes_nothing():
    world = grown()
    world.ticks(3, 110.0)
    assert limits(world) == {"web-1": 20, "web-1-s1": 20}
    world.restart()
    before = len(world.dataplane.steps)
    world.ticks(3, 110.0)
    assert not any(isinstance(step, model.SetLimit) for step in world.dataplane.steps[before:])


def test_a_shadow_that_warms_up_is_limited_to_its_part():
    world = World(config(max_per_endpoint=1, warm_up_s=5.0))
    world.ticks(25, 40.0)
    world.until(ShadowState.READY, 110.0)
    set_to = [s.limit for s in world.dataplane.steps if isinstance(s, model.SetLimit) and "-s" in s.member]
    assert set_to == sorted(set_to)
    assert (set_to[0], set_to[-1], len(set_to)) == (4, 20, 6)


@pytest.mark.parametrize("why", ["affinity", "capacity", "limit"])
def test_nobody_is_limited_who_can_not_or_shall_not_be(why):
    plain = config()
    web = plain.services["web"]
    if why == "affinity":
        web = replace(web, affinity=model.Affinity.SOURCE)
    else:
        changed = {"capacity": None} if why == "capacity" else {"limit": float("inf")}
        web = replace(web, endpoints=tuple(replace(one, **changed) for one in web.endpoints))
    world = World(replace(plain, services={"web": web}))
    world.ticks(5, 20.0)
    assert limits(world) == {"web-1": 0}
    assert world.dataplane.services["web"].affinity is web.affinity


@pytest.mark.parametrize("mode", [model.Mode.FORECAST_ONLY, model.Mode.ADVISE], ids=lambda mode: mode.value)
def test_who_does_not_act_limits_nobody(mode):
    world = World(config(mode=mode))
    world.ticks(5, 20.0)
    assert limits(world) == {"web-1": 0}


def test_frozen_limits_stay():
    world = World(config())
    world.ticks(3, 20.0)
    requests.request_freeze(world.store, True)
    world.config = replace(world.config, services={"web": with_capacity(world.config, 200.0)})
    requests.request_reload(world.store)
    world.ticks(3, 20.0)
    assert limits(world) == {"web-1": 20}
    requests.request_freeze(world.store, False)
    world.ticks(3, 20.0)
    assert limits(world) == {"web-1": 34}


def returning(world: World, name: str, demand: float) -> list[float]:
    """Its spill, tick by tick, from when it is up again."""
    world.prober.dead.add(name)
    world.ticks(6, demand)
    assert world.dataplane.members[name].down
    world.prober.dead.discard(name)
    while world.dataplane.members[name].down:
        world.tick(demand)
    spills = [world.dataplane.members[name].spill]
    for _ in range(8):
        world.tick(demand)
        spills.append(world.dataplane.members[name].spill)
    return spills


def test_a_live_endpoint_that_comes_back_gets_its_share_from_its_shadow_through_the_warm_up():
    world = grown(warm_up_s=5.0, min_life_s=600.0)
    world.ticks(60, 20.0)
    spills = returning(world, "web-1", 20.0)
    assert spills == pytest.approx([0.9, 0.8, 0.6, 0.4, 0.2, 0.0, 0.0, 0.0, 0.0])
    assert world.dataplane.lost < 400, "only what came before it was known to be down"


def test_without_a_shadow_its_neighbours_keep_what_it_does_not_take_yet():
    world = World(config(endpoints=3, hosts=(), warm_up_s=5.0))
    world.ticks(5, 30.0)
    lost = world.dataplane.lost
    spills = returning(world, "web-2", 60.0)
    assert spills[:5] == pytest.approx([0.9, 0.8, 0.6, 0.4, 0.2])
    assert spills[5:] == [0.0] * 4
    web = world.dataplane.members["web-2"]
    assert (web.slots, web.limit) == ({}, 20)
    slots = next(s for s in world.dataplane.steps if isinstance(s, model.SetSlots) and s.slots)
    assert slots == model.SetSlots("web-2", {"web-3": 1.0, "web-1": 1.0})
    rings = [s for s in world.dataplane.steps if isinstance(s, model.SetRing)]
    assert len(rings) == 3, "whole, without it, whole again"
    assert world.dataplane.lost - lost < 100
    said = [row.reason for row in world.store.rows if row.action == "spill"]
    assert said[0] == "web-2: 90% of its new flows go to its neighbours while it warms up"


def test_who_comes_back_while_its_only_neighbour_is_dead_takes_all():
    world = World(config(endpoints=2, hosts=(), warm_up_s=5.0))
    world.ticks(5, 30.0)
    world.prober.dead |= {"web-1", "web-2"}
    world.ticks(5, 30.0)
    world.prober.dead.discard("web-2")
    world.ticks(8, 30.0)
    assert not any(isinstance(step, model.SetSlots | model.SetSpill) for step in world.dataplane.steps)
    assert set(world.dataplane.services["web"].ring) == {"web-2"}


def test_a_shadow_that_comes_back_warms_up_again():
    world = grown(warm_up_s=5.0, min_life_s=600.0)
    world.ticks(10, 150.0)
    usual = world.dataplane.members["web-1"].spill
    world.prober.dead.add("web-1-s1")
    world.ticks(6, 90.0)
    assert world.dataplane.members["web-1"].slots == {}
    world.prober.dead.clear()
    while not world.dataplane.members["web-1"].slots:
        world.tick(150.0)
    seen = []
    for _ in range(8):
        member = world.dataplane.members["web-1"]
        seen.append((member.slots["web-1-s1"], member.spill))
        world.tick(150.0)
    assert [weight for weight, _ in seen] == [0.1, 0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0]
    assert seen[0][1] < usual / 2
    assert seen[-1][1] == pytest.approx(usual, abs=0.15)


def test_at_the_start_of_a_controller_nobody_warms_up():
    world = World(config(endpoints=2, hosts=(), warm_up_s=5.0))
    world.ticks(3, 30.0)
    world.restart()
    world.ticks(8, 30.0)
    assert not any(isinstance(step, model.SetSlots | model.SetSpill) for step in world.dataplane.steps)


def test_what_is_learned_is_kept_after_a_reload_with_steps_of_another_length():
    world = World(config())
    world.ticks(130, 40.0)
    world.config = config(lead_time_s=60.0)
    requests.request_reload(world.store)
    world.ticks(70, 40.0)
    kept = [json.loads(text) for key, text in world.store.values.items() if key.startswith("demand:")]
    assert {one["step_s"] for one in kept} == {5.0, 15.0}
    world.restart()
    world.ticks(2, 40.0)
    assert world.controller.status().services[0].groups[0].p50 is not None, "it is known at once"


# ---- hosts are shared ---------------------------------------------------------------------


def of_each(world: World) -> dict[str, int]:
    parents = [shadow.parent for shadow in world.store.records.values()]
    return {name: parents.count(name) for name in ("web-1", "web-2", "web-3")}


def crowded(slots: int, **limits: object) -> World:
    """Three endpoints that need two shadows each or more, at once: nobody was allowed to act before."""
    fresh = config(endpoints=3, **limits)
    world = World(replace(fresh, hosts={name: replace(h, slots=slots) for name, h in fresh.hosts.items()}))
    world.ticks(40, 100.0)
    requests.request_freeze(world.store, True)
    world.ticks(60, 620.0)
    requests.request_freeze(world.store, False)
    world.ticks(10, 620.0)
    return world


def test_slots_that_do_not_suffice_are_shared_and_who_gets_none_says_so():
    world = crowded(slots=2)
    assert sorted(of_each(world).values()) == [1, 1, 2]
    assert any("no host has a free slot" in row.reason for row in world.store.rows)


def test_a_service_gets_no_more_than_it_may_and_they_are_shared():
    world = crowded(slots=9, max_per_service=3)
    assert of_each(world) == {"web-1": 1, "web-2": 1, "web-3": 1}
    assert any("max_per_service" in row.reason for row in world.store.rows)


def test_all_services_together_get_no_more_than_they_may():
    world = World(replace(config(), max_shadows=1))
    world.ticks(25, 40.0)
    world.ticks(60, 300.0)
    assert world.orders() == ["web-1-s1"]
    assert any("max_shadows" in row.reason for row in world.store.rows)
    # By hand it is allowed: who asks for it knows.
    requests.request_shadow_add(world.store, "web-1", "host-a")
    world.ticks(3, 300.0)
    assert world.orders() == ["web-1-s1", "web-1-s2"]


def test_negative_control_first_come_first_served_leaves_some_without(monkeypatch):
    def greedy(roster, wanted):
        for parent, verdict, inputs in wanted:
            for _ in range(verdict.count):
                roster.order(parent, verdict.reason, inputs=inputs)

    monkeypatch.setattr("controlplane.roster.Roster.order_fairly", greedy)
    assert 0 in of_each(crowded(slots=2)).values()
