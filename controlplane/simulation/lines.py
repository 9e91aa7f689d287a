# SPDX-License-Identifier: Apache-2.0
"""Recorded load, line by line: ``timestamp,value``, seconds and requests/s. A header may come first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

VALUE_MOST = 1e15
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


def samples(lines: Iterable[str], source: str) -> Iterator[Sample]:
    """One for each line, as soon as it is there. Raises LineError; ``source`` is what it names."""
    before_s = -math.inf
    for number, line in enumerate(lines, start=1):
        said = line.strip().removeprefix("\ufeff")
        if not said or (number == 1 and said.replace(" ", "") == HEADER):
            continue
        sample = _parse(said, f"{source}:{number}")
        if sample.at_s <= before_s:
            raise LineError(
                f"{source}:{number}: timestamp {sample.at_s:g} is not after {before_s:g}; they must ascend"
            )
        before_s = sample.at_s
        yield sample


def _parse(said: str, where: str) -> Sample:
    shown = repr(said if len(said) <= _SHOWN_MOST else f"{said[:_SHOWN_MOST]}...")
    try:
        when, value = said.split(",")
        at_s = float(when)
        rate = math.nan if value.strip().lower() in _ABSENT else float(value)
    except ValueError:
        raise LineError(f"{where}: {shown}; two numbers are allowed: seconds,value") from None
    if not math.isfinite(at_s) or not (math.isnan(rate) or 0 <= rate <= VALUE_MOST):
        raise LineError(f"{where}: {shown}; finite seconds and a value of 0 to {VALUE_MOST:g} are allowed")
    return Sample(at_s, rate)
