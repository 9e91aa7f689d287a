# SPDX-License-Identifier: Apache-2.0
"""What each live endpoint can serve: given, or learned from how it answers.

Learned of windows of ten seconds in which it was read, healthy, warm, and without a common cause. How answers
slow down with load tells the capacity before it is reached (``queueing.py``); where it is reached, and more
is asked for than answered, what is answered is the capacity (the utilisation law: throughput can't be more
than that of somebody who is always busy). Both give an interval; its lower end is gone by, it moves at most a
tenth a minute, and only on windows above half of what is known.

What is given is used, since who gave it may know of what was never seen; it is wrong by a third easily. So
where an endpoint was seen to be saturated, and the whole interval lies below what is given, what was measured
is used: to believe the larger number would cost what no shadow makes good. A smaller number is never raised:
somebody may want the rest to be free.
"""

from __future__ import annotations

import base64
import json
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from controlplane import queueing
from controlplane.ceilings import BELIEVED, HIGHER, SATURATED, Ceilings, Ended
from controlplane.observe import Work
from controlplane.response_curve import Flags, Floats, ResponseCurve
from controlplane.saturation import Saturation, Sums

Rows = npt.NDArray[np.intp]

WINDOW_S = 10.0
_FIT_WINDOWS = 2
"""So often the curves are fitted."""
_FITTED_AT_ONCE = 200
"""Endpoints: 8 ms."""
_HALF = 0.5
"""Of what is known: who is asked for less does not tell more of it."""
_WINDOWS = 6.0
"""Above half, before anything is known."""
_GROWN, _GROWN_OPEN = 1.25, 1.5
"""An answer that takes so many times its floor shows that the curve rises; the second where the interval has
no upper end yet."""
_BEYOND = 1.2
"""So many times the highest rate that was seen is believed at most."""
_A_MINUTE = 0.1
"""Part by which what is known moves."""
_NEWS = 0.03
"""What is used follows what is known past this difference: each change is a step of many weights."""
_SURE = 0.97
"""Of what is given, so much the whole interval must be below, or more than its inverse above."""
_AGAIN = 0.9
"""Of what is given: it is believed again when the lower end is that."""
_LEARNED, _LESS, _MORE = 1, 2, 3
"""What is known beside what is given: all, less, or more than that."""
_LEAST_ANSWERS = 5.0
_QUEUED = 10.0
"""An answer that takes so many times its floor waited in a queue that hardly ever is empty."""
_SHIFTED_MOST = 60.0
"""Windows after which slower answers at the same rate are no passing cause: what was known is forgotten."""
_RATIO_WINDOWS = 60.0
"""Memory of how many new flows there are to a request."""
_CAUGHT_UP = 1.1
"""Who answers so many times what it is asked for has more to answer from before."""
_USE_ERROR = 0.9
"""Of the upper end of what use tells, so much is sure."""


@dataclass(frozen=True, slots=True)
class News:
    """Of one endpoint, said once."""

    name: str
    reason: str


class Capacities:
    """Of all live endpoints; arrays have shape (n,), rates are new flows/s."""

    def __init__(self, names: Sequence[str], given: Floats, told: Flags, gap_s: float = WINDOW_S) -> None:
        """:param names: ``SERVICE/ENDPOINT``. ``given``: NaN: it is not. ``told``: whose requests are told:
        their work is counted in these. ``gap_s``: readings further apart are no window."""
        self._gap_s = gap_s
        n = len(names)
        self.names, self.given, self.told = tuple(names), given, told
        self.used = given.copy()
        """What decisions go by; NaN: it is not known."""
        self.low, self.high = np.full(n, np.nan), np.full(n, np.nan)
        """What was measured; NaN: nothing was. The high end may be infinite."""
        self._curve = ResponseCurve(n)
        self._flows_each = np.where(told, np.nan, 1.0)
        """New flows to what is done, and whether it was told by who was not saturated."""
        self._are_sure = np.zeros(n)
        self._ceilings = Ceilings(~np.isnan(given))
        self._grown = np.ones(n)
        self._before = np.full(n, np.nan)
        """Log response time in the window before."""
        self._shifted, self._starved = np.zeros(n), np.zeros(n)
        """Windows, one after another."""
        self._floor, self._proven, self._served = np.full(n, np.nan), np.zeros(n), np.zeros(n)
        self.by_use = np.full(n, np.nan)
        """What who was as busy as can be can serve, as its use tells; NaN: it was not."""
        self._used_up = np.zeros(n, dtype=np.bool_)
        self._taken_back = np.zeros(n, dtype=np.bool_)
        """Who was as busy as can be by something else: what its use told was never so."""
        self._saturation = Saturation(n)
        self._window = Sums(n)
        self._usable, self._common = np.ones(n, dtype=np.bool_), np.zeros(n, dtype=np.bool_)
        self._windows = 0
        self._new = np.zeros(n)
        """Windows above half since the last fit."""
        self._waiting: Rows = np.zeros(0, dtype=np.intp)
        self._moved = np.zeros(n)
        """Windows since it moved."""
        self._state = np.zeros(n, dtype=np.int8)
        self._unkept = np.zeros(n, dtype=np.bool_)

    # ---- readings ---------------------------------------------------------------------------

    def take(self, work: Work, usable: Flags, common: Flags) -> None:
        """:param usable: read, healthy, and warm. ``common``: others are in trouble as well."""
        starved = self._starved >= BELIEVED
        self._saturation.take(work, usable, common, starved, self._floor, self._proven, self._served)
        if work.over_s > self._gap_s:
            self._begin_window()
            self._ceilings.forget_moments()
            return
        self._window.add(work)
        self._usable &= usable
        self._common |= common
        self._ceilings.note(self._saturation.is_loaded, self._saturation.rate)
        if self._window.over_s >= WINDOW_S * 0.999:
            self._end_window()
            self._begin_window()

    def take_use(self, rows: Rows, by_use: Floats, used_up: Rows) -> None:
        """:param rows: of whom readings came. ``by_use``: as the attribute, of these. ``used_up``: of whom
        the last readings say that they are as busy as can be."""
        self._used_up[:] = False
        self._used_up[used_up] = True
        before = self.by_use[rows]
        changed = rows[~((by_use == before) | (np.isnan(by_use) & np.isnan(before)))]
        self.by_use[rows] = by_use
        self._taken_back[rows] |= np.isnan(by_use) & np.isfinite(before)
        self._waiting = np.union1d(self._waiting, changed)

    @property
    def saturated(self) -> Flags:
        """By its answers, or by what it uses."""
        return np.asarray(self._saturation.told | self._used_up, dtype=np.bool_)

    @property
    def overworked(self) -> Flags:
        """The same, and it is no chance."""
        return np.asarray(self._saturation.is_sure | self._used_up, dtype=np.bool_)

    def _begin_window(self) -> None:
        n = len(self.names)
        self._window = Sums(n)
        self._usable, self._common = np.ones(n, dtype=np.bool_), np.zeros(n, dtype=np.bool_)

    def _end_window(self) -> None:
        window = self._window
        rate, log_time = window.done / window.over_s, window.log_time
        lacks, starves, beyond = window.lacks, window.starves, window.beyond(self._served)
        usable = self._usable & (~self._common | beyond)
        slow = (log_time - self._floor > np.log(SATURATED)) | starves
        # Clients that wait for answers ask for no more than is done.
        waits = beyond & (log_time - self._floor > np.log(_QUEUED))
        self._starved = np.where(starves & usable, self._starved + 1, 0)
        fit = usable & np.isfinite(log_time) & (rate > 0.0) & (window.answers >= _LEAST_ANSWERS)
        fit &= ~window.flooded & (slow | ~lacks) & ~self._catches_up(log_time)
        asked = window.asked / window.over_s
        fit &= ~self._ceilings.collapsed(rate, asked, usable & lacks, self._served)
        self._windows += 1
        self._moved += 1
        self._curve.age(WINDOW_S)
        busy = lacks | waits
        shifted = self._curve.shifted(rate, log_time, fit & ~busy)
        self._shifted = np.where(shifted, self._shifted + 1, np.where(fit, 0, self._shifted))
        self._curve.forget(self._shifted >= _SHIFTED_MOST)
        self._shifted[self._shifted >= _SHIFTED_MOST] = 0
        fit &= ~shifted
        self._curve.add(rate, log_time, fit)
        rows = np.flatnonzero(fit)
        self._reckon_flows(rows, busy)
        sure = self._ceilings.take(Ended(rate, log_time, usable, fit, shifted, slow, busy))
        self._curve.forget_above(sure, HIGHER * self._ceilings.rate[sure])
        self._look_at_curve(rows)
        above = ~(rate * self._flows_each < _HALF * self.low)
        self._new += fit & above
        self._unkept |= fit
        if self._windows % _FIT_WINDOWS == 0:
            self._waiting = np.union1d(self._waiting, np.flatnonzero(self._new > 0))

    def _look_at_curve(self, rows: Rows) -> None:
        self._floor[rows], self._proven[rows], self._served[rows] = self._curve.told(rows)

    def _catches_up(self, log_time: Floats) -> Flags:
        """What was asked for before is answered yet: how slow that is tells nothing of the rate now."""
        window, before = self._window, self._before
        self._before = log_time
        asked = window.asked
        more = window.done > _CAUGHT_UP * asked + 2.0 * np.sqrt(asked)
        return np.asarray(more | (before - log_time > np.log(SATURATED)), dtype=np.bool_)

    def _reckon_flows(self, rows: Rows, lacks: Flags) -> None:
        """Who is saturated may do old flows' requests and refuse new flows: it is gone by if nothing else
        is known."""
        rows, window = rows[self.told[rows]], self._window
        # Flows live on: who gives new ones away has old ones' requests for long, and his shadows few.
        each = window.completed[rows] / (window.done[rows] + window.done_by_shadows[rows])
        is_sure = ~lacks[rows]
        before, was_sure = self._flows_each[rows], self._are_sure[rows] > 0
        moved = np.where(was_sure, before + (each - before) / _RATIO_WINDOWS, each)
        self._flows_each[rows] = np.where(is_sure | np.isnan(before), moved, before)
        self._are_sure[rows] = was_sure | is_sure

    # ---- what follows -----------------------------------------------------------------------

    def learn(self) -> list[News]:
        """Of some of those that have new windows."""
        rows, self._waiting = self._waiting[:_FITTED_AT_ONCE], self._waiting[_FITTED_AT_ONCE:]
        if not len(rows):
            return []
        low, high = self._measured(rows)
        # What it could have moved while it was not looked at is not made up for.
        rounds = math.ceil(len(self.names) / _FITTED_AT_ONCE / (_FIT_WINDOWS * WINDOW_S))
        windows = np.minimum(self._moved[rows], _FIT_WINDOWS * rounds)
        # A minute has one fit more at its end.
        part = _A_MINUTE * windows * WINDOW_S / (60.0 + _FIT_WINDOWS * WINDOW_S)
        self.low[rows] = _towards(self.low[rows], low, part)
        high = np.where(np.isnan(high), self.high[rows], high)
        self.high[rows] = np.maximum(high, self.low[rows])
        self._use(rows, part)
        self._moved[rows] = self._new[rows] = 0
        return list(self._news(rows))

    def _measured(self, rows: Rows) -> tuple[Floats, Floats]:
        """(rows,) both ends; NaN: nothing new is known."""
        curve, unit = self._curve, self._curve.unit(rows)
        count = curve.count[rows]
        found = queueing.fit(count, curve.mean[rows], curve.variance[rows])
        rates = queueing.RATIO ** np.arange(queueing.BINS)
        there = count >= queueing.TELLING
        highest = np.where(there, rates * queueing.RATIO, 0.0).max(axis=1)
        enough = np.where(rates >= _HALF * found.best[:, None], count, 0.0).sum(axis=1) >= _WINDOWS
        known = enough & (found.grown >= np.where(np.isfinite(found.high), _GROWN, _GROWN_OPEN))
        low = np.where(known, np.minimum(found.low, _BEYOND * highest) * unit, np.nan)
        high = np.where(known, found.high * unit, np.nan)
        least, most = self._ceilings.interval(rows, self._floor[rows])
        reached = np.isfinite(least)
        self._grown[rows] = np.where(reached, np.inf, found.grown)
        low, high = np.where(reached, least, low), np.where(reached, most, high)
        each = self._flows_each[rows]
        return low * each, high * each

    def bounds(self, rows: Rows) -> tuple[Floats, Floats]:
        """(rows,) both ends of what was measured, by answers and by use; NaN: nothing was."""
        by_use = self.by_use[rows]
        return np.fmin(self.low[rows], by_use), np.fmin(self.high[rows], by_use / _USE_ERROR)

    def _use(self, rows: Rows, part: Floats) -> None:
        given, used, (low, _) = self.given[rows], self.used[rows], self.bounds(rows)
        wanted = np.where(self._is_below(rows), np.fmin(low, given), given)
        wanted = np.where(np.isnan(given), np.where(np.abs(low / used - 1.0) <= _NEWS, used, low), wanted)
        # What is given is no estimate to move away from when it is refuted. It is reached again as slowly as
        # anything else, or what was told by little would come and go.
        at_once = (used == given) | (self._taken_back[rows] & (wanted == given))
        self.used[rows] = _towards(np.where(at_once, wanted, used), wanted, part)
        self._taken_back[rows] = False

    def _is_below(self, rows: Rows) -> Flags:
        """Saturated below what is given; until the lower end is nearly that."""
        given, was, (low, high) = self.given[rows], self._state[rows] == _LESS, self.bounds(rows)
        saturated = (self._grown[rows] >= SATURATED) | np.isfinite(self.by_use[rows])
        return np.asarray(
            (saturated & (high < _SURE * given)) | (was & (low < _AGAIN * given)), dtype=np.bool_
        )

    def _news(self, rows: Rows) -> Iterator[News]:
        state = self._states(rows)
        changed = state != self._state[rows]
        for row, now in zip(rows[changed].tolist(), state[changed].tolist(), strict=True):
            before, self._state[row] = int(self._state[row]), now
            name, measured = self.names[row].partition("/")[2], self.measured(row)
            if now == _LEARNED:
                yield News(name, f"{name}: capacity learned, {measured}")
            elif now == _LESS:
                said = (
                    f"{name}: saturated at {measured}, {self.given[row]:.0f}/s are given: the lower is used"
                )
                yield News(name, said)
            elif now == _MORE:
                said = f"{name}: {measured} measured, {self.given[row]:.0f}/s are given and used"
                yield News(name, said)
            elif before:
                yield News(
                    name, f"{name}: what was measured does not contradict {self.given[row]:.0f}/s any more"
                )

    def _states(self, rows: Rows) -> npt.NDArray[np.int_]:
        """0: nothing beside what is given."""
        given, (low, _) = self.given[rows], self.bounds(rows)
        below = self._is_below(rows) | (self.used[rows] < given)
        # Who was as busy as can be is known not to serve more than that, not to serve as much.
        above = np.isfinite(self.low[rows]) & (low > given / _SURE)
        above |= (self._state[rows] == _MORE) & (low >= given)
        learned = np.isfinite(low) & np.isnan(given)
        return np.select([below, above, learned], [_LESS, _MORE, _LEARNED], 0)

    def source(self, row: int) -> str:
        """Of what is used."""
        if not np.isnan(self.given[row]):
            return "given" if self.used[row] == self.given[row] else "learned"
        return "unknown" if np.isnan(self.used[row]) else "learned"

    def measured(self, row: int) -> str:
        """In words; empty: nothing was."""
        low, high = (ends.item() for ends in self.bounds(np.array([row])))
        if not np.isfinite(low):
            return ""
        return f"{low:.0f} to {high:.0f}/s" if np.isfinite(high) else f"{low:.0f}/s or more"

    def flows_each(self, row: int) -> float | None:
        """New flows to a request; None: these are not told; NaN: it is not known yet."""
        return float(self._flows_each[row]) if self.told[row] else None

    def proven(self, row: int) -> float:
        """New flows/s that were served without slowing down much."""
        return float(np.nan_to_num(self._served[row] * self._flows_each[row]))

    def contradicted(self, row: int) -> bool:
        """What is given is not what was measured."""
        return bool(self._state[row] in (_LESS, _MORE))

    # ---- what was learned -------------------------------------------------------------------

    def resume(self, other: Capacities) -> None:
        """The same knowledge for another configuration: of those whose work is counted in the same."""
        index = {name: row for row, name in enumerate(other.names)}
        pairs = [(row, index[name]) for row, name in enumerate(self.names) if name in index]
        pairs = [(row, it) for row, it in pairs if self.told[row] == other.told[it]]
        if pairs:
            rows, its = np.array(pairs, dtype=np.intp).T
            self._set(rows, other.given[its], other._columns(its))
            self._moved[rows] = other._moved[its]

    def _columns(self, rows: Rows) -> Floats:
        """(rows, values) all that was learned of them."""
        curve = self._curve
        each = [getattr(self, name)[rows] for name in _KEPT]
        each += [getattr(self._ceilings, name)[rows] for name in _KEPT_CEILINGS]
        bins = [values[rows] for values in (curve.count, curve.mean, curve.variance)]
        return np.hstack([np.column_stack([*each, curve.origin[rows]]), *bins])

    def _set(self, rows: Rows, given: Floats, columns: Floats) -> None:
        """:param given: what was given then; where it is another now, it is used."""
        curve, used = self._curve, self.used[rows].copy()
        kept = [(self, name) for name in _KEPT] + [(self._ceilings, name) for name in _KEPT_CEILINGS]
        for at, (of, name) in enumerate(kept):
            getattr(of, name)[rows] = columns[:, at]
        curve.origin[rows] = columns[:, _COLUMNS - 1]
        bins = columns[:, _COLUMNS:].reshape(len(rows), 3, queueing.BINS)
        curve.count[rows], curve.mean[rows], curve.variance[rows] = bins.transpose(1, 0, 2)
        now = self.given[rows]
        other = ~((now == given) | (np.isnan(now) & np.isnan(given)))
        self.used[rows] = np.where(other, np.where(np.isnan(now), self.low[rows], used), self.used[rows])
        self._look_at_curve(rows)
        self._state[rows] = np.where(self.used[rows] < now, _LESS, 0)
        self._state[rows] = self._states(rows)

    def take_unkept(self) -> Flags:
        """Who learned something since this was asked last."""
        unkept, self._unkept = self._unkept, np.zeros(len(self.names), dtype=np.bool_)
        return unkept

    def text(self, rows: Rows) -> str:
        """What was learned of these, to be kept."""
        values = self._columns(rows).astype("<f4").tobytes()
        return json.dumps(
            {
                "endpoints": [self.names[row] for row in rows.tolist()],
                "given": [None if np.isnan(one) else one for one in self.given[rows].tolist()],
                "told": self.told[rows].tolist(),
                "values": base64.b64encode(zlib.compress(values)).decode("ascii"),
            }
        )

    def recall(self, text: str) -> None:
        """Takes what was kept. Raises ``ValueError`` if no sense can be made of it."""
        try:
            raw = json.loads(text)
            names = [str(name) for name in raw["endpoints"]]
            given = np.array([np.nan if one is None else float(one) for one in raw["given"]])
            told = np.array([bool(one) for one in raw["told"]], dtype=np.bool_)
            values = np.frombuffer(zlib.decompress(base64.b64decode(raw["values"])), dtype="<f4")
            columns = values.astype(np.float64).reshape(len(names), _COLUMNS + 3 * queueing.BINS)
        except (ValueError, TypeError, KeyError, zlib.error) as error:
            raise ValueError(f"{type(error).__name__}: {error}") from error
        index = {name: row for row, name in enumerate(self.names)}
        its = [k for k, name in enumerate(names) if name in index and self.told[index[name]] == told[k]]
        if its and len(given) == len(names):
            rows = np.array([index[names[k]] for k in its], dtype=np.intp)
            self._set(rows, given[its], columns[its])


_KEPT = ("low", "high", "used", "by_use", "_flows_each", "_are_sure", "_grown")
_KEPT_CEILINGS = ("windows", "rate", "spread", "log_time")
_COLUMNS = len(_KEPT) + len(_KEPT_CEILINGS) + 1


def _towards(now: Floats, target: Floats, part: Floats) -> Floats:
    """By at most this part; at once where nothing was known; nowhere where nothing new is."""
    target = np.where(np.isnan(target), now, target)
    stepped = np.clip(target, now * (1.0 - part), now * (1.0 + part))
    return np.where(np.isfinite(now) & np.isfinite(target), stepped, target)
