# SPDX-License-Identifier: Apache-2.0
"""As large as it is said to go: 512 services, 10 000 endpoints, 4 M flows, loaded and steered for real."""

from __future__ import annotations

import json
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from controlplane.adapters import layout, libbpf, loader, pins
from controlplane.adapters.clock import MachineClock
from controlplane.adapters.dataplane import MapDataplane
from controlplane.adapters.maps import open_instance
from controlplane.lab import network
from controlplane.lab.topology import AP, Topology
from tests import scale

PENUMBRA = str(Path(sys.executable).with_name("penumbra"))
CACHED = 1 << 17
LISTED = 1 << 12


@pytest.fixture
def instance() -> Iterator[str]:
    name = f"scale-{uuid.uuid4().hex[:8]}"
    yield name
    loader.unload(name)


def penumbra(topology: Topology, *arguments: str) -> str:
    argv = [*network.inside(topology.namespace(AP)), PENUMBRA, *arguments]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def frame(service: int, client_port: int) -> bytes:
    vip, v6 = scale.VIPS[service % 2] + service, service % 2
    ip = IPv6(src="2001:db8:9::9", dst=str(vip)) if v6 else IP(src="198.18.0.9", dst=str(vip))
    syn = ip / TCP(sport=client_port, dport=443, flags="S")
    return bytes(Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01") / syn)


@pytest.mark.slow
def test_512_services_and_10_000_endpoints_with_4_m_flows_are_loaded_steered_and_listed(
    topology: Topology, instance: str, tmp_path: Path
) -> None:
    config = tmp_path / "scale.yml"
    config.write_text(scale.written("clients", instance))
    memory = penumbra(topology, "check", str(config))
    for kind, count in {"services": 512, "endpoints": scale.SIZES.endpoints, "flows": 4_194_304}.items():
        (line,) = [line for line in memory.splitlines() if line.split()[0] == kind]
        assert int(line.split()[1]) == count
        assert "MiB" in line
    penumbra(topology, "load", str(config))
    shown = penumbra(topology, "maps", "endpoints", "--json", "--instance", instance)
    endpoints = list(map(json.loads, shown.splitlines()))
    assert len(endpoints) == 10_000
    service_of = {one["endpoint"]: one["service"] for one in endpoints}

    dataplane, maps = MapDataplane.open(instance, MachineClock()), open_instance(instance)
    try:
        steer(instance)
        counted = dataplane.counters()
        given = {name: int(counted.flows[row]) for name, row in counted.rows.items() if counted.flows[row]}
        assert sum(given.values()) == scale.SERVICES
        assert {service_of[name] for name in given} == set(service_of.values()), "a flow to each service"

        for v6 in (False, True):
            scale.fill_flows(maps, CACHED, layout.tick_at(MachineClock().now_s()), v6=v6)
            lines = b"".join(dataplane.flow_lines(CACHED)).splitlines()
            assert len(lines) == CACHED == np.count_nonzero(maps.flows["id"])
            listed = [json.loads(line) for line in lines[:LISTED]]
            idle_s = [one.pop("idle_s") for one in listed]
            assert idle_s == sorted(idle_s), "the most recent first"
            assert listed == [without_time(asdict(row)) for row in dataplane.flows(LISTED)]
            assert all(service_of[one["endpoint"]] == one["service"] for one in listed)
    finally:
        dataplane.close()
        maps.close()


def steer(instance: str) -> None:
    """A SYN to each service."""
    program = libbpf.obj_get(pins.folder(instance) / "steer", libbpf.Kind.PROGRAM)
    for service in range(scale.SERVICES):
        libbpf.prog_test_run(program, frame(service, 1024 + service))


def without_time(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != "idle_s"} | {"client": str(row["client"])}
