# SPDX-License-Identifier: Apache-2.0
"""Events of the data plane are counted all, and told once a minute."""

from __future__ import annotations

from controlplane.happenings import Happenings
from controlplane.journal import Journal
from controlplane.model import Event, EventKind
from tests.fakes import FakeClock, FakeStore
from tests.world import World, config


def event(kind: EventKind = EventKind.REDIRECTED, endpoint: str = "web-1") -> Event:
    return Event(kind, 1.0, "web", endpoint, "web-1-s1", "198.51.100.7:4242")


def test_events_are_counted_by_kind_and_told_once_a_minute_each():
    store, clock = FakeStore(), FakeClock()
    happenings = Happenings(Journal(store, clock))
    for second in range(90):
        happenings.take([event(), event(EventKind.NO_SHADOW), event()], float(second))
    counts = {sample.labels["kind"]: sample.value for sample in happenings.samples()}
    assert counts == {"redirected": 180.0, "no_shadow": 90.0}
    assert [row.reason for row in store.rows if row.action == "redirected"] == [
        "web-1: redirected to shadow, e.g. 198.51.100.7:4242 to web-1-s1 (2 reports since the last one)",
        "web-1: redirected to shadow, e.g. 198.51.100.7:4242 to web-1-s1 (120 reports since the last one)",
    ]
    assert sum("no shadow available, primary kept" in row.reason for row in store.rows) == 2


def test_the_loop_takes_them_and_publishes_their_counts():
    world = World(config())
    world.dataplane.happened = [event(EventKind.ENDPOINT_DOWN)] * 3
    world.ticks(2, 20.0)
    (sample,) = [s for s in world.metrics.samples if s.name == "dataplane_events_total"]
    assert (sample.value, sample.counter) == (3.0, True)
    assert sum("endpoint down" in row.reason for row in world.store.rows) == 1
