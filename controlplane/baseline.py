# SPDX-License-Identifier: Apache-2.0
"""Deviation from what is normal, of many rows at once: request rates, times, errors.

Each sign is summed up as evidence: by how much more likely readings are if there is more of it by a fair
amount than if all is normal (Page, "Continuous inspection schemes", Biometrika 41, 1954). A sum that starts
at nought passes ``h`` by chance once in e^h readings at most (Lorden, Ann. Math. Statist. 42, 1971), whatever
its scale; and no reading counts for more than a part of ``h``: one alone is chance. Counts are held against a
Poisson process with as much more spread as was seen, logarithms of times against a normal distribution.

Means and spreads forget exponentially. Readings are learned clipped, and not while they deviate; what has
deviated for long is what is normal now.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from controlplane.signs import Count, Signs, Time

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
Rows = slice | npt.NDArray[np.intp]

REMARKABLE = 0.5
"""The score of a deviation that is not chance."""
SUSPECT, _FORGOTTEN = 0.125, 0.06
"""The score from which on readings are not learned from; below the second nothing is left of a deviation."""
_CERTAIN = 36.0
"""Evidence that scores 1. Half of it comes by chance once in 6e7 readings, or two years of seconds."""
_MOST_OF_RATE, _MOST = _CERTAIN / 6.0, _CERTAIN / 16.0
"""Evidence that one reading makes: three have to deviate, or eight."""
_FADES = 0.99
"""What is left of evidence after a reading that tells nothing."""
_HEALS, _HEALS_LEAST, _HARDLY = 0.9, 4.0, 0.25
"""What is left of evidence after a reading of who is well again; flows of a reading that tell it; hardly more
is this part of what would be a deviation."""
_CONVICTED, _EXCUSED = 0.75, 0.05
"""The score of who fails beyond doubt, and the share of failures that was not normal after all."""
_LEARNED = 60.0
"""Readings until a deviation is believed."""
_ACCEPTED_S = 1800.0
"""What has deviated for so long, but for demand, is learned anew."""
_CLIPPED = 3.0
"""Standard deviations."""

_RATE_GAIN, _GAIN = 1 / 150, 1 / 300
"""Memory of so many readings: demand changes with the hour, the rest seldom."""
_RECENT_GAIN = 0.2
_BETTER, _BETTER_LEAST, _BETTER_S = 0.5, 1.0, 30.0
"""Who fails less than this part of what is normal, where that is so many a reading, for so long was ill when
that was learned: it is learned anew."""

_COUNTS, _TIMES = len(Count), len(Time)
_IS_RATE = np.array([one in (Count.RATE, Count.OFFERED) for one in Count])[:, None]
_RATES, _SHARES = slice(0, Count.RESETS), slice(Count.RESETS, _COUNTS)
_COUNT_GAIN = np.where(_IS_RATE, _RATE_GAIN, _GAIN)
_PRIOR, _PRIOR_OF = np.where(_IS_RATE, 0.0, 0.5), np.where(_IS_RATE, 1e-9, 50.0)
"""As if of 50 flows half a one had failed."""
_LEAST = np.where(_IS_RATE, 1.0, 0.005)
"""Expected at least: one a second, one in 200."""
_RATE_STEP, _RATE_DEVIATIONS, _RATE_FLOOR = 0.6, 1.5, 0.05
"""More of a rate, at least, and in standard deviations of a reading; spread that every rate has."""
_SHARE_STEP = 0.04
"""More failures by that, or as many again."""
_TIME_STEP, _TIME_FLOOR = float(np.log(2.5)), 0.1
"""Two and a half times as long: less than 1.6 times is never found; spread that every time has."""
_MOST_OF = np.vstack([np.where(_IS_RATE, _MOST_OF_RATE, _MOST), np.full((_TIMES, 1), _MOST)])
_CARRIED = (
    "_count", "_of", "_squares", "_expected", "_apart", "_recent_count", "_recent_of",
    "_time", "_variance", "_recent_time", "_readings", "_evidence", "_deviated", "_lasted_s",
)  # fmt: skip


_KEPT = ("_count", "_of", "_squares", "_expected", "_apart", "_time", "_variance", "_readings")
"""What is normal; the rest is of the last seconds."""


class Baseline:
    """Of named rows. First ``judge`` a tick, then ``learn`` it."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = tuple(names)
        n = len(self.names)
        self._count, self._of = np.zeros((_COUNTS, n)), np.zeros((_COUNTS, n))
        """Sums that forget, as the following three."""
        self._squares, self._expected = np.zeros((_COUNTS, n)), np.zeros((_COUNTS, n))
        self._apart = np.zeros((_COUNTS, n))
        """The last reading's distance from what was expected."""
        self._recent_count, self._recent_of = np.zeros((_COUNTS, n)), np.zeros((_COUNTS, n))
        self._time, self._variance = np.zeros((_TIMES, n)), np.zeros((_TIMES, n))
        self._recent_time = np.full((_TIMES, n), np.nan)
        self._normal, self._least, self._bound = (np.zeros((_COUNTS, n)) for _ in range(3))
        """Of what is judged: normal, expected at least, how far from that what is learned may be."""
        self._readings = np.zeros((_COUNTS + _TIMES, n))
        self._evidence = np.zeros((_COUNTS + _TIMES, n))
        self._deviated = np.zeros((_COUNTS + _TIMES, n), dtype=np.bool_)
        """It did, and evidence of that is left."""
        self._lasted_s = np.zeros((_COUNTS + _TIMES, n))
        self._better_s = np.zeros((_COUNTS - _SHARES.start, n))

    def resume(self, other: Baseline) -> None:
        """The same knowledge of rows that have the same names."""
        old = {name: i for i, name in enumerate(other.names)}
        to = [i for i, name in enumerate(self.names) if name in old]
        source = [old[self.names[i]] for i in to]
        for attribute in _CARRIED:
            getattr(self, attribute)[:, to] = getattr(other, attribute)[:, source]

    def state(self, rows: npt.NDArray[np.intp]) -> Floats:
        """(values, rows) all that ``restore`` needs."""
        return np.vstack([getattr(self, attribute)[:, rows] for attribute in _KEPT])

    def restore(self, rows: npt.NDArray[np.intp], state: Floats, *, with_rates: bool) -> None:
        """:param state: of these rows. ``with_rates``: else they are learned anew."""
        at = 0
        for attribute in _KEPT:
            values = getattr(self, attribute)
            values[:, rows] = state[at : at + len(values)]
            at += len(values)
            if not with_rates and attribute not in ("_time", "_variance"):
                values[_RATES, rows] = 0.0

    # ---- what is known -----------------------------------------------------------------------

    @property
    def scores(self) -> Floats:
        """(Count and then Time, rows) 0..1."""
        return np.minimum(self._evidence / _CERTAIN, 1.0)

    @property
    def known(self) -> Flags:
        """(Count and then Time, rows) enough was learned to judge by."""
        return self._readings >= _LEARNED

    def scores_of_sign(self, sign: Count) -> Floats:
        """(rows,)"""
        return np.asarray(np.minimum(self._evidence[sign] / _CERTAIN, 1.0), dtype=np.float64)

    def has_recent(self, sign: Count) -> Flags:
        """(rows,) some were counted in the last seconds."""
        return np.asarray(self._recent_count[sign] > 1e-6, dtype=np.bool_)

    def normal_count(self, rows: Rows = slice(None)) -> Floats:
        """(Count, rows) per second, or the share."""
        return np.asarray((self._count[:, rows] + _PRIOR) / (self._of[:, rows] + _PRIOR_OF), dtype=np.float64)

    def recent_count(self, rows: Rows = slice(None)) -> Floats:
        """(Count, rows) the same of the last seconds; NaN: there was none of which it is a share."""
        of = self._recent_of[:, rows]
        out: Floats = np.full(of.shape, np.nan)
        np.divide(self._recent_count[:, rows], of, out=out, where=of > 1e-6)
        return out

    def recent_sums(self, sign: Count, rows: slice) -> tuple[Floats, Floats]:
        """(rows,) what was counted, and of how many, in the mean of the last readings."""
        return self._recent_count[sign, rows], self._recent_of[sign, rows]

    def normal_time(self, rows: slice = slice(None)) -> Floats:
        """(Time, rows) logarithms of us; NaN: nothing was learned."""
        return np.where(self._readings[_COUNTS:, rows] > 0, self._time[:, rows], np.nan)

    def recent_time(self, rows: slice = slice(None)) -> Floats:
        """(Time, rows) the same of the last seconds."""
        return self._recent_time[:, rows]

    def scores_of(self, row: int) -> list[float]:
        """(Count and then Time,)"""
        return [min(one / _CERTAIN, 1.0) for one in self._evidence[:, row].tolist()]

    def told_count(self, row: int) -> tuple[list[float], list[float]]:
        """(Count,) of the last seconds, and what is normal."""
        one = slice(row, row + 1)
        return self.recent_count(one)[:, 0].tolist(), self.normal_count(one)[:, 0].tolist()

    def told_time(self, row: int) -> tuple[list[float], list[float]]:
        """(Time,) of the last seconds, and what is normal."""
        one = slice(row, row + 1)
        return self.recent_time(one)[:, 0].tolist(), self.normal_time(one)[:, 0].tolist()

    # ---- a tick ------------------------------------------------------------------------------

    def judge(self, signs: Signs, usual_rate: Floats, usual_time: Floats) -> None:
        """:param usual_rate: (rows,) so many times the normal rate is usual at this time. ``usual_time``:
        (Time, rows) so much may be added to a time's logarithm."""
        evidence = np.vstack([self._of_counts(signs, usual_rate), self._of_times(signs, usual_time)])
        read = ~np.isnan(evidence)
        read[_SHARES.start : _COUNTS] &= signs.of[_SHARES] > 0  # of nothing nothing fails: that tells nothing
        summed = self._evidence + np.minimum(evidence, _MOST_OF)
        summed = np.where(read & self.known, summed, self._evidence * _FADES)
        self._evidence = np.clip(summed, 0.0, _CERTAIN)
        self._remember(signs)
        self._heal()

    def _of_counts(self, signs: Signs, usual_rate: Floats) -> Floats:
        self._normal = self.normal_count()
        normal = np.maximum(self._normal, _LEAST)
        self._least = normal * signs.of
        spread = np.maximum(self._squares / np.maximum(self._expected, 1e-9), 1.0)
        spread[_RATES] += _RATE_FLOOR**2 * self._least[_RATES]
        self._bound = _CLIPPED * np.sqrt(spread * self._least) + 1.0
        expected = self._least.copy()
        expected[_RATES] *= usual_rate
        more = np.empty_like(expected)
        deviation = np.sqrt(spread[_RATES] / np.maximum(expected[_RATES], 1e-9))
        more[_RATES] = np.maximum(_RATE_STEP, _RATE_DEVIATIONS * deviation)
        more[_SHARES] = np.maximum(_SHARE_STEP / normal[_SHARES], 1.0)
        return (signs.counts * np.log1p(more) - expected * more) / spread

    def _of_times(self, signs: Signs, usual_time: Floats) -> Floats:
        above = signs.times - self._time - usual_time
        return (_TIME_STEP * above - _TIME_STEP**2 / 2.0) / np.maximum(self._variance, _TIME_FLOOR**2)

    def _remember(self, signs: Signs) -> None:
        read = ~np.isnan(signs.counts + signs.of)
        for sums, values in ((self._recent_count, signs.counts), (self._recent_of, signs.of)):
            np.add(sums, _RECENT_GAIN * (values - sums), out=sums, where=read)
        step = np.where(np.isnan(self._recent_time), 1.0, _RECENT_GAIN)
        before = np.where(np.isnan(self._recent_time), signs.times, self._recent_time)
        self._recent_time = np.where(
            np.isnan(signs.times), self._recent_time, before + step * (signs.times - before)
        )

    def rescale(self, rows: Rows, factor: Floats) -> None:
        """From now on these are given so many times as much: that is no deviation.

        :param factor: (rows,)"""
        for sums in (self._count, self._squares, self._expected, self._apart, self._recent_count):
            sums[_RATES, rows] *= factor

    def _heal(self) -> None:
        """Who deviated, and what was read last is hardly more than is normal: evidence alone would need as
        long to wane as it would to come from so little less. Of few flows less is believed."""
        self._deviated |= self._evidence >= REMARKABLE * _CERTAIN
        self._deviated &= self._evidence >= _FORGOTTEN * _CERTAIN
        rows = np.flatnonzero(self._deviated.any(axis=0))
        if rows.size:
            well = np.zeros((len(self._evidence), rows.size))
            of, normal = self._recent_of[_SHARES, rows], self.normal_count(rows)[_SHARES]
            most = normal + _HARDLY * np.maximum(_SHARE_STEP, normal)
            few = self._recent_count[_SHARES, rows] <= most * of
            well[_SHARES.start : _COUNTS] = np.where(few, np.minimum(of / _HEALS_LEAST, 1.0), 0.0)
            well[_COUNTS:] = self._recent_time[:, rows] <= self._time[:, rows] + _HARDLY * _TIME_STEP
            self._evidence[:, rows] *= np.where(self._deviated[:, rows], _HEALS**well, 1.0)

    def convict(self, sign: Count, rows: npt.NDArray[np.intp]) -> None:
        """These fail so much that nothing that was learned excuses it; if it was taken for normal, that is
        forgotten."""
        if rows.size:
            excused = rows[self.normal_count(rows)[sign] > _EXCUSED]
            for values in (self._count, self._of, self._squares, self._expected, self._apart, self._readings):
                values[sign, excused] = 0.0
            self._evidence[sign, rows] = np.maximum(self._evidence[sign, rows], _CONVICTED * _CERTAIN)

    def dismiss(self, rows: Flags) -> None:
        """What looks like slow answers or errors of these is none."""
        if rows.any():
            self._evidence[_SHARES.start :, rows] = 0.0

    def learn(self, signs: Signs, trains: Flags, is_comparable: Flags) -> None:
        """:param trains: (rows,) this time is as others are. ``is_comparable``: (rows,) times are of who
        serves all of its demand."""
        calm = self._evidence < SUSPECT * _CERTAIN
        calm[_RATES] = True  # another demand is no fault
        self._learn_counts(signs, trains & calm[:_COUNTS])
        self._learn_times(signs, trains & is_comparable & calm[_COUNTS:])
        self._lasted_s = np.where(self._evidence >= REMARKABLE * _CERTAIN, self._lasted_s + signs.over_s, 0.0)
        self._lasted_s[Count.RATE] = 0.0
        accepted = self._lasted_s >= _ACCEPTED_S
        accepted[_SHARES] |= self._was_ill(signs.over_s)
        if accepted.any():
            self._forget(accepted)

    def _learn_counts(self, signs: Signs, trains: Flags) -> None:
        trains = trains & ~np.isnan(signs.counts) & (signs.of + np.maximum(signs.counts, 0.0) > 0)
        expected = self._normal * signs.of
        apart = signs.counts - expected
        clipped = np.where(self.known[:_COUNTS], np.clip(apart, -self._bound, self._bound), apart)
        counts = expected + clipped
        first = self._readings[:_COUNTS] == 0.0
        if first.any():
            counts[first], clipped[first] = signs.counts[first], 0.0
        kept = 1.0 - _COUNT_GAIN * trains
        for sums, values in (
            (self._count, counts),
            (self._of, signs.of),
            # Beside its own square what it has in common with its neighbours: what is only late evens out.
            (self._squares, clipped * (clipped + 2.0 * self._apart)),
            (self._expected, self._least),
        ):
            sums *= kept
            np.add(sums, values, out=sums, where=trains)
        np.copyto(self._apart, clipped, where=trains)
        self._readings[:_COUNTS] += trains

    def _learn_times(self, signs: Signs, trains: Flags) -> None:
        trains = trains & ~np.isnan(signs.times)
        readings = self._readings[_COUNTS:]
        apart = np.where(readings > 0, signs.times - self._time, 0.0)
        bound = _CLIPPED * np.sqrt(np.maximum(self._variance, _TIME_FLOOR**2))
        clipped = np.where(readings >= _LEARNED, np.clip(apart, -bound, bound), apart)
        gain = np.maximum(1.0 / (readings + 1.0), _GAIN)
        base = np.where(readings > 0, self._time, signs.times)
        self._time = np.where(trains, base + gain * clipped, self._time)
        variance = (1.0 - gain) * (self._variance + gain * clipped**2)
        self._variance = np.where(trains, variance, self._variance)
        self._readings[_COUNTS:] += trains

    def _was_ill(self, over_s: float) -> Flags:
        """(shares, rows)"""
        expected = self._normal[_SHARES] * self._recent_of[_SHARES]
        better = (expected >= _BETTER_LEAST) & (self._recent_count[_SHARES] < _BETTER * expected)
        self._better_s = np.where(better, self._better_s + over_s, 0.0)
        return np.asarray(self._better_s >= _BETTER_S, dtype=np.bool_)

    def _forget(self, what: Flags) -> None:
        self._readings[what] = self._evidence[what] = self._lasted_s[what] = 0.0
        counts, times = what[:_COUNTS], what[_COUNTS:]
        for sums in (self._count, self._of, self._squares, self._expected, self._apart):
            sums[counts] = 0.0
        self._time[times] = self._variance[times] = 0.0
