# SPDX-License-Identifier: Apache-2.0
"""Quantiles of demand at a horizon: right as often as they say, whoever foresees them."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from controlplane.cli import app
from controlplane.forecast import quantiles as module
from controlplane.forecast import shifts
from controlplane.forecast.analogs import Analogs
from controlplane.forecast.quantiles import METHODS, PROBABILITIES, Quantiles
from controlplane.forecast.recent import Floats
from controlplane.forecast.season import HoltWinters, Season, period
from controlplane.forecast.shifts import Shifts
from controlplane.simulation import backtest
from controlplane.simulation.backtest import Backtest
from controlplane.simulation.lines import Sample

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
STEP_S, LEAD = 15.0, 4
DAY = 400
"""Steps of a season."""


def told(demand: Floats, lead: int = LEAD) -> tuple[Floats, Quantiles]:
    """(steps, PROBABILITIES) after each of them."""
    analogs = Analogs(STEP_S, lead)
    quantiles = Quantiles(STEP_S, lead, analogs)
    rows = []
    for rate in demand.tolist():
        analogs.after(rate)
        rows.append(quantiles.after(rate))
    return np.array(rows), quantiles


def judged(demand: Floats, horizon_s: float = LEAD * STEP_S) -> Backtest:
    samples = [Sample(STEP_S * at, rate) for at, rate in enumerate(demand.tolist())]
    found = backtest.judged([*backtest.foreseen(samples, horizon_s, STEP_S)], horizon_s, STEP_S)
    assert found is not None
    return found


def weight(quantiles: Quantiles, *methods: str) -> float:
    return sum(dict(zip(METHODS, quantiles.weights().tolist(), strict=True))[method] for method in methods)


def walk(count: int) -> Floats:
    """Goes up or down by a few per cent, and back towards 100 in the long run."""
    random, log = np.random.default_rng(2), 0.0
    logs = []
    for step in random.normal(0, 0.05, count).tolist():
        log += step - 0.01 * log
        logs.append(log)
    return 100.0 * np.exp(np.array(logs))


@pytest.mark.parametrize("horizon_s", [30.0, 60.0, 120.0])
def test_as_much_is_below_a_quantile_as_it_says(horizon_s: float) -> None:
    found = judged(walk(4000), horizon_s)
    assert found.coverage == pytest.approx(PROBABILITIES.tolist(), abs=0.03)
    assert 0.8 <= found.rising <= 0.97
    assert found.pinball < found.pinball_last


def test_quantiles_that_are_too_narrow_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the test above: what was observed of errors is withheld by half."""
    hit = []

    def halved(errors: Floats) -> Floats:
        hit.append(True)
        return by_rank(errors) / 2.0

    by_rank = module._by_rank
    monkeypatch.setattr(module, "_by_rank", halved)
    monkeypatch.setattr(Analogs, "ahead", lambda self, probabilities: None)
    monkeypatch.setattr(Shifts, "learn", lambda self, shifted, moment, demand: None)
    coverage = judged(walk(2000)).coverage
    assert hit
    assert coverage[2] < 0.87


def surges() -> Floats:
    """Calm, but for climbs that begin out of nowhere and go on for a while."""
    random, log, left = np.random.default_rng(3), 0.0, 0
    logs = []
    for _ in range(3000):
        if left == 0 and random.uniform() < 0.01:
            left = int(random.integers(5, 25))
        log += 0.06 * (left > 0) - 0.02 * log + random.normal(0.0, 0.01)
        left = max(left - 1, 0)
        logs.append(log)
    return 100.0 * np.exp(np.array(logs))


def test_quantiles_hold_while_demand_rises() -> None:
    found = judged(surges())
    assert found.rising == pytest.approx(0.9, abs=0.04)
    assert found.coverage == pytest.approx(PROBABILITIES.tolist(), abs=0.02)


def test_errors_of_all_moments_alike_do_not_hold_while_demand_rises(monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control of the test above: nothing is learned of the moment."""
    hit = []
    monkeypatch.setattr(Shifts, "learn", lambda self, shifted, moment, demand: hit.append(moment))
    rising = judged(surges()).rising
    assert hit
    assert rising < 0.82


def flat_then_noise() -> tuple[float, float]:
    """The share of noise that is below the P90, and the mean of it, after long nothing moved."""
    noise = 7.3 + np.random.default_rng(2).normal(0.0, 1.0, 600)
    rows, _ = told(np.r_[np.full(1500, 7.3), noise])
    return float(np.mean(noise[200:] <= rows[1700 - LEAD : -LEAD, 2])), float(rows[1700:, 2].mean())


def test_where_nothing_moves_nothing_is_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    held, high = flat_then_noise()
    assert held == pytest.approx(0.9, abs=0.04)
    assert high == pytest.approx(7.3 + 1.28, abs=0.4)
    monkeypatch.setattr(shifts, "_SPREAD_LEAST", -1.0)  # the negative control: rounding is learned from
    held, _ = flat_then_noise()
    assert held > 0.95


@pytest.mark.parametrize("lead", [8, 64, 500])
def test_what_is_missed_within_one_horizon_shifts_alike_however_many_steps_it_has(lead: int) -> None:
    """None of these forecasts could know of the miss of the others."""
    told_of, quantiles = Shifts(STEP_S, lead, PROBABILITIES), np.array([90.0, 100.0, 110.0, 120.0])
    shifted, moment = told_of.after(100.0, quantiles, 2.0)
    for _ in range(lead):
        told_of.learn(shifted, moment, 130.0)
    after, _ = told_of.after(100.0, quantiles, 2.0)
    # Twenty is the spread; a P90 that is exceeded moves nine times as far as one that holds.
    assert after[2] - 110.0 == pytest.approx(20.0 * 8 * 0.002 * 0.9)


def first_hours() -> float:
    """Pinball loss as a part of the last value's, two minutes ahead, of demand nobody knows yet."""
    ours = unmoved = 0.0
    for seed in range(16):
        random = np.random.default_rng(seed)
        level = 80.0 * np.exp(np.cumsum(random.normal(0.0, 0.05, 240)))
        found = judged(random.poisson(level).astype(float), 120.0)
        ours, unmoved = ours + found.pinball, unmoved + found.pinball_last
    return ours / unmoved


def test_few_errors_are_doubted(monkeypatch: pytest.MonkeyPatch) -> None:
    doubted = first_hours()
    assert doubted < 0.95
    monkeypatch.setattr(module, "_DOUBT", 0.0)  # the negative control
    monkeypatch.setattr(module, "_UNMOVED", 0.0)
    assert first_hours() > 1.02 * doubted


def test_noise_around_a_level_is_not_chased() -> None:
    demand = np.random.default_rng(4).normal(100.0, 10.0, 2500)
    found = judged(demand)
    assert found.wape < 0.8 * found.wape_last
    _, quantiles = told(demand)
    assert weight(quantiles, "last value", "last value +") < 0.05


def test_bursts_out_of_nothing_have_the_quantiles_of_what_is_usual() -> None:
    random = np.random.default_rng(5)
    demand = np.where(random.uniform(size=600) < 0.4, random.exponential(50.0, 600), 0.0)
    found = judged(demand)
    assert found.pinball < 0.8 * found.pinball_last


def seasons(count: int) -> Floats:
    """A steep noon that moves from day to day by its level only."""
    day = 20.0 + 100.0 * np.maximum(np.sin(2 * np.pi * np.arange(DAY) / DAY), 0.0) ** 8
    days = np.tile(day, -(-count // DAY))[:count]
    return days * (1.0 + 0.02 * np.random.default_rng(6).normal(size=count))


def test_a_season_is_found_and_only_where_there_is_one() -> None:
    assert period(seasons(4 * DAY)) == pytest.approx(DAY, abs=3)
    assert period(np.random.default_rng(7).normal(100.0, 10.0, 4 * DAY)) is None
    assert period(np.full(1000, 5.0)) is None
    assert period(np.arange(30.0)) is None


def test_a_season_is_no_multiple_of_itself() -> None:
    saw = np.arange(6000) % 43.0
    assert {period(saw[:count]) for count in range(500, 6001, 500)} == {43}


def test_holt_winters_follows_a_season_that_climbs_and_what_is_not_read_is_of_the_season() -> None:
    random = np.random.default_rng(8)
    demand = seasons(8 * DAY) + 0.02 * np.arange(8 * DAY) + random.normal(0.0, 1.0, 8 * DAY)
    season = Season(STEP_S, LEAD)
    smoothed = HoltWinters(season, LEAD, gain=0.2, trend_gain=0.05, damping=0.9)
    ahead = np.full(len(demand) + LEAD, np.nan)
    for step, rate in enumerate(demand.tolist()):
        if 1700 <= step < 1700 + DAY // 2:
            season.skip()
            smoothed.skip()
        else:
            season.after(rate)
            ahead[step + LEAD] = smoothed.after(rate)
    late = slice(6 * DAY, 8 * DAY)
    missed = np.abs(ahead[late] - demand[late]).mean()
    persisted = np.abs(demand[6 * DAY - LEAD : 8 * DAY - LEAD] - demand[late]).mean()
    assert missed < 0.8 * persisted


def test_a_season_longer_than_what_is_known_says_nothing() -> None:
    """Steps so short that a level of two minutes is longer than the season."""
    season, demand = Season(0.25, 30), 50.0 + 40.0 * np.sin(2 * np.pi * np.arange(1200) / 200)
    ahead = [season.after(rate) for rate in demand.tolist()]
    assert season.period == pytest.approx(200, abs=1)
    assert ahead[-1] == pytest.approx(50.0 + 40.0 * math.sin(2 * math.pi * 1229 / 200), rel=0.1)
    short = Season(0.1, 10)
    for rate in np.tile([0.0] * 40 + [90.0] * 40, 15).tolist():
        short.after(rate)


def test_what_was_a_season_ago_comes_again_at_the_level_of_today() -> None:
    demand = seasons(6 * DAY)
    demand[5 * DAY :] *= 1.5
    season = Season(STEP_S, 20)
    for rate in demand[: 5 * DAY + 80]:
        ahead = season.after(float(rate))
    assert ahead == pytest.approx(demand[5 * DAY + 99], rel=0.2)
    assert math.isnan(Season(STEP_S, 20).after(5.0))


def test_the_season_is_believed_where_it_is_right() -> None:
    _, quantiles = told(seasons(8 * DAY), lead=20)
    assert weight(quantiles, "season", "season +", "analogs") > 0.9


def test_what_is_learned_joins_only_while_it_is_the_best() -> None:
    _, quantiles = told(walk(1500))
    told_by = quantiles._weight[:-1] > 0
    least = (quantiles._loss[:-1][told_by] / quantiles._weight[:-1][told_by]).min()
    for learned, joins in ((0.5, True), (1.01, False)):
        quantiles._loss[-1] = learned * least * quantiles._weight[-1]
        assert (weight(quantiles, "analogs") > 0.0) == joins


def test_from_the_first_line_on_there_are_quantiles_and_they_ascend() -> None:
    rows, _ = told(np.abs(np.random.default_rng(8).normal(0.0, 50.0, 300)))
    assert np.all(np.isfinite(rows))
    assert np.all(rows >= 0)
    assert np.all(np.diff(rows, axis=1) >= 0)
    zero, _ = told(np.zeros(100))
    assert np.all(zero == 0)


@pytest.mark.parametrize(
    "demand",
    [
        np.arange(1600) % 48.0,
        np.repeat(np.tile([0.0, 1000.0], 30), 25),
        np.r_[np.zeros(400), np.full(400, 1000.0)],
        np.r_[np.full(300, 80.0), np.zeros(50), np.full(300, 80.0)],
    ],
    ids=["saw", "on and off", "a start", "a reset"],
)
@pytest.mark.parametrize("lead", [4, 64])
def test_quantiles_are_numbers_near_what_there_was(demand: Floats, lead: int) -> None:
    rows, _ = told(demand, lead)
    assert np.all(np.isfinite(rows))
    assert np.all(np.diff(rows, axis=1) >= 0)
    assert rows.max() <= module._MOST * demand.max()


def test_who_says_nothing_now_has_no_weight() -> None:
    """A perfect season whose period is no longer known leaves its weight to the others."""
    demand = np.arange(1000) % 48.0
    _, quantiles = told(demand)
    assert weight(quantiles, "season", "season +", "analogs") > 0.9
    quantiles._season.period = None
    assert np.all(np.isfinite(quantiles.after(float(demand[40]))))
    assert weight(quantiles, "season", "season +") == 0.0
    assert quantiles.weights().sum() == pytest.approx(1.0)


def test_steps_without_a_reading_are_steps() -> None:
    """What comes after a gap is held against nothing that was foretold for another time."""
    random = np.random.default_rng(9)
    demand = np.repeat(random.uniform(50.0, 150.0, 400), 2)
    samples = [Sample(STEP_S * at, rate) for at, rate in enumerate(demand.tolist())]
    for at in range(100, 700, 7):
        samples[at] = Sample(samples[at].at_s, math.nan)
    forecasts = [*backtest.foreseen(samples, 30.0, STEP_S)]
    assert len(forecasts) == len(samples)
    assert forecasts[100].quantiles is forecasts[99].quantiles
    found = backtest.judged(forecasts, 30.0, STEP_S)
    assert found is not None
    assert found.coverage[2] == pytest.approx(0.9, abs=0.06)


# ---- the command ----------------------------------------------------------------------------


def foreseen(*arguments: str, said: str | None = None, code: int = 0) -> str:
    done = CliRunner().invoke(app, ["forecast", *arguments], input=said)
    assert done.exit_code == code, done.output
    assert "Traceback" not in done.output
    return done.output


def written(path: Path, rates: Floats) -> Path:
    path.write_text("".join(f"{15 * at},{rate:.6g}\n" for at, rate in enumerate(rates.tolist(), 1)))
    return path


def test_a_file_and_a_stream_are_foreseen_alike(tmp_path: Path) -> None:
    path = written(tmp_path / "trace.csv", np.r_[walk(60), np.nan, walk(9)])
    by_file = foreseen("--trace", str(path), "--horizon", "60", "--json")
    assert by_file == foreseen("--trace", "-", "--horizon", "60", said=path.read_text())
    last = json.loads(by_file.splitlines()[-1])
    assert (last["t"], last["at"]) == (1050.0, 1110.0)
    assert last["p10"] < last["p50"] < last["p90"] < last["p99"]


def test_a_summary_stands_beside_who_says_that_all_stays_as_it_is(tmp_path: Path) -> None:
    path = written(tmp_path / "trace.csv", walk(400))
    first, _, ours, unmoved = foreseen("--trace", str(path), "--horizon", "60").splitlines()
    assert first == "352 steps of 15 s, 60 s ahead"
    assert ours.split()[0] == "foreseen"
    assert unmoved.split()[0] == "unmoved"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--trace", "-", "--horizon", "1"), "--horizon 1: 15 to 30000 is allowed"),
        (("--trace", "-", "--horizon", "nan"), "--horizon nan"),
        (("--trace", "-", "--horizon", "60", "--interval", "-1"), "--interval -1"),
        (("--trace", "-", "--horizon", "60"), "standard input:2"),
        (("--trace", "/nowhere", "--horizon", "60"), "/nowhere: No such file or directory"),
    ],
)
def test_wrong_use_is_a_line(arguments: tuple[str, ...], said: str) -> None:
    assert said in foreseen(*arguments, said="15,1\nno\n", code=2)


def test_a_horizon_is_whole_steps_and_says_so(tmp_path: Path) -> None:
    path = written(tmp_path / "trace.csv", walk(100))
    last = json.loads(foreseen("--trace", str(path), "--horizon", "50", "--json").splitlines()[-1])
    assert last["at"] - last["t"] == 60.0
    assert "60 s ahead" in foreseen("--trace", str(path), "--horizon", "50")


def test_nothing_is_judged_before_there_were_readings(tmp_path: Path) -> None:
    path = written(tmp_path / "trace.csv", np.r_[np.full(90, np.nan), walk(300)])
    assert "steps of 15 s" in foreseen("--trace", str(path), "--horizon", "60")


def test_too_short_a_file_is_a_line(tmp_path: Path) -> None:
    path = written(tmp_path / "trace.csv", walk(30))
    assert "too few samples" in foreseen("--trace", str(path), "--horizon", "60", code=2)
