# SPDX-License-Identifier: Apache-2.0
"""The instance that packets are measured with: 512 services, 10 000 endpoints, a ring of 65 537 cells and
4 000 endpoints for the measured service, a flow cache of 32 MiB, next hops known.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address

import numpy as np

from controlplane.adapters import layout, libbpf
from controlplane.adapters.bcc import Compiled, ProgramSizes, compile_program
from controlplane.adapters.target_table import TargetTable
from controlplane.addresses import Address
from tests.bench.harness import BPF_DIR

SERVICES = 512
ENDPOINTS = 10_000
MEASURED_ENDPOINTS = 4_000
RING_SIZE, OTHER_RING_SIZE = 65_537, 1_021
BUCKETS = (32 << 20) // 64
RING_LINES = (2 * (RING_SIZE + SERVICES * OTHER_RING_SIZE)) // 16 + 1
MEASURED_SERVICE = 257
PORT, ENDPOINT_PORT = 443, 8443
TCP, UDP = 6, 17
SEED = 20261123
NO_LIMIT = 0xFFFFFFFF
KEY = (0x243F6A8885A308D3, 0x13198A2E03707344)


@dataclass(frozen=True, slots=True)
class Installed:
    """Addresses of the one IP ``version`` and ports of the one ``protocol`` that everything has."""

    version: int = 4
    protocol: int = TCP

    def vip(self, service: int = MEASURED_SERVICE) -> Address:
        if self.version == 6:
            return IPv6Address("fd01::") + service
        return IPv4Address("10.254.0.0") + service

    def endpoint(self, index: int) -> Address:
        return IPv6Address("fd02::") + index if self.version == 6 else IPv4Address("10.128.0.0") + index


@contextmanager
def loaded(installed: Installed) -> Iterator[Instance]:
    """Loaded and filled; no packet has been seen."""
    sizes = ProgramSizes(SERVICES + 1, ENDPOINTS + 1, BUCKETS, RING_LINES, libbpf.possible_cpus())
    compiled = compile_program(BPF_DIR, sizes)
    try:
        yield Instance(compiled, installed)
    finally:
        compiled.close()


class Instance:
    """Services 1..512, endpoints 1..10 000, the measured service's 4 000 picked at random among them."""

    def __init__(self, compiled: Compiled, installed: Installed) -> None:
        self.compiled, self.installed = compiled, installed
        random = np.random.default_rng(SEED)
        order = random.permutation(np.arange(1, ENDPOINTS + 1, dtype=np.uint32))
        self._measured = order[:MEASURED_ENDPOINTS]
        self.answering = int(self._measured[0])
        """The measured service's endpoint that frames come back from."""
        self._owner = np.full(ENDPOINTS + 1, MEASURED_SERVICE, np.uint32)
        others = np.setdiff1d(np.arange(1, SERVICES + 1), [MEASURED_SERVICE])
        self._owner[order[MEASURED_ENDPOINTS:]] = np.resize(others, ENDPOINTS - MEASURED_ENDPOINTS)
        self.settings = self._view("settings", layout.SETTINGS)[0]
        self._cells = self._view("rings", layout.RING_LINE)["cell"].reshape(-1)
        self._flows = self._view("flows", layout.BUCKET)
        self._set()
        self._install_endpoints()
        self._install_services(random)
        self._install_gateways()

    @property
    def program_fd(self) -> int:
        return self.compiled.program_fd

    def empty_cache(self) -> None:
        self._flows.view(np.uint8)[...] = 0

    def serve_by(self, endpoint: int) -> None:
        """The measured service has that one only, in all cells of its ring."""
        row = self._view("services", layout.SERVICE)[MEASURED_SERVICE]
        base = int(row["ring_base"])
        self._cells[base : base + int(row["ring_size"])] = layout.reference(endpoint, 1)

    def _view(self, name: str, dtype: np.dtype) -> np.ndarray:
        return libbpf.map_view(self.compiled.maps[name], dtype, writable=True)

    def _set(self) -> None:
        settings = self.settings
        settings["hash_key"], settings["bucket_mask"] = KEY, BUCKETS - 1
        settings["idle_opening_ticks"], settings["idle_established_ticks"] = 40, 3600
        settings["idle_closing_ticks"], settings["idle_udp_ticks"] = 20, 240
        settings["seen_ticks"], settings["insert_limit"] = 9, NO_LIMIT

    def _install_endpoints(self) -> None:
        endpoints = self._view("endpoints", layout.ENDPOINT)
        index = np.arange(1, ENDPOINTS + 1, dtype=np.uint32)
        rows = endpoints[1:]
        addresses = b"".join(layout.mapped(self.installed.endpoint(one)) for one in index.tolist())
        rows["address"] = np.frombuffer(addresses, np.uint8).reshape(-1, 16)
        rows["port"], rows["protocol"] = ENDPOINT_PORT, self.installed.protocol
        rows["role"], rows["parent"], rows["service"] = 1, index, self._owner[1:]
        rows["hop_expires"], rows["hop_ifindex"], rows["hop_mtu"] = 0xFFFFFFFE, 1, 1500
        rows["hop_dst"], rows["hop_src"] = 2, 4
        rows["state"] = 1 << 32 | layout.ENDPOINT_PRESENT
        table = self._targets("endpoint_targets", endpoints, "address")
        for one in index.tolist():
            address = self.installed.endpoint(one)
            table.put(layout.target(address, ENDPOINT_PORT, self.installed.protocol), one)

    def _install_services(self, random: np.random.Generator) -> None:
        services = self._view("services", layout.SERVICE)
        table = self._targets("service_targets", services, "vip")
        protocol, base = self.installed.protocol, 0
        for index in range(1, SERVICES + 1):
            is_measured = index == MEASURED_SERVICE
            vip = self.installed.vip(index)
            members = self._measured if is_measured else np.flatnonzero(self._owner == index)
            size = RING_SIZE if is_measured else OTHER_RING_SIZE
            row = services[index : index + 1]
            row["vip"], row["port"] = np.frombuffer(layout.mapped(vip), np.uint8), PORT
            row["protocol"], row["flags"] = protocol, layout.SERVICE_PRESENT
            row["ring_base"], row["ring_size"] = base, size
            cells = random.permutation(np.resize(members, size))
            self._cells[base : base + size] = layout.reference(0, 1) | cells
            base += 2 * size
            table.put(layout.target(vip, PORT, protocol), index)
            bit = layout.destination_bit(layout.mapped(vip), PORT)
            self.settings["destinations"][bit // 64] |= np.uint64(1 << bit % 64)
            libbpf.map_update(self.compiled.maps["vips"], layout.target(vip, 0, 0), struct.pack("<I", index))

    def _install_gateways(self) -> None:
        rows = self._view("gateways", layout.GATEWAY)
        rows["hop_expires"], rows["hop_ifindex"], rows["hop_mtu"] = 0xFFFFFFFE, 1, 1500
        rows["hop_dst"], rows["hop_src"] = 6, 8

    def _targets(self, name: str, rows: np.ndarray, address: str) -> TargetTable:
        settings = self._view("settings", layout.SETTINGS).reshape(())
        entries = self._view(name, layout.TARGET_BUCKET)["entry"]
        return TargetTable(entries, rows, address, settings)
