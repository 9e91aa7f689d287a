# SPDX-License-Identifier: Apache-2.0
"""Fragments: where the first one goes the later ones follow, and joined they are the packet rewritten."""

from __future__ import annotations

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP, UDP, defragment, fragment
from scapy.layers.inet6 import IPv6, IPv6ExtHdrFragment, defragment6, fragment6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from controlplane.adapters import layout, libbpf
from tests.packet.rig import DROP, PASS, REDIRECT, TCP_NUMBER, UDP_NUMBER, Rig, tcp, udp

VIP = {4: "198.51.100.10", 6: "2001:db8:1::10"}
CLIENT = {4: "192.0.2.7", 6: "2001:db8::7"}
ENDPOINT = {4: "203.0.113.1", 6: "2001:db8:2::1"}
OTHER = {4: "203.0.113.99", 6: "2001:db8:2::99"}
LENGTH = 3000
TICKS = 38
"""For which a later fragment follows: 10 s."""


def install(rig: Rig) -> Rig:
    for index, (version, protocol, port) in enumerate(
        [(4, TCP_NUMBER, 80), (4, UDP_NUMBER, 53), (6, TCP_NUMBER, 80), (6, UDP_NUMBER, 53)], start=1
    ):
        rig.service(index, VIP[version], port, protocol)
        rig.ring(index, [rig.endpoint(10 + index, index, ENDPOINT[version], 8000 + port)] * 7)
    return rig


@pytest.fixture
def steered(rig: Rig) -> Rig:
    return install(rig)


def whole(version: int, protocol: str, *, back: bool = False) -> Packet:
    make, port, flags = (tcp, 80, ["A"]) if protocol == "TCP" else (udp, 53, [])
    client, server = (CLIENT[version], 4000), (VIP[version], port)
    if back:
        server = (ENDPOINT[version], 8000 + port)
        client, server = server, client
    return make(*client, *server, *flags, bytes(i % 251 for i in range(LENGTH)))


def cut(packet: Packet) -> list[Packet]:
    if IP in packet:
        return [Ether(bytes(piece)) for piece in fragment(packet, fragsize=1000)]
    link = Ether(dst=packet[Ether].dst, src=packet[Ether].src)
    carried = packet[IPv6].payload
    header = packet[IPv6].copy()
    header.remove_payload()
    carrier = Ether(bytes(link / header / IPv6ExtHdrFragment(id=77) / carried))
    return [Ether(bytes(link / piece[IPv6])) for piece in fragment6(carrier[IPv6], 1060)]


def joined(pieces: list[Packet]) -> Packet:
    """The packet from its network header on; its checksums as they were sent."""
    if IP in pieces[0]:
        (made,) = defragment([piece[IP] for piece in pieces])
        return IP(bytes(made))
    return IPv6(bytes(defragment6([piece[IPv6] for piece in pieces])))


def is_right(packet: Packet, protocol: str) -> bool:
    """Its TCP or UDP checksum, computed anew."""
    layer = {"TCP": TCP, "UDP": UDP}[protocol]
    again = packet.copy()
    del again[layer].chksum
    return bool(type(packet)(bytes(again))[layer].chksum == packet[layer].chksum)


EACH = pytest.mark.parametrize(
    ("version", "protocol"), [(v, p) for v in (4, 6) for p in ("TCP", "UDP")], ids=lambda value: str(value)
)


@EACH
def test_fragments_to_a_vip_reach_one_endpoint_and_are_the_packet_again(
    steered: Rig, version: int, protocol: str
) -> None:
    packet = whole(version, protocol)
    results = [steered.send(piece) for piece in cut(packet)]
    assert len(results) >= 3
    assert {(one.verdict, one.reason) for one in results} == {(REDIRECT, "forward_hop")}
    again = joined([one.packet for one in results])
    assert again.dst == ENDPOINT[version]
    assert again.dport == 8000 + packet.dport
    assert bytes(again.payload.payload) == bytes(packet.lastlayer())
    assert is_right(again, protocol)
    index = 10 + {(4, "TCP"): 1, (4, "UDP"): 2, (6, "TCP"): 3, (6, "UDP"): 4}[version, protocol]
    assert steered.count(index, "packets") == len(results)
    assert steered.count(index, "bytes") == sum(len(piece) - 14 for piece in cut(packet))


@EACH
def test_an_answer_in_fragments_comes_from_the_vip(steered: Rig, version: int, protocol: str) -> None:
    packet = whole(version, protocol, back=True)
    results = [steered.send(piece) for piece in cut(packet)]
    again = joined([one.packet for one in results])
    assert {one.verdict for one in results} == {PASS}, "no route in a test run: the kernel's to forward"
    assert (again.src, again.sport) == (VIP[version], packet.sport - 8000)
    assert is_right(again, protocol)


@EACH
def test_a_later_fragment_before_its_first_ends_at_a_vip(steered: Rig, version: int, protocol: str) -> None:
    pieces = cut(whole(version, protocol))
    early = steered.send(pieces[1])
    assert (early.verdict, early.reason, early.raw) == (DROP, "drop_fragment", bytes(pieces[1]))
    steered.send(pieces[0])
    assert steered.send(pieces[1]).reason == "forward_hop"


@EACH
def test_a_later_fragment_long_after_its_first_is_nobodys(steered: Rig, version: int, protocol: str) -> None:
    pieces = cut(whole(version, protocol))
    steered.send(pieces[0])
    fragments = steered.compiled.maps["fragments"]
    (key,) = libbpf.map_keys(fragments, layout.FRAGMENT_KEY.itemsize)
    value = libbpf.map_lookup(fragments, key, layout.FRAGMENT.itemsize)
    assert value is not None
    for age, reason in ((TICKS - 2, "forward_hop"), (TICKS + 2, "drop_fragment")):
        old = np.frombuffer(value, layout.FRAGMENT).copy()
        old["tick"] = int(steered.cpus["tick"].max()) - age
        libbpf.map_update(fragments, key, old.tobytes())
        assert steered.send(pieces[2]).reason == reason


@pytest.mark.parametrize("version", [4, 6])
def test_another_packets_fragment_does_not_follow(steered: Rig, version: int) -> None:
    pieces = cut(whole(version, "UDP"))
    steered.send(pieces[0])
    other = Ether(bytes(pieces[1]))
    if version == 4:
        other[IP].id += 1
    else:
        other[IPv6ExtHdrFragment].id += 1
    assert steered.send(Ether(bytes(other))).reason == "drop_fragment"


@pytest.mark.parametrize("version", [4, 6])
def test_no_fragment_follows_to_an_endpoint_that_is_down(steered: Rig, version: int) -> None:
    pieces = cut(whole(version, "UDP"))
    steered.send(pieces[0])
    steered.state(12 if version == 4 else 14, down=True)
    assert steered.send(pieces[1]).reason == "drop_fragment"


@pytest.mark.parametrize("version", [4, 6])
def test_a_later_fragment_to_somebody_else_passes(steered: Rig, version: int) -> None:
    packet = whole(version, "UDP")
    (packet[IP] if version == 4 else packet[IPv6]).dst = OTHER[version]
    later = steered.send(cut(packet)[1])
    assert (later.verdict, later.reason) == (PASS, "pass_fragment")


@pytest.mark.parametrize("version", [4, 6])
def test_a_first_fragment_without_the_whole_tcp_header_ends_at_a_vip(steered: Rig, version: int) -> None:
    first = bytearray(bytes(cut(whole(version, "TCP"))[0]))
    keep = 14 + (20 if version == 4 else 48) + 8
    short = Ether(bytes(first[:keep]))
    if version == 4:
        short[IP].len, short[IP].chksum = keep - 14, None
    else:
        short[IPv6].plen = keep - 14 - 40
    assert steered.send(short).reason == "drop_broken"


def test_a_packet_in_one_piece_may_have_the_fragment_header(steered: Rig) -> None:
    packet = whole(6, "UDP")
    header = packet[IPv6].copy()
    header.remove_payload()
    atomic = Ether(bytes(packet[Ether])[:14]) / header / IPv6ExtHdrFragment(id=5) / packet[UDP]
    atomic[IPv6].plen = None
    assert steered.send(Ether(bytes(atomic))).reason == "forward_hop"
    assert not list(libbpf.map_keys(steered.compiled.maps["fragments"], layout.FRAGMENT_KEY.itemsize))
