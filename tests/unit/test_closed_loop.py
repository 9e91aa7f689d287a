# SPDX-License-Identifier: Apache-2.0
"""The controller and what it acts upon, as one loop: what it does changes what it reads next."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from controlplane import fleet, model, observe
from controlplane.capacity import Capacities
from controlplane.fleet import Fleet
from controlplane.loads import Loads
from controlplane.ports import Counters
from tests import grid
from tests.world import CAPACITY, World, config

SETTLED, STEADY = 1200, 1800
"""Ticks until enough is known to tell whether it pays to stand by, and half an hour."""


def steady(
    share: float,
    endpoints: int = 1,
    given: float = 1.0,
    late_s: int = 0,
    affinity: model.Affinity = model.Affinity.NONE,
) -> tuple[World, np.ndarray]:
    """The world after half an hour of constant demand, and (ticks, endpoints) its spill in that time.

    :param share: of what its endpoints can serve. ``given``: the configured capacity, as a part of the real
        one. ``late_s``: readings are so old. ``affinity``: endpoints are a pool, or groups on their own.
    """
    whole = config(endpoints=endpoints, idle_s=300.0)
    web = whole.services["web"]
    told = tuple(replace(one, capacity=CAPACITY * given) for one in web.endpoints)
    world = World(
        replace(whole, services={"web": replace(web, endpoints=told, affinity=affinity)}),
        seed=round(100 * share),
    )
    if late_s:
        read, seen = world.dataplane.counters, []

        def counters() -> Counters:
            seen.append(read())
            return seen[max(0, len(seen) - 1 - late_s)]

        world.dataplane.counters = counters
    demand = share * CAPACITY * endpoints
    world.ticks(SETTLED, demand)
    before = list(world.provisioner.orders)
    spill = np.zeros((STEADY, endpoints))
    for tick in range(STEADY):
        world.tick(demand)
        spill[tick] = [world.dataplane.members[one.name].spill for one in told]
        assert world.provisioner.orders == before, "nothing starts or stops"
    assert world.controller.status().troubles == {}
    return world, spill


@pytest.mark.parametrize(
    ("share", "endpoints", "given", "late_s", "affinity"),
    [
        (0.5, 1, 1.0, 0, model.Affinity.NONE),
        (0.9, 3, 1.0, 0, model.Affinity.NONE),
        (0.9, 3, 1.0, 0, model.Affinity.SOURCE),
        (1.0, 1, 1.3, 3, model.Affinity.NONE),
        (0.9, 1, 0.7, 0, model.Affinity.NONE),
        (1.5, 1, 1.0, 0, model.Affinity.NONE),
    ],
)
def test_at_constant_demand_spill_is_constant_and_nothing_starts_or_stops(
    share, endpoints, given, late_s, affinity
):
    _, spill = steady(share, endpoints, given, late_s, affinity)
    assert spill.std(axis=0).max() <= 0.02


def test_negative_control_demand_read_after_spill_swings(monkeypatch):
    """What the live endpoint itself is given looks like falling load as soon as its shadow serves."""
    whole = Fleet.observe_counters

    def after_spill(own: Fleet, before: Counters | None, after: Counters, *more: object) -> bool:
        def fed_back(one: Counters) -> Counters:
            return replace(one, completed=one.completed - np.minimum(one.spilled, one.completed))

        return whole(own, None if before is None else fed_back(before), fed_back(after), *more)

    monkeypatch.setattr(Fleet, "observe_counters", after_spill)
    with pytest.raises(AssertionError, match="nothing starts or stops"):
        steady(0.9, 3, affinity=model.Affinity.SOURCE)


def saturating(given: float, share: float, old: float) -> np.ndarray:
    """(ticks,) spill from five minutes on of an endpoint that answers slower the more it has to do.

    :param given: as ``share``, a part of what it can serve. ``old``: part of the requests on old connections.
    """
    world, demand = grid.world(grid.Cell(given, share, old, late_s=0)), share * CAPACITY
    world.ticks(300, demand)
    before, spill = list(world.provisioner.orders), np.zeros(500)
    for tick in range(500):
        world.tick(demand)
        spill[tick] = world.dataplane.members["web-1"].spill
    assert world.provisioner.orders == before, "nothing starts or stops"
    assert world.states() == [model.ShadowState.READY], "nothing starts or stops"
    known = world.controller._fleet.capacity(0)
    assert known <= 1.05 * CAPACITY, "what is given is not believed again"
    return spill


@pytest.mark.parametrize(("share", "old"), [(1.25, 0.0), (1.1, 0.5)])
def test_who_was_saturated_below_its_given_capacity_is_known_by_it_when_it_has_help(share, old):
    assert saturating(1.3, share, old).std() <= 0.02


def test_negative_control_what_was_seen_does_not_count(monkeypatch):
    monkeypatch.setattr(Capacities, "_is_below", lambda self, rows: np.zeros(len(rows), dtype=np.bool_))
    with pytest.raises(AssertionError, match="is not believed again"):
        saturating(1.3, 1.25, 0.0)


def relieved(share: float) -> World:
    """What is given is right, half of the requests come on old connections, and more is asked for than one
    can serve: three minutes later."""
    world = grid.world(grid.Cell(1.0, share, old=0.5, late_s=0))
    world.ticks(180, share * CAPACITY)
    assert world.states()[0] is model.ShadowState.READY
    return world


@pytest.mark.parametrize("share", [1.25, 1.5])
def test_who_is_relieved_of_new_flows_can_do_as_much_as_before(share):
    world = relieved(share)
    assert world.controller._fleet.capacity(0) == CAPACITY, "what is given is believed"
    assert world.orders() == ["web-1-s1"]


def test_negative_control_without_what_the_shadow_does(monkeypatch):
    """The live endpoint has the old flows' requests, and few new flows."""
    whole = observe.work

    def alone(reading: observe.Rates, *more: np.ndarray) -> observe.Work:
        own = reading.counted.flows / np.maximum(reading.counted.offered, 1.0)
        work = whole(reading, *more)
        return replace(work, completed=work.completed * own, done_by_shadows=0.0 * own)

    monkeypatch.setattr(fleet, "work", alone)
    assert relieved(1.5).controller._fleet.capacity(0) <= 0.8 * CAPACITY


def test_negative_control_the_relief_looks_like_a_climb(monkeypatch):
    monkeypatch.setattr(Loads, "help_came", lambda self, endpoint: None)
    assert len(relieved(1.5).orders()) > 1


def test_a_drain_never_brings_the_live_one_above_capacity():
    world = World(config(idle_s=60.0, min_life_s=20.0))
    world.ticks(60, 40.0)
    world.ticks(120, 150.0)
    assert world.states().count(model.ShadowState.READY) >= 1
    draining = 0
    for tick in range(900):
        demand = max(150.0 - 0.25 * tick, 20.0)
        world.tick(demand, noisy=False)
        draining += model.ShadowState.DRAINING in world.states()
        assert world.dataplane.served["web-1"] <= CAPACITY, f"at {demand}/s"
    assert draining > 0
    assert world.states() == []
