# SPDX-License-Identifier: Apache-2.0
"""Standbys: shadows that are made, healthy and in sync before anybody needs them, and get no new flows.

They are no members of their group: the policy does not know them. When it wants one more, the best of them is
one at once; another is made behind it. They are a reserve of time, not of what the forecast says (that is
``standing``). Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from controlplane import groups, shadows
from controlplane.model import Service, Shadow, ShadowState

_MADE_AT_ONCE = 2
"""Of an instance: who is needed now must not wait for those that are kept for later."""
_NEAREST = (ShadowState.READY, ShadowState.WARMING, ShadowState.PROVISIONING, ShadowState.REQUESTED)
_MADE = frozenset({ShadowState.REQUESTED, ShadowState.PROVISIONING})


@dataclass(frozen=True, slots=True)
class Upkeep:
    """What is to be done so that there are as many as are wanted."""

    missing: tuple[str, ...] = ()
    """Live endpoints that are to get one, as often as each stands here."""
    again: tuple[Shadow, ...] = ()
    """Failed ones that are made again."""
    too_many: tuple[Shadow, ...] = ()


def are_kept(shadow: Shadow) -> bool:
    return shadow.standby and shadow.state is not ShadowState.REMOVING


def best(those: Iterable[Shadow]) -> Shadow | None:
    """Who serves soonest; None: nobody will."""
    able = [one for one in those if one.state in _NEAREST and not _is_down(one)]
    return min(able, key=lambda one: (_NEAREST.index(one.state), one.requested_unix_s), default=None)


def _is_down(shadow: Shadow) -> bool:
    return shadow.state is ShadowState.READY and shadow.healthy_unix_s is None


def promoted(shadow: Shadow, now_unix_s: float, reason: str) -> Shadow:
    """A member from now on. One that has waited begins as one that has just become healthy: it was warm, but
    nobody asked it for anything."""
    if shadow.state is not ShadowState.READY:
        return replace(shadow, standby=False, reason=reason)
    begun = shadows.entered(shadow, ShadowState.WARMING, now_unix_s, reason)
    return replace(begun, standby=False, requested_unix_s=now_unix_s, healthy_unix_s=now_unix_s)


def retired(shadow: Shadow, now_unix_s: float, reason: str) -> Shadow:
    """One whose drain is over stands by, instead of being removed."""
    waits = shadows.entered(shadow, ShadowState.READY, now_unix_s, f"{reason}; stands by")
    return replace(waits, standby=True, attempts=0)


def may_retire(shadow: Shadow) -> bool:
    """None of its flows was given to others: they would be its own again."""
    ended_well = shadow.state is ShadowState.DRAINING and not shadow.evicted
    return ended_well and not shadow.by_hand and shadow.healthy_unix_s is not None


def upkeep(
    services: Iterable[Service],
    kept: Mapping[str, list[Shadow]],
    is_up: Callable[[str], bool],
    now_unix_s: float,
) -> Upkeep:
    """:param kept: live endpoint -> those that stand by for it.
    :param is_up: what is down can't be cloned."""
    missing: list[str] = []
    again: list[Shadow] = []
    too_many: list[Shadow] = []
    room = _MADE_AT_ONCE - sum(one.state in _MADE for those in kept.values() for one in those)
    for service in services:
        wanted = service.shadows.standby
        for endpoint in service.endpoints if wanted or kept else ():
            those = kept.get(endpoint.name, [])
            if len(those) > wanted:
                too_many += sorted(those, key=_worst_first)[: len(those) - wanted]
                continue
            if not is_up(endpoint.name):
                continue
            failed = [one for one in those if one.state is ShadowState.FAILED]
            due = [one for one in failed if groups.is_due(service.shadows, one, now_unix_s)][: max(room, 0)]
            again += due
            room -= len(due)
            count = min(wanted - len(those), max(room, 0))
            missing += [endpoint.name] * count
            room -= count
    return Upkeep(tuple(missing), tuple(again), tuple(too_many))


def _worst_first(shadow: Shadow) -> tuple[int, float]:
    nearest = _NEAREST.index(shadow.state) if shadow.state in _NEAREST else len(_NEAREST)
    return -nearest, -shadow.requested_unix_s
