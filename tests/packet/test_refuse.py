# SPDX-License-Identifier: Apache-2.0
"""A packet whose TTL ends here, or that is too large for its next hop: its sender is told."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_RR
from scapy.layers.inet6 import ICMPv6PacketTooBig, IPv6, IPv6ExtHdrDestOpt, IPv6ExtHdrFragment
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from controlplane.adapters import layout, libbpf
from tests.packet.rig import DROP, FAR_TICK, PASS, REDIRECT, UDP_NUMBER, Rig, refused, rewritten, tcp, udp

ADDRESSES = {
    4: ("198.51.100.10", "192.0.2.7", "203.0.113.5"),
    6: ("2001:db8:1::10", "2001:db8:c::7", "2001:db8:2::5"),
}
"""IP version -> VIP, client, endpoint."""
MTU = 1400
LINK = Ether(src="02:00:00:00:0c:01", dst="02:00:00:00:0a:02")
versions = pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])


@pytest.fixture
def steered(rig: Rig) -> Rig:
    return install(rig)


def install(rig: Rig) -> Rig:
    """A TCP service on port 80 and a UDP service on port 53 of both IP versions; next hops take MTU bytes."""
    for version, (vip, _, endpoint) in ADDRESSES.items():
        for index, port, own, protocol in ((version, 80, 8080, 6), (version + 1, 53, 5353, UDP_NUMBER)):
            rig.service(index, vip, port, protocol)
            rig.ring(index, [rig.endpoint(index, index, endpoint, own, mtu=MTU)] * 7)
    return rig


def large(version: int, payload: int = 2000) -> Packet:
    """From the client, and not to be fragmented."""
    vip, client, _ = ADDRESSES[version]
    return whole(tcp(client, 4000, vip, 80, "PA", (bytes(range(256)) * 9)[:payload]))


def whole(packet: Packet) -> Packet:
    if IP in packet:
        packet[IP].flags = "DF"
    return Ether(bytes(packet))


def tagged(packet: Packet, *tags: Packet) -> Packet:
    out = Ether(src=packet.src, dst=packet.dst)
    for tag in tags:
        out /= tag
    return Ether(bytes(out / packet.payload.copy()))


def by_gateway(rig: Rig, mtu: int) -> None:
    """Answers leave by a gateway that is cached."""
    for row in (0, 1):
        gateway = rig.gateways[row : row + 1]
        gateway["hop_expires"], gateway["hop_ifindex"], gateway["hop_mtu"] = FAR_TICK, 1, mtu


@versions
class TestTtl:
    @pytest.mark.parametrize("ttl", [0, 1])
    @pytest.mark.parametrize("payload", [0, 1, 2, 3, 4, 507, 508, 509, 1172, 1173, 1400])
    def test_it_ends_here_and_its_sender_is_told(
        self, steered: Rig, version: int, ttl: int, payload: int
    ) -> None:
        vip, client, _ = ADDRESSES[version]
        packet = tcp(client, 4000, vip, 80, "PA", bytes(i * 7 % 251 for i in range(payload)), ttl=ttl)
        result = steered.send(packet)
        assert (result.verdict, result.reason) == (REDIRECT, "reply_ttl")
        assert result.raw == refused(packet, vip)
        assert steered.flow_count() == 0
        assert steered.counts(version, "packets", "offered") == {"packets": 0, "offered": 0}

    def test_a_udp_packet_s_too_and_its_frame_s_padding_is_not_quoted(
        self, steered: Rig, version: int
    ) -> None:
        vip, client, _ = ADDRESSES[version]
        packet = udp(client, 4000, vip, 53, b"x", ttl=1)
        result = steered.send(bytes(packet) + bytes(17))
        assert (result.reason, result.raw) == ("reply_ttl", refused(packet, vip))

    @pytest.mark.parametrize(
        ("device", "tags"),
        [([5], [Dot1Q(vlan=5, prio=3)]), ([7, 5], [Dot1AD(vlan=7), Dot1Q(vlan=5, prio=3)])],
        ids=["802.1Q", "QinQ"],
    )
    def test_a_tagged_frame_is_answered_with_its_tags(
        self, steered: Rig, version: int, device: list[int], tags: list[Packet]
    ) -> None:
        vip, client, _ = ADDRESSES[version]
        steered.port(105, 1, device)
        packet = tagged(tcp(client, 4000, vip, 80, "S", ttl=1), *tags)
        result = steered.send(packet)
        assert (result.verdict, result.reason) == (REDIRECT, "reply_ttl")
        assert result.raw == refused(packet, vip)

    def test_options_and_extension_headers_are_quoted(self, steered: Rig, version: int) -> None:
        vip, client, _ = ADDRESSES[version]
        packet = tcp(client, 4000, vip, 80, "S", ttl=1)
        if version == 4:
            packet[IP].options = [IPOption_RR(routers=["0.0.0.0"] * 3)]
        else:
            rest = packet[TCP].copy()
            packet[IPv6].remove_payload()
            packet = packet / IPv6ExtHdrDestOpt() / rest
        result = steered.send(Ether(bytes(packet)))
        assert (result.reason, result.raw) == ("reply_ttl", refused(packet, vip))

    def test_of_an_answer_its_endpoint_is_told(self, steered: Rig, version: int) -> None:
        vip, client, endpoint = ADDRESSES[version]
        steered.send(tcp(client, 4000, vip, 80, "S"))
        packet = tcp(endpoint, 8080, client, 4000, "SA", ttl=1)
        result = steered.send(packet)
        assert (result.verdict, result.reason) == (REDIRECT, "reply_ttl")
        assert result.raw == refused(packet, vip)
        assert steered.count(version, "return_packets") == 0

    def test_who_is_no_client_gets_no_error(self, steered: Rig, version: int) -> None:
        vip, _, _ = ADDRESSES[version]
        nobody = ["224.0.0.1", "127.0.0.1", "0.1.2.3", "255.255.255.255"]
        for source in (vip, *(nobody if version == 4 else ["ff02::1", "::1", "::", "fe80::1"])):
            packet = tcp(source, 4000, vip, 80, "S", ttl=1)
            result = steered.send(packet)
            assert (result.verdict, result.reason, result.raw) == (DROP, "drop_source", bytes(packet))

    def test_past_the_limit_of_a_tick_it_is_dropped(self, steered: Rig, version: int) -> None:
        packet = large(version)
        steered.settings["icmp_limit"] = 0
        result = steered.send(packet)
        assert (result.verdict, result.reason, result.raw) == (DROP, "drop_icmp_limit", bytes(packet))
        steered.settings["icmp_limit"] = 2
        steered.cpus["icmp_tick"], steered.cpus["icmp_sent"] = 0, 0
        ticks = set()
        seen = []
        for _ in range(40):
            seen.append(steered.send(packet).reason)
            ticks.add(int(steered.cpus["icmp_tick"].max()))
        # Two in each tick, whose CPUs may be two.
        assert 2 <= seen.count("reply_mtu") <= 2 * len(ticks) * 2
        assert seen.count("reply_mtu") + seen.count("drop_icmp_limit") == len(seen)


@versions
class TestMtu:
    def test_a_larger_packet_is_answered_with_the_next_hop_s(self, steered: Rig, version: int) -> None:
        vip, _, _ = ADDRESSES[version]
        packet = large(version)
        result = steered.send(packet)
        assert (result.verdict, result.reason) == (REDIRECT, "reply_mtu")
        assert result.raw == refused(packet, vip, MTU)
        assert steered.count(version, "packets") == 0

    def test_one_byte_decides(self, steered: Rig, version: int) -> None:
        headers = 60 if version == 6 else 40
        assert steered.send(large(version, MTU - headers)).reason == "forward_hop"
        assert steered.send(large(version, MTU - headers + 1)).reason == "reply_mtu"

    def test_of_an_answer_its_endpoint_is_told(self, steered: Rig, version: int) -> None:
        vip, client, endpoint = ADDRESSES[version]
        by_gateway(steered, 1300)
        steered.send(tcp(client, 4000, vip, 80, "S"))
        packet = whole(tcp(endpoint, 8080, client, 4000, "PA", bytes(1400)))
        result = steered.send(packet)
        assert (result.verdict, result.reason) == (REDIRECT, "reply_mtu")
        assert result.raw == refused(packet, vip, 1300)
        assert steered.count(version, "return_packets") == 0

    def test_the_one_before_says_nothing_of_the_next(self, steered: Rig, version: int) -> None:
        """What is handed on from the one program to the other is of this packet."""
        vip, client, _ = ADDRESSES[version]
        assert steered.send(large(version)).reason == "reply_mtu"
        ended = tcp(client, 4000, vip, 80, "A", ttl=1)
        assert steered.send(ended).raw == refused(ended, vip)

    def test_an_error_about_a_flow_gets_none(self, steered: Rig, version: int) -> None:
        vip, client, _ = ADDRESSES[version]
        steered.send(tcp(client, 4000, vip, 80, "S"))
        answer = tcp(vip, 80, client, 4000, "A", bytes(1400))
        if version == 6:
            outer = IPv6(src=client, dst=vip) / ICMPv6PacketTooBig(mtu=1280)
            packet = LINK / outer / Raw(bytes(answer[IPv6]))
        else:
            outer = IP(src=client, dst=vip, flags="DF") / ICMP(type=3, code=4, nexthopmtu=1300)
            packet = LINK / outer / Raw(bytes(answer[IP]))
        result = steered.send(packet)
        assert (result.verdict, result.reason, result.raw) == (DROP, "drop_mtu", bytes(packet))

    def test_a_later_fragment_gets_none(self, steered: Rig, version: int) -> None:
        vip, client, _ = ADDRESSES[version]
        if version == 6:
            first = LINK / IPv6(src=client, dst=vip) / IPv6ExtHdrFragment(id=9, m=1, nh=17)
            first = first / UDP(sport=4000, dport=53, len=3000, chksum=1) / bytes(64)
            later = LINK / IPv6(src=client, dst=vip) / IPv6ExtHdrFragment(id=9, offset=9, nh=17) / bytes(1400)
        else:
            first = LINK / IP(src=client, dst=vip, id=9, flags="MF+DF")
            first = first / UDP(sport=4000, dport=53, len=3000, chksum=1) / bytes(64)
            later = LINK / IP(src=client, dst=vip, id=9, frag=9, flags="DF", proto=17) / bytes(1400)
        assert steered.send(first).reason == "forward_hop"
        result = steered.send(later)
        assert (result.verdict, result.reason, result.raw) == (DROP, "drop_mtu", bytes(later))
        ended = later.copy()
        ended[IPv6 if version == 6 else IP].ttl = 1
        if version == 6:
            ended[IPv6].hlim = 1
        assert steered.send(ended).reason == "drop_ttl"

    def test_a_first_fragment_s_sender_is_told(self, steered: Rig, version: int) -> None:
        vip, client, _ = ADDRESSES[version]
        if version == 6:
            first = LINK / IPv6(src=client, dst=vip) / IPv6ExtHdrFragment(id=9, m=1, nh=17)
        else:
            first = LINK / IP(src=client, dst=vip, id=9, flags="MF+DF")
        first = Ether(bytes(first / UDP(sport=4000, dport=53, len=3000, chksum=1) / bytes(1400)))
        result = steered.send(first)
        assert (result.reason, result.raw) == ("reply_mtu", refused(first, vip, MTU))


def test_what_may_be_cut_is_the_kernels_to_cut_rewritten(steered: Rig) -> None:
    vip, client, endpoint = ADDRESSES[4]
    packet = tcp(client, 4000, vip, 80, "PA", bytes(2000))
    result = steered.send(packet)
    assert (result.verdict, result.reason) == (PASS, "forward_cut")
    assert result.raw == rewritten(packet, destination=(endpoint, 8080), hop=None)
    assert steered.count(4, "packets") == 1


@pytest.fixture
def alone(steered: Rig) -> Iterator[Rig]:
    """Without the program that answers."""
    array = steered.compiled.maps["refusals"]
    number = int.from_bytes(libbpf.map_lookup(array, bytes(4), 4) or b"", "little")
    program = libbpf.prog_by_id(number)
    libbpf.map_delete(array, bytes(4))
    yield steered
    libbpf.map_update(array, bytes(4), program.to_bytes(4, "little"))
    os.close(program)


@versions
def test_without_who_answers_it_is_the_kernels_as_it_came_and_counted(alone: Rig, version: int) -> None:
    vip, client, _ = ADDRESSES[version]
    for packet, reason in (
        (large(version), "pass_mtu"),
        (tcp(client, 4000, vip, 80, "S", ttl=1), "pass_ttl"),
    ):
        result = alone.send(packet)
        assert (result.verdict, result.reason, result.raw) == (PASS, reason, bytes(packet))


def test_those_who_answer_are_counted_where_the_packet_came_in(steered: Rig) -> None:
    """As every packet: by one reason, on this CPU, in the row of its interface."""
    before = steered.reasons.copy()
    steered.send(large(4))
    rows = np.argwhere(steered.reasons != before)
    assert [layout.REASONS[int(reason)] for _, reason in rows] == ["reply_mtu"]
    assert int(rows[0][0]) % layout.INTERFACE_ROWS == layout.OTHER_INTERFACES
