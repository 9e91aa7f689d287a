# SPDX-License-Identifier: Apache-2.0
"""Half of the cache is in use, one core forwards, the other returns, and rings follow each other fast."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from controlplane.adapters import layout
from controlplane.adapters.bcc import compile_program
from tests.bench.harness import FRAME_BYTES, Flows, Harness
from tests.packet.rig import BPF_DIR, LARGE, Rig, faulty
from tests.packet.test_two_cpus import CORES, FRAMES, World, doubles

BUCKETS, FLOWS, OTHERS = 1 << 15, 1 << 16, 1 << 10
BURST, SECONDS = 100_000, 2.0
MOST_CHANGED = FLOWS // 10_000
SYN, ACK = FRAMES[1][0], FRAMES[1][2]


def answer(endpoint: str) -> bytes:
    ip = Ether(src="02:00:00:00:0e:01", dst="02:00:00:00:0a:01") / IP(src=endpoint, dst="10.0.0.0")
    packet = ip / TCP(sport=8080, flags="A")
    return bytes(packet / bytes(FRAME_BYTES - len(packet)))


@pytest.fixture(scope="module")
def harnesses() -> Iterator[list[Harness]]:
    made = [Harness() for _ in CORES]
    yield made
    for harness in made:
        harness.close()


@dataclass(frozen=True, slots=True)
class Churned:
    changed: int
    """Flows that were never remembered, or are so no longer, or with another endpoint."""
    rings: int
    forwarded: int
    returned: int


def install(source: Path, harness: Harness) -> World:
    """All the flows are known and established."""
    world = World(Rig(compile_program(source, LARGE)))
    rig = world.rig
    rig.settings["bucket_mask"] = BUCKETS - 1
    for row in (rig.gateways[:1],):
        row["hop_expires"], row["hop_ifindex"] = 0xFFFFFFFE, 1
    harness.aim(rig.compiled.program_fd, Flows(SYN, FLOWS, in_turn=True))
    harness.feed(FLOWS)
    cached = rig.flows["id"] != 0
    done = layout.FLOW_SYN | layout.FLOW_SYNACK | layout.FLOW_ESTABLISHED
    rig.flows["life"][cached] |= np.uint64(done << 24)
    return world


def churn(world: World, harnesses: list[Harness]) -> Churned:
    rig, over = world.rig, threading.Event()
    program = rig.compiled.program_fd
    before = rig.flows["id"].copy()
    known = before != 0
    assert abs(known.sum() / (4 * BUCKETS) - 0.5) < 0.01, "half of the cache is in use"

    def forward() -> int:
        os.sched_setaffinity(0, {CORES[0]})  # of this thread
        sent = 0
        while not over.is_set():
            for flows in (Flows(ACK, FLOWS), Flows(FRAMES[2][0], OTHERS)):
                harnesses[0].run(program, flows, BURST)
                sent += BURST
        return sent

    def give_back() -> int:
        os.sched_setaffinity(0, {CORES[1]})
        sent = 0
        while not over.is_set():
            for index in world.of(1):
                harnesses[1].run(program, Flows(answer(f"203.0.113.{index}"), FLOWS, back=True), BURST)
                sent += BURST
        return sent

    with ThreadPoolExecutor(2) as cores:
        running = [cores.submit(forward), cores.submit(give_back)]
        deadline, rings = time.monotonic() + SECONDS, 0
        while time.monotonic() < deadline:
            world.swap_ring(1)
            rings += 1
            time.sleep(0.001)
        over.set()
        forwarded, returned = (one.result() for one in running)
    kept = np.intersect1d(before[known], rig.flows["id"])  # with their tags; some move to their other bucket
    return Churned(FLOWS - len(kept), rings, forwarded, returned)


def test_at_most_one_flow_in_10_000_changes_endpoint(harnesses: list[Harness]) -> None:
    world = install(BPF_DIR, harnesses[0])
    rig = world.rig
    try:
        churned = churn(world, harnesses)
        assert churned.rings > 100
        assert churned.changed <= MOST_CHANGED
        reasons = dict(zip(layout.REASONS, rig.reasons.sum(axis=0).tolist(), strict=False))
        assert (reasons["forward_hop"], reasons["return_hop"]) == (
            churned.forwarded + FLOWS,
            churned.returned,
        )
        assert int(rig.counted("return_packets")[CORES[0]].sum()) == 0, "each core had its direction"
        assert int(rig.counted("return_packets")[CORES[1]].sum()) == churned.returned
        cached = rig.flows["id"] != 0
        owners = rig.endpoints["service"][(rig.flows["id"][cached] & layout.REF_INDEX_MASK).astype(int)]
        assert (owners == rig.flow_keys["service"][cached]).all(), (
            "nobody is given another service's endpoint"
        )
        assert doubles(rig) == 0
    finally:
        rig.compiled.close()


def test_without_what_is_remembered_most_would(tmp_path: Path, harnesses: list[Harness]) -> None:
    source = faulty(
        tmp_path,
        ("steer.c", "verdict = hit(&here);", "verdict = LONG_WAY;"),
        (
            "forward.c",
            "\t\tif (to)\n\t\t\treturn to;\n\t}\n\treturn start_flow(",
            "\t\t(void)to;\n\t}\n\treturn start_flow(",
        ),
    )
    world = install(source, harnesses[0])
    try:
        assert churn(world, harnesses).changed > FLOWS // 10
    finally:
        world.rig.compiled.close()
