# SPDX-License-Identifier: Apache-2.0
"""How many members a group should have, and what is known of starts and of simple rules."""

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
from controlplane.forecast.majority import NAMES, Majority
from controlplane.forecast.rules import Rules
from controlplane.rivals import Rival, scaler
from controlplane.simulation import plant
from controlplane.sizing import STABLE_S, Sizing
from controlplane.starts import Allowance, Thrice

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
CAPACITY, LEAD_S, STEP_S = 10.0, 60.0, 15.0
RESTED = int(2 * STABLE_S / STEP_S)
"""Steps in which nobody is started a third time."""

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


# ---- the season -----------------------------------------------------------------------------


def hourly(periods: int = 9, every: int = 240) -> Floats:
    """A tenth of each hour needs five members, the rest one; nothing before it tells of it but the clock."""
    demand = np.where(np.arange(periods * every) % every < every - every // 10, 7.0, 43.0)
    return np.asarray(np.random.default_rng(5).normal(demand, 0.3), dtype=np.float64)


def test_who_comes_each_hour_is_awaited() -> None:
    every, demand = 240, hourly()
    wanted = sized(demand)
    lead = round(LEAD_S / STEP_S)
    for begins in range(6 * every - every // 10, len(demand), every):
        assert min(wanted[begins - lead - 1 : begins + 1]) >= 5, "ordered a lead time before"
        assert wanted[begins - 4 * lead] == 1, "and not long before"


def test_negative_control_without_a_season_nobody_is_awaited(monkeypatch) -> None:
    monkeypatch.setattr("controlplane.forecast.season.period", lambda demand: None)
    demand = hourly()
    wanted = sized(demand)
    assert wanted[len(demand) - 240 // 10 - 1] == 1


def test_who_does_not_come_any_more_is_not_awaited_for_long() -> None:
    every, demand = 240, hourly()
    demand[6 * every :] = 7.0
    assert max(sized(demand)[8 * every :]) == 1


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
    assert max(wanted[500:541]) >= 9
    assert wanted[-1] == 3


def test_the_more_a_second_over_costs_the_fewer_there_are() -> None:
    random = np.random.default_rng(7)
    demand = 50.0 * np.exp(random.normal(0, 0.6, 1500))
    scores = [scored(demand, over_cost) for over_cost in (0.3, 3.0, 30.0)]
    assert scores[0].over > scores[1].over > scores[2].over
    assert scores[0].cost < scores[1].cost < scores[2].cost


def test_steps_without_a_reading_move_nobody_and_teach_little() -> None:
    demand = bursts(900).tolist()
    with_gaps = sized([*demand[:500], *[math.nan] * 200, *demand[500:]])
    assert len(set(with_gaps[499:700])) == 1
    # the moments whose sequel the gap hides are all that is not learned
    whole = np.array(sized(demand))[500 + RESTED :]
    assert np.mean(np.array(with_gaps)[700 + RESTED :] == whole) > 0.9


@given(
    st.lists(st.sampled_from([0.0, 5.0, 30.0, 300.0, math.nan]), min_size=60, max_size=400),
    st.sampled_from([0.1, 6.0, 60.0]),
)
@settings(max_examples=40, deadline=None)
def test_nobody_is_started_thrice_in_ten_minutes(demand: list[float], over_cost: float) -> None:
    wanted = [1, *sized(demand, over_cost)]
    assert min(wanted) >= 1
    assert thrice(wanted) == 0


def thrice(wanted: list[int]) -> int:
    """Starts that are the third of a member in ten minutes."""
    found = 0
    for level in range(2, max(wanted) + 1):
        there = np.array(wanted) >= level
        starts = np.flatnonzero(~there[:-1] & there[1:])
        found += int(np.sum(starts[2:] - starts[:-2] < RESTED))
    return found


def test_only_their_ratio_counts() -> None:
    demand = bursts(800)
    assert sized(demand) == sized(demand * 1e6, capacity=CAPACITY * 1e6)


def test_a_group_of_any_size_is_sized() -> None:
    wanted = sized([10.0 * size for size in (1, 100_000, 1_000_000, 3, 3)])
    assert 1_000_000 <= wanted[2] <= 5_000_000
    again = sized([10.0 * size for size in (1, 100_000, 1_000_000) for _ in range(200)])
    assert 1_000_000 <= again[-1] <= 1_100_000


def test_more_than_anybody_could_have_is_sized_too() -> None:
    sizing = Sizing(1.0, 100_000.0, STEP_S)
    wanted = [sizing.after(1e5 * at).wanted for at in range(10)]
    assert wanted[-1] >= 900_000
    assert sizing.after(1e12).wanted <= 1e8


def test_without_a_reading_nobody_is_let_go() -> None:
    sizing = Sizing(CAPACITY, LEAD_S, STEP_S)
    before = [sizing.after(rate).wanted for rate in [15.0] * 400 + [95.0] * 3]
    blind = [sizing.after(math.nan) for _ in range(100)]
    assert {size.wanted for size in blind} == {before[-1]}
    assert blind[-1].reason == f"no reading to learn from: {before[-1]} as before"
    for _ in range(400):
        after = sizing.after(15.0)
    assert after.wanted < before[-1]


def test_a_reason_tells_what_is_wanted() -> None:
    sizing = Sizing(CAPACITY, LEAD_S, STEP_S)
    seen = set()
    for rate in np.random.default_rng(6).lognormal(4.0, 0.3, 1500).tolist():
        size = sizing.after(rate)
        stay = re.search(r"^(\d+) stay, started twice of late, now (\d+): ", size.reason)
        told = re.search(r"(\d+) for what followed|most of all .*: (\d+)$", size.reason)
        kept = re.search(r"up to \d+ stay for what may soon: (\d+)$", size.reason)
        bound = re.search(r"(\d+) (?:within what HPA would|for the climb)", size.reason)
        assert told, size.reason
        wanted = int(stay[2]) if stay else size.wanted
        assert size.wanted == (int(stay[1]) if stay else wanted)
        seen.add((told[1] is None, kept is not None, stay is not None))
        if told[1]:
            assert wanted == int((bound or kept or told)[1])
        else:
            assert any(name in size.reason for name in NAMES)
    assert len(seen) >= 3


def test_the_members_that_there_are_stay_until_something_is_known() -> None:
    sizing = Sizing(CAPACITY, LEAD_S, STEP_S, initial=30)
    wanted = [sizing.after(20.0).wanted for _ in range(40)]
    assert set(wanted[: RESTED // 2]) == {30}
    assert wanted[-1] < 6


# ---- starts ---------------------------------------------------------------------------------


def noisy(count: int) -> Floats:
    """About a level that a member less would do for as often as not."""
    return np.random.default_rng(9).normal(95.0, 15.0, count)


def test_noise_starts_no_more_than_hpa_does() -> None:
    demand = noisy(6000)
    hpa = scaler(Rival.HPA, CAPACITY, LEAD_S, STEP_S, 14)
    its = np.array([hpa.wanted(float(rate), 14) for rate in demand])
    sizing = Sizing(CAPACITY, LEAD_S, STEP_S, initial=14)
    own = np.array([sizing.after(float(rate)).wanted for rate in demand])
    starts = [int(np.maximum(np.diff(wanted), 0).sum()) for wanted in (own, its)]
    assert starts[0] <= 1.05 * starts[1]


def test_strain_grows_with_starts_that_hpa_does_not_make() -> None:
    allowance = Allowance(CAPACITY, LEAD_S, STEP_S, 10)
    assert allowance.strain(10.0) == 0.0
    strains = []
    for own in (10, 11, 10, 12, 10, 14, 10, 30):
        allowance.after(60.0, own)
        strains.append(allowance.strain(10.0))
    assert strains == sorted(strains)
    assert strains[0] == 0.0
    assert strains[-1] == 8.0


def test_what_hpa_starts_too_is_free() -> None:
    allowance = Allowance(CAPACITY, LEAD_S, STEP_S, 10)
    for own in (10, 20, 30, 40, 40):
        allowance.after(10.0 * own, own)
    assert allowance.strain(10.0) == 0.0


def test_who_was_started_twice_stays_and_nobody_else() -> None:
    thrice = Thrice(10, 5)
    assert [thrice.after(wanted) for wanted in (8, 5, 7, 5, 5)] == [8, 5, 7, 7, 7]
    assert [thrice.after(5) for _ in range(5)] == [7, 7, 7, 7, 7]  # the first start was ten steps ago
    assert [thrice.after(5) for _ in range(2)] == [5, 5]


def test_who_was_started_once_goes_at_once() -> None:
    thrice = Thrice(10, 5)
    assert [thrice.after(wanted) for wanted in (9, 8, 7, 6, 7, 6)] == [9, 8, 7, 6, 7, 7]


@given(st.lists(st.integers(1, 9), min_size=30, max_size=300))
@settings(max_examples=100, deadline=None)
def test_whatever_is_wanted_nobody_is_started_thrice(wanted: list[int]) -> None:
    guard = Thrice(RESTED, 1)
    held = [1, *(guard.after(one) for one in wanted)]
    assert thrice(held) == 0
    assert all(there >= one for there, one in zip(held[1:], wanted, strict=True))


# ---- the majority of simple rules -----------------------------------------------------------


def test_the_rule_that_is_named_asks_for_what_is_wanted() -> None:
    majority = Majority(STEP_S, LEAD_S, 4, 6.0)
    for need in np.random.default_rng(6).lognormal(1.7, 0.3, 500).tolist():
        majority.after(need, 6.0)
        wanted, name = majority.wanted(1, 0.5, 0.5)
        assert int(name.rpartition(": ")[-1]) == wanted
        assert name.rpartition(": ")[0] in NAMES


def test_whom_less_of_the_weight_keeps_more_stay() -> None:
    majority = Majority(STEP_S, LEAD_S, 4, 6.0)
    for need in np.random.default_rng(6).lognormal(1.7, 0.3, 200).tolist():
        majority.after(need, 6.0)
        start, stay = majority.wanted(1, 0.5, 0.2)[0], majority.wanted(10**6, 0.5, 0.2)[0]
        assert start <= stay
    assert start < stay


@pytest.mark.parametrize(("cautious", "most"), [(True, 1), (False, 2)])
def test_where_more_can_be_had_soon_nobody_is_started_before_errors_of_forecasts_are_known(cautious, most):
    sizing = Sizing(240.0, 30.0, 30.0, cautious=cautious)
    random = np.random.default_rng(1)
    assert max(sizing.after(random.poisson(950) / 5).wanted for _ in range(60)) == most
