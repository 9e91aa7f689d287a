# SPDX-License-Identifier: Apache-2.0
"""How groups and services are doing, all at once: what deviates, whether others do too, and whether this is a
time to learn from.

A flood of SYNs that nobody completes, and clients that only try again, look like errors and slow answers, and
are no reason to clone anybody. A time with failures, or in which many connect anew, is not as others are:
nothing is learned of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from controlplane import model, normals, signs
from controlplane.baseline import REMARKABLE, SUSPECT, Baseline
from controlplane.habits import Habits
from controlplane.observe import Rates
from controlplane.pool import is_pool
from controlplane.signs import Count, Signs, Time

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

_ALIKE = 0.25
"""The score from which on another group has the same trouble."""
_FLOOD, _FLOOD_S = 4.0, 30.0
"""So many times the usual SYNs, most of which nobody completes; for so long afterwards nothing is judged."""
_STORM_S = 60.0
"""For so long clients connect anew, after many were cut off or somebody went down or came back."""
_STORM_LEAST, _STORM_SHARE, _STORM_DEVIATIONS = 10.0, 0.5, 6.0
"""Flows that are reset in one tick: at least, per new flow, and beyond what is normal."""
_PART = 0.1
"""Of a service, by demand: if so much of it is failing, the service is."""
_APART, _OUTRIGHT = 0.2, 0.5
"""Who fails so much more of its flows than its neighbours do has no common cause with them; and so much more
is a failure, whatever was learned as normal."""
_APART_S = 5.0
"""That lasts so long."""
_TELLING = 1.0
"""New flows of a reading, in the mean of the last ones, of which failures are a share."""
_MORE = 1.25
"""So many times its normal rate who is slow may be overloaded."""
_COMPARABLE = 0.05
"""Of demand may spill, and the live endpoint's times are those of one that serves it all."""
_ERRORS = (Count.RESETS, Count.UNANSWERED, Count.ABORTED)
_FAILURES = (Count.RESETS, Count.UNANSWERED)
"""Of new flows."""
_TIMES = len(Count)
"""The first row of times among the scores."""


@dataclass(frozen=True, slots=True)
class Condition:
    """Of one group or service, for those who read of it."""

    rate: float
    """Scores, 0..1; 0.5 is remarkable."""
    latency: float
    errors: float
    failing: bool
    """Nothing is learned of this time."""
    reason: str = ""
    """In words and numbers; empty when all is normal."""


class Conditions:
    """Arrays have shape (rows,): groups, those of one service beside each other, then services."""

    def __init__(self, services: Collection[model.Service], service: npt.NDArray[np.intp]) -> None:
        """:param service: (groups,) index of each one's."""
        self._service, self._groups = service, len(service)
        names = [f"{e.service}/{e.name}" for one in services for e in one.endpoints]
        is_tcp = np.array([one.protocol is model.Protocol.TCP for one in services], np.bool_)
        own = np.arange(self._groups + len(services))
        whole = np.concatenate([self._groups + service, own[self._groups :]])
        is_whole = np.array([is_pool(one) for one in services], np.bool_)
        self._rate_row = np.where(np.concatenate([is_whole[service], ~is_whole]), whole, own)
        """(rows,) whose rate counts: the ring moves flows between the groups of a pool."""
        self._is_tcp = np.concatenate([is_tcp[service], is_tcp])
        self._services = [one.name for one in services]
        self._baseline = Baseline([*names, *self._services])
        rows = len(self._baseline.names)
        self._habits = Habits(1 + len(Time), len(services))
        self._kept_part = -1
        """Half hours before it are kept."""
        self._flood_s, self._storm_s = np.zeros(rows), np.zeros(rows)
        """How long it still lasts."""
        self._up = np.ones(self._groups, np.bool_)
        self._apart_s, self._outright_s = np.zeros(self._groups), np.zeros(self._groups)
        self._judge()
        self.failing: Flags = np.zeros(rows, np.bool_)

    def resume(self, other: Conditions) -> None:
        """The same knowledge of groups and services of the same names."""
        self._baseline.resume(other._baseline)
        both = [name for name in self._services if name in other._services]
        to, source = (list(map(names.index, both)) for names in (self._services, other._services))
        self._habits.resume(other._habits, to, source)
        self._judge()

    def _of_services(self, groups: Flags) -> Floats:
        """(services,) how many."""
        return np.bincount(self._service, groups, len(self._services)).astype(np.float64)

    # ---- a tick ------------------------------------------------------------------------------

    def take(self, reading: Rates, up: Flags, shares: Floats, new_flows: float, now_unix_s: float) -> None:
        """:param up: (groups,) not known to be down. ``shares``: (groups,) of their services' demand.
        ``new_flows``: per second that the program remembered, of all members."""
        counted = signs.with_services(reading.counted, self._service, len(self._services))
        now = signs.read(counted, reading.over_s, self._is_tcp, new_flows)
        self._baseline.judge(now, *self._usual(now_unix_s))
        self._watch_floods(now.over_s)
        self._watch_storms(now, up)
        self._watch_neighbours(now.over_s)
        self._judge()
        self._look_for_failures(up, shares)
        self._baseline.learn(now, ~self.failing, ~(counted.spilled > _COMPARABLE * counted.offered))
        them = slice(self._groups, None)
        recent = np.vstack([self._baseline.recent_count(them)[Count.RATE], self._baseline.recent_time(them)])
        self._habits.take(now_unix_s, np.where(self.failing[them], np.nan, recent))

    def rescale(self, groups: slice, factor: Floats) -> None:
        """By the ring, these groups get so many times as many flows from now on."""
        self._baseline.rescale(groups, factor)

    def _usual(self, now_unix_s: float) -> tuple[Floats, Floats]:
        """What ``Baseline.judge`` wants to know of this time of day."""
        usual, them = self._habits.usual(now_unix_s), slice(self._groups, None)
        rate = self._baseline.normal_count(them)[Count.RATE]
        more = np.fmax(np.divide(usual[0], rate, out=np.ones(rate.shape), where=rate > 0), 1.0)
        longer = np.fmax(usual[1:] - self._baseline.normal_time(them), 0.0)
        return (
            np.concatenate([more[self._service], more]),
            np.concatenate([longer[:, self._service], longer], axis=1),
        )

    def _watch_floods(self, over_s: float) -> None:
        self._flood_s = np.maximum(self._flood_s - over_s, 0.0)
        more = np.flatnonzero(self._baseline.scores_of_sign(Count.OFFERED) >= REMARKABLE)
        if more.size:
            recent, normal = self._baseline.recent_count(more), self._baseline.normal_count(more)
            offered = recent[Count.OFFERED]
            is_flood = offered > _FLOOD * np.maximum(normal[Count.OFFERED], 1.0)
            is_flood &= recent[Count.RATE] < 0.5 * offered
            self._flood_s[more[is_flood]] = _FLOOD_S
        self._baseline.dismiss(self._flood_s > 0)

    def _watch_storms(self, now: Signs, up: Flags) -> None:
        self._storm_s = np.maximum(self._storm_s - now.over_s, 0.0)
        resets, flows = now.counts[Count.RESETS], now.of[Count.RESETS]
        many = np.flatnonzero(resets > np.maximum(_STORM_SHARE * flows, _STORM_LEAST))
        if many.size:
            expected = self._baseline.normal_count(many)[Count.RESETS] * flows[many]
            begins = resets[many] > expected + _STORM_DEVIATIONS * np.sqrt(expected)
            self._storm_s[many[begins]] = _STORM_S
        self._storm_s[: self._groups][up != self._up] = _STORM_S
        self._up = up

    def _watch_neighbours(self, over_s: float) -> None:
        """Who fails much more than they do. Of whom too few flows tell, what was told last is believed."""
        n = self._groups
        judged = np.vstack([self._storm_s[:n] <= 0, self._flood_s[:n] <= 0])
        apart, tells = self._more_than_neighbours()
        apart[~judged] = 0.0
        most, told = apart.max(axis=0), tells.any(axis=0)
        for lasted_s, least in ((self._apart_s, _APART), (self._outright_s, _OUTRIGHT)):
            lasted_s[told] = np.where(most[told] >= least, lasted_s[told] + over_s, 0.0)
        for sign, more in zip(_FAILURES, apart, strict=True):
            self._baseline.convict(sign, np.flatnonzero((more >= _OUTRIGHT) & (self._outright_s >= _APART_S)))

    def _more_than_neighbours(self) -> tuple[Floats, Flags]:
        """(signs, groups) the share of new flows that fail beyond theirs, 0 where too few tell; and where
        enough do."""
        services = len(self._services)
        more = np.zeros((len(_FAILURES), self._groups))
        enough = np.zeros(more.shape, np.bool_)
        for row, sign in enumerate(_FAILURES):
            failed, of = self._baseline.recent_sums(sign, slice(self._groups))
            failed, of = np.nan_to_num(failed), np.nan_to_num(of)
            their_failed = np.bincount(self._service, failed, services)[self._service] - failed
            theirs = np.bincount(self._service, of, services)[self._service] - of
            enough[row] = (of >= _TELLING) & (theirs >= _TELLING)
            own, other = (
                np.minimum(np.divide(one, whole, out=np.zeros(self._groups), where=enough[row]), 1.0)
                for one, whole in ((failed, of), (their_failed, theirs))
            )
            more[row] = own - other
        return more, enough

    def _judge(self) -> None:
        scores, n = self._baseline.scores, self._groups
        self.rate: Floats = scores[Count.RATE][self._rate_row]
        self.errors: Floats = scores[Count.RESETS : _TIMES].max(axis=0)
        self.latency: Floats = scores[_TIMES:].max(axis=0)
        trouble = np.maximum(self.errors, self.latency)[:n]
        self.fails_outright: Flags = (self._outright_s >= _APART_S) & (self.errors[:n] >= REMARKABLE)
        """(groups,) most of its new flows, while its neighbours' do not."""
        self.in_trouble: Flags = trouble >= REMARKABLE
        """(groups,) slow, or failing, as the next two."""
        has_flows = self._baseline.has_recent(Count.OFFERED)[:n]
        others = self._of_services(has_flows)[self._service] - has_flows
        alike = (trouble >= _ALIKE) & has_flows
        others_alike = self._of_services(alike)[self._service] - alike
        self.others_too: Flags = (others_alike > 0) & (2.0 * others_alike >= others)
        self.others_too &= self._apart_s < _APART_S
        """At least half of the service's other ones are as well, and fail about as much."""
        self._common: list[float] = self._of_services(self.in_trouble & self.others_too).tolist()
        """(services,) how many are so with others."""
        is_told = np.maximum(np.maximum(self.rate, self.errors), self.latency) >= REMARKABLE
        self._is_told: Flags = is_told | (self._flood_s > 0)
        """(rows,) there is a reason to tell."""

    def _look_for_failures(self, up: Flags, shares: Floats) -> None:
        n = self._groups
        failing = (self.errors >= SUSPECT) | (self._flood_s > 0) | (self._storm_s > 0)
        part = np.bincount(self._service, np.where(failing[:n], shares, 0.0), len(self._services))
        failing[n:] |= part >= _PART
        failing[:n] |= failing[n:][self._service] | ~up
        self.failing = failing

    # ---- what is told ------------------------------------------------------------------------

    @property
    def teaches(self) -> Flags:
        """(services,) this time is as others are."""
        return np.asarray(~self.failing[self._groups :], dtype=np.bool_)

    def together(self, groups: Sequence[int]) -> Condition:
        """Of groups that are decided about together, of one service; without a reason."""
        them = np.array(groups)
        row = groups[0] if len(groups) == 1 else self._groups + int(self._service[groups[0]])
        return Condition(
            rate=float(self.rate[row]),
            latency=float(self.latency[them].max()),
            errors=float(self.errors[them].max()),
            failing=bool(self.failing[row]),
        )

    def group(self, i: int) -> Condition:
        return self._condition(i)

    def service(self, at: int) -> Condition:
        """By its index among the services."""
        return self._condition(self._groups + at)

    def common_cause(self, at: int) -> str:
        """Of what befalls a service's groups together, though demand is usual; empty: nothing does."""
        if not self._common[at] or self.rate[self._groups + at] >= REMARKABLE:
            return ""
        n, its = self._groups, self._service == at
        alike = its & (np.maximum(self.errors, self.latency)[:n] >= _ALIKE)
        first = int(np.flatnonzero(its & self.in_trouble & self.others_too)[0])
        why = self._trouble(n + at, _ALIKE) or self._trouble(first, _ALIKE)
        return f"{np.count_nonzero(alike)} of {np.count_nonzero(its)} endpoints at once: {why}"

    def is_asked_more(self, i: int) -> bool:
        """The group, for clearly more new flows than is normal."""
        now, normal = self._baseline.told_count(i)
        return now[Count.RATE] > _MORE * normal[Count.RATE]

    def trouble(self, i: int) -> str:
        """Of a group that is slow or failing, in words and numbers; empty: it is neither."""
        return self._trouble(i, REMARKABLE)

    def troubled_signs(self, i: int) -> list[tuple[Count | Time, float]]:
        """Of a group: times in us, and shares, of the last seconds, those that deviate."""
        return [(sign, now) for sign, now, _ in self.beside_normal(i)]

    def beside_normal(self, i: int) -> list[tuple[Count | Time, float, float]]:
        """The same signs, and with each what is normal."""
        scores, (times, usual_times) = self._baseline.scores_of(i), self._baseline.told_time(i)
        counts, usual_counts = self._baseline.told_count(i)
        found: list[tuple[Count | Time, float, float]] = [
            (time, math.exp(times[time]), math.exp(usual_times[time]))
            for time in Time
            if scores[_TIMES + time] >= REMARKABLE
        ]
        return found + [
            (count, counts[count], usual_counts[count]) for count in _ERRORS if scores[count] >= REMARKABLE
        ]

    def _condition(self, row: int) -> Condition:
        return Condition(
            rate=float(self.rate[row]),
            latency=float(self.latency[row]),
            errors=float(self.errors[row]),
            failing=bool(self.failing[row]),
            reason=self._reason(row),
        )

    def _reason(self, row: int) -> str:
        if not self._is_told[row]:
            return ""
        said = []
        now, _ = self._baseline.told_count(row)
        if self.rate[row] >= REMARKABLE:
            rates, usual = self._baseline.told_count(int(self._rate_row[row]))
            said.append(f"request rate {rates[Count.RATE]:.3g}/s, {usual[Count.RATE]:.3g}/s is normal")
        if trouble := self._trouble(row, REMARKABLE):
            said.append(trouble)
        if self._flood_s[row] > 0:
            said.append(
                f"{now[Count.OFFERED]:.0f} flows/s are offered and {now[Count.RATE]:.0f}/s completed: "
                "a flood, or clients that try again, by which nobody is judged"
            )
        return ", ".join(said)

    def _trouble(self, row: int, least: float) -> str:
        said, scores = [], self._baseline.scores_of(row)
        now, normal = self._baseline.told_time(row)
        for time, what in ((Time.RTT, "RTT"), (Time.RESPONSE, "response time")):
            if scores[_TIMES + time] >= least:
                said.append(f"{what} {_ms(now[time])}, {_ms(normal[time])} is normal")
        now, normal = self._baseline.told_count(row)
        for count, what in (
            (Count.RESETS, "of flows are reset"),
            (Count.UNANSWERED, "of SYNs get no SYN-ACK"),
            (Count.ABORTED, "of requests are aborted"),
        ):
            if scores[count] >= least:
                # What was begun before may end now.
                said.append(f"{min(now[count], 1.0):.1%} {what}, {normal[count]:.1%} is normal")
        return ", ".join(said)

    # ---- what is kept ------------------------------------------------------------------------

    def normal(self, at: int, now_unix_s: float) -> str:
        """As text, of the service with this index and its groups."""
        rows = np.append(np.flatnonzero(self._service == at), self._groups + at)
        return normals.text(self._baseline, rows, now_unix_s)

    def recall_normal(self, kept: str, now_unix_s: float) -> None:
        """What a controller before this one learned. Raises ``ValueError`` with what is wrong with it."""
        normals.recall(self._baseline, kept, now_unix_s)

    def recall(self, at: int, now_unix_s: float, read: Callable[[int], str | None]) -> list[str]:
        """What was most at this time of the last days, of the service with this index. What is wrong with it.

        :param read: the text of a day."""
        return self._habits.recall(at, now_unix_s, read)

    def to_keep(self, now_unix_s: float) -> Iterator[tuple[str, int, str | None]]:
        """Service, day and text of what came in the half hours since it was asked last; None: to be
        forgotten."""
        part, before = Habits.part(now_unix_s), self._kept_part
        if part == before:
            return
        self._kept_part = part
        for at, name in enumerate(self._services):
            for day, text in self._habits.days(at, before):
                yield name, day, text


def _ms(log_us: float) -> str:
    return f"{math.exp(log_us) / 1000:.3g} ms"
