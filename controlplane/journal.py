# SPDX-License-Identifier: Apache-2.0
"""One sentence per change: to the log, and as a row of the decision log."""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Collection, Mapping, Sequence

from controlplane import model
from controlplane.addresses import with_port
from controlplane.ports import Clock, Store

_log = logging.getLogger("penumbra")
_NUMBER = re.compile(r"\d+(\.\d+)?")
_LISTED = 8
_DOWN = "down: its flows go elsewhere"
_KEPT = 1000
"""Rows kept in memory while the store can't be written."""


class Journal:
    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._said: dict[tuple[str, str], str] = {}
        self._troubles: dict[str, str] = {}
        self._down: set[str] = set()
        """Who was said to be down."""
        self._rows: deque[model.Decision] = deque(maxlen=_KEPT)

    def say(
        self, subject: str, action: str, reason: str, inputs: Mapping[str, float | str] | None = None
    ) -> None:
        _log.info("%s", reason)
        self._rows.append(model.Decision(self._clock.unix_s(), subject, action, reason, dict(inputs or {})))
        self.catch_up()

    def catch_up(self) -> None:
        """Writes what could not be written when it was said."""
        try:
            while self._rows:
                self._store.log(self._rows[0])
                self._rows.popleft()
        except Exception as error:  # it is tried again in the next tick
            self.trouble("decision log", str(error))
        else:
            self.well("decision log")

    def once(
        self, subject: str, action: str, reason: str, inputs: Mapping[str, float | str] | None = None
    ) -> None:
        """Says it unless it said so last, numbers aside."""
        gist = _NUMBER.sub("#", reason)
        if self._said.get((subject, action)) != gist:
            self._said[subject, action] = gist
            self.say(subject, action, reason, inputs)

    def forget(self, subject: str, action: str) -> None:
        """It is over: the next ``once`` is news again."""
        self._said.pop((subject, action), None)

    def trouble(self, part: str, why: str, with_traceback: bool = False) -> None:
        if part not in self._troubles:
            _log.error("%s does not work: %s", part, why, exc_info=with_traceback)
        self._troubles[part] = why

    def well(self, part: str) -> None:
        if self._troubles.pop(part, None) is not None:
            _log.info("%s works again", part)

    def troubles(self) -> dict[str, str]:
        return dict(self._troubles)

    def fail_open(
        self, service: str, names: Sequence[str], *, is_open: bool, too_old: Sequence[str] = ()
    ) -> None:
        """:param names: of who packets go to then; else of who is healthy again.
        :param too_old: shadows that get none then, for their data."""
        if is_open:
            said = f"{fails_open(too_old)} ({_listed(names)})"
            self.say(service, "fail-open", f"{service}: {said}")
        else:
            said = f"no longer fails open, packets go to who is healthy ({_listed(names)})"
            self.say(service, "fail-closed", f"{service}: {said}")

    def step(
        self, step: model.Step, before: model.Steering, after: model.Steering, opened: Collection[str] = ()
    ) -> None:
        """A step that was taken, if people care. ``after``: what it is a step to. ``opened``: services that
        fail open, whose members are as dead as before."""
        match step:
            case model.InstallMember(member):
                at = with_port(member.address, member.port)
                self.say(
                    member.name,
                    "install",
                    f"{member.role.name.lower()} endpoint {member.name} installed at {at}",
                )
            case model.RemoveMember(name):
                self._down.discard(name)
                self.say(name, "uninstall", f"{name} removed from the data plane")
            case model.SetRing(service, weights):
                shares = ", ".join(f"{name} {weight:g}" for name, weight in weights.items())
                self.say(service, "ring", f"{service}: ring weights {shares}")
            case model.SetDown(name, False) if after.members[name].service in opened:
                pass
            case model.SetDown(name, down):
                back = "up again" if name in self._down else "up"  # a new shadow was never down
                (self._down.add if down else self._down.discard)(name)
                self.say(name, "down" if down else "up", f"{name} is {_DOWN if down else back}")
            case model.SetSpill(name, share):
                old = before.members[name].spill if name in before.members else 0.0
                if (old == 0.0) != (share == 0.0) or share == 1.0:
                    whom = "its shadows"
                    slots = after.members[name].slots if name in after.members else ()
                    if any(after.members[other].role is model.Role.LIVE for other in slots):
                        whom = "its neighbours while it warms up"
                    self.say(name, "spill", f"{name}: {share:.0%} of its new flows go to {whom}")


def fails_open(too_old: Sequence[str]) -> str:
    """:param too_old: shadows that are not known to have data that is new enough."""
    if not too_old:
        return "all members are down: fails open, packets go to all of them"
    those = f"all members are down, or not known to have data that is new enough ({_listed(too_old)})"
    return f"{those}: fails open, packets go to the others"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join([*names[:_LISTED], f"and {more} more"] if more > 0 else names)
