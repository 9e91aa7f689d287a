# SPDX-License-Identifier: Apache-2.0
"""Noise orders nothing, a ramp is seen in time. Each group of the forecaster is one seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from controlplane.forecast import Forecaster, forecaster
from controlplane.model import ForecastMethod

SEEDS = 200
CAPACITY = 100.0
QUANTILE = 0.9


def first_order_s(
    rates: Sequence[float], lead_s: float, capacity: float, method: ForecastMethod = ForecastMethod.AUTO
) -> np.ndarray:
    random = np.random.default_rng(7)
    forecaster = Forecaster(method, QUANTILE, [str(k) for k in range(SEEDS)])
    first = np.full(SEEDS, np.inf)
    for second, rate in enumerate(rates, 1):
        forecaster.update(random.poisson(rate, SEEDS).astype(float), float(second))
        over = forecaster.predict(lead_s, float(second)).high > 0.8 * capacity
        first[over & np.isinf(first)] = second
    return first


def ramp(quiet_s: int, rise_s: int) -> list[float]:
    rise = CAPACITY * (0.4 + 0.6 * (np.arange(rise_s) + 0.5) / rise_s)
    return [0.4 * CAPACITY] * quiet_s + list(rise) + [CAPACITY] * 20


@pytest.mark.parametrize("share", [0.4, 0.5, 0.6])
@pytest.mark.parametrize("lead_s", [4.0, 8.0])
def test_ten_minutes_of_flat_noise_order_almost_nothing(share, lead_s):
    assert np.isfinite(first_order_s([share * CAPACITY] * 600, lead_s, CAPACITY)).mean() <= 0.04


@pytest.mark.parametrize("lead_s", [6, 8])
def test_a_ramp_of_three_lead_times_has_its_shadow_before_it_crosses(lead_s):
    ordered_s = first_order_s(ramp(60, 3 * lead_s), lead_s, CAPACITY)
    assert (ordered_s + lead_s <= 60 + 3 * lead_s).mean() >= 0.95


def demo_ramp(capacity: float, rise_s: float, quiet_s: int = 60) -> np.ndarray:
    """Quiet at 30 %, a straight rise through capacity after ``rise_s``, on to 140 %."""
    second = np.arange(quiet_s + 40) + 0.5
    return capacity * np.where(
        second < quiet_s, 0.3, np.minimum(0.3 + 0.7 * (second - quiet_s) / rise_s, 1.4)
    )


@pytest.mark.parametrize(
    ("capacity", "times_lead", "least"),
    [(50.0, 2.0, 0.2), (50.0, 3.0, 0.9), (100.0, 2.0, 0.55), (100.0, 2.5, 0.85), (100.0, 3.0, 0.97)],
)
def test_a_rise_has_its_shadow_before_it_crosses_capacity_this_often(capacity, times_lead, least):
    rise_s = times_lead * 4.5
    ordered_s = first_order_s(demo_ramp(capacity, rise_s), 4.5, capacity)
    assert (ordered_s > 60).all(), "nothing is ordered while it is quiet"
    assert (ordered_s + 4.5 <= 60 + rise_s).mean() >= least


@pytest.mark.parametrize("quiet_s", [7, 10])
def test_a_rise_soon_after_the_start_is_seen_as_soon_as_a_later_one(quiet_s):
    seen_s = first_order_s(demo_ramp(100.0, 18.0, quiet_s), 11.0, 100.0) - quiet_s
    later_s = first_order_s(demo_ramp(100.0, 18.0), 11.0, 100.0) - 60
    assert (seen_s > 0).all(), "nothing is ordered while it is quiet"
    assert np.median(seen_s) <= np.median(later_s) + 1.0
    assert np.quantile(seen_s, 0.9) <= np.quantile(later_s, 0.9) + 1.0


def jump_and_climb(jump_s: int) -> list[float]:
    """A climb that begins with a jump and rests for a while, as recorded bursts do."""
    return [30.0] * 30 + [55.0] * jump_s + list(np.linspace(57.0, 140.0, 24))


def test_a_climb_that_begins_with_a_jump_is_not_taken_for_a_step_for_long():
    """While both explain the readings, the quantile of demand is that of both together."""
    ordered_s = first_order_s(jump_and_climb(5), 9.0, CAPACITY)
    assert (ordered_s > 30).all(), "nothing is ordered while it is quiet"
    crossing_s = 30 + int(np.argmax(np.array(jump_and_climb(5)[30:]) >= CAPACITY))
    assert (ordered_s + 9.0 <= crossing_s).mean() >= 0.9, np.quantile(ordered_s, [0.1, 0.5, 0.9])


@pytest.mark.parametrize("missing", [0.1, 0.2])
def test_missing_readings_delay_a_forecast_by_little(missing):
    def most_order_s(missing: float) -> float:
        random = np.random.default_rng(7)
        forecaster = Forecaster(ForecastMethod.AUTO, QUANTILE, [str(k) for k in range(SEEDS)])
        first = np.full(SEEDS, np.inf)
        for second, rate in enumerate(demo_ramp(100.0, 18.0), 1):
            readings = random.poisson(rate, SEEDS).astype(float)
            readings[random.random(SEEDS) < missing] = np.nan
            forecaster.update(readings, float(second))
            over = forecaster.predict(9.0, float(second)).high > 0.8 * CAPACITY
            first[over & np.isinf(first)] = second
        return float(np.quantile(first, 0.9))

    assert most_order_s(missing) <= most_order_s(0.0) + 2.0


def test_a_fall_is_seen_within_a_few_readings():
    random = np.random.default_rng(7)
    forecaster = Forecaster(ForecastMethod.AUTO, QUANTILE, [str(k) for k in range(SEEDS)])
    for second in range(66):
        rate = 120.0 if second < 60 else 30.0
        forecaster.update(random.poisson(rate, SEEDS).astype(float), float(second))
        high = forecaster.predict(5.0, float(second)).high
    assert (high < 60).mean() > 0.95


def after_idleness() -> float:
    """The highest forecast of all seeds in the first minute of demand, after ten seconds without any."""
    random = np.random.default_rng(7)
    own = Forecaster(ForecastMethod.AUTO, QUANTILE, [str(k) for k in range(SEEDS)])
    most = np.zeros(SEEDS)
    for second in range(70):
        own.update(random.poisson(0.0 if second < 10 else 33.0, SEEDS).astype(float), float(second))
        most = np.fmax(most, own.predict(7.0, float(second)).high)
    return float(np.median(most))


def test_the_first_demand_is_no_climb_from_nought():
    assert after_idleness() < 1.3 * 33.0


def test_negative_control_readings_without_demand_count(monkeypatch):
    update = Forecaster.update
    monkeypatch.setattr(
        Forecaster, "update", lambda self, values, now_s: update(self, np.fmax(values, 1e-6), now_s)
    )
    assert after_idleness() > 1.5 * 33.0


def least_after_a_fall() -> float:
    """The median seed's least forecast from 20 s after demand fell to a tenth, in which it stays."""
    random = np.random.default_rng(7)
    own = Forecaster(ForecastMethod.AUTO, QUANTILE, [str(k) for k in range(SEEDS)])
    least = np.full(SEEDS, np.inf)
    for second in range(200):
        rate = 150.0 * np.exp(0.25 * random.normal(size=SEEDS)) if second < 100 else 15.0
        own.update(random.poisson(rate, SEEDS).astype(float), float(second))
        seen = own.predict(8.0, float(second))
        if second > 120:
            least = np.minimum(least, np.fmax(seen.high, seen.level))
    return float(np.median(least))


def test_after_a_fall_demand_is_not_foreseen_to_vanish():
    assert least_after_a_fall() > 12.0


def test_negative_control_the_trend_of_the_fall_would_go_on(monkeypatch):
    monkeypatch.setattr(forecaster, "READINGS", 1000)
    assert least_after_a_fall() < 8.0


def test_negative_control_present_demand_alone_is_late_for_the_same_ramp():
    ordered_s = first_order_s(ramp(60, 24), 8, CAPACITY, ForecastMethod.NONE)
    assert (ordered_s + 8 <= 60 + 24).mean() < 0.5


def test_gaps_and_nonsense_change_nothing():
    forecaster = Forecaster(ForecastMethod.AUTO, QUANTILE, ["a", "b"])
    for second in range(40):
        forecaster.update(np.array([20.0, 30.0]), float(second))
    before = forecaster.predict(5.0, 39.0)
    for second, bad in enumerate((np.nan, np.inf, -5.0), 40):
        forecaster.update(np.array([bad, np.nan]), float(second))
    after = forecaster.predict(5.0, 42.0)
    assert np.allclose(before.level, after.level)


def test_regrouping_carries_what_is_known_and_new_groups_start_unknown():
    forecaster = Forecaster(ForecastMethod.AUTO, QUANTILE, ["a", "b"])
    for second in range(40):
        forecaster.update(np.array([20.0, 30.0]), float(second))
    other = Forecaster(ForecastMethod.AUTO, QUANTILE, ["b", "c"])
    other.resume(forecaster)
    level = other.predict(5.0, 40.0).level
    assert level[0] == pytest.approx(30.0)
    assert np.isnan(level[1])


def test_a_climb_that_has_ended_is_not_extrapolated_for_long():
    """The median of 200 groups that climb to 200/s in 24 s and stay there, six readings after the end."""
    groups, end = 200, 64
    rate = np.interp(np.arange(end + 12), [0, 40, end], [50, 50, 200])
    readings = np.random.default_rng(5).poisson(rate[:, None], (rate.size, groups)).astype(float)
    forecaster = Forecaster(ForecastMethod.AUTO, QUANTILE, [str(k) for k in range(groups)])
    over = []
    for second, row in enumerate(readings):
        forecaster.update(row, float(second))
        over.append(float(np.median(forecaster.predict(10.0, float(second)).point)) / 200)
    assert over[end + 6] < 1.3, over[end:]
    assert over[end + 10] < 1.2, over[end:]


def high_after_step(rescaled: float | None, before: float) -> np.ndarray:
    """Three seconds after the ring has given the group 50 flows/s."""
    random = np.random.default_rng(3)
    forecaster = Forecaster(ForecastMethod.AUTO, QUANTILE, [str(k) for k in range(SEEDS)])
    for second in range(1, 64):
        if second == 61 and rescaled is not None:
            forecaster.rescale(slice(0, SEEDS), np.full(SEEDS, rescaled))
        rate = before if second < 61 else 50.0
        forecaster.update(random.poisson(rate, SEEDS).astype(float), float(second))
        told = forecaster.predict(5.0, float(second))
    return told.high


@pytest.mark.parametrize(("before", "factor"), [(30.0, 5.0 / 3.0), (0.0, np.nan)])
def test_what_the_ring_moves_to_a_group_is_no_rise_of_its_demand(before, factor):
    assert high_after_step(factor, before).max() < 80.0
    if before:
        assert high_after_step(None, before).max() > 90.0, "if it is not told"
