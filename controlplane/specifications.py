# SPDX-License-Identifier: Apache-2.0
"""What originals were like while they were healthy, so that they can be cloned when they are not.

A specification is a text that only its target's role understands. It is read in the background and kept in
the store, and is as confidential as what it was read of: it is never logged, recorded or shown.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass

from controlplane import model
from controlplane.journal import Journal
from controlplane.ports import Clock, Provisioner, Store, StoreError

RENEW_S = 300.0
AGAIN_S = 30.0
"""When it could not be read."""
MOST_AT_ONCE = 32
_REST = 9.0
"""Inspections rest so many times as long as they took: a tenth of a core at most, however many there are."""
_REST_LEAST_S = 2.0
_TIMEOUT_S = 60.0


@dataclass(frozen=True, slots=True)
class Kept:
    """A specification as the store has it."""

    target: str
    host: str
    at_unix_s: float
    """When it was first read as it is."""
    text: str


def key(endpoint: str) -> str:
    return f"specification:{endpoint}"


_KEPT = "specifications"
"""Whose are kept, so that none outlives its endpoint."""


def kept(store: Store, endpoint: str, target: str) -> Kept | None:
    """What is kept of an endpoint for this target. Raises ``StoreError``."""
    text = store.get(key(endpoint))
    if text is None:
        return None
    try:
        found = Kept(**json.loads(text))
    except (ValueError, TypeError):
        return None  # of another version: it is read anew
    return found if found.target == target else None


class Specifications:
    def __init__(
        self, config: model.Config, provisioner: Provisioner, store: Store, clock: Clock, journal: Journal
    ) -> None:
        self._provisioner, self._store, self._clock, self._journal = provisioner, store, clock, journal
        self._due_s: dict[str, float] = {}
        """Of those that are read: when again."""
        self._began_s: float | None = None
        self._next_s = clock.now_s()
        self._unread: dict[str, str] = {}
        self._readable: dict[str, model.Endpoint] = {}
        self._gone_are_kept = True
        """Perhaps: what is kept of endpoints that left the configuration, also while nobody ran."""
        self.reconfigure(config)

    def reconfigure(self, config: model.Config) -> None:
        """All are read anew, and what is kept of endpoints that are gone is forgotten."""
        self._readable, self._config = _readable(config), config
        self._due_s = dict.fromkeys(self._readable, self._clock.now_s())
        self._unread = {name: why for name, why in self._unread.items() if name in self._readable}
        self._gone_are_kept = True

    def healthy_again(self, endpoints: Iterable[str]) -> None:
        """It may be another one by now."""
        for endpoint in endpoints:
            if endpoint in self._due_s:
                self._due_s[endpoint] = -1.0

    def of(self, endpoint: str, target: str) -> str:
        """Empty: none is kept, or the store can't say."""
        try:
            found = kept(self._store, endpoint, target)
        except StoreError:
            return ""
        return "" if found is None else found.text

    def advance(self, is_healthy: Callable[[str], bool]) -> None:
        """Takes what was read, and starts to read those that are due, of one service at a time."""
        if self._gone_are_kept:
            self._forget_the_gone()
        now_s = self._clock.now_s()
        ended = self._provisioner.inspected()
        if ended is not None:
            took_s = now_s - (now_s if self._began_s is None else self._began_s)
            self._began_s, self._next_s = None, now_s + max(_REST * took_s, _REST_LEAST_S)
            for one in ended:
                self._take(one, now_s)
            self._tell()
        if self._began_s is not None or now_s < self._next_s:
            return
        self._next_s = now_s + _REST_LEAST_S
        orders = self._due(now_s, is_healthy)
        if orders:
            self._began_s = now_s
            self._provisioner.inspect(orders)

    def _due(self, now_s: float, is_healthy: Callable[[str], bool]) -> list[model.Order]:
        due = sorted((at_s, name) for name, at_s in self._due_s.items() if at_s <= now_s and is_healthy(name))
        if not due:
            return []
        service = self._readable[due[0][1]].service
        mine = [name for _, name in due if self._readable[name].service == service][:MOST_AT_ONCE]
        for name in mine:
            self._due_s[name] = now_s + RENEW_S
        return [_order(self._config, self._readable[name]) for name in mine]

    def _take(self, one: model.Inspection, now_s: float) -> None:
        if one.endpoint not in self._due_s:
            return
        self._unread.pop(one.endpoint, None)
        if one.text:
            self._keep(one)
        elif one.reason:
            self._unread[one.endpoint] = one.reason
            self._due_s[one.endpoint] = now_s + AGAIN_S
        else:
            del self._due_s[one.endpoint]

    def _keep(self, one: model.Inspection) -> None:
        try:
            before = kept(self._store, one.endpoint, one.target)
            if before is not None and (before.host, before.text) == (one.host, one.text):
                return
            names = self._kept_names()
            if one.endpoint not in names:  # first, so that it is known of what is kept
                self._store.put(_KEPT, json.dumps(sorted({*names, one.endpoint})))
            value = Kept(one.target, one.host, self._clock.unix_s(), one.text)
            self._store.put(key(one.endpoint), json.dumps(asdict(value)))
        except StoreError as error:
            self._due_s[one.endpoint] = self._clock.now_s() + AGAIN_S
            self._journal.trouble("store", str(error))

    def _forget_the_gone(self) -> None:
        """Not those whose host is not known: it may be an inventory's that was not read yet."""
        there = {one.name for service in self._config.services.values() for one in service.endpoints}
        try:
            names = self._kept_names()
            for name in names - there:
                self._store.put(key(name), None)
            if not names <= there:
                self._store.put(_KEPT, json.dumps(sorted(names & there)))
        except StoreError as error:
            self._journal.trouble("store", str(error))
        else:
            self._gone_are_kept = False

    def _kept_names(self) -> set[str]:
        try:
            return set(json.loads(self._store.get(_KEPT) or "[]"))
        except (ValueError, TypeError):
            return set()

    def _tell(self) -> None:
        """That something can't be read matters only when the original is gone: then it is too late to say."""
        if not self._unread:
            self._journal.well("specifications")
            return
        name, why = min(self._unread.items())
        others = f" (and {len(self._unread) - 1} more)" if len(self._unread) > 1 else ""
        self._journal.trouble("specifications", f"{name} can be cloned only while it is there: {why}{others}")


def _readable(config: model.Config) -> dict[str, model.Endpoint]:
    """Endpoints that may get shadows and whose host is known."""
    return {
        endpoint.name: endpoint
        for service in config.services.values()
        if service.shadows.hosts
        for endpoint in service.endpoints
        if (host := config.hosts.get(endpoint.host or "")) is not None and not host.gone
    }


def _order(config: model.Config, parent: model.Endpoint) -> model.Order:
    service = config.services[parent.service]
    return model.Order(
        shadow="",
        instance=config.instance,
        service=service.name,
        parent=parent,
        protocol=service.protocol,
        probe=service.probe,
        host=config.hosts[parent.host or ""],
        target=service.shadows.target,
        timeout_s=_TIMEOUT_S,
        variables=service.shadows.variables,
    )
