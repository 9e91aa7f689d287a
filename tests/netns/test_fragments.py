# SPDX-License-Identifier: Apache-2.0
"""Datagrams larger than the links' MTU, steered: every fragment arrives, both ways."""

from __future__ import annotations

import shutil
import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from controlplane import model
from controlplane.adapters import loader
from controlplane.adapters.clock import MachineClock
from controlplane.adapters.dataplane import MapDataplane
from controlplane.lab import network
from controlplane.lab.topology import AP, Topology
from tests.netns.conftest import BPF_DIR, SIZES
from tests.netns.steered import eventually

PORT = 5353
LARGE = bytes(i % 251 for i in range(4000))


@pytest.fixture(scope="module", params=[4, 6], ids=["IPv4", "IPv6"])
def topology(request: pytest.FixtureRequest) -> Iterator[Topology]:
    made = Topology(lab=f"t{uuid.uuid4().hex[:8]}", ip_version=request.param)
    try:
        network.build(made)
        yield made
    finally:
        network.demolish(made.namespaces)


def family(topology: Topology) -> socket.AddressFamily:
    return socket.AF_INET6 if topology.ip_version == 6 else socket.AF_INET


@pytest.fixture
def echo(topology: Topology) -> Iterator[None]:
    """Sends every datagram back, at the first host."""
    with network.entered(topology.namespace(topology.hosts[0].name)):
        server = socket.socket(family(topology), socket.SOCK_DGRAM)
        server.bind(("", PORT))

    def serve() -> None:
        with suppress(OSError):
            while True:
                data, sender = server.recvfrom(65535)
                if not data:
                    return
                server.sendto(data, sender)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield
    with (
        network.entered(topology.namespace(topology.hosts[0].name)),
        socket.socket(family(topology), socket.SOCK_DGRAM) as end,
    ):
        end.sendto(b"", (str(topology.hosts[0].address), PORT))
    thread.join(5.0)
    server.close()


@contextmanager
def steering(topology: Topology, sources: Path) -> Iterator[MapDataplane]:
    """A service of one endpoint, steered by the program of these sources."""
    name = f"{topology.lab}-{uuid.uuid4().hex[:6]}"
    config = model.Config(instance=name, interfaces=topology.ap_interfaces, services={}, sizes=SIZES)
    with network.entered(topology.namespace(AP)):
        loader.load(config, sources)
        dataplane = MapDataplane.open(name, MachineClock())
    dns = model.VirtualService("dns", topology.vip, 53, model.Protocol.UDP, model.OnDown.RESET, ring_size=251)
    live = model.Member("dns-1", "dns", topology.hosts[0].address, PORT, model.Role.LIVE, None)
    try:
        for step in (
            model.InstallService(dns),
            model.InstallMember(live),
            model.SetRing("dns", {"dns-1": 1.0}),
        ):
            dataplane.apply(step)
        eventually(lambda: answered(topology, b"small"), 10, lambda: str(dataplane.reasons()))
        yield dataplane
    finally:
        dataplane.close()
        loader.unload(name)


def answered(topology: Topology, data: bytes) -> bool:
    with (
        network.entered(topology.namespace("clients")),
        socket.socket(family(topology), socket.SOCK_DGRAM) as client,
    ):
        client.settimeout(1.0)
        client.connect((str(topology.vip), 53))
        client.send(data)
        try:
            return client.recv(65535) == data
        except TimeoutError:
            return False


def test_a_large_datagram_and_its_answer_arrive_whole(topology: Topology, echo: None) -> None:
    with steering(topology, BPF_DIR) as dataplane:
        before = dataplane.counters()
        eventually(lambda: answered(topology, LARGE), 5, lambda: str(dataplane.reasons()))
        after = dataplane.counters()
        row = after.rows["dns-1"]
        assert after.packets[row] - before.packets[row] >= 3
        assert after.return_packets[row] - before.return_packets[row] >= 3
        assert dataplane.reasons()["drop_fragment"] == 0


def test_a_program_that_remembers_no_first_fragment_loses_the_rest(
    topology: Topology, echo: None, tmp_path: Path
) -> None:
    shutil.copytree(BPF_DIR, tmp_path / "bpf")
    source, right = tmp_path / "bpf/send.c", "if (!packet->fragmented || DRY_RUN)"
    assert source.read_text().count(right) == 1, "send.c has changed: name the fault anew"
    source.write_text(source.read_text().replace(right, "if (true)"))
    with steering(topology, tmp_path / "bpf") as dataplane:
        assert not answered(topology, LARGE)
        assert dataplane.reasons()["drop_fragment"] >= 2
