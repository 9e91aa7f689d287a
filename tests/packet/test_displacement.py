# SPDX-License-Identifier: Apache-2.0
"""A flow whose two buckets are full gets a place all the same: another moves to its other bucket."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import IPv4Address

import numpy as np
import pytest

from controlplane.adapters import layout
from controlplane.adapters.bcc import compile_program
from tests import reference
from tests.bench.harness import Flows, Harness
from tests.packet.faults import Faults, Place
from tests.packet.rig import BPF_DIR, KEY, LARGE, TCP_NUMBER, Rig, tcp
from tests.packet.test_flows import CLIENT, VIP, A, install_pair, name_b
from tests.packet.test_two_cpus import CORES, FRAMES, SERVICES, World, doubles

Check = Callable[[Rig], object]

MASK = 63
FLOWS = 192
"""Three quarters of what the small cache has room for: some 3 of 100 find both their buckets full."""
ESTABLISHED = (layout.FLOW_SYN | layout.FLOW_SYNACK | layout.FLOW_ESTABLISHED) << 24
PORTS = range(5000, 5000 + FLOWS)


def small(rig: Rig) -> Rig:
    install_pair(rig).settings["bucket_mask"] = MASK
    return rig


def start(rig: Rig, port: int) -> None:
    """A connection that is established."""
    rig.send(tcp(CLIENT, port, VIP, 80, "S"))
    rig.send(tcp(A, 8080, CLIENT, port, "SA"))
    rig.send(tcp(CLIENT, port, VIP, 80, "A"))


def places(rig: Rig) -> dict[int, int]:
    """Id -> bucket."""
    return {int(rig.flows["id"][bucket, way]): int(bucket) for bucket, way in np.argwhere(rig.flows["id"])}


def strays(rig: Rig, mask: int, port: int, vip: str = VIP, most: int = 1 << 30) -> int:
    """Entries whose key is not what their tag and bucket were made of."""
    found = 0
    for bucket, way in np.argwhere(rig.flows["id"])[:most]:
        key, tag = rig.flow_keys[bucket, way], int(rig.flows["id"][bucket, way]) >> 32
        client = str(IPv4Address(int(key["client"][-4:].view(">u4")[0])))
        hashed = reference.flow_hash(KEY, client, vip, int(key["client_port"]), port, TCP_NUMBER)
        first = hashed & mask
        other = (first ^ ((tag * 0x9E3779B1 & 0xFFFFFFFF) >> 3 | 1)) & mask
        found += hashed >> 32 != tag or bucket not in (first, other)
    return found


def fill(rig: Rig) -> int:
    """Returns how many flows were moved."""
    moved = 0
    for port in PORTS:
        before = places(rig)
        start(rig, port)
        after = places(rig)
        moved += sum(after.get(flow) != bucket for flow, bucket in before.items())
    return moved


def all_have_a_place(rig: Rig) -> None:
    assert fill(small(rig)) >= 3
    assert rig.flow_count() == FLOWS
    assert rig.count(1, "unremembered") == 0


def they_are_who_they_were(rig: Rig) -> None:
    """With their key and their life, and with their endpoint."""
    fill(small(rig))
    assert strays(rig, MASK, 80) == 0
    assert (rig.flows["life"][rig.flows["id"] != 0] & np.uint64(ESTABLISHED) == ESTABLISHED).all()
    name_b(rig)
    for port in PORTS:
        for flags in "AS":
            assert str(rig.send(tcp(CLIENT, port, VIP, 80, flags)).packet.payload.dst) == A
    assert rig.counts(1, "offered", "completed") == {"offered": FLOWS, "completed": FLOWS}


def unanswered_stay(rig: Rig) -> None:
    """A flow that nobody has answered yet is only given up where nothing can move."""
    small(rig)
    for port in PORTS:
        rig.send(tcp(CLIENT, port, VIP, 80, "S"))
    assert rig.flow_count() == FLOWS


def nobody_can_move(rig: Rig) -> None:
    """A cache that is full: one that is unanswered gives way as ever, established ones don't."""
    small(rig).settings["bucket_mask"] = 1
    for port in PORTS[:8]:
        start(rig, port)
    known = places(rig)
    assert len(known) == 8
    start(rig, 4000)
    assert places(rig) == known
    assert rig.count(1, "unremembered") == 1


CHECKS = (all_have_a_place, they_are_who_they_were, unanswered_stay, nobody_can_move)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_of_one_cpu(rig: Rig, check: Check) -> None:
    check(rig)


FAULTS = {
    "nothing moves": (
        {"displace(here, first, start, &other)": "displace(here, first, start, &other) && 0"},
        all_have_a_place,
    ),
    "a key stays behind": ({"*copy = *key;": ";"}, they_are_who_they_were),
    "a life stays behind": (
        {
            "STORE(*(volatile u64 *)&place->moved->life, place->flow->life);": ";",
            "bring_life(&place);": ";",
        },
        they_are_who_they_were,
    ),
    "who is unanswered gives way first": (
        {"best >= RANK_UNANSWERED": "best == RANK_NEVER"},
        unanswered_stay,
    ),
}


@pytest.fixture(scope="module")
def faults(loaded: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faults]:
    named = {
        name: tuple(Place("cache.c", right, wrong) for right, wrong in places.items())
        for name, (places, _) in FAULTS.items()
    }
    made = Faults(tmp_path_factory.mktemp("faults"), named, loaded.compiled.maps)
    yield made
    made.close()


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_with_none_of_the_faults_neither(faults: Faults, check: Check) -> None:
    with faults.rig() as none:
        check(none)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_noticed(faults: Faults, name: str) -> None:
    with faults.rig(name) as rig, pytest.raises(AssertionError):
        FAULTS[name][1](rig)


# ---- two CPUs ------------------------------------------------------------------------------

BUCKETS = 1 << 16
KNOWN, MORE = 1 << 17, 1 << 16
"""Half of the cache, established, and another quarter that both cores start at once."""


@pytest.fixture
def harness() -> Iterator[Harness]:
    made = Harness()
    yield made
    made.close()


def test_none_is_lost_when_both_cores_move_them(harness: Harness) -> None:
    rig = Rig(compile_program(BPF_DIR, LARGE))
    try:
        World(rig)
        rig.settings["bucket_mask"] = BUCKETS - 1
        harness.aim(rig.compiled.program_fd, Flows(FRAMES[1][0], 2 * KNOWN, in_turn=True))
        harness.feed(KNOWN)
        rig.flows["life"][rig.flows["id"] != 0] |= np.uint64(ESTABLISHED)
        before = places(rig)
        assert len(before) > KNOWN * 0.9999

        def send(core: int) -> None:
            os.sched_setaffinity(0, {core})  # of this thread
            harness.feed(MORE // 2)  # the cores share the list, and often begin the same flow

        with ThreadPoolExecutor(len(CORES)) as senders:
            for sender in [senders.submit(send, core) for core in CORES]:
                sender.result()
        after = places(rig)
        moved = sum(after.get(flow, bucket) != bucket for flow, bucket in before.items())
        assert moved > KNOWN // 1000
        assert sum(flow not in after for flow in before) == 0
        assert len(after) > KNOWN + MORE // 3
        assert doubles(rig) == 0
        assert strays(rig, BUCKETS - 1, 80, SERVICES[1][0], most=4000) == 0
    finally:
        rig.compiled.close()
