# SPDX-License-Identifier: Apache-2.0
"""What the policy is told of a group or pool, what it remembers, and what it says."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

from controlplane import drains, shadows
from controlplane.model import Shadow, ShadowSettings, ShadowState

_LATE = 1.5
"""An order older than the p95 of those that were ready, times this, is not counted on."""
_LONGEST_PAUSE_S = 300.0
CONFIRM_S = 3.0
"""While one is on order, the next waits until the need for it has lasted so long: the first readings of
an onset tell its size badly."""
_NORMAL_S = 600.0
"""Slow answers or errors are answered again after so long without them, and until then the answer stays."""
_DOUBLES_S = 60.0
"""In a time with failures the members at most double, and again after so long."""
_WELL = 0.95
"""What fits by less may not fit a moment later, by chance: nobody goes for that."""
_RETURNED_S = 20.0
"""After the last eviction the climb that it looks like is forgotten."""
_UNBOUNDED = 1 << 30
_TOLD = 3
"""Of the verdicts about a group, by status; all are in the decision log."""
ORDERED = {ShadowState.REQUESTED, ShadowState.PROVISIONING, ShadowState.WARMING}


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
    """Index n - 1: since when n members would be well enough; None: they would not."""
    troubled_since: float | None = None
    """Since when answers are slow or failing; None: they are not."""
    normal_since: float | None = None
    """Since when they are not."""
    answered: bool = False
    """There was a shadow while they were; not again until they have been normal for a while."""
    failing_since: float | None = None
    calm_members: int = 1
    """Before the time with failures."""
    evicted_unix_s: float = -math.inf
    """When old flows were given to others last."""

    def watch_evictions(self, settings: ShadowSettings, group: Group, now_unix_s: float) -> Memory:
        if any(drains.is_past_deadline(settings, shadow, now_unix_s) for shadow in group.shadows):
            return replace(self, evicted_unix_s=now_unix_s)
        return self

    def are_returning(self, now_unix_s: float) -> bool:
        """Clients whose flows were given to others."""
        return now_unix_s - self.evicted_unix_s <= _RETURNED_S

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
        lasted = (lasted_s(self.short_since, n, now_unix_s) for n in range(1, len(self.short_since) + 1))
        return 1 + sum(held_s is not None and held_s >= CONFIRM_S for held_s in lasted)

    def learn(self, need: float, usable: float, most: int, fresh: bool, now_unix_s: float) -> Memory:
        """:param most: members that are told apart. Without fresh readings nothing fits."""
        short = [need > usable * n for n in range(1, most + 1)]
        fits = [fresh and need <= _WELL * usable * n for n in range(1, most + 1)]
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


def lasted_s(since: tuple[float | None, ...], members: int, now_unix_s: float) -> float | None:
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
    sized_blindly: bool = False
    """They are those that were wanted before: nobody goes for that, and nobody is ordered."""
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
    relieved: bool = False
    """It had too few members until a moment ago, or is new: what is seen coming is told by few readings."""
    saturated: bool = False
    """Clearly slower than it was, and what it does no longer follows what it is asked for."""
    proven: float = 0.0
    """Demand that the live one has served without slowing down much."""
    lagging: Mapping[str, str] = field(default_factory=dict)
    """Healthy shadows whose data is too old to be served, and why."""
    copying: frozenset[str] = frozenset()
    """Shadows whose first copy of data is being made, however long that takes."""

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
            "on_order": float(sum(shadow.state in ORDERED for shadow in there)),
            "sized": float(self.sized),
            "standing": float(self.standing),
            "fresh": float(self.fresh),
            "rate_deviation": self.rate_deviation,
            "latency_deviation": self.latency_deviation,
            "error_deviation": self.error_deviation,
            "failing": float(self.failing),
            "relieved": float(self.relieved),
            "saturated": float(self.saturated),
            "proven": self.proven,
            "lagging": float(len(self.lagging)),
        }
        return {name: round(value, 4) for name, value in numbers.items() if math.isfinite(value)}


def in_short(verdicts: Sequence[Verdict]) -> Verdict:
    """As status tells them."""
    told = [verdict.reason for verdict in verdicts[:_TOLD]]
    more = len(verdicts) - len(told)
    return replace(verdicts[0], reason="; ".join([*told, f"and {more} more"] if more else told))


def at_rest(name: str, usable: float | None, need: float, members: int = 1) -> Verdict:
    """Of a live endpoint that is up, or a pool of them, without shadows, whose load wants none.

    :param usable: what a member can be counted on for, flows/s; None: not known."""
    if usable is None:
        return Verdict(Act.HOLD, f"{name}: capacity is not known, and it is not saturated")
    if not math.isfinite(need):
        return Verdict(Act.HOLD, f"{name}: no reading of demand yet", None, members)
    return Verdict(Act.HOLD, suffices(name, usable, need, members), None, members)


def suffices(name: str, usable: float, need: float, members: int) -> str:
    can = f"{usable * members:.0f}/s that {members_of(members)} can serve"
    return f"{name}: expected demand {need:.0f}/s <= {can}"


def members_of(members: int) -> str:
    return "1 member" if members == 1 else f"{members} members"


def pause_s(settings: ShadowSettings, attempts: int) -> float:
    """Before the next try after so many failed ones."""
    if attempts > settings.retries:
        return _LONGEST_PAUSE_S
    return float(min(settings.retry_after_s * 2.0 ** max(attempts - 1, 0), _LONGEST_PAUSE_S))


def is_due(settings: ShadowSettings, failed: Shadow, now_unix_s: float) -> bool:
    """The pause after its failure is over."""
    return now_unix_s - failed.changed_unix_s >= pause_s(settings, failed.attempts)


def is_late(group: Group, shadow: Shadow, now_unix_s: float) -> bool:
    if shadow.name in group.copying:
        return False
    usual_s = group.horizon_s if group.usual_s is None else group.usual_s
    return shadow.state in ORDERED and now_unix_s - shadow.requested_unix_s > _LATE * usual_s


def counted(group: Group, now_unix_s: float) -> list[Shadow]:
    """Shadows that carry load now or will by the horizon: ready and healthy, or on order and not late."""
    return [
        shadow
        for shadow in group.shadows
        if (shadow.state is ShadowState.READY and shadow.name in group.up)
        or (shadow.state in ORDERED and not is_late(group, shadow, now_unix_s))
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
