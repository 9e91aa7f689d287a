# SPDX-License-Identifier: Apache-2.0
"""What steering costs per packet, program only: 512 services, 10 000 endpoints, a ring of 65 537 cells
and 4 000 endpoints for the measured service, a flow cache of 32 MiB, next hops known.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from ipaddress import IPv4Address

import numpy as np
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from controlplane.adapters import layout, libbpf
from controlplane.adapters.bcc import Compiled, ProgramSizes, compile_program
from controlplane.adapters.target_table import TargetTable
from tests.bench.figures import Figure
from tests.bench.harness import BPF_DIR, FRAME_BYTES, Harness, pinned_to_last_core

SERVICES = 512
ENDPOINTS = 10_000
MEASURED_ENDPOINTS = 4_000
RING_SIZE = 65_537
BUCKETS = (32 << 20) // 64
RING_LINES = (2 * (RING_SIZE + SERVICES * 1021)) // 16 + 1
MEASURED_SERVICE = 257
VIP, PORT = IPv4Address("10.255.1.1"), 443
FLOWS = {"1": 1, "64k": 1 << 16, "1m": 1 << 20}
NEW_FLOWS = 1 << 20
ROUNDS, PACKETS = 9, 5_000_000
SEED = 20261123
NO_LIMIT = 0xFFFFFFFF
KEY = (0x243F6A8885A308D3, 0x13198A2E03707344)


def measure() -> Mapping[str, Figure]:
    """The figures ``dataplane.*``; about a minute on one core."""
    figures: dict[str, Figure] = {}
    with _loaded() as compiled, pinned_to_last_core():
        harness = Harness()
        try:
            for name, flows in FLOWS.items():
                programs = {"empty": harness.empty, "cold": harness.cold, "steer": compiled.program_fd}
                took = harness.compare(programs, _frame("PA"), flows, rounds=ROUNDS, packets=PACKETS)
                if name == "1":
                    figures["dataplane.empty"] = Figure(took["empty"], "ns")
                else:
                    figures[f"dataplane.cold_{name}"] = Figure(took["cold"] - took["empty"], "ns")
                figures[f"dataplane.hit_{name}"] = Figure(took["steer"] - took["empty"], "ns")
            verified = libbpf.prog_info(compiled.program_fd).verified
            figures["dataplane.verified"] = Figure(verified, "instructions")
            figures["dataplane.new"] = Figure(_new_flows(harness, compiled), "ns")
        finally:
            harness.close()
    return figures


def _new_flows(harness: Harness, compiled: Compiled) -> float:
    """A SYN of a flow that the cache does not know, each time: the cache is emptied before every round."""
    flows = libbpf.map_view(compiled.maps["flows"], layout.BUCKET, writable=True)
    frame, taken, empty = _frame("S"), [], []
    for _ in range(ROUNDS):
        flows.view(np.uint8)[...] = 0
        taken.append(harness.run(compiled.program_fd, frame, NEW_FLOWS, NEW_FLOWS, in_turn=True))
        empty.append(harness.run(harness.empty, frame, NEW_FLOWS, NEW_FLOWS, in_turn=True))
    return float(np.median(taken) - np.median(empty))


def _frame(flags: str) -> bytes:
    options = [("NOP", None), ("NOP", None), ("Timestamp", (1, 1))]
    ip = IP(src="10.0.0.0", dst=str(VIP)) / TCP(dport=PORT, flags=flags, options=options)
    frame = bytes(Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01") / ip)
    return bytes(Ether(frame) / bytes(FRAME_BYTES - len(frame))) if flags == "S" else _with_payload(ip)


def _with_payload(ip: IP) -> bytes:
    header = Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01")
    return bytes(header / ip / bytes(FRAME_BYTES - len(header / ip)))


@contextmanager
def _loaded() -> Iterator[Compiled]:
    sizes = ProgramSizes(SERVICES + 1, ENDPOINTS + 1, BUCKETS, RING_LINES, libbpf.possible_cpus())
    compiled = compile_program(BPF_DIR, sizes)
    try:
        _install(compiled)
        yield compiled
    finally:
        compiled.close()


def _install(compiled: Compiled) -> None:
    """Services 1..512, endpoints 1..10 000, the measured service's 4 000 picked at random among them."""
    random = np.random.default_rng(SEED)
    order = random.permutation(np.arange(1, ENDPOINTS + 1, dtype=np.uint32))
    measured = order[:MEASURED_ENDPOINTS]
    owner = np.full(ENDPOINTS + 1, MEASURED_SERVICE, np.uint32)
    others = np.setdiff1d(np.arange(1, SERVICES + 1), [MEASURED_SERVICE])
    owner[order[MEASURED_ENDPOINTS:]] = np.resize(others, ENDPOINTS - MEASURED_ENDPOINTS)
    _install_settings(compiled)
    _install_endpoints(compiled, owner)
    services = libbpf.map_view(compiled.maps["services"], layout.SERVICE, writable=True)
    cells = libbpf.map_view(compiled.maps["rings"], layout.RING_LINE, writable=True)["cell"].reshape(-1)
    table = _targets(compiled, "service_targets", services, "vip")
    settings = libbpf.map_view(compiled.maps["settings"], layout.SETTINGS, writable=True)
    destinations = settings[0]["destinations"]
    base = 0
    for index in range(1, SERVICES + 1):
        vip = VIP if index == MEASURED_SERVICE else IPv4Address("10.254.0.0") + index
        members = measured if index == MEASURED_SERVICE else np.flatnonzero(owner == index)
        size = RING_SIZE if index == MEASURED_SERVICE else 1021
        row = services[index : index + 1]
        row["vip"], row["port"] = np.frombuffer(layout.mapped(vip), np.uint8), PORT
        row["protocol"], row["flags"] = 6, layout.SERVICE_PRESENT
        row["ring_base"], row["ring_size"] = base, size
        cells[base : base + size] = random.permutation(np.resize(members, size)) | 1 << layout.REF_INDEX_BITS
        base += 2 * size
        table.put(layout.target(vip, PORT, 6), index)
        bit = layout.destination_bit(layout.mapped(vip), PORT)
        destinations[bit // 64] |= np.uint64(1 << bit % 64)
        libbpf.map_update(compiled.maps["vips"], layout.target(vip, 0, 0), struct.pack("<I", index))


def _install_settings(compiled: Compiled) -> None:
    settings = libbpf.map_view(compiled.maps["settings"], layout.SETTINGS, writable=True)[0]
    settings["hash_key"], settings["bucket_mask"] = KEY, BUCKETS - 1
    settings["idle_opening_ticks"], settings["idle_established_ticks"] = 40, 3600
    settings["idle_closing_ticks"], settings["idle_udp_ticks"] = 20, 240
    settings["seen_ticks"], settings["insert_limit"] = 9, NO_LIMIT


def _install_endpoints(compiled: Compiled, owner: np.ndarray) -> None:
    endpoints = libbpf.map_view(compiled.maps["endpoints"], layout.ENDPOINT, writable=True)
    index = np.arange(1, ENDPOINTS + 1, dtype=np.uint32)
    rows = endpoints[1:]
    address = (int(IPv4Address("10.128.0.0")) + index).astype(">u4").view(np.uint8).reshape(-1, 4)
    rows["address"][:, 10:12] = 0xFF
    rows["address"][:, 12:] = address
    rows["port"], rows["protocol"], rows["role"], rows["parent"] = 8443, 6, 1, index
    rows["service"] = owner[1:]
    rows["hop_expires"], rows["hop_ifindex"], rows["hop_mtu"] = 0xFFFFFFFE, 1, 1500
    rows["hop_dst"], rows["hop_src"] = 2, 4
    rows["state"] = 1 << 32 | layout.ENDPOINT_PRESENT
    table = _targets(compiled, "endpoint_targets", endpoints, "address")
    for one in index.tolist():
        table.put(endpoints["address"][one].tobytes() + (8443).to_bytes(2, "big") + bytes([6, 0]), one)


def _targets(compiled: Compiled, name: str, rows: np.ndarray, address: str) -> TargetTable:
    settings = libbpf.map_view(compiled.maps["settings"], layout.SETTINGS, writable=True).reshape(())
    entries = libbpf.map_view(compiled.maps[name], layout.TARGET_BUCKET, writable=True)["entry"]
    return TargetTable(entries, rows, address, settings)
