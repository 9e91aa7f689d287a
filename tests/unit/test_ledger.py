# SPDX-License-Identifier: Apache-2.0
"""Counters as they are told: sums by service, by interface, and frames that are lost after a redirect."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from controlplane import tally
from controlplane.adapters import layout
from controlplane.ports import Counters, InterfaceCounts
from tests.fakes import FIELDS
from tests.world import World, config


def counters(rows: dict[str, int], **counts: list[int]) -> Counters:
    size = max(rows.values()) + 1
    every = {name: np.zeros(size, np.uint64) for name in FIELDS}
    return Counters(at_s=1.0, rows=rows, **every | {n: np.array(c, np.uint64) for n, c in counts.items()})


def test_a_services_sums_are_those_of_its_members_and_exact_beyond_what_a_float_holds() -> None:
    huge = 2**60 + 1
    found = counters({"a-1": 0, "b-1": 1, "a-2": 3}, packets=[huge, 5, 99, 2], flows=[1, 2, 99, 3])
    sums = tally.by_service(found, {"a-1": "a", "a-2": "a", "b-1": "b"})
    assert sums["a"]["packets"] == huge + 2
    assert (sums["a"]["flows"], sums["b"]["packets"], sums["b"]["flows"]) == (4, 5, 2)


def test_every_reason_is_forwarded_passed_or_dropped() -> None:
    one = InterfaceCounts("eth0", {reason: 1 << at for at, reason in enumerate(layout.REASONS)}, None)
    assert one.received == one.forwarded + one.passed + one.dropped


def test_the_numbers_are_published_by_interface_and_endpoint() -> None:
    world = World(config())
    world.ticks(3, 5.0)
    world.dataplane.reasons["drop_broken"] = 7
    world.dataplane.sent = 9
    world.dataplane.count["packets"][world.dataplane.rows["web-1"]] = 11
    world.tick(0.0)
    found = {
        (one.name, *sorted(one.labels.items())): one.value for one in world.metrics.samples if one.counter
    }
    assert found["packets_total", ("interface", "eth9"), ("reason", "drop_broken")] == 7
    assert found["redirected_frames_total", ("interface", "eth9"), ("result", "sent")] == 9
    assert found["endpoint_packets_total", ("endpoint", "web-1"), ("service", "web")] == 11


def test_requests_that_nobody_reads_are_not_published_as_none() -> None:
    """A counter that falls to 0 and comes back is counted twice by whoever takes its increase."""
    off = replace(counters({"web-1": 0}, packets=[3]), requests_read=False)
    found = {one.name: one.value for one in tally.samples(off, {"web-1": "web"}, [])}
    assert found["endpoint_packets_total"] == 3
    assert not [name for name in found if "requests" in name or "answered" in name or "aborted" in name]


def test_frames_that_are_lost_are_told_once_with_the_cause_and_so_is_the_end() -> None:
    world = World(config())
    world.ticks(12, 5.0)
    for _ in range(30):
        world.dataplane.frames_lost += 3
        world.tick(5.0)
    world.ticks(25, 5.0)
    said = [row.reason for row in world.store.rows if row.action == "lost"]
    assert len(said) == 2, said
    assert "eth9" in said[0]
    assert "ENXIO" in said[0]
    assert "no frame" in said[1]


def test_frames_that_were_lost_before_the_controller_came_are_no_news() -> None:
    world = World(config())
    world.dataplane.frames_lost = 1000
    world.ticks(25, 5.0)
    assert not [row for row in world.store.rows if row.action == "lost"]
