# SPDX-License-Identifier: Apache-2.0
"""Load over time: recorded traces (CSV ``timestamp,value``) and synthetic ones, and when requests arrive.

The level between two samples is interpolated linearly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt

from controlplane.simulation import lines

FILE_MOST = 1 << 26
"""Bytes of a trace file; a value per second for a year is half of it."""
ARRIVAL_GRID_S = 0.02


class TraceError(ValueError):
    """The trace can't be used; the message names file and line, and what is allowed."""


class Arrivals(Enum):
    POISSON = "poisson"
    """A non-homogeneous Poisson process: requests don't know of each other."""
    EVEN = "even"
    """Evenly spaced at the level of the moment: for exact counts."""


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """``level`` at ``at_s`` (seconds from 0, ascending); ends one period after the last sample."""

    name: str
    at_s: npt.NDArray[np.float64]
    level: npt.NDArray[np.float64]

    @property
    def period_s(self) -> float:
        """The median distance of samples."""
        return float(np.median(np.diff(self.at_s)))

    @property
    def duration_s(self) -> float:
        return float(self.at_s[-1]) + self.period_s

    @property
    def peak(self) -> float:
        return float(self.level.max())

    @property
    def mean(self) -> float:
        between = float(((self.level[1:] + self.level[:-1]) / 2 * np.diff(self.at_s)).sum())
        return (between + float(self.level[-1]) * self.period_s) / self.duration_s

    def at(self, when_s: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """The level at each time; before and after the trace its first and last level."""
        return np.asarray(np.interp(np.asarray(when_s), self.at_s, self.level), dtype=np.float64)

    def compressed(self, factor: float) -> Trace:
        """The same course, ``factor`` times as fast."""
        if not factor > 0 or not math.isfinite(factor):
            raise TraceError(f"{self.name}: compression by {factor:g}; a factor above 0 is allowed")
        return Trace(self.name, self.at_s / factor, self.level)

    def lasting(self, duration_s: float) -> Trace:
        """The same course in ``duration_s``."""
        if not duration_s > 0 or not math.isfinite(duration_s):
            raise TraceError(f"{self.name}: a duration of {duration_s:g} s; one above 0 is allowed")
        return self.compressed(self.duration_s / duration_s)

    def with_peak(self, rate: float) -> Trace:
        return self._scaled(rate, self.peak, "peak")

    def with_mean(self, rate: float) -> Trace:
        return self._scaled(rate, self.mean, "mean")

    def _scaled(self, rate: float, present: float, what: str) -> Trace:
        if not rate > 0 or not math.isfinite(rate):
            raise TraceError(f"{self.name}: a {what} of {rate:g}/s; a rate above 0 is allowed")
        if present <= 0:
            raise TraceError(f"{self.name}: every value is 0, so it has no {what} to scale")
        return Trace(self.name, self.at_s, self.level * (rate / present))

    def part(self, start_s: float, end_s: float) -> Trace:
        """The samples in [start_s, end_s), from 0 on."""
        inside = (self.at_s >= start_s) & (self.at_s < end_s)
        if inside.sum() < 2:
            raise TraceError(
                f"{self.name}: {inside.sum()} samples in {start_s:g}..{end_s:g} s; "
                f"at least 2 are needed, the trace lasts {self.duration_s:g} s"
            )
        at_s = self.at_s[inside]
        return Trace(self.name, at_s - at_s[0], self.level[inside])

    def resampled(self, period_s: float) -> Trace:
        """Samples every ``period_s``, each the mean level of its period."""
        if not 0 < period_s <= self.duration_s / 2:
            raise TraceError(
                f"{self.name}: a period of {period_s:g} s; "
                f"above 0 and at most {self.duration_s / 2:g} s is allowed"
            )
        count = int(self.duration_s / period_s)
        fine = (np.arange(count * 20) + 0.5) * (period_s / 20)
        level = np.asarray(self.at(fine).reshape(count, 20).mean(axis=1), dtype=np.float64)
        return Trace(self.name, np.arange(count, dtype=np.float64) * period_s, level)

    def arrivals_s(self, seed: int, kind: Arrivals = Arrivals.POISSON) -> npt.NDArray[np.float64]:
        """Ascending arrival times in seconds from 0, the level taken as requests per second.

        A unit-rate process is mapped through the inverse of the integrated level (time-change theorem,
        Cinlar, "Introduction to Stochastic Processes", 1975), which is exact up to a grid of 20 ms.
        """
        grid_s = np.linspace(0.0, self.duration_s, max(2, math.ceil(self.duration_s / ARRIVAL_GRID_S) + 1))
        rate = self.at(grid_s)
        expected = np.concatenate(([0.0], np.cumsum((rate[1:] + rate[:-1]) / 2 * np.diff(grid_s))))
        total = float(expected[-1])
        if kind is Arrivals.EVEN:
            units = np.arange(0.5, total, 1.0)
        else:
            draws = np.random.default_rng(seed)
            units = np.sort(draws.uniform(0.0, total, draws.poisson(total)))
        return np.asarray(np.interp(units, expected, grid_s), dtype=np.float64)


def samples(name: str, at_s: Sequence[float], level: Sequence[float]) -> Trace:
    """A synthetic trace: straight lines between the given points. Raises ``TraceError``."""
    times, values = np.asarray(at_s, dtype=np.float64), np.asarray(level, dtype=np.float64)
    if len(times) < 2 or len(times) != len(values):
        raise TraceError(f"{name}: {len(times)} times, {len(values)} values; at least 2 of each are needed")
    if not (np.diff(times) > 0).all():
        raise TraceError(f"{name}: times must ascend")
    if not np.isfinite(values).all() or (values < 0).any():
        raise TraceError(f"{name}: values must be numbers of at least 0")
    return Trace(name, times - times[0], values)


def flat(level: float, duration_s: float) -> Trace:
    """The same level for ``duration_s``: the trace that must start no shadow."""
    return samples("flat", [0.0, duration_s / 2], [level, level])


def load(path: Path) -> Trace:
    """Lines ``timestamp,value``, ascending, values >= 0; a header may come first. Raises ``TraceError``."""
    try:
        with path.open("rb") as file:
            data = file.read(FILE_MOST + 1)
        text = data.decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise TraceError(f"{path}: can't be read: {reason}") from None
    if len(data) > FILE_MOST:
        raise TraceError(f"{path}: over {FILE_MOST >> 20} MiB; as much is allowed")
    return parse(text, path.stem, str(path))


def parse(text: str, name: str, source: str) -> Trace:
    """``source`` is what errors name. The lines are those that ``penumbra simulate`` reads."""
    at_s: list[float] = []
    level: list[float] = []
    try:
        for sample in lines.samples(text.splitlines(), source):
            if math.isnan(sample.rate):
                raise TraceError(
                    f"{source}: no value at {sample.at_s:g}; load to be played needs one at each"
                )
            at_s.append(sample.at_s)
            level.append(sample.rate)
    except lines.LineError as error:
        raise TraceError(str(error)) from None
    if len(at_s) < 2:
        raise TraceError(f"{source}: {len(at_s)} samples; at least 2 are needed")
    return samples(name, at_s, level)


def shipped_names() -> tuple[str, ...]:
    folder = resources.files("controlplane.lab") / "traces"
    return tuple(sorted(entry.name[:-4] for entry in folder.iterdir() if entry.name.endswith(".csv")))


def named(name: str) -> Trace:
    """A file, or one that comes with the package. Raises ``TraceError``."""
    if name not in shipped_names() and ("/" in name or name.endswith(".csv") or Path(name).exists()):
        return load(Path(name))
    return shipped(name)


def shipped(name: str) -> Trace:
    """A trace that comes with the package (``traces/README.md``)."""
    if name not in shipped_names():
        raise TraceError(f"no file and no shipped trace {name!r}; there are: {', '.join(shipped_names())}")
    text = (resources.files("controlplane.lab") / "traces" / f"{name}.csv").read_text(encoding="utf-8")
    return parse(text, name, f"{name}.csv")
