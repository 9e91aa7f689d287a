# SPDX-License-Identifier: Apache-2.0
"""What is known of services, groups and shadows, for those who look: ``penumbra status`` and metrics."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from controlplane import groups, lag, model, usage, weights
from controlplane.fleet import Fleet
from controlplane.health import MemberHealth
from controlplane.novelty import Novelty
from controlplane.outlook import Outlook
from controlplane.roster import Roster
from controlplane.shadows import Members
from controlplane.status import (
    EjectionStatus,
    GroupStatus,
    LagStatus,
    NoveltyStatus,
    PoolStatus,
    ServiceStatus,
    ShadowStatus,
    UsageStatus,
    known,
)
from controlplane.turnover import earlier_s

_UNKNOWN = MemberHealth()
_STANDBY = "standby"
_SERVES = (model.ShadowState.WARMING, model.ShadowState.READY)


@dataclass(frozen=True, slots=True)
class Steered:
    """What new flows go by."""

    installed: model.Steering
    drained: frozenset[str]
    """Members that are to get none."""
    held: str
    """Why no weight moves; empty: they do."""

    def serves_on(self, name: str) -> bool:
        """A live endpoint that is drained, and gets new flows all the same: nobody else could take them."""
        if name not in self.drained:
            return False
        member = self.installed.members.get(name)
        service = self.installed.services.get(member.service) if member else None
        is_given = service is not None and service.ring.get(name, 0.0) > 0.0
        return is_given and member is not None and member.spill < 1.0


def services(
    fleet: Fleet, roster: Roster, steered: Steered, now_s: float, now_unix_s: float
) -> tuple[ServiceStatus, ...]:
    costs, reserve = roster.costs_per_hour(), roster.costs_per_hour(standbys_only=True)
    lives_s, causes = fleet.lives_s(), fleet.common_causes()
    installed, out = steered.installed, []
    for at, (name, view) in enumerate(fleet.views.items()):
        service, condition = view.service, fleet.loads.conditions.service(at)
        ring = installed.services[name].ring if name in installed.services else {}
        pool = _pool_status(fleet, view, roster, steered.drained, now_s) if view.is_pool else None
        groups = tuple(
            _group_status(
                fleet,
                view,
                endpoint,
                roster,
                steered,
                ring,
                pool,
                now_s,
                now_unix_s,
            )
            for endpoint in service.endpoints
        )
        out.append(
            ServiceStatus(
                name=name,
                vip=str(service.vip),
                port=service.port,
                protocol=service.protocol.name.lower(),
                lead_time_s=round(roster.lead_time_s(name), 3),
                lead_times_measured=roster.measured(name),
                flow_life_s=lives_s.get(name),
                earlier_s=round(earlier_s(lives_s.get(name)), 1),
                fail_open=fleet.fail_open.get(name, False),
                rate_deviation=round(condition.rate, 3),
                latency_deviation=round(condition.latency, 3),
                error_deviation=round(condition.errors, 3),
                deviation_reason=condition.reason,
                failing=condition.failing,
                common_cause=causes[name],
                groups=groups,
                pool=pool,
                novelty=_novelty_status(fleet.novelties.of(name), now_unix_s),
                cost_per_hour=costs.get(name, 0.0),
                standbys_cost_per_hour=reserve.get(name, 0.0),
            )
        )
    return tuple(out)


def _novelty_status(novelty: Novelty | None, now_unix_s: float) -> NoveltyStatus | None:
    if novelty is None:
        return None
    last = novelty.last
    return NoveltyStatus(
        score=None if novelty.score is None else round(novelty.score, 3),
        remarkable=novelty.news,
        reason=last.reason if last else "",
        last_score=round(last.score, 3) if last else None,
        age_s=round(now_unix_s - last.until_unix_s, 1) if last else None,
    )


def _pool_status(
    fleet: Fleet, view: Outlook, roster: Members, drained: Collection[str], now_s: float
) -> PoolStatus:
    loads, unit = fleet.loads, view.units[0]
    demand = float(loads.demand[[loads.index[name] for name in view.names]].sum())
    sized, seen = view.sized_together(demand), loads.pools.seen(view.service.name)
    high = np.nan if seen is None else seen.need
    usable = _usable(view, unit.capacity)
    verdict = fleet.verdicts.get(unit.key) or groups.at_rest(unit.name, usable, high, len(view.names))
    return PoolStatus(
        demand=known(demand),
        high=known(high),
        capacity=round((unit.capacity or 0.0) * _members_up(fleet, view, roster, drained, now_s), 3),
        p50=known(sized.p50),
        p90=known(sized.p90),
        sized=sized.wanted,
        standing=sized.standing,
        sized_reason=sized.reason,
        wanted=verdict.wanted,
        reason=verdict.reason,
    )


def _members_up(fleet: Fleet, view: Outlook, roster: Members, drained: Collection[str], now_s: float) -> int:
    """Of a pool, those that serve new flows: all that are up, where all are drained."""
    own = [s.name for n in view.names for s in roster.of(n) if s.state is model.ShadowState.READY]
    up = [name for name in view.names if fleet.is_up(name, True)]
    up += [name for name in own if fleet.serves(name, roster, now_s)]
    there = [name for name in up if name not in drained] or up
    return sum(not fleet.fails_outright(name) for name in there)


def _group_status(
    fleet: Fleet,
    view: Outlook,
    endpoint: model.Endpoint,
    roster: Roster,
    steered: Steered,
    ring: Mapping[str, float],
    pool: PoolStatus | None,
    now_s: float,
    now_unix_s: float,
) -> GroupStatus:
    loads, i = fleet.loads, fleet.loads.index[endpoint.name]
    condition = loads.conditions.group(i)
    low, high = (ends.item() for ends in fleet.capacities.bounds(np.array([i])))
    health = fleet.health.get(endpoint.name, _UNKNOWN)
    sized = view.sized(loads, i)
    verdict = fleet.verdicts.get(endpoint.name) or groups.at_rest(
        endpoint.name, _usable(view, fleet.capacity(i)), fleet.high(endpoint)
    )
    if pool is not None:
        verdict = _in_pool(view.service.name, pool, roster.of(endpoint.name))
    member = steered.installed.members.get(endpoint.name)
    return GroupStatus(
        name=endpoint.name,
        up=False if endpoint.name in fleet.use.usages.down | fleet.ejections.held else health.up,
        drained=endpoint.name in steered.drained,
        serves_on=steered.serves_on(endpoint.name),
        capacity=fleet.capacity(i),
        capacity_from=fleet.capacities.source(i),
        capacity_low=known(low),
        capacity_high=known(high),
        capacity_contradicted=fleet.capacities.contradicted(i),
        saturated=bool(fleet.capacities.saturated[i]),
        proven=known(fleet.capacities.proven(i)) or None,
        demand=known(loads.demand[i]),
        level=known(loads.prediction.level[i]),
        point=known(loads.prediction.point[i]),
        high=known(loads.prediction.high[i]),
        horizon_s=round(float(loads.prediction.horizon_s[i]), 3),
        spill=member.spill if member else 0.0,
        ring_weight=ring.get(endpoint.name, 0.0),
        penalty=round(1.0 - fleet.kept.get(endpoint.name, 1.0), 3),
        rtt_us=known(loads.rtt_us[i]),
        rate_deviation=round(condition.rate, 3),
        latency_deviation=round(condition.latency, 3),
        error_deviation=round(condition.errors, 3),
        deviation_reason=condition.reason,
        failing=condition.failing,
        p50=known(sized.p50),
        p90=known(sized.p90),
        sized=sized.wanted,
        standing=sized.standing,
        sized_reason=sized.reason,
        wanted=verdict.wanted,
        reason=verdict.reason,
        health_reason=health.reason,
        shadows=tuple(
            _shadow_status(fleet, view, one, steered, now_s, now_unix_s)
            for one in (*roster.of(endpoint.name), *roster.standbys(endpoint.name))
        ),
        standby_lacks=roster.lacking_standbys.get(endpoint.name, ""),
        requests=fleet.responses.status(endpoint.name),
        usage=_usage_status(fleet, endpoint.name, now_s),
        ejection=_ejection_status(fleet, endpoint.name, now_s),
    )


def _ejection_status(fleet: Fleet, name: str, now_s: float) -> EjectionStatus | None:
    known, now = fleet.health.get(name), fleet.ejections
    if known is None or not (known.outages.flaps or name in now.failing or name in now.waiting):
        return None
    if not (fails := name in now.failing or name in now.waiting) and known.is_forgotten(now_s):
        return None
    held_s = known.held_s(now_s) if name in now.held else 0.0
    reason = f"fails: {known.reason}" if fails else ""
    if name in now.waiting:
        reason += "; not ejected, as max_ejected allows no more"
    if held_s:
        reason = f"held down for {held_s:.0f} s more, after it went down {known.outages.flaps} times"
    return EjectionStatus(
        ejected=name in now.failing or name in now.held,
        not_ejected=name in now.waiting,
        held_s=round(held_s, 1),
        flaps=known.outages.flaps,
        reason=reason,
    )


def _usage_status(fleet: Fleet, name: str, now_s: float) -> UsageStatus | None:
    last = fleet.use.usages.last(name)
    if last is None:
        return None
    good = fleet.use.usages.at(name, now_s)
    numbers = (None,) * 4 if good is None else (good.cpu, good.memory, good.network, good.weight)
    return UsageStatus(
        *numbers,
        asks=usage.asks(last),
        age_s=round(now_s - last.at_s, 1),
        strength=known(fleet.use.balance.strength(name, now_s)),
    )


def _shadow_status(
    fleet: Fleet,
    view: Outlook,
    shadow: model.Shadow,
    steered: Steered,
    now_s: float,
    now_unix_s: float,
) -> ShadowStatus:
    up = fleet.is_up(shadow.name, False) and shadow.name not in fleet.ejections.waiting
    parent = steered.installed.members.get(shadow.parent)
    waits = (
        up and shadow.state in _SERVES and not shadow.standby and not (parent and shadow.name in parent.slots)
    )
    held = f"; no new flows go to it: {steered.held}" if steered.held and waits else ""
    part = fleet.lag.part(shadow, view.service.shadows.warm_up_s, now_s)
    if up and shadow.state is model.ShadowState.READY and not part:
        held = f"; no new flows go to it: {fleet.lag.why(shadow, now_s)}"
    return ShadowStatus(
        name=shadow.name,
        state=_STANDBY if shadow.standby and shadow.state is model.ShadowState.READY else shadow.state.value,
        host=shadow.host,
        address=str(shadow.address) if shadow.address else None,
        port=shadow.port,
        up=up,
        by_hand=shadow.by_hand,
        age_s=round(now_unix_s - shadow.requested_unix_s, 1),
        attempts=shadow.attempts,
        reason=shadow.reason + held,
        placed=shadow.placed,
        weight=min(part, weights.shadow_weight(shadow, up, view.service.shadows.warm_up_s, now_unix_s)),
        evicted=shadow.evicted,
        served=known(fleet.shadow_rates.get(shadow.name, (np.nan, np.nan))[0]),
        requests=fleet.responses.status(shadow.name),
        usage=_usage_status(fleet, shadow.name, now_s),
        id=shadow.id,
        lag=_lag_status(fleet.lag, shadow, now_s),
        ejection=_ejection_status(fleet, shadow.name, now_s),
    )


def _lag_status(gates: lag.Gates, shadow: model.Shadow, now_s: float) -> LagStatus | None:
    found = gates.of(shadow.name)
    if found is None:
        return None
    sync, gate = found
    return LagStatus(
        seconds=known(lag.oldest_s(gate.last, now_s)) if gate.last else None,
        bytes=gate.last.lag_bytes if gate.last else None,
        max_seconds=sync.max_lag_s,
        max_bytes=sync.max_lag_bytes,
        on_lag=sync.on_lag.value,
        is_open=gates.serves(shadow, now_s),
        reason=gates.why(shadow, now_s) or gates.stopped(shadow),
        age_s=round(now_s - gate.last.at_s, 1) if gate.last else None,
    )


def _usable(view: Outlook, capacity: float | None) -> float | None:
    return None if capacity is None else capacity * (1.0 - view.service.shadows.headroom)


def _in_pool(service: str, pool: PoolStatus, own: Sequence[model.Shadow]) -> groups.Verdict:
    """Of one group: its members are decided about together with those of the others."""
    leaving = (model.ShadowState.DRAINING, model.ShadowState.REMOVING)
    here = 1 + sum(shadow.state not in leaving for shadow in own)
    why = pool.reason.removeprefix(f"{service}: ")
    said = f"{here} of {groups.members_of(pool.wanted)} of {service}, sized together: {why}"
    return groups.Verdict(groups.Act.HOLD, said, None, here)
