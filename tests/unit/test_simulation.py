# SPDX-License-Identifier: Apache-2.0
"""Recorded load, what it does to members that come late, and the scalers of others."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from controlplane.cli import app
from controlplane.rivals import Rival, scaler
from controlplane.simulation import lines, plant, run
from controlplane.simulation.lines import LineError, Sample
from controlplane.simulation.plant import Plant
from controlplane.simulation.run import Terms

CAPACITY = 10.0
"""7/s of an endpoint are the target."""


def sequence(rival: Rival, rates: Sequence[float], initial: int = 1, lead_time_s: float = 30.0) -> list[int]:
    """What is wanted after each step of 15 s."""
    terms = Terms(CAPACITY, lead_time_s, 15.0, initial)
    return [answer.wanted for answer in run.led(rival, terms, stepped(rates))]


def stepped(rates: Sequence[float]) -> list[Sample]:
    return [Sample(15.0 * (at + 1), rate) for at, rate in enumerate(rates)]


# ---- lines ----------------------------------------------------------------------------------


def test_a_line_is_a_sample_with_or_without_a_header() -> None:
    expected = [Sample(15.0, 1.5), Sample(30.0, 2.0)]
    assert list(lines.samples(["\ufefftimestamp,value\n", "15,1.5\r\n", "\n", "30, 2\n"], "x")) == expected
    assert list(lines.samples(["15,1.5", "30,2"], "x")) == expected
    assert list(lines.samples(["", "Timestamp, Value", "15,1.5", "30,2"], "x")) == expected


def test_a_timestamp_may_be_a_date_and_a_time() -> None:
    said = ["1970-01-02 00:00:15,1", "1970-01-02T02:00:30+02:00,2"]
    assert list(lines.samples(said, "x")) == [Sample(86_415.0, 1.0), Sample(86_430.0, 2.0)]


@pytest.mark.parametrize("absent", ["", "nan", "NaN", "null"])
def test_what_was_not_read_is_no_zero(absent: str) -> None:
    (sample,) = lines.samples([f"15,{absent}"], "x")
    assert math.isnan(sample.rate)


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("15", "two numbers"),
        ("15,1,2", "two numbers"),
        ("now,1", "two numbers"),
        ("nan,1", "seconds up to"),
        ("15,-1", "seconds up to"),
        ("15,inf", "seconds up to"),
        ("15,1e300", "seconds up to"),
        ("1e300,1", "seconds up to"),
        ("10,1", "not after 10;"),
        ("x" * 5000, "x..."),
    ],
)
def test_a_wrong_line_is_named(wrong: str, said: str) -> None:
    with pytest.raises(LineError, match=r"x\.csv:2: ") as error:
        list(lines.samples(["10,1", wrong], "x.csv"))
    assert said in str(error.value)
    assert len(str(error.value)) < 200


# ---- the plant ------------------------------------------------------------------------------


def test_who_is_ordered_serves_a_lead_time_later_and_who_is_unwanted_is_gone_at_once() -> None:
    there = Plant(CAPACITY, 30.0, 15.0, 1)
    ready = []
    for wanted in (3, 3, 3, 2, 4):
        there.take(wanted)
        ready.append(there.ready)
    assert ready == [1, 1, 3, 2, 2]


def test_a_part_of_a_step_is_a_whole_one() -> None:
    assert [plant.lead_steps(lead_s, 15.0) for lead_s in (0.0, 1.0, 15.0, 15.1, 30.0)] == [0, 1, 1, 2, 2]


def test_a_run_is_scored_by_time_demand_and_cost() -> None:
    # Two are ordered after the first step and serve in the third and fourth.
    wanted, demand = np.array([1, 2, 2, 2, 1]), np.array([10.0, 20.0, 20.0, 20.0, 10.0])
    scored = plant.score(wanted, demand, CAPACITY, 15.0, 15.0)
    assert scored.over == pytest.approx(1 / 5)
    assert scored.lost == pytest.approx(10 / 80)
    assert scored.endpoint_s == 8 * 15.0
    assert scored.cost == pytest.approx(8 / 9), "the oracle orders a step earlier"
    assert (scored.starts, scored.reversals) == (1, 0)


@pytest.mark.parametrize(("apart", "reversals"), [(39, 1), (40, 1), (41, 0)])
def test_a_level_started_again_within_ten_minutes_is_a_reversal(apart: int, reversals: int) -> None:
    wanted = np.array([1, 2, *[1] * (apart - 1), 2, 2])
    scored = plant.score(wanted, np.full(len(wanted), 5.0), CAPACITY, 30.0, 15.0)
    assert (scored.starts, scored.reversals) == (2, reversals)


@given(st.lists(st.integers(1, 3), min_size=1, max_size=6), st.integers(0, 2))
@settings(max_examples=60, deadline=None)
def test_no_schedule_that_loses_nothing_is_cheaper_than_the_oracles(need: list[int], lead: int) -> None:
    demand = np.array(need) * CAPACITY

    def is_lossless(wanted: Sequence[int]) -> bool:
        scored = plant.score(np.array(wanted), demand, CAPACITY, 15.0 * lead, 15.0)
        return scored.over == 0

    best = plant.oracle(np.array(need), lead)
    assert is_lossless(best)
    cheapest = min(sum(each) for each in itertools.product((1, 2, 3), repeat=len(need)) if is_lossless(each))
    assert best.sum() == cheapest


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40), st.integers(0, 6))
@settings(max_examples=100, deadline=None)
def test_ready_is_the_least_of_the_last_lead_time(wanted: list[int], lead: int) -> None:
    there = Plant(CAPACITY, 15.0 * lead, 15.0, 5)
    for at, now in enumerate(wanted):
        there.take(now)
        assert there.ready == min([5, *wanted[: at + 1]][-(lead + 1) :])


@given(
    st.lists(st.tuples(st.integers(1, 9), st.floats(0.1, 9.0)), min_size=1, max_size=30), st.integers(0, 60)
)
@settings(max_examples=60, deadline=None)
def test_ready_is_the_least_of_the_last_lead_time_in_seconds(
    wanted: list[tuple[int, float]], lead_s: int
) -> None:
    there, now_s = Plant(CAPACITY, lead_s, 15.0, 5), 0.0
    held = [(-math.inf, 5)]
    for count, steps in wanted:
        now_s += 15.0 * steps
        there.wait(max(steps - 1.0, 0.0))
        there.take(count, min(steps, 1.0))
        held.append((now_s, count))
        ends_s = [at_s for at_s, _ in held[1:]] + [math.inf]
        left = [n for (_, n), end_s in zip(held, ends_s, strict=True) if end_s > now_s - lead_s + 1e-6]
        assert there.ready == min(left)


def test_what_is_past_the_end_takes_no_room() -> None:
    wanted = np.array([1, 1_000_000, 1, 1_000_000])
    scored = plant.score(wanted, np.full(4, 5.0), CAPACITY, 1e7, 1e-3)
    assert (scored.over, scored.starts, scored.reversals) == (0.0, 2 * 999_999, 999_999)


# ---- the scalers of others ------------------------------------------------------------------


def test_hpa_doubles_or_adds_four_at_a_step() -> None:
    assert sequence(Rival.HPA, [700.0] * 7) == [5, 10, 20, 40, 80, 100, 100]


@pytest.mark.parametrize(("interval_s", "lines_each"), [(5.0, 3), (7.5, 2), (15.0, 1)])
def test_hpa_looks_every_15_s(interval_s: float, lines_each: int) -> None:
    policy = scaler(Rival.HPA, CAPACITY, 60.0, interval_s, 1)
    wanted = [policy.wanted(700.0, 1) for _ in range(4 * lines_each)]
    assert wanted[lines_each - 1 :: lines_each] == [5, 10, 20, 40]
    assert wanted[: lines_each - 1] == [1] * (lines_each - 1)


def test_in_a_long_step_it_looks_several_times() -> None:
    policy = scaler(Rival.HPA, CAPACITY, 60.0, 60.0, 1)
    assert [policy.wanted(7000.0, 1) for _ in range(2)] == [40, 640]
    slow = scaler(Rival.TARGET_TRACKING, CAPACITY, 60.0, 300.0, 5)
    assert slow.wanted(70.0, 5) == 10
    assert [slow.wanted(7.0, 10) for _ in range(3)] == [10, 10, 1]


def test_hpa_stays_within_its_tolerance() -> None:
    assert sequence(Rival.HPA, [70.0] * 4 + [75.0] * 4 + [80.0] * 2, initial=10) == [10] * 8 + [12] * 2


def test_hpa_goes_down_after_five_minutes_to_the_most_that_it_recommended() -> None:
    wanted = sequence(Rival.HPA, [140.0] * 2 + [70.0] * 30, initial=20)
    assert wanted[:2] == [20, 20]
    assert wanted.index(10) == 2 + 1 + 20, "the mean of 30 s is low from the second step on"
    assert set(wanted) == {20, 15, 10}


def test_keda_asks_every_30_s_for_the_rate_of_a_minute() -> None:
    assert sequence(Rival.KEDA, [14.0, 28.0, 56.0, 56.0, 56.0, 56.0], initial=2) == [2, 3, 3, 6, 6, 8]


def test_target_tracking_goes_out_after_three_high_minutes_and_in_after_fifteen_low_ones() -> None:
    wanted = sequence(Rival.TARGET_TRACKING, [70.0] * 4 * 5 + [7.0] * 4 * 20, initial=5)
    assert wanted.index(10) == 3 * 4 - 1
    assert wanted.index(1) == (5 + 15) * 4 - 1


def test_the_trend_leads_a_rise_and_follows_a_fall() -> None:
    rates = [7.0 * (10 + at) for at in range(12)]
    assert sequence(Rival.TREND, rates, initial=10, lead_time_s=45.0)[-1] == 24, "of 24.5"
    assert sequence(Rival.HPA, rates, initial=10)[-1] < 21
    falling = sequence(Rival.TREND, rates[::-1], initial=21)
    assert falling == sequence(Rival.HPA, rates[::-1], initial=21)


@pytest.mark.parametrize("rival", Rival)
def test_without_a_reading_nobody_moves(rival: Rival) -> None:
    assert len(set(sequence(rival, [70.0] * 8 + [math.nan] * 40, initial=10))) == 1
    assert set(sequence(rival, [math.nan] * 3 + [7.0] * 3)) == {1}


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=60), st.sampled_from(Rival), st.floats(1, 120))
@settings(max_examples=200, deadline=None)
def test_there_is_always_somebody(rates: list[float], rival: Rival, interval_s: float) -> None:
    policy = scaler(rival, CAPACITY, 60.0, interval_s, 3)
    assert all(policy.wanted(rate, 1) >= 1 for rate in rates)


# ---- the command ----------------------------------------------------------------------------

GIVEN = ("--capacity", "10", "--lead-time", "30")
RATES = [5.0, 50.0, 80.0, math.nan, 80.0, 20.0]


def simulated(*arguments: str, said: str | None = None, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["simulate", *GIVEN, *arguments], input=said)
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text("".join(f"{one.at_s:g},{one.rate:g}\n" for one in stepped(RATES)))
    return path


@pytest.mark.parametrize("policy", ["penumbra", *(rival.value for rival in Rival)])
def test_a_file_and_a_stream_have_the_same_answers(file: Path, policy: str) -> None:
    by_file = simulated("--trace", str(file), "--policy", policy, "--json")
    by_stream = simulated("--trace", "-", "--policy", policy, said=file.read_text())
    assert by_file == by_stream
    answers = [json.loads(line) for line in by_file.splitlines()]
    assert [answer["demand"] for answer in answers] == [5.0, 50.0, 80.0, None, 80.0, 20.0]
    assert [answer["over"] for answer in answers[:3]] == [False, True, True]


@pytest.mark.parametrize("policy", ["penumbra", "hpa"])
@pytest.mark.parametrize(("at_s", "is_ready"), [(30, False), (36, False), (60, True), (31_536_000, True)])
def test_after_a_gap_is_ready_what_was_ordered_a_lead_time_before_it(
    tmp_path: Path, policy: str, at_s: int, is_ready: bool
) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(f"0,5\n15,60\n{at_s},15\n")
    by_file = simulated("--trace", str(path), "--policy", policy, "--interval", "15", "--json")
    by_file = by_file[by_file.index("{") :]  # after the warning
    assert simulated("--trace", "-", "--policy", policy, said=path.read_text()) == by_file
    _, ordered, after = [json.loads(line) for line in by_file.splitlines()]
    assert ordered["ready"] == 1
    assert ordered["wanted"] > 1
    assert after["over"] is not is_ready
    assert after["ready"] == (min(ordered["wanted"], after["wanted"]) if is_ready else 1)


def test_lines_that_are_nearer_than_a_step_count_for_as_long_as_they_last() -> None:
    said = "".join(f"{at},{60 if at else 5}\n" for at in range(80))
    answers = [
        json.loads(line) for line in simulated("--trace", "-", "--policy", "hpa", said=said).splitlines()
    ]
    risen = next(at for at, one in enumerate(answers) if one["wanted"] > 1)
    served = next(at for at, one in enumerate(answers) if one["ready"] > 1)
    assert served - risen == 30, "the lead time"


def test_penumbra_is_the_policy_unless_another_is_named(file: Path) -> None:
    named = simulated("--trace", str(file), "--policy", "penumbra", "--json")
    assert simulated("--trace", str(file), "--json") == named
    assert "majority of simple rules" in named
    file.write_text("timestamp,value\n" + "".join(f"{15 * k},{5 if k % 12 else 50}\n" for k in range(120)))
    named = simulated("--trace", str(file), "--json")
    assert simulated("--trace", str(file), "--json", "--over-cost", "0.001") != named


def test_a_summary_has_a_line_for_each_policy(file: Path) -> None:
    said = simulated("--trace", str(file), "--policy", "hpa", "--policy", "oracle", "--policy", "static")
    steps, _, hpa, oracle, static = said.splitlines()
    assert steps == "6 steps of 15 s"
    assert hpa.split()[:2] == ["hpa", "50.00"]
    assert oracle.split()[:6] == ["oracle", "0.00", "%", "0.00", "%", "1"]
    assert static.split()[:5] == ["static", "0.00", "%", "0.00", "%"]


def test_steps_that_are_missing_are_told(file: Path) -> None:
    with file.open("a") as more:
        more.write("600,5\n")
    assert "1 gaps of more than a step of 15 s" in simulated("--trace", str(file), "--policy", "hpa")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--trace", "-", "--policy", "oracle"), "knows the future"),
        (("--trace", "-", "--policy", "hpa", "--policy", "keda"), "one policy"),
        (("--trace", "-", "--policy", "hpa", "--interval", "0"), "--interval 0"),
        (("--trace", "-", "--policy", "hpa", "--interval", "nan"), "--interval nan"),
        (("--trace", "-", "--policy", "hpa", "--capacity", "-3"), "--capacity -3"),
        (("--trace", "-", "--policy", "hpa", "--lead-time", "inf"), "--lead-time inf"),
        (("--trace", "-", "--over-cost", "0"), "--over-cost 0"),
        (("--trace", "-", "--policy", "hpa"), "standard input:2"),
    ],
)
def test_wrong_use_is_a_line(arguments: tuple[str, ...], said: str) -> None:
    output = simulated(*arguments, said="15,1\nno\n", code=2)
    assert said in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xfe", "UTF-8"),
        (b"", "too few samples: 0"),
        (b"1,1\n", "too few samples: 1"),
        (b"1,1\n2," + b"1" * 5000, ":2: over 4096 characters"),
        (b"1,1\n1.0000001,1\n", "between two lines"),
        (b"1,1\n2,1e9\n", "more than 10000 times"),
    ],
)
def test_a_file_that_is_no_trace_is_a_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(content)
    assert said in simulated("--trace", str(path), "--policy", "hpa", code=2)
