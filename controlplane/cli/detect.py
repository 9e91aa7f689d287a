# SPDX-License-Identifier: Apache-2.0
"""``penumbra detect``: deviations of a recorded series from its own past."""

from __future__ import annotations

import json
import math
from typing import Annotated

import typer

from controlplane.cli import output, recorded
from controlplane.cli.options import AsJsonLines
from controlplane.cli.output import EXIT_USAGE, fail, say
from controlplane.deviation import Detector, Score
from controlplane.simulation.lines import LineError, Reading

Series = Annotated[str, typer.Option("--trace", metavar="FILE|-", help="lines timestamp,value; of any unit")]


def detect(trace: Series, as_json: AsJsonLines = False) -> None:
    """Score each value of a series by how far it is from what came before: 0 is normal, 0.5 remarkable.

    Each line read is answered, before the next one is read, by a line timestamp,value,score. After a
    deviation scores are 0 for a while, but for what is worse. Nothing needs to be set; days are learned.

    Example: penumbra detect --trace requests.csv --json
    """
    output.needed()
    detector, is_empty = Detector(), True
    try:
        for reading in recorded.readings(trace):
            is_empty = False
            score = detector.after(reading.at_s, reading.value)
            say(_object(reading, score) if as_json else _line(reading, score))
    except LineError as error:
        fail(str(error), EXIT_USAGE)
    if is_empty:
        source = "standard input" if trace == recorded.STDIN else trace
        fail(f"{source}: too few readings: 0; at least 1 is needed", EXIT_USAGE)


def _line(reading: Reading, score: Score) -> str:
    return f"{reading.when},{reading.told},{score.score:.6f}"


def _object(reading: Reading, score: Score) -> str:
    return json.dumps(
        {
            "t": reading.at_s if _is_number(reading.when) else reading.when,
            "value": None if math.isnan(reading.value) else reading.value,
            "score": round(score.score, 6),
            "reason": score.reason,
        }
    )


def _is_number(said: str) -> bool:
    try:
        float(said)
    except ValueError:
        return False
    return True


def register(app: typer.Typer) -> None:
    app.command()(detect)
