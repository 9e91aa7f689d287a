# SPDX-License-Identifier: Apache-2.0
"""The demo's picture: offered load, forecast, capacity, shadows and p99 over time, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from controlplane.lab.report import P99_FACTOR, QUIET_SHARE, Floats, Observation, Plan, Requests, figures
from controlplane.pictures import style
from controlplane.pictures.style import CAPACITY, FAILED, FAINT, FORECAST, LATENCY, LOAD, SHADOW

LEGEND_COLUMNS = (2, 4, 8)
"""As many as fit beside each other in a picture of one, two or three runs."""
TITLES = {"none": "No shadows", "reactive": "Reactive, 70 % threshold", "penumbra": "Penumbra"}


@dataclass(frozen=True, slots=True)
class Run:
    requests: Requests
    seen: Sequence[Observation]


def draw(plan: Plan, runs: Mapping[str, Run], flows_per_request: float, path: Path) -> None:
    """Writes the SVG. ``flows_per_request`` turns the controller's new flows/s into requests/s."""
    with style.style():
        figure = Figure(figsize=(4.3 * len(runs) + 0.4, 7.0), layout="constrained", facecolor="white")
        axes = figure.subplots(
            3, len(runs), sharex=True, sharey="row", height_ratios=[3, 0.9, 1.9], squeeze=False
        )
        for column, (name, run) in enumerate(runs.items()):
            _draw_title(axes[0, column], plan, name, run)
            _draw_load(axes[0, column], plan, run, flows_per_request)
            _draw_shadows(axes[1, column], run)
            _draw_latency(axes[2, column], plan, run)
            _draw_landmarks(list(axes[:, column]), plan)
            axes[2, column].set_xlabel("seconds since the start of traffic")
        # Now, for an axis that is shared keeps the range that it has when a limit is set.
        axes[0, 0].set_ylim(bottom=0)
        axes[1, 0].set_ylim(0, max(2.4, axes[1, 0].get_ylim()[1]))
        axes[0, 0].set_ylabel("requests/s")
        axes[1, 0].set_ylabel("shadows")
        axes[1, 0].set_yticks(range(3))
        axes[2, 0].set_ylabel("p99 of each second, ms")
        shown: dict[str, Artist] = {}
        for one in axes.flat:
            handles, labels = one.get_legend_handles_labels()
            shown |= {label: handle for handle, label in zip(handles, labels, strict=True)}
        columns = LEGEND_COLUMNS[len(runs) - 1]
        figure.legend(
            list(shown.values()), list(shown), loc="outside lower center", ncols=columns, frameon=False
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        style.write(figure, path)


def _draw_title(axes: Axes, plan: Plan, name: str, run: Run) -> None:
    axes.set_title(TITLES.get(name, name), loc="left", fontweight="bold", fontsize=12, pad=30)
    found = figures(plan, run.requests, run.seen)
    said = f"p99 {found.p99_ms:,.0f} ms (quiet {found.quiet_p99_ms:,.0f} ms), {found.failed:,} failed\n"
    if found.shadow_serving_before_crossing_s is not None:
        early = found.shadow_serving_before_crossing_s
        said += f"shadow ready {abs(early):.1f} s {'before' if early > 0 else 'after'} the crossing"
    axes.text(0, 1.02, said, transform=axes.transAxes, color=CAPACITY, fontsize=8.5, va="bottom")


def _draw_load(axes: Axes, plan: Plan, run: Run, flows_per_request: float) -> None:
    at_s = [one.at_s for one in run.seen]
    members = [1 + sum(state == "ready" for state in one.shadows.values()) for one in run.seen]
    forecast = np.array([one.forecast for one in run.seen]) / flows_per_request
    demand = np.array([one.demand for one in run.seen]) / flows_per_request
    axes.fill_between(plan.times_s, plan.requests_per_s, color=LOAD, alpha=0.12, lw=0)
    axes.plot(plan.times_s, plan.requests_per_s, color=LOAD, lw=1.8, label="offered load")
    axes.plot(at_s, demand, ".", color=LOAD, ms=2.5, alpha=0.7, label="measured")
    axes.plot(at_s, forecast, color=FORECAST, lw=1.3, label="p90 forecast, a lead time ahead")
    axes.step(
        at_s,
        np.multiply(members, plan.capacity),
        color=CAPACITY,
        lw=1.3,
        ls=(0, (4, 2)),
        where="post",
        label="capacity online",
    )


def _draw_shadows(axes: Axes, run: Run) -> None:
    at_s = [one.at_s for one in run.seen]
    there = [sum(state != "failed" for state in one.shadows.values()) for one in run.seen]
    ready = [sum(state == "ready" for state in one.shadows.values()) for one in run.seen]
    axes.fill_between(
        at_s, there, step="post", color=SHADOW, alpha=0.25, lw=0, label="shadows on order or draining"
    )
    axes.fill_between(at_s, ready, step="post", color=SHADOW, alpha=0.85, lw=0, label="ready")


def _draw_latency(axes: Axes, plan: Plan, run: Run) -> None:
    at_s, p99_ms = per_second_p99_ms(run.requests, plan.duration_s)
    axes.semilogy(at_s, p99_ms, color=LATENCY, lw=1.5)
    quiet = run.requests.latency_s[run.requests.intended_s <= QUIET_SHARE * plan.duration_s]
    if quiet.size:
        limit_ms = P99_FACTOR * float(np.quantile(quiet, 0.99)) * 1000
        axes.axhline(limit_ms, color=FAILED, lw=1, ls=":", label=f"{P99_FACTOR:g} x quiet p99")
    failed = run.requests.intended_s[~run.requests.ok]
    if failed.size:
        axes.plot(failed, np.full(failed.size, np.nanmax(p99_ms)), "x", color=FAILED, ms=3, label="failed")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    plain = FuncFormatter(lambda value, _: f"{value:,.0f}")
    axes.yaxis.set_major_formatter(plain)
    axes.yaxis.set_minor_formatter(NullFormatter())
    axes.grid(axis="y", alpha=0.25)


def _draw_landmarks(column: Sequence[Axes], plan: Plan) -> None:
    """The quiet quarter, and the moment at which the load crosses one endpoint's capacity."""
    crossing_s = plan.crossing_s()
    for axes in column:
        axes.axvspan(0, QUIET_SHARE * plan.duration_s, color=FAINT, alpha=0.12, lw=0)
        axes.set_xlim(left=0)
        if crossing_s is not None:
            axes.axvline(crossing_s, color=FAILED, lw=0.9, alpha=0.7)
    where = column[0].get_xaxis_transform()
    column[0].text(0.7, 0.96, "quiet quarter", transform=where, color=FAINT, fontsize=8, va="top")
    if crossing_s is not None:
        column[0].text(
            crossing_s - 0.8,
            0.86,
            "crosses one\nendpoint's capacity",
            transform=where,
            color=FAILED,
            fontsize=8,
            va="top",
            ha="right",
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
        )


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
