# SPDX-License-Identifier: Apache-2.0
"""``ports.Dataplane`` on the pinned maps of an instance.

Several processes may have one open at once. What is remembered here is never believed unseen:
who is where is looked up in the maps, and whoever writes holds the instance's lock.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from ipaddress import ip_network

import numpy as np
import numpy.typing as npt

from controlplane import histogram, model
from controlplane.adapters import (
    attach,
    devices,
    flow_lines,
    flow_table,
    gateways,
    install,
    layout,
    libbpf,
    netlink,
    next_hops,
    pins,
    readings,
    redirects,
    route_mtus,
    steering,
)
from controlplane.adapters.event_ring import EventRing
from controlplane.adapters.flow_table import FlowRow
from controlplane.adapters.libbpf import XdpMode
from controlplane.adapters.maps import Maps, open_instance
from controlplane.adapters.read_back import ReadBack
from controlplane.addresses import Address, Network, with_port
from controlplane.ports import Clock, Counters, DataplaneError, InterfaceCounts

Quantiles = list[float | None]


class MapDataplane:
    """Close it when done; the program and its maps stay."""

    def __init__(self, maps: Maps, clock: Clock) -> None:
        self._maps = maps
        self._clock = clock
        self._events = EventRing(maps.events)
        self._folder = pins.folder(maps.instance)
        self._folder_inode = self._folder.stat().st_ino
        self._read_back = ReadBack(maps)
        self._gateways_due = 0

    @classmethod
    def open(cls, instance: str, clock: Clock) -> MapDataplane:
        """Opens a loaded instance, without a compiler. DataplaneError says what is wrong and what to do."""
        return cls(open_instance(instance), clock)

    def close(self) -> None:
        self._maps.close()

    # ---- steering ----

    def installed(self) -> model.Steering:
        """What is installed now. Shares and weights that this process set come back exactly as it asked,
        as long as the maps hold what they round to."""
        return self._read_back.installed()

    def apply(self, step: model.Step) -> None:
        with self._writing():
            install.apply(self._maps, step, self._tick())
        self._read_back.asked(step)

    def own_addresses(self) -> Collection[Address]:
        return netlink.local_addresses()

    def set_direct(self, prefixes: Collection[Network]) -> None:
        own = {ip_network(address) for address in netlink.local_addresses()}
        with self._writing():
            wanted = {
                layout.prefix(network): (layout.DIRECT_OWN if network in own else 1).to_bytes(4, "little")
                for network in {*prefixes, *own}
            }
            room = layout.direct_prefixes(self._maps.sizes.endpoints)
            if len(wanted) > room:
                raise DataplaneError(f"{len(wanted)} direct prefixes, {room} fit: join neighbouring ones")
            gateways.cover(self._maps, {*prefixes, *own})
            libbpf.map_hold(self._maps.direct, layout.PREFIX, layout.INDEX, wanted)
            install.mark_own_sources(self._maps)

    def renew_hops(self) -> None:
        """Renews the next hops that are missing or about to expire, and has the kernel resolve their
        neighbours; also frees the indices of members that were removed long enough ago.

        Where the kernel had better decide (see ``netlink.Routing.hop``) there is none.
        """
        maps, now = self._maps, self._tick()
        due = next_hops.due(maps, now)
        gateways_due = now >= self._gateways_due
        rested = bool(maps.endpoint_labels["removed_tick"].any())
        if not due.size and not rested and not gateways_due:
            return
        routing = netlink.routing()
        with self._writing():
            install.reap(maps, now)
            interfaces = devices.attached(maps)
            devices.write(maps, interfaces, routing)
            expires = now + layout.ticks(next_hops.LIFE_S)
            route_mtus.renew(maps, routing)
            hops = gateways.renew(maps, routing, interfaces, expires)
            self._gateways_due = expires - layout.ticks(next_hops.RENEW_S)
            unmanaged = [hop for hop in hops if not hop.managed]
            unmanaged += next_hops.renew(maps, next_hops.due(maps, now), routing, interfaces, now)
        if unmanaged:
            netlink.manage_neighbours(unmanaged)

    # ---- readings ----

    def counters(self) -> Counters:
        """Rows of a name that was not there before start anywhere: take the first reading as its zero."""
        return readings.counters(self._maps, self._clock.now_s())

    def active_flows(self, members: Collection[str]) -> Mapping[str, int]:
        return self._flows_of(members, established=False)

    def established_flows(self, members: Collection[str]) -> Mapping[str, int]:
        return self._flows_of(members, established=True)

    def _flows_of(self, members: Collection[str], *, established: bool) -> Mapping[str, int]:
        if not members:
            return {}
        flows = flow_table.active(self._maps, self._tick(), established=established)
        rows = steering.endpoint_rows(self._maps)
        return {name: int(flows[rows[name]]) if name in rows else 0 for name in members}

    def events(self) -> Sequence[model.Event]:
        return self._decoded(keep=False)

    def peek_events(self) -> Sequence[model.Event]:
        """Events that nobody has taken yet, left for the controller."""
        return self._decoded(keep=True)

    def _decoded(self, *, keep: bool) -> Sequence[model.Event]:
        kinds = {kind.value: kind for kind in model.EventKind}
        return [
            model.Event(
                kind=kinds[event["kind"]],
                at_s=float(event["time_ns"]) / 1e9,
                service=steering.service_name(self._maps, int(event["service"])),
                endpoint=steering.endpoint_name(self._maps, int(event["endpoint"])),
                chosen=steering.endpoint_name(self._maps, int(event["chosen"])),
                client=with_port(layout.unmapped(event["client"].tobytes()), int(event["client_port"])),
            )
            for event in self._events.read(keep=keep)
            if event["kind"] in kinds
        ]

    def flows(self, limit: int) -> Sequence[FlowRow]:
        """At most ``limit`` remembered flows, most recent first."""
        return flow_table.rows(self._maps, self._tick(), limit)

    def flow_lines(self, limit: int) -> Iterator[memoryview]:
        """The same as JSON lines: an object for each flow, with the fields of FlowRow."""
        listed = flow_table.listed(self._maps, self._tick(), limit)
        return (lines.data for lines in flow_lines.json_lines(self._maps, listed))

    def reasons(self) -> Mapping[str, int]:
        """Packets by why they left as they did; they only grow."""
        return readings.reasons(self._maps)

    def interface_counts(self) -> Sequence[InterfaceCounts]:
        """By interface that is attached or was; they only grow."""
        counted = redirects.is_counting(self._maps.instance)
        return readings.interfaces(self._maps, redirects=counted)

    def in_flight(self, members: Sequence[str]) -> npt.NDArray[np.intp]:
        found = flow_table.in_flight(self._maps, self._tick())
        return np.array([found[row] if row else 0 for row in self._rows(members)], np.intp)

    def response_times(self, members: Sequence[str]) -> npt.NDArray[np.uint32]:
        rows = np.array(self._rows(members), np.intp)
        times: npt.NDArray[np.uint32] = self._maps.response[rows]
        times[rows == 0] = 0
        return times

    def quantiles_ms(self, shares: Sequence[float]) -> Mapping[str, tuple[Quantiles, Quantiles]]:
        """Per member, since the maps were made: SYN to SYN-ACK, and request to the first byte of its answer.
        None without samples."""
        names = self._maps.endpoint_names.rows()
        rows = np.array(list(names.values()), np.intp)
        both = [
            histogram.quantiles_us(times[rows], shares) / 1000
            for times in (self._maps.rtt, self._maps.response)
        ]
        return {
            name: (_known(rtt), _known(response)) for name, rtt, response in zip(names, *both, strict=True)
        }

    def interfaces(self, names: Collection[str]) -> Sequence[model.Interface]:
        """Those of the calling thread's network namespace: one may have been made anew under its name."""
        found = (attach.at_interface(self._maps.instance, name) for name in names)
        return [
            model.Interface(
                one.interface, one.mode is not XdpMode.NONE, one.mode is XdpMode.NATIVE, one.reason
            )
            for one in found
        ]

    # ---- inside ----

    def _rows(self, members: Sequence[str]) -> list[int]:
        """0: it is not installed."""
        return [self._maps.endpoint_names.get(name) or 0 for name in members]

    def _tick(self) -> int:
        return layout.tick_at(self._clock.now_s())

    @contextmanager
    def _writing(self) -> Iterator[None]:
        instance = self._maps.instance
        with pins.write_lock(instance):
            try:
                same = self._folder.stat().st_ino == self._folder_inode
            except FileNotFoundError:
                same = False
            if not same:
                raise DataplaneError(
                    f"instance {instance!r} was unloaded meanwhile: penumbra load CONFIG, then start anew"
                )
            yield


def _known(values: npt.NDArray[np.float64]) -> Quantiles:
    return [None if np.isnan(value) else float(value) for value in values]
