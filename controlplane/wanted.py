# SPDX-License-Identifier: Apache-2.0
"""What the data plane should have: configuration, shadows and health as one Steering value."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from controlplane import drains, model, shadows, weights
from controlplane.lag import Gates
from controlplane.model import Member, Role, Shadow, ShadowState

_BLIND_S = 180.0
"""Weights stay so long without readings, then they move to capacity shares."""
_HELPERS = 16
"""At most so many neighbours share what one that warms up leaves: each gets some of the slots."""


class Knowledge(Protocol):
    """What is known of members; the fleet, in the loop."""

    fail_open: dict[str, bool]

    def service(self, name: str) -> model.Service:
        """As it is configured, with the capacities that are known."""

    def is_up(self, name: str, default: bool) -> bool: ...

    def back_s(self, name: str) -> float | None: ...

    def high(self, endpoint: model.Endpoint) -> float: ...

    def whole(self, service: str) -> float | None: ...

    def fitness(
        self, endpoints: Mapping[str, model.Endpoint], now_s: float
    ) -> Mapping[str, float] | None: ...

    def awaits_usage(self, endpoints: Collection[str], now_s: float) -> bool: ...

    def shadow_fitness(self, shadow: Shadow, now_s: float) -> float: ...

    def is_in_trouble(self, name: str) -> bool: ...

    @property
    def lag(self) -> Gates:
        """Whose data is new enough."""

    @property
    def kept(self) -> Mapping[str, float]:
        """Live endpoint -> the part of its weight that it keeps while it is slow or failing."""

    @property
    def newly_penalised(self) -> Collection[str]:
        """Those that keep clearly less than a tick ago."""


def wanted_steering(
    config: model.Config,
    installed: model.Steering,
    fleet: Knowledge,
    records: Mapping[str, Shadow],
    drained: frozenset[str],
    *,
    frozen: bool,
    stale_s: Mapping[str, float],
    ring_changed_s: Mapping[str, float],
    now_s: float,
    now_unix_s: float,
) -> model.Steering:
    """:param drained: members that are to get no new flows.
    :param frozen: spill, slots, limits and ring weights stay; health and membership still act.
    :param stale_s: live endpoint -> how old its group's readings are, where they are too old to act on:
        its weights stay, and after three minutes they move in limited steps to capacity shares.
    """
    services: dict[str, model.VirtualService] = {}
    members: dict[str, Member] = {}
    draining = {name for name, shadow in records.items() if shadow.state is ShadowState.DRAINING}
    shadows_of: dict[str, list[Shadow]] = {}
    for shadow in records.values():
        shadows_of.setdefault(shadow.parent, []).append(shadow)
    for service in map(fleet.service, config.services):
        parts = _returning(config, fleet, service, frozen, now_s)
        slots = {
            one.name: _slots(
                fleet,
                service,
                one,
                shadows_of.get(one.name, ()),
                installed.members.get(one.name),
                drained,
                now_s,
                now_unix_s,
            )
            for one in service.endpoints
        }
        usable = {name: fleet.is_up(name, True) or bool(those) for name, those in slots.items()}
        whole = fleet.whole(service.name)
        follows = whole is not None and any(one.name in shadows_of for one in service.endpoints)
        ring = _ring(
            installed,
            fleet,
            service,
            usable,
            drained,
            _serving(fleet, slots, draining, drained) if follows else None,
            slots,
            _losing(installed, fleet, slots, draining, drained) if follows else frozenset(),
            frozen or any(stale_s[name] <= _BLIND_S for name in slots if name in stale_s),
            ring_changed_s.get(service.name, -1e9),
            now_s,
        )
        of_ring = None if whole is None else whole / (sum(ring.values()) or 1.0)
        for endpoint in service.endpoints:
            own = shadows_of.get(endpoint.name, ())
            members[endpoint.name] = _live(
                installed,
                fleet,
                service,
                endpoint,
                slots[endpoint.name],
                fleet.high(endpoint) if of_ring is None else of_ring * ring.get(endpoint.name, 0.0),
                drained,
                frozen,
                stale_s.get(endpoint.name),
                parts.get(endpoint.name),
            )
            for shadow in own:
                if _installable(shadow):
                    warm = weights.shadow_part(shadow, service.shadows.warm_up_s, now_unix_s)
                    limit = _limit(installed, service, endpoint, shadow.name, warm, frozen)
                    members[shadow.name] = _shadow(fleet, shadow, limit, drained, now_s)
        members |= _helped(service, members, parts)
        healthy = any(usable.values())
        fleet.fail_open[service.name] = not healthy
        if not healthy:
            # Nobody is known to answer: a down flag would drop what might still be served.
            for endpoint in service.endpoints:
                those = shadows_of.get(endpoint.name, ())
                ready = [one for one in those if one.state is ShadowState.READY and not one.standby]
                names = [one.name for one in ready if one.name in members and fleet.lag.serves(one, now_s)]
                members |= _all_up(members, endpoint.name, names)
        services[service.name] = model.VirtualService(
            service.name,
            service.vip,
            service.port,
            service.protocol,
            service.on_down,
            service.ring_size,
            ring,
            service.affinity,
            service.requests,
            service.request_sample,
        )
    return model.Steering(services, members)


def _all_up(members: Mapping[str, Member], live: str, own: Sequence[str]) -> dict[str, Member]:
    """A live endpoint and its shadows, as if all were well: each gets as much as the others."""
    slots = {name: 1.0 for name in own if not members[name].draining}
    spill = weights.wanted_spill(0.0, None, float(len(slots)), True) if slots else 0.0
    up = {name: replace(members[name], down=False) for name in own}
    return {**up, live: replace(members[live], down=False, spill=spill, slots=slots)}


def _installable(shadow: Shadow) -> bool:
    return shadow.state in shadows.INSTALLED and shadow.address is not None and shadow.port is not None


def _returning(
    config: model.Config, fleet: Knowledge, service: model.Service, frozen: bool, now_s: float
) -> dict[str, float]:
    """Live endpoints that were down not long ago -> the part of its full share that each takes. They are in
    it for two more ticks, so that the last step is taken too."""
    warm_up_s = service.shadows.warm_up_s
    back = {e.name: back_s for e in service.endpoints if (back_s := fleet.back_s(e.name)) is not None}
    return {
        name: weights.warmth(back_s, warm_up_s, now_s)
        for name, back_s in back.items()
        if not frozen and now_s - back_s < warm_up_s + 2.0 * config.tick_s
    }


def _helped(
    service: model.Service, members: Mapping[str, Member], parts: Mapping[str, float]
) -> dict[str, Member]:
    """Live endpoints that warm up and have no shadow: their neighbours keep what they don't take yet."""
    endpoints = {e.name: e for e in service.endpoints}
    names = list(endpoints)
    serving = {n for n in names if not members[n].down and not members[n].draining}
    changed = {}
    for at, name in enumerate(names):
        if parts.get(name, 1.0) == 1.0 or name not in serving or members[name].slots:
            continue
        others = [n for n in names[at + 1 :] + names[:at] if n in serving and parts.get(n, 1.0) == 1.0][
            :_HELPERS
        ]
        if others:
            slots = weights.ring_weights({n: endpoints[n] for n in others})
            spill = weights.warming_spill(0.0, parts[name])
            changed[name] = replace(members[name], slots=slots, spill=spill)
    return changed


def _limit(
    installed: model.Steering,
    service: model.Service,
    endpoint: model.Endpoint,
    name: str,
    part: float,
    frozen: bool,
) -> int:
    """Of a member of this live endpoint's group."""
    if frozen:
        before = installed.members.get(name)
        return before.limit if before else 0
    if service.affinity is model.Affinity.SOURCE:
        return 0
    return weights.window_limit(endpoint, part)


def _shadow(fleet: Knowledge, shadow: Shadow, limit: int, drained: frozenset[str], now_s: float) -> Member:
    if shadow.address is None or shadow.port is None:
        raise ValueError(f"shadow {shadow.name} has no address yet")
    return Member(
        name=shadow.name,
        service=shadow.service,
        address=shadow.address,
        port=shadow.port,
        role=Role.SHADOW,
        parent=shadow.parent,
        down=not fleet.is_up(shadow.name, False) or fleet.lag.is_evicted(shadow, now_s),
        draining=(shadow.state is ShadowState.DRAINING and drains.share(shadow) == 0.0)
        or shadow.name in drained,
        limit=limit,
        evicted=shadow.evicted if shadow.state is ShadowState.DRAINING else 0.0,
    )


def _slots(
    fleet: Knowledge,
    service: model.Service,
    endpoint: model.Endpoint,
    own: Iterable[Shadow],
    before: Member | None,
    drained: frozenset[str],
    now_s: float,
    now_unix_s: float,
) -> dict[str, float]:
    """Shadows of a live endpoint that may get new flows -> the part of its full share that each may take."""
    slots = {}
    for shadow in own:
        healthy = fleet.is_up(shadow.name, False) and _installable(shadow) and shadow.name not in drained
        weight = weights.shadow_weight(shadow, healthy, service.shadows.warm_up_s, now_unix_s)
        weight = min(weight, fleet.lag.part(shadow, service.shadows.warm_up_s, now_s))
        if weight > 0:
            kept = before.slots.get(shadow.name) if before else None
            slots[shadow.name] = weights.fit_weight(weight, fleet.shadow_fitness(shadow, now_s), kept)
    if not slots and not fleet.is_up(endpoint.name, True):
        # Better one that drains or just warms up than a dead one; but none with data older than agreed.
        well = [s for s in own if fleet.is_up(s.name, False) and _installable(s)]
        slots = {s.name: 1.0 for s in well if fleet.lag.serves(s, now_s)}
    return slots


def _serving(
    fleet: Knowledge,
    slots: Mapping[str, Mapping[str, float]],
    draining: Collection[str],
    drained: Collection[str],
) -> dict[str, float]:
    """Live endpoint -> members of its group that serve new flows. Who drains is not counted on any more,
    unless nobody else is left."""
    out = {}
    for name, those in slots.items():
        staying = sum(weight for shadow, weight in those.items() if shadow not in draining)
        own = float(fleet.is_up(name, True) and name not in drained)
        out[name] = own + staying or float(len(those))
    return out


def _served(installed: model.Steering, names: Iterable[str]) -> dict[str, float]:
    """The same as it is installed."""
    out = {}
    for name in names:
        live = installed.members.get(name)
        if live is not None:
            staying = sum(
                weight
                for shadow, weight in live.slots.items()
                if shadow in installed.members and not installed.members[shadow].draining
            )
            out[name] = float(not live.down and not live.draining) + staying
    return out


def _losing(
    installed: model.Steering,
    fleet: Knowledge,
    slots: Mapping[str, Mapping[str, float]],
    draining: Collection[str],
    drained: Collection[str],
) -> frozenset[str]:
    """Live endpoints in whose group somebody gets no new flows now, or only its last ones, who did in the
    installed steering."""
    losing = set()
    for name, those in slots.items():
        live = installed.members.get(name)
        if live is None:
            continue
        there = [n for n in live.slots if n in installed.members and not installed.members[n].draining]
        is_out = name in drained or not fleet.is_up(name, True)
        leaves = is_out and not (live.down or live.draining)
        if leaves or any(n not in those or n in draining for n in there):
            losing.add(name)
    return frozenset(losing)


def _live(
    installed: model.Steering,
    fleet: Knowledge,
    service: model.Service,
    endpoint: model.Endpoint,
    slots: dict[str, float],
    high: float,
    drained: frozenset[str],
    frozen: bool,
    stale_s: float | None,
    part: float | None,
) -> Member:
    """:param high: demand that its group has to be ready for, flows/s; NaN: not known."""
    before = installed.members.get(endpoint.name)
    up = fleet.is_up(endpoint.name, True)
    live_usable = up and endpoint.name not in drained
    spill = before.spill if before else 0.0
    if not slots:
        spill = 0.0
    elif not live_usable:
        spill = 1.0
    elif frozen or (stale_s is not None and stale_s <= _BLIND_S):
        kept = {n: w for n, w in before.slots.items() if n in slots} if before else {}
        slots, spill = kept, spill if kept else 0.0
        if spill == 1.0:
            spill = weights.wanted_spill(0.0, None, len(kept), True)  # it was down; now it is back
    else:
        usable = sum(slots.values())
        if stale_s is not None:
            target = weights.wanted_spill(0.0, None, usable, True)
        else:
            target = weights.wanted_spill(high, endpoint.capacity, usable, True) if high == high else spill
            own = fleet.kept.get(endpoint.name, 1.0)
            if own < 1.0 or fleet.is_in_trouble(endpoint.name):  # its shadows take their whole share
                target = max(target, weights.wanted_spill(0.0, None, usable, True, own))
        if part is not None:
            spill = weights.warming_spill(target, part)
        else:
            spill = weights.step_spill(spill if spill < 1.0 else target, target)
    return Member(
        name=endpoint.name,
        service=service.name,
        address=endpoint.address,
        port=endpoint.port,
        role=Role.LIVE,
        down=not up,
        draining=endpoint.name in drained,
        spill=spill,
        slots=slots,
        limit=_limit(installed, service, endpoint, endpoint.name, part or 1.0, frozen),
    )


def _fitness(
    fleet: Knowledge,
    chosen: Mapping[str, model.Endpoint],
    slots: Mapping[str, Mapping[str, float]],
    now_s: float,
) -> Mapping[str, float] | None:
    """Of groups; None: each serves as much as it should.

    :param slots: of each its shadows, which take what it does not keep, in units of a whole one."""
    told = fleet.fitness(chosen, now_s)
    penalised = fleet.kept.keys() & chosen.keys()
    if not penalised:
        return told
    found = dict.fromkeys(chosen, 1.0) if told is None else dict(told)
    for name in penalised:
        helpers = sum(slots[name].values())
        # Who fails is idle: that is no room.
        found[name] = min(found[name], 1.0) * (fleet.kept[name] + helpers) / (1.0 + helpers)
    return found


def _ring(
    installed: model.Steering,
    fleet: Knowledge,
    service: model.Service,
    usable: Mapping[str, bool],
    drained: frozenset[str],
    serving: Mapping[str, float] | None,
    slots: Mapping[str, Mapping[str, float]],
    losing: frozenset[str],
    frozen: bool,
    changed_s: float,
    now_s: float,
) -> dict[str, float]:
    """Usable and not drained; else what is usable; else, fail open, all.

    :param serving: members of each one's group, where shares follow them: who is drained has shadows there.
    :param losing: live endpoints some of whose group have just left.
    """
    endpoints = {e.name: e for e in service.endpoints}
    helped = serving or {}
    choices = (
        {n: e for n, e in endpoints.items() if usable[n] and (n not in drained or helped.get(n))},
        {n: e for n, e in endpoints.items() if usable[n]},
        endpoints,
    )
    chosen = next((choice for choice in choices if choice), endpoints)
    if not any(usable.values()):
        wanted = weights.ring_weights(chosen)
    else:
        wanted = weights.ring_weights(chosen, serving, _fitness(fleet, chosen, slots, now_s))
    before = installed.services.get(service.name)
    current = dict(before.ring) if before else {}
    is_same = wanted.keys() == current.keys()
    as_was = is_same and (serving or {}) == _served(installed, serving or ())
    if as_was and fleet.awaits_usage(wanted, now_s):
        return current  # what it was by, before a restart, is read again soon
    if not is_same:
        current = weights.join_ring(current, wanted)
    if frozen:
        return current
    if weights.ring_is_due(current, wanted, changed_s, now_s):
        current = weights.step_ring(current, wanted, [name for name in fleet.kept if slots.get(name)])
    # A group that can serve less than a moment ago waits for no pause, and goes by no steps.
    return weights.reduce_ring(current, wanted, losing.union(fleet.newly_penalised) & wanted.keys())
