# SPDX-License-Identifier: Apache-2.0
"""What deviates is told, once and in numbers; what is normal for a series is not, whatever the series."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from controlplane.cli import app
from controlplane.deviation import REMARKABLE, Detector, Score
from controlplane.deviation.history import History, Novelty
from controlplane.deviation.usual import Usual

pytestmark = pytest.mark.filterwarnings("error::RuntimeWarning")
Floats = npt.NDArray[np.float64]
STEP_S = 300.0
DAY = 288
"""Steps."""
LEARNED = 300
NOTHING = Score(0.0, "", 0.0)


def noise(count: int = 1500, seed: int = 1) -> Floats:
    return np.random.default_rng(seed).normal(100, 5, count)


def days(count: int, seed: int = 1) -> Floats:
    """Requests per step of a service that sleeps at night: 50 then, 350 at noon."""
    mean = 200 - 150 * np.cos(2 * np.pi * np.arange(count * DAY) / DAY)
    return np.random.default_rng(seed).poisson(mean).astype(np.float64)


Told = Callable[[Floats], list[Score]]


def told(series: Floats) -> list[Score]:
    detector = Detector()
    return [detector.after(at * STEP_S, value) for at, value in enumerate(series.tolist())]


def remarkable(scores: list[Score], first: int = 0, last: int | None = None) -> list[int]:
    """Which of them."""
    return [first + at for at, one in enumerate(scores[first:last]) if one.score >= REMARKABLE]


# ---- what is seen, and that it is the detector that sees it ---------------------------------


def sees_a_spike(detect: Told) -> None:
    series = noise()
    series[1200] = 150.0
    scores = detect(series)
    assert remarkable(scores, 1150, 1250) == [1200]
    assert "150: 3" in scores[1200].reason
    assert "above all 1200 before" in scores[1200].reason


def sees_a_dip(detect: Told) -> None:
    series = noise()
    series[1200] = 40.0
    assert remarkable(detect(series), 1150, 1250) == [1200]


def sees_a_step_once(detect: Told) -> None:
    series = noise()
    series[1200:] += 40.0
    scores = detect(series)
    assert remarkable(scores, 1200, 1203)
    assert len(remarkable(scores, 1150)) <= 4


def sees_that_it_varies_more(detect: Told) -> None:
    series = noise()
    series[1200:] = 100 + 4 * (series[1200:] - 100)
    assert remarkable(detect(series), 1200, 1220)


def sees_noon_at_midnight(detect: Told) -> None:
    series = days(8)
    series[7 * DAY] = 350.0
    scores = detect(series)
    assert remarkable(scores, 7 * DAY - 50, 7 * DAY + 50) == [7 * DAY]
    assert "at this time" in scores[7 * DAY].reason
    assert "on 7 days" in scores[7 * DAY].reason


SEEN = (sees_a_spike, sees_a_dip, sees_a_step_once, sees_that_it_varies_more, sees_noon_at_midnight)


@pytest.mark.parametrize("sees", SEEN)
def test_it_is_seen(sees: Callable[[Told], None]) -> None:
    sees(told)


def withheld(series: Floats) -> list[Score]:
    return [NOTHING] * len(series)


def shuffled(series: Floats) -> list[Score]:
    scores = told(series)
    return [scores[at] for at in np.random.default_rng(1).permutation(len(scores))]


def always(series: Floats) -> list[Score]:
    return [Score(1.0, "it deviates", 9.0)] * len(series)


@pytest.mark.parametrize("broken", [withheld, shuffled, always])
@pytest.mark.parametrize("sees", SEEN)
def test_who_guesses_does_not_see_it(sees: Callable[[Told], None], broken: Told) -> None:
    if (sees, broken) == (sees_that_it_varies_more, always):
        return  # how often it is told otherwise is the other tests' part
    with pytest.raises(AssertionError):
        sees(broken)


# ---- what is normal -------------------------------------------------------------------------


def test_the_peaks_of_days_are_normal() -> None:
    assert len(remarkable(told(days(10)), 3 * DAY)) <= 3


@pytest.mark.parametrize("seed", range(3))
def test_noise_is_normal(seed: int) -> None:
    assert len(remarkable(told(noise(3000, seed)), LEARNED)) <= 5


def test_a_constant_is_normal_and_what_is_not_it_is_not() -> None:
    scores = told(np.array([45.0] * 500 + [46.0] + [45.0] * 100))
    assert remarkable(scores) == [500]
    assert all(one.score == 0 for one in scores[:500])


def test_a_square_wave_is_normal() -> None:
    assert not remarkable(told(np.tile(np.repeat([20.0, 80.0], 50), 20)), LEARNED)


def test_a_deviation_is_told_again_only_when_it_gets_worse() -> None:
    series = noise()
    series[1200:1240] = 150.0
    series[1220] = 400.0
    scores = told(series)
    assert remarkable(scores, 1150, 1300) == [1200, 1220]
    assert scores[1220].score > scores[1200].score
    assert scores[1201].decades > 1  # what is not news is known all the same


# ---- ordinary trouble -----------------------------------------------------------------------


def test_what_was_not_read_changes_nothing() -> None:
    detector, other = Detector(), Detector()
    for at, value in enumerate(noise(400).tolist()):
        assert other.after(at * STEP_S, math.nan) == NOTHING
        assert other.after(at * STEP_S, math.inf) == NOTHING
        assert detector.after(at * STEP_S, value) == other.after(at * STEP_S, value)


def test_a_gap_and_clocks_that_go_back_are_no_deviation() -> None:
    series, detector = days(6), Detector()
    at_s = STEP_S * np.arange(len(series))
    at_s[4 * DAY :] += 20 * 86_400
    at_s[5 * DAY :] -= 3600
    scores = [detector.after(*pair) for pair in zip(at_s.tolist(), series.tolist(), strict=True)]
    assert len(remarkable(scores, 3 * DAY)) <= 3


@given(
    st.lists(
        st.one_of(st.floats(), st.sampled_from([0.0, -0.0, 1.0, 5e-324, 1e300, -1e300])),
        min_size=25,
        max_size=80,
    ),
    st.lists(st.floats(), min_size=80, max_size=80),
)
@settings(max_examples=30, deadline=None)
def test_whatever_comes_scores_are_scores(values: list[float], times: list[float]) -> None:
    detector = Detector(memory=40)
    for at_s, value in zip(times, values, strict=False):
        one = detector.after(at_s, value)
        assert 0 <= one.score <= 1
        assert math.isfinite(one.decades)
        assert bool(one.reason) == (one.score >= REMARKABLE)


@pytest.mark.parametrize("factor", [2.0**-40, 2.0**60])
def test_units_do_not_matter(factor: float) -> None:
    series = noise(600)
    series[500] = 150.0
    assert [one.score for one in told(factor * series)] == pytest.approx([one.score for one in told(series)])


# ---- history --------------------------------------------------------------------------------


@given(st.lists(st.floats(-10, 10).map(lambda value: round(value, 1)), min_size=30, max_size=90))
@settings(max_examples=40, deadline=None)
def test_a_history_is_of_the_last_values(values: list[float]) -> None:
    history = History(25)
    for value in values:
        history.push(value)
    last = values[-25:]
    assert (len(history), history.least, history.most) == (25, min(last), max(last))
    assert history.median == sorted(last)[12]
    for value in (-11.0, 0.05, 3.0):
        assert history.nearest(value) == pytest.approx(min(abs(value - one) for one in last))


def test_ranks_are_decades_and_tails_go_on() -> None:
    history = History(10_000)
    for value in np.random.default_rng(1).exponential(1, 9999).tolist():
        history.push(value)
    assert history.above(-math.log(0.01)) == pytest.approx(2, abs=0.1)
    assert history.below(0.01) == pytest.approx(2, abs=0.1)
    assert history.above(-math.log(1e-6)) == pytest.approx(6, abs=1.5)
    assert history.above(0.0) == 0.0


def test_what_was_long_ago_is_new_again() -> None:
    novelty = Novelty(100)
    series = [7.0, *np.random.default_rng(1).normal(100, 1, 100).tolist()]
    for value in series:
        novelty.push(value, novelty.look(value))
    assert novelty.look(7.0).distance > 80


def test_the_range_of_an_hour_is_of_the_days_before() -> None:
    usual = Usual(86_400.0)
    for at, value in itertools.product(range(3 * 24), (1.0, 2.0)):
        usual.push(3600.0 * at, value + at % 24)
    noon = usual.at(3 * 86_400 + 12 * 3600.0)
    assert noon is not None
    assert (noon.least, noon.most, noon.days) == (13.0, 14.0, 3)
    assert [noon.outside(value) for value in (10.0, 13.5, 15.5)] == [3.0, 0.0, 1.5]
    assert usual.at(1.5 * 86_400) is None


# ---- the command ----------------------------------------------------------------------------


def detected(*arguments: str, said: str | None = None) -> list[str]:
    done = CliRunner().invoke(app, ["detect", *arguments], input=said)
    assert done.exit_code == 0, done.output
    return done.stdout.splitlines()


def written(series: Floats) -> Iterator[str]:
    for at, value in enumerate(series.tolist()):
        yield f"2014-07-{1 + at // 24:02} {at % 24:02}:00:00,{value:g}"


def test_each_line_has_its_score_and_is_as_it_was_given(tmp_path: Path) -> None:
    series = noise(600)
    series[500] = 150.0
    text = list(written(series))
    file = tmp_path / "series.csv"
    file.write_text("timestamp,value\n" + "\n".join(text) + "\n")
    lines = detected("--trace", str(file))
    assert [line.rsplit(",", 1)[0] for line in lines] == text
    scores = [float(line.rsplit(",", 1)[1]) for line in lines]
    assert scores[500] == max(scores) > REMARKABLE
    assert detected("--trace", "-", said=file.read_text()) == lines
    objects = [json.loads(line) for line in detected("--trace", str(file), "--json")]
    assert [one["score"] for one in objects] == scores
    assert (objects[500]["t"], objects[500]["value"]) == (text[500].split(",")[0], 150.0)
    assert "150: " in objects[500]["reason"]


def test_an_absent_value_scores_nothing_and_seconds_stay_numbers() -> None:
    assert detected("--trace", "-", said="1,\n2,nan\n1.5,-3\n") == [
        "1,,0.000000",
        "2,nan,0.000000",
        "1.5,-3,0.000000",
    ]
    (line,) = detected("--trace", "-", "--json", said="7,null\n")
    assert json.loads(line) == {"t": 7, "value": None, "score": 0, "reason": ""}


def test_a_line_is_answered_before_the_next_one_is_written() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "from controlplane.cli import main; main()", "detect", "--trace", "-"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for line in ("1,5", "2014-07-01 00:30:00,6", "2,7"):
            process.stdin.write(line + "\n")
            process.stdin.flush()
            assert process.stdout.readline() == f"{line},0.000000\n"
        process.stdin.close()
        assert process.wait(10) == 0


@pytest.mark.parametrize(
    ("said", "wrong"),
    [
        ("1,2\nnow,3\n", "standard input:2: 'now,3'; two numbers are allowed: seconds,value"),
        ("1,2\n2\n", "standard input:2: '2'; two numbers"),
        ("1,2\n2,3,4\n", "standard input:2: '2,3,4'; two numbers"),
        ("1,2\n2,inf\n", "standard input:2: '2,inf'; seconds up to 1e+12 and a value of -1e+300 to 1e+300"),
        ("1,2\ninf,2\n", "standard input:2: 'inf,2'; seconds up to"),
        ("1,2\n" + "x" * 5000, "standard input:2: over 4096 characters"),
    ],
)
def test_a_wrong_line_is_refused(said: str, wrong: str) -> None:
    done = CliRunner().invoke(app, ["detect", "--trace", "-"], input=said)
    assert done.exit_code == 2
    assert wrong in done.stderr
    assert done.stdout == "1,2,0.000000\n"


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "series.csv"
    file.write_bytes(b"1,2\n\xff\xfe\n")
    done = CliRunner().invoke(app, ["detect", "--trace", str(file)])
    assert (done.exit_code, done.stderr) == (2, f"penumbra: {file}: it is not UTF-8 text\n")


@pytest.mark.parametrize("text", ["", "timestamp,value\n"])
def test_a_file_without_a_reading_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "series.csv"
    file.write_text(text)
    for trace, source in ((str(file), str(file)), ("-", "standard input")):
        done = CliRunner().invoke(app, ["detect", "--trace", trace], input=text)
        assert (done.exit_code, done.stdout) == (2, "")
        assert done.stderr == f"penumbra: {source}: too few readings: 0; at least 1 is needed\n"


def ended(arguments: str, out: int | None) -> tuple[int, str]:
    """Exit code and standard error of the command; ``out``: standard output; None: it is closed."""
    done = subprocess.run(
        [sys.executable, "-c", "from controlplane.cli import main; main()", *arguments.split()],
        stdout=out,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=None if out is not None else lambda: os.close(1),
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        "detect",
        "forecast --horizon 60",
        "forecast --horizon 60 --json",
        "simulate --capacity 9 --lead-time 9",
    ],
)
def test_who_is_not_read_ends_as_if_by_sigpipe_and_who_has_no_output_says_so(
    tmp_path: Path, arguments: str
) -> None:
    file = tmp_path / "series.csv"
    file.write_text("".join(f"{at},5\n" for at in range(0, 3000, 15)))
    reader, writer = os.pipe()
    os.close(reader)
    assert ended(f"{arguments} --trace {file}", writer) == (141, "")
    os.close(writer)
    assert ended(f"{arguments} --trace {file}", None) == (1, "penumbra: standard output is closed\n")
    assert ended(f"{arguments} --trace {file}", subprocess.DEVNULL) == (0, "")
