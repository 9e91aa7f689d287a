# SPDX-License-Identifier: Apache-2.0
"""``penumbra maps``: what the BPF maps hold, read without disturbing them; no controller is needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from controlplane import model, tally
from controlplane.adapters.clock import MachineClock
from controlplane.adapters.dataplane import MapDataplane
from controlplane.cli import instance as instances
from controlplane.cli import output
from controlplane.cli.options import AsJsonLines, InstanceName
from controlplane.ports import InterfaceCounts

app = typer.Typer(help="What the BPF maps hold.", no_args_is_help=True, rich_markup_mode=None)

COUNTS = (
    "packets", "bytes", "return_packets", "return_bytes", "flows", "offered", "completed", "spilled",
    "midstream", "unremembered", "resets", "fins", "rtt_count", "limited",
    "requests", "answered", "aborted", "response_count",
)  # fmt: skip


INTERFACE_COUNTS = ("received", "forwarded", "passed", "dropped", "sent", "lost", "refused", "error")


@contextmanager
def _opened(instance: str | None) -> Iterator[MapDataplane]:
    """The maps alone are enough: no record, no store, no controller."""
    dataplane = MapDataplane.open(instances.only(instance), MachineClock())
    try:
        yield dataplane
    finally:
        dataplane.close()


@app.command()
def services(instance: InstanceName = None, as_json: AsJsonLines = False) -> None:
    """Services: VIP, ring, and the weights of the live endpoints in it.

    Example: penumbra maps services
    """
    with _opened(instance) as dataplane:
        found = dataplane.installed().services.values()
    rows = (
        {
            "service": one.name,
            "vip": one.vip,
            "port": one.port,
            "protocol": one.protocol.name.lower(),
            "on_down": one.on_down,
            "affinity": one.affinity,
            "requests": one.requests,
            "request_sample": one.request_sample,
            "ring_size": one.ring_size,
            "ring": dict(one.ring),
        }
        for one in found
    )
    columns = ("service", "vip", "port", "protocol", "on_down", "affinity", "requests", "request_sample")
    output.rows((*columns, "ring_size", "ring"), rows, as_json)


@app.command()
def endpoints(instance: InstanceName = None, as_json: AsJsonLines = False) -> None:
    """Endpoints, live and shadow: where they are, whether they are down or drain, how much spills, and past
    how many new flows in 100 ms the rest does too (0: no limit); how long they took since the maps were made,
    for handshakes (rtt) and for an answer's first byte (response).

    Example: penumbra maps endpoints --json
    """
    with _opened(instance) as dataplane:
        found = dataplane.installed().members.values()
        times = dataplane.quantiles_ms((0.5, 0.99))
    rows = (
        {
            "endpoint": one.name,
            "service": one.service,
            "role": one.role.name.lower(),
            "address": one.address,
            "port": one.port,
            "parent": one.parent,
            "down": one.down,
            "draining": one.draining,
            "evicted": one.evicted,
            "spill": one.spill,
            "limit": one.limit,
            "rtt_p50_ms": times[one.name][0][0],
            "rtt_p99_ms": times[one.name][0][1],
            "response_p50_ms": times[one.name][1][0],
            "response_p99_ms": times[one.name][1][1],
        }
        for one in found
    )
    columns = ("endpoint", "service", "role", "address", "port", "parent", "down", "draining", "spill")
    times_ms = ("rtt_p50_ms", "rtt_p99_ms", "response_p50_ms", "response_p99_ms")
    output.rows((*columns, "limit", *times_ms), rows, as_json)


@app.command()
def shadows(instance: InstanceName = None, as_json: AsJsonLines = False) -> None:
    """The shadow table: for each live endpoint that has one, its spill and who gets which share of it.

    Example: penumbra maps shadows
    """
    with _opened(instance) as dataplane:
        found = dataplane.installed().members.values()
    rows = (
        {"endpoint": one.name, "spill": one.spill, "shadow": name, "share": weight / sum(one.slots.values())}
        for one in found
        if one.role is model.Role.LIVE
        for name, weight in one.slots.items()
    )
    output.rows(("endpoint", "spill", "shadow", "share"), rows, as_json)


@app.command()
def flows(
    instance: InstanceName = None,
    as_json: AsJsonLines = False,
    limit: Annotated[int, typer.Option(min=1, help="at most so many, the most recent first")] = 1000,
) -> None:
    """The flow cache: which endpoint each client's flow was given.

    Example: penumbra maps flows --limit 20
    """
    with _opened(instance) as dataplane:
        if as_json:  # a table of thousands is for nobody, but programs take millions
            _told_if_cut(output.write(dataplane.flow_lines(limit)), limit)
            return
        found = dataplane.flows(limit)
    columns = ("client", "client_port", "service", "endpoint", "state", "idle_s")
    output.rows(columns, ({name: getattr(one, name) for name in columns} for one in found), as_json=False)
    _told_if_cut(len(found), limit)


def _told_if_cut(listed: int, limit: int) -> None:
    if listed >= limit:
        output.warn(f"there may be more: these are the {limit} most recent; --limit takes another number")


@app.command()
def counters(instance: InstanceName = None, as_json: AsJsonLines = False) -> None:
    """Counters since the maps were made: per endpoint, their sums per service; per interface what came in by
    it and what became of frames that were to leave by it; and packets by why they left as they did.

    With --json a line has one of the keys "endpoint", "service", "interface", "reason".

    Example: penumbra maps counters
    """
    with _opened(instance) as dataplane:
        found = dataplane.counters()
        services = {name: one.service for name, one in dataplane.installed().members.items()}
        interfaces = dataplane.interface_counts()
    per_endpoint = [
        {"endpoint": name, **{count: int(getattr(found, count)[row]) for count in COUNTS}}
        for name, row in found.rows.items()
    ]
    per_service = [{"service": name, **sums} for name, sums in tally.by_service(found, services).items()]
    per_interface = [_interface(one) for one in interfaces]
    names = [one.name for one in interfaces]
    per_reason = []
    for reason in interfaces[0].reasons:
        packets = {one.name: one.reasons[reason] for one in interfaces}
        of = packets if not as_json else {"interfaces": packets}
        per_reason.append({"reason": reason, "packets": sum(packets.values()), **of})
    for columns, rows in (
        (("endpoint", *COUNTS), per_endpoint),
        (("service", *tally.COUNTS), per_service),
        (("interface", *INTERFACE_COUNTS), per_interface),
        (("reason", "packets", *names), per_reason),
    ):
        output.rows(columns, rows, as_json)
        if not as_json:
            output.say("")


def _interface(one: InterfaceCounts) -> dict[str, object]:
    ends = one.redirects
    return {
        "interface": one.name,
        **{count: getattr(one, count) for count in ("received", "forwarded", "passed", "dropped")},
        **{count: getattr(ends, count) if ends else None for count in ("sent", "lost", "refused", "error")},
    }


@app.command()
def events(instance: InstanceName = None, as_json: AsJsonLines = False) -> None:
    """Events that the controller has not taken yet: redirected, no shadow available, endpoint down, limited.

    Example: penumbra maps events --json
    """
    with _opened(instance) as dataplane:
        found = dataplane.peek_events()
    rows = (
        {
            "at_s": one.at_s,
            "event": one.kind.name.lower(),
            "service": one.service,
            "endpoint": one.endpoint,
            "chosen": one.chosen,
            "client": one.client,
        }
        for one in found
    )
    output.rows(("at_s", "event", "service", "endpoint", "chosen", "client"), rows, as_json)
