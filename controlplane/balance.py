# SPDX-License-Identifier: Apache-2.0
"""What members can serve beside each other, told by what they use while they serve it.

The utilisation law (Denning and Buzen, "The operational analysis of queueing network models", ACM Computing
Surveys 10, 1978): utilisation is throughput times demand per job. So what a member was given, by the share
that it used meanwhile, is what it could serve: its strength, in new flows/s. Weights that follow strengths
make all equally busy in one step, whatever their weights were before; nothing is fed back.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from controlplane.model import Usage
from controlplane.ports import Counters
from controlplane.signs import timed_share
from controlplane.strength import GOOD_S, Strength

Numbers = npt.NDArray[np.uint64]

_KEPT_S = 90.0
"""Of counters: readings of usage are means over times no longer than that."""
_USED_LEAST = 0.05
"""Who uses less tells too little: what it uses anyway counts for too much."""
_USED_UP = 0.98
"""Who is as busy as that is as busy as can be."""
_COMPLETING = 0.8
"""Who completes less of what it is given is idle because it fails: that is no strength."""
_FLOWS_LEAST = 20.0
"""That tell at once how much an endpoint that is as busy as can be was given."""
_FULL_GOOD_S = 30.0
_SURE = 0.95
"""Of a strength that is told by readings of some seconds."""
_BY_LOAD = 0.7
"""Who was given less than this part of its strength is not as busy as can be by what it was given."""
_TELLS_MOST, _OTHER = 0.5, 1.1
"""Who uses so much, and serves so many times what its ceiling says, or less by that, has another one."""


@dataclass(frozen=True, slots=True)
class _Counted:
    counters: Counters
    of_all: float
    """New flows, of all members together."""

    @property
    def at_s(self) -> float:
        return self.counters.at_s


class Balance:
    """Of all members that there are readings of."""

    def __init__(self) -> None:
        self._counted: deque[_Counted] = deque()
        self._began_s: float | None = None
        self._read_s: dict[str, float] = {}
        self._strengths: dict[str, Strength] = {}
        self.failing: set[str] = set()
        """Members that completed little of what they were given when that was told last."""
        self._full: dict[str, tuple[float, float, float]] = {}
        """Who is as busy as can be, since when, when that was told last, and its strength before; NaN: not
        known."""
        self._ceilings: dict[str, float] = {}
        """Flows/s that who was as busy as can be can serve: known until something else is told."""

    def count(self, counters: Counters) -> None:
        """One reading of all counters, each tick."""
        if self._counted and counters.at_s <= self._counted[-1].at_s:
            return
        if self._began_s is None:
            self._began_s = counters.at_s
        self._counted.append(_Counted(counters, float(counters.flows.sum())))
        while self._counted[0].at_s < counters.at_s - _KEPT_S:
            self._counted.popleft()

    def take(self, usages: Iterable[Usage]) -> None:
        """Readings of usage, each a mean since the one before it."""
        times = [one.at_s for one in self._counted]
        for one in usages:
            before_s, self._read_s[one.member] = self._read_s.get(one.member), one.at_s
            used = busiest(one)
            if used is None or used < _USED_UP:
                self._full.pop(one.member, None)
            else:
                before = self.strength(one.member, one.at_s)
                since_s, _, before = self._full.get(one.member, (one.at_s, 0.0, before))
                self._full[one.member] = since_s, one.at_s, before
            if before_s is None or used is None or len(times) < 2:
                continue
            then, now = self._between(before_s, one.at_s, times)
            row = now.counters.rows.get(one.member)
            if row is None or then.counters.rows.get(one.member) != row:
                continue
            over_s, flows = now.at_s - then.at_s, _grown(then.counters.flows, now.counters.flows, row)
            if flows > 0.0:
                self._learn(one, flows, _completing(then, now, row, flows), over_s, used)
            if flows >= _FLOWS_LEAST and used >= _USED_LEAST:
                self._bound(one.member, flows / over_s, used)

    def _between(self, since_s: float, until_s: float, times: list[float]) -> tuple[_Counted, _Counted]:
        """What was counted at two moments, as near as counters were read."""
        first = min(_nearest(times, since_s), len(times) - 2)
        last = max(_nearest(times, until_s), first + 1)
        return self._counted[first], self._counted[last]

    def _learn(self, one: Usage, flows: float, completing: float, over_s: float, used: float) -> None:
        """:param completing: the part of these new flows that does."""
        known = self._strengths.setdefault(one.member, Strength())
        self.failing.discard(one.member)
        if completing < _COMPLETING:
            self.failing.add(one.member)
            known.keep(one.at_s)
        work = flows * completing
        if used >= _USED_UP and work > 0.0:
            known.bound(work, over_s, one.at_s)
        elif completing >= _COMPLETING and used >= _USED_LEAST:
            known.take(work, used * over_s, over_s, one.at_s)

    def _bound(self, member: str, given: float, used: float) -> None:
        """:param given: flows/s while it used this."""
        known = self._ceilings.get(member, math.inf)
        if used >= _USED_UP:
            since_s, at_s, before = self._full[member]
            if at_s == since_s or given < _BY_LOAD * before:
                return  # it may be chance, or something else is at work there
            # It can't be more than it is given now, nobody knows how much less: that shows when it has help.
            self._ceilings[member] = min(_SURE * float(np.fmin(before, given)), known)
        elif member in self._ceilings and used >= _TELLS_MOST:
            told = _SURE * self.strength(member, self._read_s[member])
            if told < known / _OTHER or told > known * _OTHER:
                self._ceilings[member] = told

    def ceiling(self, member: str, helpers: Callable[[str], Iterable[str]], now_s: float) -> float:
        """Flows/s that it can serve, once it was as busy as can be; NaN: it was not, or not by what it was
        given.

        :param helpers: its shadows: where these can do clearly more, it is not the load that they share."""
        known = self._ceilings.get(member)
        if known is None:
            return math.nan
        more = (self.strength(name, now_s) for name in helpers(member) if name not in self._full)
        return math.nan if any(_BY_LOAD * one > known for one in more) else known

    def strength(self, member: str, now_s: float) -> float:
        """Flows/s; NaN: not known."""
        known = self._strengths.get(member)
        return math.nan if known is None else known.rate(now_s)

    def error(self, member: str, now_s: float) -> float:
        """Standard error of its strength, as a part of it; infinite: that is not known."""
        known = self._strengths.get(member)
        return math.inf if known is None else known.error(now_s)

    def is_new(self, now_s: float) -> bool:
        """It has not been told for long enough to know of all."""
        return self._began_s is not None and now_s - self._began_s <= GOOD_S

    def used_up(self) -> frozenset[str]:
        """Members that were as busy as can be in their last two readings or more."""
        if not self._counted:
            return frozenset()
        now_s = self._counted[-1].at_s
        return frozenset(
            member
            for member, (since_s, at_s, _) in self._full.items()
            if at_s > since_s and now_s - at_s <= _FULL_GOOD_S
        )

    def keep(self, members: Collection[str]) -> None:
        """Forgets all others."""
        self.failing.intersection_update(members)
        for known in (self._read_s, self._strengths, self._full, self._ceilings):
            for name in [name for name in known if name not in members]:
                del known[name]


def busiest(usage: Usage) -> float | None:
    """The share of CPU or network that is used, whichever is more; None: neither is told."""
    told = [one for one in (usage.cpu, usage.network) if one is not None]
    return max(told, default=None)


def _nearest(times: list[float], at_s: float) -> int:
    after = bisect_left(times, at_s)
    if after == 0:
        return 0
    if after == len(times):
        return after - 1
    return after if times[after] - at_s < at_s - times[after - 1] else after - 1


def _grown(then: Numbers, now: Numbers, row: int) -> float:
    return float(now.item(row) - then.item(row))


def _completing(then: _Counted, now: _Counted, row: int, flows: float) -> float:
    """The part of a member's new flows that was completed: by the handshakes of its own that were timed, and
    of a live endpoint by what its group completed."""
    before, after = then.counters, now.counters
    part, offered = 1.0, _grown(before.offered, after.offered, row)
    if offered > 0.0:
        part = min(_grown(before.completed, after.completed, row) / offered, 1.0)
    if not after.rtt_count.item(row):
        return part
    remembered = flows - _grown(before.unremembered, after.unremembered, row)
    if remembered > 0.0:
        share = timed_share((now.of_all - then.of_all) / (now.at_s - then.at_s))
        part = min(part, _grown(before.rtt_count, after.rtt_count, row) / share / remembered)
    return part
