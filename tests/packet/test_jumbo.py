# SPDX-License-Identifier: Apache-2.0
"""Frames in several buffers, of which the program sees the first: the build for interfaces of a large MTU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scapy.packet import Packet

from tests.fuzz.both import one_cpu
from tests.fuzz.episodes import search
from tests.packet import test_refuse
from tests.packet.rig import DROP, KERNEL, PASS, REDIRECT, Rig, refused, rewritten, tcp, udp
from tests.packet.test_refuse import ADDRESSES, MTU, by_gateway, versions, whole

JUMBO = 8900
FIRST_BUFFER_MIN = 128
PATTERN = (bytes(range(256)) * 36)[:JUMBO]


@pytest.fixture(scope="module")
def loaded_with_frags() -> Iterator[Rig]:
    rig = Rig.load(frags=True)
    yield rig
    rig.compiled.close()


@pytest.fixture
def jumbo(loaded_with_frags: Rig) -> Rig:
    """Services of both IP versions whose next hops take any packet."""
    loaded_with_frags.reset()
    test_refuse.install(loaded_with_frags)
    loaded_with_frags.endpoints["hop_mtu"] = 0
    return loaded_with_frags


def request(version: int, flags: str = "PA", payload: bytes = PATTERN) -> Packet:
    vip, client, _ = ADDRESSES[version]
    return whole(tcp(client, 4000, vip, 80, flags, payload))


def test_what_it_does_with_small_ones_is_the_same(loaded_with_frags: Rig) -> None:
    loaded_with_frags.reset()
    with one_cpu():
        search(loaded_with_frags, 1500, 5)


@versions
@pytest.mark.parametrize("flags", ["S", "PA"], ids=["the long way", "the short way"])
def test_one_is_steered_whole_and_counted_whole(jumbo: Rig, version: int, flags: str) -> None:
    _, _, endpoint = ADDRESSES[version]
    jumbo.send(request(version, "S", b""))
    before = jumbo.count(version, "bytes")
    packet = request(version, flags)
    result = jumbo.send(packet)
    assert (result.verdict, result.reason) == (REDIRECT, "forward_hop")
    assert result.raw == rewritten(packet, destination=(endpoint, 8080))
    assert jumbo.count(version, "bytes") - before == len(packet) - 14


@versions
def test_an_answer_is_too(jumbo: Rig, version: int) -> None:
    vip, client, endpoint = ADDRESSES[version]
    by_gateway(jumbo, 0)
    jumbo.send(request(version, "S", b""))
    packet = whole(tcp(endpoint, 8080, client, 4000, "PA", PATTERN))
    result = jumbo.send(packet)
    assert (result.verdict, result.reason) == (REDIRECT, "return_hop")
    assert result.raw == rewritten(packet, source=(vip, 80), hop=("00:00:00:00:00:00",) * 2)
    assert jumbo.count(version, "return_bytes") == len(packet) - 14


@versions
@pytest.mark.parametrize("flags", ["S", "PA"], ids=["the long way", "the short way"])
def test_one_that_says_to_be_a_byte_longer_than_its_frame_is_broken(
    jumbo: Rig, version: int, flags: str
) -> None:
    jumbo.send(request(version, "S", b""))
    frame = bytes(request(version, flags))
    assert jumbo.send(frame).reason == "forward_hop"
    result = jumbo.send(frame[:-1])
    assert (result.verdict, result.reason, result.raw) == (DROP, "drop_broken", frame[:-1])


@versions
def test_of_one_that_is_too_large_its_sender_is_told(jumbo: Rig, version: int) -> None:
    vip, _, _ = ADDRESSES[version]
    jumbo.endpoints["hop_mtu"] = MTU
    packet = request(version)
    result = jumbo.send(packet)
    assert (result.verdict, result.reason) == (REDIRECT, "reply_mtu")
    assert result.raw == refused(packet, vip, MTU)


def test_padding_in_a_later_buffer_is_left_alone(jumbo: Rig) -> None:
    packet = request(4, payload=PATTERN[:2000])
    result = jumbo.send(bytes(packet) + bytes(4000))
    wanted = rewritten(packet, destination=(ADDRESSES[4][2], 8080))
    assert (result.reason, result.raw) == ("forward_hop", wanted + bytes(4000))


@pytest.mark.skipif(
    KERNEL < (6, 18), reason="before Linux 6.18 no test run has a first buffer of a certain size"
)
@versions
@pytest.mark.parametrize("way", ["to the service", "to the client"])
def test_one_whose_first_buffer_is_too_small_for_any_headers_is_left_to_the_kernel(
    jumbo: Rig, version: int, way: str
) -> None:
    _, client, endpoint = ADDRESSES[version]
    jumbo.send(request(version, "S", b""))
    packet = request(version)
    if way == "to the client":
        by_gateway(jumbo, 0)
        packet = whole(tcp(endpoint, 8080, client, 4000, "PA", PATTERN))
    frame = bytes(packet)
    steered = jumbo.send(frame)
    assert steered.verdict == REDIRECT
    for first_bytes in (FIRST_BUFFER_MIN, FIRST_BUFFER_MIN + 1, 3000):
        result = jumbo.send(frame, first_bytes=first_bytes)
        assert (result.verdict, result.raw) == (REDIRECT, steered.raw), first_bytes
    for first_bytes in range(1, FIRST_BUFFER_MIN):
        result = jumbo.send(frame, first_bytes=first_bytes)
        assert (result.verdict, result.raw) == (PASS, frame), first_bytes


def test_a_udp_datagram_larger_than_a_buffer_is_steered(jumbo: Rig) -> None:
    vip, client, endpoint = ADDRESSES[6]
    packet = udp(client, 4000, vip, 53, PATTERN)
    result = jumbo.send(packet)
    assert result.raw == rewritten(packet, destination=(endpoint, 5353))


@versions
def test_the_other_build_finds_such_frames_too_short(rig: Rig, version: int) -> None:
    """The negative control: it is for these that there is another one."""
    test_refuse.install(rig)
    assert rig.send(request(version)).reason == "drop_broken"
