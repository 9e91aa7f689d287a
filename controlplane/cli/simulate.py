# SPDX-License-Identifier: Apache-2.0
"""``penumbra simulate``: what policies make of recorded load."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from dataclasses import asdict, replace
from enum import Enum
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from controlplane.cli.options import AsJson
from controlplane.cli.output import EXIT_USAGE, fail, rows, say, warn
from controlplane.simulation import lines, run
from controlplane.simulation.lines import LineError, Sample
from controlplane.simulation.rivals import Rival
from controlplane.simulation.run import MEMBERS_MOST, Answer, Terms
from controlplane.sizing import OVER_COST

STDIN = "-"
STREAM_INTERVAL_S = 15.0
INTERVAL_LEAST_S, INTERVAL_MOST_S = 1e-3, 1e7
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
    trace: Annotated[str, typer.Option(metavar="FILE|-", help="lines timestamp,value; value: requests/s")],
    capacity: Annotated[float, typer.Option(help="requests/s of an endpoint")],
    lead_time: Annotated[float, typer.Option(min=0, help="seconds from an order until it serves")],
    policy: Annotated[
        list[Policy] | None,
        typer.Option(help="may be given several times, of a FILE; default: penumbra"),
    ] = None,
    interval: Annotated[
        float | None,
        typer.Option(help="seconds of a step; default: what lies between a FILE's lines, of - 15"),
    ] = None,
    initial: Annotated[
        int | None,
        typer.Option(min=1, max=MEMBERS_MOST, help="endpoints at first; default: what the first line needs"),
    ] = None,
    over_cost: Annotated[
        float,
        typer.Option(help="what a second over capacity costs, in seconds of the usual group (penumbra)"),
    ] = OVER_COST,
    as_json: AsJson = False,
) -> None:
    """Replay recorded load against scaling policies: a line for each step, or a summary of each policy.

    With - each line read is answered by a JSON object before the next one is read. A FILE gives the summary,
    with --json its steps.

    Example: penumbra simulate --trace load.csv --capacity 50 --lead-time 60 --policy penumbra --policy hpa
    """
    _within("--capacity", capacity, CAPACITY_LEAST, CAPACITY_MOST)
    _within("--lead-time", lead_time, 0.0, LEAD_TIME_MOST_S)
    _within("--over-cost", over_cost, OVER_COST_LEAST, OVER_COST_MOST)
    if interval is not None:
        _within("--interval", interval, INTERVAL_LEAST_S, INTERVAL_MOST_S)
    policies = policy or [Policy.PENUMBRA]
    terms = Terms(capacity, lead_time, interval or STREAM_INTERVAL_S, initial, over_cost)
    try:
        if trace == STDIN:
            _stream(policies, terms)
        else:
            _file(Path(trace), policies, terms, interval, as_json)
    except LineError as error:
        fail(str(error), EXIT_USAGE)


def _within(what: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:
        fail(f"{what} {value:g}: {least:g} to {most:g} is allowed", EXIT_USAGE)


def _stream(policies: list[Policy], terms: Terms) -> None:
    if len(policies) != 1 or policies[0] in KNOWING:
        fail("--trace -: one policy is led, and not one that knows the future: give a FILE", EXIT_USAGE)
    if sys.stdin is None:
        fail("standard input is closed", EXIT_USAGE)
    for answer in run.led(_rival(policies[0]), terms, lines.of(sys.stdin, "standard input")):
        say(_told(answer))


def _file(path: Path, policies: list[Policy], terms: Terms, interval: float | None, as_json: bool) -> None:
    try:
        with path.open(encoding="utf-8") as file:
            samples = list(lines.of(file, str(path)))
    except UnicodeDecodeError:
        fail(f"{path}: it is not UTF-8 text", EXIT_USAGE)
    if len(samples) < 2:
        fail(f"{path}: too few samples: {len(samples)}; at least 2 are needed", EXIT_USAGE)
    apart = np.diff([sample.at_s for sample in samples])
    between = interval or float(np.median(apart))
    _within(f"{path}: between two lines", between, INTERVAL_LEAST_S, INTERVAL_MOST_S)
    if gaps := int(np.count_nonzero(apart > 1.5 * between)):
        warn(f"{path}: {gaps} gaps of more than a step of {between:g} s; each line is taken as one step")
    terms = replace(terms, interval_s=between)
    if as_json:
        for policy in policies:
            for answer in _led(policy, terms, samples):
                say(_told(answer))
        return
    say(f"{len(samples)} steps of {between:g} s")
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
    demand = None if math.isnan(answer.sample.rate) else answer.sample.rate
    return json.dumps(
        {
            "t": answer.sample.at_s,
            "demand": demand,
            "wanted": answer.wanted,
            "ready": answer.ready,
            "over": answer.over,
            "reason": answer.reason,
        }
    )


def register(app: typer.Typer) -> None:
    app.command()(simulate)
