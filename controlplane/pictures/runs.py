# SPDX-License-Identifier: Apache-2.0
"""Simulated runs: demand, what serves it and what is wanted, a panel for each policy; overload is marked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from controlplane.pictures import style
from controlplane.pictures.series import Floats, Slots, slots, unit
from controlplane.pictures.style import CAPACITY, FAILED, LOAD, SHADOW
from controlplane.simulation import plant, run
from controlplane.simulation.run import Answer, Terms

_SLOTS_MOST = 1200
"""Of a panel; all together have twice as many, so that the file stays below a megabyte."""


def draw(terms: Terms, runs: Mapping[str, Sequence[Answer]], path: Path) -> None:
    """:param runs: by policy, each of the same samples, of which there is at least one. Raises OSError."""
    samples = [answer.sample for answer in next(iter(runs.values()))]
    at_s = np.array([sample.at_s for sample in samples])
    demand = np.array([sample.rate for sample in samples])
    unit_s, name = unit(float(at_s[-1] - at_s[0]))
    shown = slots(len(samples), min(_SLOTS_MOST, 2 * _SLOTS_MOST // len(runs)))
    with style.style():
        figure = Figure(figsize=(10.0, 0.8 + 2.4 * len(runs)), layout="constrained", facecolor="white")
        panels = figure.subplots(len(runs), 1, sharex=True, sharey=True, squeeze=False)[:, 0]
        for axes, (policy, answers) in zip(panels, runs.items(), strict=True):
            _draw_title(axes, terms, policy, answers)
            _draw_run(axes, terms, shown, (at_s - at_s[0]) / unit_s, demand, answers)
        panels[0].set_ylim(bottom=0)
        panels[-1].set_xlabel(f"{name} since the first line")
        handles: dict[str, Artist] = {}
        for axes in panels:
            handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
        figure.legend([*handles.values()], [*handles], loc="outside lower center", ncols=4, frameon=False)
        style.write(figure, path)


def _draw_title(axes: Axes, terms: Terms, policy: str, answers: Sequence[Answer]) -> None:
    score = run.judged(terms, answers)
    axes.set_title(policy, loc="left", fontweight="bold", fontsize=11)
    said = f"over {score.over:.2%} of time, lost {score.lost:.2%} of demand, cost {score.cost:.3g}"
    axes.set_title(said, loc="right", color=CAPACITY, fontsize=8.5)


def _draw_run(
    axes: Axes, terms: Terms, shown: Slots, times: Floats, demand: Floats, answers: Sequence[Answer]
) -> None:
    """:param times: (steps,) the end of each, which its demand is the mean of."""
    wanted = np.array([answer.in_force for answer in answers])
    ready = plant.ready(wanted, plant.lead_steps(terms.lead_time_s, terms.interval_s))
    over = plant.excess(np.nan_to_num(demand), ready, terms.capacity) > 0
    if over.any():
        _mark(axes, times, shown, shown.any(over))
    for members, color, dashes, label in (
        (wanted, SHADOW, (0, (3, 2)), "wanted x capacity"),
        (ready, CAPACITY, "-", "ready x capacity"),
    ):
        line = shown.line(members.astype(np.float64))
        served = members[line] * terms.capacity
        axes.step(times[line], served, color=color, lw=1.0, ls=dashes, where="pre", label=label)
    line = shown.line(demand)
    axes.fill_between(times[line], demand[line], color=LOAD, alpha=0.12, lw=0)
    axes.plot(times[line], demand[line], color=LOAD, lw=0.9, label="demand")
    axes.set_ylabel("requests/s")
    in_members = axes.secondary_yaxis(
        "right",
        functions=(
            lambda rate: np.divide(rate, terms.capacity),
            lambda count: np.multiply(count, terms.capacity),
        ),
    )
    in_members.set_ylabel("members")


def _mark(axes: Axes, times: Floats, shown: Slots, over: npt.NDArray[np.bool_]) -> None:
    """Where it was over capacity, from top to bottom: one path each for areas and for their left edges, which
    are seen however short it was."""
    edges = np.append(times[np.maximum(shown.begins - 1, 0)], times[-1])
    change = np.diff(np.concatenate([[0], over.astype(np.int8), [0]]))
    left, right = edges[change > 0], edges[change < 0]
    where = axes.get_xaxis_transform()
    across = np.column_stack([left, left, right, right]).ravel()
    axes.fill(across, np.tile([0, 1, 1, 0], len(left)), color=FAILED, alpha=0.2, lw=0, transform=where)
    edge = np.column_stack([left, left, np.full(len(left), np.nan)]).ravel()
    height = np.tile([0, 1, np.nan], len(left))
    axes.plot(edge, height, color=FAILED, lw=0.6, alpha=0.5, transform=where, label="over capacity")
