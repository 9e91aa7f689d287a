# SPDX-License-Identifier: Apache-2.0
"""ICMP through an access point that steers: clients can ping a VIP, and endpoints learn path MTUs."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6
from scapy.packet import Packet, Raw

from controlplane.lab import packets
from tests.netns.steered import Steered, eventually, steered

MTU = 1300


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
