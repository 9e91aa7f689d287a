# SPDX-License-Identifier: Apache-2.0
"""The program and the reference, installed and changed alike; whoever differs is told with the frame."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import ip_network

import numpy as np

from controlplane.adapters import layout, libbpf
from tests import reference
from tests.packet.rig import (
    FAR_TICK,
    HOP_IFINDEX,
    KEY,
    NO_LIMIT,
    REQUEST_FLAGS,
    SIZES,
    TCP_NUMBER,
    UDP_NUMBER,
    Rig,
)
from tests.reference_frames import AccessPoint

BUCKETS = 512
"""So few that now and then a flow lies in its second bucket, and enough that none has to give way."""
OWN, OWN6 = "192.0.2.200", "2001:db8::200"
DIRECT = ("192.0.2.9/32", "203.0.113.0/24", "2001:db8:0:9::/64", "2001:db8:2::/96")
NEAR = ("192.0.0.0/16", "198.51.0.0/16", "203.0.0.0/16", "2001:db8::/32")
"""Direct prefixes and VIPs, as wide as the program's bits tell them apart."""
SERVICES = {
    1: ("198.51.100.1", 80, TCP_NUMBER),
    2: ("198.51.100.1", 53, UDP_NUMBER),
    3: ("198.51.100.3", 443, TCP_NUMBER),
    4: ("2001:db8:1::4", 80, TCP_NUMBER),
    5: ("2001:db8:1::4", 53, UDP_NUMBER),
    6: ("2001:db8:1::6", 443, TCP_NUMBER),
    7: (OWN, 8443, TCP_NUMBER),
}
REQUESTS = {1: "http1", 3: "tls", 4: "http1", 7: "tls"}
KEEP, AFFINITY = (3, 6), (3, 5)
"""Services whose flows stay on an endpoint that is down; that give all flows of a client alike."""
LIVE, SHADOWS, RING = 4, 3, 61
VLAN, OUTER, INNER = 5, 100, 6
"""Tags of this host's devices: one alone, and two."""
COUNTED = (
    *("packets", "bytes", "return_packets", "return_bytes", "flows", "offered", "completed", "spilled"),
    *("limited", "midstream", "unremembered", "resets", "fins", "rtt_count"),
    *("requests", "answered", "aborted"),
)
MARKS = {
    "syn": layout.FLOW_SYN,
    "syn-ack": layout.FLOW_SYNACK,
    "established": layout.FLOW_ESTABLISHED,
    "fin client": layout.FLOW_FIN_CLIENT,
    "fin endpoint": layout.FLOW_FIN_ENDPOINT,
    "rst": layout.FLOW_RST,
    "midstream": layout.FLOW_MIDSTREAM,
    "request": layout.FLOW_REQUEST,
}


Action = list[object]
"""Name of a method and its arguments, as JSON has them."""


class DifferenceError(AssertionError):
    """The program did not do what the reference says."""


@contextmanager
def one_cpu() -> Iterator[int]:
    """Counters and floods are each CPU's own."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield max(before)
    finally:
        os.sched_setaffinity(0, before)


class Both:
    """Installed anew; to be used by one CPU, see :func:`one_cpu`."""

    def __init__(self, rig: Rig) -> None:
        rig.reset()
        self.rig, self.steering = rig, reference.Steering(KEY)
        self.access = AccessPoint(self.steering)
        self.cpu = max(os.sched_getaffinity(0))
        self.later = 0
        """Ticks that passed for the reference beside those that really did."""
        self.frames = 0
        self._reasons = rig.reasons[self.cpu * layout.INTERFACE_ROWS + layout.OTHER_INTERFACES]
        self._counted = self._reasons.tolist()
        self._install()

    def _install(self) -> None:
        rig, steering, dice = self.rig, self.steering, random.Random(1)
        rig.settings["bucket_mask"] = BUCKETS - 1
        limits = {name: int(rig.settings[f"idle_{name}_ticks"][0]) for name in reference.Idle.__annotations__}
        steering.idle = reference.Idle(**limits)
        for index, (vip, port, protocol) in SERVICES.items():
            keep, affinity = index in KEEP, index in AFFINITY
            requests = REQUESTS.get(index, "off")
            rig.service(index, vip, port, protocol, keep=keep, affinity=affinity, requests=requests)
            live = [self._endpoint(index, protocol, index * 20 + i) for i in range(LIVE)]
            shadows = [self._endpoint(index, protocol, index * 20 + 10 + i) for i in range(SHADOWS)]
            steering.services[index] = reference.Service(vip, port, protocol, [], keep, affinity, requests)
            rig.ring(index, [layout.reference(live[0], 1)] * RING)
            self.ring(index, dice.choices(live, k=RING))
            for member in live:
                self.slots(
                    member, dice.choices(shadows, k=reference.SLOTS), dice.choice([0, 1 << 30, 1 << 31])
                )
            for member in live + shadows:
                self.limit(member, dice.choice([0, 0, 1, 3]))
        for prefix in DIRECT:
            rig.direct(prefix)
            steering.direct.append(ip_network(prefix))
        for own in (OWN, OWN6):
            rig.own(own)
            steering.own.append(own)
            steering.direct.append(ip_network(own))
        for prefix in NEAR:
            network = ip_network(prefix)
            steering.near.append(network)
            version = int(network.version == 6)
            first = int(network.network_address) >> (network.max_prefixlen - (32 if version else 16))
            bit = int(layout.near_bits(np.array([first], np.uint64), network.version)[0])
            rig.near[version * layout.NEAR_WORDS + bit // 64] |= np.uint64(1 << bit % 64)
        for version in (4, 6):
            self.gateway(version, (1500, 0))
        rig.port(105, HOP_IFINDEX, [VLAN])
        rig.port(106, HOP_IFINDEX, [OUTER, INNER], [0x88A8, 0x8100])
        self.access.vlans = {(VLAN, 0), (OUTER, INNER)}

    def _endpoint(self, service: int, protocol: int, index: int) -> int:
        v6 = ":" in SERVICES[service][0]
        address, port = (f"2001:db8:2::{index:x}" if v6 else f"203.0.113.{index}"), 8000 + index
        self.rig.endpoint(index, service, address, port)
        self.steering.endpoints[index] = reference.Endpoint(address, port, protocol, service)
        self.steering.returns[address, port, protocol] = index
        return index

    # ---- what changes: each with numbers and text alone, so that it can be written down -------

    def take(self, action: Action) -> None:
        name, *arguments = action
        getattr(self, str(name))(*arguments)

    def ring(self, service: int, members: Sequence[int]) -> None:
        """Writes the idle copy and makes it the one in use."""
        cells = [(member, 1) for member in members]
        row = self.rig.services[service : service + 1]
        base, size, copy = int(row["ring_base"][0]), int(row["ring_size"][0]), int(row["ring_active"][0]) ^ 1
        self.rig.cells[base + copy * size : base + (copy + 1) * size] = [
            layout.reference(*cell) for cell in cells
        ]
        row["ring_active"] = copy
        self.steering.services[service].ring = cells

    def flags(self, service: int, present: bool, keep: bool, requests: str) -> None:
        ours = self.steering.services[service]
        ours.present, ours.keep, ours.requests = present, keep, requests
        self.rig.services[service : service + 1]["flags"] = (
            layout.SERVICE_PRESENT * present
            | layout.SERVICE_ON_DOWN_KEEP * keep
            | layout.SERVICE_AFFINITY * ours.affinity
            | REQUEST_FLAGS[requests]
        )

    def state(
        self, index: int, present: bool, down: bool, draining: bool, generation: int, evicted: int = 0
    ) -> None:
        endpoint = self.steering.endpoints[index]
        endpoint.present, endpoint.down, endpoint.draining = present, down, draining
        endpoint.evicted = evicted
        endpoint.generation = generation & 0xFFF  # what a reference carries
        self.rig.state(
            index, present=present, down=down, draining=draining, evicted=evicted, generation=generation
        )

    def slots(self, live: int, members: Sequence[int], spill: int) -> None:
        """0: an empty slot."""
        slots = [(member, 1) if member else None for member in members]
        self.rig.slots[live] = [layout.reference(*slot) if slot else 0 for slot in slots]
        self.rig.endpoints[live : live + 1]["spill"] = spill
        endpoint = self.steering.endpoints[live]
        endpoint.slots, endpoint.spill = slots, spill

    def limit(self, index: int, limit: int) -> None:
        """For a window of time that begins now and does not end."""
        endpoint = self.steering.endpoints[index]
        endpoint.limit, endpoint.used = limit, 0
        self.rig.limit(index, limit)

    def hop(self, index: int, way: Sequence[int] | None) -> None:
        """MTU and VLAN; None: the kernel's to find."""
        hop = reference.Hop(*way) if way else None
        self.steering.endpoints[index].hop = hop
        self._write_hop(self.rig.endpoints[index : index + 1], hop)

    def gateway(self, version: int, way: Sequence[int] | None) -> None:
        hop = reference.Hop(*way) if way else None
        if hop is None:
            self.steering.gateways.pop(version, None)
        else:
            self.steering.gateways[version] = hop
        row = int(version == 6)
        self._write_hop(self.rig.gateways[row : row + 1], hop)

    @staticmethod
    def _write_hop(row: np.ndarray, hop: reference.Hop | None) -> None:
        row["hop_expires"] = FAR_TICK if hop else 0
        if hop:
            row["hop_ifindex"], row["hop_mtu"], row["hop_vlan"] = HOP_IFINDEX, hop.mtu, hop.vlan
            row["hop_dst"], row["hop_src"] = np.frombuffer(hop.to, np.uint8), np.frombuffer(hop.by, np.uint8)

    def seen_ticks(self, ticks: int) -> None:
        self.rig.settings["seen_ticks"] = self.steering.seen_ticks = ticks

    def insert_limit(self, limit: int | None) -> None:
        """From the next tick on, for within one the program does not look at it twice."""
        self.rig.settings["insert_limit"] = NO_LIMIT if limit is None else limit
        self.steering.insert_limit = reference.NEVER if limit is None else limit
        self.let_pass(1)

    def icmp_limit(self, limit: int | None) -> None:
        self.rig.settings["icmp_limit"] = NO_LIMIT if limit is None else limit
        self.steering.icmp_limit = reference.NEVER if limit is None else limit

    def let_pass(self, ticks: int) -> None:
        """What the program remembers becomes older; the reference's clock goes on."""
        rig = self.rig
        rig.age(ticks)
        for name in ("insert_tick", "flood_tick", "icmp_tick"):
            rig.cpus[name] -= np.uint32(ticks)
        fragments = rig.compiled.maps["fragments"]
        for key in list(libbpf.map_keys(fragments, layout.FRAGMENT_KEY.itemsize)):
            value = libbpf.map_lookup(fragments, key, layout.FRAGMENT.itemsize)
            if value is not None:
                older = np.frombuffer(value, layout.FRAGMENT).copy()
                older["tick"] -= np.uint32(ticks)
                libbpf.map_update(fragments, key, older.tobytes())
        self.later += ticks

    # ---- frames ---------------------------------------------------------------------------

    def send(self, written: str) -> None:
        """Hexadecimal, through both. A DifferenceError: they don't agree on reason, verdict or a byte."""
        frame = bytes.fromhex(written)
        run = libbpf.prog_test_run(self.rig.compiled.program_fd, frame)
        self.frames += 1
        self.steering.now = int(self.rig.cpus["tick"][self.cpu]) + self.later
        expected = self.access.receive(frame)
        before, self._counted = self._counted, self._reasons.tolist()
        counted = {
            layout.REASONS[place]: now - earlier
            for place, (now, earlier) in enumerate(zip(self._counted, before, strict=True))
            if now != earlier
        }
        if (run.verdict, run.packet) != (expected.verdict, expected.frame) or counted != {expected.reason: 1}:
            raise DifferenceError(
                f"frame     {frame.hex()}\n"
                f"expected  {expected.frame.hex()}  verdict {expected.verdict}, {expected.reason}\n"
                f"got       {run.packet.hex()}  verdict {run.verdict}, {counted}"
            )

    def count(self, reason: str) -> int:
        """Frames that left for it."""
        return int(self._counted[layout.REASONS.index(reason)])

    def compare_state(self) -> None:
        """Everything that the program remembers and has counted."""
        self._compare_flows()
        for name in COUNTED:
            of_all = self.rig.counted(name)[self.cpu].tolist()
            for index in range(SIZES.endpoints):
                if of_all[index] != self.steering.counted[name, index]:
                    raise DifferenceError(
                        f"endpoint {index}: {name} {of_all[index]}, not {self.steering.counted[name, index]}"
                    )
        own = self.rig.cpus[self.cpu]
        flooded = int(own["flooded"]), int(own["floods"])
        if flooded != (self.steering.flooded, self.steering.floods):
            raise DifferenceError(f"flooded {flooded}, not {self.steering.flooded, self.steering.floods}")
        if int(self.rig.reasons.sum()) != self.frames:
            raise DifferenceError(f"{int(self.rig.reasons.sum())} packets counted, not {self.frames}")

    def _compare_flows(self) -> None:
        cached = self.rig.flows["id"] != 0
        keys, lives = self.rig.flow_keys[cached], self.rig.flows["life"][cached].tolist()
        names = zip(
            keys["service"].tolist(),
            (bytes(client) for client in keys["client"]),
            keys["client_port"].tolist(),
            strict=True,
        )
        references = (self.rig.flows["id"][cached] & np.uint64(0xFFFFFFFF)).tolist()
        found = sorted(zip(names, references, (life >> 24 for life in lives), strict=True))
        expected = sorted(
            (
                (service, layout.mapped(reference.ip_address(client)), port),
                int(layout.reference(*flow.endpoint)),
                (flow.seen - self.later & 0xFFFFFFFF) << 8 | sum(MARKS.get(mark, 0) for mark in flow.marks),
            )
            for (service, client, port), flow in self.steering.flows.items()
        )
        if found != expected:
            odd = (
                [flow for flow in found if flow not in expected],
                [flow for flow in expected if flow not in found],
            )
            raise DifferenceError(f"flows (name, reference, seen and flags) {odd[0]}, not {odd[1]}")
