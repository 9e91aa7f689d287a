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

from controlplane import drains, turnover
from controlplane.baseline import REMARKABLE
from controlplane.groups import (
    CONFIRM_S,
    ORDERED,
    Act,
    Group,
    Memory,
    Verdict,
    at_rest,
    counted,
    is_due,
    is_late,
    lasted_s,
    members_of,
    pause_s,
    suffices,
)
from controlplane.model import Shadow, ShadowSettings, ShadowState

_HELPED_S = 30.0
"""Who has had one more member for so long would be seen to be relieved by it."""
_NEAR = 0.85
"""A rate that deviates from normal adds the first shadow already at this part of the threshold."""
_AT_ONCE = 3
"""One of so many members may drain at once: a spike may have brought hundreds."""
_NEXT_TO_NONE = 0.01
"""Of its capacity: who is given so few new flows has nothing to hand over."""


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
        if shadow.by_hand and shadow.state is ShadowState.FAILED and is_due(settings, shadow, now_unix_s)
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
    memory = memory.watch_evictions(settings, group, now_unix_s)
    need = _need(group, memory, now_unix_s)
    memory = memory.learn(need, usable, group.endpoints + len(group.shadows) + 1, group.fresh, now_unix_s)
    memory = memory.watch(group, members, now_unix_s)
    more = _more(settings, group, memory, need, usable, members, now_unix_s)
    going = _go_on(settings, group, members, usable * members - need, now_unix_s, halted=bool(more))
    if not more:
        stays = memory.answered and not _has_common_cause(group) and len(_serving(group)) <= 1
        fewer = _shrink(settings, group, memory, need, usable, now_unix_s)
        going += tuple(one for one in fewer if not stays or one.act is not Act.DRAIN)
    return more + going or (_hold(settings, group, need, usable, members),), memory


def _need(group: Group, memory: Memory, now_unix_s: float) -> float:
    """What has to be served. Clients whose flows were given to others come back at once: that looks like a
    climb, so then what is there counts, not what it would climb to."""
    if not math.isfinite(group.level):
        return group.high
    return group.level if memory.are_returning(now_unix_s) else max(group.high, group.level)


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
        if not group.sized_blindly:
            return _grow(settings, group, why, sized, now_unix_s, sized - members, kept)
        if kept:
            return kept
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
    """Reactive: one shadow for who is saturated, and one more when that has not helped, until it is known how
    many are needed. They go when demand is what the live endpoint has served alone."""
    usable = group.proven * (1.0 - settings.headroom)
    need = max(group.high, group.level) if math.isfinite(group.level) else group.high
    memory = memory.learn(need, usable, group.endpoints + len(group.shadows) + 1, group.fresh, now_unix_s)
    more: tuple[Verdict, ...] = ()
    if group.saturated and group.fresh and group.live_up and _is_not_enough(group, now_unix_s):
        needed = 2 + len(counted(group, now_unix_s))
        cause = f"its capacity is not known, and at {need:.0f}/s it is saturated"
        more = _grow(settings, group, cause, needed, now_unix_s, kept=_kept(group, cause, needed, 1))
    going = _go_on(settings, group, members, usable * members - need, now_unix_s, halted=bool(more))
    if not more:
        going += _shrink(settings, group, memory, need, usable, now_unix_s)
    held = at_rest(group.name, None, need, group.endpoints)
    if group.shadows and group.live_up:
        said = f"{group.name}: capacity is not known yet, {members_of(members)} until it is"
        if usable > 0.0:
            said += f", or demand, {need:.0f}/s, is below {usable:.0f}/s, by what it served alone"
        held = Verdict(Act.HOLD, said, None, members)
    return more + going or (held,), memory


def _is_not_enough(group: Group, now_unix_s: float) -> bool:
    """Help that is there for long has not relieved who is saturated, and more is asked for than usual: else
    it may be slow by what no more members help against."""
    there = counted(group, now_unix_s)
    if not there:
        return True
    helping = all(
        one.state is ShadowState.READY and now_unix_s - (one.ready_unix_s or one.changed_unix_s) >= _HELPED_S
        for one in there
    )
    return helping and (group.rate_deviation >= REMARKABLE or not _has_common_cause(group))


def _cause(settings: ShadowSettings, group: Group, members: int, usable: float, need: float) -> str | None:
    """Why one more member is needed, in numbers; None: it is not."""
    numbers = f"p{group.quantile * 100:.0f} demand {need:.0f}/s in {group.horizon_s:.0f} s > "
    limit = usable * members
    of = f"{members} x {group.capacity:.0f}/s" if members != 1 else f"{group.capacity:.0f}/s"
    if settings.headroom:
        of = f"{1 - settings.headroom:.2g} x {of}"
    if members == 0:
        return None if group.neighbour_up else "down and no shadow takes over"
    if need > limit:
        return numbers + of
    if _is_nearly_short(group, members, usable, need):
        return f"request rate deviates from normal and {numbers}{_NEAR} x {of}"
    return None


def _is_nearly_short(group: Group, members: int, usable: float, need: float) -> bool:
    """The rate deviates, and nobody but the live ones would serve what is not far from too much for them."""
    return (
        group.rate_deviation >= REMARKABLE and members == group.lives_up and need > _NEAR * usable * members
    )


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
    few_tell = group.relieved or any(shadow.state in ORDERED for shadow in counted(group, now_unix_s))
    if members and few_tell:
        held_s = lasted_s(memory.short_since, members, now_unix_s)
        if held_s is None or held_s < CONFIRM_S:
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
    if held := _held_by_lag(group, cause):
        return kept or (Verdict(Act.HOLD, held, None, needed),)
    silent = [s.name for s in group.shadows if _is_silent(group, s, now_unix_s)]
    if not group.live_up and silent:
        reason = f"{group.name}: {cause}, and {', '.join(silent)} does not answer either: a common cause"
        return kept or (Verdict(Act.HOLD, reason, None, needed),)
    failed = [shadow for shadow in group.shadows if shadow.state is ShadowState.FAILED]
    due = [shadow for shadow in failed if is_due(settings, shadow, now_unix_s)]
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
    count = min(missing, most - len(group.shadows), 1 if group.lagging else missing)
    reason = f"shadow {group.name} +{count}: {cause}{_earlier(group)}"
    return *kept, Verdict(Act.ADD, reason, None, needed, count)


def _held_by_lag(group: Group, cause: str) -> str:
    """Why no more are ordered while shadows lag; empty: one more may be. A copy more is more work for whoever
    has the original, and would lag by the same cause."""
    if not group.lagging:
        return ""
    name, why = next(iter(group.lagging.items()))
    if group.live_up and len(group.lagging) == 1 and not any(s.state in ORDERED for s in group.shadows):
        return ""
    others = f" and {len(group.lagging) - 1} more" if len(group.lagging) > 1 else ""
    return f"{group.name}: {cause}, but {name}{others} must not serve ({why}): a common cause"


def _earlier(group: Group) -> str:
    """Why so early."""
    earlier_s = turnover.earlier_s(group.life_s)
    if not earlier_s:
        return ""
    return f"; flows live {group.life_s:.0f} s: little can be moved, so {earlier_s:.0f} s earlier"


def _is_silent(group: Group, shadow: Shadow, now_unix_s: float) -> bool:
    """There, but not healthy when it should be."""
    if shadow.name in group.up or shadow.name in group.lagging or shadow.address is None:
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
    return memory.troubled_since is not None and now_unix_s - memory.troubled_since >= CONFIRM_S


def _hold(settings: ShadowSettings, group: Group, need: float, usable: float, members: int) -> Verdict:
    if not group.live_up:
        return Verdict(Act.HOLD, f"{group.name}: down, {_stands_in(group, members)}", None, members)
    if group.trouble:
        reason = f"{group.name}: {group.trouble}"
        if _has_common_cause(group):
            whose = "its neighbours" if group.others_too else "its shadows"
            why = "demand is unusual too" if group.rate_deviation >= REMARKABLE else "a common cause"
            reason += f", and so with {whose}: {why}, no more shadows"
        return Verdict(Act.HOLD, reason, None, members)
    ours = [s for s in _serving(group) if not s.by_hand and s.name not in group.bound]
    if ours and group.sized >= group.lives_up + len(_serving(group)):
        return Verdict(Act.HOLD, f"{group.name}: {group.sized} wanted: {group.sized_reason}", None, members)
    said = suffices(group.name, usable, need, members)
    spare = min(members - max(math.ceil(need / usable), group.sized, group.endpoints), len(ours))
    if spare > 0:
        said += f"; {spare} can go when that has been so for {settings.idle_s:g} s"
    return Verdict(Act.HOLD, said, None, members)


def _stands_in(group: Group, members: int) -> str:
    """Who serves for who is down, in words."""
    if group.up:
        return "its shadows take over"
    if group.neighbour_up:
        return "its neighbours take over"
    if group.lagging:
        return "and its shadows' data is too old to take over"
    return "and a shadow for it is on order" if members else "and nobody takes over"


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
        if shadow.state is ShadowState.FAILED and is_due(settings, shadow, now_unix_s)
    )
    if not group.fresh or any(drains.moves_flows(settings, one, now_unix_s) for one in group.shadows):
        return failed
    if group.trouble and group.error_deviation >= REMARKABLE:
        return failed  # what fails does not count as demand, so that all seems to fit
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
    if useless := _useless(settings, group, memory, serving, now_unix_s):
        return failed + useless
    unwanted = min(serving - group.sized, len(able))
    most = max(1, serving // _AT_ONCE)
    idle_s = drains.begins_s(settings, settings.idle_s)
    for count in range(min(unwanted, most), 0, -1):
        left = serving - count
        held_s = lasted_s(memory.fits_since, left, now_unix_s)
        if held_s is None or held_s < idle_s or _is_nearly_short(group, left, usable, need):
            continue  # what would end the drain again does not let it begin
        why = f"p{group.quantile * 100:.0f} demand {need:.0f}/s <= {usable * left:.0f}/s for {held_s:.0f} s"
        share = drains.first_share(settings)
        return failed + tuple(
            Verdict(Act.DRAIN, f"shadow {one.name} drains: {why}", one.name, left, share=share)
            for one in able[:count]
        )
    return failed


def _useless(
    settings: ShadowSettings, group: Group, memory: Memory, serving: int, now_unix_s: float
) -> tuple[Verdict, ...]:
    """Who lags is no reason to go; but who lags and would be unwanted if it did not, goes first."""
    held_s = lasted_s(memory.fits_since, serving, now_unix_s)
    if group.sized > serving or held_s is None or held_s < drains.begins_s(settings, settings.idle_s):
        return ()
    least_s = drains.begins_s(settings, settings.min_life_s)
    return tuple(
        Verdict(
            Act.DRAIN,
            f"shadow {s.name} drains: not needed for {held_s:.0f} s, and {group.lagging[s.name]}",
            s.name,
            serving,
            share=0.0,
        )
        for s in group.shadows
        if s.name in group.lagging
        and s.state is ShadowState.READY
        and not s.by_hand
        and now_unix_s - (s.ready_unix_s or s.changed_unix_s) >= least_s
    )[:1]


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
