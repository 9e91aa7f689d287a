# SPDX-License-Identifier: Apache-2.0
"""A policy led through a trace, and what became of its demand."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from controlplane.rivals import TARGET, Rival
from controlplane.simulation import plant, run
from controlplane.simulation.lines import Sample
from controlplane.simulation.run import Terms
from tests.score.jumps import jumps
from tests.score.replay import STEP_S, TICK_S, TICKS, Trace

PENUMBRA = "penumbra"
POLICIES = (PENUMBRA, Rival.HPA.value, Rival.TREND.value)


@dataclass(frozen=True, slots=True)
class Outcome:
    over: float
    """Per cent of time in which demand exceeded what was ready."""
    over_inexcusably: float
    """The same without jumps."""
    lost: float
    """Per cent of demand above it."""
    lost_inexcusably: float
    """The same without jumps."""
    cost: float
    """Endpoint-seconds as a multiple of the oracle's."""
    starts: int
    reversals: int


def outcome(trace: Trace, lead_s: float, policy: str, over_cost: float | None = None) -> Outcome:
    """Each step is decided on the steps before it."""
    initial = int(plant.needed(trace.seen[:1], trace.capacity * TARGET)[0])
    terms = Terms(trace.capacity, lead_s, STEP_S, initial)
    if over_cost is not None:
        terms = replace(terms, shadows=replace(terms.shadows, over_cost=over_cost))
    samples = [Sample(STEP_S * at, rate) for at, rate in enumerate(trace.seen.tolist(), start=1)]
    rival = None if policy == PENUMBRA else Rival(policy)
    wanted = np.array([answer.in_force for answer in run.led(rival, terms, samples)])
    ticks = np.repeat(wanted, TICKS)
    by_tick = plant.score(ticks, trace.demand, trace.capacity, lead_s, TICK_S)
    by_step = plant.score(wanted, trace.seen, trace.capacity, lead_s, STEP_S)
    there = plant.ready(ticks, plant.lead_steps(lead_s, TICK_S))
    excess = plant.excess(trace.demand, there, trace.capacity)
    inexcusable = ~jumps(trace, lead_s)
    return Outcome(
        over=100 * by_tick.over,
        over_inexcusably=100 * float(np.mean((excess > 0) & inexcusable)),
        lost=100 * by_tick.lost,
        lost_inexcusably=100 * float(np.sum(excess * inexcusable) / np.sum(trace.demand)),
        cost=by_tick.cost,
        starts=by_step.starts,
        reversals=by_step.reversals,
    )
