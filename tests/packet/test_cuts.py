# SPDX-License-Identifier: Apache-2.0
"""Frames cut at every byte, wrong lengths and checksums, ports that are zero: what ends, what passes.

A frame that the wire cut says in its header how long it was, so it is broken wherever that was. One that is
cut together with its lengths is broken until its last header ends.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzz import forge
from tests.fuzz.both import INNER, OUTER, VLAN, Both, one_cpu
from tests.fuzz.forge import Envelope, Piece
from tests.packet.rig import DROP, PASS, REDIRECT, UDP_NUMBER, Rig
from tests.reference import TCP, UDP
from tests.reference_frames import ICMP, ICMPV6

VIP = {4: "198.51.100.10", 6: "2001:db8:1::10"}
CLIENT = {4: "192.0.2.7", 6: "2001:db8:c::7"}
ENDPOINT = {4: "203.0.113.5", 6: "2001:db8:2::5"}
ELSEWHERE = {4: "203.0.113.99", 6: "2001:db8:2::99"}
ROUTER = {4: "192.0.2.254", 6: "2001:db8:c::fe"}
PORTS = {TCP: 80, UDP: 53}
TAGGED = {
    "untagged": b"",
    "in a VLAN": b"\x81\0" + VLAN.to_bytes(2, "big"),
    "in a VLAN of a VLAN": b"\x88\xa8" + OUTER.to_bytes(2, "big") + b"\x81\0" + INNER.to_bytes(2, "big"),
}


@pytest.fixture
def steered(rig: Rig) -> Rig:
    for index, (version, protocol) in enumerate([(v, p) for v in (4, 6) for p in PORTS], start=1):
        rig.service(index, VIP[version], PORTS[protocol], protocol)
        rig.ring(index, [rig.endpoint(10 + index, index, ENDPOINT[version], 8080)] * 7)
    rig.port(105, 1, [VLAN])
    rig.port(106, 1, [OUTER, INNER], [0x88A8, 0x8100])
    return rig


def carried(head: Envelope, protocol: int, options: bytes = b"") -> bytes:
    ports = 4000, PORTS[protocol]
    return forge.tcp(head, ports, "S", options=options) if protocol == TCP else forge.udp(head, ports)


def headers(version: int, destination: str) -> dict[str, Envelope]:
    source = CLIENT[version]
    if version == 4:
        return {
            "plain": Envelope(source, destination),
            "with options": Envelope(source, destination, options=b"\1" * 8),
            "with all options": Envelope(source, destination, options=b"\1" * 40),
        }
    return {
        "plain": Envelope(source, destination),
        "with an extension header": Envelope(source, destination, extensions=1),
        "with four extension headers": Envelope(source, destination, extensions=4),
        "as a first fragment": Envelope(source, destination, piece=Piece(5, 0, True)),
    }


CASES = [
    pytest.param(version, protocol, name, id=f"IPv{version} {kind} {name}")
    for version in (4, 6)
    for protocol, kind in ((TCP, "TCP"), (UDP, "UDP"))
    for name in headers(version, VIP[version])
]


def bounds(version: int, head: Envelope, protocol: int, options: bytes = b"") -> tuple[int, int, bytes]:
    """Where the network header's fixed part ends, where the last header does, and the packet."""
    packet = forge.packet(head, protocol, carried(head, protocol, options))
    return (20 if version == 4 else 40), len(packet), packet


def shorter(packet: bytes, version: int, length: int) -> bytes:
    """Cut, and its header says so."""
    cut = bytearray(packet[:length])
    if version == 4:
        cut[2:4] = length.to_bytes(2, "big")
        header = (cut[0] & 15) * 4
        cut[10:12] = bytes(2)
        cut[10:12] = forge.check(bytes(cut[:header])).to_bytes(2, "big")
    else:
        cut[4:6] = (length - 40).to_bytes(2, "big")
    return bytes(cut)


def ended(rig: Rig, frame: bytes, verdict: int, *reasons: str) -> None:
    """By one of the reasons, untouched and unremembered."""
    result = rig.send(frame)
    assert (result.verdict, result.raw) == (verdict, frame), result
    assert result.reason in reasons
    assert rig.flow_count() == 0


@pytest.mark.parametrize(("version", "protocol", "name"), CASES)
@pytest.mark.parametrize("tags", TAGGED.values(), ids=TAGGED.keys())
class TestCutByTheWire:
    def test_to_a_vip_it_ends_once_its_addresses_are_read(
        self, steered: Rig, version: int, protocol: int, name: str, tags: bytes
    ) -> None:
        fixed, end, packet = bounds(version, headers(version, VIP[version])[name], protocol)
        front = forge.MACS + tags + forge.KINDS[version]
        for length in range(end):
            reason = ("pass_not_ip", PASS) if length < fixed else ("drop_broken", DROP)
            ended(steered, front + packet[:length], reason[1], reason[0])
        assert steered.send(front + packet).verdict == REDIRECT

    def test_to_somebody_else_it_passes(
        self, steered: Rig, version: int, protocol: int, name: str, tags: bytes
    ) -> None:
        fixed, end, packet = bounds(version, headers(version, ELSEWHERE[version])[name], protocol)
        front = forge.MACS + tags + forge.KINDS[version]
        for length in range(end + 1):
            ended(steered, front + packet[:length], PASS, "pass_not_ip" if length < fixed else "pass_other")


@pytest.mark.parametrize(("version", "protocol", "name"), CASES)
@pytest.mark.parametrize("padding", [0, 60], ids=["bare", "padded by the link"])
def test_cut_with_its_length_it_is_broken_until_its_last_header_ends(
    steered: Rig, version: int, protocol: int, name: str, padding: int
) -> None:
    """What lies behind in the frame is no part of the packet, whatever is read there."""
    head = headers(version, VIP[version])[name]
    fixed, end, packet = bounds(version, head, protocol)
    for length in range(fixed, end):
        frame = forge.MACS + forge.KINDS[version] + shorter(packet, version, length)
        ended(steered, frame + (packet[length:] + bytes(60))[:padding], DROP, "drop_broken")
    assert steered.send(forge.MACS + forge.KINDS[version] + packet + bytes(padding)).verdict == REDIRECT


@pytest.mark.parametrize("version", [4, 6])
def test_tcp_options_that_are_cut_are_broken(steered: Rig, version: int) -> None:
    fixed, end, packet = bounds(version, Envelope(CLIENT[version], VIP[version]), TCP, b"\1" * 40)
    for length in range(fixed, end):
        frame = forge.MACS + forge.KINDS[version] + shorter(packet, version, length)
        ended(steered, frame, DROP, "drop_broken")


@pytest.mark.parametrize("length", range(14))
def test_a_runt_without_an_ethernet_header_is_no_frame_to_the_kernel(steered: Rig, length: int) -> None:
    with pytest.raises(OSError, match="EINVAL"):
        steered.send(bytes(length))
    assert int(steered.reasons.sum()) == 0


@pytest.mark.parametrize("kind", [0x0800, 0x86DD, 0x8100, 0x88A8, 0x0806, 0, 0xFFFF], ids=hex)
@pytest.mark.parametrize("length", [0, 1, 3, 4, 7])
def test_a_runt_of_any_kind_passes(steered: Rig, kind: int, length: int) -> None:
    ended(steered, forge.MACS + kind.to_bytes(2, "big") + bytes(length), PASS, "pass_not_ip")


LENGTHS = {
    "an IP length of 0": (4, TCP, 16, 0),
    "an IP length below its header's": (4, TCP, 16, 19),
    "an IP length one past the frame": (4, TCP, 16, 41),
    "an IP length of 65535": (4, TCP, 16, 65535),
    "a payload length of 0": (6, TCP, 18, 0),
    "a payload length one past the frame": (6, TCP, 18, 21),
    "a payload length of 65535": (6, TCP, 18, 65535),
    "a UDP length of 0": (4, UDP, 14 + 20 + 4, 0),
    "a UDP length of 7": (4, UDP, 14 + 20 + 4, 7),
    "a UDP length one past the packet": (4, UDP, 14 + 20 + 4, 9),
    "a UDP length of 0 over IPv6": (6, UDP, 14 + 40 + 4, 0),
    "a UDP length one past the packet over IPv6": (6, UDP, 14 + 40 + 4, 9),
}


@pytest.mark.parametrize(("version", "protocol", "at", "value"), LENGTHS.values(), ids=LENGTHS.keys())
def test_a_wrong_length_ends_at_a_vip(steered: Rig, version: int, protocol: int, at: int, value: int) -> None:
    head = Envelope(CLIENT[version], VIP[version])
    frame = bytearray(forge.frame(head, protocol, carried(head, protocol)))
    frame[at : at + 2] = value.to_bytes(2, "big")
    ended(steered, bytes(frame), DROP, "drop_broken")


@pytest.mark.parametrize("words", range(16))
def test_a_header_length_is_of_five_words_at_least_and_within_the_packet(steered: Rig, words: int) -> None:
    head = Envelope(CLIENT[4], VIP[4])
    frame = bytearray(forge.frame(head, TCP, forge.tcp(head, (4000, 80), "S", payload=bytes(16))))
    for at, shift, most in ((14, 0, 9), (14 + 20 + 12, 4, 9)):
        wrong = bytearray(frame)
        wrong[at] = wrong[at] & (0xF0 >> shift) | words << shift
        if 5 < words <= most and at == 14:
            continue  # what follows the options is then payload, and whatever it names
        result = steered.send(bytes(wrong))
        assert (result.reason == "forward_hop") == (5 <= words <= most), (at, result.reason)


# ---- the packet in an error ---------------------------------------------------------------------


@pytest.fixture
def both(rig: Rig) -> Iterator[Both]:
    with one_cpu():
        yield Both(rig)


ABOUT = [
    pytest.param(version, protocol, answer, id=f"IPv{version} {kind} {'answer' if answer else 'request'}")
    for version in (4, 6)
    for protocol, kind in ((TCP, "TCP"), (UDP, "UDP"))
    for answer in (True, False)
]


@pytest.mark.parametrize(("version", "protocol", "answer"), ABOUT)
@pytest.mark.parametrize("padding", [False, True], ids=["bare", "what was cut follows as padding"])
def test_an_error_is_followed_from_the_byte_on_that_shows_both_ports(
    both: Both, version: int, protocol: int, answer: bool, padding: bool
) -> None:
    """The reference computes what each cut leaves as; here it is said where the line is."""
    vip, port = ("198.51.100.1" if version == 4 else "2001:db8:1::4"), PORTS[protocol]
    client, router = ("20.0.0.1" if version == 4 else "2a00:1::1"), ROUTER[version]
    head = Envelope(client, vip)
    start = forge.tcp(head, (4000, port), "S") if protocol == TCP else forge.udp(head, (4000, port))
    both.send(forge.frame(head, protocol, start).hex())
    (flow,) = both.steering.flows.values()
    given = both.steering.endpoints[flow.endpoint[0]]
    one, other = ((vip, port), (client, 4000)) if answer else ((client, 4000), (given.address, given.port))
    for options in (b"", b"\1" * 8)[: 2 if version == 4 else 1]:
        inside = Envelope(one[0], other[0], options=options)
        ports = one[1], other[1]
        inner = forge.tcp(inside, ports) if protocol == TCP else forge.udp(inside, ports, b"payload")
        quoted = forge.packet(inside, protocol, inner)
        line = (20 if version == 4 else 40) + len(options) + 4
        outside = Envelope(router, one[0])
        for length in range(len(quoted) + 1):
            message = forge.icmp(outside, 3 if version == 4 else 1, 0, bytes(4) + quoted[:length])
            frame = forge.frame(outside, ICMP if version == 4 else ICMPV6, message)
            followed = both.count("forward_hop") + both.count("return_hop")
            both.send((frame + (quoted[length:] if padding else b"")).hex())
            followed = both.count("forward_hop") + both.count("return_hop") - followed
            assert followed == (length >= line), length


# ---- sums, ports, sources -----------------------------------------------------------------------


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [TCP, UDP], ids=["TCP", "UDP"])
@pytest.mark.parametrize("off", [1, 0x100, 0x7FFF, 0xFFFE])
def test_a_wrong_sum_is_as_wrong_when_it_leaves(both: Both, version: int, protocol: int, off: int) -> None:
    """Nothing is mended on the way: who gets it must see that it is broken. The reference sums up both."""
    vip = "198.51.100.1" if version == 4 else "2001:db8:1::4"
    head = Envelope(CLIENT[version], vip)
    ports = 4000, PORTS[protocol]
    inner = bytearray(forge.tcp(head, ports, "S") if protocol == TCP else forge.udp(head, ports, b"query"))
    at = 16 if protocol == TCP else 6
    value = (int.from_bytes(inner[at : at + 2], "big") + off) % 0xFFFF or 0xFFFF
    inner[at : at + 2] = value.to_bytes(2, "big")
    frame = bytearray(forge.frame(head, protocol, bytes(inner)))
    both.send(frame.hex())
    if version == 4:
        frame[14 + 10] ^= off & 0xFF or 1
        both.send(frame.hex())
    assert both.count("forward_hop") == (2 if version == 4 else 1)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("protocol", [TCP, UDP], ids=["TCP", "UDP"])
class TestPortZero:
    def test_to_a_vip_it_ends(self, steered: Rig, version: int, protocol: int) -> None:
        head = Envelope(CLIENT[version], VIP[version])
        inner = forge.tcp(head, (4000, 0), "S") if protocol == TCP else forge.udp(head, (4000, 0))
        ended(steered, forge.frame(head, protocol, inner), DROP, "drop_vip_port")

    def test_of_a_client_it_is_a_port_like_others(self, both: Both, version: int, protocol: int) -> None:
        vip = "198.51.100.1" if version == 4 else "2001:db8:1::4"
        head, ports = Envelope(CLIENT[version], vip), (0, PORTS[protocol])
        inner = forge.tcp(head, ports, "S") if protocol == TCP else forge.udp(head, ports)
        both.send(forge.frame(head, protocol, inner).hex())
        assert both.count("forward_hop") == len(both.steering.flows) == 1


@pytest.mark.parametrize(
    "source",
    [
        *("0.0.0.0", "0.255.255.255", "127.0.0.1", "127.255.255.255", "224.0.0.0", "239.255.255.255"),
        *("240.0.0.0", "255.255.255.255", VIP[4], "::", "::1", "fe80::1", "febf::1", "ff00::", "::5", VIP[6]),
    ],
)
@pytest.mark.parametrize("protocol", [TCP, UDP], ids=["TCP", "UDP"])
def test_from_where_no_client_can_be_it_ends(steered: Rig, source: str, protocol: int) -> None:
    head = Envelope(source, VIP[6 if ":" in source else 4])
    ended(steered, forge.frame(head, protocol, carried(head, protocol)), DROP, "drop_source")


@pytest.mark.parametrize("source", ["1.0.0.0", "126.255.255.255", "128.0.0.0", "223.255.255.255"])
def test_next_to_the_martians_there_are_clients(steered: Rig, source: str) -> None:
    head = Envelope(source, VIP[4])
    assert steered.send(forge.frame(head, TCP, carried(head, TCP))).reason == "forward_hop"


@pytest.mark.parametrize("source", ["fe7f::1", "fec0::1", "feff::1", "::1:0:0:1"])
def test_next_to_the_martians_of_ipv6_too(steered: Rig, source: str) -> None:
    head = Envelope(source, VIP[6])
    assert steered.send(forge.frame(head, UDP_NUMBER, carried(head, UDP))).reason == "forward_hop"
