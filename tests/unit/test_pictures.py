# SPDX-License-Identifier: Apache-2.0
"""Pictures of simulated runs and of forecasts: nothing that matters is thinned away, and files are whole."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from matplotlib.figure import Figure
from typer.testing import CliRunner

from controlplane.cli import app
from controlplane.pictures.series import Floats, slots, unit

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning", "error::UserWarning")
VALUES = st.one_of(st.floats(0, 100), st.just(np.nan))


def series(count: int) -> Floats:
    """Bursts, so that members come and go all the time."""
    random = np.random.default_rng(1)
    return np.where(random.uniform(size=count) < 0.3, random.uniform(0, 400, count), 20.0)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "trace.csv"
    demand = series(300).tolist()
    demand[50:60] = [float("nan")] * 10
    path.write_text("".join(f"{15 * at},{rate:.6g}\n" for at, rate in enumerate(demand)))
    return path


def called(*arguments: str, code: int = 0) -> str:
    done = CliRunner().invoke(app, [*arguments])
    assert done.exit_code == code, done.output
    return done.output


def simulated(file: Path, plot: Path, *arguments: str, code: int = 0) -> str:
    given = ("--trace", str(file), "--capacity", "50", "--lead-time", "60", "--policy", "hpa")
    return called("simulate", *given, *arguments, "--plot", str(plot), code=code)


def words(svg: Path) -> set[str]:
    texts = ElementTree.parse(svg).iter("{http://www.w3.org/2000/svg}text")  # noqa: S314 - it is ours
    return {"".join(one.itertext()) for one in texts}


# ---- what is drawn of long series -----------------------------------------------------------


@given(arrays.arrays(float, st.integers(1, 60), elements=VALUES), st.integers(1, 20))
@settings(max_examples=80, deadline=None)
def test_the_lowest_and_the_highest_of_each_slot_are_drawn(values: Floats, most: int) -> None:
    shown = slots(len(values), most)
    line = shown.line(values)
    assert len(shown.begins) == min(most, len(values))
    assert len(line) <= max(2 * most, len(shown.begins))
    assert np.all(np.diff(line) > 0)
    for begin, end in zip(shown.begins, [*shown.begins[1:], len(values)], strict=True):
        its = values[begin:end]
        drawn = values[line[(line >= begin) & (line < end)]]
        if np.isnan(its).all():
            assert np.isnan(drawn).all()
        else:
            assert (np.nanmin(drawn), np.nanmax(drawn)) == (np.nanmin(its), np.nanmax(its))


def test_a_step_of_many_marks_its_slot() -> None:
    over = np.zeros(1000, dtype=bool)
    over[517] = True
    assert np.flatnonzero(slots(1000, 10).any(over)).tolist() == [5]


def test_a_unit_suits_the_length() -> None:
    assert [unit(length_s)[1] for length_s in (60.0, 3600.0, 86_400.0, 1e6)] == [
        "seconds",
        "minutes",
        "hours",
        "days",
    ]


# ---- the commands ---------------------------------------------------------------------------


def test_runs_are_drawn_beside_what_is_printed(file: Path, tmp_path: Path) -> None:
    plain = called(
        "simulate", "--trace", str(file), "--capacity", "50", "--lead-time", "60", "--policy", "hpa"
    )
    plot = tmp_path / "runs.svg"
    assert simulated(file, plot) == plain
    assert simulated(file, plot, "--policy", "static").startswith(plain.splitlines()[0])
    assert words(plot) >= {
        "hpa",
        "static",
        "demand",
        "wanted x capacity",
        "ready x capacity",
        "over capacity",
        "members",
        "minutes since the first line",
    }
    assert any(said.startswith("over 0.00% of time") for said in words(plot))
    assert sorted(one.name for one in tmp_path.iterdir()) == ["runs.svg", "trace.csv"]


def test_a_forecast_is_drawn(file: Path, tmp_path: Path) -> None:
    plot = tmp_path / "forecast.svg"
    said = called("forecast", "--trace", str(file), "--horizon", "60", "--plot", str(plot), "--json")
    assert said.count("\n") == 300
    assert words(plot) >= {"Foreseen 60 s before", "P10 to P90", "P50", "demand"}


def test_a_long_trace_stays_below_a_megabyte(tmp_path: Path) -> None:
    file, plot = tmp_path / "long.csv", tmp_path / "long.svg"
    file.write_text("".join(f"{15 * at},{rate:.6g}\n" for at, rate in enumerate(series(6_000).tolist())))
    simulated(file, plot, "--policy", "oracle", "--policy", "keda")
    assert 100_000 < plot.stat().st_size < 1_000_000


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no/x.svg", "there is no folder"),
        ("x.png", "a name that ends in .svg is allowed"),
        ("folder.svg", "it is a folder"),
    ],
)
def test_where_no_picture_can_be_is_told_first(file: Path, tmp_path: Path, name: str, said: str) -> None:
    (tmp_path / "folder.svg").mkdir()
    output = simulated(file, tmp_path / name, code=2)
    assert f"--plot {tmp_path / name}: " in output
    assert said in output
    assert output.count("\n") == 1
    forecast = ("forecast", "--trace", str(file), "--horizon", "60", "--plot", str(tmp_path / name))
    assert called(*forecast, code=2) == output


def test_on_a_full_disk_the_picture_before_is_kept(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def filled(figure: Figure, path: Path, **how: object) -> None:
        path.write_text("<svg")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    plot = tmp_path / "runs.svg"
    plot.write_text("before")
    monkeypatch.setattr(Figure, "savefig", filled)
    assert f"--plot {plot}: No space left on device" in simulated(file, plot, code=1)
    assert plot.read_text() == "before"
    assert sorted(one.name for one in tmp_path.iterdir()) == ["runs.svg", "trace.csv"]
