# SPDX-License-Identifier: Apache-2.0
"""How many members a group, or a pool, should have: add, hold, drain, remove, with the reason in a sentence.

Pure: (settings, group, memory, now) -> (verdict, memory). How many pay in the long run is told by
``sizing.py``, step by step; between its steps the demand that is seen coming, and the demand that is there
(a burst that nobody foresaw), add more. What is on order counts as capacity, unless it is late or failed;
prediction only ever adds; what is unwanted goes only after an idle period, a minimum life, and on fresh
readings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum

from controlplane.model import Shadow, ShadowSettings, ShadowState

_LATE = 1.5
"""An order older than the p95 of those that were ready, times this, is not counted on."""
_NEAR = 0.85
"""A rate that deviates from normal adds the first shadow already at this part of the threshold."""
_LONGEST_PAUSE_S = 300.0
_CONFIRM_S = 3.0
"""While one is on order, the next waits until the need for it has lasted so long: the first readings of
an onset tell its size badly."""
_SETTLE_S = 5.0
"""Between two drains, so that the first one's effect is seen."""
_MANY = 5
"""So many that no longer pay don't wait for each other: a spike may have brought hundreds."""

_ORDERED = {ShadowState.REQUESTED, ShadowState.PROVISIONING, ShadowState.WARMING}


class Act(Enum):
    HOLD = "hold"
    ADD = "add"
    RETRY = "retry"
    KEEP = "keep"
    """End a drain: the load is back."""
    DRAIN = "drain"
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


@dataclass(frozen=True, slots=True)
class Memory:
    """What the policy remembers of a group between ticks."""

    short_since: tuple[float | None, ...] = ()
    """Index n - 1: since when (Unix seconds) n members have been too few; None: they are enough."""
    fits_since: tuple[float | None, ...] = ()
    """Index n - 1: since when n members would be enough; None: they would not."""
    latency_answered: bool = False
    """A shadow was ordered for slow answers; not again until they are normal."""

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
    rate_deviates: bool = False
    latency_deviates: bool = False
    neighbour_up: bool = False
    """Another live endpoint of the service is healthy and takes over when this one is down."""
    shadow_slow: bool = False
    """A shadow is as slow: a common cause, cloning does not help."""
    sized: int = 1
    """Members that pay in the long run, those included that were wanted not long ago."""
    sized_reason: str = ""
    usual_s: float | None = None
    """p95 lead time of the orders that were ready in the end; None: the horizon."""
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
            "rate_deviates": float(self.rate_deviates),
            "latency_deviates": float(self.latency_deviates),
        }
        return {name: round(value, 4) for name, value in numbers.items() if math.isfinite(value)}


def at_rest(name: str, capacity: float | None, need: float, members: int = 1) -> Verdict:
    """Of a live endpoint that is up, or a pool of them, without shadows, whose load wants none."""
    if capacity is None:
        return Verdict(Act.HOLD, f"{name}: capacity is not known, no shadows are ordered")
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


def decide(
    settings: ShadowSettings, group: Group, memory: Memory, now_unix_s: float
) -> tuple[Verdict, Memory]:
    """One verdict for one group; ask again at the next tick for more."""
    drained = _finish_drain(settings, group, now_unix_s)
    if drained is not None:
        left = group.lives_up + len(counted(group, now_unix_s))
        return replace(drained, wanted=max(left, 1)), memory
    for shadow in group.shadows:
        if shadow.by_hand and shadow.state is ShadowState.FAILED and _is_due(settings, shadow, now_unix_s):
            return Verdict(Act.RETRY, f"shadow {shadow.name} again: by command", shadow.name), memory
    if group.capacity is None or not math.isfinite(group.high):
        return at_rest(group.name, group.capacity, group.high, group.endpoints), memory
    usable = group.capacity * (1.0 - settings.headroom)
    need = max(group.high, group.level) if math.isfinite(group.level) else group.high
    memory = memory.learn(need, usable, group.endpoints + len(group.shadows) + 1, group.fresh, now_unix_s)
    there = counted(group, now_unix_s)
    members = group.lives_up + len(there)
    cause = _cause(settings, group, members, usable, need)
    if members and members < min(group.sized, group.most_shadows(settings) + group.endpoints):
        few = "1 member is" if members == 1 else f"{members} members are"
        why = cause or f"{group.sized} wanted and {few} there: {group.sized_reason}"
        return _grow(settings, group, why, group.sized, now_unix_s, group.sized - members), memory
    if memory.latency_answered and not group.latency_deviates:
        memory = replace(memory, latency_answered=False)
    if cause is not None:
        needed = max(memory.sure_need(now_unix_s), members + 1)
        if members and any(shadow.state in _ORDERED for shadow in there):
            lasted_s = _lasted_s(memory.short_since, members, now_unix_s)
            if lasted_s is None or lasted_s < _CONFIRM_S:
                return Verdict(Act.HOLD, f"{group.name}: {cause}, not for long yet", None, members), memory
        return _grow(settings, group, cause, needed, now_unix_s), memory
    if group.latency_deviates and group.fresh and not memory.latency_answered and not there:
        return _answer_latency(settings, group, memory, now_unix_s)
    return _shrink(settings, group, memory, need, usable, members, now_unix_s), memory


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
    if group.rate_deviates and members == group.lives_up and need > _NEAR * limit:
        return f"request rate deviates from normal and {numbers}{_NEAR} x {of}"
    return None


def _grow(
    settings: ShadowSettings, group: Group, cause: str, needed: int, now_unix_s: float, missing: int = 1
) -> Verdict:
    """More members, if that can help. Late and failed orders don't count, but what exists is bounded:
    one more than needed, so that each trouble is answered by one replacement and then by patience."""
    for shadow in group.shadows:
        if shadow.state is ShadowState.DRAINING and shadow.name in group.up and not shadow.by_hand:
            return Verdict(Act.KEEP, f"shadow {shadow.name} kept: {cause}", shadow.name, needed)
    silent = [s.name for s in group.shadows if _is_silent(group, s, now_unix_s)]
    if not group.live_up and silent:
        reason = f"{group.name}: {cause}, and {', '.join(silent)} does not answer either: a common cause"
        return Verdict(Act.HOLD, reason, None, needed)
    failed = [shadow for shadow in group.shadows if shadow.state is ShadowState.FAILED]
    for shadow in failed:
        if now_unix_s - shadow.changed_unix_s >= pause_s(settings, shadow.attempts):
            return Verdict(Act.RETRY, f"shadow {shadow.name} again: {cause}", shadow.name, needed)
    most = min(needed - group.lives_up + 1, group.most_shadows(settings))
    if len(group.shadows) >= most:
        reason = f"{group.name}: {cause}, but it has {len(group.shadows)} shadows already"
        if failed:
            left = min(pause_s(settings, s.attempts) - (now_unix_s - s.changed_unix_s) for s in failed)
            reason += f", {failed[0].name} failed ({failed[0].reason}), next try in {left:.0f} s"
        return Verdict(Act.HOLD, reason, None, needed)
    count = min(missing, most - len(group.shadows))
    return Verdict(Act.ADD, f"shadow {group.name} +{count}: {cause}", None, needed, count)


def _is_silent(group: Group, shadow: Shadow, now_unix_s: float) -> bool:
    """There, but not healthy when it should be."""
    if shadow.name in group.up or shadow.address is None:
        return False
    return shadow.state is ShadowState.READY or (
        shadow.state is ShadowState.WARMING and is_late(group, shadow, now_unix_s)
    )


def _answer_latency(
    settings: ShadowSettings, group: Group, memory: Memory, now_unix_s: float
) -> tuple[Verdict, Memory]:
    if group.shadow_slow or group.shadows:
        reason = f"{group.name}: slow, and so are its shadows: a common cause, no more shadows"
        return Verdict(Act.HOLD, reason), memory
    slow = "answers slower than normal without rising demand"
    verdict = _grow(settings, group, slow, group.lives_up + 1, now_unix_s)
    return verdict, replace(memory, latency_answered=True)


def _shrink(
    settings: ShadowSettings,
    group: Group,
    memory: Memory,
    need: float,
    usable: float,
    members: int,
    now_unix_s: float,
) -> Verdict:
    hold = Verdict(Act.HOLD, f"{group.name}: demand {need:.0f}/s fits {_them(members)}", None, members)
    if not group.live_up:
        reason = "its neighbours take over" if members == 0 else "its shadows take over"
        return replace(hold, reason=f"{group.name}: down, {reason}")
    for shadow in group.shadows:
        due = now_unix_s - shadow.changed_unix_s >= pause_s(settings, shadow.attempts)
        if shadow.state is ShadowState.FAILED and due:
            return Verdict(Act.REMOVE, f"shadow {shadow.name} -1: failed and not needed", shadow.name)
    serving = [s for s in group.shadows if s.state is ShadowState.READY and s.name in group.up]
    ours = [shadow for shadow in serving if not shadow.by_hand and shadow.name not in group.bound]
    draining = [s.changed_unix_s for s in group.shadows if s.state is ShadowState.DRAINING]
    # One fewer than those that serve now: what is on order need not arrive.
    others = group.lives_up + len(serving) - 1
    lasted_s = _lasted_s(memory.fits_since, others, now_unix_s)
    if not ours or not group.fresh or lasted_s is None or lasted_s < settings.idle_s:
        return hold
    if group.sized > others:
        return replace(hold, reason=f"{group.name}: {group.sized} wanted: {group.sized_reason}")
    unwanted = others + 1 - group.sized
    if draining and now_unix_s - max(draining) < _SETTLE_S and unwanted < _MANY:
        return hold
    youngest = max(ours, key=lambda s: (s.ready_unix_s or s.changed_unix_s, s.name))
    if now_unix_s - (youngest.ready_unix_s or youngest.changed_unix_s) < settings.min_life_s:
        return hold
    reason = (
        f"shadow {youngest.name} drains: p{group.quantile * 100:.0f} demand {need:.0f}/s <= "
        f"{usable * others:.0f}/s for {lasted_s:.0f} s"
    )
    return Verdict(Act.DRAIN, reason, youngest.name, others)


def _finish_drain(settings: ShadowSettings, group: Group, now_unix_s: float) -> Verdict | None:
    others = any(s.state is ShadowState.READY and s.name in group.up for s in group.shadows)
    for shadow in group.shadows:
        if shadow.state is not ShadowState.DRAINING:
            continue
        is_last = not group.live_up and not others
        if shadow.name in group.up and (is_last or shadow.name in group.bound):
            if shadow.by_hand:
                continue  # nobody else is left: it serves on until somebody is
            return Verdict(Act.KEEP, f"shadow {shadow.name} kept: {shadow.parent} is down", shadow.name)
        if not group.fresh and not shadow.by_hand:
            continue
        drained_s = now_unix_s - shadow.changed_unix_s
        if drained_s >= settings.drain_s:
            left = group.flows.get(shadow.name)
            rest = "its flows are not known" if left is None else f"{left} flows are cut"
            reason = f"shadow {shadow.name} -1: drain deadline {settings.drain_s:.0f} s, {rest}"
            return Verdict(Act.REMOVE, reason, shadow.name)
        # A flow that was given just before the drain may not be in the reading yet.
        if group.fresh and drained_s >= 2.0 and group.flows.get(shadow.name) == 0:
            return Verdict(Act.REMOVE, f"shadow {shadow.name} -1: drained in {drained_s:.0f} s", shadow.name)
    return None
