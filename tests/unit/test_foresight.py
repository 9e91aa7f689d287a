# SPDX-License-Identifier: Apache-2.0
"""Ticks become steps, and what was learned is learned again from the past."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from controlplane.foresight import Foresight, step_s
from controlplane.model import ShadowSettings
from controlplane.past import MOST, Past

CAPACITY, LEAD_S, STEP_S = 10.0, 60.0, 15.0
SETTINGS = ShadowSettings()
BEGIN_S = 1.5e9


def load(steps: int, seed: int = 1) -> list[float]:
    """Flows/s with bursts, a little random."""
    random = np.random.default_rng(seed)
    rate = np.where(np.arange(steps) % 120 < 20, 70.0, 25.0)
    return (rate * random.lognormal(0.0, 0.1, steps)).tolist()


def fed(demand: list[float], foresight: Foresight | None = None, begin_s: float = BEGIN_S) -> Foresight:
    foresight = foresight or Foresight(STEP_S, LEAD_S, CAPACITY, SETTINGS)
    for step, rate in enumerate(demand, 1):
        foresight.observe(rate, STEP_S, begin_s + step * STEP_S)
    return foresight


def kept(past: Past) -> dict[int, str]:
    rows: dict[int, str] = {}
    for chunk, text in past.chunks(past.begin):
        if text is None:
            rows.pop(chunk, None)
        else:
            rows[chunk] = text
    return rows


@pytest.mark.parametrize(
    ("lead_s", "tick_s", "step"), [(3.0, 1.0, 5.0), (30.0, 1.0, 7.0), (600.0, 1.0, 15.0), (30.0, 60.0, 60.0)]
)
def test_a_step_is_a_quarter_of_the_lead_time_within_bounds_and_whole_ticks(lead_s, tick_s, step):
    assert step_s(lead_s, tick_s) == step


def test_ticks_are_gathered_into_the_mean_of_their_step():
    foresight = Foresight(STEP_S, LEAD_S, CAPACITY, SETTINGS)
    ended = [foresight.observe(float(tick), 1.0, BEGIN_S + tick + 1) for tick in range(30)]
    assert [at for at, one in enumerate(ended) if one] == [14, 29]
    assert foresight.past.since(0) == [7.0, 22.0]


def test_a_step_of_which_little_was_read_and_steps_without_a_tick_had_no_reading():
    foresight = Foresight(STEP_S, LEAD_S, CAPACITY, SETTINGS)
    for tick in range(15):
        foresight.observe(20.0 if tick < 7 else math.nan, 1.0, BEGIN_S + tick + 1)
    foresight.observe(20.0, 1.0, BEGIN_S + 46)
    assert np.isnan(foresight.past.since(0)).tolist() == [True, True, True]
    assert foresight.size is not None
    assert foresight.size.reason == "no reading to learn from: 1 as before"


def test_after_a_crash_the_same_is_known_but_for_what_was_not_kept_yet():
    demand = load(700)
    before = fed(demand)
    rows = kept(before.past)
    after = Foresight(STEP_S, LEAD_S, CAPACITY, SETTINGS)
    assert after.recall(BEGIN_S + 700 * STEP_S, rows.get) == []
    assert after.size is not None, "there is an answer at once"
    while after.is_learning:
        after.learn_again(50)
    assert after.size == before.size
    more = load(60, seed=2)
    assert fed(more, after, BEGIN_S + 700 * STEP_S).size == fed(more, before, BEGIN_S + 700 * STEP_S).size


def test_steps_that_are_concluded_later_tell_the_same():
    demand = load(100)
    late = Foresight(STEP_S, LEAD_S, CAPACITY, SETTINGS)
    for step, rate in enumerate(demand, 1):
        assert late.gather(rate, STEP_S, BEGIN_S + step * STEP_S)
        if step % 3 == 0:
            late.conclude()
    late.conclude()
    assert late.size == fed(demand).size
    late.conclude()
    assert late.size == fed(demand).size, "once each"


def test_a_step_that_was_learned_from_again_is_not_concluded_once_more():
    demand = load(200)
    foresight = fed(demand[:199])
    foresight.reckon(2 * LEAD_S, CAPACITY)
    assert foresight.gather(demand[199], STEP_S, BEGIN_S + 200 * STEP_S)
    while foresight.is_learning:
        foresight.learn_again(50)
    foresight.conclude()
    assert foresight.size == fed(demand, Foresight(STEP_S, 2 * LEAD_S, CAPACITY, SETTINGS)).size


def test_with_the_same_settings_it_goes_on_where_the_other_one_was():
    demand = load(400)
    before, after = fed(demand[:-1]), Foresight(STEP_S, LEAD_S, CAPACITY, SETTINGS)
    before.gather(demand[-1], STEP_S, BEGIN_S + 400 * STEP_S)
    after.resume(before)
    assert not after.is_learning
    after.conclude()
    assert after.size == fed(demand).size


def test_with_other_costs_it_learns_from_the_same_past():
    demand, other = load(400), ShadowSettings(over_cost=30.0)
    after = Foresight(STEP_S, LEAD_S, CAPACITY, other)
    after.resume(fed(demand))
    assert after.is_learning
    while after.is_learning:
        after.learn_again(50)
    assert after.size == fed(demand, Foresight(STEP_S, LEAD_S, CAPACITY, other)).size


def test_negative_control_without_what_was_kept_it_is_not_the_same():
    demand = load(700)
    assert fed(demand).size != fed(demand[-3:]).size


def test_another_lead_time_is_learned_from_the_same_past():
    demand = load(400)
    foresight = fed(demand)
    foresight.reckon(LEAD_S * 1.1, CAPACITY)
    assert not foresight.is_learning, "nearly the same is the same"
    foresight.reckon(2 * LEAD_S, CAPACITY)
    while foresight.is_learning:
        foresight.learn_again(50)
    other = Foresight(STEP_S, 2 * LEAD_S, CAPACITY, SETTINGS)
    assert foresight.size == fed(demand, other).size


def test_what_does_not_teach_is_kept_and_sizes_nothing():
    demand, foresight = load(120), Foresight(STEP_S, LEAD_S, CAPACITY, SETTINGS)
    gap = Foresight(STEP_S, LEAD_S, CAPACITY, SETTINGS)
    for step, rate in enumerate(demand, 1):
        in_storm = 60 < step <= 90
        now_s = BEGIN_S + step * STEP_S
        foresight.gather(9.0 * rate if in_storm else rate, STEP_S, now_s, teaches=not in_storm)
        gap.gather(math.nan if in_storm else rate, STEP_S, now_s)
    foresight.conclude()
    gap.conclude()
    assert foresight.size == gap.size
    chunks = {chunk: text for chunk, text in foresight.past.chunks(0) if text}
    again, number = Past(STEP_S), foresight.past.end
    assert again.recall(number, chunks.get) == []
    assert [math.isnan(one) for one in again.since(0)] == [60 < step <= 90 for step in range(1, 121)]
    assert any(9.0 * demand[70] == pytest.approx(one, rel=1e-4) for one in again._demand), "it is kept"


def test_a_step_of_which_half_teaches_is_that_half():
    foresight = Foresight(STEP_S, LEAD_S, CAPACITY, SETTINGS)
    for second in range(1, int(STEP_S) + 1):
        foresight.gather(10.0 if second > 4 else 500.0, 1.0, BEGIN_S + second, teaches=second > 4)
    assert foresight.past.since(0) == [10.0]


def test_the_past_ends_with_what_is_kept_and_old_chunks_are_forgotten():
    past = Past(STEP_S)
    rows: dict[int, str | None] = {}
    end = 0
    for step in range(2 * MOST):
        past.add(step, 1.0)
        if step % 100 == 99:
            rows.update(past.chunks(end))
            end = past.end
    there = {chunk for chunk, text in rows.items() if text is not None}
    assert len(there) == MOST // 240 + 1
    assert len(past.since(0)) < 2 * MOST


@pytest.mark.parametrize(
    "text",
    ["", "[]", "{}", '{"step_s": 15.0, "begin": 0}', '{"step_s": 15.0, "begin": 0, "demand": ["x"]}',
     '{"step_s": 15.0, "begin": 0, "demand": [-1]}', '{"step_s": 15.0, "begin": 0, "demand": [NaN]}'],
)  # fmt: skip
def test_what_was_kept_and_is_damaged_is_said_and_left_out(text):
    past = Past(STEP_S)
    good = json.dumps({"step_s": STEP_S, "begin": 240, "demand": [1.0, None, 3.0]})
    wrong = past.recall(300, {0: text, 1: good}.get)
    assert len(wrong) == 1
    assert "chunk 0" in wrong[0]
    assert past.begin == 240
    assert past.since(0)[::2] == [1.0, 3.0]


def test_what_was_kept_of_other_steps_says_nothing():
    past = Past(STEP_S)
    other = json.dumps({"step_s": 5.0, "begin": 0, "demand": [1.0]})
    assert past.recall(300, {0: other}.get) == []
    assert past.since(0) == []
