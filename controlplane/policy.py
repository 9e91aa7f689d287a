# SPDX-License-Identifier: Apache-2.0
"""How many members a group, or a pool, should have: add, hold, drain, remove, with the reason in a sentence.

Pure: (settings, group, memory, now) -> (verdicts, memory). How many pay in the long run is told by
``sizing.py``, step by step; between its steps the demand that is seen coming, and the demand that is there
(a burst that nobody foresaw), add more. What is on order counts as capacity, unless it is late or failed;
prediction only ever adds; what is unwanted goes only after an idle period, a minimum life, on fresh
readings, one drain at a time (``drains.py``), which ends when the load is back.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from enum import Enum

from controlplane import drains, shadows, turnover
from controlplane.baseline import REMARKABLE
from controlplane.model import Shadow, ShadowSettings, ShadowState

_LATE = 1.5
"""An order older than the p95 of those that were ready, times this, is not counted on."""
_NEAR = 0.85
"""A rate that deviates from normal adds the first shadow already at this part of the threshold."""
_LONGEST_PAUSE_S = 300.0
_CONFIRM_S = 3.0
"""While one is on order, the next waits until the need for it has lasted so long: the first readings of
an onset tell its size badly."""
_AT_ONCE = 3
"""One of so many members may drain at once: a spike may have brought hundreds."""
_NEXT_TO_NONE = 0.01
"""Of its capacity: who is given so few new flows has nothing to hand over."""
_NORMAL_S = 600.0
"""Slow answers or errors are answered again after so long without them, and until then the answer stays."""
_DOUBLES_S = 60.0
"""In a time with failures the members at most double, and again after so long."""

_UNBOUNDED = 1 << 30
_ORDERED = {ShadowState.REQUESTED, ShadowState.PROVISIONING, ShadowState.WARMING}


class Act(Enum):
    HOLD = "hold"
    ADD = "add"
    RETRY = "retry"
    KEEP = "keep"
    """End a drain: the load is back."""
    DRAIN = "drain"
    EASE = "ease"
    """Of a drain: it gets fewer new flows."""
    EVICT = "evict"
    """Of a drain past its deadline: others get more of its old flows."""
    REMOVE = "remove"


@dataclass(frozen=True, slots=True)
class Verdict:
    act: Act
    reason: str
    shadow: str | None = None
    """Which one; None for ADD and HOLD."""
    wanted: int = 1
    """Members that the group should have, the live one included."""
    count: int = 1
    """Of an ADD: so many at once."""
    share: float = 1.0
    """Of a DRAIN or EASE: the part of its full share of new flows that it gets from now on."""
    evicted: float = 0.0
    """Of an EVICT: the part of its old flows that others have from now on."""


@dataclass(frozen=True, slots=True)
class Memory:
    """What the policy remembers of a group between ticks."""

    short_since: tuple[float | None, ...] = ()
    """Index n - 1: since when (Unix seconds) n members have been too few; None: they are enough."""
    fits_since: tuple[float | None, ...] = ()
    """Index n - 1: since when n members would be enough; None: they would not."""
    troubled_since: float | None = None
    """Since when answers are slow or failing; None: they are not."""
    normal_since: float | None = None
    """Since when they are not."""
    answered: bool = False
    """There was a shadow while they were; not again until they have been normal for a while."""
    failing_since: float | None = None
    calm_members: int = 1
    """Before the time with failures."""

    def watch(self, group: Group, members: int, now_unix_s: float) -> Memory:
        """What is remembered of slow answers, errors and times with failures."""
        troubled_since = normal_since = failing_since = None
        if group.trouble:
            troubled_since = now_unix_s if self.troubled_since is None else self.troubled_since
        else:
            normal_since = now_unix_s if self.normal_since is None else self.normal_since
        if group.failing:
            failing_since = now_unix_s if self.failing_since is None else self.failing_since
        is_normal = normal_since is not None and now_unix_s - normal_since >= _NORMAL_S
        return replace(
            self,
            troubled_since=troubled_since,
            normal_since=normal_since,
            answered=(self.answered and not is_normal) or group.is_helped,
            failing_since=failing_since,
            calm_members=members if self.failing_since is None else self.calm_members,
        )

    def most(self, now_unix_s: float) -> int:
        """Members that demand may have brought by now: in a time with failures it may be the same clients,
        who try again."""
        if self.failing_since is None:
            return _UNBOUNDED
        doublings = 1 + int((now_unix_s - self.failing_since) / _DOUBLES_S)
        return max(self.calm_members, 1) << min(doublings, 10)

    def sure_need(self, now_unix_s: float) -> int:
        """Members that demand has called for long enough not to be an onset's first guess."""
        lasted = (_lasted_s(self.short_since, n, now_unix_s) for n in range(1, len(self.short_since) + 1))
        return 1 + sum(lasted_s is not None and lasted_s >= _CONFIRM_S for lasted_s in lasted)

    def learn(self, need: float, usable: float, most: int, fresh: bool, now_unix_s: float) -> Memory:
        """:param most: members that are told apart. Without fresh readings nothing fits."""
        short = [need > usable * n for n in range(1, most + 1)]
        fits = [fresh and not too_few for too_few in short]
        short_since = _since(self.short_since, short, now_unix_s)
        fits_since = _since(self.fits_since, fits, now_unix_s)
        if (short_since, fits_since) == (self.short_since, self.fits_since):
            return self
        return replace(self, short_since=short_since, fits_since=fits_since)


def _since(
    before: tuple[float | None, ...], holds: list[bool], now_unix_s: float
) -> tuple[float | None, ...]:
    padded = before + (None,) * (len(holds) - len(before))
    return tuple(
        (was if was is not None else now_unix_s) if yes else None
        for was, yes in zip(padded, holds, strict=False)
    )


def _lasted_s(since: tuple[float | None, ...], members: int, now_unix_s: float) -> float | None:
    began = since[members - 1] if 1 <= members <= len(since) else None
    return None if began is None else now_unix_s - began


@dataclass(frozen=True, slots=True)
class Group:
    """A live endpoint, its shadows, and what is known of them now; or all those of a pool."""

    name: str
    capacity: float | None
    """Of a member."""
    level: float
    """Demand now; NaN: not known."""
    high: float
    """High quantile of demand at the horizon."""
    horizon_s: float
    quantile: float
    fresh: bool
    """Readings are recent and complete: only then anything is removed."""
    live_up: bool
    """A live endpoint is."""
    shadows: tuple[Shadow, ...]
    up: frozenset[str]
    """Names of the shadows that are healthy."""
    flows: dict[str, int]
    """Active flows of draining shadows; absent: not known."""
    given: dict[str, float] = field(default_factory=dict)
    """New flows/s that draining shadows are given; absent: not known."""
    rate_deviation: float = 0.0
    """Scores, 0..1; 0.5 and above is no chance."""
    latency_deviation: float = 0.0
    error_deviation: float = 0.0
    trouble: str = ""
    """Slow answers or errors, in words and numbers; empty: there are none."""
    others_too: bool = False
    """At least half of the service's other groups have them as well."""
    shadows_too: bool = False
    """A shadow is as slow, or fails as much."""
    is_helped: bool = False
    """One that is slow or failing has a shadow."""
    failing: bool = False
    """This is a time with failures, in which clients may only be trying again."""
    neighbour_up: bool = False
    """Another live endpoint of the service is healthy and takes over when this one is down."""
    sized: int = 1
    """Members that pay in the long run, those included that were wanted not long ago."""
    sized_reason: str = ""
    usual_s: float | None = None
    """p95 lead time of the orders that were ready in the end; None: the horizon."""
    life_s: float | None = None
    """Mean life of a flow, by which the horizon is longer than the lead time; None: not known."""
    standing: int = 0
    """Of them, those that stand by for more than the forecast's ninth decile."""
    p50: float = math.nan
    """Quantiles of demand a lead time from now by all of the past; NaN: not known."""
    p90: float = math.nan
    endpoints: int = 1
    """Live ones."""
    others_up: int = 0
    """Of a pool: more live endpoints that are up."""
    bound: frozenset[str] = frozenset()
    """Of a pool: shadows that serve for a live endpoint that is down."""
    saturated: bool = False
    """Clearly slower than it was, and what it does no longer follows what it is asked for."""
    proven: float = 0.0
    """Demand that the live one has served without slowing down much."""

    @property
    def lives_up(self) -> int:
        return int(self.live_up) + self.others_up

    def most_shadows(self, settings: ShadowSettings) -> int:
        return settings.max_per_endpoint * self.endpoints

    def inputs(self, settings: ShadowSettings, now_unix_s: float) -> dict[str, float]:
        """What a decision is made of, in numbers; those that are known."""
        there = counted(self, now_unix_s)
        numbers = {
            "level": self.level,
            "high": self.high,
            "horizon_s": self.horizon_s,
            "flow_life_s": math.nan if self.life_s is None else self.life_s,
            "quantile": self.quantile,
            "p50": self.p50,
            "p90": self.p90,
            "capacity": math.nan if self.capacity is None else self.capacity,
            "headroom": settings.headroom,
            "members": float(self.lives_up + len(there)),
            "on_order": float(sum(shadow.state in _ORDERED for shadow in there)),
            "sized": float(self.sized),
            "standing": float(self.standing),
            "fresh": float(self.fresh),
            "rate_deviation": self.rate_deviation,
            "latency_deviation": self.latency_deviation,
            "error_deviation": self.error_deviation,
            "failing": float(self.failing),
            "saturated": float(self.saturated),
            "proven": self.proven,
        }
        return {name: round(value, 4) for name, value in numbers.items() if math.isfinite(value)}


def at_rest(name: str, capacity: float | None, need: float, members: int = 1) -> Verdict:
    """Of a live endpoint that is up, or a pool of them, without shadows, whose load wants none."""
    if capacity is None:
        return Verdict(Act.HOLD, f"{name}: capacity is not known, and it is not saturated")
    if not math.isfinite(need):
        return Verdict(Act.HOLD, f"{name}: no reading of demand yet", None, members)
    return Verdict(Act.HOLD, f"{name}: demand {need:.0f}/s fits {_them(members)}", None, members)


def _them(members: int) -> str:
    return "1 member" if members == 1 else f"{members} members"


def pause_s(settings: ShadowSettings, attempts: int) -> float:
    """Before the next try after so many failed ones."""
    if attempts > settings.retries:
        return _LONGEST_PAUSE_S
    return float(min(settings.retry_after_s * 2.0 ** max(attempts - 1, 0), _LONGEST_PAUSE_S))


def _is_due(settings: ShadowSettings, failed: Shadow, now_unix_s: float) -> bool:
    """The pause after its failure is over."""
    return now_unix_s - failed.changed_unix_s >= pause_s(settings, failed.attempts)


def is_late(group: Group, shadow: Shadow, now_unix_s: float) -> bool:
    usual_s = group.horizon_s if group.usual_s is None else group.usual_s
    return shadow.state in _ORDERED and now_unix_s - shadow.requested_unix_s > _LATE * usual_s


def counted(group: Group, now_unix_s: float) -> list[Shadow]:
    """Shadows that carry load now or will by the horizon: ready and healthy, or on order and not late."""
    return [
        shadow
        for shadow in group.shadows
        if (shadow.state is ShadowState.READY and shadow.name in group.up)
        or (shadow.state in _ORDERED and not is_late(group, shadow, now_unix_s))
    ]


def obeyed(shadow: Shadow, verdict: Verdict, now_unix_s: float) -> Shadow:
    """The shadow as it is after a verdict about it."""
    if verdict.act is Act.RETRY:
        return shadows.retried(shadow, now_unix_s, verdict.reason)
    if verdict.act in (Act.DRAIN, Act.EASE, Act.EVICT):
        after = shadows.drained(shadow, verdict.share, verdict.evicted, now_unix_s, verdict.reason)
    else:
        state = ShadowState.READY if verdict.act is Act.KEEP else ShadowState.REMOVING
        after = shadows.entered(shadow, state, now_unix_s, verdict.reason)
    return replace(after, attempts=0)


def decide(
    settings: ShadowSettings, group: Group, memory: Memory, now_unix_s: float
) -> tuple[tuple[Verdict, ...], Memory]:
    """What is to be done about one group, at least one verdict; several don't depend on each other. Ask again
    at the next tick for more."""
    last = _last_ones(group)
    if last:
        return last, memory
    again = tuple(
        Verdict(Act.RETRY, f"shadow {shadow.name} again: by command", shadow.name)
        for shadow in group.shadows
        if shadow.by_hand and shadow.state is ShadowState.FAILED and _is_due(settings, shadow, now_unix_s)
    )
    if again:
        return again, memory
    members = group.lives_up + len(counted(group, now_unix_s))
    if group.capacity is None and math.isfinite(group.high):
        return _without_capacity(settings, group, memory, members, now_unix_s)
    if group.capacity is None or not math.isfinite(group.high):
        going = _go_on(settings, group, members, math.nan, now_unix_s)
        return going or (at_rest(group.name, group.capacity, group.high, group.endpoints),), memory
    usable = group.capacity * (1.0 - settings.headroom)
    need = max(group.high, group.level) if math.isfinite(group.level) else group.high
    memory = memory.learn(need, usable, group.endpoints + len(group.shadows) + 1, group.fresh, now_unix_s)
    memory = memory.watch(group, members, now_unix_s)
    more = _more(settings, group, memory, need, usable, members, now_unix_s)
    going = _go_on(settings, group, members, usable * members - need, now_unix_s, halted=bool(more))
    if not more:
        stays = memory.answered and not _has_common_cause(group)
        fewer = _shrink(settings, group, memory, need, usable, now_unix_s)
        going += tuple(one for one in fewer if not stays or one.act is not Act.DRAIN)
    return more + going or (_hold(group, need, members),), memory


def _more(
    settings: ShadowSettings,
    group: Group,
    memory: Memory,
    need: float,
    usable: float,
    members: int,
    now_unix_s: float,
) -> tuple[Verdict, ...]:
    """What is to be done for more members; nothing: there are enough."""
    cause = _cause(settings, group, members, usable, need)
    most = memory.most(now_unix_s)
    sized = min(group.sized, most)
    if members and members < min(sized, group.most_shadows(settings) + group.endpoints):
        few = "1 member is" if members == 1 else f"{members} members are"
        why = cause or f"{group.sized} wanted and {few} there: {group.sized_reason}"
        kept = _kept(group, why, sized, sized - members)
        return _grow(settings, group, why, sized, now_unix_s, sized - members, kept)
    if cause is not None:
        if members >= most:
            reason = f"{group.name}: {cause}, but no more than {most} members while there are failures"
            return (Verdict(Act.HOLD, reason, None, most),)
        needed = min(math.ceil(need / usable), most)
        return _answer(settings, group, memory, cause, members, needed, now_unix_s)
    if _needs_help(group, memory, now_unix_s):
        return _grow(settings, group, f"{group.trouble}, without rising demand", members + 1, now_unix_s)
    return ()


def _without_capacity(
    settings: ShadowSettings, group: Group, memory: Memory, members: int, now_unix_s: float
) -> tuple[tuple[Verdict, ...], Memory]:
    """Reactive: one shadow for who is saturated, until it is known how many are needed. It goes when demand
    is what the live endpoint has served alone."""
    usable = group.proven * (1.0 - settings.headroom)
    need = max(group.high, group.level) if math.isfinite(group.level) else group.high
    memory = memory.learn(need, usable, group.endpoints + len(group.shadows) + 1, group.fresh, now_unix_s)
    more: tuple[Verdict, ...] = ()
    if group.saturated and group.fresh and group.live_up and not counted(group, now_unix_s):
        cause = f"its capacity is not known, and at {need:.0f}/s it is saturated"
        more = _grow(settings, group, cause, 2, now_unix_s, kept=_kept(group, cause, 2, 1))
    going = _go_on(settings, group, members, usable * members - need, now_unix_s, halted=bool(more))
    if not more:
        going += _shrink(settings, group, memory, need, usable, now_unix_s)
    held = at_rest(group.name, None, need, group.endpoints)
    if group.shadows and group.live_up:
        said = f"{group.name}: capacity is not known yet, {_them(members)} until it is"
        held = Verdict(Act.HOLD, said, None, members)
    return more + going or (held,), memory


def _cause(settings: ShadowSettings, group: Group, members: int, usable: float, need: float) -> str | None:
    """Why one more member is needed, in numbers; None: it is not."""
    numbers = f"p{group.quantile * 100:.0f} demand {need:.0f}/s in {group.horizon_s:.0f} s > "
    limit = usable * members
    of = f"{1 - settings.headroom:.2g} x {members} x {group.capacity:.0f}/s"
    if members == 1:
        of = f"{1 - settings.headroom:.2g} x {group.capacity:.0f}/s"
    if members == 0:
        return None if group.neighbour_up else "down and no shadow takes over"
    if need > limit:
        return numbers + of
    if group.rate_deviation >= REMARKABLE and members == group.lives_up and need > _NEAR * limit:
        return f"request rate deviates from normal and {numbers}{_NEAR} x {of}"
    return None


def _answer(
    settings: ShadowSettings,
    group: Group,
    memory: Memory,
    cause: str,
    members: int,
    needed: int,
    now_unix_s: float,
) -> tuple[Verdict, ...]:
    """To demand that is seen coming. Who drains comes back at once; others are ordered by what is sure."""
    sure = min(max(memory.sure_need(now_unix_s), members + 1), memory.most(now_unix_s))
    kept = _kept(group, cause, max(sure, needed), max(sure, needed) - members)
    if members and any(shadow.state in _ORDERED for shadow in counted(group, now_unix_s)):
        lasted_s = _lasted_s(memory.short_since, members, now_unix_s)
        if lasted_s is None or lasted_s < _CONFIRM_S:
            hold = Verdict(Act.HOLD, f"{group.name}: {cause}, not for long yet", None, members)
            return kept or (hold,)
    return _grow(settings, group, cause, sure, now_unix_s, kept=kept)


def _can_come_back(group: Group, shadow: Shadow) -> bool:
    return shadow.state is ShadowState.DRAINING and shadow.name in group.up and not shadow.by_hand


def _kept(group: Group, cause: str, needed: int, missing: int) -> tuple[Verdict, ...]:
    """As many of those that drain, the last ones first."""
    able = [shadow for shadow in group.shadows if _can_come_back(group, shadow)]
    able.sort(key=lambda shadow: (-drains.share(shadow), shadow.evicted, -shadow.changed_unix_s))
    return tuple(
        Verdict(Act.KEEP, f"shadow {shadow.name} kept: {cause}", shadow.name, needed)
        for shadow in able[:missing]
    )


def _grow(
    settings: ShadowSettings,
    group: Group,
    cause: str,
    needed: int,
    now_unix_s: float,
    missing: int = 1,
    kept: tuple[Verdict, ...] = (),
) -> tuple[Verdict, ...]:
    """More members, if that can help. Late and failed orders don't count, but what exists is bounded:
    one more than needed, so that each trouble is answered by one replacement and then by patience.

    :param kept: of those that drain: so many fewer are missing."""
    missing -= len(kept)
    if missing <= 0:
        return kept
    silent = [s.name for s in group.shadows if _is_silent(group, s, now_unix_s)]
    if not group.live_up and silent:
        reason = f"{group.name}: {cause}, and {', '.join(silent)} does not answer either: a common cause"
        return kept or (Verdict(Act.HOLD, reason, None, needed),)
    failed = [shadow for shadow in group.shadows if shadow.state is ShadowState.FAILED]
    due = [shadow for shadow in failed if _is_due(settings, shadow, now_unix_s)]
    if due:
        again = (Verdict(Act.RETRY, f"shadow {s.name} again: {cause}", s.name, needed) for s in due[:missing])
        return *kept, *again
    most = min(needed - group.lives_up + 1, group.most_shadows(settings))
    if len(group.shadows) >= most:
        reason = f"{group.name}: {cause}, but it has {len(group.shadows)} shadows already"
        if failed:
            left = min(pause_s(settings, s.attempts) - (now_unix_s - s.changed_unix_s) for s in failed)
            reason += f", {failed[0].name} failed ({failed[0].reason}), next try in {left:.0f} s"
        return kept or (Verdict(Act.HOLD, reason, None, needed),)
    count = min(missing, most - len(group.shadows))
    reason = f"shadow {group.name} +{count}: {cause}{_earlier(group)}"
    return *kept, Verdict(Act.ADD, reason, None, needed, count)


def _earlier(group: Group) -> str:
    """Why so early."""
    earlier_s = turnover.earlier_s(group.life_s)
    if not earlier_s:
        return ""
    return f"; flows live {group.life_s:.0f} s: little can be moved, so {earlier_s:.0f} s earlier"


def _is_silent(group: Group, shadow: Shadow, now_unix_s: float) -> bool:
    """There, but not healthy when it should be."""
    if shadow.name in group.up or shadow.address is None:
        return False
    return shadow.state is ShadowState.READY or (
        shadow.state is ShadowState.WARMING and is_late(group, shadow, now_unix_s)
    )


def _has_common_cause(group: Group) -> bool:
    """Slow answers or errors that one more member would have too: of a database, or a bad release."""
    return bool(group.trouble) and (group.others_too or group.shadows_too)


def _needs_help(group: Group, memory: Memory, now_unix_s: float) -> bool:
    """It is slow or failing, though demand does not rise, and one shadow may help."""
    if not (group.trouble and group.fresh and group.live_up) or memory.answered or _has_common_cause(group):
        return False
    return memory.troubled_since is not None and now_unix_s - memory.troubled_since >= _CONFIRM_S


def _hold(group: Group, need: float, members: int) -> Verdict:
    if not group.live_up:
        who = "its neighbours take over" if members == 0 else "its shadows take over"
        return Verdict(Act.HOLD, f"{group.name}: down, {who}", None, members)
    if group.trouble:
        reason = f"{group.name}: {group.trouble}"
        if _has_common_cause(group):
            whose = "its neighbours" if group.others_too else "its shadows"
            reason += f", and so with {whose}: a common cause, no more shadows"
        return Verdict(Act.HOLD, reason, None, members)
    ours = [s for s in _serving(group) if not s.by_hand and s.name not in group.bound]
    if ours and group.sized >= group.lives_up + len(_serving(group)):
        return Verdict(Act.HOLD, f"{group.name}: {group.sized} wanted: {group.sized_reason}", None, members)
    return Verdict(Act.HOLD, f"{group.name}: demand {need:.0f}/s fits {_them(members)}", None, members)


def _serving(group: Group) -> list[Shadow]:
    return [s for s in group.shadows if s.state is ShadowState.READY and s.name in group.up]


def _shrink(
    settings: ShadowSettings, group: Group, memory: Memory, need: float, usable: float, now_unix_s: float
) -> tuple[Verdict, ...]:
    """Failed ones that nobody needs go, and of those that serve one begins to drain, or of many a third."""
    if not group.live_up:
        return ()
    failed = tuple(
        Verdict(Act.REMOVE, f"shadow {shadow.name} -1: failed and not needed", shadow.name)
        for shadow in group.shadows
        if shadow.state is ShadowState.FAILED and _is_due(settings, shadow, now_unix_s)
    )
    if not group.fresh or any(drains.moves_flows(settings, one, now_unix_s) for one in group.shadows):
        return failed
    # What is on order need not arrive.
    serving = group.lives_up + len(_serving(group))
    least_s = drains.begins_s(settings, settings.min_life_s)
    able = [
        shadow
        for shadow in _serving(group)
        if not shadow.by_hand
        and shadow.name not in group.bound
        and now_unix_s - (shadow.ready_unix_s or shadow.changed_unix_s) >= least_s
    ]
    able.sort(key=lambda shadow: (shadow.ready_unix_s or shadow.changed_unix_s, shadow.name), reverse=True)
    unwanted = min(serving - group.sized, len(able))
    most = max(1, serving // _AT_ONCE)
    idle_s = drains.begins_s(settings, settings.idle_s)
    for count in range(min(unwanted, most), 0, -1):
        left = serving - count
        lasted_s = _lasted_s(memory.fits_since, left, now_unix_s)
        if lasted_s is None or lasted_s < idle_s:
            continue
        why = f"p{group.quantile * 100:.0f} demand {need:.0f}/s <= {usable * left:.0f}/s for {lasted_s:.0f} s"
        share = drains.first_share(settings)
        return failed + tuple(
            Verdict(Act.DRAIN, f"shadow {one.name} drains: {why}", one.name, left, share=share)
            for one in able[:count]
        )
    return failed


def _last_ones(group: Group) -> tuple[Verdict, ...]:
    """Who drains is kept while the live one that it serves for is down and nobody else does."""
    return tuple(
        Verdict(Act.KEEP, f"shadow {shadow.name} kept: {shadow.parent} is down", shadow.name)
        for shadow in group.shadows
        if _can_come_back(group, shadow) and _is_last(group, shadow)
    )


def _is_last(group: Group, shadow: Shadow) -> bool:
    return shadow.name in group.bound or not (group.live_up or _serving(group))


def _go_on(
    settings: ShadowSettings,
    group: Group,
    members: int,
    room: float,
    now_unix_s: float,
    *,
    halted: bool = False,
) -> tuple[Verdict, ...]:
    """With the drains that are under way; with those by command also when readings are stale.

    :param room: new flows/s that the others can serve beside what is seen coming; NaN: not known.
    :param halted: the load is back: only who can't serve on is drained further."""
    evicting = sum(drains.is_past_deadline(settings, shadow, now_unix_s) for shadow in group.shadows)
    each = max(room, 0.0) / max(evicting, 1)
    found = []
    for shadow in group.shadows:
        if shadow.state is not ShadowState.DRAINING or not (group.fresh or shadow.by_hand):
            continue
        if shadow.name in group.up and _is_last(group, shadow):
            continue  # by command, and nobody else is left: it serves on until somebody is
        if halted and _can_come_back(group, shadow):
            continue
        known = (group.flows.get(shadow.name), each) if group.fresh else (None, math.nan)
        idle = group.given.get(shadow.name, math.inf) <= _NEXT_TO_NONE * (group.capacity or 0.0)
        step = drains.next_step(settings, shadow, *known, now_unix_s, is_idle=idle)
        if step is not None:
            act = Act.REMOVE if step.is_over else Act.EVICT if step.evicted else Act.EASE
            reason = f"shadow {shadow.name}{' -1:' if step.is_over else ':'} {step.reason}"
            found.append(Verdict(act, reason, shadow.name, max(members, 1), 1, step.share, step.evicted))
    return tuple(found)
