# SPDX-License-Identifier: Apache-2.0
"""The demo's second scene: reads of a database that keeps being written to. What is offered, and what
Penumbra is told of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from controlplane.lab import trace
from controlplane.lab.configuration import Choices, LiveEndpoint, written
from controlplane.lab.database import PLACES, PORT, WORK_S, Database
from controlplane.lab.topology import Topology

CAPACITY = PLACES / WORK_S
"""Reads/s that one server does."""
LIVE, LIVE_HOST, SHADOW_HOST = "db-1", "host1", "host2"
WRITES_PER_S = 40.0
MAX_LAG_S = 3.0
"""What is agreed: no read begins at data that is older."""
NO_LAG_S = 3600.0
"""What Penumbra is told in its place where the gate is off."""
CUT_S = 6.0
"""So long the shadow hears nothing of the original: twice what is agreed."""

QUIET, PEAK, HELD = 0.3, 1.3, 0.8
"""Levels of load, as parts of one server's capacity."""
QUIET_S, RISE_S = 12.0, 60.0
LONGEST_S = 150.0
"""A stage that nobody ends."""
RISING, HOLDING, FALLING = range(3)
"""Stages of load."""


@dataclass(frozen=True, slots=True)
class Setting:
    topology: Topology
    is_gated: bool = True
    """False: Penumbra is told of no agreement worth the name, and the demo judges by the usual one."""
    rise_s: float = RISE_S
    """From quiet to the peak."""

    def yaml(self, database: Database, state_dir: Path) -> str:
        max_lag_s = MAX_LAG_S if self.is_gated else NO_LAG_S
        choices = Choices(
            endpoints=[LiveEndpoint(LIVE_HOST, LIVE, PORT, CAPACITY)],
            service="db-reads",
            shadow_hosts={SHADOW_HOST: 1},
            probe={"kind": "tcp", "interval": "500ms", "timeout": "400ms", "rise": 2, "fall": 3},
            data={
                "access": "read",
                "sync": {
                    "driver": "postgres",
                    "max_lag": f"{max_lag_s:g}s",
                    "interval": "200ms",
                    "variables": dict(database.sync_variables),
                },
            },
            shadows={
                "max_per_endpoint": 1,
                "headroom": 0.3,
                "lead_time": "20s",
                "warm_up": "1s",
                "idle": "4s",
                "min_life": "5s",
                "drain": "8s",
                "variables": dict(database.target_variables),
            },
            host_variables={SHADOW_HOST: {"data_dir": str(database.data_dir)}},
        )
        return written(self.topology, choices, state_dir)

    @property
    def courses(self) -> list[trace.Trace]:
        """Reads/s of each stage."""
        quiet, peak, held = (share * CAPACITY for share in (QUIET, PEAK, HELD))
        rise_s = [0.0, QUIET_S, QUIET_S + self.rise_s, QUIET_S + self.rise_s + LONGEST_S]
        return [
            trace.samples("rising", rise_s, [quiet, quiet, peak, peak]),
            trace.samples("holding", [0.0, 3.0, LONGEST_S], [peak, held, held]),
            trace.samples("falling", [0.0, 3.0, LONGEST_S], [held, 0.0, 0.0]),
        ]

    @property
    def crossing_s(self) -> float:
        """When the first stage's load passes one server's capacity, from its begin."""
        return QUIET_S + self.rise_s * (1.0 - QUIET) / (PEAK - QUIET)
