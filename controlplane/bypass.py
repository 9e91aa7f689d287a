# SPDX-License-Identifier: Apache-2.0
"""Endpoints whose replies bypass the access point: packets go to them, and none comes back. Pure.

Only TCP tells: whatever a client sends is answered there, if only with an acknowledgement or a reset, while a
UDP service may never answer. Only an endpoint whose probes are answered is judged, for one that is dead does
not answer either; probes come from the access point's own address, so their answers find back whatever the
endpoint's route to the clients is. Nothing of anybody's comes back: where only some clients' replies go
another way it is not seen.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from controlplane.ports import Counters

Integers = npt.NDArray[np.int64]

_WINDOWS_S = (10.0, 300.0)
"""Readings are compared over these: the short one for the busy, the long one for the quiet."""
_FLOWS = 10
_PACKETS = 100
"""New flows, or packets, that must have been given to an endpoint before its silence means anything."""
_HEARD = 10
"""Packets that must come back in one window for it to be over; what strays in does not end it."""


@dataclass(frozen=True, slots=True)
class Silent:
    """A member that gave nothing back."""

    name: str
    packets: int
    flows: int
    over_s: float | None
    """None: since it was installed."""

    @property
    def sentence(self) -> str:
        given = f"{self.name}: {self.packets} packets, {self.flows} new flows went to it"
        if self.over_s is None:
            found = f"{given} and nothing ever came back: if it is healthy, its"
        else:
            found = (
                f"{given} in {self.over_s:.0f} s and nothing came back, though its probes are answered: its"
            )
        return f"{found} replies bypass the access point or are lost; its route to clients must lead over it"


def silent(before: Counters | None, after: Counters, names: Collection[str]) -> list[Silent]:
    """Of these members, those that were given enough to answer between two readings, and answered nothing.

    :param before: None: since they were installed.
    """
    there, packets, flows, returned = _grown(before, after, names)
    found = (returned == 0) & ((flows >= _FLOWS) | (packets >= _PACKETS))
    over_s = after.at_s - before.at_s if before else None
    return [Silent(there[at], int(packets[at]), int(flows[at]), over_s) for at in np.flatnonzero(found)]


def heard(before: Counters, after: Counters, names: Collection[str]) -> list[str]:
    """Of these members, those from whom answers came between two readings."""
    there, _, _, returned = _grown(before, after, names)
    return [there[at] for at in np.flatnonzero(returned >= _HEARD)]


def _grown(
    before: Counters | None, after: Counters, names: Collection[str]
) -> tuple[list[str], Integers, Integers, Integers]:
    """Who is in both readings, and their packets, flows and returned packets between them."""
    then_rows = after.rows if before is None else before.rows
    there = [name for name in names if name in after.rows and after.rows[name] == then_rows.get(name)]
    rows = np.array([after.rows[name] for name in there], np.intp)

    def grown(field: str) -> Integers:
        now = np.asarray(getattr(after, field))[rows].astype(np.int64)
        return now if before is None else now - np.asarray(getattr(before, field))[rows].astype(np.int64)

    return there, grown("packets"), grown("flows"), grown("return_packets")


@dataclass(frozen=True, slots=True)
class _Window:
    length_s: float
    began: Counters | None = None
    able: frozenset[str] = frozenset()
    """Members whose probes were answered then."""

    def is_over(self, at_s: float) -> bool:
        return self.began is None or not 0 <= at_s - self.began.at_s < self.length_s


@dataclass(frozen=True, slots=True)
class Bypass:
    """Who bypasses, as told; a new value after each reading that matters."""

    members: frozenset[str] = frozenset()
    windows: tuple[_Window, ...] = tuple(_Window(length_s) for length_s in _WINDOWS_S)

    def is_due(self, at_s: float) -> bool:
        """Whether a reading of that time matters."""
        return any(window.is_over(at_s) for window in self.windows)

    def observe(
        self, reading: Counters, present: Collection[str], answered_s: Mapping[str, float]
    ) -> tuple[Bypass, Sequence[Silent], Sequence[str]]:
        """Takes a reading; who begins to bypass, and whose replies come back again.

        :param present: members of TCP services.
        :param answered_s: of these, whose last probe was answered well, and when.
        """
        begun: dict[str, Silent] = {}
        ended: set[str] = set()
        windows = []
        for window in self.windows:
            if window.is_over(reading.at_s):
                if window.began is not None:
                    since_s = window.began.at_s
                    judged = {name for name in window.able if answered_s.get(name, since_s) > since_s}
                    for one in silent(window.began, reading, judged - self.members):
                        begun.setdefault(one.name, one)
                    ended.update(heard(window.began, reading, self.members & frozenset(present)))
                window = replace(window, began=reading, able=frozenset(answered_s))
            windows.append(window)
        members = (self.members & frozenset(present) | begun.keys()) - ended
        return Bypass(members, tuple(windows)), list(begun.values()), sorted(ended)
