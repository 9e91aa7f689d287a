# SPDX-License-Identifier: Apache-2.0
"""The lead times of all services, as they were measured, and their place in the store."""

from __future__ import annotations

from collections.abc import Iterable

from controlplane import lead_times
from controlplane.journal import Journal
from controlplane.lead_times import LeadTimes
from controlplane.model import ShadowSettings
from controlplane.ports import Store

_KEY = "lead_times:"


class MeasuredTimes:
    def __init__(self, store: Store, journal: Journal) -> None:
        self._store, self._journal = store, journal
        self._known: dict[str, LeadTimes] = {}
        self._reckoned: dict[str, tuple[LeadTimes, ShadowSettings, float, float]] = {}
        """What was made of them: asked for each service in each tick."""
        self._unsaved: set[str] = set()

    def know(self, services: Iterable[str]) -> None:
        """Reads those of services that are new."""
        for service in services:
            if service not in self._known:
                self._known[service] = self._read(service)

    def read_again(self) -> None:
        """Where nothing is known: the store could not be read."""
        for service, known in self._known.items():
            self._known[service] = known if known.times else self._read(service)

    def _read(self, service: str) -> LeadTimes:
        try:
            text = self._store.get(_KEY + service)
            times = lead_times.parse(text) if text else LeadTimes()
            self._journal.well("lead times")
            return times
        except Exception as error:  # they are measured anew
            self._journal.trouble("lead times", f"{service}: {error}")
            return LeadTimes()

    def of(self, service: str, settings: ShadowSettings) -> tuple[float, float]:
        """p95 of all orders, and of those that were ready in the end; seconds."""
        known, before = self._known[service], self._reckoned.get(service)
        if before is None or before[0] is not known or before[1] is not settings:
            before = known, settings, known.p95_s(settings), known.usual_s(settings)
            self._reckoned[service] = before
        return before[2:]

    def measured(self, service: str) -> int:
        return self._known[service].measured

    def take(self, service: str, seconds: float, *, ready: bool) -> None:
        """Of a service that is known; of others there is nothing to learn."""
        if service in self._known:
            self._known[service] = self._known[service].with_one(seconds, ready)
            self._save(service)

    @property
    def are_saved(self) -> bool:
        return not self._unsaved

    def save(self, *, lost: bool) -> None:
        """What could not be written before; ``lost``: everything."""
        for service in list(self._known if lost else self._unsaved):
            self._save(service)

    def _save(self, service: str) -> None:
        try:
            self._store.put(_KEY + service, self._known[service].text())
        except Exception as error:  # they are known, and written when they can be
            self._unsaved.add(service)
            self._journal.trouble("store", str(error))
        else:
            self._unsaved.discard(service)
