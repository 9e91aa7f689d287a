# SPDX-License-Identifier: Apache-2.0
"""ICMP and ICMPv6: errors follow the flow that they are about, both ways; a VIP answers echo requests."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, ICMPv6Unknown, IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from tests.packet.rig import DROP, HOP_DST, HOP_SRC, PASS, REDIRECT, UDP_NUMBER, Rig, tcp, udp

LINK = Ether(src="02:00:00:00:0c:01", dst="02:00:00:00:0a:02")
ADDRESSES = {
    4: ("198.51.100.10", "192.0.2.7", "203.0.113.5", "192.0.2.254"),
    6: ("2001:db8:1::10", "2001:db8:c::7", "2001:db8:2::5", "2001:db8:c::fe"),
}
"""IP version -> VIP, client, endpoint, a router on the way."""
ERRORS = {
    4: {"unreachable": (3, 3), "too big": (3, 4), "time exceeded": (11, 0), "parameter problem": (12, 0)},
    6: {"unreachable": (1, 4), "too big": (2, 0), "time exceeded": (3, 0), "parameter problem": (4, 1)},
}
CASES = [
    pytest.param(version, protocol, error, id=f"IPv{version} {protocol} {name}")
    for version, errors in ERRORS.items()
    for protocol in ("TCP", "UDP")
    for name, error in errors.items()
]


@pytest.fixture
def steered(rig: Rig) -> Rig:
    return install(rig)


def install(rig: Rig) -> Rig:
    """A TCP service on port 80 and a UDP service on port 53, in both IP versions."""
    for version, (vip, _, endpoint, _) in ADDRESSES.items():
        rig.service(version, vip, 80)
        rig.ring(version, [rig.endpoint(version, version, endpoint, 8080)] * 7)
        rig.service(version + 1, vip, 53, UDP_NUMBER)
        rig.ring(version + 1, [rig.endpoint(version + 1, version + 1, endpoint, 5353)] * 7)
    return rig


def ip(version: int, source: str, destination: str, ttl: int = 64) -> Packet:
    if version == 6:
        return IPv6(src=source, dst=destination, hlim=ttl)
    return IP(src=source, dst=destination, ttl=ttl, id=9)


def about(
    version: int, protocol: str, source: tuple[str, int], destination: tuple[str, int], sums: bytes
) -> bytes:
    """The start of a packet as a router sends it back; ``sums``: bytes that stand for L4's checksum."""
    layer = TCP(sport=source[1], dport=destination[1], seq=77) if protocol == "TCP" else UDP()
    layer.sport, layer.dport = source[1], destination[1]
    raw = bytes(ip(version, source[0], destination[0]) / layer / b"xxxx")
    header = 40 if version == 6 else 20
    l4 = raw[header : header + 8]
    return raw[:header] + (l4[:6] + sums if protocol == "UDP" else l4)


def error(
    version: int, source: str, destination: str, kind: tuple[int, int], inner: bytes, ttl: int = 64
) -> Packet:
    outer = LINK / ip(version, source, destination, ttl)
    if version == 6:
        return outer / ICMPv6Unknown(type=kind[0], code=kind[1], msgbody=b"\0\0\x05\x00" + inner)
    return outer / ICMP(type=kind[0], code=kind[1], unused=0) / Raw(inner)


def hopped(packet: Packet) -> bytes:
    """As a router sends it on."""
    out = packet.copy()
    out[Ether].dst, out[Ether].src = HOP_DST, HOP_SRC
    if IPv6 in out:
        out[IPv6].hlim -= 1
    else:
        out[IP].ttl -= 1
    return bytes(out)


def begin(rig: Rig, version: int, protocol: str) -> tuple[int, int]:
    """A flow from the client's port 4000; the service's port and the endpoint's."""
    vip, client, _, _ = ADDRESSES[version]
    if protocol == "TCP":
        rig.send(tcp(client, 4000, vip, 80, "S"))
        return 80, 8080
    rig.send(udp(client, 4000, vip, 53, b"query"))
    return 53, 5353


@pytest.mark.parametrize(("version", "protocol", "kind"), CASES)
def test_an_error_about_an_answer_goes_to_the_endpoint(
    steered: Rig, version: int, protocol: str, kind: tuple[int, int]
) -> None:
    vip, client, endpoint, router = ADDRESSES[version]
    port, own = begin(steered, version, protocol)
    came = about(version, protocol, (vip, port), (client, 4000), b"\x12\x34")
    goes = about(version, protocol, (endpoint, own), (client, 4000), b"\x12\x34")
    result = steered.send(error(version, router, vip, kind, came))
    assert (result.verdict, result.reason) == (REDIRECT, "forward_hop")
    assert result.raw == hopped(error(version, router, endpoint, kind, goes))


@pytest.mark.parametrize(("version", "protocol", "kind"), CASES)
@pytest.mark.parametrize("by", ["the endpoint", "a router"])
def test_an_error_about_a_request_goes_to_the_client_from_the_vip(
    steered: Rig, version: int, protocol: str, kind: tuple[int, int], by: str
) -> None:
    vip, client, endpoint, router = ADDRESSES[version]
    port, own = begin(steered, version, protocol)
    came = about(version, protocol, (client, 4000), (endpoint, own), b"\x12\x34")
    goes = about(version, protocol, (client, 4000), (vip, port), b"\x12\x34")
    source = endpoint if by == "the endpoint" else router
    result = steered.send(error(version, source, client, kind, came))
    assert (result.verdict, result.reason) == (PASS, "return_kernel")
    assert result.raw == bytes(error(version, vip, client, kind, goes))


@pytest.mark.parametrize("version", [4, 6])
class TestNotOurs:
    def test_an_error_about_no_flow_ends_at_a_vip_and_passes_elsewhere(
        self, steered: Rig, version: int
    ) -> None:
        vip, client, endpoint, router = ADDRESSES[version]
        kind = ERRORS[version]["unreachable"]
        for source, destination, verdict, reason in (
            ((vip, 80), (client, 4000), DROP, "drop_vip_port"),
            ((client, 4000), (endpoint, 8080), PASS, "pass_icmp"),
            ((client, 4000), (router, 8080), PASS, "pass_icmp"),
        ):
            inner = about(version, "TCP", source, destination, b"")
            packet = error(version, router, source[0], kind, inner)
            result = steered.send(packet)
            assert (result.verdict, result.reason, result.raw) == (verdict, reason, bytes(packet))

    def test_an_error_to_another_than_who_sent_what_it_is_about_is_not_believed(
        self, steered: Rig, version: int
    ) -> None:
        vip, client, _, router = ADDRESSES[version]
        begin(steered, version, "TCP")
        inner = about(version, "TCP", (vip, 80), (client, 4000), b"")
        packet = error(version, router, client, ERRORS[version]["unreachable"], inner)
        assert steered.send(packet).reason == "pass_icmp"

    def test_every_cut_of_an_error_passes_or_ends_untouched(self, steered: Rig, version: int) -> None:
        vip, client, _, router = ADDRESSES[version]
        begin(steered, version, "TCP")
        inner = about(version, "TCP", (vip, 80), (client, 4000), b"")
        for length in range(len(inner) - 4):
            packet = error(version, router, vip, ERRORS[version]["unreachable"], inner[:length])
            result = steered.send(packet)
            assert (result.reason, result.raw) == ("drop_vip_port", bytes(packet)), length

    def test_a_hop_limit_that_ends_here_is_the_kernels(self, steered: Rig, version: int) -> None:
        _, client, endpoint, router = ADDRESSES[version]
        begin(steered, version, "TCP")
        inner = about(version, "TCP", (client, 4000), (endpoint, 8080), b"")
        packet = error(version, router, client, ERRORS[version]["unreachable"], inner, ttl=1)
        assert steered.send(packet).raw == bytes(packet)


def echo(version: int, source: str, destination: str, ttl: int = 17, reply: bool = False) -> Packet:
    outer = LINK / ip(version, source, destination, ttl)
    if version == 6:
        kind = ICMPv6EchoReply if reply else ICMPv6EchoRequest
        return outer / kind(id=3, seq=4, data=b"odd")
    return outer / ICMP(type=0 if reply else 8, id=3, seq=4) / Raw(b"odd")


@pytest.mark.parametrize("version", [4, 6])
class TestEcho:
    def test_a_vip_answers_as_it_was_asked(self, steered: Rig, version: int) -> None:
        vip, client, _, _ = ADDRESSES[version]
        result = steered.send(echo(version, client, vip))
        wanted = echo(version, vip, client, ttl=64, reply=True)
        wanted[Ether].src, wanted[Ether].dst = LINK.dst, LINK.src
        assert (result.verdict, result.reason) == (REDIRECT, "reply_echo")
        assert result.raw == bytes(wanted)

    def test_a_vip_that_is_this_host_s_own_is_the_kernels_to_answer(self, steered: Rig, version: int) -> None:
        vip, client, _, _ = ADDRESSES[version]
        steered.own(vip)
        packet = echo(version, client, vip)
        result = steered.send(packet)
        assert (result.verdict, result.reason, result.raw) == (PASS, "pass_icmp", bytes(packet))

    def test_who_is_no_client_gets_no_answer(self, steered: Rig, version: int) -> None:
        vip, _, _, _ = ADDRESSES[version]
        for source in (vip, "224.0.0.1" if version == 4 else "ff02::1"):
            assert steered.send(echo(version, source, vip)).reason == "drop_source"

    def test_a_reply_to_a_vip_ends_there(self, steered: Rig, version: int) -> None:
        vip, client, _, _ = ADDRESSES[version]
        assert steered.send(echo(version, client, vip, reply=True)).reason == "drop_vip_port"
