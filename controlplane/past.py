# SPDX-License-Identifier: Apache-2.0
"""What a service was asked for, step by step: all that foresight learns from, so that it can learn again.

Steps have numbers: Unix seconds divided by a step's length. They are kept in chunks of some hundred, each a
value in the store: what a crash costs is what came since the last chunk was written.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator

_CHUNK = 240
MOST = 12_000
"""Steps that are kept: as many as the analogs know."""


class Past:
    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self._first = 0
        """Number of the first step that is kept."""
        self._demand: list[float] = []
        self._untaught: set[int] = set()
        """Numbers of steps that are kept, but not learned from: of times with failures."""
        self.kept = 0
        """Number of the first step that is not in the store."""

    @property
    def end(self) -> int:
        """Number of the step after the last one."""
        return self._first + len(self._demand)

    @property
    def begin(self) -> int:
        return self._first

    def number(self, at_unix_s: float) -> int:
        return math.floor(at_unix_s / self._step_s)

    def add(self, number: int, demand: float, teaches: bool = True) -> None:
        """:param demand: flows/s, the mean of that step; NaN: no reading. Steps before it that nobody told
        of had none; one that is before the last one is dropped. ``teaches``: it is to be learned from."""
        if self._demand and number < self.end:
            return
        if not self._demand or number - self.end > MOST:
            self._first, self._demand = number, []
            self._untaught.clear()
        if not teaches:
            self._untaught.add(number)
        self._demand += [math.nan] * (number - self.end)
        self._demand.append(float(f"{demand:.6g}"))
        if len(self._demand) >= 2 * MOST:
            self._cut()

    def _cut(self) -> None:
        gone = len(self._demand) - MOST
        self._first += gone
        del self._demand[:gone]
        self._untaught = {number for number in self._untaught if number >= self._first}

    def since(self, number: int, most: int | None = None) -> list[float]:
        """(steps,) flows/s from this step on, to be learned from; NaN: no reading, or none to learn from.

        :param most: so many at most; None: all."""
        begin = max(number, self._first)
        end = None if most is None else begin - self._first + most
        demand = self._demand[begin - self._first : end]
        if not self._untaught:
            return demand
        return [math.nan if step in self._untaught else one for step, one in enumerate(demand, begin)]

    def chunks(self, since: int) -> Iterator[tuple[int, str | None]]:
        """Number and text of those that have changed since this step, and, to be forgotten, of the one that
        has become too old."""
        if not self._demand:
            return
        for chunk in range(max(since, self._first) // _CHUNK, (self.end - 1) // _CHUNK + 1):
            begin = max(chunk * _CHUNK, self._first)
            demand = self._demand[begin - self._first : (chunk + 1) * _CHUNK - self._first]
            told = [None if math.isnan(one) else one for one in demand]
            text: dict[str, object] = {"step_s": self._step_s, "begin": begin, "demand": told}
            untaught = sorted(self._untaught.intersection(range(begin, begin + len(told))))
            yield chunk, json.dumps(text | ({"untaught": untaught} if untaught else {}))
            yield chunk - MOST // _CHUNK - 1, None

    def recall(self, number: int, read: Callable[[int], str | None]) -> list[str]:
        """Takes what was kept before the step of this number. What can't be made sense of is left out, and
        said.

        :param read: the text of the chunk with this number; None: there is none.
        """
        wrong = []
        for chunk in range((number - MOST) // _CHUNK, number // _CHUNK + 1):
            if (text := read(chunk)) is None:
                continue
            try:
                raw = json.loads(text)
                begin, demand = int(raw["begin"]), [_told(one) for one in raw["demand"]]
                untaught = frozenset(map(int, raw.get("untaught", ())))
                if raw["step_s"] != self._step_s:
                    continue  # the lead time that is configured was another one
            except (ValueError, TypeError, KeyError) as error:
                wrong.append(f"chunk {chunk}: {type(error).__name__}: {error}")
                continue
            for at, one in enumerate(demand, begin):
                if at < number:
                    self.add(at, one, at not in untaught)
        return wrong


def _told(value: object) -> float:
    if value is None:
        return math.nan
    if not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{value!r} is no demand")
    return float(value)
