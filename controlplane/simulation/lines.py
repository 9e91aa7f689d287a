# SPDX-License-Identifier: Apache-2.0
"""Recorded load, line by line: ``timestamp,value``, seconds and requests/s. A header may come first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TextIO

VALUE_MOST = 1e15
"""Above, sums of values lose single ones."""
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


def samples(lines: Iterable[str], source: str) -> Iterator[Sample]:
    """One for each line, as soon as it is there. Raises LineError; ``source`` is what it names."""
    before_s, is_first = -math.inf, True
    for number, line in enumerate(lines, start=1):
        said = line.strip().removeprefix("\ufeff")
        if not said:
            continue
        is_header, is_first = is_first and said.replace(" ", "").lower() == HEADER, False
        if is_header:
            continue
        sample = _parse(said, f"{source}:{number}")
        if sample.at_s <= before_s:
            raise LineError(
                f"{source}:{number}: timestamp {sample.at_s:.15g} is not after {before_s:.15g}; "
                "they must ascend"
            )
        before_s = sample.at_s
        yield sample


def of(file: TextIO, source: str) -> Iterator[Sample]:
    """The same of an open file, of which a line may have so many characters only."""

    def bounded() -> Iterator[str]:
        number = 0
        while line := file.readline(LINE_MOST + 1):
            number += 1
            if len(line) > LINE_MOST:
                raise LineError(f"{source}:{number}: over {LINE_MOST} characters; it is no trace")
            yield line

    return samples(bounded(), source)


def shown(said: str) -> str:
    """A wrong line, as messages show it."""
    return repr(said if len(said) <= _SHOWN_MOST else f"{said[:_SHOWN_MOST]}...")


def _parse(said: str, where: str) -> Sample:
    try:
        when, value = said.split(",")
        at_s = float(when)
        rate = math.nan if value.strip().lower() in _ABSENT else float(value)
    except ValueError:
        raise LineError(f"{where}: {shown(said)}; two numbers are allowed: seconds,value") from None
    if not abs(at_s) <= TIME_MOST_S or not (math.isnan(rate) or 0 <= rate <= VALUE_MOST):
        raise LineError(
            f"{where}: {shown(said)}; seconds up to {TIME_MOST_S:g} and a value of 0 to {VALUE_MOST:g} "
            "are allowed"
        )
    return Sample(at_s, rate)
