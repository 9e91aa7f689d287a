# SPDX-License-Identifier: Apache-2.0
"""The demo's picture: offered load, forecast, capacity, shadows and p99 over time, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from controlplane.lab.report import Floats, Observation, Plan, Requests

LOAD, FORECAST, CAPACITY, SHADOW, LATENCY, FAILED = (
    "#4c6a92", "#d08a2e", "#8a8f98", "#6b4f9a", "#2f7d6b", "#b3372f",
)  # fmt: skip
TITLES = {"none": "No shadows", "reactive": "Reactive, 70 % threshold", "penumbra": "Penumbra"}


@dataclass(frozen=True, slots=True)
class Run:
    requests: Requests
    seen: Sequence[Observation]


def draw(plan: Plan, runs: Mapping[str, Run], flows_per_request: float, path: Path) -> None:
    """Writes the SVG. ``flows_per_request`` turns the plan's requests/s into new flows/s."""
    with mpl.rc_context({"svg.fonttype": "none", "font.family": "sans-serif", "font.size": 9}):
        figure = Figure(figsize=(4.2 * len(runs), 6.6), layout="constrained")
        axes = figure.subplots(
            3, len(runs), sharex=True, sharey="row", height_ratios=[3, 1, 2], squeeze=False
        )
        for column, (name, run) in enumerate(runs.items()):
            axes[0, column].set_title(TITLES.get(name, name), loc="left", fontweight="bold")
            _draw_load(axes[0, column], plan, run, flows_per_request)
            _draw_shadows(axes[1, column], run)
            _draw_latency(axes[2, column], plan, run)
            axes[2, column].set_xlabel("seconds since the start of traffic")
        axes[0, 0].set_ylabel("new flows/s")
        axes[1, 0].set_ylabel("shadows")
        axes[2, 0].set_ylabel("p99, ms")
        axes[0, -1].legend(loc="upper right", frameon=False)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, format="svg", metadata={"Date": None})


def _draw_load(axes: Axes, plan: Plan, run: Run, flows_per_request: float) -> None:
    at_s = [one.at_s for one in run.seen]
    members = [1 + sum(state == "ready" for state in one.shadows.values()) for one in run.seen]
    capacity = plan.capacity * flows_per_request
    axes.plot(plan.times_s, plan.requests_per_s * flows_per_request, color=LOAD, label="offered load")
    axes.plot(
        at_s, [one.forecast for one in run.seen], color=FORECAST, lw=1, label="forecast, a lead time ahead"
    )
    axes.step(
        at_s, np.multiply(members, capacity), color=CAPACITY, ls="--", where="post", label="capacity online"
    )
    axes.set_ylim(bottom=0)


def _draw_shadows(axes: Axes, run: Run) -> None:
    at_s = [one.at_s for one in run.seen]
    there = [sum(state != "failed" for state in one.shadows.values()) for one in run.seen]
    ready = [sum(state == "ready" for state in one.shadows.values()) for one in run.seen]
    axes.fill_between(at_s, there, step="post", color=SHADOW, alpha=0.25, lw=0)
    axes.fill_between(at_s, ready, step="post", color=SHADOW, alpha=0.8, lw=0)
    axes.set_yticks(range(max(there, default=0) + 2))


def _draw_latency(axes: Axes, plan: Plan, run: Run) -> None:
    at_s, p99_ms = per_second_p99_ms(run.requests, plan.duration_s)
    axes.semilogy(at_s, p99_ms, color=LATENCY)
    failed = run.requests.intended_s[~run.requests.ok]
    if failed.size:
        axes.plot(failed, np.full(failed.size, np.nanmax(p99_ms)), "x", color=FAILED, ms=3)
    axes.grid(axis="y", alpha=0.3)


def per_second_p99_ms(requests: Requests, duration_s: float) -> tuple[Floats, Floats]:
    """p99 of the requests meant for each second; NaN where there was none."""
    edges = np.arange(0.0, duration_s + 1.0)
    second = np.digitize(requests.intended_s, edges) - 1
    p99_ms = np.full(edges.size - 1, np.nan)
    for at in range(edges.size - 1):
        latency_s = requests.latency_s[second == at]
        if latency_s.size:
            p99_ms[at] = np.quantile(latency_s, 0.99) * 1000
    return edges[:-1] + 0.5, p99_ms
