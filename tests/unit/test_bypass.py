# SPDX-License-Identifier: Apache-2.0
"""Endpoints whose replies bypass: told once, and told to be over; nobody else is suspected."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from controlplane.bypass import Bypass, silent
from controlplane.ports import Counters
from tests.fakes import FIELDS
from tests.world import World, config


@dataclass
class Watched:
    """Seconds of traffic to endpoints, and what is told of them."""

    names: tuple[str, ...] = ("web-1", "web-2")
    able: set[str] = field(default_factory=lambda: {"web-1", "web-2"})
    """Whose probes are answered, every second while there are probes."""
    probes: bool = True
    answered_s: dict[str, float] = field(default_factory=dict)
    bypass: Bypass = field(default_factory=Bypass)
    now_s: float = 100.0
    told: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.count = {name: np.zeros(len(self.names), np.uint64) for name in FIELDS}

    def reading(self) -> Counters:
        rows = {name: at for at, name in enumerate(self.names)}
        return Counters(at_s=self.now_s, rows=rows, **{name: own.copy() for name, own in self.count.items()})

    def seconds(self, count: int, packets: int = 20, flows: int = 2, returned: int = 0, who: int = 0) -> None:
        for _ in range(count):
            self.now_s += 1.0
            if self.probes:
                self.answered_s = dict.fromkeys(self.able, self.now_s)
            for name, more in (("packets", packets), ("flows", flows), ("return_packets", returned)):
                self.count[name][who] += np.uint64(more)
            if not self.bypass.is_due(self.now_s):
                continue
            self.bypass, begun, ended = self.bypass.observe(self.reading(), self.names, self.answered_s)
            self.told += [f"{one.name} begins" for one in begun] + [f"{name} ends" for name in ended]


def test_it_is_told_once_and_its_end_is_told() -> None:
    watched = Watched()
    watched.seconds(60)
    assert watched.told == ["web-1 begins"]
    assert watched.bypass.members == {"web-1"}
    watched.seconds(25, returned=20)
    assert watched.told == ["web-1 begins", "web-1 ends"]
    assert not watched.bypass.members


def test_an_endpoint_that_answers_anything_does_not_bypass() -> None:
    watched = Watched()
    for second in range(400):
        watched.seconds(1, returned=int(second % 9 == 0))
    assert watched.told == []


def test_a_stray_packet_does_not_end_it() -> None:
    watched = Watched()
    watched.seconds(20)
    watched.seconds(1, returned=1)
    watched.seconds(200)
    assert watched.told == ["web-1 begins"]


def test_a_quiet_endpoint_is_judged_by_the_long_window() -> None:
    watched = Watched()
    for _ in range(61):
        watched.seconds(1, packets=3, flows=1)
        watched.seconds(9, packets=0, flows=0)
    assert watched.told == ["web-1 begins"]


def test_too_few_packets_mean_nothing() -> None:
    watched = Watched()
    for _ in range(61):
        watched.seconds(1, packets=1, flows=0)
        watched.seconds(9, packets=0, flows=0)
    assert watched.told == []


def test_one_that_was_not_healthy_all_the_time_is_not_judged() -> None:
    watched = Watched(able={"web-2"})
    watched.seconds(8)
    watched.able.add("web-1")
    watched.seconds(5)
    assert watched.told == []
    watched.seconds(20)
    assert watched.told == ["web-1 begins"]


def test_one_that_was_not_probed_since_it_is_silent_may_be_dead_and_is_not_judged() -> None:
    watched = Watched()
    watched.seconds(2, returned=20)
    watched.probes = False
    watched.seconds(60)
    assert watched.told == []


def test_one_that_is_removed_and_comes_back_is_judged_anew() -> None:
    watched = Watched()
    watched.seconds(20)
    watched.now_s += 10.0
    watched.bypass, _, _ = watched.bypass.observe(watched.reading(), ("web-2",), {"web-2": watched.now_s})
    assert not watched.bypass.members
    watched.seconds(25)
    assert watched.told == ["web-1 begins", "web-1 begins"]


def test_a_member_at_another_row_is_another() -> None:
    watched = Watched()
    before = watched.reading()
    watched.seconds(1, packets=1000)
    moved = Counters(at_s=watched.now_s, rows={"web-1": 1, "web-2": 0}, **watched.count)
    assert silent(before, moved, ("web-1", "web-2")) == []


def given(world: World, packets: int, returned: int, seconds: int = 1) -> None:
    for _ in range(seconds):
        row = world.dataplane.rows["web-1"]
        world.dataplane.count["packets"][row] += np.uint64(packets)
        world.dataplane.count["return_packets"][row] += np.uint64(returned)
        world.tick(5.0)


def reasons(world: World) -> list[str]:
    return [row.reason for row in world.store.rows if row.action == "bypass"]


def test_the_loop_says_it_shows_it_and_says_when_it_is_over() -> None:
    world = World(config())
    world.ticks(4, 5.0)
    given(world, 50, 0, seconds=24)
    (said,) = reasons(world)
    assert "replies bypass the access point" in said
    status = world.controller.status()
    assert status is not None
    assert status.bypassed == ("web-1",)
    (sample,) = [one for one in world.metrics.samples if one.name == "endpoint_bypassed"]
    assert (sample.labels["endpoint"], sample.value) == ("web-1", 1.0)
    given(world, 50, 50, seconds=24)
    assert "again" in reasons(world)[-1]
    assert len(reasons(world)) == 2


def test_the_loop_does_not_suspect_who_is_down() -> None:
    world = World(config())
    world.ticks(4, 5.0)
    world.prober.dead.add("web-1")
    world.ticks(4, 5.0)
    given(world, 50, 0, seconds=20)
    assert reasons(world) == []
