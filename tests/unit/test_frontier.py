# SPDX-License-Identifier: Apache-2.0
"""Policies within bounds, several at once, and overload against cost."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from controlplane.bounds import Bounds
from controlplane.cli import app
from controlplane.model import ShadowState
from controlplane.rivals import Rival
from controlplane.simulation import frontier, run
from controlplane.simulation.controlled import Controlled
from controlplane.simulation.lines import Sample
from controlplane.simulation.run import Terms

CAPACITY = 10.0
BOUNDS = Bounds(3, 6)
LOAD = [5.0] * 30 + [200.0] * 10 + [5.0] * 150
"""Requests/s: less than a member, far more than six, and less again."""
SAMPLES = [Sample(15.0 * at, rate) for at, rate in enumerate(LOAD, start=1)]
POLICIES = [None, *Rival]


def wanted(rival: Rival | None, bounds: Bounds, samples: list[Sample] = SAMPLES) -> list[int]:
    terms = Terms(CAPACITY, 30.0, 15.0, bounds=bounds)
    return [answer.wanted for answer in run.led(rival, terms, samples)]


# ---- bounds ---------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_nobody_leaves_the_bounds_and_everybody_gets_to_them(policy: Rival | None) -> None:
    bounded = wanted(policy, BOUNDS)
    assert (min(bounded), max(bounded), bounded[-1]) == (3, 6, 3)


@pytest.mark.parametrize("policy", POLICIES)
def test_without_bounds_they_are_left(policy: Rival | None) -> None:
    """The negative control of the test above."""
    free = wanted(policy, Bounds())
    assert min(free) < 3
    assert max(free) > 6


@given(
    st.lists(st.one_of(st.floats(0, 300), st.just(math.nan)), min_size=1, max_size=40),
    st.integers(1, 4),
    st.integers(0, 4),
)
@settings(max_examples=12, deadline=None)
def test_live_ones_are_never_drained(rates: list[float], live: int, more: int) -> None:
    controlled = Controlled(
        Terms(1, 1, 1).shadows, CAPACITY, 45.0, 60.0, live + more, Bounds(live, live + more)
    )
    for rate in [*rates, *[0.0] * 260]:
        size = controlled.after(rate, live)
        there = [one for one in controlled._shadows.values() if one.by_hand]
        assert [one.state for one in there] == [ShadowState.READY] * (live - 1)
        assert live <= size.wanted <= live + more
    assert size.wanted == live


def test_hpa_doubles_from_the_least() -> None:
    burst = [Sample(15.0 * at, 700.0) for at in range(1, 6)]
    terms = Terms(CAPACITY, 30.0, 15.0, 3, bounds=Bounds(3, 50))
    assert [answer.wanted for answer in run.led(Rival.HPA, terms, burst)] == [7, 14, 28, 50, 50]


@pytest.mark.parametrize("static", [True, False])
def test_who_knows_the_future_is_bounded_too(static: bool) -> None:
    terms = Terms(CAPACITY, 30.0, 15.0, bounds=BOUNDS)
    answers = [*run.foreseen(terms, SAMPLES, static=static)]
    assert {answer.wanted for answer in answers} == ({6} if static else {3, 6})
    score = run.judged(terms, answers)
    assert score.over == pytest.approx(10 / len(LOAD)), "six are too few"
    assert static or score.cost == 1.0


# ---- the frontier ---------------------------------------------------------------------------


def test_a_lower_target_costs_more_and_loses_less() -> None:
    random = np.random.default_rng(3)
    samples = [Sample(15.0 * at, rate) for at, rate in enumerate(random.gamma(4.0, 10.0, 400).tolist())]
    terms = Terms(CAPACITY, 30.0, 15.0, target=0.65)
    points = [*frontier.points(Rival.HPA, terms, samples)]
    assert [point.setting["target"] for point in points] == [0.9, 0.8, 0.7, 0.65, 0.6, 0.5, 0.4]
    assert np.all(np.diff([point.score.cost for point in points]) > 0)
    over = [point.score.over for point in points]
    assert np.all(np.diff(over) <= 0)
    assert over[0] > over[-1]
    assert points[3].score == run.judged(terms, [*run.led(Rival.HPA, terms, samples)])


# ---- the command ----------------------------------------------------------------------------


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    path.write_text("".join(f"{one.at_s:g},{one.rate:g}\n" for one in SAMPLES[20:60]))
    return path


def simulated(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(
        app, ["simulate", "--capacity", "10", "--lead-time", "30", *arguments], input="1,1\n"
    )
    assert done.exit_code == code, done.output
    return done.output


def objects(said: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in said.splitlines()]


@pytest.mark.parametrize("policy", ["penumbra", "hpa", "static", "oracle"])
def test_the_command_bounds_them(file: Path, policy: str) -> None:
    bounds = ("--live", "2", "--max-members", "4")
    said = objects(simulated("--trace", str(file), "--policy", policy, *bounds, "--json"))
    assert {2, 4} >= {one["wanted"] for one in said[:1] + said[19:20]}
    assert all(2 <= int(str(one["wanted"])) <= 4 for one in said)


def test_members_may_be_forbidden_to_stand_by(tmp_path: Path) -> None:
    file = tmp_path / "trace.csv"
    demand = np.where(np.random.default_rng(5).uniform(size=120) < 0.05, 100.0, 5.0)
    file.write_text("".join(f"{15 * at},{rate}\n" for at, rate in enumerate(demand)))
    assert "none may stand by" in simulated("--trace", str(file), "--no-standing", "--json")
    assert "none may stand by" not in simulated("--trace", str(file), "--standing", "--json")


def test_steps_of_several_policies_name_theirs_and_summaries_follow(file: Path) -> None:
    several = simulated(
        "--trace", str(file), "--policy", "hpa", "--policy", "keda", "--policy", "hpa", "--json"
    )
    *steps, hpa, keda = objects(several)
    single = objects(simulated("--trace", str(file), "--policy", "hpa", "--json"))
    assert [*single[0]] == ["t", "demand", "p50", "p90", "wanted", "ready", "over", "reason"]
    assert steps[:40] == [{"policy": "hpa", **one} for one in single]
    assert {one["policy"] for one in steps[40:]} == {"keda"}
    assert (len(steps), hpa["policy"], keda["policy"]) == (80, "hpa", "keda")
    summary = hpa["summary"]
    assert isinstance(summary, dict)
    assert [*summary] == ["over", "lost", "endpoint_s", "cost", "starts", "reversals"]
    assert summary["over"] == np.mean([one["over"] for one in single])


def test_the_frontier_is_a_table_or_rows(file: Path) -> None:
    lines = simulated("--trace", str(file), "--frontier", "--over-cost", "3").splitlines()
    assert lines[0] == "40 steps of 15 s"
    assert lines[1].split() == ["policy", "setting", "over", "lost", "cost", "starts"]
    assert [line.split()[:2] for line in lines[2:5]] == [
        ["penumbra", f"over_cost={cost}"] for cost in (1, 2, 3)
    ]
    assert [
        sum(line.startswith(f"{policy} ") for line in lines) for policy in ("penumbra", "hpa", "trend")
    ] == [8, 6, 6]
    told = objects(
        simulated("--trace", str(file), "--frontier", "--json", "--policy", "keda", "--policy", "oracle")
    )
    assert [(one["policy"], one["setting"]) for one in told[-2:]] == [
        ("keda", {"target": 0.4}),
        ("oracle", {}),
    ]
    assert told[-1]["cost"] == 1.0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--live", "0"), "--live 0: 1 to 10000 is allowed"),
        (("--live", "3", "--initial", "2"), "--initial 2: 3 (--live) to 10000 is allowed"),
        (("--live", "3", "--max-members", "2"), "--max-members 2: 3 (--live) to 10000 is allowed"),
        (("--initial", "3", "--max-members", "2"), "--max-members 2: 3 (--initial) to 10000 is allowed"),
        (("--max-members", "10001"), "--max-members 10001: 1 (--live) to 10000 is allowed"),
        (("--frontier",), "--frontier: --trace FILE is allowed, not -"),
        (("--plot", "x.svg"), "--plot: --trace FILE is allowed, not -"),
        (("--frontier", "--plot", "x.svg", "--trace", "x"), "without --frontier"),
    ],
)
def test_wrong_use_is_a_line(arguments: tuple[str, ...], said: str) -> None:
    output = simulated("--trace", "-", *arguments, code=2)
    assert said in output
    assert output.count("\n") == 1
