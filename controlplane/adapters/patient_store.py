# SPDX-License-Identifier: Apache-2.0
"""A store that need not work at once, or all the time: the controller steers without it, and says so."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from controlplane import model
from controlplane.adapters.sqlite import PARTS, BusyStoreError, DamagedStoreError, SqliteStore, path_of
from controlplane.ports import Clock, StoreError

_log = logging.getLogger("penumbra")
_T = TypeVar("_T")

BUSY_S = 0.2
"""How long a tick waits for others' locks."""
REST_S = 1.0
"""A locked store is not asked again for so long: packets and health don't wait for it."""
VERIFY_S = 5.0


class PatientStore:
    """``ports.Store``: every call opens what is not open, or raises ``StoreError``.

    A file that was removed or replaced is made anew. One that is damaged is set aside beside its place
    (``.damaged``) and made anew; the controller writes again what it knows.
    """

    def __init__(self, state_dir: Path, instance: str, clock: Clock) -> None:
        self._state_dir = state_dir
        self._instance = instance
        self._clock = clock
        self._store: SqliteStore | None = None
        self._busy: StoreError | None = None
        self._busy_until_s = 0.0
        self._verify_due_s = 0.0

    def shadows(self) -> Mapping[str, model.Shadow]:
        return self._ask(lambda store: store.shadows())

    def put_shadow(self, shadow: model.Shadow) -> None:
        self._ask(lambda store: store.put_shadow(shadow))

    def forget_shadow(self, name: str) -> None:
        self._ask(lambda store: store.forget_shadow(name))

    def log(self, decision: model.Decision) -> None:
        self._ask(lambda store: store.log(decision))

    def decisions(self, limit: int) -> Sequence[model.Decision]:
        return self._ask(lambda store: store.decisions(limit))

    def get(self, key: str) -> str | None:
        return self._ask(lambda store: store.get(key))

    def put(self, key: str, value: str | None) -> None:
        self._ask(lambda store: store.put(key, value))

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = None

    def _ask(self, what: Callable[[SqliteStore], _T]) -> _T:
        if self._busy is not None and self._clock.now_s() < self._busy_until_s:
            raise self._busy
        self._busy = None
        try:
            try:
                return what(self._opened())
            except DamagedStoreError as error:
                self._set_aside(error)
                return what(self._opened())
        except BusyStoreError as error:
            self._busy, self._busy_until_s = error, self._clock.now_s() + REST_S
            raise

    def _opened(self) -> SqliteStore:
        if self._store is not None and not self._store.is_in_place():
            _log.warning("%s was removed or replaced: made anew", self._store.path)
            self.close()
        if self._store is None:
            self._store = SqliteStore(self._state_dir, self._instance, BUSY_S)
        if self._clock.now_s() >= self._verify_due_s:
            self._verify_due_s = self._clock.now_s() + VERIFY_S
            self._store.verify()
        return self._store

    def _set_aside(self, why: DamagedStoreError) -> None:
        self.close()
        path = path_of(self._state_dir, self._instance)
        aside = path.with_name(f"{path.name}.damaged")
        try:
            for part in PARTS:
                whole = path.with_name(path.name + part)
                if whole.exists():
                    whole.replace(aside.with_name(aside.name + part))
        except OSError as error:
            raise StoreError(f"{why}; and it can't be set aside as {aside}: {error.strerror}") from error
        _log.warning("%s; set aside as %s, and made anew", why, aside)
