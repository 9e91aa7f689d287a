# SPDX-License-Identifier: Apache-2.0
"""Whether what comes in goes out and comes back: endpoints that bypass, redirected frames that are lost."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from controlplane import model, tally
from controlplane.bypass import Bypass
from controlplane.journal import Journal
from controlplane.ports import Counters, InterfaceCounts, Redirects, Sample
from controlplane.status import InterfaceTraffic

_LOST_S = 10.0
"""Losses are told by what was lost in so long; none in so long: it is over."""
_CAUSES = {
    "ENETDOWN": "it is down",
    "EMSGSIZE": "frames are larger than its MTU",
    "ENXIO": "a veth's other end must be up and have XDP, or there: ethtool -K DEV gro on",
    "ENOTSUP": "it takes none; a veth's other end must have XDP, or there: ethtool -K DEV gro on",
}
_NO_CAUSE = "its queue is full, or the MTU at its other end is smaller"


class Ledger:
    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._bypass = Bypass()
        self._counters: Counters | None = None
        self._interfaces: Sequence[InterfaceCounts] = ()
        self._lost: dict[str, int] = {}
        """Interface -> frames lost, when that was last compared."""
        self._losing: set[str] = set()
        self._lost_due_s = float("-inf")

    def take(
        self,
        counters: Counters,
        interfaces: Sequence[InterfaceCounts],
        installed: model.Steering,
        answered_s: Callable[[], Mapping[str, float]],
    ) -> None:
        """A tick's readings. ``answered_s``: members whose last probe was answered well -> when."""
        self._counters, self._interfaces = counters, interfaces
        if self._bypass.is_due(counters.at_s):
            self._judge(counters, installed, answered_s())
        if counters.at_s >= self._lost_due_s:
            self._lost_due_s = counters.at_s + _LOST_S
            for one in interfaces:
                if one.redirects is not None:
                    self._compare(one.name, one.redirects)

    def _judge(self, counters: Counters, installed: model.Steering, answered_s: Mapping[str, float]) -> None:
        tcp = {name for name, one in installed.services.items() if one.protocol is model.Protocol.TCP}
        present = {name for name, one in installed.members.items() if one.service in tcp}
        able = {
            name: answered_s[name] for name in present & answered_s.keys() if not installed.members[name].down
        }
        self._bypass, begun, ended = self._bypass.observe(counters, present, able)
        for one in begun:
            self._journal.say(one.name, "bypass", one.sentence)
        for name in ended:
            self._journal.say(name, "bypass", f"{name}: replies come back by the access point again")

    def _compare(self, name: str, redirects: Redirects) -> None:
        total = redirects.lost + redirects.refused
        lost = total - self._lost.get(name, total)
        self._lost[name] = total
        if lost and name not in self._losing:
            self._losing.add(name)
            cause = f"{redirects.error or 'no error number'}: {_CAUSES.get(redirects.error, _NO_CAUSE)}"
            said = f"{name}: {lost} frames that were to leave by it in {_LOST_S:.0f} s were lost ({cause})"
            self._journal.say(name, "lost", said)
        elif not lost and name in self._losing:
            self._losing.discard(name)
            self._journal.say(name, "lost", f"{name}: no frame that is to leave by it is lost any more")

    @property
    def bypassed(self) -> tuple[str, ...]:
        """Members whose replies bypass the access point."""
        return tuple(sorted(self._bypass.members))

    def traffic(self) -> tuple[InterfaceTraffic, ...]:
        return tuple(_traffic(one) for one in self._interfaces)

    def samples(self, installed: model.Steering) -> Iterator[Sample]:
        services = {name: one.service for name, one in installed.members.items()}
        if self._counters is not None:
            yield from tally.samples(self._counters, services, self._interfaces)
        yield from self._bypass_samples(services)

    def _bypass_samples(self, services: Mapping[str, str]) -> Iterator[Sample]:
        for name, service in services.items():
            labels = {"service": service, "endpoint": name}
            yield Sample("endpoint_bypassed", labels, float(name in self._bypass.members))


def _traffic(one: InterfaceCounts) -> InterfaceTraffic:
    ends = one.redirects
    return InterfaceTraffic(
        one.name,
        one.received,
        one.forwarded,
        one.passed,
        one.dropped,
        sent=ends.sent if ends else None,
        lost=ends.lost if ends else None,
        refused=ends.refused if ends else None,
        error=ends.error if ends else "",
    )
