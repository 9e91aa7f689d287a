# SPDX-License-Identifier: Apache-2.0
"""How new a service's request rate is to it: each of its steps, scored as ``penumbra detect`` scores lines of
a recorded series, by the same ``deviation.Detector``.

``conditions.py`` holds the last seconds against a mean, at once; this holds a step against all that are kept
of the past, whatever their distribution. What is not learned from, as times with failures, is not judged.

It is told, and decides nothing. On seven open traces (up to 2.8 days, 60 s lead time) one of some 2000 steps
is remarkable. To widen for them what is seen coming takes time over capacity from 1.0580 to 1.0571 %, by
three ticks of one trace, for 11 starts more; to start more for them, to 1.0577 %, at 0.1 % more cost. Where
two members serve what 16 do there, it changes nothing but 12 starts more. A quiet week has 18 such steps,
4 of them above all before: more than false starts are allowed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from controlplane.deviation import REMARKABLE, Detector
from controlplane.past import Past

_JUDGED = 400
"""Steps that are judged in one tick, of all services: 20 ms. Those of 512 services end together."""
_AT_ONCE = 40
"""Of them, of one service, before it is another one's turn."""
_NEWS = 4
"""The last steps, a lead time: what is older when it is judged is told as past only."""


@dataclass(frozen=True, slots=True)
class Novel:
    """A step whose rate is remarkable."""

    until_unix_s: float
    """When it ended."""
    rate: float
    """flows/s, its mean."""
    score: float
    reason: str
    """In words and numbers."""


def sentence(service: str, novel: Novel) -> str:
    return f"{service}: request rate deviates from its past ({novel.score:.2f}), in flows/s {novel.reason}"


class Novelty:
    """Of one service."""

    def __init__(self, step_s: float) -> None:
        self._step_s, self._detector = step_s, Detector()
        self._next = 0
        """Number of the first step that was not judged yet."""
        self.score: float | None = None
        """Of the last step, 0..1; None: it was not read, or the past was not judged up to it yet."""
        self.last: Novel | None = None
        self.news = 0
        """Remarkable steps that were told when they had ended."""

    def judge(self, past: Past, most: int) -> tuple[int, list[Novel]]:
        """How many steps were judged, of so many at most, and those that are news."""
        begin = max(self._next, past.begin)
        coming, found = past.since(begin, most), []
        self._next = begin + len(coming)
        self.score = None
        for number, rate in enumerate(coming, begin):
            until_s = (number + 1) * self._step_s
            told = self._detector.after(until_s, rate)
            if told.score >= REMARKABLE:
                self.last = Novel(until_s, rate, told.score, told.reason)
                if number >= past.end - _NEWS:
                    found.append(self.last)
            self.score = told.score if rate == rate and number == past.end - 1 else None
        self.news += len(found)
        return len(coming), found

    def is_behind(self, past: Past) -> bool:
        """There is more to judge."""
        return max(self._next, past.begin) < past.end


class Novelties:
    """Of all services that are foreseen; who has steps to judge takes turns."""

    def __init__(self, steps_s: Mapping[str, float]) -> None:
        """:param steps_s: service -> length of its steps."""
        self._steps_s = dict(steps_s)
        self._of = {name: Novelty(step_s) for name, step_s in steps_s.items()}
        self._waiting: dict[str, None] = {}

    def resume(self, other: Novelties) -> None:
        """The same knowledge of services whose steps are as long."""
        for name, step_s in self._steps_s.items():
            if other._steps_s.get(name) == step_s:
                self._of[name] = other._of[name]
        self.await_turn(name for name in other._waiting if name in self._of)

    def await_turn(self, names: Iterable[str]) -> None:
        """Services that have steps to judge."""
        self._waiting |= dict.fromkeys(names)

    def of(self, name: str) -> Novelty | None:
        """None: it is not foreseen."""
        return self._of.get(name)

    def judge(self, pasts: Mapping[str, Past]) -> Iterator[tuple[str, Novel]]:
        """What is news; no more than a tick has time for.

        :param pasts: of services that are foreseen."""
        left = _JUDGED
        while self._waiting and left > 0:
            name = next(iter(self._waiting))
            del self._waiting[name]
            novelty, past = self._of[name], pasts[name]
            judged, found = novelty.judge(past, min(left, _AT_ONCE))
            left -= max(judged, 1)
            if novelty.is_behind(past):
                self._waiting[name] = None
            yield from ((name, one) for one in found)
