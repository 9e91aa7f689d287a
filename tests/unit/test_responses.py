# SPDX-License-Identifier: Apache-2.0
"""Rates, in flight and response times of requests; histograms and their quantiles."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from controlplane import histogram, model
from controlplane.ports import Counters
from controlplane.responses import TIMES_S, WINDOW_S, Responses
from controlplane.status import samples
from tests.fakes import FIELDS
from tests.world import World, config


def counted(times_us: np.ndarray) -> np.ndarray:
    """(1, BUCKETS), as the program would have counted them."""
    buckets = np.searchsorted(histogram.edges_us(), times_us, side="right") - 1
    return np.bincount(buckets, minlength=histogram.BUCKETS)[None, :]


class TestHistogram:
    @pytest.mark.parametrize(("us", "bucket"), [(0, 0), (15, 15), (16, 16), (17, 17), (32, 32), (34, 33)])
    def test_buckets_begin_where_the_program_has_them(self, us: int, bucket: int) -> None:
        assert histogram.edges_us()[bucket] == us

    def test_the_last_one_ends_where_a_stamp_does(self) -> None:
        assert histogram.edges_us()[-1] == 1 << 24

    @pytest.mark.parametrize("seed", range(3))
    def test_quantiles_are_within_a_bucket_of_the_samples(self, seed: int) -> None:
        drawn = np.floor(np.random.default_rng(seed).lognormal(9, 1.2, 20_000))
        found = histogram.quantiles_us(counted(drawn), (0.01, 0.5, 0.99))[0]
        assert found == pytest.approx(np.quantile(drawn, (0.01, 0.5, 0.99)), rel=0.03)

    def test_each_row_is_one_and_those_without_samples_have_none(self) -> None:
        rows = np.vstack([counted(np.full(5, 100.0)), np.zeros((1, histogram.BUCKETS), int)])
        found = histogram.quantiles_us(rows, (0.0, 1.0))
        assert 96 <= found[0, 0] <= found[0, 1] <= 104
        assert np.isnan(found[1]).all()
        assert histogram.quantiles_us(rows[:0], (0.5,)).shape == (0, 1)


def counters(requests: int, *, at_s: float, requests_read: bool = True) -> Counters:
    fields = {name: np.zeros(1, np.uint64) for name in FIELDS} | {"requests": np.array([requests], np.uint64)}
    return Counters(at_s=at_s, rows={"web-1": 0}, requests_read=requests_read, **fields)


@pytest.fixture
def world() -> World:
    configured = config()
    service = replace(configured.services["web"], requests=model.Requests.HTTP1)
    return World(replace(configured, services={"web": service}))


def serve(world: World, answered: int, took_us: float, *, aborted: int = 0) -> None:
    """In the next second, every one of them timed."""
    row = world.dataplane.rows["web-1"]
    for field, amount in (("requests", answered + aborted), ("answered", answered), ("aborted", aborted)):
        world.dataplane.count[field][row] += np.uint64(amount)
    world.dataplane.times[row] += counted(np.full(answered, took_us))[0].astype(np.uint32)
    world.ticks(1, 10.0)


def told(world: World) -> dict:
    return json.loads(world.shown[-1])["services"][0]["groups"][0]["requests"]


class TestStatus:
    def test_it_has_rates_and_what_is_in_flight(self, world: World) -> None:
        world.ticks(2, 10.0)
        world.dataplane.waiting["web-1"] = 7
        serve(world, 50, 20_000.0, aborted=2)
        assert told(world)["per_s"] == pytest.approx(52, rel=0.01)
        assert told(world)["aborted_per_s"] == pytest.approx(2, rel=0.01)
        assert {name: told(world)[name] for name in ("started", "answered", "aborted", "in_flight")} == {
            "started": 52,
            "answered": 50,
            "aborted": 2,
            "in_flight": 7,
        }

    def test_times_are_those_of_the_last_minute_or_half(self, world: World) -> None:
        world.ticks(2, 10.0)
        for _ in range(int(WINDOW_S)):
            serve(world, 10, 20_000.0)
        assert told(world)["p50_ms"] == pytest.approx(20, rel=0.07)
        for _ in range(int(2 * WINDOW_S + TIMES_S)):
            serve(world, 10, 80_000.0)
        assert told(world)["p50_ms"] == pytest.approx(80, rel=0.07)
        assert told(world)["p99_ms"] == pytest.approx(80, rel=0.07)
        world.ticks(int(2 * WINDOW_S + TIMES_S) + 1, 10.0)
        assert told(world)["p50_ms"] is None

    def test_what_was_there_before_the_controller_is_none_of_its_times(self, world: World) -> None:
        world.dataplane.times[:] = counted(np.full(1000, 5_000_000.0))[0]
        world.ticks(2, 10.0)
        for _ in range(int(TIMES_S)):
            serve(world, 10, 20_000.0)
        assert told(world)["p99_ms"] == pytest.approx(20, rel=0.07)

    def test_counters_made_anew_begin_anew(self, world: World) -> None:
        world.ticks(2, 10.0)
        for _ in range(int(TIMES_S) + 1):
            serve(world, 10, 20_000.0)
        world.dataplane.times[:] = 0
        world.ticks(int(TIMES_S) + 1, 10.0)
        assert told(world)["p50_ms"] is None
        for _ in range(int(TIMES_S) + 1):
            serve(world, 10, 80_000.0)
        assert told(world)["p50_ms"] == pytest.approx(80, rel=0.07)

    def test_what_was_counted_before_they_were_off_is_no_rate_when_they_are_told_again(self) -> None:
        """While they are off nobody reads them, and a reading has zeros."""
        off = counters(0, at_s=1.0, requests_read=False)
        responses = Responses()
        responses.observe(["web-1"], off, counters(10_000, at_s=2.0), np.zeros(1, int))
        first = responses.status("web-1")
        responses.observe(["web-1"], counters(10_000, at_s=2.0), counters(10_005, at_s=3.0), np.zeros(1, int))
        then = responses.status("web-1")
        assert first is not None
        assert then is not None
        assert (first.started, first.per_s, then.per_s) == (10_000, None, 5)

    def test_off_has_none(self) -> None:
        world = World(config())
        world.dataplane.in_flight = None  # it is not asked
        world.ticks(2, 10.0)
        assert told(world) is None
        assert "requests told" not in world.controller.status().troubles

    def test_a_trouble_with_them_stops_nothing_else(self, world: World) -> None:
        world.dataplane.times = {}
        world.ticks(2, 10.0)
        assert "requests told" in world.controller.status().troubles
        assert world.controller.status().fresh

    def test_metrics_have_them(self, world: World) -> None:
        world.ticks(2, 10.0)
        for _ in range(int(TIMES_S)):
            serve(world, 10, 20_000.0, aborted=1)
        found = {
            (one.name, one.labels.get("quantile")): one.value
            for one in samples(world.controller.status())
            if one.labels.get("endpoint") == "web-1"
        }
        assert found["endpoint_requests_in_flight", None] == 0
        assert found["endpoint_requests_per_second", None] == pytest.approx(11, rel=0.01)
        assert found["endpoint_response_seconds", "0.5"] == pytest.approx(0.02, rel=0.07)
        assert found["endpoint_response_seconds", "0.99"] == pytest.approx(0.02, rel=0.07)
