# SPDX-License-Identifier: Apache-2.0
"""Shares computed forward from demand and capacity: nobody is given more than it can serve."""

from __future__ import annotations

import math
from dataclasses import replace
from ipaddress import IPv4Address
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane import weights
from controlplane.model import LIMIT_WINDOW_S, Endpoint, Shadow, ShadowState


@given(st.floats(0.0, 400.0), st.floats(0.1, 4.0), st.floats(10.0, 200.0))
def test_while_the_group_can_serve_it_no_member_is_over_its_capacity(demand, shadows, capacity):
    spill = weights.wanted_spill(demand, capacity, shadows, True)
    assert 0.0 <= spill < 1.0
    if demand <= capacity * (1 + shadows):
        assert demand * (1 - spill) <= capacity * 1.0001
        assert demand * spill <= shadows * capacity * 1.0001


@given(st.floats(0.0, 1.0), st.floats(0.0, 1.0))
def test_stepping_arrives_or_stays_within_the_dead_band(installed, wanted):
    steps = [installed]
    for _ in range(60):
        steps.append(weights.step_spill(steps[-1], wanted))
    assert abs(steps[-1] - wanted) < 0.05
    assert all(abs(b - a) <= 0.25 + 1e-9 for a, b in pairwise(steps))
    assert steps[-1] == steps[-2], "it comes to rest"


@pytest.mark.parametrize(
    ("demand", "capacity", "shadows", "live_usable", "spill"),
    [
        (90.0, 100.0, 0.0, True, 0.0),
        (90.0, 100.0, 1.0, False, 1.0),
        (40.0, 100.0, 1.0, True, 0.0),
        (90.0, None, 1.0, True, 0.5),
        (200.0, 100.0, 1.0, True, 0.5),
    ],
    ids=[
        "without shadows nothing is spilled",
        "a live one that can't serve spills all",
        "half of its capacity is its own",
        "of unknown capacity equal shares",
        "at the group's limit all are full",
    ],
)
def test_spill(demand, capacity, shadows, live_usable, spill):
    assert weights.wanted_spill(demand, capacity, shadows, live_usable) == pytest.approx(spill)


def a_shadow(state: ShadowState, healthy: float | None = None) -> Shadow:
    return Shadow("s", "web", "web-1", "a", "netns", state, 0.0, 0.0, healthy_unix_s=healthy, share=0.4)


@pytest.mark.parametrize(
    ("state", "up", "weight"),
    [
        (ShadowState.READY, True, 1.0),
        (ShadowState.READY, False, 0.0),
        (ShadowState.WARMING, True, 0.5),
        (ShadowState.DRAINING, True, 0.4),
        (ShadowState.DRAINING, False, 0.0),
        (ShadowState.REMOVING, True, 0.0),
        (ShadowState.FAILED, True, 0.0),
    ],
    ids=lambda value: getattr(value, "value", str(value)),
)
def test_a_shadow_is_given_its_share_by_state_and_health(state, up, weight):
    assert weights.shadow_weight(a_shadow(state, 95.0), up, 10.0, 100.0) == weight


@pytest.mark.parametrize(
    ("back", "now", "weight"),
    [(None, 200.0, 1.0), (90.0, 200.0, 1.0), (200.0, 200.0, 0.1), (200.0, 204.0, 0.4), (200.0, 210.0, 1.0)],
    ids=["never down", "healthy before it was ready", "just back", "warming up again", "warm"],
)
def test_a_ready_shadow_that_was_down_warms_up_again(back, now, weight):
    shadow = replace(a_shadow(ShadowState.READY, back), ready_unix_s=100.0)
    assert weights.shadow_weight(shadow, True, 10.0, now) == weight
    assert weights.shadow_weight(shadow, False, 10.0, now) == 0.0


def test_who_came_back_takes_its_share_step_by_step():
    parts = [weights.warmth(100.0, 4.0, 100.0 + at) for at in range(6)]
    assert parts == [0.1, 0.2, 0.5, 0.8, 1.0, 1.0]
    assert weights.warmth(None, 4.0, 100.0) == weights.warmth(100.0, 0.0, 100.0) == 1.0
    assert [weights.warming_spill(0.5, part) for part in (0.1, 0.5, 1.0)] == pytest.approx([0.95, 0.75, 0.5])


@pytest.mark.parametrize(
    ("capacity", "limit", "part", "flows"),
    [
        (400.0, None, 1.0, 59),
        (400.0, None, 0.1, 10),
        (0.5, None, 1.0, 1),
        (None, None, 1.0, 0),
        (400.0, math.inf, 1.0, 0),
        (400.0, 200.0, 1.0, 20),
        (None, 205.0, 1.0, 21),
        (None, 200.0, 0.5, 10),
        (None, 1.0, 0.1, 1),
    ],
    ids=[
        "by capacity: 40 and three deviations",
        "the same, warming up",
        "one at least",
        "of unknown capacity none",
        "none if told so",
        "what it is told goes before capacity, and nothing on top",
        "rounded up, without a capacity too",
        "what it is told, warming up",
        "never none by rounding",
    ],
)
def test_a_limit(capacity, limit, part, flows):
    told = replace(endpoint("a", capacity=capacity), limit=limit)
    assert weights.window_limit(told, part) == flows


def test_at_its_capacity_an_endpoint_passes_its_limit_in_one_window_of_hundreds():
    for capacity in (40.0, 170.0, 400.0, 10_000.0):
        windows = np.random.default_rng(3).poisson(capacity * LIMIT_WINDOW_S, 200_000)
        past = windows > weights.window_limit(endpoint("a", capacity=capacity), 1.0)
        assert 0 < past.mean() < 1 / 200


def endpoint(name: str, weight: float = 1.0, capacity: float | None = None) -> Endpoint:
    return Endpoint(name, "web", IPv4Address(1), 80, weight, capacity)


def test_ring_weights_are_capacities_where_all_are_known():
    both = {"a": endpoint("a", 1.0, 50.0), "b": endpoint("b", 1.0, 150.0)}
    assert weights.ring_weights(both) == {"a": 0.5, "b": 1.5}
    one = {"a": endpoint("a", 1.0, 50.0), "b": endpoint("b", 3.0)}
    assert weights.ring_weights(one) == {"a": 0.5, "b": 1.5}


def test_a_ring_changes_past_the_band_and_the_pause():
    assert not weights.ring_is_due({"a": 1.0, "b": 1.0}, {"a": 1.05, "b": 0.95}, 0.0, 100.0)
    assert not weights.ring_is_due({"a": 1.0, "b": 1.0}, {"a": 1.5, "b": 0.5}, 95.0, 100.0)
    assert weights.ring_is_due({"a": 1.0, "b": 1.0}, {"a": 1.5, "b": 0.5}, 89.0, 100.0)


def test_what_is_urgent_takes_from_whom_it_is_about_and_leaves_the_others_as_they_are():
    installed, wanted = {"a": 1.0, "b": 1.2, "c": 0.8}, {"a": 0.4, "b": 0.8, "c": 1.8}
    reduced = weights.reduce_ring(installed, wanted, {"a"})
    assert reduced == {"a": 0.4, "b": 1.56, "c": 1.04}
    assert sum(reduced.values()) == pytest.approx(3.0)
    assert weights.reduce_ring(installed, wanted, {"c"}) == installed, "nobody is given more"
    assert weights.reduce_ring(installed, {"a": 0.95, "b": 1.0, "c": 1.05}, {"a"}) == installed
    assert weights.reduce_ring({"a": 1.0}, {"a": 1.0}, {"a"}) == {"a": 1.0}


def test_when_members_come_or_go_those_that_stay_keep_their_weights_to_each_other():
    wanted = {"a": 0.6, "b": 1.2, "c": 1.2}
    assert weights.join_ring({"a": 1.0, "b": 1.0}, wanted) == {"a": 0.9, "b": 0.9, "c": 1.2}
    assert weights.join_ring({"a": 1.2, "b": 0.8, "d": 1.0}, {"a": 1.0, "b": 1.0}) == {"a": 1.2, "b": 0.8}
    assert weights.join_ring({}, wanted) == weights.join_ring({"d": 1.0}, wanted) == wanted
