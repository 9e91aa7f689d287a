# SPDX-License-Identifier: Apache-2.0
"""Recorded load that commands are given: a FILE, whole, or standard input, line by line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from controlplane.cli.output import EXIT_USAGE, fail, warn
from controlplane.simulation import lines
from controlplane.simulation.lines import Reading, Sample

STDIN = "-"
STREAM_INTERVAL_S = 15.0
INTERVAL_LEAST_S, INTERVAL_MOST_S = 1e-3, 1e7

TRACE = typer.Option(metavar="FILE|-", help="lines timestamp,value; value: requests/s")
Trace = Annotated[str, TRACE]
Interval = Annotated[
    float | None,
    typer.Option(help="seconds of a step; default: what lies between a FILE's lines, of - 15"),
]


def within(what: str, value: float, least: float, most: float) -> None:
    """Ends the command if it is not."""
    if not least <= value <= most:
        fail(f"{what} {value:g}: {least:g} to {most:g} is allowed", EXIT_USAGE)


def stream_interval(interval: float | None) -> float:
    """Seconds of a step of standard input. Ends the command if they are wrong."""
    return STREAM_INTERVAL_S if interval is None else _checked(interval)


def _checked(interval: float) -> float:
    within("--interval", interval, INTERVAL_LEAST_S, INTERVAL_MOST_S)
    return interval


def stream() -> Iterator[Sample]:
    """Standard input's. Raises LineError."""
    if sys.stdin is None:
        fail("standard input is closed", EXIT_USAGE)
    return lines.of(sys.stdin, "standard input")


def readings(trace: str) -> Iterator[Reading]:
    """A FILE's or standard input's, any series, line by line. Raises LineError."""
    try:
        if trace == STDIN:
            if sys.stdin is None:
                fail("standard input is closed", EXIT_USAGE)
            yield from lines.readings(sys.stdin, "standard input")
        else:
            with Path(trace).open(encoding="utf-8") as file:
                yield from lines.readings(file, trace)
    except UnicodeDecodeError:
        fail(f"{'standard input' if trace == STDIN else trace}: it is not UTF-8 text", EXIT_USAGE)


def read(path: Path, interval: float | None) -> tuple[list[Sample], float]:
    """A file's samples, and the seconds of a step. Raises LineError."""
    if interval is not None:
        _checked(interval)
    try:
        with path.open(encoding="utf-8") as file:
            samples = list(lines.of(file, str(path)))
    except UnicodeDecodeError:
        fail(f"{path}: it is not UTF-8 text", EXIT_USAGE)
    except OSError as error:
        fail(f"{path}: {error.strerror}", EXIT_USAGE)
    if len(samples) < 2:
        fail(f"{path}: too few samples: {len(samples)}; at least 2 are needed", EXIT_USAGE)
    apart = np.diff([sample.at_s for sample in samples])
    between = interval or float(np.median(apart))
    within(f"{path}: between two lines", between, INTERVAL_LEAST_S, INTERVAL_MOST_S)
    if gaps := int(np.count_nonzero(apart > 1.5 * between)):
        warn(f"{path}: {gaps} gaps of more than a step of {between:g} s; each line is taken as one step")
    return samples, between
