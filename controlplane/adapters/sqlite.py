# SPDX-License-Identifier: Apache-2.0
"""The embedded store: one SQLite file per instance, shared by the controller and the CLI.

Write-ahead logging lets the CLI read while the controller writes (https://sqlite.org/wal.html).
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from enum import Enum
from ipaddress import IPv4Address
from pathlib import Path

from controlplane import model
from controlplane.ports import DamagedRecordsError, StoreError

SCHEMA = 1
DECISIONS_KEPT = 20_000
BUSY_S = 5.0

_TABLES = """
CREATE TABLE IF NOT EXISTS shadow (name TEXT PRIMARY KEY, record TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS decision (
    id INTEGER PRIMARY KEY, at_unix_s REAL NOT NULL, subject TEXT NOT NULL,
    action TEXT NOT NULL, reason TEXT NOT NULL, inputs TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS value (key TEXT PRIMARY KEY, value TEXT NOT NULL);
"""


class SqliteStore:
    """``ports.Store`` in ``<state_dir>/<instance>.db``. Every method may raise ``StoreError``."""

    def __init__(self, state_dir: Path, instance: str) -> None:
        self.path = state_dir / f"{instance}.db"
        with self._told():
            state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            # The folder's mode does not cover a folder that was there before.
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))
            self._db = sqlite3.connect(
                self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA:
                raise StoreError(
                    f"{self.path}: of a newer Penumbra (schema {version}, not {SCHEMA}): upgrade this one"
                )
            self._db.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version={SCHEMA}; COMMIT;")

    def close(self) -> None:
        self._db.close()

    def shadows(self) -> Mapping[str, model.Shadow]:
        with self._told():
            rows = self._db.execute("SELECT name, record FROM shadow ORDER BY name").fetchall()
        readable: dict[str, model.Shadow] = {}
        damaged: dict[str, str] = {}
        for name, record in rows:
            try:
                readable[name] = _decoded(record)
            except (ValueError, TypeError, AttributeError) as error:
                damaged[name] = f"the record of shadow {name!r} is damaged: {error}"
        if damaged:
            raise DamagedRecordsError(f"{self.path}: {'; '.join(damaged.values())}", readable, damaged)
        return readable

    def put_shadow(self, shadow: model.Shadow) -> None:
        with self._told():
            self._db.execute(
                "INSERT INTO shadow VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET record = excluded.record",
                (shadow.name, _encoded(shadow)),
            )

    def forget_shadow(self, name: str) -> None:
        with self._told():
            self._db.execute("DELETE FROM shadow WHERE name = ?", (name,))

    def log(self, decision: model.Decision) -> None:
        with self._told():
            cursor = self._db.execute(
                "INSERT INTO decision (at_unix_s, subject, action, reason, inputs) VALUES (?, ?, ?, ?, ?)",
                (
                    decision.at_unix_s,
                    decision.subject,
                    decision.action,
                    decision.reason,
                    json.dumps(dict(decision.inputs)),
                ),
            )
            self._db.execute(
                "DELETE FROM decision WHERE id <= ?", ((cursor.lastrowid or 0) - DECISIONS_KEPT,)
            )

    def decisions(self, limit: int) -> Sequence[model.Decision]:
        with self._told():
            rows = self._db.execute(
                "SELECT at_unix_s, subject, action, reason, inputs FROM decision ORDER BY id DESC LIMIT ?",
                (limit,),
            ).fetchall()
        return [
            model.Decision(at, subject, action, reason, json.loads(inputs))
            for at, subject, action, reason, inputs in rows
        ]

    def get(self, key: str) -> str | None:
        with self._told():
            row = self._db.execute("SELECT value FROM value WHERE key = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def put(self, key: str, value: str | None) -> None:
        with self._told():
            if value is None:
                self._db.execute("DELETE FROM value WHERE key = ?", (key,))
            else:
                self._db.execute(
                    "INSERT INTO value VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value = excluded.value",
                    (key, value),
                )

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            raise StoreError(f"{self.path}: {error}; check the disk's space and the file's rights") from error


def _decoded(record: str) -> model.Shadow:
    raw = json.loads(record)
    known = {field.name for field in fields(model.Shadow)}
    shadow = model.Shadow(**{key: value for key, value in raw.items() if key in known})
    return replace(
        shadow,
        state=model.ShadowState(shadow.state),
        address=None if shadow.address is None else IPv4Address(shadow.address),
    )


def _encoded(shadow: model.Shadow) -> str:
    record = {field.name: getattr(shadow, field.name) for field in fields(shadow)}
    return json.dumps({key: _plain(value) for key, value in record.items()})


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, IPv4Address) else value
