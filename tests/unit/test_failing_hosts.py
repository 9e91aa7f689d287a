# SPDX-License-Identifier: Apache-2.0
"""Hosts on which runs fail are avoided, what a failed try left there is removed, and the budget is kept."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane import hosts, model, requests
from controlplane.model import Host, ShadowState
from tests.world import World, config


def three(**settings: object) -> World:
    """host-a is the parent's, host-b comes first."""
    made = config(max_per_endpoint=1, **{"retry_after_s": 1.0, **settings})
    there = {name: Host(name, slots=4, price_per_hour=0.4) for name in ("host-a", "host-b", "host-c")}
    web = made.services["web"]
    shadows = replace(web.shadows, hosts=("host-a", "host-b", "host-c"))
    return World(replace(made, hosts=there, services={"web": replace(web, shadows=shadows)}))


def failed_on_b(**settings: object) -> World:
    world = three(**settings)
    world.provisioner.dead_hosts = {"host-b"}
    world.ticks(25, 40.0)
    world.until(ShadowState.FAILED, 110.0)
    assert world.store.records["web-1-s1"].host == "host-b", "the fault hit"
    return world


def test_a_failed_shadow_is_tried_on_another_host_and_what_the_try_left_is_removed():
    world = failed_on_b()
    world.ticks(15, 110.0)
    there = {one.name: (one.host, one.state) for one in world.store.records.values()}
    assert there == {
        "web-1-s1": ("host-b", ShadowState.REMOVING),
        "web-1-s2": ("host-c", ShadowState.READY),
    }
    assert world.provisioner.exists == {"web-1-s1", "web-1-s2"}
    assert any("web-1-s2 on host-c: in the place of web-1-s1" in row.reason for row in world.store.rows)
    world.provisioner.dead_hosts = set()
    world.ticks(400, 110.0)
    assert world.provisioner.exists == {"web-1-s2"}
    assert [one.name for one in world.store.records.values()] == ["web-1-s2"]
    assert world.orders().count("web-1-s2") == 1
    assert world.dataplane.lost == 0.0


def test_the_next_order_goes_elsewhere_while_a_host_is_avoided_after_a_restart_too():
    world = failed_on_b()
    world.ticks(15, 110.0)
    world.restart()
    world.provisioner.dead_hosts = {"host-b"}
    world.ticks(2, 110.0)
    status = {one.name: one for one in world.controller.status().hosts}
    assert status["host-b"].failures >= 1
    assert status["host-b"].avoided_s > 0
    assert "host-b is unreachable" in status["host-b"].reason
    requests.request_shadow_add(world.store, "web-1")
    world.ticks(2, 110.0)
    placed = [row.reason for row in world.store.rows if row.action == "place"][-1]
    assert "on host-c" in placed
    assert "not host-b (avoided for" in placed


def test_negative_control_without_back_off_the_dead_host_is_asked_again(monkeypatch):
    monkeypatch.setattr(hosts.Hosts, "avoided_s", lambda *_: 0.0)
    monkeypatch.setattr(hosts.Hosts, "lately", lambda *_: None)
    world = failed_on_b()
    world.ticks(15, 110.0)
    world.provisioner.dead_hosts = set()
    world.ticks(60, 110.0)
    requests.request_shadow_add(world.store, "web-1")
    world.ticks(2, 110.0)
    assert "on host-b" in [row.reason for row in world.store.rows if row.action == "place"][-1]


def test_an_order_that_no_host_can_follow_is_not_its_hosts_fault():
    world = three()
    world.provisioner.refuses = "nothing serves 10.0.0.1:8080, so there is nothing to clone"
    world.ticks(25, 40.0)
    world.until(ShadowState.FAILED, 110.0)
    world.ticks(20, 110.0)
    assert [one.failures for one in world.controller.status().hosts] == [0, 0, 0]
    assert {row.action for row in world.store.rows} >= {"fail", "retry"}


def test_all_hosts_dead_the_least_failing_is_tried_when_its_pause_is_over():
    world = failed_on_b(retries=20)
    world.provisioner.dead_hosts = {"host-a", "host-b", "host-c"}
    world.ticks(60, 110.0)
    assert any("not tried again: no host can take it" in row.reason for row in world.store.rows)
    world.provisioner.dead_hosts = set()
    world.ticks(400, 110.0)
    assert len(world.provisioner.exists) == 1
    assert world.states() == [ShadowState.READY]
    assert all(one.failures == 0 or one.avoided_s == 0 for one in world.controller.status().hosts)


@pytest.mark.parametrize(("budget", "shadows"), [(None, 2), (0.9, 2), (0.5, 1), (0.3, 0)])
def test_the_budget_is_kept_and_what_shadows_cost_is_told(budget, shadows):
    world = three()
    web = world.config.services["web"]
    settings = replace(web.shadows, max_per_endpoint=2)
    world = World(
        replace(
            world.config,
            budget_per_hour=budget,
            services={"web": replace(web, shadows=settings)},
        )
    )
    world.ticks(25, 40.0)
    world.ticks(30, 180.0)
    status = world.controller.status()
    assert len(world.provisioner.exists) == shadows
    assert status.cost_per_hour == pytest.approx(0.4 * shadows)
    assert status.services[0].cost_per_hour == pytest.approx(0.4 * shadows)
    cost = {sample.name: sample.value for sample in world.metrics.samples}
    assert cost["shadows_cost_per_hour"] == pytest.approx(0.4 * shadows)
    refused = [row.reason for row in world.store.rows if "budget_per_hour" in row.reason]
    assert bool(refused) is (shadows < 2)


def test_use_that_is_read_decides_and_a_host_whose_readings_stop_gets_nothing():
    world = three()
    read = model.UsageSource(model.UsageKind.NODE_EXPORTER, "http://{host}:9100/metrics")
    world = World(replace(world.config, host_usage=read))
    for name, cpu in (("host-a", 0.3), ("host-b", 0.6), ("host-c", 0.2)):
        world.load_source.tell(f"host:{name}", cpu=cpu, of_cpus=4.0)
    world.ticks(25, 40.0)
    assert world.load_source.targets["host:host-b"].at == "http://host-b:9100/metrics"
    world.until(ShadowState.READY, 110.0)
    assert world.store.records["web-1-s1"].host == "host-c"
    assert (
        world.store.records["web-1-s1"].placed
        == "50% used with it (host-a 60%, host-b 90%), other host than web-1, 0.4/h"
    )
    world.load_source.failing = {"host:host-b": "no answer within 1 s", "host:host-c": "no answer within 1 s"}
    world.ticks(20, 110.0)
    assert "host:host-b: no answer" in world.controller.status().troubles["usage"]
    requests.request_shadow_add(world.store, "web-1")
    world.ticks(2, 110.0)
    placed = [row.reason for row in world.store.rows if row.action == "place"][-1]
    assert "on host-a" in placed
    assert "the host of web-1, as no other can take it" in placed
    assert "host-b (its use was read" in placed
