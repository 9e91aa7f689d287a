# SPDX-License-Identifier: Apache-2.0
"""Health of members: consecutive counts, so that one lost probe flips nothing, and who of those that fail is
ejected.

Who flaps is held down after it is well again: twice as long each time, as routes are (RFC 2439).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from typing import NamedTuple

from controlplane.model import Health, Probe

_STALE_INTERVALS = 5.0
_HOLD_S, _HOLD_MOST_S = 10.0, 300.0
"""For the second outage, and at most."""
_FORGOTTEN_S = 600.0
"""Who has been well for so long begins anew."""
_ROUNDING = 1e-9


class Outages(NamedTuple):
    """Of one member. Apart from what each answer changes, for they change seldom."""

    back_s: float | None = None
    """When it may take new flows again after it had been down; may be to come: it is held down until then.
    None: it has not been down."""
    down_s: float | None = None
    """When it was last found to be down."""
    flaps: int = 0
    """How often it went down lately."""
    was_up: bool = False


class MemberHealth(NamedTuple):
    """A tuple: one is made of each answer, 10 000 times a second, and this takes a third of the time."""

    up: bool | None = None
    """None: not known yet."""
    successes: int = 0
    failures: int = 0
    seen_s: float | None = None
    reason: str = ""
    outages: Outages = Outages()

    @property
    def back_s(self) -> float | None:
        return self.outages.back_s

    def observe(self, answer: Health, probe: Probe) -> MemberHealth:
        """Takes one answer. Up after ``rise`` successes in a row, down after ``fall`` failures."""
        up, successes, failures, seen_s, _, outages = self
        at_s = answer.at_s
        if seen_s is not None and at_s < seen_s:
            return self
        if answer.ok:
            if not up and successes + 1 >= probe.rise:
                back_s = at_s + hold_down_s(outages.flaps) if up is False else outages.back_s
                up, outages = True, outages._replace(back_s=back_s, was_up=True)
            return MemberHealth(up, successes + 1, 0, at_s, "", outages)
        if up is not False and failures + 1 >= probe.fall:
            flaps = 0 if not outages.was_up else 1 if self.is_forgotten(at_s) else outages.flaps + 1
            up, outages = False, outages._replace(down_s=at_s, flaps=flaps)
        return MemberHealth(up, 0, failures + 1, at_s, answer.reason, outages)

    def held_s(self, now_s: float) -> float:
        """How long it is still held down, unless it is needed."""
        return max(self.back_s - now_s, 0.0) if self.up and self.back_s is not None else 0.0

    def is_forgotten(self, now_s: float) -> bool:
        """It has been well for so long that it begins anew."""
        return bool(self.up) and (self.back_s is None or now_s - self.back_s >= _FORGOTTEN_S)

    def is_stale(self, probe: Probe, now_s: float) -> bool:
        """No answers for long: what was known stays, but nothing is removed on it. Stale is not down."""
        return self.seen_s is None or now_s - self.seen_s > _STALE_INTERVALS * (
            probe.interval_s + probe.timeout_s
        )


def hold_down_s(flaps: int) -> float:
    """Of who went down so often lately; the first time is none's fault."""
    return min(_HOLD_S * 2.0 ** min(flaps - 2, 16), _HOLD_MOST_S) if flaps > 1 else 0.0


class Ejections(NamedTuple):
    """Of one service, or all. Who is in none of these gets what it is to get."""

    failing: frozenset[str] = frozenset()
    """Ejected: they fail their probes."""
    held: frozenset[str] = frozenset()
    """Ejected: they are well, and held down."""
    waiting: frozenset[str] = frozenset()
    """Not ejected though they fail: enough are."""


def ejections(
    members: Mapping[str, MemberHealth], absent: Collection[str], most: float, now_s: float
) -> Ejections:
    """Who of a service's members gets no packets. Who failed first is ejected first. While others are well at
    most their share ``most`` is, or one; where nobody is well all that fail are, so that it fails open, and
    nobody is held down.

    :param members: that were healthy, or are taken to be. ``absent``: who of them is out for other reasons.
    """
    failing = sorted((one.outages.down_s or 0.0, name) for name, one in members.items() if one.up is False)
    there = [name for name, one in members.items() if one.up is not False and name not in absent]
    held = sorted(((members[name].held_s(now_s), name) for name in there), reverse=True)
    held = [(left_s, name) for left_s, name in held if left_s > 0.0]
    if len(held) == len(there):
        if there:
            return _limited(failing, [], len(failing) + len(there), most)
        return Ejections(failing=frozenset(name for _, name in failing))
    return _limited(failing, held, len(failing) + len(there), most)


def _limited(
    failing: list[tuple[float, str]], held: list[tuple[float, str]], members: int, most: float
) -> Ejections:
    """Those that are well go before those that are not: they are let in first."""
    limit = max(math.floor(most * members + _ROUNDING), 1)
    names = [name for _, name in failing]
    return Ejections(
        failing=frozenset(names[:limit]),
        held=frozenset(name for _, name in held[: max(limit - len(names), 0)]),
        waiting=frozenset(names[limit:]),
    )
