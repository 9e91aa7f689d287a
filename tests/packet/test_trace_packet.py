# SPDX-License-Identifier: Apache-2.0
"""A dry run's answer is what the program then does, and asking changes no byte of any map."""

from __future__ import annotations

import mmap
import random
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scapy.layers.inet import ICMP, IP, fragment
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet

from controlplane.adapters import layout, libbpf, notes
from controlplane.adapters.bcc import ProgramSizes
from controlplane.adapters.dry_run import Answer, DryRun
from controlplane.adapters.explanation import WHY, Explanation, explain
from controlplane.model import Sizes
from tests.fuzz.both import Both
from tests.fuzz.steps import actions_of
from tests.packet.rig import BPF_DIR, SIZES, UDP_NUMBER, Rig, tcp, udp

PACKETS = 700
NAMED = Sizes(SIZES.services, SIZES.endpoints, SIZES.buckets * layout.BUCKET_FLOWS, SIZES.ring_lines * 16)
VIP, PORT, CLIENT = "198.51.100.1", 80, "192.0.2.1"


class Maps:
    """All of an instance's maps, as bytes; and as much of them as an explanation needs."""

    def __init__(self, rig: Rig) -> None:
        fds = rig.compiled.maps
        kinds = layout.maps(NAMED, SIZES.cpus)
        self._arrays = {
            name: libbpf.map_view(fds[name], one.value).view(np.uint8)
            for name, one in kinds.items()
            if one.kind is libbpf.MapType.ARRAY
        }
        self._others = {
            name: (fds[name], one.key, one.value)
            for name, one in kinds.items()
            if name not in self._arrays
            and one.kind is not libbpf.MapType.PROG_ARRAY  # no program writes to it
        }
        ring = mmap.mmap(fds["events"], 2 * mmap.PAGESIZE, mmap.MAP_SHARED, mmap.PROT_READ)
        self._ring = np.frombuffer(ring, "<u8", offset=mmap.PAGESIZE, count=1)
        labels = {
            name: libbpf.map_view(fds[name], layout.LABEL) for name in ("endpoint_labels", "service_labels")
        }
        self.named = SimpleNamespace(sizes=NAMED, services=rig.services, endpoints=rig.endpoints, **labels)

    def bytes(self) -> dict[str, bytes]:
        found = {name: array.tobytes() for name, array in self._arrays.items()}
        for name, (fd, key, value) in self._others.items():
            keys, values = libbpf.map_lookup_batch(fd, key, value)
            found[name] = keys.tobytes() + values.tobytes()
        return found | {"events": self._ring.tobytes()}


class Asked:
    """The rig, whose program is asked before it is sent anything."""

    def __init__(self, rig: Rig, run: DryRun) -> None:
        self.rig, self.run = rig, run
        self.maps = Maps(rig)
        self.seen: Counter[str] = Counter()

    def ask(self, frame: Packet | bytes) -> tuple[Answer, Explanation]:
        before = self.maps.bytes()
        answer = self.run.ask(bytes(frame), 0)
        after = self.maps.bytes()
        assert [name for name in before if before[name] != after[name]] == []
        self.seen.update(note.kind for note in answer.notes)
        return answer, explain(self.maps.named, answer)  # type: ignore[arg-type]

    def send(self, frame: Packet | bytes) -> Explanation:
        """Asks, then sends, and holds the two against each other."""
        answer, told = self.ask(frame)
        packets = self._packets()
        sent = self.rig.send(frame)
        assert (int(answer.verdict), told.reason, answer.frame.hex()) == (
            sent.verdict,
            sent.reason,
            sent.raw.hex(),
        )
        given = np.flatnonzero(self._packets() - packets).tolist()
        who = [note.a & layout.REF_INDEX_MASK for note in answer.notes if note.kind in ("endpoint", "sender")]
        assert not given or given == who, (told, "endpoints that the packet was counted at")
        return told

    def _packets(self) -> np.ndarray:
        counted = self.rig.forwarded["packets"] + self.rig.returned["packets"]
        return counted.sum(axis=0).astype(np.int64)


@pytest.fixture(scope="module")
def dry(loaded: Rig) -> Iterator[DryRun]:
    run = DryRun.compiled(BPF_DIR, ProgramSizes.of(NAMED), loaded.compiled.maps)
    yield run
    run.close()


@pytest.fixture
def asked(rig: Rig, dry: DryRun) -> Asked:
    return Asked(rig, dry)


@pytest.mark.parametrize("seed", [0, 1])
def test_what_it_answers_is_what_the_program_then_does(asked: Asked, seed: int) -> None:
    """Time stands still, for it might go on between question and packet."""
    both, dice, flows, sent = Both(asked.rig), random.Random(seed), 0, 0
    while sent < PACKETS:
        for name, *arguments in actions_of(both, dice):
            if name != "send":
                if name not in ("let_pass", "insert_limit", "icmp_limit"):
                    both.take([name, *arguments])
                continue
            frame = bytes.fromhex(str(arguments[0]))
            before = asked.rig.flow_count()
            told = asked.send(frame)
            both.access.receive(frame)
            sent += 1
            grown = asked.rig.flow_count() - before
            flows += grown
            assert not grown or (told.flow == "new" and told.remembered), told
    assert flows > 20
    for kind in ("flow", "no_flow", "stale", "ring", "spill", "slot", "limit", "choice", "gained", "hop"):
        assert asked.seen[kind] > 0, kind
    assert len({*asked.seen}) > 20


def steering(rig: Rig, *, hop: bool = True) -> None:
    """web: one live endpoint, 10, and its shadow, 11."""
    rig.service(1, VIP, PORT)
    live = rig.endpoint(10, 1, "203.0.113.10", 8080, hop=hop)
    shadow = rig.endpoint(11, 1, "203.0.113.11", 8080, parent=10, hop=hop)
    rig.ring(1, [live] * 61)
    rig.shadows(10, [shadow], 0)


def test_a_new_flow_is_told_from_ring_to_next_hop(asked: Asked) -> None:
    steering(asked.rig)
    _, told = asked.ask(tcp(CLIENT, 4242, VIP, PORT, "S"))
    assert (told.verdict, told.reason, told.flow, told.chosen_by) == (
        "redirect",
        "forward_hop",
        "new",
        "live",
    )
    assert (told.service, told.endpoint, told.role) == ("1", "endpoint 10", "live")
    assert (told.address, told.spill, told.remembered) == ("203.0.113.10:8080", 0.0, True)
    assert told.next_hop == "cached"
    assert told.ring_cell in range(61)
    assert any("ring cell" in step for step in told.steps)


def test_a_flow_that_spills_names_the_slot_and_the_shares(asked: Asked) -> None:
    steering(asked.rig)
    asked.rig.shadows(10, [layout.reference(12, 1), layout.reference(11, 1)], 0.75)
    ports = range(4000, 4100)
    told = [asked.send(tcp(CLIENT, port, VIP, PORT, "S")) for port in ports]
    spilled = [one for one in told if one.chosen_by == "spilled"]
    assert 60 < len(spilled) < 90
    for one in told:
        assert one.spill == 0.75
        assert (one.chosen_by == "spilled") == (one.spill_hash < one.spill)
        assert one.endpoint == ("endpoint 11" if one.chosen_by == "spilled" else "endpoint 10")
    assert {slot["usable"] for one in spilled for slot in one.slots} == {True, False}
    assert all(one.slots[-1]["usable"] and one.slots[-1]["endpoint"] == "endpoint 11" for one in spilled)


def test_a_known_flow_has_its_state_and_age(asked: Asked) -> None:
    steering(asked.rig)
    asked.send(tcp(CLIENT, 4242, VIP, PORT, "S"))
    told = asked.send(tcp(CLIENT, 4242, VIP, PORT, "S"))
    assert (told.flow, told.flow_state, told.ring_cell) == ("known", "opening", None)
    asked.rig.age(10)
    told = asked.send(tcp(CLIENT, 4242, VIP, PORT, "A"))
    assert (told.flow, told.short_way) == ("known", True)
    assert told.flow_idle_s == pytest.approx(10 * layout.TICK_S, abs=2 * layout.TICK_S)
    asked.rig.age(10_000)
    told = asked.send(tcp(CLIENT, 4242, VIP, PORT, "S"))
    assert (told.flow, told.flow_stale) == ("new", "idle")


@pytest.mark.parametrize("down", [True, False])
def test_a_down_endpoint_is_why_its_shadow_gets_everything(asked: Asked, down: bool) -> None:
    steering(asked.rig)
    asked.rig.state(10, down=down)
    told = asked.send(tcp(CLIENT, 4242, VIP, PORT, "S"))
    assert (told.chosen_by, told.endpoint) == (
        ("spilled", "endpoint 11") if down else ("live", "endpoint 10")
    )
    assert any("is down: all of it spills" in step for step in told.steps) == down


def test_when_nobody_else_can_the_cells_that_were_tried_are_told(asked: Asked) -> None:
    steering(asked.rig)
    other = asked.rig.endpoint(12, 1, "203.0.113.12", 8080)
    asked.rig.ring(1, [layout.reference(10, 1), other] * 30)
    for index in (10, 11):
        asked.rig.state(index, down=True)
    told = [asked.send(tcp(CLIENT, port, VIP, PORT, "S")) for port in range(4000, 4020)]
    assert {one.chosen_by for one in told} == {"live", "other"}
    for one in told:
        assert one.endpoint == "endpoint 12"
        assert bool(one.others) == (one.chosen_by == "other")
        assert not one.others or one.others[-1] == {
            "try": len(one.others),
            "endpoint": "endpoint 12",
            "usable": True,
        }
    asked.rig.state(12, down=True)
    assert asked.send(tcp(CLIENT, 4100, VIP, PORT, "S")).chosen_by == "last"


def test_an_answer_that_is_wrong_is_noticed(rig: Rig, tmp_path: Path) -> None:
    """The negative control: a dry run that knows no limits."""
    copy = tmp_path / "bpf"
    shutil.copytree(BPF_DIR, copy)
    limit = copy / "limit.h"
    text = limit.read_text()
    assert text.count("(u32)seen < most;") == 1
    limit.write_text(text.replace("(u32)seen < most;", "true;"))
    run = DryRun.compiled(copy, ProgramSizes.of(NAMED), rig.compiled.maps)
    try:
        with pytest.raises(AssertionError):
            test_a_limit_and_a_flood_are_named(Asked(rig, run))
    finally:
        run.close()


def test_a_limit_and_a_flood_are_named(asked: Asked) -> None:
    steering(asked.rig)
    asked.rig.limit(10, 1)
    assert asked.send(tcp(CLIENT, 4242, VIP, PORT, "S")).limits == [
        {"endpoint": "endpoint 10", "within": True}
    ]
    told = asked.send(tcp(CLIENT, 4243, VIP, PORT, "S"))
    assert told.limits[0] == {"endpoint": "endpoint 10", "within": False}
    assert told.endpoint == "endpoint 11"
    asked.rig.settings["insert_limit"] = 0
    _, told = asked.ask(tcp(CLIENT, 4244, VIP, PORT, "S"))
    assert told.remembered is False
    assert told.flow == "new"


def test_a_return_names_its_sender_and_flow(asked: Asked) -> None:
    steering(asked.rig)
    asked.send(tcp(CLIENT, 4242, VIP, PORT, "S"))
    told = asked.send(tcp("203.0.113.10", 8080, CLIENT, 4242, "SA"))
    assert (told.reason, told.flow, told.endpoint, told.flow_state) == (
        *("return_kernel", "known", "endpoint 10", "opening"),
    )
    assert "SYN-ACK" in " ".join(told.steps)
    assert asked.send(tcp("203.0.113.11", 8080, CLIENT, 4242, "SA")).flow == "none"


@pytest.mark.parametrize(
    ("frame", "reason", "step"),
    [
        (tcp("127.0.0.1", 1, VIP, PORT, "S"), "drop_source", "no client is there"),
        (tcp(CLIENT, 1, VIP, PORT + 1, "S"), "drop_vip_port", "parsed"),
        (tcp(CLIENT, 1, VIP, PORT, "S", ttl=1), "reply_ttl", "told that its TTL has ended, by its VIP"),
        (udp(CLIENT, 1, "192.0.2.7", 53), "pass_other", "parsed"),
        (Ether() / IP(src=CLIENT, dst=VIP) / ICMP(), "reply_echo", "parsed: icmp"),
        (
            Ether(dst="02:00:00:00:00:01") / Dot1Q(vlan=7) / IP(src=CLIENT, dst=VIP) / ICMP(),
            "pass_vlan",
            "VLAN",
        ),
        (Ether(type=0x0806) / bytes(40), "pass_not_ip", "parsed: not ip"),
    ],
    ids=["a martian", "no such port", "TTL", "somebody else's", "an echo request", "an unknown VLAN", "ARP"],
)
def test_what_is_not_steered_says_why(asked: Asked, frame: Packet, reason: str, step: str) -> None:
    steering(asked.rig)
    frame = frame.copy()
    frame.dst = "02:00:00:00:00:01"
    told = asked.send(frame)
    assert told.reason == reason
    assert step in " ".join(told.steps), told.steps
    assert told.why == WHY[reason]


def test_a_later_fragment_is_told_from_its_first_one(asked: Asked) -> None:
    steering(asked.rig)
    packet = udp(CLIENT, 4242, VIP, 53, bytes(64))
    asked.rig.service(2, VIP, 53, UDP_NUMBER)
    asked.rig.ring(2, [asked.rig.endpoint(20, 2, "203.0.113.20", 53)] * 61)
    first, later = (Ether(bytes(one)) for one in fragment(packet, fragsize=40))
    assert asked.send(later).reason == "drop_fragment"
    asked.ask(first)
    assert asked.send(later).reason == "drop_fragment", "asking is not sending"
    assert asked.send(first).endpoint == "endpoint 20"
    told = asked.send(later)
    assert (told.reason, told.endpoint, told.service) == ("forward_hop", "endpoint 20", "2")


def test_a_next_hop_that_expired_asks_the_routes(asked: Asked) -> None:
    steering(asked.rig, hop=False)
    told = asked.send(tcp(CLIENT, 4242, VIP, PORT, "S"))
    assert told.reason == "forward_kernel"
    assert told.next_hop == "kernel"
    assert any("no next hop" in step for step in told.steps)
    assert any("the kernel's routes" in step for step in told.steps)


def test_every_reason_is_said_in_words() -> None:
    assert set(WHY) == set(layout.REASONS)


def test_asking_twice_is_as_asking_once(asked: Asked) -> None:
    steering(asked.rig)
    frame = tcp(CLIENT, 4242, VIP, PORT, "S")
    (first, _), (second, _) = asked.ask(frame), asked.ask(frame)
    assert [(n.kind, n.a) for n in first.notes] == [(n.kind, n.a) for n in second.notes]
    assert len(first.notes) < notes.NOTES_MAX
