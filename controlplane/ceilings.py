# SPDX-License-Identifier: Apache-2.0
"""What endpoints did at most when more was asked of them: throughput can't be more than that of somebody who
is always busy (the utilisation law).

Help comes within seconds, and then nobody is saturated any more: so that it was so must be told by little,
and outlast the relief. One window in which answers were slow refutes what is given; to learn what nobody gave
takes three. What is done in a collapse is no ceiling: there less is done the more is asked for.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from controlplane.response_curve import Flags, Floats

Rows = npt.NDArray[np.intp]

SATURATED = 2.0
"""An answer that takes so many times its floor shows that the end is near."""
BELIEVED = 3.0
"""Saturated windows until they are believed. One refutes what is given, if its answers were slow, not only
missing."""
HIGHER = 1.1
"""What was done at a rate higher by this contradicts them, and they what was before."""
_MOST = 10.0
"""Windows that are remembered."""
_ERROR, _ERROR_LEAST = 0.06, 0.03
"""Of one saturated window, as a part of what was done; of several the error is less, down to the second."""
_DOUBTED_WINDOWS = 12
"""So long it is waited for that help relieves who was saturated."""
_LESS = 0.9
"""Of the most that was ever done: so much is a collapse where more than that is asked for, and a relief where
less is."""
_PAST_WINDOWS = 30
"""What was asked for in a collapse goes on to be done when nobody waits for it any more."""
_DEEP, _DEEP_WINDOWS = 2.0, 12.0
"""Who is asked for so many times what it does may have collapsed, if nothing was seen before: so many windows
are waited for one that tells more."""


@dataclass(frozen=True, slots=True)
class Ended:
    """A window that has ended; (n,) each, rates are of what was done."""

    rate: Floats
    log_time: Floats
    """NaN: nothing was answered."""
    usable: Flags
    fit: Flags
    """It tells something."""
    shifted: Flags
    """It would, but was slower than at no lower rate before."""
    slow: Flags
    lacks: Flags
    """Or its clients wait."""


class Ceilings:
    """Of all live endpoints; arrays have shape (n,)."""

    def __init__(self, given: Flags) -> None:
        """:param given: whose capacity is."""
        n = len(given)
        self._given = given
        self.windows, self.rate, self.spread = np.zeros(n), np.zeros(n), np.zeros(n)
        """Saturated windows, and mean and variance of what was done in them; of few the most."""
        self.log_time = np.zeros(n)
        """Mean log response time in them: who is overloaded from the first on has a floor later."""
        self._at = np.zeros(n)
        """What it did when it was saturated in some of this window; 0: it was not."""
        self._deep = np.zeros(n)
        """Windows of ``_DEEP``, one after another."""
        self._past = np.zeros(n)
        """Windows for which a collapse may still last."""
        self._doubt, self._doubt_time, self._doubted = np.zeros(n), np.zeros(n), np.zeros(n)
        """What was done when something else may have been slow, the mean log response time then, and for how
        many windows more that counts."""

    def note(self, saturated: Flags, rate: Floats) -> None:
        """As of a reading."""
        self._at = np.where(saturated, np.fmax(self._at, rate), self._at)

    def forget_moments(self) -> None:
        self._at = np.zeros(len(self._at))

    def collapsed(self, rate: Floats, asked: Floats, lacks: Flags, proven: Floats) -> Flags:
        """Past its peak throughput falls as load rises (the retrograde part of the universal scalability law,
        Gunther, "Guerrilla Capacity Planning", 2007): what is still done then is less than can be."""
        peak = np.fmax(proven, np.where(self.windows > 0, self.rate, 0.0))
        deep = lacks & (peak == 0.0) & (asked > _DEEP * rate)
        self._deep = np.where(deep, self._deep + 1, 0)
        less = lacks & (rate < _LESS * peak)
        past_it = less & ((asked > peak) | (self._past > 0))
        self._past = np.where(less & (asked > peak), _PAST_WINDOWS, np.maximum(self._past - 1, 0))
        return np.asarray(past_it | (deep & (self._deep <= _DEEP_WINDOWS)), dtype=np.bool_)

    def take(self, window: Ended) -> Rows:
        """Whose are sure now: what was done before at a higher rate than theirs, can't be done any more."""
        was_saturated = self._at > 0.0
        enough = np.where(self.windows >= BELIEVED, HIGHER, 1.0)
        enough = np.where(window.slow | was_saturated, HIGHER, enough)
        self.windows[window.fit & (window.rate > enough * self.rate)] = 0
        reached = window.fit & window.lacks & window.slow
        rows = self._reckon(reached, np.fmax(window.rate, self._at), window.log_time)
        # A moment refutes what is given: help comes before there is a whole window.
        told = (window.fit | window.shifted) & was_saturated
        self._watch_relief(told & self._given & ~reached, window)
        self.forget_moments()
        return rows

    def _reckon(self, which: Flags, rate: Floats, log_time: Floats) -> Rows:
        rows = np.flatnonzero(which)
        count = np.minimum(self.windows[rows] + 1, _MOST)
        self.log_time[rows] += (log_time[rows] - self.log_time[rows]) / count
        before = np.where(count == 1, rate[rows], self.rate[rows])
        # Of few windows the most: in the others it was saturated for a part of the time only.
        is_mean = count >= BELIEVED
        off = np.where(is_mean, rate[rows] - before, 0.0)
        self.windows[rows] = count
        self.rate[rows] = np.where(is_mean, before + off / count, np.fmax(before, rate[rows]))
        self.spread[rows] = np.where(count == 1, 0.0, (1 - 1 / count) * (self.spread[rows] + off**2 / count))
        return rows[count >= BELIEVED]

    def _watch_relief(self, doubtful: Flags, window: Ended) -> None:
        """Who is slow may be so by something else. If answers are soon again when there is less to do, it was
        the load.

        :param doubtful: who was saturated, and did what it was asked for."""
        relieved = window.usable & (window.rate < _LESS * self._doubt)
        relieved &= self._doubt_time - window.log_time > np.log(SATURATED)
        self._reckon(relieved, self._doubt, self._doubt_time)
        self._doubted = np.where(doubtful, _DOUBTED_WINDOWS, np.maximum(self._doubted - 1, 0))
        self._doubt = np.where(doubtful, np.fmax(self._doubt, self._at), self._doubt)
        self._doubt_time = np.where(doubtful, window.log_time, self._doubt_time)
        self._doubt[relieved | (self._doubted == 0)] = 0.0

    def interval(self, rows: Rows, floor: Floats) -> tuple[Floats, Floats]:
        """(rows,) both ends; NaN: they are not believed.

        :param floor: (rows,) log response time without load; NaN: not known."""
        windows = np.maximum(self.windows[rows], 1.0)
        error = np.maximum(_ERROR / np.sqrt(windows), _ERROR_LEAST)
        off = 2.0 * np.maximum(error * self.rate[rows], np.sqrt(self.spread[rows] / windows))
        were_slow = self.log_time[rows] - floor > np.log(SATURATED)
        least = np.where(were_slow & self._given[rows], 1.0, BELIEVED)
        mean = np.where(self.windows[rows] >= least, self.rate[rows], np.nan)
        return mean - off, mean + off
