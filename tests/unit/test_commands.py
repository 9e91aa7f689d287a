# SPDX-License-Identifier: Apache-2.0
"""What commands answer, and what is told of what they ask for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from typer.testing import CliRunner

from controlplane import model, requests
from controlplane.adapters.sqlite import SqliteStore
from controlplane.cli import actions, app, explain
from controlplane.cli.instance import Instance
from controlplane.model import Shadow, ShadowState
from controlplane.ports import Sample
from tests.world import CAPACITY, World, config

CONFIG = """
interfaces: [eth9]
hosts:
  spare: {slots: 2}
services:
  web:
    vip: 192.0.2.1
    port: 80
    endpoints:
      web-1: {address: 10.0.0.1, port: 80, capacity: 100 flows/s}
      web-2: {address: 10.0.0.2, port: 80, capacity: 100 flows/s}
    shadows: {hosts: [spare]}
"""
HELD = "no new flows go to it: "


@pytest.fixture
def instance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Instance:
    """One that is loaded, and no controller runs."""
    path = tmp_path / "penumbra.yml"
    path.write_text(CONFIG)
    made = Instance("of-test-commands", path, tmp_path / "state")
    monkeypatch.setattr(actions, "find", lambda _: made)
    return made


def said(*arguments: str) -> str:
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    return done.output


@pytest.mark.parametrize(
    ("mode", "frozen", "why"),
    [
        ("act", True, "frozen until penumbra thaw"),
        ("advise", False, "mode advise"),
        ("act", False, None),
    ],
)
def test_who_orders_a_shadow_that_gets_no_flows_is_told(
    instance: Instance, mode: str, frozen: bool, why: str | None
) -> None:
    instance.config.write_text(f"mode: {mode}{CONFIG}")
    requests.request_freeze(SqliteStore(instance.state_dir, instance.name), frozen)
    answer = said("shadow", "add", "web-1")
    assert (f"{HELD}{why}" in answer) if why else (HELD not in answer)


def reason(world: World) -> str:
    return world.controller.status().services[0].groups[0].shadows[0].reason


def test_a_shadow_that_is_ordered_while_frozen_gets_no_flows_and_says_so_until_thawed() -> None:
    world = World(config())
    world.ticks(5, 60.0)
    requests.request_freeze(world.store, True)
    requests.request_shadow_add(world.store, "web-1")
    world.ticks(2, 60.0)
    assert reason(world).endswith(f"by command; {HELD}frozen until penumbra thaw"), "it is on order"
    world.until(ShadowState.READY, 60.0)
    world.ticks(5, 60.0)
    assert world.dataplane.served["web-1-s1"] == 0.0
    assert reason(world) == f"healthy and warm; {HELD}frozen until penumbra thaw"
    requests.request_freeze(world.store, False)
    world.ticks(5, 60.0)
    assert world.dataplane.served["web-1-s1"] > 0.0
    assert reason(world) == "healthy and warm"


def test_negative_control_one_that_served_before_it_was_frozen_serves_on_and_says_nothing() -> None:
    world = World(config())
    world.ticks(5, 60.0)
    requests.request_shadow_add(world.store, "web-1")
    world.until(ShadowState.READY, 60.0)
    world.ticks(5, 60.0)
    requests.request_freeze(world.store, True)
    world.ticks(5, 60.0)
    assert world.controller.status().frozen
    assert world.dataplane.served["web-1-s1"] > 0.0
    assert reason(world) == "healthy and warm"


def test_in_another_mode_than_act_it_is_the_mode() -> None:
    world = World(config(mode=model.Mode.ADVISE))
    world.ticks(5, 60.0)
    requests.request_shadow_add(world.store, "web-1")
    world.until(ShadowState.READY, 60.0)
    world.ticks(2, 60.0)
    assert world.dataplane.served["web-1-s1"] == 0.0
    assert reason(world) == f"healthy and warm; {HELD}mode advise"


# ---- drains ---------------------------------------------------------------------------------


def test_who_drains_the_last_one_is_told_that_it_serves_on(instance: Instance) -> None:
    assert "no new flows from the next tick on" in said("drain", "web-1")
    serves_on = "web-2: drained, but nobody else could take its new flows: it serves on"
    assert serves_on in said("drain", "web-2")
    said("undrain", "web-1")
    assert serves_on not in said("drain", "web-2")
    said("drain", "web-1")
    shadow = Shadow("web-2-s1", "web", "web-2", "spare", "netns", ShadowState.READY, 0.0, 0.0)
    SqliteStore(instance.state_dir, instance.name).put_shadow(shadow)
    assert serves_on not in said("drain", "web-2")


def drained(world: World, *names: str, back: bool = False) -> None:
    for name in names:
        requests.request_drain(world.store, name, not back)


def told(world: World) -> dict[str, tuple[bool, bool]]:
    (service,) = json.loads(world.shown[-1])["services"]
    return {group["name"]: (group["drained"], group["serves_on"]) for group in service["groups"]}


def test_who_is_drained_like_all_others_is_told_to_serve_on() -> None:
    world = World(config(endpoints=2))
    world.ticks(5, 60.0)
    drained(world, "web-1")
    world.ticks(2, 60.0)
    assert told(world) == {"web-1": (True, False), "web-2": (False, False)}
    assert world.dataplane.served["web-1"] == 0.0
    drained(world, "web-2")
    world.ticks(2, 60.0)
    assert told(world) == {"web-1": (True, True), "web-2": (True, True)}
    assert min(world.dataplane.served.values()) > 0.0
    assert Sample("endpoint_serves_on", {"service": "web", "endpoint": "web-1"}, 1.0) in world.metrics.samples
    group = json.loads(world.shown[-1])["services"][0]["groups"][0]
    whole = {"service": "web", "horizon_s": 4.0, "earlier_s": 0.0, "pool": None, "novelty": None}
    lines = list(explain._of_group({"common_cause": "", **whole, **group}))
    assert "  drained    but nobody else could take its new flows: it serves on" in lines
    assert world.controller.status().services[0].pool.capacity == 2 * CAPACITY
    drained(world, "web-2", back=True)
    world.ticks(2, 60.0)
    assert told(world) == {"web-1": (True, False), "web-2": (False, False)}
    on = [row.reason for row in world.store.rows if row.action == "serve-on"]
    why = "drained, but nobody else could take its new flows: it serves on"
    assert on == [f"web-1: {why}", f"web-2: {why}", "web-1: drained, and gets no new flows any more"]


def test_who_is_drained_and_has_a_shadow_does_not_serve_on() -> None:
    world = World(config())
    world.ticks(5, 60.0)
    requests.request_shadow_add(world.store, "web-1")
    world.until(ShadowState.READY, 60.0)
    drained(world, "web-1")
    world.ticks(3, 60.0)
    assert world.dataplane.served["web-1"] == 0.0
    assert told(world) == {"web-1": (True, False)}


def three(load: float, weights: tuple[float, ...] = (1.0, 1.0, 1.0)) -> World:
    """A pool, or three on their own, that has seen this load."""
    whole = config(endpoints=3, headroom=0.0)
    web = whole.services["web"]
    endpoints = tuple(replace(one, weight=w) for one, w in zip(web.endpoints, weights, strict=True))
    world = World(replace(whole, services={"web": replace(web, endpoints=endpoints)}))
    world.ticks(60, load)
    return world


NAMES = ("web-1", "web-2", "web-3")


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, 1.01, 1.0)], ids=["pool", "each on its own"])
def test_all_that_are_drained_one_after_another_and_no_longer_need_no_shadow(weights) -> None:
    world = three(120.0, weights)
    for back in (False, True):
        for name in NAMES:
            drained(world, name, back=back)
            world.tick(120.0)
        world.ticks(30, 120.0)
        assert world.orders() == []


@pytest.mark.parametrize("weights", [(1.0, 1.0, 1.0), (1.0, 1.01, 1.0)], ids=["pool", "each on its own"])
def test_negative_control_who_alone_is_not_drained_and_has_too_much_gets_one(weights) -> None:
    world = three(120.0, weights)
    drained(world, *NAMES)
    world.ticks(3, 120.0)
    drained(world, "web-1", back=True)
    world.ticks(10, 120.0)
    assert world.orders() != []


def test_a_pool_whose_endpoints_are_all_drained_counts_on_them_as_before() -> None:
    world = three(120.0)
    world.provisioner.hang = True
    requests.request_shadow_add(world.store, "web-1")  # so that it is asked about
    world.ticks(2, 120.0)
    drained(world, *NAMES)
    world.ticks(30, 120.0)
    assert world.orders() == ["web-1-s1"]
    assert world.controller.status().services[0].pool.wanted >= 3
