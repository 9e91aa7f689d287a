# SPDX-License-Identifier: Apache-2.0
"""The build that captures: it steers as the other, and tells of each packet how it came and how it left."""

from __future__ import annotations

import os
from collections.abc import Iterator
from ipaddress import ip_network

import numpy as np
import pytest
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet

from controlplane.adapters import capture, captures, layout, libbpf
from controlplane.adapters.bcc import Build, Compiled, ProgramSizes, compile_program
from controlplane.adapters.captures import Frame, FrameRing
from controlplane.addresses import Network
from controlplane.model import Sizes
from tests.fuzz.both import one_cpu
from tests.fuzz.episodes import search
from tests.packet.rig import BPF_DIR, DROP, REDIRECT, SIZES, Rig, refused, tcp

NAMED = Sizes(SIZES.services, SIZES.endpoints, SIZES.buckets * layout.BUCKET_FLOWS, SIZES.ring_lines * 16)
VIP, PORT, CLIENT = "198.51.100.1", 80, "192.0.2.1"
VIP6, CLIENT6 = "2001:db8:1::4", "2001:db8:0:1::7"


class Capturing(Rig):
    """A rig whose program captures."""

    def __init__(self, compiled: Compiled, own: dict[str, int]) -> None:
        super().__init__(compiled)
        self.wanted = libbpf.map_view(own["capture_wanted"], captures.CAPTURING, writable=True)
        self.cpus_own = libbpf.map_view(own["capture_cpus"], captures.CAPTURE_CPU, writable=True)
        self.told = FrameRing(own["captured"])

    def reset(self) -> None:
        super().reset()
        self.cpus_own.view(np.uint8)[...] = 0
        while self.told.read():
            pass
        self.ask()

    def ask(
        self,
        *,
        client: Network | None = None,
        service: int = captures.ANY,
        endpoint: int = captures.ANY,
        snap: int = captures.SNAP_MAX,
    ) -> None:
        self.wanted[0] = captures.asked(client, snap, capture.REASONS, service, endpoint)
        self.wanted["until_tick"] = 0x7FFFFFFF

    def capture(self, frame: Packet | bytes, *, ingress_ifindex: int = 0) -> list[Frame]:
        self.result = self.send(frame, ingress_ifindex=ingress_ifindex)
        return self.told.read()


@pytest.fixture(scope="module")
def loaded_capturing() -> Iterator[Capturing]:
    own = captures.make_maps()
    plain = Rig.load()
    compiled = compile_program(BPF_DIR, ProgramSizes.of(NAMED), {**plain.compiled.maps, **own}, Build.CAPTURE)
    yield Capturing(compiled, own)
    plain.compiled.close()
    compiled.close()
    for fd in own.values():
        os.close(fd)


@pytest.fixture
def rig(loaded_capturing: Capturing) -> Capturing:
    """Two services, of IPv4 and IPv6, an endpoint each; all is captured."""
    loaded_capturing.reset()
    return loaded_capturing


def steering(rig: Capturing) -> None:
    rig.service(1, VIP, PORT)
    rig.ring(1, [rig.endpoint(10, 1, "203.0.113.10", 8080)] * 61)
    rig.service(2, VIP6, PORT)
    rig.ring(2, [rig.endpoint(20, 2, "2001:db8:2::10", 8080)] * 61)


@pytest.mark.parametrize("seed", [0, 1])
def test_it_steers_as_the_reference_says(rig: Capturing, seed: int) -> None:
    with one_cpu():
        search(rig, 1500, seed)


@pytest.mark.parametrize("flags", ["S", "A"], ids=["the long way", "the short way"])
def test_a_packet_is_told_as_it_came_and_as_it_left(rig: Capturing, flags: str) -> None:
    steering(rig)
    rig.capture(tcp(CLIENT, 4242, VIP, PORT, "S"))
    frame = tcp(CLIENT, 4242, VIP, PORT, flags, b"payload")
    came, left = rig.capture(frame)
    assert (came.data, left.data) == (bytes(frame), rig.result.raw)
    for one in (came, left):
        assert layout.REASONS[one.reason] == "forward_hop" == rig.result.reason
        assert (one.service, one.endpoint, one.verdict) == (1, 10, REDIRECT)
        assert (one.length, one.captured) == (len(frame), len(frame))
    assert (came.leaves, left.leaves) == (0, 1)
    assert (came.cpu, came.number) == (left.cpu, left.number)
    assert came.time_ns < left.time_ns


def test_what_is_refused_is_told_as_it_came_and_as_its_sender_is_told(rig: Capturing) -> None:
    steering(rig)
    frame = tcp(CLIENT, 4242, VIP, PORT, "S", b"payload", ttl=1)
    came, left = rig.capture(frame)
    assert (came.data, left.data) == (bytes(frame), refused(frame, VIP))
    for one in (came, left):
        assert (layout.REASONS[one.reason], one.verdict, one.service) == ("reply_ttl", REDIRECT, 1)
    rig.settings["icmp_limit"] = 0
    (came,) = rig.capture(frame)
    assert (came.data, layout.REASONS[came.reason]) == (bytes(frame), "drop_icmp_limit")


def test_an_answer_has_its_sender(rig: Capturing) -> None:
    steering(rig)
    rig.capture(tcp(CLIENT, 4242, VIP, PORT, "S"))
    came, left = rig.capture(tcp("203.0.113.10", 8080, CLIENT, 4242, "SA"))
    assert (came.service, came.endpoint) == (1, 10)
    assert Ether(left.data).payload.src == VIP
    assert layout.REASONS[left.reason] == "return_kernel"


def test_what_is_dropped_has_only_come_and_what_is_passed_is_not_told(rig: Capturing) -> None:
    steering(rig)
    (came,) = rig.capture(tcp(CLIENT, 4242, VIP, PORT + 1, "S"))
    assert (came.leaves, came.verdict, came.service, came.endpoint) == (0, DROP, captures.ANY, 0)
    assert layout.REASONS[came.reason] == "drop_vip_port"
    assert rig.capture(tcp(CLIENT, 4242, "192.0.2.99", PORT, "S")) == []
    assert rig.capture(b"\x02" * 14) == []


def test_a_frame_of_a_vlan_leaves_without_its_tag(rig: Capturing) -> None:
    steering(rig)
    rig.port(77, 1, (7,))
    plain = tcp(CLIENT, 4242, VIP, PORT, "S")
    frame = Ether(src=plain.src, dst=plain.dst) / Dot1Q(vlan=7) / plain.payload
    rig.ask(client=ip_network(CLIENT))
    came, left = rig.capture(frame, ingress_ifindex=1)
    assert (came.length, left.length) == (len(frame), len(frame) - 4)
    assert (came.data, left.data) == (bytes(frame), rig.result.raw)
    assert came.ifindex == 1


def test_frames_are_cut_to_what_was_asked(rig: Capturing) -> None:
    steering(rig)
    rig.ask(snap=100)
    frame = tcp(CLIENT, 4242, VIP, PORT, "S", bytes(900))
    for one, whole in zip(rig.capture(frame), (bytes(frame), rig.result.raw), strict=True):
        assert (one.length, one.captured) == (len(frame), 100)
        assert one.data == whole[:100]


@pytest.mark.parametrize(
    ("network", "is_told"),
    [
        (CLIENT, (True, False)),
        ("192.0.2.0/24", (True, False)),
        ("192.0.3.0/24", (False, False)),
        ("0.0.0.0/0", (True, False)),
        (CLIENT6, (False, True)),
        ("2001:db8::/63", (False, True)),
        ("2001:db8:0:2::/64", (False, False)),
        ("::/0", (True, True)),
    ],
)
def test_only_packets_of_the_client_are_told(
    rig: Capturing, network: str, is_told: tuple[bool, bool]
) -> None:
    steering(rig)
    rig.ask(client=ip_network(network))
    assert bool(rig.capture(tcp(CLIENT, 4242, VIP, PORT, "S"))) == is_told[0]
    assert bool(rig.capture(tcp("203.0.113.10", 8080, CLIENT, 4242, "SA"))) == is_told[0]
    assert bool(rig.capture(tcp(CLIENT6, 4242, VIP6, PORT, "S"))) == is_told[1]


def test_only_packets_of_the_service_or_endpoint_are_told(rig: Capturing) -> None:
    steering(rig)
    for asked, told in (
        ({"service": 1}, (1, 0)),
        ({"service": 2}, (0, 1)),
        ({"endpoint": 20}, (0, 1)),
        ({"service": 1, "endpoint": 20}, (0, 0)),
    ):
        rig.ask(**asked)
        frames = [
            rig.capture(tcp(CLIENT, 4242, VIP, PORT, "S")),
            rig.capture(tcp(CLIENT6, 1, VIP6, PORT, "S")),
        ]
        assert tuple(len(one) // 2 for one in frames) == told


def test_when_nobody_asks_any_more_nothing_is_told_and_packets_are_counted(rig: Capturing) -> None:
    steering(rig)
    rig.wanted["until_tick"] = 1
    assert rig.capture(tcp(CLIENT, 4242, VIP, PORT, "S")) == []
    assert rig.result.reason == "forward_hop"
    assert (rig.cpus_own["unseen"].sum(), rig.cpus_own["lost"].sum()) == (1, 0)


def test_what_finds_no_room_is_counted(rig: Capturing) -> None:
    steering(rig)
    frame = bytes(tcp(CLIENT, 4242, VIP, PORT, "A", bytes(1000)))
    room = captures.RING_BYTES // (2 * len(frame))
    for _ in range(room):
        libbpf.prog_test_run(rig.compiled.program_fd, frame)
    packets = room
    read = 0
    while more := rig.told.read():
        read += len(more)
    assert rig.cpus_own["lost"].sum() > 0
    assert read + rig.cpus_own["lost"].sum() == 2 * packets
    assert len(rig.capture(frame)) == 2, "and then there is room again"
