# SPDX-License-Identifier: Apache-2.0
"""Shadows that are drained while the load goes on, part of it on connections that were there before."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest

from controlplane import drains, policy
from controlplane.fleet import Fleet
from controlplane.loop import Controller
from controlplane.model import Shadow, ShadowState
from tests.flowing import FlowingWorld
from tests.world import CAPACITY, config

LIFE_S = 90.0
HIGH, FITS, LOW, BACK = 150.0, 85.0, 60.0, 110.0


def loaded(old: float) -> FlowingWorld:
    """Two members serve."""
    return copy.deepcopy(_loaded(old))


@cache
def _loaded(old: float) -> FlowingWorld:
    world = FlowingWorld(
        config(headroom=0.1, idle_s=60.0, min_life_s=20.0, drain_s=30.0, standing=False), LIFE_S, old
    )
    world.ticks(60, 40.0, noisy=False)
    world.ticks(450, HIGH, noisy=False)
    assert world.states() == [ShadowState.READY]
    return world


def shadow(world: FlowingWorld) -> Shadow | None:
    return world.store.records.get("web-1-s1")


def until(world: FlowingWorld, stage: str) -> Shadow:
    """``ramp``: half of it is over; ``wait``: it gets no new flows; ``evict``: some old ones are cut."""
    for _ in range(600):
        world.tick(LOW, noisy=False)
        now = shadow(world)
        assert now is not None, f"it never came to {stage}"
        if now.state is ShadowState.DRAINING and (
            (stage == "ramp" and now.share <= 0.5)
            or (stage == "wait" and now.share == 0.0)
            or (stage == "evict" and now.evicted > 0.2)
        ):
            return now
    raise AssertionError(f"it never came to {stage}")


@dataclass
class Seen:
    load: list[float]
    """Of the live one, each second."""
    given: list[float]
    """New flows."""
    cut: list[float]
    ordered: list[str]


def drained(world: FlowingWorld) -> Seen:
    """Until it is gone, or somebody is ordered."""
    seen, before = Seen([], [], [], []), world.orders()
    for _ in range(600):
        world.tick(LOW, noisy=False)
        seen.load.append(world.dataplane.load["web-1"])
        seen.given.append(world.dataplane.served["web-1"])
        seen.cut.append(world.dataplane.cut)
        seen.ordered = world.orders()[len(before) :]
        if shadow(world) is None or seen.ordered:
            return seen
    raise AssertionError("it was never drained")


@pytest.mark.parametrize("old", [0.0, 0.5, 0.95])
def test_a_drain_never_brings_the_live_one_above_capacity(old):
    seen = drained(loaded(old))
    assert max(seen.load) <= CAPACITY
    assert sum(seen.cut) > 100, "some outlive the deadline"
    assert seen.ordered == []
    assert max(seen.given) <= CAPACITY, "those that were cut come again, but few at a time"


def test_negative_control_all_at_once_at_the_deadline_are_a_storm(monkeypatch):
    world = loaded(0.5)
    monkeypatch.setattr(drains, "_slice", lambda *_: 1.0)
    seen = drained(world)
    assert max(seen.given) > CAPACITY
    assert max(seen.load) > CAPACITY


def moved(world: FlowingWorld) -> float:
    """New flows/s that came to the live one within one second, at most, until the other got none."""
    world.ticks(20, FITS, noisy=False)
    given = [world.dataplane.served["web-1"]]
    while world.dataplane.members["web-1"].slots:
        world.tick(FITS, noisy=False)
        given.append(world.dataplane.served["web-1"])
        assert len(given) < 600, "it is not drained"
    world.tick(FITS, noisy=False)
    given.append(world.dataplane.served["web-1"])
    return float(max(np.diff(given)))


def test_new_flows_move_a_few_at_a_time():
    assert moved(loaded(0.0)) <= 0.1 * FITS, "spill moves by a twentieth; the last step may be nearly two"


def test_negative_control_without_a_ramp_they_move_at_once(monkeypatch):
    world = loaded(0.0)
    monkeypatch.setattr(drains, "first_share", lambda settings: 0.0)
    assert moved(world) > 0.2 * FITS


def after_load_is_back(stage: str) -> Shadow | None:
    world = loaded(0.95)
    until(world, stage)
    world.ticks(2, BACK, noisy=False)
    assert not world.dataplane.members["web-1-s1"].draining
    for _ in range(20):
        world.tick(BACK, noisy=False)
        assert world.dataplane.load["web-1"] <= CAPACITY
    return shadow(world)


@pytest.mark.parametrize("stage", ["ramp", "wait", "evict"])
def test_when_the_load_is_back_whoever_drains_serves_again_at_once(stage):
    kept = after_load_is_back(stage)
    assert kept is not None
    assert (kept.state, kept.share, kept.evicted) == (ShadowState.READY, 1.0, 0.0)


def test_negative_control_without_that_the_drain_goes_on(monkeypatch):
    monkeypatch.setattr(policy, "_kept", lambda *_: ())
    with pytest.raises(AssertionError, match="draining"):
        after_load_is_back("wait")


def blind(stage: str) -> tuple[Shadow, Shadow | None]:
    world = loaded(0.95)
    before = until(world, stage)
    world.dataplane.still = True
    world.ticks(5, LOW, noisy=False)
    before = replace(before, **{name: getattr(shadow(world), name) for name in ("share", "evicted")})
    world.ticks(90, LOW, noisy=False)
    return before, shadow(world)


@pytest.mark.parametrize("stage", ["ramp", "wait", "evict"])
def test_on_stale_readings_no_step_is_taken(stage):
    before, after = blind(stage)
    assert after is not None
    assert (after.state, after.share, after.evicted) == (before.state, before.share, before.evicted)


def test_negative_control_readings_that_pass_for_fresh(monkeypatch):
    monkeypatch.setattr(Controller, "_fresh", property(lambda self: True))
    monkeypatch.setattr(Fleet, "answers_are_fresh", lambda *_: True)
    _, after = blind("ramp")
    assert after is None or after.share < 0.4


def test_a_drain_goes_on_where_it_was_after_a_restart():
    world = loaded(0.5)
    before = until(world, "ramp")
    slots = world.dataplane.members["web-1"].slots
    world.restart()
    world.ticks(1, LOW, noisy=False)
    assert world.dataplane.members["web-1"].slots == slots
    assert shadow(world) == before
