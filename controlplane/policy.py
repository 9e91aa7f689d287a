# SPDX-License-Identifier: Apache-2.0
"""How many members a group should have: add, hold, drain, remove, with the reason in a sentence.

Pure: (settings, group, memory, now) -> (verdict, memory). What is on order counts as capacity, unless it is
late or failed; prediction only ever adds; what is unwanted goes only after an idle period, a minimum
life, and on fresh readings.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from enum import Enum

from controlplane.model import Shadow, ShadowSettings, ShadowState

_LATE = 1.5
"""An order older than its p95 lead time times this is not counted on."""
_RELEASE = 0.85
"""A member is unwanted when the others would stay below this part of the threshold for adding."""
_NEAR = 0.85
"""A rate that deviates from normal adds already at this part of the threshold."""
_LONGEST_PAUSE_S = 300.0

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


@dataclass(frozen=True, slots=True)
class Memory:
    """What the policy remembers of a group between ticks."""

    unwanted_since_unix_s: float | None = None
    latency_answered: bool = False
    """A shadow was ordered for slow answers; not again until they are normal."""


@dataclass(frozen=True, slots=True)
class Group:
    """A live endpoint, its shadows, and what is known of them now."""

    name: str
    capacity: float | None
    level: float
    """Demand now; NaN: not known."""
    high: float
    """High quantile of demand at the horizon."""
    horizon_s: float
    quantile: float
    fresh: bool
    """Readings are recent and complete: only then anything is removed."""
    live_up: bool
    shadows: tuple[Shadow, ...]
    up: frozenset[str]
    """Names of the shadows that are healthy."""
    flows: dict[str, int]
    """Active flows of draining shadows; absent: not known."""
    rate_deviates: bool = False
    latency_deviates: bool = False
    shadow_slow: bool = False
    """A shadow is as slow: a common cause, cloning does not help."""


def pause_s(settings: ShadowSettings, attempts: int) -> float:
    """Before the next try after so many failed ones."""
    if attempts > settings.retries:
        return _LONGEST_PAUSE_S
    return float(min(settings.retry_after_s * 2.0 ** max(attempts - 1, 0), _LONGEST_PAUSE_S))


def counted(group: Group, now_unix_s: float) -> list[Shadow]:
    """Shadows that carry load now or will by the horizon: ready and healthy, or on order and not late."""
    late_s = _LATE * group.horizon_s
    return [
        shadow
        for shadow in group.shadows
        if (shadow.state is ShadowState.READY and shadow.name in group.up)
        or (shadow.state in _ORDERED and now_unix_s - shadow.requested_unix_s <= late_s)
    ]


def decide(
    settings: ShadowSettings, group: Group, memory: Memory, now_unix_s: float
) -> tuple[Verdict, Memory]:
    """One verdict for one group; ask again at the next tick for more."""
    drained = _finish_drain(settings, group, now_unix_s)
    if drained is not None:
        return drained, memory
    if group.capacity is None:
        return Verdict(Act.HOLD, f"{group.name}: capacity is not known, no shadows are ordered"), memory
    if not math.isfinite(group.high):
        return Verdict(Act.HOLD, f"{group.name}: no reading of demand yet"), memory

    usable = group.capacity * (1.0 - settings.headroom)
    need = max(group.high, group.level)
    there = counted(group, now_unix_s)
    members = int(group.live_up) + len(there)
    needed = max(math.ceil(need / usable - 1e-9), 1) if need > 0 else 1
    cause = _cause(settings, group, members, usable, need)
    if not group.latency_deviates:
        memory = replace(memory, latency_answered=False)
    if cause is not None:
        memory = replace(memory, unwanted_since_unix_s=None)
        return _grow(settings, group, cause, needed, now_unix_s), memory
    if group.latency_deviates and group.fresh and not memory.latency_answered and not there:
        return _answer_latency(settings, group, memory, now_unix_s)
    return _shrink(settings, group, memory, need, usable, members, now_unix_s)


def _cause(settings: ShadowSettings, group: Group, members: int, usable: float, need: float) -> str | None:
    """Why one more member is needed, in numbers; None: it is not."""
    numbers = f"p{group.quantile * 100:.0f} demand {need:.0f}/s in {group.horizon_s:.0f} s > "
    limit = usable * members
    of = f"{1 - settings.headroom:.2g} x {members} x {group.capacity:.0f}/s"
    if members <= 1:
        of = f"{1 - settings.headroom:.2g} x {group.capacity:.0f}/s"
    if members == 0:
        return "down and no shadow takes over"
    if need > limit:
        return numbers + of
    if group.rate_deviates and need > _NEAR * limit:
        return f"request rate deviates from normal and {numbers}{_NEAR} x {of}"
    return None


def _grow(settings: ShadowSettings, group: Group, cause: str, needed: int, now_unix_s: float) -> Verdict:
    for shadow in group.shadows:
        if shadow.state is ShadowState.DRAINING and shadow.name in group.up and not shadow.by_hand:
            return Verdict(Act.KEEP, f"shadow {shadow.name} kept: {cause}", shadow.name, needed)
    failed = [shadow for shadow in group.shadows if shadow.state is ShadowState.FAILED]
    for shadow in failed:
        if now_unix_s - shadow.changed_unix_s >= pause_s(settings, shadow.attempts):
            return Verdict(Act.RETRY, f"shadow {shadow.name} again: {cause}", shadow.name, needed)
    if failed:
        left = pause_s(settings, failed[0].attempts) - (now_unix_s - failed[0].changed_unix_s)
        reason = f"{group.name}: {cause}, but {failed[0].name} failed ({failed[0].reason})"
        return Verdict(Act.HOLD, f"{reason}, next try in {left:.0f} s", None, needed)
    if len(group.shadows) >= settings.max_per_endpoint:
        reason = f"{group.name}: {cause}, but it has {len(group.shadows)} shadows already"
        return Verdict(Act.HOLD, reason, None, needed)
    return Verdict(Act.ADD, f"shadow {group.name} +1: {cause}", None, needed)


def _answer_latency(
    settings: ShadowSettings, group: Group, memory: Memory, now_unix_s: float
) -> tuple[Verdict, Memory]:
    if group.shadow_slow or group.shadows:
        reason = f"{group.name}: slow, and so are its shadows: a common cause, no more shadows"
        return Verdict(Act.HOLD, reason), memory
    verdict = _grow(settings, group, "answers slower than normal without rising demand", 2, now_unix_s)
    return verdict, replace(memory, latency_answered=True, unwanted_since_unix_s=None)


def _shrink(
    settings: ShadowSettings,
    group: Group,
    memory: Memory,
    need: float,
    usable: float,
    members: int,
    now_unix_s: float,
) -> tuple[Verdict, Memory]:
    wanted = members
    hold = Verdict(Act.HOLD, f"{group.name}: demand {need:.0f}/s fits {members} members", None, wanted)
    for shadow in group.shadows:
        due = now_unix_s - shadow.changed_unix_s >= pause_s(settings, shadow.attempts)
        if shadow.state is ShadowState.FAILED and due:
            return Verdict(Act.REMOVE, f"shadow {shadow.name} -1: failed and not needed", shadow.name), memory
    ready = [s for s in group.shadows if s.state is ShadowState.READY and not s.by_hand]
    fits = need <= _RELEASE * usable * (members - 1)
    if not ready or not group.live_up or not group.fresh or not fits:
        return hold, replace(memory, unwanted_since_unix_s=None)
    if any(shadow.state is ShadowState.DRAINING for shadow in group.shadows):
        return hold, memory
    since = memory.unwanted_since_unix_s
    if since is None:
        return hold, replace(memory, unwanted_since_unix_s=now_unix_s)
    youngest = max(ready, key=lambda s: (s.ready_unix_s or s.changed_unix_s, s.name))
    age_s = now_unix_s - (youngest.ready_unix_s or youngest.changed_unix_s)
    if now_unix_s - since < settings.idle_s or age_s < settings.min_life_s:
        return hold, memory
    reason = (
        f"shadow {youngest.name} drains: p{group.quantile * 100:.0f} demand {need:.0f}/s < "
        f"{_RELEASE} x {usable * (members - 1):.0f}/s for {now_unix_s - since:.0f} s"
    )
    return Verdict(Act.DRAIN, reason, youngest.name, members - 1), Memory(None, memory.latency_answered)


def _finish_drain(settings: ShadowSettings, group: Group, now_unix_s: float) -> Verdict | None:
    for shadow in group.shadows:
        if shadow.state is not ShadowState.DRAINING:
            continue
        if not group.live_up and shadow.name in group.up and not shadow.by_hand:
            return Verdict(Act.KEEP, f"shadow {shadow.name} kept: {group.name} is down", shadow.name)
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
