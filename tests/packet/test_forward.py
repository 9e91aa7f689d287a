# SPDX-License-Identifier: Apache-2.0
"""Client to endpoint: packet in, verdict, whole packet out."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet

from tests.packet.rig import DROP, PASS, REDIRECT, UDP_NUMBER, Rig, refused, rewritten, tcp, udp

VIP, CLIENT, ENDPOINT = "198.51.100.10", "192.0.2.7", "203.0.113.5"


def install_two_services(rig: Rig) -> Rig:
    """A TCP service on port 80 and a UDP service on port 53, one endpoint each, next hops known."""
    rig.service(1, VIP, 80)
    rig.ring(1, [rig.endpoint(1, 1, ENDPOINT, 8080)] * 7)
    rig.service(2, VIP, 53, UDP_NUMBER)
    rig.ring(2, [rig.endpoint(2, 2, ENDPOINT, 5353)] * 7)
    return rig


@pytest.fixture
def steered(rig: Rig) -> Rig:
    return install_two_services(rig)


LINK = Ether(src="02:00:00:00:0c:01", dst="02:00:00:00:0a:02")
"""Both addresses named: scapy asks the real network for one that it is not told."""
FORWARDED = {
    "a SYN goes to the endpoint": (tcp(CLIENT, 4000, VIP, 80, "S"), 8080),
    "an ACK with payload goes to the endpoint": (tcp(CLIENT, 4000, VIP, 80, "PA", b"GET / HTTP/1.1"), 8080),
    "an odd payload length keeps the checksum right": (tcp(CLIENT, 4001, VIP, 80, "PA", b"odd"), 8080),
    "an IP packet with options goes to the endpoint": (
        LINK / IP(src=CLIENT, dst=VIP, options=[b"\x94\x04\x00\x00"]) / TCP(sport=4000, dport=80, flags="S"),
        8080,
    ),
    "a TCP header with options goes to the endpoint": (
        LINK
        / IP(src=CLIENT, dst=VIP)
        / TCP(sport=4000, dport=80, flags="S", options=[("MSS", 1460), ("WScale", 7)]),
        8080,
    ),
    "a UDP datagram goes to the endpoint": (udp(CLIENT, 4000, VIP, 53, b"query"), 5353),
    "an empty UDP datagram goes to the endpoint": (udp(CLIENT, 4000, VIP, 53), 5353),
    "TTL 2 is still forwarded": (tcp(CLIENT, 4000, VIP, 80, "S", ttl=2), 8080),
    "a frame padded by the link keeps its padding": (
        Ether(bytes(tcp(CLIENT, 4000, VIP, 80, "A")) + bytes(6)),
        8080,
    ),
}


@pytest.mark.parametrize(("packet", "port"), FORWARDED.values(), ids=FORWARDED.keys())
def test_forwarded(steered: Rig, packet: Packet, port: int) -> None:
    result = steered.send(packet)
    expected = rewritten(Ether(bytes(packet)), destination=(ENDPOINT, port))
    assert (result.verdict, result.reason) == (REDIRECT, "forward_hop")
    assert result.raw == expected


def broken(packet: Packet, offset: int, value: int) -> bytes:
    raw = bytearray(bytes(packet))
    raw[offset] = value
    return bytes(raw)


SYN = tcp(CLIENT, 4000, VIP, 80, "S")
OTHER = "192.0.2.99"
UNTOUCHED = {
    "a packet to somebody else passes": (tcp(CLIENT, 4000, OTHER, 80), PASS, "pass_other"),
    "a VIP's unknown TCP port is dropped": (tcp(CLIENT, 4000, VIP, 81), DROP, "drop_vip_port"),
    "a VIP's port of the other protocol is dropped": (udp(CLIENT, 4000, VIP, 80), DROP, "drop_vip_port"),
    "an unknown protocol to a VIP is dropped": (
        LINK / IP(src=CLIENT, dst=VIP, proto=47) / b"12345678",
        DROP,
        "drop_vip_port",
    ),
    "an unknown protocol to somebody else passes": (
        LINK / IP(src=CLIENT, dst=OTHER, proto=47) / b"12345678",
        PASS,
        "pass_not_ip",
    ),
    "ARP passes": (LINK / ARP(), PASS, "pass_not_ip"),
    "IPv6 to somebody else passes": (LINK / IPv6() / TCP(), PASS, "pass_other"),
    "a tag of a VLAN that this host does not have passes": (
        LINK / Dot1Q(vlan=5) / SYN[IP],
        PASS,
        "pass_vlan",
    ),
    "ICMP to somebody else passes": (LINK / IP(src=CLIENT, dst=OTHER) / ICMP(), PASS, "pass_icmp"),
    "an ICMP timestamp request to a VIP is dropped": (
        LINK / IP(src=CLIENT, dst=VIP) / ICMP(type=13),
        DROP,
        "drop_vip_port",
    ),
    "a frame to all passes": (Ether(src=LINK.src, dst="ff:ff:ff:ff:ff:ff") / SYN[IP], PASS, "pass_other"),
    "a multicast frame passes": (Ether(src=LINK.src, dst="01:00:5e:00:00:01") / SYN[IP], PASS, "pass_other"),
    "an IP header length below 20 to a VIP is dropped": (broken(SYN, 14, 0x44), DROP, "drop_broken"),
    "another IP version under the IPv4 ethertype to a VIP is dropped": (
        broken(SYN, 14, 0x65),
        DROP,
        "drop_broken",
    ),
    "a total length past the frame to a VIP is dropped": (broken(SYN, 16, 0x05), DROP, "drop_broken"),
    "a total length below the headers to a VIP is dropped": (broken(SYN, 17, 30), DROP, "drop_broken"),
    "a TCP header length below 20 to a VIP is dropped": (broken(SYN, 46, 0x40), DROP, "drop_broken"),
    "a TCP header length past the packet to a VIP is dropped": (broken(SYN, 46, 0xF0), DROP, "drop_broken"),
    "a cut TCP header to a VIP is dropped": (bytes(SYN)[:40], DROP, "drop_broken"),
    "a UDP length past the packet to a VIP is dropped": (
        LINK / IP(src=CLIENT, dst=VIP) / UDP(sport=1, dport=53, len=100),
        DROP,
        "drop_broken",
    ),
    "a UDP length below 8 to a VIP is dropped": (
        LINK / IP(src=CLIENT, dst=VIP) / UDP(sport=1, dport=53, len=7),
        DROP,
        "drop_broken",
    ),
    "a broken packet to somebody else passes": (
        broken(tcp(CLIENT, 4000, OTHER, 80), 46, 0x40),
        PASS,
        "pass_other",
    ),
    "a frame cut in the IP header passes": (bytes(SYN)[:30], PASS, "pass_not_ip"),
}


@pytest.mark.parametrize(("packet", "verdict", "reason"), UNTOUCHED.values(), ids=UNTOUCHED.keys())
def test_untouched(steered: Rig, packet: Packet | bytes, verdict: int, reason: str) -> None:
    result = steered.send(packet)
    assert (result.verdict, result.reason) == (verdict, reason)
    assert result.raw == bytes(packet)
    assert steered.flow_count() == 0


class TestUdpChecksum:
    def test_no_checksum_stays_no_checksum(self, steered: Rig) -> None:
        packet = udp(CLIENT, 4000, VIP, 53, b"query")
        packet[UDP].chksum = 0
        assert steered.send(packet).packet[UDP].chksum == 0

    def test_a_sum_of_zero_is_written_as_all_ones(self, steered: Rig) -> None:
        wanted = Ether(rewritten(udp(CLIENT, 4000, VIP, 53, b"\0\0"), destination=(ENDPOINT, 5353)))
        # The payload that takes up the whole sum makes the rewritten datagram sum to zero.
        payload = wanted[UDP].chksum.to_bytes(2, "big")
        packet = udp(CLIENT, 4000, VIP, 53, payload)
        assert steered.send(packet).packet[UDP].chksum == 0xFFFF


class TestMtu:
    def test_a_packet_as_large_as_the_next_hop_takes_is_forwarded(self, steered: Rig) -> None:
        packet = tcp(CLIENT, 4000, VIP, 80, "PA", b"x" * 100)
        steered.endpoints[1:2]["hop_mtu"] = len(packet) - 14
        assert steered.send(packet).reason == "forward_hop"

    def test_a_larger_one_is_the_kernels_to_cut_and_rewritten(self, steered: Rig) -> None:
        packet = tcp(CLIENT, 4000, VIP, 80, "PA", b"x" * 100)
        steered.endpoints[1:2]["hop_mtu"] = len(packet) - 15
        result = steered.send(packet)
        assert (result.verdict, result.reason) == (PASS, "forward_cut")
        assert result.raw == rewritten(packet, destination=(ENDPOINT, 8080), hop=None)
        assert steered.count(1, "packets") == 1

    def test_of_one_that_may_not_be_cut_its_sender_is_told(self, steered: Rig) -> None:
        packet = tcp(CLIENT, 4000, VIP, 80, "PA", b"x" * 100)
        packet[IP].flags = "DF"
        steered.endpoints[1:2]["hop_mtu"] = len(packet) - 15
        result = steered.send(packet)
        assert (result.reason, result.raw) == ("reply_mtu", refused(packet, VIP, len(packet) - 15))
        assert steered.count(1, "packets") == 0


def test_an_expired_next_hop_without_a_route_leaves_the_packet_to_the_kernel_rewritten(steered: Rig) -> None:
    steered.endpoints[1:2]["hop_expires"] = 1
    result = steered.send(SYN)
    assert (result.verdict, result.reason) == (PASS, "forward_kernel")
    assert result.raw == rewritten(SYN, destination=(ENDPOINT, 8080), hop=None)


def test_a_service_without_a_ring_drops(rig: Rig) -> None:
    rig.service(1, VIP, 80)
    assert rig.send(SYN).reason == "drop_no_endpoint"


def test_a_service_that_is_not_present_counts_as_an_unknown_port(steered: Rig) -> None:
    steered.services[1:2]["flags"] = 0
    assert steered.send(SYN).reason == "drop_vip_port"


def test_a_vip_that_is_the_access_point_s_own_address_keeps_its_other_ports(steered: Rig) -> None:
    steered.direct(f"{VIP}/32")
    assert steered.send(tcp(CLIENT, 4000, VIP, 22)).reason == "pass_other"
    assert steered.send(LINK / IP(src=CLIENT, dst=VIP, proto=47) / b"12345678").reason == "pass_not_ip"
    assert steered.send(broken(SYN, 14, 0x44)).reason == "pass_other"
    assert steered.send(SYN).reason == "forward_hop"


OWN = "192.0.2.1"


@pytest.mark.parametrize(
    "source", ["0.1.2.3", "127.0.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", OWN, VIP]
)
def test_what_no_client_can_send_starts_no_flow(steered: Rig, source: str) -> None:
    """A flow of the access point's own address would claim the answers to its health checks."""
    steered.own(OWN)
    packet = tcp(source, 4000, VIP, 80, "S")
    result = steered.send(packet)
    assert (result.verdict, result.reason, result.raw) == (DROP, "drop_source", bytes(packet))
    assert steered.flow_count() == 0
    assert steered.counts(1, "packets", "offered") == {"packets": 0, "offered": 0}


def test_a_client_that_shares_an_own_address_s_bit_is_a_client(steered: Rig) -> None:
    steered.own(OWN)
    steered.settings["own_sources"] = 0xFFFFFFFFFFFFFFFF
    steered.direct("192.0.2.0/24")
    assert steered.send(SYN).reason == "forward_hop"


def test_packets_and_ip_bytes_are_counted_at_the_endpoint(steered: Rig) -> None:
    packet = tcp(CLIENT, 4000, VIP, 80, "PA", b"x" * 33)
    for _ in range(3):
        steered.send(packet)
    assert steered.counts(1, "packets", "bytes") == {"packets": 3, "bytes": 3 * (20 + 20 + 33)}
