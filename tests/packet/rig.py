# SPDX-License-Identifier: Apache-2.0
"""The loaded program with its maps in hand: services and endpoints written straight into them."""

from __future__ import annotations

import ctypes
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from pathlib import Path

import numpy as np
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6PacketTooBig, ICMPv6TimeExceeded, IPv6
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from controlplane.adapters import layout, libbpf
from controlplane.adapters.bcc import Compiled, ProgramSizes, compile_program
from controlplane.adapters.target_table import TargetTable
from controlplane.lab import network

KERNEL = tuple(int(part) for part in os.uname().release.split(".")[:2])
BPF_DIR = Path(__file__).resolve().parents[2] / "bpf"
SIZES = ProgramSizes(services=16, endpoints=256, buckets=1024, ring_lines=8192, cpus=libbpf.possible_cpus())
LARGE = replace(SIZES, buckets=1 << 18)
"""One build for all who need a larger cache: how much of it is used, the mask says."""
ABORTED, DROP, PASS, TX, REDIRECT = range(5)
TCP_NUMBER, UDP_NUMBER = 6, 17
OWN_NETNS = "/proc/thread-self/ns/net"
KEY = (0x0123456789ABCDEF, 0xFEDCBA9876543210)
FAR_TICK = 0xFFFFFFFE
NO_LIMIT = 0xFFFFFFFF
FAR_WINDOW = 1 << 30
REQUEST_FLAGS = {
    "off": 0,
    "http1": layout.SERVICE_REQUESTS_HTTP1,
    "tls": layout.SERVICE_REQUESTS_TLS,
}
HOP_IFINDEX = 1
HOP_DST, HOP_SRC = "02:00:00:00:0e:01", "02:00:00:00:0a:01"


@dataclass(frozen=True, slots=True)
class Result:
    verdict: int
    reason: str
    raw: bytes

    @property
    def packet(self) -> Packet:
        """Taken apart when it is asked for: that takes longer than to send it."""
        return Ether(self.raw)


class Rig:
    """One program for a whole session; ``reset`` makes it new for a test."""

    def __init__(self, compiled: Compiled) -> None:
        self.compiled = compiled
        maps = compiled.maps

        def view(name: str, dtype: np.dtype) -> np.ndarray:
            return libbpf.map_view(maps[name], dtype, writable=True)

        self.settings = view("settings", layout.SETTINGS)
        self.services = view("services", layout.SERVICE)
        self.endpoints = view("endpoints", layout.ENDPOINT)
        settings = self.settings.reshape(())
        self.service_targets = TargetTable(
            view("service_targets", layout.TARGET_BUCKET)["entry"], self.services, "vip", settings
        )
        self.endpoint_targets = TargetTable(
            view("endpoint_targets", layout.TARGET_BUCKET)["entry"], self.endpoints, "address", settings
        )
        self.cells = view("rings", layout.RING_LINE)["cell"].reshape(-1)
        self.slots = view("shadow_table", layout.SHADOW_SLOT_TABLE)["slot"]
        self.limits = view("limits", layout.LIMIT)
        self.flows = view("flows", layout.BUCKET)["flow"]
        self.flow_keys = view("flow_keys", layout.BUCKET_KEYS)["key"]
        self.counters = view("counters", layout.ENDPOINT_COUNTERS).reshape(SIZES.cpus, SIZES.endpoints)
        self.forwarded = view("forwarded", layout.TRAFFIC).reshape(SIZES.cpus, SIZES.endpoints)
        self.returned = view("returned", layout.TRAFFIC).reshape(SIZES.cpus, SIZES.endpoints)
        self.interfaces = view("interfaces", layout.INTERFACE)
        self.reasons = view("reasons", layout.REASON_COUNTS)["count"]
        """(cpus * INTERFACE_ROWS, REASON_SLOTS)."""
        self.rtt = view("rtt", layout.HISTOGRAM)["bucket"]
        self.requests = view("request_counters", layout.REQUEST_COUNTERS).reshape(SIZES.cpus, SIZES.endpoints)
        self.response = view("response", layout.HISTOGRAM)["bucket"]
        self.gates = view("event_gates", layout.EVENT_GATE)
        self.cpus = view("cpus", layout.CPU)
        self.gateways = view("gateways", layout.GATEWAY)
        self.near = view("near", layout.NEAR)
        self.next_cell = 0

    @classmethod
    def load(cls, *, frags: bool = False) -> Rig:
        return cls(compile_program(BPF_DIR, SIZES, frags=frags))

    def reset(self) -> None:
        for array in (self.services, self.endpoints, self.cells, self.slots, self.flows, self.flow_keys):
            array.view(np.uint8)[...] = 0
        written = (self.limits, self.counters, self.reasons, self.rtt, self.gates, self.cpus)
        for array in (*written, self.forwarded, self.returned, self.requests, self.response):
            array.view(np.uint8)[...] = 0
        for array in (self.gateways, self.near, self.interfaces):
            array.view(np.uint8)[...] = 0
        self.service_targets.clear()
        self.endpoint_targets.clear()
        for name, size in (("vips", 20), ("direct", 20), ("route_mtus", 20), ("fragments", 40)):
            for key in list(libbpf.map_keys(self.compiled.maps[name], size)):
                libbpf.map_delete(self.compiled.maps[name], key)
        for name, size in (("ports", 4), ("vlans", 8)):
            for key in list(libbpf.map_keys(self.compiled.maps[name], size)):
                libbpf.map_delete(self.compiled.maps[name], key)
        self.next_cell = 0
        settings = self.settings[0]
        settings["hash_key"] = KEY
        settings["bucket_mask"] = SIZES.buckets - 1
        settings["idle_opening_ticks"] = 40
        settings["idle_established_ticks"] = 3600
        settings["idle_closing_ticks"] = 20
        settings["idle_udp_ticks"] = 240
        settings["event_ticks"] = 4
        settings["own_sources"] = 0
        settings["icmp_limit"] = NO_LIMIT
        settings["destinations"] = 0
        settings["seen_ticks"] = 0
        settings["insert_limit"] = NO_LIMIT
        settings["interface_multiplier"] = 0

    # ---- what is installed ---------------------------------------------------------------

    def put(self, name: str, key: bytes, value: int) -> None:
        libbpf.map_update(self.compiled.maps[name], key, value.to_bytes(4, "little"))

    def service(
        self,
        index: int,
        vip: str,
        port: int,
        protocol: int = TCP_NUMBER,
        *,
        keep: bool = False,
        affinity: bool = False,
        requests: str = "off",
        request_shift: int = 0,
    ) -> None:
        row = self.services[index : index + 1]
        address = ip_address(vip)
        row["vip"] = np.frombuffer(layout.mapped(address), np.uint8)
        row["port"], row["protocol"] = port, protocol
        row["flags"] = (
            layout.SERVICE_PRESENT
            | layout.SERVICE_ON_DOWN_KEEP * keep
            | layout.SERVICE_AFFINITY * affinity
            | REQUEST_FLAGS[requests]
        )
        row["request_shift"] = request_shift
        self.service_targets.put(layout.target(address, port, protocol), index)
        bit = layout.destination_bit(layout.mapped(address), port)
        self.settings["destinations"][0, bit // 64] |= np.uint64(1 << bit % 64)
        self.put("vips", layout.target(address, 0, 0), index)
        self.settings["own_sources"] |= np.uint64(layout.source_bit(layout.mapped(address)))

    def endpoint(
        self,
        index: int,
        service: int,
        address: str,
        port: int,
        *,
        generation: int = 1,
        parent: int | None = None,
        hop: bool = True,
        mtu: int = 0,
    ) -> int:
        """Returns its reference."""
        row = self.endpoints[index : index + 1]
        protocol = int(self.services[service]["protocol"])
        row["address"] = np.frombuffer(layout.mapped(ip_address(address)), np.uint8)
        row["port"], row["protocol"], row["service"] = port, protocol, service
        row["role"] = 1 if parent is None else 2
        row["parent"] = index if parent is None else parent
        row["hop_expires"] = FAR_TICK if hop else 0
        row["hop_ifindex"], row["hop_mtu"] = HOP_IFINDEX, mtu
        row["hop_dst"] = np.frombuffer(bytes.fromhex(HOP_DST.replace(":", "")), np.uint8)
        row["hop_src"] = np.frombuffer(bytes.fromhex(HOP_SRC.replace(":", "")), np.uint8)
        row["state"] = generation << 32 | layout.ENDPOINT_PRESENT
        self.endpoint_targets.put(layout.target(ip_address(address), port, protocol), index)
        return layout.reference(index, generation)

    def ring(self, service: int, references: Sequence[int]) -> None:
        """Writes both copies and names the first one."""
        row = self.services[service : service + 1]
        size = len(references)
        base = self.next_cell
        self.next_cell += 2 * size
        self.cells[base : base + 2 * size] = [*references, *references]
        row["ring_base"], row["ring_size"], row["ring_active"] = base, size, 0

    def state(
        self,
        index: int,
        *,
        present: bool = True,
        down: bool = False,
        draining: bool = False,
        evicted: int = 0,
        generation: int | None = None,
    ) -> None:
        if generation is None:
            generation = int(self.endpoints[index]["state"]) >> 32
        flags = layout.ENDPOINT_PRESENT * present + layout.ENDPOINT_DOWN * down
        self.endpoints[index : index + 1]["state"] = (
            generation << 32
            | flags
            | layout.ENDPOINT_DRAINING * draining
            | evicted << layout.ENDPOINT_EVICTED_SHIFT
        )

    def shadows(self, live: int, references: Sequence[int], spill: float | int) -> None:
        """Slots in turn, ``spill`` as a share 0..1 (1: all)."""
        self.slots[live] = (
            [references[i % len(references)] for i in range(layout.SHADOW_SLOTS)] if references else 0
        )
        self.endpoints[live : live + 1]["spill"] = layout.SPILL_ALL if spill == 1 else int(spill * 2**32)

    def limit(self, index: int, flows: int, *, still: bool = True) -> None:
        """New flows that an endpoint takes in one window, 0: any number. ``still``: in the one that begins
        now and never ends."""
        row = self.limits[index : index + 1]
        row["limit"] = 0
        row["used"] = FAR_WINDOW << layout.LIMIT_WINDOW if still else 0
        row["limit"] = flows

    def direct(self, prefix: str) -> None:
        self.put("direct", layout.prefix(ip_network(prefix)), 1)

    def own(self, address: str) -> None:
        """An address of the access point's own."""
        self.put("direct", layout.prefix(ip_network(address)), layout.DIRECT_OWN)
        self.settings["own_sources"] |= np.uint64(layout.source_bit(layout.mapped(ip_address(address))))

    def port(
        self,
        device: int,
        ifindex: int | None = None,
        vlans: Sequence[int] = (),
        protocols: Sequence[int] = (),
    ) -> None:
        """A device that frames may leave by; with VLANs also one that they come in by."""
        key, port = np.zeros((), layout.PORT_KEY), np.zeros((), layout.PORT)
        key["ifindex"] = port["ifindex"] = device if ifindex is None else ifindex
        for at, vlan in enumerate(vlans):
            key["vlan"][at] = port["vlan"][at] = vlan
            port["protocol"][at] = protocols[at] if protocols else 0x8100
        index = device.to_bytes(4, "little")
        libbpf.map_update(self.compiled.maps["ports"], index, port.tobytes())
        if vlans:
            libbpf.map_update(self.compiled.maps["vlans"], key.tobytes(), index)

    # ---- packets ------------------------------------------------------------------------

    def send(self, packet: Packet | bytes, *, ingress_ifindex: int = 0, first_bytes: int = 0) -> Result:
        """``first_bytes``: of several buffers."""
        before = self.reasons.sum(axis=0)
        run = libbpf.prog_test_run(
            self.compiled.program_fd, bytes(packet), ingress_ifindex=ingress_ifindex, first_bytes=first_bytes
        )
        counted = self.reasons.sum(axis=0) - before
        assert counted.sum() == 1, "every packet is counted under one reason"
        return Result(run.verdict, layout.REASONS[int(counted.argmax())], run.packet)

    def counted(self, name: str) -> np.ndarray:
        """(cpus, endpoints) of one of their counters, those of requests included."""
        table, field = self.counters, name
        if name in layout.TRAFFIC.names:
            table = self.forwarded
        elif name in layout.REQUEST_COUNTERS.names:
            table = self.requests
        elif name.startswith("return_"):
            table, field = self.returned, name.removeprefix("return_")
        return table[field]

    def count(self, index: int, name: str) -> int:
        return int(self.counted(name)[:, index].sum())

    def counts(self, index: int, *names: str) -> Mapping[str, int]:
        return {name: self.count(index, name) for name in names}

    def only_flow(self) -> tuple[int, int]:
        """Bucket and way of the only entry in the cache."""
        where = np.argwhere(self.flows["id"] != 0)
        assert len(where) == 1, f"{len(where)} flows are cached"
        return int(where[0][0]), int(where[0][1])

    def flow_count(self) -> int:
        return int((self.flows["id"] != 0).sum())

    def age(self, ticks: int) -> None:
        """Makes every cached flow ``ticks`` older than it is."""
        cached = self.flows["id"] != 0
        self.flows["life"][cached] -= np.uint64(ticks << 32)

    def stop_time(self) -> None:
        """Every cached flow was seen as lately as the last one."""
        cached = self.flows["id"] != 0
        life = self.flows["life"][cached]
        newest = life.max(initial=0) >> np.uint64(32) << np.uint64(32)
        self.flows["life"][cached] = life & np.uint64(2**32 - 1) | newest


def faulty(folder: Path, *faults: tuple[str, str, str]) -> Path:
    """A copy of bpf/ with faults: a file, what stands in it once, and what stands there instead."""
    copy = folder / "bpf"
    shutil.copytree(BPF_DIR, copy)
    for file, right, wrong in faults:
        text = (copy / file).read_text()
        assert text.count(right) == 1, f"{file} has changed: name the fault anew"
        (copy / file).write_text(text.replace(right, wrong))
    return copy


# ---- frames ---------------------------------------------------------------------------------


def _ip(source: str, destination: str, ttl: int) -> Packet:
    link = Ether(src="02:00:00:00:0c:01", dst="02:00:00:00:0a:02")
    if ":" in source:
        return link / IPv6(src=source, dst=destination, hlim=ttl, fl=0x12345, tc=0x28)
    return link / IP(src=source, dst=destination, ttl=ttl, id=7)


def tcp(
    source: str,
    source_port: int,
    destination: str,
    port: int,
    flags: str = "A",
    payload: bytes = b"",
    ttl: int = 64,
    *,
    sequence: int = 1000,
    acknowledged: int = 2000,
) -> Packet:
    return (
        _ip(source, destination, ttl)
        / TCP(sport=source_port, dport=port, flags=flags, seq=sequence, ack=acknowledged)
        / payload
    )


def udp(
    source: str, source_port: int, destination: str, port: int, payload: bytes = b"", ttl: int = 64
) -> Packet:
    return _ip(source, destination, ttl) / UDP(sport=source_port, dport=port) / payload


@contextmanager
def nowhere() -> Iterator[str]:
    """A network namespace without any route, and without a name: however the process ends, it ends too."""
    libc = ctypes.CDLL(None, use_errno=True)
    home, made = os.open(OWN_NETNS, os.O_RDONLY), -1
    try:
        if libc.unshare(network.CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "no network namespace of its own")
        made = os.open(OWN_NETNS, os.O_RDONLY)
        libc.setns(home, network.CLONE_NEWNET)
        yield f"/proc/self/fd/{made}"
    finally:
        for fd in {home, made} - {-1}:
            os.close(fd)


def refused(packet: Packet, teller: str, mtu: int = 0) -> bytes:
    """The ICMP error to who sent the packet: time exceeded, or with an MTU too large for that."""
    frame = bytes(packet)
    came = Ether(frame)
    v6 = IPv6 in came
    network = came[IPv6] if v6 else came[IP]
    length = 40 + network.plen if v6 else network.len
    start = 14 + 4 * sum(came.layers().count(tag) for tag in (Dot1Q, Dot1AD))
    # RFC 1812 section 4.3.2.3 and RFC 4443 section 2.4 (c), less the headers of the error.
    quoted = Raw(frame[start : start + min(length, 1280 - 48 if v6 else 576 - 28)])
    if v6:
        error = ICMPv6PacketTooBig(mtu=mtu) if mtu else ICMPv6TimeExceeded()
        answer = IPv6(src=teller, dst=network.src, hlim=64) / error / quoted
    else:
        error = ICMP(type=3, code=4, nexthopmtu=mtu) if mtu else ICMP(type=11, code=0)
        answer = IP(src=teller, dst=network.src, ttl=64, id=0, flags="DF", tos=0xC0) / error / quoted
    return frame[6:12] + frame[:6] + frame[12:start] + bytes(answer)


def rewritten(
    packet: Packet,
    *,
    source: tuple[str, int] | None = None,
    destination: tuple[str, int] | None = None,
    hop: tuple[str, str] | None = (HOP_DST, HOP_SRC),
) -> bytes:
    """The packet as it must leave, its checksums computed anew by scapy; with a hop, as a router sends it."""
    out = packet.copy()
    layer = out[TCP] if TCP in out else out[UDP]
    network = out[IPv6] if IPv6 in out else out[IP]
    if source:
        network.src, layer.sport = source
    if destination:
        network.dst, layer.dport = destination
    if hop:
        out[Ether].dst, out[Ether].src = hop
        if IPv6 in out:
            network.hlim -= 1
        else:
            network.ttl -= 1
    if IP in out:
        del network.chksum
    del layer.chksum
    return bytes(out)
