# SPDX-License-Identifier: Apache-2.0
"""Recorded series, line by line: ``timestamp,value``. A header may come first.

A timestamp is seconds or, as in public series, a date and time: UTC, unless it names another zone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TextIO

VALUE_MOST = 1e15
"""Of load. Above, sums of values lose single ones."""
READING_MOST = 1e300
"""Of any series, either sign. Above, differences are no numbers."""
TIME_MOST_S = 1e12
LINE_MOST = 4096
"""Characters."""
_SHOWN_MOST = 60
HEADER = "timestamp,value"
_ABSENT = ("", "nan", "null")


class LineError(ValueError):
    """The message names source, line, and what is allowed."""


@dataclass(frozen=True, slots=True)
class Sample:
    at_s: float
    rate: float
    """Requests/s, the mean of the step that ends at ``at_s``; NaN: no reading."""


@dataclass(frozen=True, slots=True)
class Reading:
    """Of any series: of either sign, and times may go back, as clocks do."""

    when: str
    told: str
    """Timestamp and value as they were given."""
    at_s: float
    value: float
    """NaN: none."""


def samples(lines: Iterable[str], source: str) -> Iterator[Sample]:
    """One for each line, as soon as it is there. Raises LineError; ``source`` is what it names."""
    before_s = -math.inf
    for number, said in _numbered(lines):
        reading = _parse(said, f"{source}:{number}", 0, VALUE_MOST)
        if reading.at_s <= before_s:
            raise LineError(
                f"{source}:{number}: timestamp {reading.at_s:.15g} is not after {before_s:.15g}; "
                "they must ascend"
            )
        before_s = reading.at_s
        yield Sample(reading.at_s, reading.value)


def of(file: TextIO, source: str) -> Iterator[Sample]:
    """The same of an open file, of which a line may have so many characters only."""
    return samples(_bounded(file, source), source)


def readings(file: TextIO, source: str) -> Iterator[Reading]:
    """Of an open file, one for each line, as soon as it is there. Raises LineError."""
    for number, said in _numbered(_bounded(file, source)):
        yield _parse(said, f"{source}:{number}", -READING_MOST, READING_MOST)


def _bounded(file: TextIO, source: str) -> Iterator[str]:
    number = 0
    while line := file.readline(LINE_MOST + 1):
        number += 1
        if len(line) > LINE_MOST:
            raise LineError(f"{source}:{number}: over {LINE_MOST} characters; it is no trace")
        yield line


def _numbered(lines: Iterable[str]) -> Iterator[tuple[int, str]]:
    """Without what is empty, and the header."""
    is_first = True
    for number, line in enumerate(lines, start=1):
        said = line.strip().removeprefix("\ufeff")
        if not said:
            continue
        is_header, is_first = is_first and said.replace(" ", "").lower() == HEADER, False
        if not is_header:
            yield number, said


def shown(said: str) -> str:
    """A wrong line, as messages show it."""
    return repr(said if len(said) <= _SHOWN_MOST else f"{said[:_SHOWN_MOST]}...")


def _parse(said: str, where: str, least: float, most: float) -> Reading:
    try:
        when, told = said.split(",")
        at_s = seconds(when.strip())
        value = math.nan if told.strip().lower() in _ABSENT else float(told)
    except ValueError:
        header = f", and the header {HEADER}" if where.endswith(":1") else ""
        raise LineError(
            f"{where}: {shown(said)}; two numbers are allowed: seconds,value; "
            f"for seconds YYYY-MM-DD HH:MM:SS too{header}"
        ) from None
    if not abs(at_s) <= TIME_MOST_S or not (math.isnan(value) or least <= value <= most):
        raise LineError(
            f"{where}: {shown(said)}; seconds up to {TIME_MOST_S:g} and a value of {least:g} to {most:g} "
            "are allowed"
        )
    return Reading(when.strip(), told.strip(), at_s, value)


def seconds(when: str) -> float:
    """Of a timestamp. ValueError: it is none."""
    try:
        return float(when)
    except ValueError:
        at = datetime.fromisoformat(when)
        return (at if at.tzinfo else at.replace(tzinfo=UTC)).timestamp()
