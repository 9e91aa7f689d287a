# SPDX-License-Identifier: Apache-2.0
"""Jumbo frames end to end: TCP through a VIP over links of MTU 9000, both ways, and links that become so."""

from __future__ import annotations

import socket
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from controlplane.adapters import attach
from controlplane.adapters.libbpf import XdpMode
from controlplane.adapters.maps import open_instance
from controlplane.lab import network
from controlplane.lab.lab import Lab
from controlplane.lab.topology import AP, UPLINK, Topology
from tests.netns.steered import Steered

JUMBO = 9000
BYTES = 4_000_000
PATTERN = bytes(range(251)) * (BYTES // 251)
LARGE = 4500
"""Mean bytes of a packet, acknowledgements included, that only large segments reach."""


@contextmanager
def echoing(lab: Lab) -> Iterator[None]:
    """On host1: all that comes goes back."""
    with lab.entered("host1"):
        listening = socket.create_server((str(lab.topology.node("host1").address), 8080))

    def serve(connection: socket.socket) -> None:
        with connection:
            while data := connection.recv(1 << 16):
                connection.sendall(data)

    def accept() -> None:
        while True:
            try:
                threading.Thread(target=serve, args=(listening.accept()[0],), daemon=True).start()
            except OSError:
                return

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield
    finally:
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Steered]:
    with Steered(tmp_path, Lab(Topology(f"s{uuid.uuid4().hex[:8]}"))) as made, echoing(made.lab):
        root = made.configuration()
        for service in root["services"].values():
            service["probe"] = {"kind": "tcp", "interval": "300ms", "timeout": "250ms"}
        made.configure(root)
        yield made


def set_mtu(site: Steered, mtu: int, *, others: bool) -> None:
    """Of the access point's interfaces, and of what is at their other ends."""
    topology = site.lab.topology
    for node in topology.leaves:
        ends = [(AP, node.name), *([(node.name, UPLINK)] if others else [])]
        for name, device in ends:
            network.run(["ip", "-n", topology.namespace(name), "link", "set", device, "mtu", str(mtu)])


def exchange(connection: socket.socket) -> None:
    """Every byte arrives, there and back."""
    connection.settimeout(10)
    sending = threading.Thread(target=connection.sendall, args=(PATTERN,), daemon=True)
    sending.start()
    came = bytearray()
    while len(came) < len(PATTERN):
        data = connection.recv(1 << 18)
        assert data, "the connection has ended"
        came += data
    assert came == PATTERN
    sending.join(5)


def connected(site: Steered) -> socket.socket:
    return site.lab.connect("clients", str(site.lab.topology.vip), 80, timeout_s=5.0)


def mean_bytes(site: Steered) -> tuple[float, float]:
    """Of all packets so far: to endpoints, and back."""
    maps = open_instance(site.instance)
    try:
        there, back = (
            {name: int(table[name].sum()) for name in ("packets", "bytes")}
            for table in (maps.forwarded, maps.returned)
        )
    finally:
        maps.close()
    return there["bytes"] / there["packets"], back["bytes"] / back["packets"]


def frags_of(site: Steered) -> int:
    maps = open_instance(site.instance)
    try:
        return int(maps.settings["frags"])
    finally:
        maps.close()


def test_a_tcp_connection_carries_jumbo_frames_both_ways(site: Steered) -> None:
    set_mtu(site, JUMBO, others=True)
    site.start()
    with site.lab.entered(AP):
        assert {one.mode for one in attach.attached(site.instance)} == {XdpMode.NATIVE}
    with connected(site) as connection:
        exchange(connection)
    there, back = mean_bytes(site)
    assert there > LARGE, (there, back)
    assert back > LARGE, (there, back)


def test_a_load_after_the_mtu_has_changed_has_another_program_and_keeps_connections(site: Steered) -> None:
    site.start()
    with connected(site) as connection:
        exchange(connection)
        for mtu, frags in ((JUMBO, 1), (1500, 0)):
            set_mtu(site, mtu, others=False)
            done = site.penumbra("load", site.config)
            assert done.returncode == 0, done.stderr
            assert "another program" in done.stdout
            assert frags_of(site) == frags
            exchange(connection)
            done = site.penumbra("load", site.config)
            assert "another program" not in done.stdout, "it is the right one by now"
