# SPDX-License-Identifier: Apache-2.0
"""``penumbra simulate``: what policies make of recorded load."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from controlplane.bounds import MEMBERS_MOST, Bounds
from controlplane.cli import output, plotted, recorded, replay
from controlplane.cli.options import AsJson
from controlplane.cli.output import EXIT_USAGE, fail, rows, say
from controlplane.cli.plotted import Plot
from controlplane.cli.recorded import STDIN, TRACE, Interval, within
from controlplane.model import ShadowSettings
from controlplane.rivals import Rival
from controlplane.simulation import frontier, run
from controlplane.simulation.lines import LineError, Sample
from controlplane.simulation.plant import Score
from controlplane.simulation.run import Answer, Terms

LEAD_TIME_MOST_S = 1e7
CAPACITY_LEAST, CAPACITY_MOST = 1e-9, 1e15
OVER_COST_LEAST, OVER_COST_MOST = 1e-3, 1e6
USUAL = ShadowSettings()
SUMMARY = ("policy", "over", "lost", "cost", "endpoint_s", "starts", "reversals")
SWEPT = ("policy", "setting", "over", "lost", "cost", "starts")


class Policy(Enum):
    PENUMBRA = "penumbra"
    HPA = Rival.HPA.value
    KEDA = Rival.KEDA.value
    TARGET_TRACKING = Rival.TARGET_TRACKING.value
    TREND = Rival.TREND.value
    STATIC = "static"
    ORACLE = "oracle"


KNOWING = (Policy.STATIC, Policy.ORACLE)
"""They have no knob, and a FILE only."""


Live = Annotated[int, typer.Option(help="endpoints that are always there, 1 to 10000")]
MaxMembers = Annotated[
    int | None, typer.Option(help="endpoints that there may be, --live to 10000; default: 10000")
]
OverCost = Annotated[
    float,
    typer.Option(
        help="what a second over capacity costs, in seconds of the usual group (penumbra), 0.001 to 1e6"
    ),
]
Standing = Annotated[
    bool, typer.Option(help="whether members may stand by for more than the forecast's P90 (penumbra)")
]
Replay = Annotated[
    Path | None,
    typer.Option("--replay", metavar="FILE", help="decide again what penumbra run --record FILE decided"),
]
Frontier = Annotated[
    bool,
    typer.Option("--frontier", help="of a FILE: each policy at settings of its own, overload against cost"),
]


@dataclass(frozen=True, slots=True)
class Asked:
    """What is made of a FILE."""

    policies: list[Policy]
    sweep: bool
    plot: Path | None
    as_json: bool


def simulate(
    trace: Annotated[str | None, TRACE] = None,
    capacity: Annotated[float | None, typer.Option(help="requests/s of an endpoint")] = None,
    lead_time: Annotated[
        float | None, typer.Option(min=0, help="seconds from an order until it serves")
    ] = None,
    policy: Annotated[
        list[Policy] | None,
        typer.Option(help="may be given several times, of a FILE; default: penumbra, with --frontier all"),
    ] = None,
    interval: Interval = None,
    initial: Annotated[
        int | None,
        typer.Option(min=1, max=MEMBERS_MOST, help="endpoints at first; default: what the first line needs"),
    ] = None,
    live: Live = 1,
    max_members: MaxMembers = None,
    over_cost: OverCost = USUAL.over_cost,
    standing: Standing = USUAL.standing,
    sweep: Frontier = False,
    plot: Plot = None,
    decided: Replay = None,
    as_json: AsJson = False,
) -> None:
    """Replay recorded load against scaling policies: a line for each step, or a summary of each policy.

    With - each line read is answered by a JSON object before the next one is read. A FILE gives the summary,
    with --json its steps; those of several policies name theirs, and their summaries follow.

    Example: penumbra simulate --trace load.csv --capacity 50 --lead-time 60 --policy penumbra --policy hpa
    """
    output.needed()
    if decided is not None:
        if trace is not None:
            fail("--replay: a record has its own load; it is allowed without --trace", EXIT_USAGE)
        replay.replay(decided, as_json=as_json)
        return
    if trace is None or capacity is None or lead_time is None:
        fail("--trace, --capacity and --lead-time are needed, or --replay", EXIT_USAGE)
    within("--capacity", capacity, CAPACITY_LEAST, CAPACITY_MOST)
    within("--lead-time", lead_time, 0.0, LEAD_TIME_MOST_S)
    within("--over-cost", over_cost, OVER_COST_LEAST, OVER_COST_MOST)
    bounds = _bounds(live, max_members, initial)
    plotted.checked(plot, trace)
    if plot is not None and sweep:
        fail("--plot: it shows runs; it is allowed without --frontier", EXIT_USAGE)
    settings = ShadowSettings(over_cost=over_cost, standing=standing)
    usual = [one for one in Policy if one not in KNOWING] if sweep else [Policy.PENUMBRA]
    policies = list(dict.fromkeys(policy or usual))
    try:
        if trace == STDIN:
            if sweep:
                fail("--frontier: --trace FILE is allowed, not -", EXIT_USAGE)
            between = recorded.stream_interval(interval)
            _stream(policies, Terms(capacity, lead_time, between, initial, settings, bounds))
        else:
            samples, between = recorded.read(Path(trace), interval)
            terms = Terms(capacity, lead_time, between, initial, settings, bounds)
            _file(samples, terms, Asked(policies, sweep, plot, as_json))
    except LineError as error:
        fail(str(error), EXIT_USAGE)


def _bounds(live: int, max_members: int | None, initial: int | None) -> Bounds:
    """Ends the command if they contradict each other."""
    within("--live", live, 1, MEMBERS_MOST)
    if initial is not None and initial < live:
        fail(f"--initial {initial}: {live} (--live) to {MEMBERS_MOST} is allowed", EXIT_USAGE)
    least, whose = max((live, "--live"), (initial or 0, "--initial"))
    if max_members is not None and not least <= max_members <= MEMBERS_MOST:
        fail(f"--max-members {max_members}: {least} ({whose}) to {MEMBERS_MOST} is allowed", EXIT_USAGE)
    return Bounds(live, MEMBERS_MOST if max_members is None else max_members)


def _stream(policies: list[Policy], terms: Terms) -> None:
    if len(policies) != 1 or policies[0] in KNOWING:
        fail("--trace -: one policy is led, and not one that knows the future: give a FILE", EXIT_USAGE)
    for answer in run.led(_rival(policies[0]), terms, recorded.stream()):
        say(json.dumps(_step(answer)))


def _file(samples: list[Sample], terms: Terms, asked: Asked) -> None:
    for sample in samples:
        terms.checked(sample)
    if not asked.as_json:
        say(f"{len(samples)} steps of {terms.interval_s:g} s")
    if asked.sweep:
        rows(SWEPT, _frontier(samples, terms, asked), asked.as_json)
        return
    runs = {policy: _told(policy, terms, samples, asked) for policy in asked.policies}
    scores = {policy: run.judged(terms, answers) for policy, answers in runs.items()}
    if not asked.as_json:
        rows(
            SUMMARY,
            [{"policy": policy.value, **_row(score)} for policy, score in scores.items()],
            as_json=False,
        )
    elif len(scores) > 1:
        for policy, score in scores.items():
            say(json.dumps({"policy": policy.value, "summary": asdict(score)}))
    if asked.plot is not None:
        _draw(asked.plot, terms, runs)


def _told(policy: Policy, terms: Terms, samples: list[Sample], asked: Asked) -> list[Answer]:
    """All that a policy answers, each step said as soon as it is known if steps are asked for."""
    named = {"policy": policy.value} if len(asked.policies) > 1 else {}
    answers = []
    for answer in _led(policy, terms, samples):
        if asked.as_json:
            say(json.dumps({**named, **_step(answer)}))
        answers.append(answer)
    return answers


def _frontier(samples: list[Sample], terms: Terms, asked: Asked) -> Iterator[dict[str, object]]:
    for policy in asked.policies:
        if policy in KNOWING:
            found = iter([frontier.Point({}, run.judged(terms, [*_led(policy, terms, samples)]))])
        else:
            found = frontier.points(_rival(policy), terms, samples)
        for point in found:
            score = asdict(point.score) if asked.as_json else _row(point.score)
            yield {"policy": policy.value, "setting": point.setting, **score}


def _draw(plot: Path, terms: Terms, runs: dict[Policy, list[Answer]]) -> None:
    from controlplane.pictures import runs as picture  # matplotlib takes half a second to import

    named = {policy.value: answers for policy, answers in runs.items()}
    plotted.written(plot, lambda path: picture.draw(terms, named, path))


def _led(policy: Policy, terms: Terms, samples: list[Sample]) -> Iterator[Answer]:
    if policy in KNOWING:
        return run.foreseen(terms, samples, static=policy is Policy.STATIC)
    return run.led(_rival(policy), terms, samples)


def _row(score: Score) -> dict[str, object]:
    """For people."""
    shares = {"over": f"{100 * score.over:.2f} %", "lost": f"{100 * score.lost:.2f} %"}
    return {**asdict(score), **shares}


def _rival(policy: Policy) -> Rival | None:
    return None if policy is Policy.PENUMBRA else Rival(policy.value)


def _step(answer: Answer) -> dict[str, object]:
    return {
        "t": answer.sample.at_s,
        "demand": None if math.isnan(answer.sample.rate) else answer.sample.rate,
        "p50": answer.p50,
        "p90": answer.p90,
        "wanted": answer.wanted,
        "ready": answer.ready,
        "over": answer.over,
        "reason": answer.reason,
    }


def register(app: typer.Typer) -> None:
    app.command()(simulate)
