# SPDX-License-Identifier: Apache-2.0
"""What followed moments that looked like this one."""

from __future__ import annotations

import math

import numpy as np
import pytest

from controlplane.forecast.analogs import NAMES, OVER_COSTS, Analogs
from controlplane.forecast.recent import Floats, Recent

STEP_S, LEAD = 15.0, 4


def told(needs: Floats, usual: float = 5.0) -> Floats:
    """(rules,) after the last of them."""
    analogs = Analogs(STEP_S, LEAD)
    for need in needs:
        analogs.after(float(need))
    return analogs.held(usual)


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


def test_at_first_there_is_half_as_much_again_as_in_the_last_minute() -> None:
    assert told(np.array([3.0, 8.0, 4.0])).tolist() == [12.0] * len(NAMES)


def test_steady_need_is_all_that_is_held() -> None:
    assert told(np.full(600, 5.0)).tolist() == [5.0] * len(NAMES)


@pytest.mark.parametrize("announced", [True, False])
def test_what_announced_a_burst_before_does_it_again(announced: bool) -> None:
    past = heralded(3000, announced=announced)
    dip, calm = np.r_[past, np.full(20, 5.0), 2.0, 2.0, 2.0], np.r_[past, np.full(23, 5.0)]
    cost = OVER_COSTS.index(4)
    assert (told(dip)[cost] >= 12.0) == announced
    assert told(calm)[cost] < 7.0


def test_a_second_over_that_costs_more_holds_no_less() -> None:
    held = told(np.random.default_rng(5).lognormal(1.5, 0.5, 1000))
    assert np.all(np.diff(held) >= 0)
    assert held[0] < held[-1]


def test_zero_demand_is_ordinary() -> None:
    held = told(np.zeros(500))
    assert held.tolist() == [1.0] * len(NAMES)
    assert all(map(math.isfinite, told(np.r_[np.zeros(300), 1e6, np.zeros(300)])))


def test_the_level_does_not_matter_to_likeness() -> None:
    past = np.r_[heralded(3000, announced=True), np.full(20, 5.0), 2.0, 2.0, 2.0]
    small, large = told(past, usual=5.0), told(1000.0 * past, usual=5000.0)
    assert large / 1000.0 == pytest.approx(small, abs=1.0)  # members are whole ones
