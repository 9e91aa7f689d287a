# SPDX-License-Identifier: Apache-2.0
"""What live endpoints that are slow or failing, while others of their service are not, lose of their weight.

Who fails a fifth of its flows more than is normal loses a fifth of them; who takes three times as long gets a
third, so that as many wait at it as before (Little, "A proof for the queuing formula", Operations Research 9,
1961). No more is taken from it than the others have room for, and never all: who is given nothing can't be
seen to be well again. It comes back slowly, for what heals as soon as less is given is ill again with more.
Who became slow, and no more than that, while it was asked for more than is normal was overloaded: it gets its
share back soon, once.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence

from controlplane.conditions import Conditions
from controlplane.signs import Count, Time

_LEAST = 0.1
_FILLED = 0.8
"""Of what the others can be counted on for: with much more they would need shadows."""
_WELL_S = 30.0
"""It is well for so long before it gets more again."""
_DOUBLED_S = 30.0
"""Then in so long it gets twice as much."""
_CLEARLY = 0.9
"""Of what it kept."""
_RESTED_S = 5.0
"""Both, of who was overloaded."""
_ONCE_S = 300.0
"""So long who was overloaded and is slow again is ill."""


class Penalties:
    """Of the live endpoints with these names."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = tuple(names)
        self._index = {name: i for i, name in enumerate(names)}
        self._kept: dict[str, float] = {}
        self._ill_s: dict[str, float] = {}
        """When each was ill last; NaN: before this controller began."""
        self.deeper: frozenset[str] = frozenset()
        """Those that keep clearly less since the last reading."""
        self._before: dict[str, float] = {}
        """What each kept when it was one of these last, or later, if that is more."""
        self._strained: set[str] = set()
        """Of those with a penalty, those that were overloaded."""
        self._strained_s: dict[str, float] = {}
        """When each began to be so last."""

    @property
    def kept(self) -> Mapping[str, float]:
        """Endpoint -> the part of its weight that it keeps; those that keep all of it are not there."""
        return self._kept

    def resume(self, other: Penalties) -> None:
        """The same of those that both have."""
        both = other._kept.keys() & self._index.keys()
        self._kept = {name: other._kept[name] for name in both}
        self._ill_s = {name: other._ill_s[name] for name in both}
        self._strained = other._strained & both
        self._strained_s = {n: at_s for n, at_s in other._strained_s.items() if n in self._index}

    def text(self) -> str | None:
        """To be kept; None: nobody has one."""
        return json.dumps({name: round(kept, 4) for name, kept in self._kept.items()}) if self._kept else None

    def recall(self, kept: str) -> None:
        """As if they had been ill just now. Raises ``ValueError`` if no sense can be made of it."""
        try:
            told = {str(name): float(part) for name, part in json.loads(kept).items()}
        except (ValueError, TypeError, AttributeError) as error:
            raise ValueError(f"penalties: {type(error).__name__}: {error}") from error
        self._kept = {name: part for name, part in told.items() if name in self._index and 0.0 < part < 1.0}
        self._ill_s = dict.fromkeys(self._kept, math.nan)

    def take(self, conditions: Conditions, least: Mapping[int, float], over_s: float, now_s: float) -> None:
        """:param least: indices of those in trouble, while others of their service are not -> the part of
        its weight that each has to keep, as the others have no room for more."""
        for name in list(self._kept):
            self._give_back(name, bool(conditions.in_trouble[self._index[name]]), over_s, now_s)
        for i, part in least.items():
            name, serves = self._names[i], succeeding(conditions, i)
            kept = min(serves, as_soon(conditions, i), self._kept.get(name, 1.0))
            kept = max(kept, min(part, serves), _LEAST)  # what it fails is lost, whoever has no room
            if kept < 1.0:
                self._strain(name, serves == 1.0, conditions.is_asked_more(i), now_s)
                self._kept[name], self._ill_s[name] = kept, now_s
            elif name in self._kept:
                self._forget(name)
        before = self._before
        self.deeper = frozenset(n for n, kept in self._kept.items() if kept < _CLEARLY * before.get(n, 1.0))
        self._before = {
            n: kept if n in self.deeper else max(kept, before.get(n, 1.0)) for n, kept in self._kept.items()
        }

    def _give_back(self, name: str, is_ill: bool, over_s: float, now_s: float) -> None:
        well_s = now_s - self._ill_s[name]
        if math.isnan(well_s) or is_ill:
            if well_s > _RESTED_S:
                self._strained.discard(name)  # it got some back, and is ill with it
            self._ill_s[name] = now_s  # with others too, it may be: it gets nothing back for that
            return
        after_s, doubled_s = (_RESTED_S, _RESTED_S) if name in self._strained else (_WELL_S, _DOUBLED_S)
        if well_s > after_s:
            self._kept[name] *= 2.0 ** (over_s / doubled_s)
            if self._kept[name] >= 1.0:
                self._forget(name)

    def _strain(self, name: str, is_slow_only: bool, is_asked_more: bool, now_s: float) -> None:
        if not is_slow_only:
            self._strained.discard(name)
        elif name not in self._kept and is_asked_more:
            if now_s - self._strained_s.get(name, -math.inf) > _ONCE_S:
                self._strained.add(name)
            self._strained_s[name] = now_s

    def _forget(self, name: str) -> None:
        del self._kept[name], self._ill_s[name]
        self._strained.discard(name)


def succeeding(conditions: Conditions, i: int) -> float:
    """The part of what an endpoint in trouble is given that does not fail, beside what is normal."""
    return min((1.0 - (now - normal) for _, now, normal in _signs(conditions, i, Count)), default=1.0)


def as_soon(conditions: Conditions, i: int) -> float:
    """The part of what it is given, with which as many requests wait at it as is normal."""
    return min((normal / now for _, now, normal in _signs(conditions, i, Time)), default=1.0)


def _signs(
    conditions: Conditions, i: int, kind: type[Count] | type[Time]
) -> Iterator[tuple[Count | Time, float, float]]:
    return (found for found in conditions.beside_normal(i) if isinstance(found[0], kind))


def least_kept(need: float, others: float, share: float) -> float:
    """The part of its weight that an endpoint has to keep, 0..1.

    :param need: what its service has to be ready for, flows/s. ``others``: what those that are well, and its
        own shadows, can be counted on for; NaN: not known, and taken to suffice. ``share``: its own one of
        all new flows, if it keeps all of its weight."""
    missing = (need - _FILLED * others) / max(need * share, 1e-9)
    return 0.0 if math.isnan(missing) else min(max(missing, 0.0), 1.0)
