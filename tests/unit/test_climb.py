# SPDX-License-Identifier: Apache-2.0
"""Demand that climbs from the first reading on."""

from __future__ import annotations

import numpy as np
import pytest

from controlplane.forecast.climb import Climb
from controlplane.simulation import plant
from controlplane.sizing import Sizing

STEP_S, LEAD = 15.0, 4
CAPACITY = 10.0


def told(*needs: float) -> Climb:
    climb = Climb(STEP_S, LEAD)
    for need in needs:
        climb.after(need)
    return climb


def test_a_line_is_led_until_what_is_ordered_now_serves() -> None:
    assert told(10.0, 11.0, 12.0).need == pytest.approx(11.5 + (LEAD + 1))


def test_it_is_led_to_twice_the_highest_at_most() -> None:
    assert told(1.0, 4.0).need == 8.0


@pytest.mark.parametrize("needs", [(), (5.0,), (5.0, 5.0, 5.0), (9.0, 6.0, 3.0)])
def test_who_does_not_climb_needs_nobody(needs: tuple[float, ...]) -> None:
    assert told(*needs).need == 0.0


def test_what_it_came_to_stays_for_five_minutes_and_is_past() -> None:
    climb = told(4.0, 6.0)
    before = climb.need
    for _ in range(26):
        climb.after(1.0)
        assert climb.need == before
    climb.after(1.0)
    assert climb.need == 0.0


def test_time_goes_by_without_readings() -> None:
    climb = told(4.0, 6.0)
    for _ in range(27):
        climb.skip()
    assert climb.need == 0.0
    climb.after(9.0)
    assert climb.need == 0.0


# ---- what comes of it -----------------------------------------------------------------------


def over() -> float:
    """Of the first minutes of a service whose traffic arrives within two."""
    demand = CAPACITY * np.concatenate([np.linspace(3.0, 12.0, 7), np.full(20, 12.0)])
    sizing = Sizing(CAPACITY, LEAD * STEP_S, STEP_S, initial=5)
    wanted = np.array([5, *(sizing.after(float(rate)).wanted for rate in demand[:-1])])
    return plant.score(wanted, demand, CAPACITY, LEAD * STEP_S, STEP_S).over


def test_a_climb_from_the_first_reading_on_is_met_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    followed = over()
    monkeypatch.setattr(Climb, "need", 0.0)  # the negative control
    assert over() >= followed + 2 / 27
