# SPDX-License-Identifier: Apache-2.0
"""Real TCP from clients through the access point to endpoints; what is asserted is who answered."""

from __future__ import annotations

import hashlib
import shutil
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import replace
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from controlplane import model
from controlplane.adapters import loader, netlink
from controlplane.adapters.dataplane import MapDataplane
from controlplane.lab import network
from controlplane.lab.topology import AP, Topology
from tests.netns.steered import eventually

PORT = 8080
BPF_DIR = Path(__file__).resolve().parents[2] / "bpf"


class NamedServer:
    """Greets with its name, then echoes. Its sockets live in the namespace they were made in."""

    def __init__(self, name: str, port: int) -> None:
        self._name = name
        self._listener = socket.create_server(("0.0.0.0", port), backlog=256)
        self._open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._open.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with suppress(OSError):
            connection.sendall(self._name.encode().ljust(16))
            while data := connection.recv(4096):
                connection.sendall(data)
            connection.close()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)  # ends the accept that waits
        self._listener.close()
        for connection in self._open:
            connection.close()


@pytest.fixture(scope="module")
def servers(topology: Topology) -> Iterator[None]:
    """web-1, web-2, web-3 on the three hosts, and an administration port on the first."""
    made: list[NamedServer] = []
    try:
        for number, host in enumerate(topology.hosts, start=1):
            with network.entered(topology.namespace(host.name)):
                made.append(NamedServer(f"web-{number}", PORT))
        with network.entered(topology.namespace("host1")):
            made.append(NamedServer("ssh", 2222))
        yield
    finally:
        for server in made:
            server.close()


@pytest.fixture
def steering(loaded: MapDataplane, topology: Topology, servers: None) -> MapDataplane:
    """web-1 live with web-2 as its shadow; web-3 is not in the pool yet."""
    web = model.VirtualService("web", topology.vip, 80, model.Protocol.TCP, model.OnDown.RESET, ring_size=251)
    steps: list[model.Step] = [
        model.InstallService(web),
        model.InstallMember(member(topology, 1)),
        model.InstallMember(member(topology, 2, parent="web-1")),
        model.SetRing("web", {"web-1": 1.0}),
        model.SetSlots("web-1", {"web-2": 1.0}),
    ]
    for step in steps:
        loaded.apply(step)
    with network.entered(topology.namespace(AP)):
        own = netlink.local_addresses()
        loaded.set_direct(
            [*(IPv4Network(address) for address in own), *(IPv4Network(h.address) for h in topology.hosts)]
        )
        settle_hops(loaded)
    return loaded


def settle_hops(dataplane: MapDataplane) -> None:
    """Twice, for the first call may only have started the neighbours' resolution."""
    dataplane.renew_hops()
    time.sleep(0.05)
    dataplane.renew_hops()


def member(topology: Topology, number: int, parent: str | None = None) -> model.Member:
    role = model.Role.LIVE if parent is None else model.Role.SHADOW
    address = topology.hosts[number - 1].address
    return model.Member(f"web-{number}", "web", address, PORT, role, parent)


@contextmanager
def connected(topology: Topology) -> Iterator[tuple[socket.socket, str]]:
    """A client's connection to the VIP, and the name of who answered."""
    with (
        network.entered(topology.namespace("clients")),
        socket.create_connection((str(topology.vip), 80), timeout=3) as connection,
    ):
        yield connection, connection.recv(16, socket.MSG_WAITALL).decode().strip()


def who_answers(topology: Topology, times: int = 1) -> Counter[str]:
    found: Counter[str] = Counter()
    for _ in range(times):
        with connected(topology) as (_, name):
            found[name] += 1
    return found


def echoes(connection: socket.socket) -> bool:
    try:
        connection.sendall(b"still there?")
        return connection.recv(12, socket.MSG_WAITALL) == b"still there?"
    except OSError:
        return False


def test_a_connection_to_the_vip_is_answered_by_the_live_endpoint(
    steering: MapDataplane, topology: Topology
) -> None:
    assert who_answers(topology, 20) == {"web-1": 20}
    counted = steering.counters()
    assert counted.completed[counted.rows["web-1"]] == 20
    assert counted.rtt_count[counted.rows["web-1"]] == 20
    assert steering.quantiles_ms([0.5])["web-1"][0] != [None]
    assert steering.reasons()["forward_hop"] > 0, steering.reasons()


def test_spill_sends_its_share_of_new_flows_to_the_shadow_and_old_ones_stay(
    steering: MapDataplane, topology: Topology
) -> None:
    with connected(topology) as (old, name):
        assert name == "web-1"
        steering.apply(model.SetSpill("web-1", 1.0))
        assert who_answers(topology, 20) == {"web-2": 20}
        steering.apply(model.SetSpill("web-1", 0.5))
        found = who_answers(topology, 200)
        assert 65 <= found["web-2"] <= 135, found  # five standard deviations
        assert echoes(old)
    assert {event.kind for event in steering.events()} >= {model.EventKind.REDIRECTED}
    assert steering.events() == []


def test_a_changed_ring_moves_new_flows_only(steering: MapDataplane, topology: Topology) -> None:
    with connected(topology) as (old, _):
        steering.apply(model.InstallMember(member(topology, 3)))
        steering.apply(model.SetRing("web", {"web-3": 1.0}))
        assert who_answers(topology, 20) == {"web-3": 20}
        assert echoes(old)
        assert steering.active_flows(["web-1"]) == {"web-1": 1}
    eventually(lambda: steering.active_flows(["web-1"]) == {"web-1": 0})


def test_down_takes_new_flows_and_cached_ones_away_at_once(
    steering: MapDataplane, topology: Topology
) -> None:
    with connected(topology) as (old, name):
        assert name == "web-1"
        steering.apply(model.SetDown("web-1", True))
        before = steering.counters()
        assert not echoes(old)
        assert who_answers(topology, 20) == {"web-2": 20}
        after = steering.counters()
        assert after.packets[after.rows["web-1"]] == before.packets[before.rows["web-1"]]
    steering.apply(model.SetDown("web-1", False))
    assert who_answers(topology, 5) == {"web-1": 5}


def test_without_the_down_flag_the_old_connection_goes_on(steering: MapDataplane, topology: Topology) -> None:
    """The control of the test above: what ends the connection there is the flag and nothing else."""
    with connected(topology) as (old, _):
        before = steering.counters()
        assert echoes(old)
        after = steering.counters()
        assert after.packets[after.rows["web-1"]] > before.packets[before.rows["web-1"]]


def test_a_removed_members_cached_flows_are_misses(steering: MapDataplane, topology: Topology) -> None:
    steering.apply(model.SetSpill("web-1", 1.0))
    with connected(topology) as (old, name):
        assert name == "web-2"
        steering.apply(model.SetSpill("web-1", 0.0))
        steering.apply(model.SetSlots("web-1", {}))
        assert echoes(old)
        steering.apply(model.RemoveMember("web-2"))
        assert not echoes(old)


def test_health_checks_administration_and_endpoints_among_themselves_pass_a_loaded_access_point(
    steering: MapDataplane, topology: Topology
) -> None:
    host1, host2 = topology.hosts[0], topology.hosts[1]
    for where, port, answer in (
        (topology.namespace(AP), PORT, "web-1"),
        (topology.namespace(AP), 2222, "ssh"),
        (topology.namespace("clients"), 2222, "ssh"),
        (topology.namespace(host2.name), PORT, "web-1"),
    ):
        with (
            network.entered(where),
            socket.create_connection((str(host1.address), port), timeout=3) as connection,
        ):
            assert connection.recv(16, socket.MSG_WAITALL).decode().strip() == answer, (where, port)
    assert steering.reasons()["pass_direct"] > 0


def test_without_direct_prefixes_a_health_check_does_not_come_back(
    steering: MapDataplane, topology: Topology
) -> None:
    """The control of the test above."""
    steering.set_direct([])
    with network.entered(topology.namespace(AP)), pytest.raises(OSError, match="timed out"):
        socket.create_connection((str(topology.hosts[0].address), PORT), timeout=0.5)


def test_a_vip_that_is_the_access_point_s_own_address_leaves_its_other_ports_alone(
    steering: MapDataplane, topology: Topology
) -> None:
    """Its administrator comes in by one of them, and its own connections end there."""
    own = topology.clients.gateway.ip
    service = model.VirtualService("own", own, 80, model.Protocol.TCP, model.OnDown.RESET, ring_size=251)
    for step in (
        model.InstallService(service),
        model.InstallMember(replace(member(topology, 3), service="own")),
        model.SetRing("own", {"web-3": 1.0}),
    ):
        steering.apply(step)
    with network.entered(topology.namespace(AP)):
        settle_hops(steering)
        ssh = NamedServer("ssh of the AP", 2222)
    try:
        with network.entered(topology.namespace("clients")):
            assert greeting(str(own), 80) == "web-3"
            assert greeting(str(own), 2222) == "ssh of the AP"
    finally:
        ssh.close()


def greeting(address: str, port: int) -> str:
    with socket.create_connection((address, port), timeout=3) as connection:
        return connection.recv(16, socket.MSG_WAITALL).decode().strip()


def test_flows_are_listed_with_client_service_and_endpoint(
    steering: MapDataplane, topology: Topology
) -> None:
    with connected(topology) as (connection, _):
        address, port = connection.getsockname()
        rows = [row for row in steering.flows(100) if row.client_port == port]
    assert [(str(r.client), r.service, r.endpoint, r.state) for r in rows] == [
        (address, "web", "web-1", "established")
    ]
    assert rows[0].idle_s < 2


def test_traffic_goes_on_when_next_hops_expire(steering: MapDataplane, topology: Topology) -> None:
    time_out = time.monotonic() + 6
    eventually(lambda: time.monotonic() > time_out, within_s=8)  # a hop lives for 5 s
    assert who_answers(topology, 5) == {"web-1": 5}
    reasons = steering.reasons()
    assert reasons["forward_fib"] + reasons["forward_kernel"] > 0


def test_large_transfers_survive_offloads(steering: MapDataplane, topology: Topology) -> None:
    payload = bytes(range(256)) * 4096
    with connected(topology) as (connection, _):
        writer = threading.Thread(target=connection.sendall, args=(payload,))
        writer.start()
        got = b""
        while len(got) < len(payload) and (data := connection.recv(65536)):
            got += data
        writer.join()
    assert got == payload


def test_transfers_and_new_connections_go_on_while_the_program_is_replaced(
    steering: MapDataplane, topology: Topology, config: model.Config, tmp_path: Path
) -> None:
    versions = [tmp_path / "older", tmp_path / "newer"]
    for version in versions:
        shutil.copytree(BPF_DIR, version)
        source = version / "steer.c"
        source.write_text(f"/* {version.name} */\n{source.read_text()}")
    ended = threading.Event()
    block = bytes(range(256)) * 256

    def send(transfer: socket.socket) -> bytes:
        sent = hashlib.sha256()
        while not ended.is_set():
            transfer.sendall(block)
            sent.update(block)
        transfer.shutdown(socket.SHUT_WR)
        return sent.digest()

    def receive(transfer: socket.socket) -> tuple[bytes, int]:
        got, size = hashlib.sha256(), 0
        while data := transfer.recv(1 << 16):
            got.update(data)
            size += len(data)
        return got.digest(), size

    def ask() -> Counter[str]:
        answers = Counter[str]()
        while not ended.is_set():
            answers += who_answers(topology)
        return answers

    def replace_it() -> int:
        try:
            with network.entered(topology.namespace(AP)):
                return sum(loader.load(config, versions[at % 2]).replaced for at in range(4))
        finally:
            ended.set()

    with connected(topology) as (transfer, _), connected(topology) as (idle, _), ThreadPoolExecutor() as pool:
        sending, receiving = pool.submit(send, transfer), pool.submit(receive, transfer)
        asking, replacing = pool.submit(ask), pool.submit(replace_it)
        assert replacing.result() == 4
        got, size = receiving.result()
        assert got == sending.result()
        assert size > 10 * len(block), "there was no transfer to speak of"
        answers = asking.result()
        assert echoes(idle)
    assert answers.keys() == {"web-1"}
    assert answers["web-1"] > 10
