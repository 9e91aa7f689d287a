# SPDX-License-Identifier: Apache-2.0
"""Forecasts of recorded load: demand as it came, and what was foreseen of it a horizon before."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from controlplane.forecast.quantiles import PROBABILITIES
from controlplane.pictures import style
from controlplane.pictures.series import slots, unit
from controlplane.pictures.style import FORECAST, LOAD
from controlplane.simulation.backtest import Backtest, Forecast

_SLOTS_MOST = 2000


def draw(forecasts: Sequence[Forecast], found: Backtest, ahead_s: float, path: Path) -> None:
    """:param forecasts: at least one; each is drawn ``ahead_s`` after its sample. Raises OSError."""
    at_s = np.array([forecast.sample.at_s for forecast in forecasts])
    demand = np.array([forecast.sample.rate for forecast in forecasts])
    nothing = np.full(len(PROBABILITIES), np.nan)
    p10, p50, p90, _ = np.array(
        [nothing if forecast.quantiles is None else forecast.quantiles for forecast in forecasts]
    ).T
    unit_s, name = unit(float(at_s[-1] - at_s[0]))
    times, then = (at_s - at_s[0]) / unit_s, (at_s - at_s[0] + ahead_s) / unit_s
    shown = slots(len(forecasts), _SLOTS_MOST)
    with style.style():
        figure = Figure(figsize=(10.0, 4.2), layout="constrained", facecolor="white")
        axes = figure.subplots()
        axes.set_title(f"Foreseen {ahead_s:g} s before", loc="left", fontweight="bold", fontsize=11)
        said = f"WAPE {found.wape:.1%}; below P10 {found.coverage[0]:.1%}, below P90 {found.coverage[2]:.1%}"
        axes.set_title(said, loc="right", fontsize=8.5)
        axes.fill_between(
            then[shown.begins],
            shown.low(p10),
            shown.high(p90),
            color=FORECAST,
            alpha=0.3,
            lw=0,
            label="P10 to P90",
        )
        for values, when, color, label in ((p50, then, FORECAST, "P50"), (demand, times, LOAD, "demand")):
            line = shown.line(values)
            axes.plot(when[line], values[line], color=color, lw=1.0, label=label)
        axes.set_ylim(bottom=0)
        axes.set_xlabel(f"{name} since the first line")
        axes.set_ylabel("requests/s")
        figure.legend(loc="outside lower center", ncols=3, frameon=False)
        style.write(figure, path)
