# SPDX-License-Identifier: Apache-2.0
"""What is normal survives a crash of the controller."""

from __future__ import annotations

import base64
import copy
import json

import numpy as np
import pytest

from controlplane import normals
from controlplane.baseline import Baseline
from controlplane.signs import Count, Signs, Time
from tests.unit.test_troubled_loop import DEMAND, FOUND, calm, said
from tests.world import World, config

NOW = 1.7e9
ROWS = np.arange(2)


@pytest.fixture(scope="module")
def learned() -> World:
    return calm(config(endpoints=3, idle_s=300.0))


def begun_anew(world: World) -> World:
    """While an endpoint fails, and nobody has seen it yet."""
    world.dataplane.resets["web-1"] = 0.2
    world.ticks(1, DEMAND)
    world.restart()
    world.ticks(FOUND, DEMAND)
    return world


def test_errors_that_are_there_when_the_controller_begins_anew_are_found(learned):
    world = begun_anew(copy.deepcopy(learned))
    assert world.orders() == ["web-1-s1"]
    assert "of flows are reset" in said(world, "penalty")[0]


def test_negative_control_where_nothing_is_kept_they_are_taken_for_normal(learned):
    world = copy.deepcopy(learned)
    assert world.store.values.pop("normal:web")
    assert begun_anew(world).orders() == []


def test_what_is_not_readable_is_said_and_learned_anew(learned):
    world = copy.deepcopy(learned)
    world.store.values["normal:web"] = "{"
    world.restart()
    assert "web: what was normal is not readable" in world.controller._journal.troubles()["learned"]
    world.ticks(FOUND, DEMAND)
    assert world.orders() == []


def baseline(readings: int, names: tuple[str, ...] = ("a", "b")) -> Baseline:
    one = Baseline(names)
    counts, of = np.full((len(Count), len(names)), 2.0), np.full((len(Count), len(names)), 100.0)
    for _ in range(readings):
        signs = Signs(1.0, counts, of, np.full((len(Time), len(names)), 6.0))
        one.judge(signs, np.ones(len(names)), np.zeros((len(Time), len(names))))
        one.learn(signs, np.ones(len(names), bool), np.ones(len(names), bool))
    return one


def recalled(age_s: float, names: tuple[str, ...] = ("a", "b")) -> Baseline:
    again = Baseline(names)
    normals.recall(again, normals.text(baseline(100), ROWS, NOW), NOW + age_s)
    return again


def test_all_is_known_again_of_the_same_names():
    again = recalled(60.0, ("b", "c"))
    assert again.known[:, 0].all()
    assert not again.known[:, 1].any()
    np.testing.assert_allclose(again.normal_count()[:, 0], baseline(100).normal_count()[:, 1], rtol=1e-6)
    np.testing.assert_allclose(again.normal_time()[:, 0], 6.0, rtol=1e-6)


def test_rates_of_hours_ago_are_not_normal_any_more_and_nothing_is_of_days_ago_or_of_the_future():
    hours = recalled(3600.0).known[:, 0]
    assert not hours[[Count.RATE, Count.OFFERED]].any()
    assert hours[Count.RESETS :].all()
    assert not recalled(2 * 86_400.0).known.any()
    assert not recalled(-5.0).known.any()


def without(key: str) -> str:
    told = json.loads(normals.text(baseline(1), ROWS, NOW))
    return json.dumps({name: value for name, value in told.items() if name != key})


def with_(**values: object) -> str:
    return json.dumps(json.loads(normals.text(baseline(1), ROWS, NOW)) | values)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "null",
        without("at"),
        without("names"),
        without("normal"),
        with_(at="now"),
        with_(names="ab"),
        with_(names=["a"]),
        with_(names=[1, 2]),
        with_(normal="@@"),
        with_(normal="AAAA"),
        with_(normal=base64.b64encode(np.full(72, np.nan, "<f4").tobytes()).decode()),
    ],
)
def test_garbage_is_refused_whole(text):
    one = Baseline(("a", "b"))
    with pytest.raises(ValueError, match="what was normal"):
        normals.recall(one, text, NOW)
    assert not one.known.any()
