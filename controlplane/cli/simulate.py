# SPDX-License-Identifier: Apache-2.0
"""``penumbra simulate``: what policies make of recorded load."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from controlplane.cli import recorded
from controlplane.cli.options import AsJson
from controlplane.cli.output import EXIT_USAGE, fail, rows, say
from controlplane.cli.recorded import STDIN, Interval, Trace, within
from controlplane.model import ShadowSettings
from controlplane.simulation import run
from controlplane.simulation.lines import LineError, Sample
from controlplane.simulation.rivals import Rival
from controlplane.simulation.run import MEMBERS_MOST, Answer, Terms

LEAD_TIME_MOST_S = 1e7
CAPACITY_LEAST, CAPACITY_MOST = 1e-9, 1e15
OVER_COST_LEAST, OVER_COST_MOST = 1e-3, 1e6


class Policy(Enum):
    PENUMBRA = "penumbra"
    HPA = Rival.HPA.value
    KEDA = Rival.KEDA.value
    TARGET_TRACKING = Rival.TARGET_TRACKING.value
    TREND = Rival.TREND.value
    STATIC = "static"
    ORACLE = "oracle"


KNOWING = (Policy.STATIC, Policy.ORACLE)


def simulate(
    trace: Trace,
    capacity: Annotated[float, typer.Option(help="requests/s of an endpoint")],
    lead_time: Annotated[float, typer.Option(min=0, help="seconds from an order until it serves")],
    policy: Annotated[
        list[Policy] | None,
        typer.Option(help="may be given several times, of a FILE; default: penumbra"),
    ] = None,
    interval: Interval = None,
    initial: Annotated[
        int | None,
        typer.Option(min=1, max=MEMBERS_MOST, help="endpoints at first; default: what the first line needs"),
    ] = None,
    over_cost: Annotated[
        float,
        typer.Option(
            help="what a second over capacity costs, in seconds of the usual group (penumbra), 0.001 to 1e6"
        ),
    ] = ShadowSettings().over_cost,
    as_json: AsJson = False,
) -> None:
    """Replay recorded load against scaling policies: a line for each step, or a summary of each policy.

    With - each line read is answered by a JSON object before the next one is read. A FILE gives the summary,
    with --json its steps.

    Example: penumbra simulate --trace load.csv --capacity 50 --lead-time 60 --policy penumbra --policy hpa
    """
    within("--capacity", capacity, CAPACITY_LEAST, CAPACITY_MOST)
    within("--lead-time", lead_time, 0.0, LEAD_TIME_MOST_S)
    within("--over-cost", over_cost, OVER_COST_LEAST, OVER_COST_MOST)
    policies = policy or [Policy.PENUMBRA]
    settings = ShadowSettings(over_cost=over_cost, max_per_endpoint=MEMBERS_MOST - 1)
    try:
        if trace == STDIN:
            between = recorded.stream_interval(interval)
            _stream(policies, Terms(capacity, lead_time, between, initial, settings))
        else:
            samples, between = recorded.read(Path(trace), interval)
            _file(samples, policies, Terms(capacity, lead_time, between, initial, settings), as_json)
    except LineError as error:
        fail(str(error), EXIT_USAGE)


def _stream(policies: list[Policy], terms: Terms) -> None:
    if len(policies) != 1 or policies[0] in KNOWING:
        fail("--trace -: one policy is led, and not one that knows the future: give a FILE", EXIT_USAGE)
    for answer in run.led(_rival(policies[0]), terms, recorded.stream()):
        say(_told(answer))


def _file(samples: list[Sample], policies: list[Policy], terms: Terms, as_json: bool) -> None:
    for sample in samples:
        terms.checked(sample)
    if as_json:
        for policy in policies:
            for answer in _led(policy, terms, samples):
                say(_told(answer))
        return
    say(f"{len(samples)} steps of {terms.interval_s:g} s")
    columns = ("policy", "over", "lost", "cost", "endpoint_s", "starts", "reversals")
    rows(columns, [_summary(policy, terms, samples) for policy in policies], as_json=False)


def _led(policy: Policy, terms: Terms, samples: list[Sample]) -> Iterator[Answer]:
    if policy in KNOWING:
        return run.foreseen(terms, samples, static=policy is Policy.STATIC)
    return run.led(_rival(policy), terms, samples)


def _rival(policy: Policy) -> Rival | None:
    return None if policy is Policy.PENUMBRA else Rival(policy.value)


def _summary(policy: Policy, terms: Terms, samples: list[Sample]) -> dict[str, object]:
    score = run.judged(terms, list(_led(policy, terms, samples)))
    shares = {"over": f"{100 * score.over:.2f} %", "lost": f"{100 * score.lost:.2f} %"}
    return {"policy": policy.value, **asdict(score), **shares}


def _told(answer: Answer) -> str:
    return json.dumps(
        {
            "t": answer.sample.at_s,
            "demand": None if math.isnan(answer.sample.rate) else answer.sample.rate,
            "p50": answer.p50,
            "p90": answer.p90,
            "wanted": answer.wanted,
            "ready": answer.ready,
            "over": answer.over,
            "reason": answer.reason,
        }
    )


def register(app: typer.Typer) -> None:
    app.command()(simulate)
