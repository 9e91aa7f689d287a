# SPDX-License-Identifier: Apache-2.0
"""The short way (bpf/hit.c) does what the long one would have done, or nothing at all.

Two programs are made of the one: ``short`` aborts where it would go the long way, ``long`` always goes that.
Each random frame is given to both, on the same maps as they were before.
"""

from __future__ import annotations

import os
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
import numpy.typing as npt
import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet

from controlplane.adapters import layout, libbpf
from controlplane.adapters.bcc import Compiled
from tests.packet.faults import Faults, Place
from tests.packet.rig import (
    ABORTED,
    FAR_TICK,
    HOP_IFINDEX,
    SIZES,
    TCP_NUMBER,
    UDP_NUMBER,
    Rig,
    tcp,
    udp,
)

FRAMES = 4000
SERVICES = {
    1: ("198.51.100.1", 80, TCP_NUMBER),
    2: ("198.51.100.1", 53, UDP_NUMBER),
    3: ("2001:db8:1::4", 80, TCP_NUMBER),
    4: ("2001:db8:1::4", 53, UDP_NUMBER),
}
MEMBERS = 3
NO_LIMIT = 0xFFFFFFFF
PORTS = range(40_000, 40_008)
AGES = (0, 0, 0, 5, 9, 10, 60, 300, 4000)
"""Ticks; nine is the most that last-seen lags, the idle limits are 20 to 3600."""
LIVES = (
    *([layout.FLOW_ESTABLISHED | layout.FLOW_SYN | layout.FLOW_SYNACK] * 6),
    *([layout.FLOW_MIDSTREAM, layout.FLOW_MIDSTREAM | layout.FLOW_ESTABLISHED] * 2),
    *(layout.FLOW_SYN, layout.FLOW_SYN | layout.FLOW_SYNACK, 0, layout.FLOW_ESTABLISHED),
    *(layout.FLOW_ESTABLISHED | layout.FLOW_FIN_CLIENT, layout.FLOW_ESTABLISHED | layout.FLOW_RST),
)
FLAGS = ("A", "A", "PA", "PA", "PAU", "S", "SA", "FA", "R")
FLOOD = (*("S",) * 8, "SP", "SF", "SR", "SA", "A")
LONG, SHORT = "the long way only", "the short way only"
WAYS = {
    LONG: (Place("steer.c", "verdict = hit(&here);", "verdict = LONG_WAY;"),),
    SHORT: (Place("steer.c", "long_way(&here)", "XDP_ABORTED"),),
}


@dataclass(frozen=True, slots=True)
class Sent:
    verdict: int
    frame: bytes
    wrote: dict[str, bytes]
    """Name of a map -> its bytes."""


class Ways:
    """Both programs and what they work on."""

    def __init__(self, rig: Rig, long: Compiled, short: Compiled) -> None:
        self._cpus = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {max(self._cpus)})  # counters are each CPU's own
        self.rig = rig
        self._programs = {"long": long.program_fd, "short": short.program_fd}
        # Of the interfaces without a row of their own: it is the only one that is written, of 256.
        reasons = rig.reasons.reshape(SIZES.cpus, layout.INTERFACE_ROWS, -1)[:, layout.OTHER_INTERFACES]
        self.flood: int | None = None
        """So many ticks ago there were new flows past the limit; None: there is no limit."""
        self._written: dict[str, npt.NDArray[np.uint8] | npt.NDArray[np.uint64]] = {
            "flows": rig.flows.base.view(np.uint8),
            "keys": rig.flow_keys.base.view(np.uint8),
            "counters": rig.counters.view(np.uint8),
            "requests": rig.requests.view(np.uint8),
            "forwarded": rig.forwarded.view(np.uint8),
            "returned": rig.returned.view(np.uint8),
            "reasons": reasons.view(np.uint8),
            "flooded": rig.cpus["flooded"],
        }

    def close(self) -> None:
        os.sched_setaffinity(0, self._cpus)

    def send(self, frame: bytes) -> dict[str, Sent]:
        """By either way, from the same state; within one tick, for the tick is what they write."""
        before = self._snapshot()
        while True:
            ticks, sent = set(), {}
            for way, program in self._programs.items():
                self.restore(before)
                ticks.add(self._flood())
                run = libbpf.prog_test_run(program, frame)
                ticks.add(int(self.rig.cpus["tick"].max()))
                sent[way] = Sent(run.verdict, run.packet, self._snapshot())
            if len(ticks) == 1:
                return {"before": Sent(0, frame, before), **sent}

    def _flood(self) -> int:
        """Returns the tick that it is for."""
        cpus, tick = self.rig.cpus, int(self.rig.cpus["tick"].max())
        if self.flood is not None:
            cpus["insert_tick"], cpus["flood_tick"] = tick, tick - self.flood
        self.rig.settings["insert_limit"] = NO_LIMIT if self.flood is None else 0
        return tick

    def restore(self, wrote: dict[str, bytes]) -> None:
        for name, content in wrote.items():
            array = self._written[name]
            array[...] = np.frombuffer(content, array.dtype).reshape(array.shape)

    def _snapshot(self) -> dict[str, bytes]:
        return {name: array.tobytes() for name, array in self._written.items()}


@pytest.fixture(scope="module")
def faults(loaded: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faults]:
    named = WAYS | {name: (Place("hit.c", *what),) for name, what in FAULTS.items()}
    made = Faults(tmp_path_factory.mktemp("ways"), named, loaded.compiled.maps)
    yield made
    made.close()


@contextmanager
def ways(rig: Rig, faults: Faults, *fault: str) -> Iterator[Ways]:
    """Only one way of it each, on the rig's maps; ``fault`` is in the short one."""
    with faults.compiled(LONG) as long, faults.compiled(SHORT, *fault) as short:
        made = Ways(rig, long, short)
        try:
            yield made
        finally:
            made.close()


def install(rig: Rig) -> None:
    rig.reset()
    rig.settings["seen_ticks"] = 9
    for index, (vip, port, protocol) in SERVICES.items():
        rig.service(index, vip, port, protocol)
        rig.ring(index, [rig.endpoint(index * 10 + i, index, *address(index, i)) for i in range(MEMBERS)])
        for i in range(MEMBERS):
            rig.slots[index * 10 + i] = layout.reference(index * 10 + (i + 1) % MEMBERS, 1)
    for row in range(2):
        gateway = rig.gateways[row : row + 1]
        gateway["hop_expires"], gateway["hop_ifindex"], gateway["hop_mtu"] = FAR_TICK, HOP_IFINDEX, 1500
        gateway["hop_dst"], gateway["hop_src"] = np.arange(6) + 10 * row, np.arange(6) + 30


def address(service: int, member: int) -> tuple[str, int]:
    v6 = ":" in SERVICES[service][0]
    return (f"2001:db8:2::{member + 1:x}" if v6 else f"203.0.113.{member + 1}"), 8000 + 10 * service + member


def client(service: int, number: int) -> str:
    return f"2001:db8:77::{number}" if ":" in SERVICES[service][0] else f"192.0.2.{number}"


def change(rig: Rig, dice: random.Random) -> None:
    """Something that the short way must look at."""
    service = dice.choice(list(SERVICES))
    index = service * 10 + dice.randrange(MEMBERS)
    row = rig.endpoints[index : index + 1]
    rig.state(
        index,
        present=dice.random() < 0.95,
        down=dice.random() < 0.1,
        draining=dice.random() < 0.2,
        evicted=dice.choice([0, 0, 0, 0, 26, 230]),
        generation=1 if dice.random() < 0.95 else 2,
    )
    row["spill"] = dice.choice([0, 0, 0, 0, 1 << 31, layout.SPILL_ALL])
    row["hop_expires"] = 0 if dice.random() < 0.1 else FAR_TICK
    row["hop_vlan"] = 7 if dice.random() < 0.05 else 0
    row["hop_mtu"] = dice.choice([0, 1500, 1500, 1500, 60])
    flags = layout.SERVICE_PRESENT | dice.choice(
        [0, 0, layout.SERVICE_REQUESTS_HTTP1, layout.SERVICE_REQUESTS_TLS]
    )
    rig.services[service : service + 1]["flags"] = flags if dice.random() < 0.97 else 0
    if dice.random() < 0.2:
        rig.services[service : service + 1]["flags"] |= layout.SERVICE_AFFINITY
    gateway = rig.gateways[dice.randrange(2) :][:1]
    gateway["hop_expires"] = 0 if dice.random() < 0.1 else FAR_TICK
    gateway["hop_vlan"] = 7 if dice.random() < 0.05 else 0
    gateway["hop_mtu"] = dice.choice([0, 1500, 1500, 60])
    rig.near[...] = np.uint64(0xFFFFFFFFFFFFFFFF) if dice.random() < 0.1 else np.uint64(0)


def grow_old(rig: Rig, dice: random.Random) -> None:
    """Gives every cached flow another life: flags, and when it was last seen, which on a machine that has
    just started may have been before its clock began: ticks wrap."""
    cached = rig.flows["id"] != 0
    now = int(rig.cpus["tick"].max())
    rig.flows["life"][cached] = [
        (now - dice.choice(AGES) & 0xFFFFFFFF) << 32
        | (dice.choice(LIVES) | (layout.FLOW_REQUEST if dice.random() < 0.3 else 0)) << 24
        | dice.randrange(1 << 24)
        for _ in range(int(cached.sum()))
    ]


@cache
def frame(seed: int, number: int, flags: Sequence[str]) -> bytes:
    """Of a randomness of its own: the same for every fault, so it is made once for all of them."""
    dice = random.Random(f"{seed} {number}")
    service = dice.choice(list(SERVICES))
    vip, port, protocol = SERVICES[service]
    here, there = (client(service, dice.randrange(1, 4)), dice.choice(PORTS)), (vip, port)
    if dice.random() < 0.5:
        here, there = address(service, dice.randrange(MEMBERS)), here
    elif dice.random() < 0.05:
        there = (vip, port + 1)
    payload = dice.randbytes(dice.choice([0, 0, 1, 30, 100]))
    if protocol == TCP_NUMBER:
        packet = tcp(*here, *there, dice.choice(flags), payload)
    else:
        packet = udp(*here, *there, payload)
    odd = dice.choice([None] * 6 + ODD) if dice.random() < 0.5 else None
    if odd is not None:
        packet = odd(packet, dice)
    raw = bytearray(bytes(packet))
    if dice.random() < 0.1:
        raw[dice.randrange(12, min(len(raw), 62))] ^= 1 << dice.randrange(8)
    if dice.random() < 0.1:
        del raw[dice.randrange(14, len(raw) + 1) :]
    return bytes(raw) + dice.choice([b"", b"", b"\0" * 6])


def _layer(packet: Packet) -> Packet:
    return packet[IPv6] if IPv6 in packet else packet[IP]


def _ttl(packet: Packet, dice: random.Random) -> Packet:
    setattr(_layer(packet), "hlim" if IPv6 in packet else "ttl", dice.choice([0, 1, 2, 255]))
    return packet


def _no_check(packet: Packet, dice: random.Random) -> Packet:
    packet[UDP if UDP in packet else TCP].chksum = dice.choice([0, 0, 0xFFFF, 1])
    return packet


def _tagged(packet: Packet, dice: random.Random) -> Packet:
    return Ether(bytes(packet[Ether])[:14]) / Dot1Q(vlan=5) / _layer(packet)


def _fragment(packet: Packet, dice: random.Random) -> Packet:
    if IP in packet:
        packet[IP].flags, packet[IP].frag = dice.choice([("MF", 0), ("", 7), ("DF", 0)])
    return packet


def _options(packet: Packet, dice: random.Random) -> Packet:
    if TCP in packet:
        packet[TCP].options = [("NOP", None), ("NOP", None), ("Timestamp", (1, 2))]
    elif IP in packet:
        packet[IP].options = [b"\x01\x01\x01\x00"]
    return packet


def _offset(packet: Packet, dice: random.Random) -> Packet:
    if TCP in packet:
        packet[TCP].dataofs = dice.choice([4, 5, 6, 8, 15])
    return packet


def _group(packet: Packet, dice: random.Random) -> Packet:
    packet[Ether].dst = dice.choice(["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01"])
    return packet


def _martian(packet: Packet, dice: random.Random) -> Packet:
    _layer(packet).src = "::1" if IPv6 in packet else "127.0.0.1"
    return packet


ODD: list[Callable[[Packet, random.Random], Packet]] = [
    _ttl,
    _no_check,
    _tagged,
    _fragment,
    _options,
    _offset,
    _group,
    _martian,
]


def _what(number: int, raw: bytes) -> str:
    return f"frame {number}: {Ether(raw)!r}"


def compare(ways: Ways, seed: int, frames: int) -> dict[str, int]:
    """How many of each reason went the short way; an AssertionError names the first frame that differs."""
    rig, dice = ways.rig, random.Random(seed)
    install(rig)
    taken: dict[str, int] = {}
    for number in range(frames):
        if number % 20 == 0:
            change(rig, dice)
        if number % 50 == 10:
            grow_old(rig, dice)
        ways.flood = dice.choice([0, 0, 0, 1]) if number % 100 >= 50 else None
        raw = frame(seed, number, FLAGS if ways.flood is None else FLOOD)
        sent = ways.send(raw)
        short, long = sent["short"], sent["long"]
        # Only a message that is needed is made: it takes as long as the rest.
        what = partial(_what, number, raw)
        if short.verdict == ABORTED:
            assert short.frame == raw, f"{what()} was changed before it went the long way"
            assert short.wrote == sent["before"].wrote, (
                f"{what()}: maps were changed before it went the long way"
            )
            ways.restore(long.wrote)
            continue
        assert (short.verdict, short.frame) == (long.verdict, long.frame), what()
        for name, content in long.wrote.items():
            assert short.wrote[name] == content, f"{what()}: {name} differ"
        if short.wrote["flooded"] != sent["before"].wrote["flooded"]:
            taken["flood"] = taken.get("flood", 0) + 1
            continue
        earlier = np.frombuffer(sent["before"].wrote["reasons"], np.uint64).reshape(SIZES.cpus, -1)
        changed = rig.reasons.sum(axis=0) - earlier.sum(axis=0)
        reason = layout.REASONS[int(changed.argmax())]
        taken[reason] = taken.get(reason, 0) + 1
    return taken


def test_the_short_way_does_the_same_as_the_long_one_or_nothing(loaded: Rig, faults: Faults) -> None:
    with ways(loaded, faults) as both:
        for seed in range(2):
            taken = compare(both, seed, FRAMES)
            assert set(taken) == {"forward_hop", "return_hop", "flood"}
            assert min(taken.values()) > FRAMES / 400, f"too few to tell: {taken}"


FAULTS = {
    "a flow's end is overlooked": ("life & LIFE(CLOSING)", "0"),
    "an endpoint that is down goes on": (
        "~(u64)ENDPOINT_DRAINING",
        "~(u64)ENDPOINT_DRAINING & ~(u64)ENDPOINT_DOWN",
    ),
    "an evicted flow goes on": (
        "~(u64)ENDPOINT_DRAINING",
        "~(u64)ENDPOINT_DRAINING & ~(u64)ENDPOINT_EVICTED",
    ),
    "TTL 1 leaves": ("ip->ttl > 1", "ip->ttl > 0"),
    "a fragment is plain": ("bpf_htons(IP_MORE_FRAGMENTS | IP_OFFSET)", "bpf_htons(IP_MORE_FRAGMENTS)"),
    "data offset past the end": ("l3_bytes + header <= seen->bytes", "1"),
    "no checksum is one": ("if (@!*check@)\n\t\treturn;", "0"),
    "an old next hop": ("here->tick < to->hop_expires", "true"),
    "a frame to a group": ("(*(u8 *)data & 1)", "0"),
    "another endpoint's answer is this flow's": ("(u32)known.id == ref_of(index, from->state)", "true"),
    "an idle flow goes on": ("idle(here->settings, here->tick, life, seen->protocol)", "false"),
    "a request is not noticed": ("asked == back", "asked && back"),
    "an answer is not noticed": ("asked == back", "!asked && !back"),
    "in a flood a SYN-ACK opens": ("(NEWS | TCP_ACK)", "NEWS"),
    "a flood that is over goes on": ("own->flood_tick == here->tick", "1"),
    "of a flood nobody spills": ("hash_spill_bits(pick) < spill", "0"),
    "a flood comes from where no client is": ("is_martian(target.address)", "0"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_of_the_short_way_is_noticed(loaded: Rig, faults: Faults, fault: str) -> None:
    with ways(loaded, faults, fault) as both, pytest.raises(AssertionError):
        compare(both, seed=1, frames=4 * FRAMES)  # its first frames have been made
