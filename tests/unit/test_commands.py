# SPDX-License-Identifier: Apache-2.0
"""What commands answer, and what is told of what they ask for."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from controlplane import model, requests
from controlplane.adapters.sqlite import SqliteStore
from controlplane.cli import actions, app
from controlplane.cli.instance import Instance
from controlplane.model import ShadowState
from tests.world import World, config

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
