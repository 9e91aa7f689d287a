# SPDX-License-Identifier: Apache-2.0
"""``penumbra forecast``: quantiles of demand against what came."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated

import typer

from controlplane.cli import output, plotted, recorded
from controlplane.cli.options import AsJson
from controlplane.cli.output import EXIT_USAGE, fail, rows, say
from controlplane.cli.plotted import Plot
from controlplane.cli.recorded import STDIN, Interval, Trace, within
from controlplane.forecast.quantiles import PROBABILITIES
from controlplane.simulation import backtest
from controlplane.simulation.backtest import Backtest, Forecast
from controlplane.simulation.lines import LineError
from controlplane.simulation.plant import lead_steps

HORIZON_STEPS_MOST = 2000
NAMES = tuple(f"p{100 * probability:g}" for probability in PROBABILITIES)


def forecast(
    trace: Trace,
    horizon: Annotated[float, typer.Option(help="seconds from a line to what is foreseen, 1 to 2000 steps")],
    interval: Interval = None,
    plot: Plot = None,
    as_json: AsJson = False,
) -> None:
    """Foresee recorded load step by step: how often it was right, and by how much wrong.

    With - each line read is answered by a JSON object before the next one is read. A FILE gives the summary,
    with --json its steps. WAPE is of the median; pinball loss is the mean over P10, P50, P90 and P99. Beside
    both stands who says that all stays as it is, give or take what it was wrong by before.

    Example: penumbra forecast --trace load.csv --horizon 60
    """
    output.needed()
    plotted.checked(plot, trace)
    try:
        if trace == STDIN:
            between = recorded.stream_interval(interval)
            ahead_s = _ahead_s(horizon, between)
            for one in backtest.foreseen(recorded.stream(), ahead_s, between):
                say(_told(one, ahead_s))
        else:
            _file(Path(trace), horizon, interval, plot, as_json)
    except LineError as error:
        fail(str(error), EXIT_USAGE)


def _ahead_s(horizon: float, interval_s: float) -> float:
    """Whole steps. Ends the command if there are none, or too many."""
    within("--horizon", horizon, interval_s, HORIZON_STEPS_MOST * interval_s)
    return lead_steps(horizon, interval_s) * interval_s


def _file(path: Path, horizon: float, interval: float | None, plot: Path | None, as_json: bool) -> None:
    samples, between = recorded.read(path, interval)
    ahead_s = _ahead_s(horizon, between)
    forecasts = []
    for one in backtest.foreseen(samples, ahead_s, between):
        if as_json:
            say(_told(one, ahead_s))
        forecasts.append(one)
    if as_json and plot is None:
        return
    found = backtest.judged(forecasts, ahead_s, between)
    if found is None:
        fail(f"{path}: too few samples to judge a forecast of {horizon:g} s: {len(samples)}", EXIT_USAGE)
    if not as_json:
        say(f"{found.steps} steps of {between:g} s, {ahead_s:g} s ahead")
        _summary(found)
    if plot is not None:
        _draw(plot, forecasts, found, ahead_s)


def _draw(plot: Path, forecasts: list[Forecast], found: Backtest, ahead_s: float) -> None:
    from controlplane.pictures import forecasts as picture  # matplotlib takes half a second to import

    plotted.written(plot, lambda path: picture.draw(forecasts, found, ahead_s, path))


def _summary(found: Backtest) -> None:
    rows(
        ("", "WAPE", "pinball", *NAMES, "p90 rising"),
        [
            {
                "": "foreseen",
                "WAPE": _share(found.wape),
                "pinball": found.pinball,
                **{name: _share(share) for name, share in zip(NAMES, found.coverage, strict=True)},
                "p90 rising": _share(found.rising),
            },
            {
                "": "unmoved",
                "WAPE": _share(found.wape_last),
                "pinball": found.pinball_last,
                **dict.fromkeys((*NAMES, "p90 rising")),
            },
        ],
        as_json=False,
    )


def _share(share: float) -> str | None:
    return None if math.isnan(share) else f"{100 * share:.1f} %"


def _told(one: Forecast, ahead_s: float) -> str:
    quantiles = [None] * len(NAMES) if one.quantiles is None else one.quantiles.tolist()
    return json.dumps(
        {
            "t": one.sample.at_s,
            "demand": None if math.isnan(one.sample.rate) else one.sample.rate,
            "at": one.sample.at_s + ahead_s,
            **dict(zip(NAMES, quantiles, strict=True)),
        }
    )


def register(app: typer.Typer) -> None:
    app.command()(forecast)
