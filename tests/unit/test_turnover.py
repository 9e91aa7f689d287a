# SPDX-License-Identifier: Apache-2.0
"""How long flows live, and that shadows are ordered earlier where little can be moved."""

from __future__ import annotations

import math

import numpy as np
import pytest

from controlplane import fleet
from controlplane.record import redone
from controlplane.turnover import Turnover, earlier_s
from tests.flowing import FlowingWorld
from tests.world import CAPACITY, config


def told(life_s: float, rates: list[float], every_s: int = 30) -> float | None:
    """What is told of flows that live so long, at these new flows/s."""
    turnover, there = Turnover(["web"]), 0.0
    for second, rate in enumerate(rates):
        there += rate - there * (1.0 - math.exp(-1.0 / life_s))
        turnover.take(np.array([rate]), 1.0)
        if second % every_s == every_s - 1:
            turnover.count({"web": round(there)})
    return turnover.lives_s().get("web")


@pytest.mark.parametrize("life_s", [2.0, 30.0, 300.0])
def test_a_mean_life_is_what_is_open_by_what_is_new(life_s):
    assert told(life_s, [50.0] * 3000) == pytest.approx(life_s, rel=0.3)


def test_of_few_flows_and_of_those_that_were_not_read_nothing_is_told():
    assert told(30.0, [0.01] * 600) is None
    blind = Turnover(["web"])
    blind.take(np.array([math.nan]), 60.0)
    blind.count({"web": 1000})
    assert blind.lives_s() == {}


def test_another_configuration_knows_what_was_known():
    before, after = Turnover(["a", "web"]), Turnover(["web", "b"])
    before.take(np.array([1.0, 50.0]), 60.0)
    before.count({"web": 1000})
    after.resume(before)
    assert after.lives_s() == {"web": 20.0}


@pytest.mark.parametrize(
    ("life_s", "earlier"), [(None, 0.0), (1.0, 0.0), (30.0, 20.8), (80.0, 55.5), (3600.0, 60.0)]
)
def test_until_half_of_its_share_has_moved_but_not_for_ever(life_s, earlier):
    assert earlier_s(life_s) == pytest.approx(earlier, abs=0.1)


def rising(life_s: float, records: bool = False) -> tuple[int, FlowingWorld]:
    """The second of a slow rise in which the first shadow was ordered."""
    world = FlowingWorld(config(headroom=0.0, standing=False), life_s, 0.95, records=records)
    world.ticks(300, 40.0, noisy=False)
    for second in range(600):
        world.tick(40.0 + 0.2 * second, noisy=False)
        if world.orders():
            return second, world
    raise AssertionError("nobody was ordered")


def test_where_little_can_be_moved_shadows_are_ordered_earlier_and_it_is_said():
    short, _ = rising(1.0)
    long, world = rising(120.0, records=True)
    assert 40.0 + 0.2 * long < CAPACITY
    assert long < short - 20
    service = world.controller.status().services[0]
    assert service.flow_life_s == pytest.approx(120.0, rel=0.3)
    assert service.earlier_s == 60.0
    (said,) = [row.reason for row in world.store.rows if row.action == "add"]
    assert "little can be moved, so 60 s earlier" in said
    again = list(redone(world.recorded, lambda number: world.configs[int(number)]))
    assert [one for one in again if not one.is_same] == []


def test_negative_control_with_the_measurement_withheld_they_are_not(monkeypatch):
    with_it, _ = rising(120.0)
    monkeypatch.setattr(fleet, "earlier_s", lambda life_s: 0.0)
    without, _ = rising(120.0)
    assert with_it < without - 20


def test_a_rise_that_is_faster_than_provisioning_is_over_capacity_for_less_long_by_it(monkeypatch):
    def over_s() -> int:
        settings = config(headroom=0.0, standing=False, lead_time_s=120.0)
        world, over = FlowingWorld(settings, 120.0, 0.95), 0
        world.provisioner.lead_s = 118.5
        world.ticks(300, 50.0, noisy=False)
        for second in range(400):
            world.tick(min(50.0 + second, 190.0), noisy=False)
            over += world.dataplane.load["web-1"] > CAPACITY
        return over

    with_it = over_s()
    monkeypatch.setattr(fleet, "earlier_s", lambda life_s: 0.0)
    assert 0 < with_it < over_s()
