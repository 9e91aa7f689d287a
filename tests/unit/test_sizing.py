# SPDX-License-Identifier: Apache-2.0
"""How many members hindsight would have had, and the rules that it chooses among."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.forecast import rules as known
from controlplane.forecast.rules import Rules
from controlplane.simulation import plant
from controlplane.sizing import NAMES, STABLE_S, Sizing

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
CAPACITY, LEAD_S, STEP_S = 10.0, 60.0, 15.0
STABLE = int(STABLE_S / STEP_S)

Floats = npt.NDArray[np.float64]


def sized(demand: Iterable[float], over_cost: float = 6.0, capacity: float = CAPACITY) -> list[int]:
    """What is wanted after each step."""
    sizing = Sizing(capacity, LEAD_S, STEP_S, over_cost=over_cost)
    return [sizing.after(rate).wanted for rate in demand]


def scored(demand: Floats, over_cost: float = 6.0) -> plant.Score:
    wanted = np.array([1, *sized(demand, over_cost)[:-1]])
    return plant.score(wanted, demand, CAPACITY, LEAD_S, STEP_S)


def bursts(count: int, every: int = 60) -> Floats:
    """Four steps of nine members in every so many of three; when is not told by anything before."""
    random = np.random.default_rng(4)
    demand = np.full(count, 25.0)
    for at in range(every, count - 4, every):
        begin = at + int(random.integers(-every // 4, every // 4))
        demand[begin : begin + 4] = 85.0
    return demand


# ---- the rules ------------------------------------------------------------------------------


def by_name(rules: Floats) -> dict[str, float]:
    return dict(zip(known.NAMES, rules.tolist(), strict=True))


def test_each_rule_says_what_its_name_does() -> None:
    rules = Rules(STEP_S, LEAD_S)
    demand = np.random.default_rng(1).uniform(0, 100, 400)
    for rate in demand:
        asked = by_name(rules.of(float(rate)))
    assert asked["the highest of 30 s x 1"] == pytest.approx(demand[-2:].max())
    assert asked["the highest of 1200 s x 1.45"] == pytest.approx(1.45 * demand[-80:].max())
    assert asked["the highest of 57600 s x 2"] == pytest.approx(2 * demand.max())
    low = max(demand[-20:].mean() + demand[-20:].std(), demand[-2:].max())
    assert asked["the mean of 300 s + 1 sigma"] == pytest.approx(low)
    high = demand[-80:].mean() + 7 * demand[-80:].std()
    assert asked["the mean of 1200 s + 7 sigma"] == pytest.approx(high)


def test_a_trend_is_led_until_what_is_ordered_now_serves() -> None:
    rules = Rules(STEP_S, LEAD_S)
    for at in range(20):
        rising = by_name(rules.of(10.0 * at))
    # 10 a step, of which the lead time and the step to come make five; the level is of two steps
    assert rising["1 x the trend's highest of 15 s x 1.05"] == pytest.approx(1.05 * (185.0 + 50.0))
    for at in range(20):
        falling = by_name(rules.of(190.0 - 9.0 * at))
    assert falling["1 x the trend's highest of 15 s x 1.05"] == pytest.approx(1.05 * 23.5)


def test_windows_are_of_so_many_seconds_however_long_a_step_is() -> None:
    short, long = Rules(5.0, LEAD_S), Rules(60.0, LEAD_S)
    for minute in range(30):
        for _ in range(12):
            by_short = by_name(short.of(100.0 - minute))
        by_long = by_name(long.of(100.0 - minute))
    name = "the highest of 600 s x 1"
    assert by_short[name] == by_long[name] == pytest.approx(80.0)


# ---- which of them are followed -------------------------------------------------------------


def test_calm_demand_gets_what_it_needs_and_no_more() -> None:
    wanted = sized([97.0] * 2000)
    assert set(wanted[-500:]) == {10}


def test_until_something_is_known_there_is_room() -> None:
    assert sized([97.0])[0] > 10


def test_who_is_missed_again_and_again_is_there_before() -> None:
    demand = bursts(2500)
    late = scored(demand, over_cost=0.01).over
    assert late > 0.05
    assert scored(demand, over_cost=30.0).over < 0.2 * late


def test_what_never_comes_back_is_given_up() -> None:
    wanted = sized([25.0] * 500 + [85.0] * 40 + [25.0] * 3000)
    assert max(wanted[540:560]) >= 9
    assert wanted[-1] == 3


def test_the_more_a_second_over_costs_the_fewer_there_are() -> None:
    random = np.random.default_rng(7)
    demand = 50.0 * np.exp(random.normal(0, 0.6, 1500))
    scores = [scored(demand, over_cost) for over_cost in (0.3, 3.0, 30.0)]
    assert scores[0].over > scores[1].over > scores[2].over
    assert scores[0].cost < scores[1].cost < scores[2].cost


def test_steps_without_a_reading_move_nobody_and_teach_nothing() -> None:
    demand = bursts(900).tolist()
    gaps = [*demand[:500], *[math.nan] * 200, *demand[500:]]
    with_gaps = sized(gaps)
    assert len(set(with_gaps[500 + STABLE : 700])) == 1
    # what was held for five minutes is all that the gap lets go
    whole = sized(demand)
    assert with_gaps[700 + STABLE :] == whole[500 + STABLE :]


@given(
    st.lists(st.sampled_from([0.0, 5.0, 30.0, 300.0, math.nan]), min_size=60, max_size=200),
    st.sampled_from([0.1, 6.0, 60.0]),
)
@settings(max_examples=40, deadline=None)
def test_nobody_is_started_twice_in_ten_minutes_and_more_often(demand: list[float], over_cost: float) -> None:
    wanted = [1, *sized(demand, over_cost)]
    assert min(wanted) >= 1
    for level in range(2, max(wanted) + 1):
        there = np.array(wanted) >= level
        starts = np.flatnonzero(~there[:-1] & there[1:])
        stops = np.flatnonzero(there[:-1] & ~there[1:])
        for start in starts:
            assert not np.any((stops > start) & (stops < start + STABLE))


def test_only_their_ratio_counts() -> None:
    demand = bursts(800)
    assert sized(demand) == sized(demand * 1e6, capacity=CAPACITY * 1e6)


def test_a_group_of_any_size_is_sized() -> None:
    wanted = sized([10.0 * size for size in (1, 100_000, 1_000_000, 3, 3)])
    assert wanted[2] >= 1_000_000
    assert wanted[-1] <= 5_000_000


def test_more_than_anybody_could_have_is_sized_too() -> None:
    sizing = Sizing(1.0, 100_000.0, STEP_S)
    wanted = [sizing.after(1e5 * at).wanted for at in range(10)]
    assert wanted[-1] >= 900_000
    assert np.all(np.isfinite(sizing._costs))


def test_without_a_reading_nobody_is_let_go() -> None:
    sizing = Sizing(CAPACITY, LEAD_S, STEP_S)
    before = [sizing.after(rate).wanted for rate in [95.0] * 400 + [15.0] * 5]
    blind = [sizing.after(math.nan) for _ in range(100)]
    assert {size.wanted for size in blind} == {before[-1]}
    assert blind[-1].reason == f"no reading: {before[-1]} as before"
    for _ in range(4 * STABLE):
        after = sizing.after(15.0)
    assert after.wanted < before[-1]


def test_the_rule_that_is_named_asks_for_what_is_wanted() -> None:
    sizing = Sizing(CAPACITY, LEAD_S, STEP_S)
    assert "nothing is known" in sizing.after(50.0).reason
    for rate in np.random.default_rng(6).lognormal(4.0, 0.3, 500).tolist():
        size = sizing.after(rate)
        held = re.search(r"not long ago, now (\d+):", size.reason)
        asked = int(size.reason.rpartition(": ")[-1])
        assert asked >= (int(held[1]) if held else size.wanted)


def test_a_reason_names_the_rule_and_what_is_held() -> None:
    sizing = Sizing(CAPACITY, LEAD_S, STEP_S)
    for _ in range(500):
        sizing.after(85.0)
    for _ in range(20):
        sizing.after(600.0)
    for _ in range(STABLE // 2):
        reason = sizing.after(85.0).reason
    assert "were wanted not long ago" in reason
    assert any(name in reason for name in NAMES)
