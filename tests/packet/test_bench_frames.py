# SPDX-License-Identifier: Apache-2.0
"""What the end-to-end bench offers and answers are packets that a real kernel would take."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from controlplane.adapters import libbpf
from tests.bench.frames import ENDPOINT_PORT, FRAME_BYTES, Arrived, Frames, frame_of

SOURCE = slice(26, 36)
"""Addresses and source port, in a frame."""
FLOWS = 1 << 13
"""More than one client's ports."""
GATEWAY, CLIENT = "02:00:00:00:0a:01", "02:00:00:00:0c:01"


@pytest.fixture(scope="module")
def frames() -> Iterator[Frames]:
    loaded = Frames()
    yield loaded
    loaded.close()


def offered(frames: Frames, protocol: str, *, opening: bool, port: int = 80, count: int = 1) -> list[bytes]:
    link = Ether(src=CLIENT, dst=GATEWAY)
    frame = frame_of(link, "203.0.113.10", port, protocol, opening=opening)
    frames.aim(frame, FLOWS, in_turn=True)
    return [libbpf.prog_test_run(frames.offer_fd, frame).packet for _ in range(count)]


def has_right_checksums(packet: Packet) -> bool:
    anew = packet.copy()
    layer = anew[TCP] if TCP in anew else anew[UDP]
    del anew[IP].chksum, layer.chksum
    return bytes(anew) == bytes(packet)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("opening", [True, False], ids=["opening", "going on"])
def test_every_flow_is_another_client_with_right_checksums(
    frames: Frames, protocol: str, opening: bool
) -> None:
    packets = offered(frames, protocol, opening=opening, count=FLOWS)
    assert {len(packet) for packet in packets} == {FRAME_BYTES}
    assert len({packet[SOURCE] for packet in packets}) == FLOWS
    assert all(has_right_checksums(Ether(packet)) for packet in packets[:: FLOWS // 64])


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_an_opening_is_answered_and_what_follows_is_counted(frames: Frames, protocol: str) -> None:
    before = frames.arrived()
    opening = Ether(offered(frames, protocol, opening=True, port=ENDPOINT_PORT)[0])
    answer = Ether(libbpf.prog_test_run(frames.arrive_fd, bytes(opening)).packet)
    assert (answer.src, answer.dst) == (GATEWAY, CLIENT)
    assert (answer[IP].src, answer[IP].dst) == (opening[IP].dst, opening[IP].src)
    assert (answer.sport, answer.dport) == (ENDPOINT_PORT, opening.sport)
    assert has_right_checksums(answer)
    if protocol == "tcp":
        assert (answer[TCP].flags, answer[TCP].ack) == ("SA", opening[TCP].seq + 1)
    libbpf.prog_test_run(frames.arrive_fd, offered(frames, protocol, opening=False, port=ENDPOINT_PORT)[0])
    assert frames.arrived() - before == Arrived(frames=1, openings=1, answers=0, strange=0)


def test_what_nobody_translated_is_not_counted_as_arrived(frames: Frames) -> None:
    before = frames.arrived()
    libbpf.prog_test_run(frames.arrive_fd, offered(frames, "tcp", opening=False)[0])
    assert frames.arrived() - before == Arrived(frames=0, openings=0, answers=0, strange=1)
