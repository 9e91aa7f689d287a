# SPDX-License-Identifier: Apache-2.0
"""Fixtures: a lab's namespaces without its servers, and an instance loaded at its access point."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from controlplane import model
from controlplane.adapters import loader, pins
from controlplane.adapters.clock import MachineClock
from controlplane.adapters.dataplane import MapDataplane
from controlplane.lab import network
from controlplane.lab.topology import AP, Topology


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """What was hit, and what there was in the end, a row each."""
    passed = terminalreporter.getreports("passed")
    found = [value for one in passed for name, value in one.user_properties if name == "fault"]
    if found:
        terminalreporter.section("faults: what was hit at which step, and what there was in the end")
        for where, proof, final in sorted(map(tuple, found)):
            terminalreporter.write_line(f"{where:28} {final:8} {proof}")


BPF_DIR = Path(__file__).resolve().parents[2] / "bpf"
SIZES = model.Sizes(services=8, endpoints=64, flows=4096, ring_cells=65536)


@pytest.fixture(scope="session", autouse=True)
def bpf_file_system() -> None:
    pins.mount_bpf_filesystem()


@pytest.fixture(scope="module")
def topology() -> Iterator[Topology]:
    """Clients, an access point and three hosts; no process lives there."""
    made = Topology(lab=f"t{uuid.uuid4().hex[:8]}")
    try:
        network.build(made)
        yield made
    finally:
        network.demolish(made.namespaces)


@pytest.fixture
def config(topology: Topology) -> model.Config:
    """Of an instance with a name of its own, at all interfaces of the access point."""
    name = f"{topology.lab}-{uuid.uuid4().hex[:6]}"
    return model.Config(instance=name, interfaces=topology.ap_interfaces, services={}, sizes=SIZES)


@pytest.fixture
def loaded(topology: Topology, config: model.Config) -> Iterator[MapDataplane]:
    """The instance, loaded; unloaded after the test."""
    with network.entered(topology.namespace(AP)):
        loader.load(config, BPF_DIR)
        dataplane = MapDataplane.open(config.instance, MachineClock())
    try:
        yield dataplane
    finally:
        dataplane.close()
        loader.unload(config.instance)


@pytest.fixture
def in_ap(topology: Topology) -> Callable[[], object]:
    """``with in_ap():`` the thread lives at the access point."""
    return lambda: network.entered(topology.namespace(AP))
