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
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace

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
_FULL_GOOD_S = 30.0
_SURE = 0.95
"""Of a strength that is told by readings of some seconds."""
_BY_LOAD = 0.7
"""Who was given less than this part of its strength is not as busy as can be by what it was given."""
_TELLS_MOST, _OTHER = 0.5, 1.1
"""Who uses so much, and serves so many times what its ceiling says, or less by that, has another one."""
_LASTING_S = 8.0
"""A burst is over by then."""
_FLOWS_TELL, _LONG_S = 100.0, 30.0
"""Told by so many flows, chance is a tenth; where these are few, so long is enough."""
_HELPED_S, _REFUTED_S = 24.0, 30.0
"""Who has had help for so long, and still is as busy as can be, is so by what it is given; or by something
else, if all that time its help could do clearly more: new flows move at once, old flows' load does not."""
_BUSY_S, _BUSY_MOST_S = 4.0, 30.0
"""Seconds of full use that tell a ceiling, and that are remembered."""


@dataclass(frozen=True, slots=True)
class _Counted:
    counters: Counters
    of_all: float
    """New flows, of all members together."""

    @property
    def at_s(self) -> float:
        return self.counters.at_s


@dataclass(frozen=True, slots=True)
class _Full:
    """A time in which a member is as busy as can be."""

    first_s: float
    at_s: float
    """When it was told first, and last."""
    before: float
    """Its strength until then; NaN: not known."""
    flows: float = 0.0
    """That it was given since it was told first, or since a ceiling was told by them."""
    over_s: float = 0.0
    readings: int = 0

    @property
    def lasts_s(self) -> float:
        """The first reading is a mean of some time, too."""
        return (self.at_s - self.first_s) * self.readings / max(self.readings - 1, 1)


@dataclass(frozen=True, slots=True)
class _Used:
    """What a member was given while it used much, but not all."""

    flows: float = 0.0
    busy_s: float = 0.0
    """Times the share that it used."""
    at_s: float = -math.inf


class Balance:
    """Of all members that there are readings of."""

    def __init__(self) -> None:
        self._counted: deque[_Counted] = deque()
        self._began_s: float | None = None
        self._read_s: dict[str, float] = {}
        self._strengths: dict[str, Strength] = {}
        self.failing: set[str] = set()
        """Members that completed little of what they were given when that was told last."""
        self._full: dict[str, _Full] = {}
        self._used: dict[str, _Used] = {}
        self._able: dict[str, tuple[float, float]] = {}
        """Flows/s that who is not as busy as can be could serve by its last reading, and when that was."""
        self._confirmed: set[str] = set()
        """Whose ceilings are told by what they used when they had room, so that no helper refutes them."""
        self._burnt: set[str] = set()
        """Who was as busy as can be by something else than what it was given."""
        self._refuted_s: dict[str, float] = {}
        """Since when helpers do clearly more than the ceiling says."""

    def count(self, counters: Counters) -> None:
        """One reading of all counters, each tick."""
        if self._counted and counters.at_s <= self._counted[-1].at_s:
            return
        if self._began_s is None:
            self._began_s = counters.at_s
        self._counted.append(_Counted(counters, float(counters.flows.sum())))
        while self._counted[0].at_s < counters.at_s - _KEPT_S:
            self._counted.popleft()

    def take(
        self,
        usages: Iterable[Usage],
        ceilings: Mapping[str, float],
        helpers: Callable[[str], Iterable[str]],
        flows_each: Callable[[str], float | None],
    ) -> dict[str, float]:
        """Readings of usage, each a mean since the one before it. What those that have ceilings, or may get
        one, can serve, flows/s, once they were as busy as can be; NaN: they were not, or not by their load.

        :param ceilings: as they were returned the last time. ``helpers``: its shadows: where these can do
            clearly more, it is not the load that they share. ``flows_each``: a member's new flows to a
            request; None: these are not told; NaN: it is not known yet."""
        times = [one.at_s for one in self._counted]
        found = dict(ceilings)
        for one in usages:
            before_s, self._read_s[one.member] = self._read_s.get(one.member), one.at_s
            used = busiest(one)
            self._watch(one.member, used is not None and used >= _USED_UP, one.at_s)
            if before_s is None or used is None or len(times) < 2:
                continue
            then, now = self._between(before_s, one.at_s, times)
            row = now.counters.rows.get(one.member)
            if row is None or then.counters.rows.get(one.member) != row:
                continue
            over_s, flows = now.at_s - then.at_s, _grown(then.counters.flows, now.counters.flows, row)
            each = flows_each(one.member)
            answered = _grown(then.counters.answered, now.counters.answered, row)
            done = flows if each is None else answered * each
            if flows > 0.0:
                completing = _completing(then, now, row, flows)
                # Whose requests are told is as strong as it answers, not as it accepts connections.
                work = flows * completing if each is None or math.isnan(each) else done
                self._learn(one, work, completing, over_s, used)
            if not done >= 0.0 or used < _USED_LEAST or one.member in self.failing:
                continue
            self._gather(one.member, flows, done, over_s, used, one.at_s)
            if one.member in found:
                found[one.member] = self._ceiling(one.member, found[one.member], used, helpers, one.at_s)
        return found

    def _watch(self, member: str, is_full: bool, at_s: float) -> None:
        if not is_full:
            self._full.pop(member, None)
            self._refuted_s.pop(member, None)
            return
        last = self._full.get(member)
        if last is None:
            told = self._told(member, at_s)
            before = self.strength(member, at_s) if math.isnan(told) else told
            last = _Full(at_s, at_s, before)
        self._full[member] = replace(last, at_s=at_s, readings=last.readings + 1)

    def _gather(
        self, member: str, flows: float, done: float, over_s: float, used: float, at_s: float
    ) -> None:
        """:param done: in flows: old ones' requests are work as well."""
        full = self._full.get(member)
        if full is None:
            self._able[member] = done / over_s / used, at_s
        elif at_s > full.first_s:
            self._full[member] = replace(full, flows=full.flows + done, over_s=full.over_s + over_s)
        if full is None and used >= _TELLS_MOST:
            busy_s, last = used * over_s, self._used.get(member, _Used())
            left = math.exp(-busy_s / _BUSY_MOST_S) if at_s - last.at_s <= GOOD_S else 0.0
            self._used[member] = _Used(left * last.flows + done, left * last.busy_s + busy_s, at_s)

    def _told(self, member: str, now_s: float) -> float:
        """Flows/s that it can serve, by what it used when it used much; NaN: not known."""
        used = self._used.get(member, _Used())
        if now_s - used.at_s > GOOD_S or used.busy_s < _BUSY_S:
            return math.nan
        tells = used.flows >= _FLOWS_TELL or used.busy_s >= _LONG_S / 2
        return used.flows / used.busy_s if tells else math.nan

    def _between(self, since_s: float, until_s: float, times: list[float]) -> tuple[_Counted, _Counted]:
        """What was counted at two moments, as near as counters were read."""
        first = min(_nearest(times, since_s), len(times) - 2)
        last = max(_nearest(times, until_s), first + 1)
        return self._counted[first], self._counted[last]

    def _learn(self, one: Usage, work: float, completing: float, over_s: float, used: float) -> None:
        """:param work: in new flows. ``completing``: the part of those that it was given that does."""
        known = self._strengths.setdefault(one.member, Strength())
        self.failing.discard(one.member)
        if completing < _COMPLETING:
            self.failing.add(one.member)
            known.keep(one.at_s)
        if used >= _USED_UP and work > 0.0:
            known.bound(work, over_s, one.at_s)
        elif completing >= _COMPLETING and used >= _USED_LEAST and work > 0.0:
            known.take(work, used * over_s, over_s, one.at_s)

    def _ceiling(
        self, member: str, known: float, used: float, helpers: Callable[[str], Iterable[str]], at_s: float
    ) -> float:
        full = self._full.get(member)
        if full is not None:
            return self._bound(member, known, full, helpers)
        told = _SURE * self._told(member, at_s)
        was_full = known == known or member in self._burnt
        if used < _TELLS_MOST or math.isnan(told) or not was_full:
            return known
        self._burnt.discard(member)
        self._confirmed.add(member)
        return known if known / _OTHER <= told <= known * _OTHER else told

    def _bound(
        self, member: str, known: float, full: _Full, helpers: Callable[[str], Iterable[str]]
    ) -> float:
        """It can't be more than it is given while it is as busy as can be, nobody knows how much less: that
        shows when it has help."""
        if member in self._burnt:
            return known
        if self._is_refuted(member, known, full.at_s, helpers):
            self._burnt.add(member)
            return math.nan
        told = full.flows >= _FLOWS_TELL or full.over_s >= _LONG_S
        if not told or full.lasts_s < _LASTING_S:
            return known  # it may be chance, or a burst
        helped = any(self.strength(name, full.at_s) > 0.0 for name in helpers(member))
        if helped and full.over_s < _HELPED_S:
            return known  # it has less new flows at once, but the old ones for some time
        self._full[member] = replace(full, flows=0.0, over_s=0.0)
        given = full.flows / full.over_s
        if given < _BY_LOAD * full.before:
            return known  # something else is at work there
        return float(np.fmin(_SURE * float(np.fmin(full.before, given)), known))

    def _is_refuted(
        self, member: str, known: float, at_s: float, helpers: Callable[[str], Iterable[str]]
    ) -> bool:
        """Helpers do clearly more, and not by chance."""
        able = (self._able.get(name, (0.0, -math.inf)) for name in helpers(member) if name not in self._full)
        more = any(_BY_LOAD * one > known and at_s - seen_s <= _FULL_GOOD_S for one, seen_s in able)
        if member in self._confirmed or not more:
            self._refuted_s.pop(member, None)
            return False
        return at_s - self._refuted_s.setdefault(member, at_s) >= _REFUTED_S

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
            for member, full in self._full.items()
            if full.at_s > full.first_s and now_s - full.at_s <= _FULL_GOOD_S
        )

    def keep(self, members: Collection[str]) -> None:
        """Forgets all others."""
        self.failing.intersection_update(members)
        for known in (
            self._read_s,
            self._strengths,
            self._full,
            self._used,
            self._able,
            self._refuted_s,
        ):
            for name in [name for name in known if name not in members]:
                del known[name]
        self._confirmed.intersection_update(members)
        self._burnt.intersection_update(members)


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
