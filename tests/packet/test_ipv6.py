# SPDX-License-Identifier: Apache-2.0
"""IPv6: what differs from IPv4. test_differential.py sends both through the same rules."""

from __future__ import annotations

import pytest
from scapy.layers.inet import TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6EchoRequest,
    ICMPv6ND_NS,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from tests.packet.rig import DROP, PASS, REDIRECT, UDP_NUMBER, Rig, rewritten, tcp, udp

VIP, CLIENT, ENDPOINT = "2001:db8:1::10", "2001:db8:c::7", "2001:db8:2::5"
OTHER = "2001:db8:c::99"
LINK = Ether(src="02:00:00:00:0c:01", dst="02:00:00:00:0a:02")
SYN = tcp(CLIENT, 4000, VIP, 80, "S")


@pytest.fixture
def steered(rig: Rig) -> Rig:
    """A TCP service on port 80 and a UDP service on port 53 of one VIP, one endpoint each."""
    rig.service(1, VIP, 80)
    rig.ring(1, [rig.endpoint(1, 1, ENDPOINT, 8080)] * 7)
    rig.service(2, VIP, 53, UDP_NUMBER)
    rig.ring(2, [rig.endpoint(2, 2, ENDPOINT, 5353)] * 7)
    return rig


def chained(*extensions: Packet, ends: Packet | None = None, to: str = VIP) -> Packet:
    packet = LINK / IPv6(src=CLIENT, dst=to, hlim=64)
    for extension in extensions:
        packet /= extension
    return packet / (ends or TCP(sport=4000, dport=80, flags="S", seq=1))


FORWARDED = {
    "a SYN goes to the endpoint": (SYN, 8080),
    "an odd payload length keeps the checksum right": (tcp(CLIENT, 4001, VIP, 80, "PA", b"odd"), 8080),
    "a UDP datagram goes to the endpoint": (udp(CLIENT, 4000, VIP, 53, b"query"), 5353),
    "an empty UDP datagram goes to the endpoint": (udp(CLIENT, 4000, VIP, 53), 5353),
    "hop limit 2 is still forwarded": (tcp(CLIENT, 4000, VIP, 80, "S", ttl=2), 8080),
    "hop-by-hop options are looked past": (chained(IPv6ExtHdrHopByHop()), 8080),
    "destination options are looked past": (chained(IPv6ExtHdrDestOpt()), 8080),
    "a routing header that has no segment left is looked past": (
        chained(IPv6ExtHdrRouting(type=4, addresses=[OTHER], segleft=0)),
        8080,
    ),
    "four extension headers are looked past": (
        chained(IPv6ExtHdrHopByHop(), IPv6ExtHdrDestOpt(), IPv6ExtHdrDestOpt(), IPv6ExtHdrDestOpt()),
        8080,
    ),
    "a frame padded by the link keeps its padding": (Ether(bytes(SYN) + bytes(6)), 8080),
}


@pytest.mark.parametrize(("packet", "port"), FORWARDED.values(), ids=FORWARDED.keys())
def test_forwarded(steered: Rig, packet: Packet, port: int) -> None:
    result = steered.send(packet)
    assert (result.verdict, result.reason) == (REDIRECT, "forward_hop")
    assert result.raw == rewritten(Ether(bytes(packet)), destination=(ENDPOINT, port))


def broken(packet: Packet, offset: int, value: int) -> bytes:
    raw = bytearray(bytes(packet))
    raw[offset] = value
    return bytes(raw)


UNTOUCHED = {
    "a packet to somebody else passes": (tcp(CLIENT, 4000, OTHER, 80), PASS, "pass_other"),
    "a VIP's unknown TCP port is dropped": (tcp(CLIENT, 4000, VIP, 81), DROP, "drop_vip_port"),
    "an unknown protocol to a VIP is dropped": (
        LINK / IPv6(src=CLIENT, dst=VIP, nh=47) / b"12345678",
        DROP,
        "drop_vip_port",
    ),
    "ICMPv6 to somebody else passes": (chained(ends=ICMPv6EchoRequest(), to=OTHER), PASS, "pass_icmp"),
    "neighbour discovery passes": (
        LINK / IPv6(src="fe80::1", dst="ff02::1:ff00:10") / ICMPv6ND_NS(tgt=VIP),
        PASS,
        "pass_icmp",
    ),
    "five extension headers to a VIP are dropped": (
        chained(*[IPv6ExtHdrDestOpt() for _ in range(5)]),
        DROP,
        "drop_broken",
    ),
    "five extension headers to somebody else pass": (
        chained(*[IPv6ExtHdrDestOpt() for _ in range(5)], to=OTHER),
        PASS,
        "pass_other",
    ),
    "a routing header with a segment left to a VIP is dropped": (
        chained(IPv6ExtHdrRouting(type=4, addresses=[OTHER], segleft=1)),
        DROP,
        "drop_vip_port",
    ),
    "another IP version under IPv6's ethertype to a VIP is dropped": (
        broken(SYN, 14, 0x45),
        DROP,
        "drop_broken",
    ),
    "a payload length past the frame to a VIP is dropped": (broken(SYN, 18, 0x05), DROP, "drop_broken"),
    "a payload length below the TCP header to a VIP is dropped": (broken(SYN, 19, 12), DROP, "drop_broken"),
    "an extension past the payload to a VIP is dropped": (
        broken(chained(IPv6ExtHdrHopByHop()), 14 + 40 + 1, 200),
        DROP,
        "drop_broken",
    ),
    "a cut TCP header to a VIP is dropped": (bytes(SYN)[:60], DROP, "drop_broken"),
    "a UDP length past the packet to a VIP is dropped": (
        chained(ends=UDP(sport=1, dport=53, len=100)),
        DROP,
        "drop_broken",
    ),
    "UDP without a checksum to a VIP is dropped": (
        chained(ends=UDP(sport=1, dport=53, chksum=0)),
        DROP,
        "drop_broken",
    ),
    "a frame cut in the IPv6 header passes": (bytes(SYN)[:50], PASS, "pass_not_ip"),
}


@pytest.mark.parametrize(("packet", "verdict", "reason"), UNTOUCHED.values(), ids=UNTOUCHED.keys())
def test_untouched(steered: Rig, packet: Packet | bytes, verdict: int, reason: str) -> None:
    result = steered.send(packet)
    assert (result.verdict, result.reason) == (verdict, reason)
    assert result.raw == bytes(packet)
    assert steered.flow_count() == 0


@pytest.mark.parametrize("source", ["::", "::1", "fe80::1", "ff02::5", "::192.0.2.1", VIP])
def test_what_no_client_can_send_starts_no_flow(steered: Rig, source: str) -> None:
    packet = tcp(source, 4000, VIP, 80, "S")
    result = steered.send(packet)
    assert (result.verdict, result.reason, result.raw) == (DROP, "drop_source", bytes(packet))
    assert steered.flow_count() == 0


def test_mapped_addresses_are_not_those_of_ipv4(steered: Rig) -> None:
    """In the maps ::ffff:198.51.100.10 is 198.51.100.10: on the wire it is nobody's."""
    steered.service(3, "198.51.100.10", 80)
    steered.ring(3, [steered.endpoint(3, 3, "203.0.113.5", 8080)] * 7)
    for source, destination in ((CLIENT, "::ffff:198.51.100.10"), ("::ffff:192.0.2.7", VIP)):
        packet = tcp(source, 4000, destination, 80, "S")
        result = steered.send(packet)
        assert (result.verdict, result.reason, result.raw) == (PASS, "pass_other", bytes(packet))


def test_an_answer_comes_from_the_vip(steered: Rig) -> None:
    steered.send(SYN)
    answer = tcp(ENDPOINT, 8080, CLIENT, 4000, "SA")
    result = steered.send(answer)
    assert (result.verdict, result.reason) == (PASS, "return_kernel")
    assert result.raw == rewritten(answer, source=(VIP, 80), hop=None)
    steered.send(tcp(CLIENT, 4000, VIP, 80, "A"))
    assert steered.counts(1, "offered", "return_packets") == {"offered": 1, "return_packets": 1}


def test_a_udp_sum_of_zero_is_written_as_all_ones(steered: Rig) -> None:
    wanted = Ether(rewritten(udp(CLIENT, 4000, VIP, 53, b"\0\0"), destination=(ENDPOINT, 5353)))
    packet = udp(CLIENT, 4000, VIP, 53, wanted[UDP].chksum.to_bytes(2, "big"))
    assert steered.send(packet).packet[UDP].chksum == 0xFFFF


def test_packets_and_ip_bytes_are_counted_at_the_endpoint(steered: Rig) -> None:
    steered.send(tcp(CLIENT, 4000, VIP, 80, "PA", b"x" * 33))
    assert steered.counts(1, "packets", "bytes") == {"packets": 1, "bytes": 40 + 20 + 33}
