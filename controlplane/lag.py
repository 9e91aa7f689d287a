# SPDX-License-Identifier: Apache-2.0
"""Which shadows' data is new enough for new flows: the agreement ``max_lag``, held as a bound.

What clients of a shadow may see now is at most as old as it was when it was read, and the reading's age. A
shadow is given new flows only while that stays within the agreement until the next look, so it loses them
before anybody sees older data. It gets them back when it was well within it for some readings in a row, and
warms up again. No reading is no proof: nothing is given then.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from controlplane import shadows, weights
from controlplane.model import Lag, OnLag, Service, Shadow, ShadowState, Sync

_CALM = 0.5
"""Of what is agreed: who had lost its new flows must be under this part of it ..."""
_CALM_READINGS = 3
"""... in so many readings in a row."""
_JITTER_S = 0.1
"""Looks may be so much further apart than ticks."""
_GOOD_INTERVALS = 3.0
_GOOD_LEAST_S = 2.0
"""A reading in bytes counts for so long."""
_COPYING_S = 10.0
"""Who makes a copy may be too busy to tell of it for so long."""
_NOT_COPIED = "its data is not there yet"
_WATCHED = "its data is new enough again, and watched for some readings more"
_UNKNOWN = "its lag is not known"


@dataclass(frozen=True, slots=True)
class Gate:
    """Of one shadow: whether new flows may go to it."""

    service: str
    since_s: float
    """When it was met."""
    served: bool
    """It may have flows: it had new ones once, maybe before this controller began."""
    resumes: bool
    """It was ready before this controller met it, and nothing was read since that speaks against it."""
    is_open: bool = False
    opened_s: float | None = None
    """When it was opened; None: not yet, or it only went on."""
    calm: int = 0
    """Readings in a row that are well within the agreement."""
    read: Lag | None = None
    """The last one that tells what is agreed on."""
    last: Lag | None = None
    told: str = ""
    """Why its copy goes no further, as it was said last."""


def oldest_s(read: Lag, now_s: float) -> float:
    """So old may the data be that its clients see now."""
    return math.inf if read.lag_s is None else max(read.lag_s, 0.0) + max(now_s - read.at_s, 0.0)


def most_bytes(read: Lag, now_s: float) -> float:
    """So much of what was written may they not see, if writing goes on as it did."""
    if read.lag_bytes is None:
        return math.inf
    return read.lag_bytes + max(read.written_bytes_per_s, 0.0) * max(now_s - read.at_s, 0.0)


def good_s(sync: Sync) -> float:
    return max(_GOOD_INTERVALS * sync.interval_s, _GOOD_LEAST_S)


def agreed(sync: Sync) -> str:
    """In words."""
    return f"{sync.max_lag_s:g} s" if sync.max_lag_s is not None else f"{sync.max_lag_bytes} bytes"


def excess(sync: Sync, gate: Gate, now_s: float, look_s: float) -> str:
    """Why it may not be given new flows until the next look, ``look_s`` from now; empty: it may."""
    if gate.last is not None and not gate.last.copied:
        return gate.last.reason or _NOT_COPIED
    why = _excess(sync, gate.read, now_s, look_s)
    return f"{why} ({_stopped(gate)})" if why and _stopped(gate) else why


def _stopped(gate: Gate) -> str:
    return gate.last.reason if gate.last is not None and gate.last.copied else ""


def _excess(sync: Sync, read: Lag | None, now_s: float, look_s: float) -> str:
    if read is None:
        return _UNKNOWN
    if sync.max_lag_s is not None:
        if oldest_s(read, now_s) + look_s <= sync.max_lag_s:
            return ""
        return f"its data may be {oldest_s(read, now_s) + look_s:.1f} s old by the next look"
    if now_s - read.at_s > good_s(sync):
        return f"its lag was not read for {now_s - read.at_s:.1f} s"
    lacks = most_bytes(read, now_s + look_s)
    return "" if lacks <= (sync.max_lag_bytes or 0) else f"it may lack {lacks:.0f} bytes by the next look"


def behind(sync: Sync, read: Lag | None) -> str:
    """In words, as it was read."""
    if read is None:
        return _UNKNOWN
    if sync.max_lag_s is not None:
        return f"its data is {max(read.lag_s or 0.0, 0.0):.1f} s behind"
    return f"its data is {read.lag_bytes or 0} bytes behind"


def _is_calm(sync: Sync, read: Lag) -> bool:
    if not read.copied:
        return False
    if sync.max_lag_s is not None:
        return read.lag_s is not None and read.lag_s <= _CALM * sync.max_lag_s
    return read.lag_bytes is not None and read.lag_bytes <= _CALM * (sync.max_lag_bytes or 0)


def _tells(sync: Sync, read: Lag) -> bool:
    return (read.lag_s if sync.max_lag_s is not None else read.lag_bytes) is not None


class Gates:
    """Of all shadows whose services have ``sync``; the others may always serve."""

    def __init__(self) -> None:
        self._syncs: dict[str, Sync] = {}
        self._tick_s = 1.0
        self._gates: dict[str, Gate] = {}
        self._looked_s: float | None = None
        self._look_s = self._tick_s + _JITTER_S

    def set_up(self, services: Iterable[Service], tick_s: float) -> None:
        self._syncs = {one.name: one.sync for one in services if one.sync is not None}
        self._tick_s, self._look_s = tick_s, tick_s + _JITTER_S
        self._gates = {name: one for name, one in self._gates.items() if one.service in self._syncs}

    @property
    def applies(self) -> bool:
        """Some service has copies of data."""
        return bool(self._syncs)

    def look(self, those: Mapping[str, Shadow], now_s: float) -> None:
        """Once a tick, before its readings are taken: who is there, and how far looks are apart."""
        gap_s = self._tick_s if self._looked_s is None else now_s - self._looked_s
        self._looked_s, self._look_s = now_s, max(gap_s, self._tick_s) + _JITTER_S
        self.keep(those)
        for name, shadow in those.items():
            if self._is_copy(shadow) and name not in self._gates:
                was_ready = shadow.state is not ShadowState.WARMING
                self._gates[name] = Gate(shadow.service, now_s, served=was_ready, resumes=was_ready)

    def keep(self, those: Mapping[str, Shadow]) -> None:
        """Forgets who is gone, or is made again."""
        for name in [n for n in self._gates if n not in those or not self._is_copy(those[n])]:
            del self._gates[name]

    def _is_copy(self, shadow: Shadow) -> bool:
        return shadow.service in self._syncs and shadow.state in shadows.INSTALLED

    def take(self, readings: Sequence[Lag], now_s: float) -> list[tuple[str, str]]:
        """Who gets new flows again, or none from now on, or no newer data, and a sentence."""
        stopped = []
        for read in readings:
            gate = self._gates.get(read.shadow)
            if gate is None or (gate.last is not None and read.at_s < gate.last.at_s):
                continue
            sync = self._syncs[gate.service]
            is_calm = _is_calm(sync, read)
            self._gates[read.shadow] = replace(
                gate,
                calm=gate.calm + 1 if is_calm else 0,
                resumes=gate.resumes and is_calm,
                read=read if _tells(sync, read) else gate.read,
                last=read,
            )
            if said := self._tell_stopped(read):
                stopped.append((read.shadow, said))
        return stopped + [(name, said) for name in self._gates if (said := self._judge(name, now_s))]

    def _tell_stopped(self, read: Lag) -> str:
        """Once, until it is well within what is agreed again: a reason may come and go meanwhile."""
        gate, why = self._gates[read.shadow], read.reason if read.copied else ""
        if not why and gate.calm >= _CALM_READINGS:
            self._gates[read.shadow] = replace(gate, told="")
        if not why or why == gate.told:
            return ""
        self._gates[read.shadow] = replace(gate, told=why)
        return f"{read.shadow}: {why}"

    def _judge(self, name: str, now_s: float) -> str:
        """What is new of it; empty: nothing."""
        gate = self._gates[name]
        sync = self._syncs[gate.service]
        why = excess(sync, gate, now_s, self._look_s)
        if gate.is_open and why:
            self._gates[name] = replace(gate, is_open=False, calm=0)
            flows = ", and its flows go to others" if sync.on_lag is OnLag.EVICT else ""
            return f"{name}: {why}, {agreed(sync)} are agreed: it gets no new flows{flows}"
        if not gate.is_open and not why and gate.calm >= (1 if gate.resumes else _CALM_READINGS):
            opened_s = None if gate.resumes else now_s
            self._gates[name] = replace(gate, is_open=True, served=True, resumes=False, opened_s=opened_s)
            again = " again" if gate.served else ""
            return f"{name}: {behind(sync, gate.read)}, {agreed(sync)} are agreed: it gets new flows{again}"
        return ""

    # ---- verdicts -----------------------------------------------------------------------

    def part(self, shadow: Shadow, warm_up_s: float, now_s: float) -> float:
        """Of its full share of new flows, 0..1: none while its data may be too old by the next look, and
        less through the warm-up after it was."""
        if shadow.service not in self._syncs:
            return 1.0
        gate = self._gates.get(shadow.name)
        if gate is None or not gate.is_open or self._excess(shadow, now_s):
            return 0.0
        return weights.warmth(gate.opened_s, warm_up_s, now_s)

    def serves(self, shadow: Shadow, now_s: float) -> bool:
        return self.part(shadow, 0.0, now_s) > 0.0

    def why(self, shadow: Shadow, now_s: float) -> str:
        """It is given no new flows; empty: it is, as far as its data goes."""
        return "" if self.serves(shadow, now_s) else self._excess(shadow, now_s) or _WATCHED

    def _excess(self, shadow: Shadow, now_s: float) -> str:
        sync, gate = self._syncs.get(shadow.service), self._gates.get(shadow.name)
        if sync is None:
            return ""
        return _UNKNOWN if gate is None else excess(sync, gate, now_s, self._look_s)

    def is_evicted(self, shadow: Shadow, now_s: float) -> bool:
        """Its flows go to others, too. One of whom nothing was read yet keeps them as long as is agreed."""
        sync, gate = self._syncs.get(shadow.service), self._gates.get(shadow.name)
        if sync is None or gate is None or sync.on_lag is not OnLag.EVICT or not gate.served:
            return False
        if gate.last is None and now_s - gate.since_s <= (sync.max_lag_s or good_s(sync)):
            return False
        return not self.serves(shadow, now_s)

    def waits(self, shadow: Shadow) -> str:
        """Why its data is not there yet, in words; empty: it is."""
        if shadow.service not in self._syncs:
            return ""
        gate = self._gates.get(shadow.name)
        if gate is None or gate.last is None:
            return _UNKNOWN
        return "" if gate.last.copied else gate.last.reason or _NOT_COPIED

    def stopped(self, shadow: Shadow) -> str:
        """Why its copy goes no further at present, in words; empty: nothing is known that says so."""
        gate = self._gates.get(shadow.name)
        return "" if gate is None else _stopped(gate)

    def lost(self, shadow: Shadow) -> str:
        """Why its copy can never go on, in words; empty: it may."""
        gate = self._gates.get(shadow.name)
        return gate.last.reason if gate is not None and gate.last is not None and gate.last.is_lost else ""

    def is_copying(self, shadow: Shadow, now_s: float) -> bool:
        """Its first copy is being made, as was read lately."""
        sync, gate = self._syncs.get(shadow.service), self._gates.get(shadow.name)
        if sync is None or gate is None or gate.last is None or shadow.state is not ShadowState.WARMING:
            return False
        return not gate.last.copied and now_s - gate.last.at_s <= max(good_s(sync), _COPYING_S)

    def of(self, name: str) -> tuple[Sync, Gate] | None:
        """None: its service has no ``sync``, or it was not met yet."""
        gate = self._gates.get(name)
        return None if gate is None else (self._syncs[gate.service], gate)
