# SPDX-License-Identifier: Apache-2.0
"""What the demo plays, and what Penumbra is told of it: the same in all runs but for what is compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np

from controlplane.lab import trace
from controlplane.lab.configuration import Choices, LiveEndpoint, written
from controlplane.lab.report import QUIET_SHARE, Plan
from controlplane.lab.topology import Topology
from controlplane.simulation import lines

SERVICE_TIME_S = 0.0625
CONCURRENCY = 20
START_UP_S = 7.0
"""Until an endpoint listens, as one does that loads its code and data first."""
CAPACITY = CONCURRENCY / SERVICE_TIME_S
"""Requests/s that one endpoint serves."""
FLOWS_PER_REQUEST = 0.53
"""Half of the generator's requests are a flow each, the others share flows of 17.5 requests on average."""
LIVE = "web-1"
LIVE_HOST = "host1"
SHADOW_HOSTS = ("host2", "host3")
PORT = 8080

QUIET = 0.3
"""The quiet level, as a part of one endpoint's capacity."""
PEAK_MOST = 2.5
"""More than so many capacities are never offered: two shadows could not serve it."""
DURATION_S = 72.0
RISE_S = 18.5
"""The trace is compressed until the rise from quiet to crossing lasts so long: it is minutes in recorded
traces, while a shadow here is ready after seconds."""
LEAD_IN = 0.25
"""The part of the excerpt that comes before the rise."""
GRID_S = 0.25


class Kind(Enum):
    NONE = "none"
    REACTIVE = "reactive"
    PENUMBRA = "penumbra"


TITLES = {
    Kind.NONE: "no shadows",
    Kind.REACTIVE: "reactive, 70 % threshold",
    Kind.PENUMBRA: "Penumbra",
}


@dataclass(frozen=True, slots=True, eq=False)
class Setting:
    """One demo: a course of requests/s, and how Penumbra is configured for it."""

    topology: Topology
    course: trace.Trace
    target: str = "netns"
    forecast: str = "auto"
    """Penumbra's forecast method."""

    @property
    def plan(self) -> Plan:
        times_s = np.arange(0.0, self.course.duration_s, GRID_S)
        return Plan(self.course.duration_s, times_s, self.course.at(times_s), CAPACITY, LIVE)

    def yaml(self, kind: Kind, state_dir: Path, host_variables: Mapping[str, Mapping[str, object]]) -> str:
        """The configuration of one run. ``host_variables``: what playbooks need besides the usual."""
        methods: dict[Kind, dict[str, object]] = {
            Kind.NONE: {},
            Kind.REACTIVE: {"method": "none"},
            Kind.PENUMBRA: {"method": self.forecast},
        }
        choices = Choices(
            endpoints=[LiveEndpoint(LIVE_HOST, LIVE, PORT, round(CAPACITY * FLOWS_PER_REQUEST))],
            shadow_hosts=dict.fromkeys(SHADOW_HOSTS, 1),
            mode="forecast-only" if kind is Kind.NONE else "act",
            probe={"interval": "500ms", "timeout": "400ms", "rise": 2, "fall": 3},
            forecast=methods[kind],
            shadows={
                "target": self.target,
                "max_per_endpoint": 2,
                "headroom": 0.3,
                "lead_time": "11s",
                "warm_up": "1s",
                "idle": "5s",
                "min_life": "5s",
                "drain": "40s",
            },
            host_variables=host_variables,
        )
        return written(self.topology, choices, state_dir)


def course_of(given: trace.Trace, duration_s: float = DURATION_S) -> trace.Trace:
    """The excerpt of a trace around its first rise above capacity, in requests/s, lasting ``duration_s``.

    Its quiet level becomes a known part of one endpoint's capacity; a trace that never rises above capacity
    is played whole. Raises ``TraceError``.
    """
    first = given.at_s <= QUIET_SHARE * given.duration_s
    quiet = float(np.median(given.level[first]))
    if quiet <= 0:
        raise trace.TraceError(f"{given.name}: its first quarter is silent: there is nothing to compare with")
    scale = min(QUIET * CAPACITY / quiet, PEAK_MOST * CAPACITY / given.peak)
    fine_s = np.linspace(0.0, given.duration_s, 20_000)
    rate = given.at(fine_s) * scale
    whole = Plan(given.duration_s, fine_s, rate, CAPACITY, LIVE)
    crossing_s, rise_s = whole.crossing_s(), whole.rise_s()
    start_s, length_s = 0.0, given.duration_s
    if crossing_s is not None and rise_s is not None:
        length_s = min(duration_s * max(rise_s, given.period_s / 10) / RISE_S, given.duration_s)
        start_s = max(crossing_s - rise_s - LEAD_IN * length_s, 0.0)
        start_s = min(start_s, given.duration_s - length_s)
    grid_s = np.arange(0.0, duration_s, GRID_S)
    level = given.at(start_s + grid_s * length_s / duration_s) * scale
    return trace.samples(given.name, grid_s.tolist(), level.tolist())


def course_text(course: trace.Trace) -> str:
    """The CSV that the traffic generator reads."""
    rows = (f"{at:.3f},{level:.4f}" for at, level in zip(course.at_s, course.level, strict=True))
    return "\n".join([lines.HEADER, *rows]) + "\n"
