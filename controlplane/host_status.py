# SPDX-License-Identifier: Apache-2.0
"""What is known of hosts, for those who look: ``penumbra status`` and metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from controlplane import placement
from controlplane.model import Config, Host, Shadow
from controlplane.ports import Sample
from controlplane.roster import Roster
from controlplane.status import HostStatus, Status


def hosts(config: Config, roster: Roster, now_s: float, now_unix_s: float) -> tuple[HostStatus, ...]:
    """Those that may carry shadows, or do."""
    allowed = {name for service in config.services.values() for name in service.shadows.hosts}
    held: dict[str, list[Shadow]] = {}
    for shadow in roster.shadows.values():
        held.setdefault(shadow.host, []).append(shadow)
    return tuple(
        _of(config, roster, host, held.get(name, []), now_s, now_unix_s)
        for name, host in sorted(config.hosts.items())
        if name in allowed or name in held
    )


def _of(
    config: Config, roster: Roster, host: Host, there: list[Shadow], now_s: float, now_unix_s: float
) -> HostStatus:
    known = roster.hosts
    last, failing = known.last(host.name), known.lately(host.name, now_unix_s)
    is_read = (host.usage or config.host_usage) is not None
    unread = known.unread(host.name, now_s) if is_read else ""
    good = None if last is None or now_s - last.at_s > last.good_s else last
    avoided_s = known.avoided_s(host.name, now_unix_s)
    reasons = ["it is no host now"] if host.gone else []
    reasons += [f"runs failed: {failing.reason}"] if failing else []
    reasons += [unread] if unread and not host.gone else []
    return HostStatus(
        name=host.name,
        region=host.region,
        slots=host.slots,
        taken=len(there),
        price_per_hour=host.price_per_hour,
        cost_per_hour=round(len(there) * host.price_per_hour, 6),
        cpu=good.cpu if good else None,
        memory=good.memory if good else None,
        network=good.network if good else None,
        age_s=None if last is None else round(now_s - last.at_s, 1),
        failures=failing.runs if failing else 0,
        avoided_s=round(avoided_s, 1),
        gone=host.gone,
        reason="; ".join(reasons),
    )


def cost_per_hour(config: Config, shadows: Iterable[Shadow]) -> float:
    return round(placement.cost_per_hour(config, shadows), 6)


def samples(status: Status) -> Iterator[Sample]:
    yield Sample("shadows_cost_per_hour", {}, status.cost_per_hour)
    if status.budget_per_hour is not None:
        yield Sample("shadows_budget_per_hour", {}, status.budget_per_hour)
    for service in status.services:
        yield Sample("service_shadows_cost_per_hour", {"service": service.name}, service.cost_per_hour)
    for host in status.hosts:
        labels = {"host": host.name}
        values = {
            "host_slots": float(host.slots),
            "host_shadows": float(host.taken),
            "host_price_per_hour": host.price_per_hour,
            "host_cpu_utilization_ratio": host.cpu,
            "host_memory_utilization_ratio": host.memory,
            "host_network_utilization_ratio": host.network,
            "host_usage_age_seconds": host.age_s,
            "host_failed_runs": float(host.failures),
            "host_avoided_seconds": host.avoided_s,
        }
        yield from (Sample(name, labels, value) for name, value in values.items() if value is not None)
