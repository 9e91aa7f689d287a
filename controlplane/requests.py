# SPDX-License-Identifier: Apache-2.0
"""What another process (the command line) asks of the running controller, through the store.

Every request is one row of its own, so that two processes never overwrite each other's; one more row
changes with each request, so that the controller reads one row a tick. Requests outlive a controller
that is not running.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from dataclasses import dataclass

from controlplane.model import Mode
from controlplane.ports import Store

SERVES_ON = "nobody else could take its new flows: it serves on"
"""Of a live endpoint that is drained."""
_FROZEN = "frozen"
_DRAINED = "drained:"
_ADD = "command:shadow-add:"
_REMOVE = "command:shadow-remove:"
_RELOAD = "command:reload"
_SERIAL = "commands"


def request_freeze(store: Store, frozen: bool) -> None:
    """No automatic action from the next tick on (or again)."""
    store.put(_FROZEN, "1" if frozen else None)
    _announce(store)


def held(mode: Mode, frozen: bool) -> str:
    """Why no weight moves, in words; empty: they do."""
    if frozen:
        return "frozen until penumbra thaw"
    return "" if mode is Mode.ACT else f"mode {mode.value}"


def is_frozen(store: Store) -> bool:
    return store.get(_FROZEN) is not None


def request_drain(store: Store, endpoint: str, drained: bool) -> None:
    """No new flows for a live endpoint (or again). Survives restarts."""
    store.put(_DRAINED + endpoint, "1" if drained else None)
    _announce(store)


def drained(store: Store, endpoints: Iterable[str]) -> frozenset[str]:
    return frozenset(name for name in endpoints if store.get(_DRAINED + name) is not None)


def request_shadow_add(store: Store, parent: str, host: str | None = None) -> None:
    """One shadow of a live endpoint, by hand; the policy leaves it alone."""
    store.put(_ADD + parent, json.dumps({"host": host}))
    _announce(store)


def request_shadow_remove(store: Store, shadow: str) -> None:
    """Drains a shadow, then removes it."""
    store.put(_REMOVE + shadow, "1")
    _announce(store)


def request_reload(store: Store) -> None:
    """Reads the configuration again; a bad one is refused and the running one stays."""
    store.put(_RELOAD, "1")
    _announce(store)


def _announce(store: Store) -> None:
    store.put(_SERIAL, uuid.uuid4().hex)


def restore(store: Store, held: Requests) -> None:
    """Writes again what lasts, into a store that was lost."""
    if held.frozen:
        store.put(_FROZEN, "1")
    for endpoint in held.drained:
        store.put(_DRAINED + endpoint, "1")
    _announce(store)


@dataclass(frozen=True, slots=True)
class Requests:
    serial: str | None
    frozen: bool = False
    drained: frozenset[str] = frozenset()
    add: tuple[tuple[str, str | None], ...] = ()
    """(parent, host or None)"""
    remove: tuple[str, ...] = ()
    reload: bool = False


def serial(store: Store) -> str | None:
    return store.get(_SERIAL)


def take(store: Store, endpoints: Iterable[str], shadows: Iterable[str]) -> Requests:
    """Reads all requests and clears those that are done once (add, remove, reload)."""
    endpoints = list(endpoints)
    # Read before the rows: a request that comes meanwhile is seen at the next tick.
    announced = serial(store)
    add = []
    for parent in endpoints:
        if (text := store.get(_ADD + parent)) is not None:
            store.put(_ADD + parent, None)
            add.append((parent, json.loads(text)["host"]))
    remove = [name for name in shadows if store.get(_REMOVE + name) is not None]
    for name in remove:
        store.put(_REMOVE + name, None)
    reload = store.get(_RELOAD) is not None
    if reload:
        store.put(_RELOAD, None)
    return Requests(
        serial=announced,
        frozen=is_frozen(store),
        drained=drained(store, endpoints),
        add=tuple(add),
        remove=tuple(remove),
        reload=reload,
    )
