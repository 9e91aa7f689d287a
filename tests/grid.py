# SPDX-License-Identifier: Apache-2.0
"""The closed loop at constant demand: whether it comes to rest within five minutes, and stays so for half an
hour. ``python -m tests.grid`` plays 126 cells, some four seconds each; those that do not hold are told."""

from __future__ import annotations

import argparse
import itertools
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from multiprocessing import Pool

import numpy as np

from controlplane import model
from controlplane.ports import Counters
from tests.queues import KeepingDataplane, QueueingDataplane
from tests.world import CAPACITY, World, config

GIVEN = (0.7, 1.0, 1.3)
DEMANDS = (0.5, 0.75, 0.95, 1.0, 1.1, 1.25, 1.5)
OLD = (0.0, 0.5, 0.95)
LATE_S = (0, 5)
SETTLED, STEADY = 300, 1800
SERVERS, LEAD_S = 4, 8.0
USAGE = model.UsageSource(model.UsageKind.NODE_EXPORTER, "http://{address}:9100/metrics")


@dataclass(frozen=True)
class Cell:
    """Given capacity and demand are parts of what an endpoint can serve; ``old`` is the part of requests that
    comes on old connections; readings are ``late_s`` old."""

    given: float
    demand: float
    old: float
    late_s: int
    endpoints: int = 1
    usage: bool = False


@dataclass(frozen=True)
class Course:
    """What became of a cell after it had time to settle."""

    cell: Cell
    deviation: float
    """Of spill, of whose is most."""
    orders: tuple[str, ...]
    taken_back: int
    """Drains that began and were ended again."""
    members: int
    full_s: int
    """Somebody was asked for all that he can serve."""
    troubles: tuple[str, ...]

    @property
    def holds(self) -> bool:
        return self.deviation <= 0.02 and not self.orders and not self.troubles

    def __str__(self) -> str:
        cell = self.cell
        what = ", ".join(self.orders) or "none"
        return (
            f"{'holds' if self.holds else 'FAILS'}  given {cell.given:3.1f}  demand {cell.demand:4.2f}  old "
            f"{cell.old:4.2f}  late {cell.late_s} s: spill's deviation {self.deviation:.3f}, orders: {what}, "
            f"drains taken back {self.taken_back}, members {self.members}, full for {self.full_s} s"
            + "".join(f", {one}" for one in self.troubles)
        )


def world(cell: Cell) -> World:
    """A pool, or one endpoint, that answers slower the more it has to do."""
    whole = config(
        endpoints=cell.endpoints,
        headroom=0.0,
        lead_time_s=10.0,
        warm_up_s=2.0,
        min_life_s=60.0,
        idle_s=60.0,
        drain_s=30.0,
    )
    web = whole.services["web"]
    endpoints = tuple(replace(one, capacity=CAPACITY * cell.given) for one in web.endpoints)
    requests = model.Requests.HTTP1 if cell.old else model.Requests.OFF
    web = replace(web, endpoints=endpoints, requests=requests, usage=USAGE if cell.usage else None)
    made = World(replace(whole, services={"web": web}), seed=round(100 * cell.demand))
    made.dataplane = QueueingDataplane(made.clock, CAPACITY, SERVERS)
    if cell.old:
        demand = cell.demand * CAPACITY
        made.dataplane = KeepingDataplane(made.clock, CAPACITY, SERVERS, cell.old, demand)
    made.controller = made._controller()
    if cell.late_s:
        read, seen = made.dataplane.counters, []

        def counters() -> Counters:
            seen.append(read())
            return seen[max(0, len(seen) - 1 - cell.late_s)]

        made.dataplane.counters = counters
    return made


def play(cell: Cell) -> Course:
    logging.disable(logging.CRITICAL)
    made = world(cell)
    made.provisioner.lead_s = LEAD_S
    plane, names = made.dataplane, [one.name for one in made.config.services["web"].endpoints]
    spill, full_s = np.zeros((STEADY, len(names))), 0
    orders = rows = 0
    for tick in range(SETTLED + STEADY):
        if cell.usage and tick % 5 == 0:
            for name, done in plane.served.items():
                made.load_source.tell(name, cpu=min(done / CAPACITY, 1.0))
        made.tick(cell.demand * CAPACITY * len(names))
        if tick >= SETTLED:
            spill[tick - SETTLED] = [plane.members[name].spill for name in names]
            full_s += max(plane.served.values()) >= CAPACITY
        else:
            orders, rows = len(made.provisioner.orders), len(made.store.rows)
    status = made.controller.status()
    return Course(
        cell,
        float(spill.std(axis=0).max()),
        tuple(f"{kind} {name}" for kind, name in made.provisioner.orders[orders:]),
        sum(row.action == "keep" for row in made.store.rows[rows:]),
        len(names) + len(made.store.records),
        full_s,
        tuple(status.troubles) if status else ("no status",),
    )


def cells(endpoints: int, usage: bool) -> Iterator[Cell]:
    for each in itertools.product(GIVEN, DEMANDS, OLD, LATE_S):
        yield Cell(*each, endpoints=endpoints, usage=usage)


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.grid", description=__doc__)
    parser.add_argument("--endpoints", type=int, default=1, help="of the service, which then are a pool")
    parser.add_argument("--usage", action="store_true", help="what members use is read, too")
    parser.add_argument("--jobs", type=int, default=2)
    asked = parser.parse_args()
    failing = 0
    every = list(cells(asked.endpoints, asked.usage))
    with Pool(asked.jobs) as pool:
        for course in pool.imap_unordered(play, every):
            failing += not course.holds
            print(course, flush=True)
    print(f"{len(every) - failing} of {len(every)} cells hold")


if __name__ == "__main__":
    main()
