# SPDX-License-Identifier: Apache-2.0
"""What a run of the demo amounts to: figures, and whether Penumbra kept its promise. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

QUIET_SHARE = 0.25
"""The first quarter of the trace is the quiet one."""
P99_FACTOR = 2.0
"""How far p99 may rise above its quiet value."""
RISE_FACTOR = 3.0
"""The rise from quiet to crossing lasts at most so many lead times, or forecasting it would be no feat."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is offered: the same in every run."""

    duration_s: float
    times_s: Floats
    """Seconds since the start of traffic, shape (n,)."""
    requests_per_s: Floats
    """The trace's rate at those times, shape (n,)."""
    capacity: float
    """Requests/s that one endpoint serves."""
    live: str
    """The live endpoint's name in answers; who else answers is a shadow."""

    def crossing_s(self) -> float | None:
        """When the rate first exceeds one endpoint's capacity."""
        over = np.flatnonzero(self.requests_per_s > self.capacity)
        return float(self.times_s[over[0]]) if over.size else None

    def rise_s(self) -> float | None:
        """From the last quiet moment before the crossing until the crossing.

        Quiet is at most the median of the first quarter plus a tenth of the way up to capacity.
        """
        crossing = self.crossing_s()
        if crossing is None:
            return None
        quiet = float(np.median(self.requests_per_s[self.times_s <= QUIET_SHARE * self.duration_s]))
        calm = quiet + 0.1 * (self.capacity - quiet)
        before = (self.times_s < crossing) & (self.requests_per_s <= calm)
        return crossing - float(self.times_s[before][-1]) if before.any() else crossing


@dataclass(frozen=True, slots=True)
class Requests:
    """Every request of a run, by its intended time. Arrays of shape (n,)."""

    intended_s: Floats
    latency_s: Floats
    """From the intended send time; a failed request counts with the time until it failed."""
    ok: npt.NDArray[np.bool_]
    served_by: npt.NDArray[np.str_]


@dataclass(frozen=True, slots=True)
class Observation:
    """What the controller said at one moment of a run."""

    at_s: float
    demand: float
    """New flows/s of the group, as last read."""
    level: float
    """Demand now, smoothed."""
    forecast: float
    """The high quantile of demand, a lead time ahead."""
    spill: float
    shadows: Mapping[str, str]
    """Name -> state, of all shadows there are."""


@dataclass(frozen=True, slots=True)
class Figures:
    """One run in numbers, as ``build/demo.json`` has them."""

    requests: int
    failed: int
    p50_ms: float
    p99_ms: float
    quiet_p99_ms: float
    seconds_over_capacity: float
    endpoint_seconds: float
    shadows: int
    decision_to_first_byte_s: float | None
    shadow_serving_before_crossing_s: float | None
    """How long before the crossing a shadow was ready and had served a request; negative: after it."""
    lead_time_s: float | None
    """From the first order until that shadow was ready."""
    forecast_ahead_s: float
    """Seconds in which the forecast stood above the present demand; 0: there was no forecast. A run without
    shadows has one too: it forecasts and does not act."""


def figures(plan: Plan, requests: Requests, seen: Sequence[Observation]) -> Figures:
    """The figures of a run, all from what was recorded in it."""
    quiet = requests.intended_s <= QUIET_SHARE * plan.duration_s
    used = {name for one in seen for name in one.shadows}
    first_served = _first_served_s(plan, requests)
    ordered = next((one.at_s for one in seen if one.shadows), None)
    ready = next((one.at_s for one in seen if "ready" in one.shadows.values()), None)
    serving = None if first_served is None or ready is None else max(first_served, ready)
    crossing = plan.crossing_s()
    return Figures(
        requests=int(requests.ok.size),
        failed=int((~requests.ok).sum()),
        p50_ms=_quantile_ms(requests.latency_s, 0.5),
        p99_ms=_quantile_ms(requests.latency_s, 0.99),
        quiet_p99_ms=_quantile_ms(requests.latency_s[quiet], 0.99),
        seconds_over_capacity=_seconds_over(plan, seen),
        endpoint_seconds=plan.duration_s + _shadow_seconds(seen),
        shadows=len(used),
        decision_to_first_byte_s=(
            None if first_served is None or ordered is None else first_served - ordered
        ),
        shadow_serving_before_crossing_s=(
            None if serving is None or crossing is None else crossing - serving
        ),
        lead_time_s=lead_time_s(seen),
        forecast_ahead_s=_seconds_ahead(seen),
    )


def lead_time_s(seen: Sequence[Observation]) -> float | None:
    """From the order of the first shadow until it was ready, as measured; None: it never was."""
    for one in seen:
        for name in one.shadows:
            ready = next((later.at_s for later in seen if later.shadows.get(name) == "ready"), None)
            return None if ready is None else ready - one.at_s
    return None


def broken_promises(plan: Plan, runs: Mapping[str, Figures], seen: Sequence[Observation]) -> list[str]:
    """What of the demo's promise did not come true, a sentence each; ``seen`` is of the run with Penumbra."""
    penumbra = runs["penumbra"]
    said = []
    if penumbra.failed:
        said.append(f"{penumbra.failed} requests failed with Penumbra")
    if any(one.shadows and one.at_s <= QUIET_SHARE * plan.duration_s for one in seen):
        said.append("a shadow was there in the quiet first quarter")
    crossing, rise = plan.crossing_s(), plan.rise_s()
    if crossing is None or rise is None:
        if penumbra.shadows:
            said.append(f"{penumbra.shadows} shadows were started though the load never crosses capacity")
        return said
    before = penumbra.shadow_serving_before_crossing_s
    if before is None:
        said.append("no shadow was ever ready and served a request")
    elif before <= 0:
        said.append(f"the first shadow was ready and served {-before:.1f} s after the load crossed capacity")
    lead_time = penumbra.lead_time_s
    if lead_time is not None and rise > RISE_FACTOR * lead_time:
        said.append(f"the rise of {rise:.1f} s is over {RISE_FACTOR:g} x the lead time of {lead_time:.1f} s")
    if penumbra.p99_ms > P99_FACTOR * penumbra.quiet_p99_ms:
        said.append(
            f"p99 of {penumbra.p99_ms:.0f} ms is over {P99_FACTOR:g} x its quiet value of "
            f"{penumbra.quiet_p99_ms:.0f} ms with Penumbra"
        )
    for name in runs.keys() - {"penumbra"}:
        other = runs[name]
        if other.p99_ms <= P99_FACTOR * other.quiet_p99_ms:
            said.append(f"p99 held in the run '{name}' too: the trace asks for nothing")
    if seen and seen[-1].shadows:
        said.append(f"shadows were left at the end: {', '.join(seen[-1].shadows)}")
    return said


def _quantile_ms(latency_s: Floats, quantile: float) -> float:
    return float(np.quantile(latency_s, quantile)) * 1000 if latency_s.size else float("nan")


def _first_served_s(plan: Plan, requests: Requests) -> float | None:
    """When the first byte of a shadow's answer came, nearly: when its first request was done."""
    by_shadow = (requests.served_by != plan.live) & (requests.served_by != "") & requests.ok
    if not by_shadow.any():
        return None
    return float((requests.intended_s + requests.latency_s)[by_shadow].min())


def _seconds_over(plan: Plan, seen: Sequence[Observation]) -> float:
    """Seconds in which more was offered than the live endpoint and the ready shadows can serve together."""
    at_s = np.array([one.at_s for one in seen])
    ready = np.array([1 + sum(state == "ready" for state in one.shadows.values()) for one in seen])
    members = np.ones_like(plan.times_s)
    if at_s.size:
        before = np.searchsorted(at_s, plan.times_s, side="right") - 1
        members = np.where(before >= 0, ready[np.maximum(before, 0)], 1)
    step_s = np.gradient(plan.times_s)
    return float(step_s[plan.requests_per_s > members * plan.capacity].sum())


def _seconds_ahead(seen: Sequence[Observation]) -> float:
    return sum(after.at_s - one.at_s for one, after in pairwise(seen) if one.forecast > one.level + 0.01)


def _shadow_seconds(seen: Sequence[Observation]) -> float:
    """From each shadow's request until it was gone; a failed one takes nothing."""
    total = 0.0
    for one, after in pairwise(seen):
        total += (after.at_s - one.at_s) * sum(state != "failed" for state in one.shadows.values())
    return total
