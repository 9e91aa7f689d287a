# SPDX-License-Identifier: Apache-2.0
"""What followed moments that looked like this one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from controlplane.forecast.analogs import HIGHEST, SOON, Analogs
from controlplane.forecast.recent import Floats, Recent

STEP_S, LEAD = 15.0, 4


def informed(needs: Floats) -> Analogs:
    analogs = Analogs(STEP_S, LEAD)
    for need in needs:
        analogs.after(float(need))
    return analogs


def told(needs: Floats, worth: float = 20.0, sequel: int = HIGHEST) -> int:
    """Members to hold after the last of them."""
    return max(1, math.ceil(informed(needs).cheapest(sequel, worth)))


def heralded(count: int, *, announced: bool) -> Floats:
    """A burst to twelve after every dip to two, or dips and bursts that know nothing of each other."""
    random = np.random.default_rng(3)
    needs = random.uniform(4.5, 5.5, count)
    for at in range(30, count - 10, 25):
        dip = at + int(random.integers(0, 10))
        needs[dip : dip + 3] = 2.0
        burst = dip + 5 if announced else at + int(random.integers(0, 24))
        needs[burst : burst + 2] = 12.0
    return needs


def test_a_window_is_the_last_rows_whatever_was_dropped() -> None:
    recent, rows = Recent((), 100), np.random.default_rng(1).normal(size=400)
    for at, row in enumerate(rows):
        recent.push(row)
        assert recent.last(100).tolist() == rows[max(at - 99, 0) : at + 1].tolist()
        assert recent.last(7).tolist() == rows[max(at - 6, 0) : at + 1].tolist()
        windows = np.array([1, 7, 50, 100])
        last = [recent.last(steps) for steps in windows.tolist()]
        assert recent.highest(windows).tolist() == [window.max() for window in last]
        assert recent.means(windows) == pytest.approx([window.mean() for window in last])
    assert len(recent) == 100


def test_a_few_moments_tell_nothing() -> None:
    few = np.random.default_rng(2).uniform(3.0, 8.0, 200 + LEAD)
    assert not informed(few).is_telling
    with pytest.raises(ValueError, match="too little"):
        told(few)
    assert informed(np.r_[few, 5.0]).is_telling


def test_steady_need_is_all_that_is_held() -> None:
    assert {told(np.full(600, 5.0), worth) for worth in (1.0, 20.0, 300.0)} == {5}


@pytest.mark.parametrize("announced", [True, False])
def test_what_announced_a_burst_before_does_it_again(announced: bool) -> None:
    past = heralded(3000, announced=announced)
    dip, calm = np.r_[past, np.full(20, 5.0), 2.0, 2.0, 2.0], np.r_[past, np.full(23, 5.0)]
    assert (told(dip) >= 12) == announced
    assert told(calm) < 7


def test_what_comes_within_ten_minutes_is_known_later_than_what_comes_at_once() -> None:
    """A burst every forty steps is always within forty, and mostly not within five."""
    needs = np.full(2000, 5.0)
    needs[::40] = 11.9
    assert told(needs[:1990], sequel=SOON) == 12
    assert told(needs[:1970], worth=8.0) < 12


def test_what_is_not_known_yet_after_a_gap_is_left_as_it_was() -> None:
    analogs = informed(heralded(1000, announced=True))
    for _ in range(3):
        analogs.skip()
        for need in heralded(100, announced=True):
            analogs.after(float(need))
    assert math.ceil(analogs.cheapest(SOON, 100.0)) >= 12


def test_a_second_over_that_costs_more_holds_no_less() -> None:
    needs = np.random.default_rng(5).lognormal(1.5, 0.5, 1000)
    held = [told(needs, worth) for worth in (1.0, 20.0, 300.0)]
    assert held == sorted(held)
    assert held[0] < held[-1]


def test_the_nearest_moments_count_most() -> None:
    """Two kinds of moment, and more of the other: what followed those of the same kind is told."""
    random = np.random.default_rng(8)
    needs = np.full(3000, 5.0) + random.uniform(-0.1, 0.1, 3000)
    for at in range(60, 2990, 60):
        needs[at] = 3.0
        needs[at + 1 : at + 4] = 9.0
    assert told(np.r_[needs[:2980], 3.0]) >= 9
    assert told(needs[:2980]) < 7


def test_zero_demand_is_ordinary() -> None:
    assert told(np.zeros(500)) == 1
    assert told(np.r_[np.zeros(300), 1e6, np.zeros(300)]) >= 1


def test_the_level_does_not_matter_to_likeness() -> None:
    past = np.r_[heralded(3000, announced=True), np.full(20, 5.0), 2.0, 2.0, 2.0]
    small, large = told(past, worth=20.0), told(1000.0 * past, worth=20_000.0)
    assert large / 1000.0 == pytest.approx(small, abs=1.0)  # members are whole ones
