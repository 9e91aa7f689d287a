# SPDX-License-Identifier: Apache-2.0
"""The embedded store: one SQLite file per instance, shared by the controller and the CLI.

Write-ahead logging lets the CLI read while the controller writes (https://sqlite.org/wal.html).
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import fields, replace
from enum import Enum
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import quote

from controlplane import model
from controlplane.addresses import Address
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


PARTS = ("", "-wal", "-shm")
"""A database that is open is three files."""
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})


class BusyStoreError(StoreError):
    """Another process has locked the store."""


class DamagedStoreError(StoreError):
    """What is in the file can't be made sense of."""


def path_of(state_dir: Path, instance: str) -> Path:
    return state_dir / f"{instance}.db"


class SqliteStore:
    """``ports.Store`` in ``<state_dir>/<instance>.db``. Every method may raise ``StoreError``."""

    def __init__(self, state_dir: Path, instance: str, busy_s: float = BUSY_S) -> None:
        """:param busy_s: how long a call waits for others' locks."""
        self.path = path_of(state_dir, instance)
        with self._told():
            state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            # The folder's mode does not cover a folder that was there before.
            fd = os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
            with os.fdopen(fd):
                if os.fstat(fd).st_mode & 0o077:  # specifications are in it, and with them secrets
                    os.fchmod(fd, 0o600)
            self._db = sqlite3.connect(
                self.path, timeout=busy_s, isolation_level=None, check_same_thread=False
            )
            self._db.execute("PRAGMA journal_mode=WAL")
            self._db.execute("PRAGMA synchronous=NORMAL")
            (version,) = self._db.execute("PRAGMA user_version").fetchone()
            if version > SCHEMA:
                raise StoreError(
                    f"{self.path}: of a newer Penumbra (schema {version}, not {SCHEMA}): upgrade this one"
                )
            if version < SCHEMA:  # reading must do without writing: the disk may be full
                self._db.executescript(f"BEGIN IMMEDIATE; {_TABLES} PRAGMA user_version={SCHEMA}; COMMIT;")
            self._inodes = self._found_inodes()

    def close(self) -> None:
        self._db.close()

    def is_in_place(self) -> bool:
        """False: a file was removed or replaced, and nobody else sees what is written."""
        try:
            return self._found_inodes() == self._inodes
        except OSError:
            return False

    def _found_inodes(self) -> list[int]:
        return [self.path.with_name(self.path.name + part).stat().st_ino for part in PARTS]

    def verify(self) -> None:
        """Looks at the file as another process would: our own connection remembers what it read."""
        with self._told(), closing(sqlite3.connect(f"file:{quote(str(self.path))}?mode=ro", uri=True)) as db:
            db.execute("PRAGMA busy_timeout=0")
            for table in ("shadow", "value"):
                db.execute(f"SELECT * FROM {table}").fetchall()  # noqa: S608 - ours
            db.execute("SELECT max(id) FROM decision").fetchall()

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
            code = getattr(error, "sqlite_errorcode", None) or 0
            if code & 0xFF in _BUSY:
                raise BusyStoreError(f"{self.path}: {error}; see who has it: fuser -v {self.path}") from error
            kind = StoreError
            if (
                code & 0xFF in _DAMAGED
                or code == sqlite3.SQLITE_IOERR_SHORT_READ
                or "no such table" in str(error)
            ):
                kind = DamagedStoreError
            why = (error.strerror if isinstance(error, OSError) else None) or error
            raise kind(f"{self.path}: {why}; check the disk's space and the file's rights") from error


def _decoded(record: str) -> model.Shadow:
    raw = json.loads(record)
    known = {field.name for field in fields(model.Shadow)}
    shadow = model.Shadow(**{key: value for key, value in raw.items() if key in known})
    return replace(
        shadow,
        state=model.ShadowState(shadow.state),
        address=None if shadow.address is None else ip_address(shadow.address),
    )


def _encoded(shadow: model.Shadow) -> str:
    record = {field.name: getattr(shadow, field.name) for field in fields(shadow)}
    return json.dumps({key: _plain(value) for key, value in record.items()})


def _plain(value: object) -> object:
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, Address) else value
