# SPDX-License-Identifier: Apache-2.0
"""Past a limit of new flows per CPU and tick nothing is remembered; nobody is evicted, and hashes decide."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import pytest
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from controlplane.adapters import layout, libbpf
from tests.packet.rig import TCP_NUMBER, UDP_NUMBER, Rig, tcp, udp

VIP, CLIENT = "198.51.100.10", "192.0.2.7"
LIMIT, MANY = 8, 40
KINDS = {"SYN": "S", "ACK": "A", "UDP": ""}


def packet(kind: str, port: int) -> Packet:
    flags = KINDS[kind]
    return tcp(CLIENT, port, VIP, 80, flags) if flags else udp(CLIENT, port, VIP, 80)


class Flood:
    def __init__(self, rig: Rig, kind: str) -> None:
        self.rig, self.kind = rig, kind

    def install(self, members: int = 3) -> None:
        rig = self.rig
        rig.reset()
        rig.settings["insert_limit"] = LIMIT
        rig.service(1, VIP, 80, TCP_NUMBER if KINDS[self.kind] else UDP_NUMBER)
        rig.ring(1, [rig.endpoint(10 + i, 1, f"203.0.113.{i + 1}", 8080) for i in range(members)] * 20)

    def own(self, name: str) -> int:
        return int(self.rig.cpus[name].sum())

    def to(self, port: int, kind: str | None = None) -> str:
        return str(self.rig.send(packet(kind or self.kind, port)).packet.payload.dst)

    def pour(self, count: int = MANY) -> list[str]:
        """``count`` new flows, all in one tick of the program's: where each went."""
        frames = [bytes(packet(self.kind, 1000 + i)) for i in range(count)]
        while True:
            self.install()
            first, tick = self.run(frames[0]), self.own("tick")
            others = [self.run(frame) for frame in frames[1:]]
            if self.own("tick") == tick:
                return [str(Ether(sent).payload.dst) for sent in (first, *others)]

    def run(self, frame: bytes) -> bytes:
        """Nothing but that, for on an emulated CPU a tick is soon over."""
        return libbpf.prog_test_run(self.rig.compiled.program_fd, frame).packet

    def next_tick(self) -> None:
        """The limits count a tick; this makes the present one another than what they counted."""
        for name in ("insert_tick", "flood_tick"):
            self.rig.cpus[name] -= np.uint32(1)


@pytest.fixture(params=KINDS)
def flood(rig: Rig, request: pytest.FixtureRequest) -> Iterator[Flood]:
    """On one CPU, for each has a limit of its own."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield Flood(rig, request.param)
    os.sched_setaffinity(0, before)


def test_up_to_the_limit_all_are_remembered(flood: Flood) -> None:
    flood.pour(LIMIT)
    assert (flood.rig.flow_count(), flood.own("flooded"), flood.own("floods")) == (LIMIT, 0, 0)


def test_past_the_limit_none_is_and_both_are_counted(flood: Flood) -> None:
    flood.pour()
    assert (flood.rig.flow_count(), flood.own("flooded"), flood.own("floods")) == (LIMIT, MANY - LIMIT, 1)


def test_who_is_not_remembered_goes_where_the_hash_says_each_time(flood: Flood) -> None:
    went = flood.pour()
    assert [flood.to(1000 + i) for i in range(MANY)] == went
    flood.rig.settings["insert_limit"] = MANY
    flood.rig.flows["id"] = 0
    flood.next_tick()
    assert [flood.to(1000 + i) for i in range(MANY)] == went, "the ring says the same without a flood"


def test_the_next_tick_remembers_again(flood: Flood) -> None:
    flood.pour()
    flood.next_tick()
    flood.to(5000)
    assert flood.rig.flow_count() == LIMIT + 1


def test_a_flood_evicts_nobody(flood: Flood) -> None:
    """All in two buckets, which the flows before it fill; none of them is answered yet."""
    flood.install()
    rig = flood.rig
    rig.settings["bucket_mask"], rig.settings["insert_limit"] = 1, 8
    for port in range(8):
        flood.to(1000 + port)
    kept = rig.flows["id"][:2].copy()
    assert (kept != 0).sum() >= 6
    rig.settings["insert_limit"] = 0
    flood.next_tick()
    for port in range(400):
        flood.to(2000 + port)
    assert (rig.flows["id"][:2] == kept).all()


def test_without_the_limit_the_same_flood_does_evict(flood: Flood) -> None:
    flood.install()
    rig = flood.rig
    rig.settings["bucket_mask"], rig.settings["insert_limit"] = 1, 1 << 30
    for port in range(8):
        flood.to(1000 + port)
    kept = rig.flows["id"][:2].copy()
    for port in range(400):
        flood.to(2000 + port)
    assert (rig.flows["id"][:2] != kept).any()


def test_a_remembered_flow_stays_on_its_endpoint_through_a_flood(flood: Flood) -> None:
    """Its packets other than SYNs, for those are not looked for."""
    went = flood.pour()
    base = int(flood.rig.services[1]["ring_base"])
    flood.rig.cells[base : base + 120] = layout.reference(12, 1)
    again = "UDP" if flood.kind == "UDP" else "ACK"
    assert [flood.to(1000 + i, again) for i in range(LIMIT)] == went[:LIMIT]


def test_a_syn_in_a_flood_leaves_the_flow_that_it_belongs_to_alone(rig: Rig) -> None:
    flood, again = Flood(rig, "SYN"), bytes(packet("SYN", 1000))
    while True:
        flood.pour()
        before, tick = rig.flows["life"].copy(), flood.own("tick")
        flood.run(again)
        if flood.own("tick") == tick:  # in the next one the flood is over
            break
    assert (rig.flows["life"] == before).all()
