# SPDX-License-Identifier: Apache-2.0
"""How well quantiles of recorded load hold: ``python -m tests.score.calibration [FOLDER ...]``."""

from __future__ import annotations

import argparse
from pathlib import Path

from controlplane.simulation import backtest
from controlplane.simulation.backtest import Backtest
from controlplane.simulation.lines import Sample
from tests.score.__main__ import SHIPPED
from tests.score.replay import STEP_S, traces

COLUMNS = "steps, WAPE % (last value's), pinball of last value's, P10 P50 P90 P99 hold %, P90 while it rises"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.score.calibration", description=__doc__)
    parser.add_argument("folder", nargs="*", type=Path, default=[SHIPPED])
    parser.add_argument("--horizon", nargs="+", type=float, default=[30.0, 60.0, 120.0], help="seconds")
    parser.add_argument("--steps", type=int, help="judges no more of a trace than its first ones")
    given = parser.parse_args()
    found = [trace for folder in given.folder for trace in traces(folder)]
    for horizon_s in given.horizon:
        print(f"\n{horizon_s:g} s: {COLUMNS}")
        for trace in found:
            rates = trace.seen[: given.steps].tolist()
            samples = [Sample(STEP_S * at, rate) for at, rate in enumerate(rates, start=1)]
            forecasts = [*backtest.foreseen(samples, horizon_s, STEP_S)]
            judged = backtest.judged(forecasts, horizon_s, STEP_S)
            print(f"{trace.name:28s} {shown(judged) if judged else 'too short'}", flush=True)


def shown(one: Backtest) -> str:
    held = " ".join(f"{100 * share:5.1f}" for share in one.coverage)
    return (
        f"{one.steps:7d}  {100 * one.wape:5.1f} ({100 * one.wape_last:5.1f})  "
        f"{one.pinball / one.pinball_last:5.3f}  {held}  {100 * one.rising:5.1f}"
    )


if __name__ == "__main__":
    main()
