# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from controlplane.lab import trace


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("time,load\n0,1\n", "t.csv:1: 'time,load'; two numbers are allowed"),
        ("timestamp,value\n0,1\n60,many\n", "t.csv:3: '60,many'; two numbers are allowed"),
        ("timestamp,value\n0,1\n60\n", "t.csv:3: '60'; two numbers are allowed"),
        ("timestamp,value\n0,1\n60,-2\n", "t.csv:3: '60,-2'; seconds up to 1e+12 and a value of 0 to 1e+15"),
        ("timestamp,value\n0,1\n60,1e300\n", "t.csv:3: '60,1e300'; seconds up to"),
        ("timestamp,value\n0,1\n60," + "9" * 200_000 + "\n", "t.csv:3: '60,999999"),
        ("timestamp,value\n0,1\n60," + "x" * 200_000 + "\n", "t.csv:3: '60,xxxxxx"),
        ("timestamp,value\n0,1\n60,nan\n", "t.csv: no value at 60; load to be played needs one at each"),
        ("timestamp,value\n60,1\n60,2\n", "t.csv:3: timestamp 60 is not after 60"),
        ("timestamp,value\n0,1\n", "t.csv: 1 samples; at least 2"),
        ("", "t.csv: 0 samples; at least 2"),
        ("\x00\x01\x02", "t.csv:1: '\\x00\\x01\\x02'; two numbers are allowed"),
    ],
)
def test_a_bad_file_is_refused_with_its_line_and_what_is_allowed(
    text: str, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(trace.TraceError) as refused:
        trace.load(path)
    assert str(refused.value).startswith(f"{tmp_path}/{message}")
    assert len(str(refused.value)) < len(str(path)) + 150


def test_a_missing_file_is_named() -> None:
    with pytest.raises(trace.TraceError, match=r"/no/such\.csv: can't be read: No such file"):
        trace.load(Path("/no/such.csv"))


def test_a_file_without_an_end_is_not_read_to_the_end() -> None:
    with pytest.raises(trace.TraceError, match="/dev/zero: over 64 MiB"):
        trace.load(Path("/dev/zero"))


def test_a_file_from_a_spreadsheet_is_read(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes(b"\xef\xbb\xbftimestamp,value\r\n0,1\r\n60,3\r\n\r\n")
    assert trace.load(tmp_path / "t.csv").level.tolist() == [1, 3]


@pytest.mark.parametrize("header", ["", "timestamp,value\n", "Timestamp, Value\n"])
def test_a_header_may_come_first_as_for_simulate(header: str, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text(f"{header}2024-01-01 00:00:00,1\n2024-01-01 00:01:00,3\n")
    found = trace.load(tmp_path / "t.csv")
    assert (found.at_s.tolist(), found.level.tolist()) == ([0, 60], [1, 3])


def test_a_name_is_a_shipped_trace_or_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("load.txt").write_text("0,1\n60,3\n")
    assert trace.named("load.txt").level.tolist() == [1, 3]
    assert trace.named("mongo_burst").name == "mongo_burst"
    with pytest.raises(
        trace.TraceError, match="no file and no shipped trace 'loads'; there are: mongo_burst"
    ):
        trace.named("loads")


def test_the_mean_counts_every_second_the_last_period_too() -> None:
    assert trace.samples("steps", [0, 10, 20, 10_000], [0, 20, 20, 20]).mean == pytest.approx(
        (100 + 200 + 20 * 9_980 + 20 * 10) / 10_010
    )


def test_an_unknown_shipped_trace_names_those_there_are() -> None:
    with pytest.raises(trace.TraceError, match="there are: mongo_burst, mongo_twin_burst"):
        trace.shipped("nasa")


def test_compression_changes_time_only_and_scaling_levels_only() -> None:
    course = trace.samples("ramp", [100, 160, 220], [10, 20, 40])
    fast = course.compressed(60).with_peak(80)
    assert fast.at_s.tolist() == [0, 1, 2]
    assert fast.level.tolist() == [20, 40, 80]
    assert fast.duration_s == 3
    assert course.lasting(9).duration_s == pytest.approx(9)
    assert course.with_mean(7).mean == pytest.approx(7)


def test_a_part_starts_at_zero_and_ends_before_its_end() -> None:
    course = trace.samples("ramp", [0, 60, 120, 180], [1, 2, 3, 4])
    assert course.part(60, 180).level.tolist() == [2, 3]
    assert course.part(60, 180).at_s.tolist() == [0, 60]
    with pytest.raises(trace.TraceError, match=r"1 samples in 170\.\.190 s"):
        course.part(170, 190)


def test_resampling_keeps_the_mean() -> None:
    course = trace.shipped("mongo_burst")
    assert course.resampled(300).mean == pytest.approx(course.mean, rel=0.05)
    assert len(course.resampled(300).level) == 5


@pytest.mark.parametrize("kind", list(trace.Arrivals))
def test_arrivals_follow_the_level(kind: trace.Arrivals) -> None:
    course = trace.samples("step", [0, 10, 10.1, 20], [50, 50, 200, 200])
    arrivals_s = course.arrivals_s(seed=3, kind=kind)
    early = ((arrivals_s >= 0) & (arrivals_s < 10)).sum()
    late = ((arrivals_s >= 10.1) & (arrivals_s < 20)).sum()
    assert early / 10 == pytest.approx(50, rel=0.15)
    assert late / 9.9 == pytest.approx(200, rel=0.1)
    assert (np.diff(arrivals_s) >= 0).all()


def test_poisson_gaps_vary_as_much_as_they_are_long() -> None:
    gaps = np.diff(trace.flat(100, 100).arrivals_s(seed=1))
    assert gaps.std() / gaps.mean() == pytest.approx(1, abs=0.05)


def test_the_same_seed_gives_the_same_arrivals_and_another_does_not() -> None:
    course = trace.flat(20, 10)
    assert (course.arrivals_s(seed=1) == course.arrivals_s(seed=1)).all()
    assert course.arrivals_s(seed=1)[0] != course.arrivals_s(seed=2)[0]


def test_the_burst_is_quiet_in_its_first_and_last_quarter_and_rises_over_several_samples() -> None:
    burst = trace.shipped("mongo_burst").with_peak(1.8)
    count = len(burst.level)
    assert burst.level[: count // 4].max() < 0.45
    assert burst.level[-(count // 4) :].max() < 0.45
    assert ((burst.level > 0.45) & (burst.level < 1.8)).sum() >= 4
