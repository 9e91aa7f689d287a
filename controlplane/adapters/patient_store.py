# SPDX-License-Identifier: Apache-2.0
"""A store that need not open at once: the controller steers without it, and says so, until it does."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from controlplane import model
from controlplane.adapters.sqlite import SqliteStore


class PatientStore:
    """``ports.Store``: every call opens what is not open yet, or raises ``StoreError``."""

    def __init__(self, opened: Callable[[], SqliteStore]) -> None:
        self._open = opened
        self._store: SqliteStore | None = None

    def shadows(self) -> Mapping[str, model.Shadow]:
        return self._opened().shadows()

    def put_shadow(self, shadow: model.Shadow) -> None:
        self._opened().put_shadow(shadow)

    def forget_shadow(self, name: str) -> None:
        self._opened().forget_shadow(name)

    def log(self, decision: model.Decision) -> None:
        self._opened().log(decision)

    def decisions(self, limit: int) -> Sequence[model.Decision]:
        return self._opened().decisions(limit)

    def get(self, key: str) -> str | None:
        return self._opened().get(key)

    def put(self, key: str, value: str | None) -> None:
        self._opened().put(key, value)

    def close(self) -> None:
        if self._store is not None:
            self._store.close()

    def _opened(self) -> SqliteStore:
        if self._store is None:
            self._store = self._open()
        return self._store
