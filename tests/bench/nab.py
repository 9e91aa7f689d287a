# SPDX-License-Identifier: Apache-2.0
"""The detector on the Numenta Anomaly Benchmark: ``python -m tests.bench.nab --corpus DIR``.

DIR is a checkout of https://github.com/numenta/NAB: 58 series, others' data, not shipped. Scores are as NAB's
own scorer has them (Lavin and Ahmad, ICMLA 2015): the first alarm in the window of an anomaly counts, the
earlier the more; alarms outside cost; one threshold for all series, the one that does best on them. 0 is who
never says anything, 100 who tells all at once and nothing else. ``--write`` leaves what NAB's run.py scores.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from controlplane.deviation import REMARKABLE, Detector
from controlplane.simulation import lines

Floats = npt.NDArray[np.float64]
PROBATION, PROBATION_MOST = 0.15, 750.0
"""Share of a series that is not scored, and readings at most."""
NAME = "penumbra"


@dataclass(frozen=True, slots=True)
class Profile:
    name: str
    missed: float
    false: float


PROFILES = (Profile("standard", 1.0, 0.11), Profile("low FP", 1.0, 0.22), Profile("low FN", 2.0, 0.11))


@dataclass(frozen=True, slots=True)
class Series:
    name: str
    """FOLDER/FILE."""
    when: list[str]
    at_s: Floats
    values: Floats
    windows: list[tuple[int, int]]
    """First and last readings of anomalies."""

    @property
    def folder(self) -> str:
        return self.name.split("/")[0]


@dataclass(frozen=True, slots=True)
class Alarms:
    """Scores of a series above 0 that count, and what an alarm at each is worth."""

    folder: str
    scores: Floats
    worth: Floats
    """0..1 in a window, -1..0 outside."""
    window: npt.NDArray[np.int64]
    """Its number in the series; -1: outside."""
    windows: int


def read(corpus: Path) -> list[Series]:
    windows = json.loads((corpus / "labels" / "combined_windows.json").read_text())
    found = []
    for name in sorted(windows):
        with (corpus / "data" / name).open() as file:
            readings = list(lines.readings(file, name))
        at = [reading.at_s for reading in readings]
        ends = [tuple(at.index(lines.seconds(end)) for end in window) for window in windows[name]]
        values = np.array([reading.value for reading in readings])
        when = [reading.when for reading in readings]
        found.append(Series(name, when, np.array(at), values, [(first, last) for first, last in ends]))
    return found


def sigmoid(place: Floats) -> Floats:
    """Of a place in a window, whose ends are -1 and 0."""
    return 2 / (1 + np.exp(5 * place)) - 1


def alarms(series: Series, scores: Floats) -> Alarms:
    count = len(scores)
    worth, window = np.full(count, -1.0), np.full(count, -1, dtype=np.int64)
    for number, (first, last) in enumerate(series.windows):
        inside = np.arange(first, last + 1)
        worth[inside] = sigmoid((inside - last - 1) / (last - first + 1)) / sigmoid(np.array(-1.0))
        window[inside] = number
        end = series.windows[number + 1][0] if number + 1 < len(series.windows) else count
        past = (np.arange(last + 1, end) - last) / (last - first)
        worth[last + 1 : end] = np.where(past > 3, -1.0, sigmoid(past))
    judged = np.arange(count) >= min(int(PROBATION * count), PROBATION_MOST)
    windows = len(set(window[judged].tolist()) - {-1})
    counts = judged & (scores > 0)
    return Alarms(series.folder, scores[counts], worth[counts], window[counts], windows)


def total(found: Sequence[Alarms], threshold: float, profile: Profile) -> float:
    """Points of those at a threshold."""
    points = 0.0
    for one in found:
        told = one.scores >= threshold
        points += profile.false * float(one.worth[told & (one.window < 0)].sum())
        caught = set(one.window[told].tolist()) - {-1}
        points -= profile.missed * (one.windows - len(caught))
        points += sum(float(one.worth[told & (one.window == number)].max()) for number in caught)
    return points


def best(found: Sequence[Alarms], profile: Profile) -> float:
    """The threshold that gives most points."""
    series = np.concatenate([np.full(len(one.scores), at) for at, one in enumerate(found)])
    scores, worth, window = (
        np.concatenate([getattr(one, part) for one in found]) for part in ("scores", "worth", "window")
    )
    points, most, threshold = 0.0, 0.0, 1.1
    caught: dict[tuple[int, int], float] = {}
    order = np.argsort(-scores, kind="stable")
    for at, after in zip(order, [*order[1:], None], strict=True):
        if window[at] < 0:
            points += profile.false * worth[at]
        else:
            key = int(series[at]), int(window[at])
            before = caught.get(key, -profile.missed)
            caught[key] = max(before, float(worth[at]))
            points += caught[key] - before
        if points > most and (after is None or scores[after] < scores[at]):
            most, threshold = points, float(scores[at])
    return threshold


def normalized(points: float, windows: int, profile: Profile) -> float:
    return 100 * (points + profile.missed * windows) / ((1 + profile.missed) * windows)


def crossed(found: Sequence[Alarms], profile: Profile) -> float:
    """Points if each folder's threshold is what does best on the others."""
    points = 0.0
    for folder in sorted({one.folder for one in found}):
        others = [one for one in found if one.folder != folder]
        points += total([one for one in found if one.folder == folder], best(others, profile), profile)
    return points


def scored(series: Series) -> Floats:
    detector = Detector()
    pairs = zip(series.at_s.tolist(), series.values.tolist(), strict=True)
    return np.array([detector.after(at_s, value).score for at_s, value in pairs])


def write(place: Path, series: Series, scores: Floats) -> None:
    """As NAB keeps results; the label is of no use to its scorer, but must be there."""
    folder, file = series.name.split("/")
    to = place / NAME / folder / f"{NAME}_{file}"
    to.parent.mkdir(parents=True, exist_ok=True)
    label = np.zeros(len(scores), dtype=int)
    for first, last in series.windows:
        label[first : last + 1] = 1
    rows = zip(series.when, series.values.tolist(), scores.tolist(), label.tolist(), strict=True)
    text = "".join(f"{when},{value!r},{score!r},{one}\n" for when, value, score, one in rows)
    to.write_text("timestamp,value,anomaly_score,label\n" + text)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.nab", description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, help="a checkout of NAB")
    parser.add_argument("--write", type=Path, help="write scores to this folder too, as NAB's results/")
    given = parser.parse_args()
    corpus = read(given.corpus)
    started = time.process_time()
    scores = [scored(series) for series in corpus]
    took_s = time.process_time() - started
    if given.write:
        for series, its in zip(corpus, scores, strict=True):
            write(given.write, series, its)
    found = [alarms(series, its) for series, its in zip(corpus, scores, strict=True)]
    report(found)
    print(f"{1e6 * took_s / sum(map(len, scores)):.0f} us a reading")


def report(found: Sequence[Alarms]) -> None:
    thresholds = [best(found, profile) for profile in PROFILES]
    print(f"{'':24}{'windows':>8}" + "".join(f"{profile.name:>10}" for profile in PROFILES))
    for folder in sorted({one.folder for one in found}):
        its = [one for one in found if one.folder == folder]
        windows = sum(one.windows for one in its)
        pairs = zip(thresholds, PROFILES, strict=True)
        points = [total(its, threshold, profile) for threshold, profile in pairs]
        print(f"{folder:24}{windows:8}" + "".join(f"{one:10.2f}" for one in points))
    windows = sum(one.windows for one in found)
    for label, at in (
        ("score", thresholds),
        (f"score at {REMARKABLE:g}", [REMARKABLE] * len(PROFILES)),
    ):
        pairs = zip(at, PROFILES, strict=True)
        points = [normalized(total(found, one, profile), windows, profile) for one, profile in pairs]
        print(f"{label:24}{windows:8}" + "".join(f"{one:10.2f}" for one in points))
    points = [normalized(crossed(found, profile), windows, profile) for profile in PROFILES]
    print(f"{'cross-validated':24}{windows:8}" + "".join(f"{one:10.2f}" for one in points))
    print(f"{'threshold':32}" + "".join(f"{one:10.4f}" for one in thresholds))


if __name__ == "__main__":
    main()
