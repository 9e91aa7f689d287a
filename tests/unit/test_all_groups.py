# SPDX-License-Identifier: Apache-2.0
"""The groups of all services in one set of arrays are told what each would be told alone."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace
from ipaddress import IPv4Address
from statistics import NormalDist

import numpy as np
import pytest

from controlplane import model
from controlplane.forecast import Forecaster, normal
from controlplane.forecast.errors import Errors
from controlplane.loads import Loads
from controlplane.model import ForecastMethod
from controlplane.observe import COUNTED, Counted, Rates, Rows, rates
from tests.fakes import FakeClock, FakeDataplane
from tests.world import World, config

KINDS = [
    (ForecastMethod.AUTO, 0.9, 4.5),
    (ForecastMethod.AUTO, 0.86, 11.0),
    (ForecastMethod.NONE, 0.9, 8.0),
    (ForecastMethod.AUTO, 0.99, 40.0),
    (ForecastMethod.AUTO, 0.5, 0.5),
]
"""Method, quantile, horizon in seconds."""
EACH = 2


def readings(seconds: int) -> tuple[np.ndarray, np.ndarray]:
    """(readings,) times with gaps, and (readings, groups) with ramps, steps and NaN."""
    random = np.random.default_rng(11)
    groups = len(KINDS) * EACH
    steps_s = np.where(random.random(seconds) < 0.05, random.choice([2.0, 5.0, 40.0], seconds), 1.0)
    at = np.arange(seconds)[:, None]
    climb = 1.0 + np.maximum(at % 100 - 60, 0) / 20 + (at // 50 % 2) / 2
    values = random.poisson(random.uniform(5.0, 200.0, groups) * climb).astype(float)
    values[random.random(values.shape) < 0.05] = np.nan
    values[90:125, : 2 * EACH] = np.nan
    return np.cumsum(steps_s), values


def test_each_group_is_forecast_as_if_it_were_alone():
    kinds = [kind for kind in KINDS for _ in range(EACH)]
    names = [str(k) for k in range(len(kinds))]
    together = Forecaster([kind[0] for kind in kinds], np.array([kind[1] for kind in kinds]), names)
    alone = [Forecaster(method, quantile, ["x"]) for method, quantile, _ in kinds]
    horizons_s = np.array([kind[2] for kind in kinds])
    for tick, (now_s, values) in enumerate(zip(*readings(200), strict=True)):
        if tick == 150:
            horizons_s[: 2 * EACH] *= 0.4  # another lead time was measured
        together.update(values, now_s)
        found = together.predict(horizons_s, now_s)
        for k, one in enumerate(alone):
            one.update(values[k : k + 1], now_s)
            own = one.predict(float(horizons_s[k]), now_s)
            for told, expected in (
                (found.point, own.point),
                (found.high, own.high),
                (found.level, own.level),
            ):
                assert told[k] == pytest.approx(expected[0], rel=1e-9, nan_ok=True), (tick, k)


def test_errors_are_those_of_forecasts_whose_horizon_has_passed():
    """Held against one queue for each group."""
    random = np.random.default_rng(3)
    horizons_s = np.array([0.5, 1.0, 7.0, 90.0])
    errors, groups = Errors(4), range(4)
    pending: list[deque[tuple[float, float, float]]] = [deque() for _ in groups]
    observed: list[deque[float]] = [deque(maxlen=60) for _ in groups]
    quantiles, now_s = np.array([0.5, 0.9, 0.9, 0.99]), 0.0
    for tick in range(300):
        now_s += 1.0 if random.random() < 0.9 else 12.0
        level, since_s = random.normal(size=4), np.where(random.random(4) < 0.1, now_s - 3.0, -np.inf)
        errors.observe(level, now_s, since_s)
        for k in groups:
            while pending[k] and pending[k][0][1] <= now_s:
                made_s, _, point = pending[k].popleft()
                observed[k].append(level[k] - point if made_s >= since_s[k] else math.nan)
        if tick == 120:
            errors.forget(np.array([True, False, False, True]))
            for k in (0, 3):
                observed[k].clear()
                pending[k] = deque((made_s, due_s, math.nan) for made_s, due_s, _ in pending[k])
        if tick == 150:
            horizons_s = horizons_s * 1.5
        points = random.normal(size=4)
        errors.await_(points, now_s, now_s + horizons_s)
        for k in groups:
            pending[k].append((now_s, now_s + horizons_s[k], points[k]))
        found, counts = errors.quantile(quantiles)
        for k in groups:
            told = sorted(error for error in observed[k] if not math.isnan(error))
            assert counts[k] == len(told)
            assert found[k] == (told[max(math.ceil(quantiles[k] * len(told)) - 1, 0)] if told else 0.0)


def test_more_forecasts_than_are_kept_wait_for_a_very_long_horizon():
    errors = Errors(2)
    for tick in range(3000):
        errors.observe(np.zeros(2), float(tick), np.full(2, -np.inf))
        errors.await_(np.ones(2), float(tick), tick + np.array([10.0, 2000.0]))
    assert errors.quantile(np.full(2, 0.9))[1].tolist() == [60, 0]


def test_normal_quantiles_are_those_of_the_standard_library():
    shares = np.concatenate([np.geomspace(1e-300, 0.5, 200), 1.0 - np.geomspace(1e-15, 0.5, 200)])
    expected = [NormalDist().inv_cdf(share) for share in shares.tolist()]
    assert np.allclose(normal.quantile(shares), expected, rtol=1e-13, atol=1e-13)
    assert normal.quantile(np.array([0.0, 1.0])).tolist() == [-np.inf, np.inf]


def service(name: str, capacities: list[float | None]) -> model.Service:
    return model.Service(
        name,
        IPv4Address("192.0.2.1"),
        80,
        model.Protocol.TCP,
        tuple(
            model.Endpoint(f"{name}-{k}", name, IPv4Address("10.0.0.1") + k, 80, capacity=capacity)
            for k, capacity in enumerate(capacities)
        ),
    )


def loads(*services: model.Service) -> Loads:
    return Loads(services, [one.forecast.method for one in services])


def reading(completed: list[float]) -> Rates:
    flows = np.array(completed)
    nothing = np.zeros(len(completed))
    counted = Counted(
        **dict.fromkeys(COUNTED, flows) | {"spilled": nothing, "resets": nothing, "aborted": nothing}
    )
    return Rates(1.0, flows, flows, np.full(len(completed), 500.0), counted)


def take(loads: Loads, completed: list[float], down: set[str] | frozenset[str], second: float) -> np.ndarray:
    return loads.take(reading(completed), down, second, 1.7e9 + second, 0.0)


def test_shares_are_those_of_each_service_and_the_dead_have_none():
    bound = replace(service("b", [50.0, 50.0, 50.0]), affinity=model.Affinity.SOURCE)
    both = loads(service("a", [100.0, 300.0]), bound)
    demand = [take(both, [30.0, 10.0, 1.0, 1.0, math.nan], {"b-0"}, float(second)) for second in range(300)]
    assert demand[-1][0] == 40.0
    assert math.isnan(demand[-1][1]), "not all of it was read"
    assert both.share(0) + both.share(1) == pytest.approx(1.0)
    assert both.share(0) == pytest.approx(0.75, abs=0.02)
    assert both.load(0) == pytest.approx(3.0, rel=0.02)
    assert [both.share(i) for i in (2, 3, 4)] == pytest.approx([0.0, 0.75, 0.25], abs=0.15)


def test_shares_of_a_pool_are_those_of_its_ring_at_once():
    one = loads(service("a", [100.0, 100.0]))
    for second in range(100):
        take(one, [10.0, 30.0], frozenset(), float(second))
    assert one.share(0) == pytest.approx(0.5)
    one.take_rings({"a": {"a-0": 2.0, "a-1": 1.0}, "gone": {"x": 1.0}})
    take(one, [10.0, 30.0], frozenset(), 100.0)
    one.forecast([5.0], 100.0)
    assert one.share(0) == pytest.approx(2 / 3)
    assert one.prediction.level.tolist() == pytest.approx([80 / 3, 40 / 3])
    one.take_rings({"a": {}})
    take(one, [10.0, 30.0], frozenset(), 101.0)
    assert one.share(0) == pytest.approx(2 / 3), "no ring says nothing"


def test_when_all_of_a_service_are_down_shares_are_as_if_none_were():
    one = loads(service("a", [100.0, 300.0]))
    take(one, [0.0, 0.0], {"a-0", "a-1", "who"}, 1.0)
    assert [one.share(0), one.share(1)] == [0.25, 0.75]


def test_another_configuration_knows_what_was_known_of_groups_that_stay():
    a, b = service("a", [100.0, 100.0]), service("b", [100.0])
    before = loads(a, b)
    for second in range(20):
        take(before, [10.0, 20.0, 30.0], frozenset(), float(second))
    moved = replace(b.endpoints[0], name="a-1", service="b")
    after = loads(replace(b, endpoints=(*b.endpoints, moved)), replace(a, endpoints=a.endpoints[:1]))
    after.resume(before)
    after.forecast([5.0, 5.0], 20.0)
    level = after.prediction.level
    assert level[after.index["b-0"]] == pytest.approx(30.0)
    assert level[after.index["a-0"]] == pytest.approx(10.0)
    assert math.isnan(level[after.index["a-1"]]), "of the same name, but another service's"


def test_nobody_without_capacity_is_busy_and_who_has_too_little_is():
    both = loads(service("a", [100.0, 20.0]), service("b", [None]))
    for second in range(10):
        take(both, [15.0, 25.0, 900.0], frozenset(), float(second))
        both.forecast([5.0, 5.0], float(second))
    unknown = np.full(2, np.nan)
    assert both.busy(unknown, unknown).tolist() == [False, True, False]
    assert both.busy(np.array([1.0, 1.0]), np.array([0.1, 0.1])).tolist() == [False, True, False]
    assert both.busy(np.array([2.0, 2.0]), np.array([1.9, 1.9])).tolist() == [True, True, False]


def many(services: int) -> World:
    one = config().services["web"]
    named = {
        f"web-{k}": replace(
            one,
            name=f"web-{k}",
            port=80 + k,
            endpoints=(replace(one.endpoints[0], name=f"live-{k}", service=f"web-{k}", port=80 + k),),
        )
        for k in range(services)
    }
    return World(replace(config(), services=named))


def concluded(world: World, ticks: int) -> list[int]:
    """After each tick, services of which it is known what pays."""
    counts = []
    for _ in range(ticks):
        world.tick(0.0)
        status = world.controller.status()
        assert status is not None
        counts.append(sum(bool(one.groups[0].sized_reason) for one in status.services))
    return counts


def test_steps_of_few_services_that_end_together_are_learned_from_at_once():
    assert set(concluded(many(16), 12)) == {0, 16}


def test_steps_of_many_services_that_end_together_are_learned_from_by_and_by():
    counts = concluded(many(40), 12)
    assert [one for one in dict.fromkeys(counts) if one] == [16, 32, 40]


def test_who_came_or_went_is_looked_up_anew():
    clock = FakeClock()
    dataplane = FakeDataplane(clock)
    dataplane.services["web"] = model.VirtualService(
        "web", IPv4Address("192.0.2.1"), 80, model.Protocol.TCP, model.OnDown.RESET, 101
    )
    for name in ("a", "b", "c"):
        address = IPv4Address(f"10.0.0.{ord(name)}")
        dataplane.apply(model.InstallMember(model.Member(name, "web", address, 80, model.Role.LIVE)))
    rows, before = Rows(["c", "a"]), dataplane.counters()

    def read() -> list[float]:
        nonlocal before
        for name, row in dataplane.rows.items():
            dataplane.count["completed"][row] += np.uint64(ord(name))
        clock.advance(1.0)
        after = dataplane.counters()
        found = rates(before, after, rows)
        before = after
        assert found is not None
        return found.completed.tolist()

    assert read() == [ord("c"), ord("a")]
    dataplane.members.pop("c")
    for _ in range(2):
        assert np.isnan(read()).tolist() == [True, False]
    dataplane.members["c"] = dataplane.members["b"]
    dataplane.rows["c"], dataplane.rows["a"] = 5, 6
    assert np.isnan(read()).tolist() == [True, True], "other rows: other members"
    assert read() == [ord("c"), ord("a")]
