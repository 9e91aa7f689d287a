# SPDX-License-Identifier: Apache-2.0
"""ICMP through an access point that steers: clients can ping a VIP, and endpoints learn path MTUs."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import ICMPv6PacketTooBig, ICMPv6TimeExceeded, IPv6
from scapy.packet import Packet, Raw

from controlplane.adapters import libbpf, pins
from controlplane.lab import network, packets
from controlplane.lab.topology import AP
from tests.netns.steered import Steered, eventually, steered

MTU = 1300
ENDPOINT_PORT = 8080
NARROW = 1290
"""Less than MTU, which an endpoint may know by now and so ask for no more."""
BODY_BYTES = 200_000
STALLS_S = 2.0


@pytest.fixture(scope="module", params=[4, 6], ids=["IPv4", "IPv6"])
def site(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Steered]:
    with steered(tmp_path_factory.mktemp("icmp"), ip_version=request.param) as made:
        made.start()
        yield made


def is_v6(site: Steered) -> bool:
    return site.lab.topology.ip_version == 6


def ping(site: Steered, address: str) -> bool:
    """From the lab's clients."""
    v6 = is_v6(site)
    family, protocol = (
        (socket.AF_INET6, socket.IPPROTO_ICMPV6) if v6 else (socket.AF_INET, socket.IPPROTO_ICMP)
    )
    request, reply = (128, 129) if v6 else (8, 0)
    with site.lab.entered("clients"), socket.socket(family, socket.SOCK_RAW, protocol) as asking:
        asking.settimeout(2.0)
        asking.connect((address, 0))
        body = struct.pack("!BBHHH", request, 0, 0, 77, 1)
        check = 0xFFFF - sum(struct.unpack("!4H", body)) % 0xFFFF
        asking.send(body if v6 else struct.pack("!BBHHH", request, 0, check, 77, 1))
        try:
            while True:
                answer = asking.recv(2048)[0 if v6 else 20 :]
                if answer[0] == reply:
                    return answer[4:8] == body[4:8]
        except TimeoutError:
            return False


def test_a_client_can_ping_the_vip_and_an_endpoint(site: Steered) -> None:
    assert ping(site, str(site.lab.topology.vip))
    assert ping(site, str(site.lab.topology.node("host1").address))


def too_big(site: Steered, seen: Packet) -> Packet:
    """What a router between the access point and the client says of an answer."""
    network = IPv6 if is_v6(site) else IP
    # The answer is acknowledged by now, and an error about what is older is not believed (RFC 5927, 4.1).
    seen[TCP].seq += len(seen[TCP].payload)
    start = bytes(seen[network])[: 60 if is_v6(site) else 40]
    outer = network(src=str(site.lab.topology.clients.address), dst=str(site.lab.topology.vip))
    if is_v6(site):
        return outer / ICMPv6PacketTooBig(mtu=MTU) / Raw(start)
    return outer / ICMP(type=3, code=4, nexthopmtu=MTU) / Raw(start)


def is_answer(packet: Packet) -> bool:
    return TCP in packet and packet[TCP].sport == 80 and bool(packet[TCP].payload)


def test_the_endpoint_learns_the_path_s_mtu_from_an_error_that_was_sent_to_the_vip(site: Steered) -> None:
    vip, client = str(site.lab.topology.vip), str(site.lab.topology.clients.address)
    route = ["ip", "route", "get", client]
    assert f"mtu {MTU}" not in site.lab.run("host1", route)
    with (
        packets.catching(site.lab, "clients") as caught,
        site.lab.connect("clients", vip, 80, timeout_s=5.0) as connection,
    ):
        connection.sendall(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        answer = caught.until(
            lambda packet: TCP in packet and packet[TCP].sport == 80 and bool(packet[TCP].payload)
        )
        assert answer is not None
        packets.send(site.lab, "clients", [too_big(site, answer)])
        eventually(
            lambda: f"mtu {MTU}" in site.lab.run("host1", route), 5, lambda: site.lab.run("host1", route)
        )


def times_out_here(packet: Packet) -> bool:
    return ICMPv6TimeExceeded in packet or (ICMP in packet and packet[ICMP].type == 11)


def test_who_sends_with_a_ttl_that_ends_at_the_access_point_is_told(site: Steered) -> None:
    topology = site.lab.topology
    vip, client = topology.vip, topology.clients.address
    probe = packets.tcp(client, vip, 4242, 80)
    if is_v6(site):
        probe.hlim = 1
    else:
        probe.ttl = 1
    with packets.catching(site.lab, "clients") as caught:
        packets.send(site.lab, "clients", [probe])
        told = caught.until(times_out_here)
    assert told is not None
    network_layer = told[IPv6] if is_v6(site) else told[IP]
    assert network_layer.dst == str(client)
    assert network_layer.src in (str(vip), str(topology.clients.gateway.ip)), "by the kernel's version"
    assert bytes(probe) in bytes(network_layer), "quoted as it was sent"


@contextmanager
def narrow_hosts(site: Steered) -> Iterator[None]:
    """The access point's links to the hosts take NARROW bytes; hosts and clients don't know."""
    ap, hosts = site.lab.topology.namespace(AP), [host.name for host in site.lab.topology.hosts]

    def set_mtu(mtu: int) -> None:
        for name in hosts:
            network.run(["ip", "-n", ap, "link", "set", name, "mtu", str(mtu)])

    set_mtu(NARROW)
    try:
        yield
    finally:
        set_mtu(1500)
        site.lab.run("clients", ["ip", "-6" if is_v6(site) else "-4", "route", "flush", "cache"])


def posts(site: Steered) -> bool:
    """Whether a client gets a large request to an endpoint: with full segments, none of them to be cut."""
    with site.lab.connect("clients", str(site.lab.topology.vip), 80, timeout_s=STALLS_S) as connection:
        head = f"POST / HTTP/1.1\r\nHost: web\r\nContent-Length: {BODY_BYTES}\r\n\r\n"
        try:
            connection.sendall(head.encode() + bytes(BODY_BYTES))
            return connection.recv(4096).startswith(b"HTTP/1.1 200")
        except TimeoutError:
            return False


def known_mtu(site: Steered) -> str:
    return site.lab.run("clients", ["ip", "route", "get", str(site.lab.topology.vip)])


@contextmanager
def nobody_answers(site: Steered) -> Iterator[None]:
    array = libbpf.obj_get(pins.folder(site.instance) / "refusals", libbpf.Kind.MAP)
    program = libbpf.prog_by_id(int.from_bytes(libbpf.map_lookup(array, bytes(4), 4) or b"", "little"))
    libbpf.map_delete(array, bytes(4))
    try:
        yield
    finally:
        libbpf.map_update(array, bytes(4), program.to_bytes(4, "little"))
        os.close(array)
        os.close(program)


def test_a_client_learns_how_large_packets_to_an_endpoint_may_be(site: Steered) -> None:
    with narrow_hosts(site):
        with nobody_answers(site):
            eventually(lambda: not posts(site), 15, "large requests still pass")
            assert f"mtu {NARROW}" not in known_mtu(site)
        assert posts(site)
        assert f"mtu {NARROW}" in known_mtu(site)


def routed_by(site: Steered, mtu: int | None) -> None:
    """The access point's route to the client, with an MTU of its own: not locked, and the link takes more."""
    client = site.lab.topology.clients.address
    own = ["mtu", str(mtu)] if mtu else []
    network.run(
        ["ip", "-n", site.lab.topology.namespace(AP), "route", "replace", str(client), "dev", "clients", *own]
    )


def told_mtu(site: Steered) -> int | None:
    """What a host is told that sends the client more than NARROW bytes, not to be cut, as an endpoint."""
    client, host = site.lab.topology.clients.address, site.lab.topology.hosts[0].address
    large = packets.tcp(host, client, ENDPOINT_PORT, 4243, "A", bytes(NARROW))
    if not is_v6(site):
        large[IP].flags = "DF"
    with packets.catching(site.lab, "host1") as caught:
        packets.send(site.lab, "host1", [large])
        told = caught.until(lambda packet: ICMPv6PacketTooBig in packet or ICMP in packet, 0.5)
    if told is None:
        return None
    return int(told[ICMPv6PacketTooBig].mtu if is_v6(site) else told[ICMP].nexthopmtu)


def test_an_endpoint_learns_the_mtu_of_the_route_to_a_client(site: Steered) -> None:
    """The program's lookup of the kernel's routes overlooks it; without an MTU nobody is told anything."""
    routed_by(site, None)
    try:
        assert told_mtu(site) is None
        routed_by(site, NARROW)
        eventually(lambda: told_mtu(site) == NARROW, 15)
        routed_by(site, 1000)
        least = 1280 if is_v6(site) else 1000  # RFC 8200 section 5
        eventually(lambda: told_mtu(site) == least, 15)
        routed_by(site, None)
        eventually(lambda: told_mtu(site) is None, 15)
    finally:
        client = str(site.lab.topology.clients.address)
        network.run(["ip", "-n", site.lab.topology.namespace(AP), "route", "del", client, "dev", "clients"])
