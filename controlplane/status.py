# SPDX-License-Identifier: Apache-2.0
"""What the controller says of itself, for ``penumbra status`` and metrics."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from controlplane.model import Interface, ShadowState
from controlplane.ports import Sample

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


@dataclass(frozen=True, slots=True)
class RequestStatus:
    """Of one member. None: not known, or no request was timed lately."""

    started: int
    """Since the maps were made, as the next two."""
    answered: int
    aborted: int
    per_s: float | None
    """Started."""
    aborted_per_s: float | None
    in_flight: int
    p50_ms: float | None
    """From the request to the first byte of its answer, seen at the access point."""
    p99_ms: float | None


@dataclass(frozen=True, slots=True)
class UsageStatus:
    """Of one member: what it uses of what it may use, 0..1. None: not told, or too long ago to act on."""

    cpu: float | None
    memory: float | None
    network: float | None
    weight: float | None
    """Share of its usual weight that its agent asks for."""
    asks: str
    """What else its agent asked for and did not take back; empty: nothing."""
    age_s: float
    """Of the last reading."""
    strength: float | None
    """New flows/s that it can serve, as its use tells; None: not known."""


@dataclass(frozen=True, slots=True)
class LagStatus:
    """Of one shadow's data. None: not known."""

    seconds: float | None
    """So old may it be now."""
    bytes: int | None
    """So much did it lack when that was read last."""
    max_seconds: float | None
    """What is agreed; None: it is agreed in bytes."""
    max_bytes: int | None
    on_lag: str
    is_open: bool
    """New flows may go to it, as far as its data goes."""
    reason: str
    """Why not, or why nothing newer comes and they soon may not; empty: all is well."""
    age_s: float | None
    """Of the last reading."""


@dataclass(frozen=True, slots=True)
class EjectionStatus:
    """Of a member that fails its probes, or did lately."""

    ejected: bool
    """It gets no packets for it."""
    not_ejected: bool
    """It fails and gets packets all the same: as many as ``max_ejected`` allows are ejected already."""
    held_s: float
    """How long it is still held down though it is well, unless it is needed."""
    flaps: int
    """How often it went down lately."""
    reason: str
    """In words; empty: it is well."""


@dataclass(frozen=True, slots=True)
class ShadowStatus:
    name: str
    state: str
    host: str
    address: str | None
    port: int | None
    up: bool
    by_hand: bool
    age_s: float
    attempts: int
    reason: str
    """Of its state, and why it gets no new flows though it could serve."""
    placed: str
    """Why it is on its host."""
    weight: float
    """Its share of the slots' weights, 0..1 of a full shadow."""
    evicted: float
    """Of its flows, past the drain's deadline: the share that others have."""
    served: float | None
    """Flows per second that it is given."""
    ejection: EjectionStatus | None = None
    """None: it is well and has been, as far as is known."""
    requests: RequestStatus | None = None
    """None: off."""
    usage: UsageStatus | None = None
    """None: it was not read."""
    id: str = ""
    """As its label has it, wherever it is looked for."""
    lag: LagStatus | None = None
    """None: it serves no copy of data."""


@dataclass(frozen=True, slots=True)
class GroupStatus:
    """A live endpoint with its shadows; rates are completed new flows per second, None: not known."""

    name: str
    up: bool | None
    drained: bool
    """It is to get no new flows, by command or by its agent's word."""
    serves_on: bool
    """It is drained, and gets them all the same: nobody else could take them."""
    capacity: float | None
    """That is gone by, as the next ones of a member; None: not known."""
    capacity_from: str
    """``given``, ``learned`` or ``unknown``; what is given and was seen not to suffice is learned too."""
    capacity_low: float | None
    """What was measured is between these; None: nothing was, or there is no upper end yet."""
    capacity_high: float | None
    capacity_contradicted: bool
    """What is given is not what was measured."""
    saturated: bool
    """Clearly slower than it was, and what it does no longer follows what it is asked for."""
    proven: float | None
    """Flows/s that it was seen to serve alone without slowing down much; None: none were."""
    demand: float | None
    """Last reading."""
    level: float | None
    point: float | None
    high: float | None
    horizon_s: float
    spill: float
    ring_weight: float
    penalty: float
    """The part of its usual share of new flows that it loses while it is slow or failing, 0..1."""
    rtt_us: float | None
    rate_deviation: float
    """How far it is from what is normal, 0..1; 0.5 is remarkable."""
    latency_deviation: float
    error_deviation: float
    deviation_reason: str
    """In words and numbers; empty when all is normal."""
    failing: bool
    """Nothing is learned of this time: members fail, or many clients connect anew."""
    p50: float | None
    """Quantiles of demand a lead time from now, foreseen step by step."""
    p90: float | None
    sized: int
    """Members that pay in the long run."""
    standing: int
    """Of them, those that stand by for more than the p90."""
    sized_reason: str
    wanted: int
    reason: str
    health_reason: str
    standby_lacks: str = ""
    """Why fewer stand by than are to; empty: as many do, or will."""
    shadows: tuple[ShadowStatus, ...] = ()
    requests: RequestStatus | None = None
    """Those that the live endpoint itself serves; None: off."""
    usage: UsageStatus | None = None
    """The live endpoint's own; None: it was not read."""
    ejection: EjectionStatus | None = None
    """As of shadows."""


@dataclass(frozen=True, slots=True)
class PoolStatus:
    """A service's groups, where they are decided about together. Rates as in ``GroupStatus``."""

    demand: float | None
    high: float | None
    capacity: float
    """Of those that serve."""
    p50: float | None
    p90: float | None
    sized: int
    """Members that pay in the long run, the live ones included; may be fewer than are live."""
    standing: int
    sized_reason: str
    wanted: int
    reason: str


@dataclass(frozen=True, slots=True)
class NoveltyStatus:
    """How new a service's request rate is to it, step by step, as ``penumbra detect`` scores series."""

    score: float | None
    """Of the last step, 0..1; 0.5 is remarkable. None: it was not read, or its past is not judged yet."""
    remarkable: int
    """Steps that were, since the start."""
    reason: str
    """Of the last one that was, as the next; empty: none was."""
    last_score: float | None
    age_s: float | None
    """Since it ended."""


@dataclass(frozen=True, slots=True)
class ServiceStatus:
    name: str
    vip: str
    port: int
    protocol: str
    lead_time_s: float
    lead_times_measured: int
    flow_life_s: float | None
    """Mean life of its flows."""
    earlier_s: float
    """By so much shadows are ordered earlier, as only new flows can be moved."""
    fail_open: bool
    """No member may serve: packets go to all of them but shadows whose data may be too old."""
    rate_deviation: float = 0.0
    """As of groups, as the following four; of all of them together."""
    latency_deviation: float = 0.0
    error_deviation: float = 0.0
    deviation_reason: str = ""
    failing: bool = False
    common_cause: str = ""
    """Of what several groups have at once, in words and numbers; empty: nothing."""
    groups: tuple[GroupStatus, ...] = ()
    pool: PoolStatus | None = None
    """None: each group is decided about on its own."""
    novelty: NoveltyStatus | None = None
    """None: it is not foreseen, so there are no steps."""
    cost_per_hour: float = 0.0
    """Of its shadows, by the prices of their hosts."""
    standbys_cost_per_hour: float = 0.0
    """Of those of them that stand by."""


@dataclass(frozen=True, slots=True)
class InterfaceTraffic:
    """Packets that came in by an interface, and what became of frames that were to leave by it."""

    name: str
    received: int
    forwarded: int
    passed: int
    dropped: int
    sent: int | None
    """This and the following: None where the kernel does not tell."""
    lost: int | None
    refused: int | None
    error: str
    """Of the last frame that was lost or refused."""


@dataclass(frozen=True, slots=True)
class HostStatus:
    """Shares are 0..1 of what it has; None: not told, or too long ago to act on."""

    name: str
    region: str
    slots: int
    taken: int
    """Slots."""
    price_per_hour: float
    cost_per_hour: float
    """Of the shadows there."""
    cpu: float | None
    memory: float | None
    network: float | None
    age_s: float | None
    """Of the last reading; None: it was not read."""
    failures: int
    """Runs that failed there since the last that did not."""
    avoided_s: float
    """So long it is, for them."""
    gone: bool
    reason: str
    """Why it gets no new shadows, or why runs failed; empty: it can carry some."""


@dataclass(frozen=True, slots=True)
class Status:
    instance: str
    at_unix_s: float
    mode: str
    frozen: bool
    fresh: bool
    """Counters are being read; else weights are frozen and nothing is removed."""
    tick_s: float
    """How long the last tick took."""
    overruns: int
    steps: int
    """Steps applied since the start."""
    troubles: dict[str, str] = field(default_factory=dict)
    """What does not work: part -> why."""
    interfaces: tuple[Interface, ...] = ()
    traffic: tuple[InterfaceTraffic, ...] = ()
    bypassed: tuple[str, ...] = ()
    """Members whose replies bypass the access point."""
    services: tuple[ServiceStatus, ...] = ()
    hosts: tuple[HostStatus, ...] = ()
    cost_per_hour: float = 0.0
    """Of all shadows, by the prices of their hosts."""
    budget_per_hour: float | None = None

    def to_json(self) -> str:
        """Thousands of groups a second: not by asdict, which copies every one of their values first."""
        return json.dumps(self, default=_fields)


def _fields(value: object) -> dict[str, object]:
    if not is_dataclass(value):
        raise TypeError(f"{type(value).__name__} has no JSON form")
    return {one.name: getattr(value, one.name) for one in fields(value)}


def parsed(text: str) -> dict[str, Any]:
    """What ``to_json`` wrote, as plain values. ValueError: it is damaged, or another version's."""
    try:
        found = json.loads(text)
        whole = _has(found, Status)
        for service in found["services"]:
            whole &= _has(service, ServiceStatus)
            for group in service["groups"]:
                whole &= _has(group, GroupStatus) and all(_has(one, ShadowStatus) for one in group["shadows"])
    except (TypeError, KeyError, AttributeError) as error:
        raise ValueError("no status") from error
    if not whole:
        raise ValueError("no status, or one of another version")
    return dict(found)


def _has(value: Mapping[str, object], kind: type[DataclassInstance]) -> bool:
    return value.keys() >= {one.name for one in fields(kind)}


def known(value: float) -> float | None:
    return round(float(value), 3) if math.isfinite(value) else None


def all_known(values: npt.NDArray[np.float64]) -> list[float | None]:
    return [value if math.isfinite(value) else None for value in np.round(values, 3).tolist()]


def samples(status: Status) -> list[Sample]:
    """The status as metrics."""
    out = [
        Sample("up", {}, 1.0),
        Sample("frozen", {}, float(status.frozen)),
        Sample("readings_fresh", {}, float(status.fresh)),
        Sample("tick_seconds", {}, status.tick_s),
        Sample("tick_overruns_total", {}, float(status.overruns), counter=True),
        Sample("steps_total", {}, float(status.steps), counter=True),
        Sample("troubles", {}, float(len(status.troubles))),
    ]
    for one in status.interfaces:
        out.append(Sample("interface_steered", {"interface": one.name}, float(one.steered)))
        out.append(Sample("xdp_native", {"interface": one.name}, float(one.native)))
    for service in status.services:
        labels = {"service": service.name}
        out.append(Sample("lead_time_seconds", labels, service.lead_time_s))
        out.append(Sample("ordered_earlier_seconds", labels, service.earlier_s))
        if service.flow_life_s is not None:
            out.append(Sample("flow_life_seconds", labels, service.flow_life_s))
        out.append(Sample("fail_open", labels, float(service.fail_open)))
        if service.pool is not None:
            out.extend(_pool_samples(service.pool, labels))
        out.append(Sample("service_rate_deviation", labels, service.rate_deviation))
        out.append(Sample("service_latency_deviation", labels, service.latency_deviation))
        out.append(Sample("service_error_deviation", labels, service.error_deviation))
        out.append(Sample("service_failing", labels, float(service.failing)))
        if service.novelty is not None:
            out.extend(_novelty_samples(service.novelty, labels))
        out.append(Sample("common_cause", labels, float(bool(service.common_cause))))
        for group in service.groups:
            out.extend(_group_samples(group, labels | {"endpoint": group.name}))
    return out


def _novelty_samples(novelty: NoveltyStatus, labels: dict[str, str]) -> Iterator[Sample]:
    if novelty.score is not None:
        yield Sample("service_rate_novelty", labels, novelty.score)
    yield Sample("service_novel_steps_total", labels, float(novelty.remarkable), counter=True)


def _pool_samples(pool: PoolStatus, labels: dict[str, str]) -> Iterator[Sample]:
    values = {
        "pool_demand_flows_per_second": pool.demand,
        "pool_forecast_high_flows_per_second": pool.high,
        "pool_capacity_flows_per_second": pool.capacity,
        "pool_forecast_p50_flows_per_second": pool.p50,
        "pool_forecast_p90_flows_per_second": pool.p90,
        "pool_members_sized": float(pool.sized),
        "pool_members_standing": float(pool.standing),
        "pool_members_wanted": float(pool.wanted),
    }
    yield from (Sample(name, labels, value) for name, value in values.items() if value is not None)


def _group_samples(group: GroupStatus, labels: dict[str, str]) -> Iterator[Sample]:
    values = {
        "demand_flows_per_second": group.demand,
        "demand_level_flows_per_second": group.level,
        "forecast_flows_per_second": group.point,
        "forecast_high_flows_per_second": group.high,
        "capacity_flows_per_second": group.capacity,
        "capacity_low_flows_per_second": group.capacity_low,
        "capacity_high_flows_per_second": group.capacity_high,
        "capacity_contradicted": float(group.capacity_contradicted),
        "saturated": float(group.saturated),
        "spill_ratio": group.spill,
        "ring_weight": group.ring_weight,
        "penalty_ratio": group.penalty,
        "rtt_seconds": None if group.rtt_us is None else group.rtt_us / 1e6,
        "endpoint_healthy": None if group.up is None else float(group.up),
        "endpoint_serves_on": float(group.serves_on) if group.drained else None,
        "rate_deviation": group.rate_deviation,
        "latency_deviation": group.latency_deviation,
        "error_deviation": group.error_deviation,
        "forecast_p50_flows_per_second": group.p50,
        "forecast_p90_flows_per_second": group.p90,
        "members_sized": float(group.sized),
        "members_standing": float(group.standing),
        "members_wanted": float(group.wanted),
    }
    yield from (Sample(name, labels, value) for name, value in values.items() if value is not None)
    counts: dict[str, int] = {}
    for shadow in group.shadows:
        counts[shadow.state] = counts.get(shadow.state, 0) + 1
    yield from (Sample("shadows", labels | {"state": s}, float(n)) for s, n in counts.items())
    of_members = {group.name: group.requests} | {shadow.name: shadow.requests for shadow in group.shadows}
    for name, requests in of_members.items():
        if requests is not None:
            yield from _request_samples(requests, labels | {"endpoint": name})
    ejections = {group.name: group.ejection} | {shadow.name: shadow.ejection for shadow in group.shadows}
    for name, ejection in ejections.items():
        if ejection is not None:
            yield from _ejection_samples(ejection, labels | {"endpoint": name})
    used_by = {group.name: group.usage} | {shadow.name: shadow.usage for shadow in group.shadows}
    for name, usage in used_by.items():
        if usage is not None:
            yield from _usage_samples(usage, labels | {"endpoint": name})
    for shadow in group.shadows:
        if shadow.lag is not None:
            yield from _lag_samples(shadow.lag, labels | {"shadow": shadow.name})
        if shadow.state == ShadowState.FAILED.value:
            why = {"shadow": shadow.name, "reason": shadow.reason}
            yield Sample("shadow_failed_attempts", labels | why, float(shadow.attempts))


def _lag_samples(lag: LagStatus, labels: dict[str, str]) -> Iterator[Sample]:
    values = {
        "shadow_lag_seconds": lag.seconds,
        "shadow_lag_bytes": lag.bytes,
        "shadow_max_lag_seconds": lag.max_seconds,
        "shadow_max_lag_bytes": lag.max_bytes,
        "shadow_lag_ok": float(lag.is_open),
    }
    yield from (Sample(name, labels, float(value)) for name, value in values.items() if value is not None)


def _request_samples(requests: RequestStatus, labels: dict[str, str]) -> Iterator[Sample]:
    yield Sample("endpoint_requests_in_flight", labels, float(requests.in_flight))
    if requests.per_s is not None:
        yield Sample("endpoint_requests_per_second", labels, requests.per_s)
    for quantile, value_ms in (("0.5", requests.p50_ms), ("0.99", requests.p99_ms)):
        if value_ms is not None:
            yield Sample("endpoint_response_seconds", labels | {"quantile": quantile}, value_ms / 1000)


def _ejection_samples(ejection: EjectionStatus, labels: dict[str, str]) -> Iterator[Sample]:
    yield Sample("endpoint_ejected", labels, float(ejection.ejected))
    yield Sample("endpoint_not_ejected", labels, float(ejection.not_ejected))
    yield Sample("endpoint_held_seconds", labels, ejection.held_s)
    yield Sample("endpoint_flaps", labels, float(ejection.flaps))


def _usage_samples(usage: UsageStatus, labels: dict[str, str]) -> Iterator[Sample]:
    values = {
        "endpoint_cpu_utilization_ratio": usage.cpu,
        "endpoint_memory_utilization_ratio": usage.memory,
        "endpoint_network_utilization_ratio": usage.network,
        "endpoint_agent_weight_ratio": usage.weight,
        "endpoint_strength_flows_per_second": usage.strength,
    }
    yield from (Sample(name, labels, value) for name, value in values.items() if value is not None)
