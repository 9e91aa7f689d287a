# SPDX-License-Identifier: Apache-2.0
"""The last reading of what each member uses, and what the agents beside them ask for.

What an agent asked for holds until it takes it back, also when it is silent since: so HAProxy has it
(configuration manual 2.6, section 5.2, agent-check). A share of 0 % is no wish but a reading: it ages.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from controlplane.model import Admin, Operating, Usage, UsageSource

_NO_NEW_FLOWS = frozenset({Admin.DRAIN, Admin.MAINT})


class Usages:
    def __init__(self) -> None:
        self._last: dict[str, Usage] = {}
        self._read_by: dict[str, UsageSource] = {}
        self._draining: set[str] = set()
        """Members whose last reading asks for no new flows."""
        self.down: set[str] = set()
        """Members whose agent says so."""
        self.back_s: dict[str, float] = {}
        """When an agent took that back."""

    def observe(self, usages: Sequence[Usage]) -> list[tuple[str, str]]:
        """Who asks for something else than before, and a sentence."""
        changed = []
        for one in usages:
            before = self._last.get(one.member)
            if before is not None and one.at_s < before.at_s:
                continue
            self._last[one.member] = after = _merged(before, one)
            changed += [(one.member, said) for said in _news(before, after)]
            self._take(after)
        return changed

    def _take(self, one: Usage) -> None:
        if one.operating is Operating.DOWN:
            self.down.add(one.member)
        elif one.member in self.down:
            self.down.discard(one.member)
            self.back_s[one.member] = one.at_s
        if _drain(one):
            self._draining.add(one.member)
        else:
            self._draining.discard(one.member)

    def at(self, name: str, now_s: float) -> Usage | None:
        """None: nothing is known, or it is too old to act on."""
        one = self._last.get(name)
        return one if one is not None and now_s - one.at_s <= one.good_s else None

    def last(self, name: str) -> Usage | None:
        """However old."""
        return self._last.get(name)

    def drained(self, now_s: float) -> frozenset[str]:
        """Members that ask for no new flows."""
        return frozenset(
            name
            for name in self._draining
            if self._last[name].admin in _NO_NEW_FLOWS or self.at(name, now_s) is not None
        )

    def keep(self, source_of: Callable[[str], UsageSource | None]) -> None:
        """Forgets members that are no longer read, and what others told of those that are."""
        for name in list(self._last):
            source, told_by = source_of(name), self._read_by.get(name)
            if source is None or (told_by is not None and told_by is not source and told_by != source):
                self._forget(name)
            else:
                self._read_by[name] = source

    def _forget(self, name: str) -> None:
        del self._last[name]
        self._read_by.pop(name, None)
        self.back_s.pop(name, None)
        self._draining.discard(name)
        self.down.discard(name)


def _merged(before: Usage | None, after: Usage) -> Usage:
    """What an agent does not name is not changed."""
    if before is None or (before.weight, before.admin, before.operating) == (None, None, None):
        return after
    operating = after.operating or before.operating
    return replace(
        after,
        weight=before.weight if after.weight is None else after.weight,
        admin=after.admin or before.admin,
        operating=operating,
        reason=before.reason if after.operating is None and operating is Operating.DOWN else after.reason,
    )


def _drain(one: Usage) -> str:
    """The word that asks for no new flows; none: it asks for no such thing."""
    if one.admin is not None and one.admin in _NO_NEW_FLOWS:
        return one.admin.value
    return "0%" if one.weight == 0.0 else ""


def asks(one: Usage) -> str:
    """For people; empty: nothing out of the usual."""
    down = f"down{one.reason and f': {one.reason}'}" if one.operating is Operating.DOWN else ""
    return ", ".join(word for word in (_drain(one), down) if word)


def _news(before: Usage | None, after: Usage) -> list[str]:
    said = []
    was_down = before is not None and before.operating is Operating.DOWN
    if was_down is not (after.operating is Operating.DOWN):
        because = f": {after.reason}" if after.reason else ""
        said.append(f"{after.member}: its agent says {'up again' if was_down else f'down{because}'}")
    old, new = _drain(before) if before else "", _drain(after)
    if bool(old) is not bool(new):
        wish = f"no new flows ({new})" if new else "new flows again"
        said.append(f"{after.member}: its agent asks for {wish}")
    return said
