# SPDX-License-Identifier: Apache-2.0
"""What the controller read and decided, tick by tick, so that the same decisions can be made again elsewhere.

A line of JSON each: the configuration's text when it is taken, what was learned before, then ticks. What did
not change since the line before is left out. The lines of a controller are numbered, so that none can be
missing unseen.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, replace
from enum import Enum
from ipaddress import ip_address
from itertools import zip_longest
from typing import Any

import numpy as np

from controlplane import groups, model, novelty, placement
from controlplane.addresses import Address
from controlplane.fleet import Fleet
from controlplane.novelty import Novel
from controlplane.observe import COUNTED
from controlplane.ports import Counters

VERSION = 7
RECORD_BEGIN = '{"penumbra_record":'
"""So its first line begins."""
_PLACE = "place"
_NOVEL = "novel"
"""Beside the acts of verdicts."""
_LITERAL_MOST = 8
"""Characters of a literal or an escape that was cut off."""
_COUNTED = (*COUNTED, "answered")
_NOT_COUNTED = tuple(
    field.name for field in fields(Counters) if field.name not in ("at_s", "rows", "requests_read", *_COUNTED)
)


class RecordError(ValueError):
    """The record can't be made sense of; the message says where and why."""


class _UnfitError(ValueError):
    """It is a record, but none that can be made sense of."""


class Recorder:
    def __init__(self, write: Callable[[str], object], config_text: Callable[[], str]) -> None:
        """:param write: takes a line; may raise ``OSError``.
        :param config_text: of the configuration as it is now."""
        self._write, self._config_text = write, config_text
        self._tick: dict[str, Any] = {}
        self._shadows: dict[str, Any] | None = None
        self._lines = 0
        """So many were written."""
        self._rings: dict[str, dict[str, float]] = {}
        self._told: set[str] = set()
        """Members whose health at first is told."""

    def begun(self, now_unix_s: float) -> None:
        """From then on it is recorded: what was learned is recalled."""
        self._tick["begun_unix_s"] = now_unix_s

    def configured(self) -> None:
        begins = not self._lines  # a controller does
        self._line({"penumbra_record": VERSION, "config": self._config_text(), "begins": begins})

    def learned(self, key: str, text: str) -> None:
        self._line({"key": key, "learned": text})

    def installed(self, steering: model.Steering) -> None:
        new = steering.members.keys() - self._told
        self._told |= new
        if new:
            self._tick["down"] = {name: steering.members[name].down for name in sorted(new)}
        rings = {name: dict(service.ring) for name, service in steering.services.items()}
        if rings != self._rings:
            self._tick["rings"] = self._rings = rings

    def answered(self, answers: Iterable[model.Health], now_s: float) -> None:
        """:param now_s: when it was judged by them who is ejected."""
        self._tick["judged_s"] = now_s
        self._tick.setdefault("answers", []).extend(
            [one.member, one.ok, one.at_s, one.latency_s, one.reason] for one in answers
        )

    def used(self, usages: Iterable[model.Usage]) -> None:
        self._tick["usages"] = [*self._tick.get("usages", ()), *map(_used, usages)]

    def looked(self, now_s: float) -> None:
        """At the data of shadows, those that are observed with the counters."""
        self._tick.setdefault("lags", []).append([now_s, None])

    def lagged(self, lags: Iterable[model.Lag], now_s: float) -> None:
        """Of a tick, and between ticks; without readings too, for the time that goes by tells as well."""
        told = [[getattr(one, field.name) for field in fields(one)] for one in lags]
        self._tick.setdefault("lags", []).append([now_s, told])

    def observed(self, counters: Counters, shadows: Mapping[str, model.Shadow], now_unix_s: float) -> None:
        self._end_undecided()
        self._tick |= {"at_s": counters.at_s, "observed_unix_s": now_unix_s}
        rows = np.fromiter(counters.rows.values(), np.intp)
        table = np.array(
            [rows.astype(np.uint64), *(np.asarray(getattr(counters, field))[rows] for field in _COUNTED)]
        )
        self._tick["counters"] = dict(zip(counters.rows, table.T.tolist(), strict=True))
        self._tick["requests_read"] = counters.requests_read
        self._take_shadows("observed_shadows", shadows)

    def _end_undecided(self) -> None:
        """A tick in which nothing could be decided."""
        if "counters" in self._tick:
            tick, self._tick = self._tick, {}
            self._line(tick)

    def probed(self, shadows: Mapping[str, model.Shadow]) -> None:
        self._take_shadows("probed_shadows", shadows)

    def placed(self, choices: Iterable[placement.Question]) -> None:
        """Where shadows that were ordered are to be, or why nowhere."""
        if told := [_choice(one) for one in choices]:
            self._tick["placed"] = told

    def decided(
        self,
        now_s: float,
        now_unix_s: float,
        lead_times: Mapping[str, tuple[float, float, float | None]],
        flows: Mapping[str, int],
        drained: Iterable[str],
        fresh: bool,
        shadows: Mapping[str, model.Shadow],
        decided: Iterable[tuple[str, Iterable[groups.Verdict]]],
    ) -> None:
        """The tick is over. ``lead_times``: of each service p95, that of those that were ready,
        and the mean life of its flows."""
        self._take_shadows("shadows", shadows)
        self._tick |= {"now_s": now_s, "unix_s": now_unix_s, "fresh": fresh, "flows": dict(flows)}
        self._tick["drained"] = sorted(drained)
        self._tick["lead_times"] = {name: list(told) for name, told in lead_times.items()}
        self._tick["verdicts"] = [
            [name, one.act.value, one.shadow, one.reason] for name, verdicts in decided for one in verdicts
        ]
        line, self._tick = self._tick, {}
        self._line(line)

    def judged(self, novel: Iterable[tuple[str, Novel]]) -> None:
        """After the tick: services, and steps whose rate is new to them."""
        said = [[service, one.until_unix_s, novelty.sentence(service, one)] for service, one in novel]
        if said:
            self._end_undecided()
            self._line({"novel": said})

    def _take_shadows(self, key: str, shadows: Mapping[str, model.Shadow]) -> None:
        now = {name: _plain(shadow) for name, shadow in shadows.items()}
        if now != self._shadows:
            self._tick[key] = self._shadows = now

    def _line(self, value: Mapping[str, Any]) -> None:
        self._write(json.dumps({**value, "line": self._lines}) + "\n")
        self._lines += 1


def _choice(one: placement.Question) -> list[object]:
    return [
        [[getattr(host, field.name) for field in fields(host)] for host in one.candidates],
        [getattr(one.wish, field.name) for field in fields(one.wish)],
        one.answer.host,
        one.answer.why,
    ]


def _chosen(unix_s: float, told: list[Any]) -> Redone:
    candidates, asked, host, why = told
    wish = placement.Wish(*asked)
    wish = replace(wish, regions=tuple(wish.regions))
    now = placement.choose([placement.Candidate(*one) for one in candidates], wish)
    return Redone(unix_s, wish.parent, _PLACE, now.host, now.why, (_PLACE, host, why))


def _used(usage: model.Usage) -> list[object]:
    values = (getattr(usage, field.name) for field in fields(usage))
    return [value.value if isinstance(value, Enum) else value for value in values]


def _usage(told: list[Any]) -> model.Usage:
    usage = model.Usage(*told)
    return replace(
        usage,
        admin=None if usage.admin is None else model.Admin(usage.admin),
        operating=None if usage.operating is None else model.Operating(usage.operating),
    )


def _plain(shadow: model.Shadow) -> dict[str, object]:
    values = {field.name: getattr(shadow, field.name) for field in fields(shadow)}
    return {
        name: value.value if isinstance(value, Enum) else str(value) if isinstance(value, Address) else value
        for name, value in values.items()
    }


def _counters(at_s: float, told: Mapping[str, list[int]], requests_read: bool) -> Counters:
    rows = {name: row for name, (row, *_) in told.items()}
    table = np.zeros((max(rows.values(), default=-1) + 1, len(_COUNTED)), dtype=np.uint64)
    for row, *counts in told.values():
        table[row] = counts
    nothing = np.zeros(len(table), dtype=np.uint64)
    columns: dict[str, Any] = dict.fromkeys(_NOT_COUNTED, nothing)
    columns |= {field: table[:, at] for at, field in enumerate(_COUNTED)}
    return Counters(at_s=at_s, rows=rows, requests_read=requests_read, **columns)


def _shadow(raw: Mapping[str, Any]) -> model.Shadow:
    shadow = model.Shadow(**raw)
    address = None if shadow.address is None else ip_address(str(shadow.address))
    return replace(shadow, state=model.ShadowState(shadow.state), address=address)


@dataclass(frozen=True, slots=True)
class Redone:
    """One decision, or word of what is new, made again."""

    unix_s: float
    endpoint: str
    act: str
    shadow: str | None
    reason: str
    was: tuple[str, str | None, str] | None
    """Act, shadow and reason that are recorded; None: there was none."""

    @property
    def is_same(self) -> bool:
        return self.was == (self.act, self.shadow, self.reason)


class _Roster:
    """What the fleet asks of the roster."""

    def __init__(self) -> None:
        self.endpoints: dict[str, model.Endpoint] = {}
        self.shadows: dict[str, model.Shadow] = {}
        self.lead_times: dict[str, tuple[float, float, float | None]] = {}

    def of(self, parent: str) -> tuple[model.Shadow, ...]:
        return tuple(one for one in self.shadows.values() if one.parent == parent and not one.standby)

    def usual_lead_time_s(self, service: str) -> float:
        return self.lead_times[service][1]


def redone(lines: Iterable[str], parse: Callable[[str], model.Config]) -> Iterator[Redone]:
    """The decisions of a record, made again by the code of now. Raises ``RecordError``.

    :param parse: of a configuration's text.
    """
    replay: _Replay | None = None
    cut: RecordError | None = None
    follows = 0
    for number, line in enumerate(lines, 1):
        try:
            raw = _read(line)
            begins = isinstance(raw, dict) and raw.get("begins")
            if cut is not None and not begins:
                raise cut  # only where a controller ended may a line be cut off
            if isinstance(raw, str):
                kind = "no record of penumbra run --record begins so" if replay is None else raw
                cut = RecordError(f"line {number}: {kind}")
                continue
            cut = None
            if "config" in raw and raw["penumbra_record"] != VERSION:
                raise _UnfitError(f"a record of version {VERSION} is allowed, not {raw['penumbra_record']!r}")
            if replay is not None:
                _require_order(raw["line"], 0 if begins else follows)
            follows = raw["line"] + 1
            if "config" in raw:
                configured = parse(raw["config"])
                anew = replay is None or raw["begins"]
                replay = _Replay(configured) if anew or replay is None else replay.with_config(configured)
                continue
            if replay is None:
                raise _UnfitError("a record begins with a configuration")
            yield from replay.take(raw)
        except RecordError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            kind = "" if isinstance(error, _UnfitError) else f"{type(error).__name__}: "
            raise RecordError(f"line {number}: {kind}{error}") from error
    if cut is not None:
        raise cut
    if replay is None:
        raise RecordError("there is no record in it")


def _require_order(line: int, follows: int) -> None:
    """:param line: the number that it has; ``follows``: that it should have."""
    if line > follows:
        missing = line - follows
        raise _UnfitError(f"{'a line is' if missing == 1 else f'{missing} lines are'} missing before it")
    if line < follows:
        raise _UnfitError(f"line {line} of a controller's record stands where its line {follows} should")


def _read(line: str) -> dict[str, Any] | str:
    """A line of a record, or why it is none."""
    text = line.rstrip()
    try:
        raw = json.loads(text)
    except json.JSONDecodeError as error:
        left = len(text) - error.pos
        is_open = left <= _LITERAL_MOST or error.msg.startswith("Unterminated string")
        if text.startswith("{") and is_open:
            return "it is cut off"
        return f"it is no line of a record: {error.msg}, column {error.colno}"
    is_ours = isinstance(raw, dict) and not raw.keys().isdisjoint(("line", "penumbra_record"))
    return raw if is_ours else "it is no line of a record"


class _Replay:
    def __init__(self, configured: model.Config) -> None:
        self._fleet, self._roster = Fleet(configured), _Roster()
        self._learned: dict[str, str] | None = {}
        self._counters: Counters | None = None
        self._shadows: dict[str, model.Shadow] = {}
        self._novel: list[tuple[str, Novel]] = []
        """What was found after the last tick."""
        self.with_config(configured)

    def with_config(self, configured: model.Config) -> _Replay:
        if self._counters is not None:
            self._fleet.reconfigure(configured)
        self._roster.endpoints = {e.name: e for s in configured.services.values() for e in s.endpoints}
        return self

    def take(self, raw: Mapping[str, Any]) -> Iterator[Redone]:
        if "learned" in raw:
            if self._learned is None:
                raise ValueError("what was learned stands before the first tick")
            self._learned[raw["key"]] = raw["learned"]
            return
        yield from self._told_novelties(raw.get("novel", ()))
        if "novel" in raw:
            return
        fleet, roster = self._fleet, self._roster
        if self._learned is not None:
            fleet.recall(raw["begun_unix_s"], self._learned.get)
            self._learned = None
        self._set_shadows(raw.get("observed_shadows"))
        fleet.take_rings(raw.get("rings", {}))
        for name, down in raw.get("down", {}).items():
            fleet.adopt(name, down=down)
        fleet.observe_health([model.Health(*answer) for answer in raw.get("answers", ())], roster)
        if "judged_s" in raw:
            fleet.judge_health(roster, raw["judged_s"])
        looks = raw.get("lags", [])
        first = next((k for k, (_, told) in enumerate(looks) if told is None), len(looks))
        self._look(looks[:first])  # between ticks
        if "counters" in raw:
            counters = _counters(raw["at_s"], raw["counters"], raw["requests_read"])
            fleet.observe_counters(self._counters, counters, roster, raw["observed_unix_s"])
            self._counters = counters
        fleet.observe_usage([_usage(told) for told in raw.get("usages", ())], roster)
        self._look(looks[first:])
        self._set_shadows(raw.get("probed_shadows"))
        fleet.shadow_health(roster)
        self._set_shadows(raw.get("shadows"))
        if "verdicts" in raw:
            yield from self._decide(raw)
            yield from (_chosen(raw["unix_s"], one) for one in raw.get("placed", ()))
        fleet.learn()
        self._novel += fleet.judge_steps()

    def _look(self, looks: Iterable[tuple[float, list[list[Any]] | None]]) -> None:
        for now_s, told in looks:
            if told is None:
                self._fleet.lag.look(self._roster.shadows, now_s)
            else:
                self._fleet.observe_lags([model.Lag(*one) for one in told], now_s)

    def _told_novelties(self, told: Iterable[tuple[str, float, str]]) -> Iterator[Redone]:
        recorded: dict[tuple[str, float], str] = {(service, until_s): said for service, until_s, said in told}
        for service, one in self._novel:
            said, was = novelty.sentence(service, one), recorded.pop((service, one.until_unix_s), None)
            recorded_as = None if was is None else (_NOVEL, None, was)
            yield Redone(one.until_unix_s, service, _NOVEL, None, said, recorded_as)
        for (service, until_s), was in recorded.items():
            yield from _compared(until_s, service, (), [(_NOVEL, None, was)])
        self._novel = []

    def _set_shadows(self, raw: Mapping[str, Any] | None) -> None:
        if raw is not None:
            self._roster.shadows = {name: _shadow(one) for name, one in raw.items()}

    def _decide(self, raw: Mapping[str, Any]) -> Iterator[Redone]:
        fleet, roster = self._fleet, self._roster
        roster.lead_times = {name: tuple(told) for name, told in raw["lead_times"].items()}
        leads_s = {name: told[0] for name, told in roster.lead_times.items()}
        lives_s = {name: told[2] for name, told in roster.lead_times.items() if told[2] is not None}
        drained, fresh, now_s = set(raw["drained"]), raw["fresh"], raw["now_s"]
        fleet.forecast(leads_s, lives_s, now_s, fresh)
        was: dict[str, list[tuple[str, str | None, str]]] = {}
        for name, act, shadow, reason in raw["verdicts"]:
            was.setdefault(name, []).append((act, shadow, reason))
        for unit in fleet.busy(roster):
            lead_s, life_s = leads_s[unit.service.name], lives_s.get(unit.service.name)
            group = fleet.group(unit, roster, raw["flows"], drained, lead_s, life_s, fresh, now_s)
            verdicts = fleet.decide(unit, group, raw["unix_s"])
            yield from _compared(raw["unix_s"], unit.name, verdicts, was.pop(unit.key, []))
        for name, found in was.items():
            yield from _compared(raw["unix_s"], name, (), found)


def _compared(
    unix_s: float,
    endpoint: str,
    verdicts: Iterable[groups.Verdict],
    was: Iterable[tuple[str, str | None, str]],
) -> Iterator[Redone]:
    """One after the other, as they were decided about one endpoint."""
    for verdict, found in zip_longest(verdicts, was):
        if verdict is None:
            yield Redone(unix_s, endpoint, "none", None, "nothing was to be decided", found)
        else:
            yield Redone(unix_s, endpoint, verdict.act.value, verdict.shadow, verdict.reason, found)
