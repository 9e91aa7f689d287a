# SPDX-License-Identifier: Apache-2.0
"""Lag of logical replication, PostgreSQL 15 and later.

The primary's row of ``penumbra.heartbeat`` is written each interval. What a shadow has of it tells by which
moment it has everything, as a subscription applies transactions in the order of their commits (PostgreSQL
15, section 31.1). What is written is known here before anybody can read it, and moments are this process's
own: no clock of a server is trusted with them, and ``replay_lag`` is not either, which tells milliseconds
while a shadow is minutes behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import psycopg

from controlplane import model
from controlplane.addresses import Address

_BEATS_MOST = 100_000
_NEVER = datetime.min.replace(tzinfo=UTC)
_TICK = timedelta(microseconds=1)
_CONNECT_S = 2
_BEAT = """
    INSERT INTO penumbra.heartbeat (instance, at) VALUES (%s, %s)
    ON CONFLICT (instance) DO UPDATE SET at = excluded.at
"""
_POSITIONS = """
    SELECT NULL, pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0')::bigint, NULL UNION ALL
    SELECT slot_name::text, pg_wal_lsn_diff(confirmed_flush_lsn, '0/0')::bigint, wal_status
    FROM pg_replication_slots WHERE starts_with(slot_name::text, 'penumbra_')
"""
_COPIES = """
    SELECT count(r.srrelid) FILTER (WHERE r.srsubstate = 'r'), count(r.srrelid), min(s.subslotname::text),
        to_regclass('penumbra.heartbeat') IS NOT NULL, bool_and(s.subenabled), bool_or(w.subid IS NOT NULL)
    FROM pg_subscription s LEFT JOIN pg_subscription_rel r ON r.srsubid = s.oid
    LEFT JOIN (SELECT DISTINCT subid FROM pg_stat_subscription WHERE relid IS NULL AND pid IS NOT NULL) w
        ON w.subid = s.oid
    WHERE starts_with(s.subname::text, 'penumbra_')
    AND s.subdbid = (SELECT oid FROM pg_database WHERE datname = current_database())
"""
_ERRORS = """
    SELECT sum(apply_error_count + sync_error_count)::bigint FROM pg_stat_subscription_stats
    WHERE starts_with(subname::text, 'penumbra_')
"""
_COUNTS_ERRORS = 15_00_00
"""Version from which on servers do."""
_SLOT_LOST = (
    "its slot on the primary has lost WAL that it needs (max_slot_wal_keep_size): its copy can't go on"
)
_SLOT_GONE = "its slot on the primary is gone: its copy can't go on"
_DISABLED = "its subscription is disabled"
_FAILING = "its subscription fails, and its server's log tells why"
_NOT_RUNNING = "the apply worker of its subscription does not run"
_SEEN = "SELECT at FROM penumbra.heartbeat WHERE instance = %s"

_Connection = psycopg.AsyncConnection[tuple[Any, ...]]


class _Session:
    """One connection, made again when it broke. Who was left waiting keeps the old one, and closes it."""

    def __init__(self, place: tuple[Address, int], variables: Mapping[str, object]) -> None:
        self._place, self._variables = place, variables
        self._kept: _Connection | None = None

    async def take(self) -> _Connection:
        kept, self._kept = self._kept, None
        return kept or await self._connect()

    async def give_back(self, connection: _Connection) -> None:
        if self._kept is None and not connection.closed:
            self._kept = connection
        else:
            await connection.close()

    async def close(self) -> None:
        if self._kept is not None:
            await self._kept.close()

    async def _connect(self) -> _Connection:
        given = self._variables
        optional: dict[str, Any] = {key: str(given[key]) for key in ("sslmode",) if key in given}
        if "password_file" in given:
            optional["password"] = Path(str(given["password_file"])).read_text(encoding="utf-8").strip("\n")
        address, port = self._place
        return await psycopg.AsyncConnection.connect(
            host=str(address),
            port=port,
            dbname=str(given["database"]),
            user=str(given["user"]),
            application_name="penumbra",
            connect_timeout=_CONNECT_S,
            tcp_user_timeout=_CONNECT_S * 1000,
            autocommit=True,
            **optional,
        )


class PostgresPrimary:
    def __init__(self, target: model.LagTarget) -> None:
        self._session = _Session(target.primary, target.sync.variables)
        self._instance = target.instance
        self._beats: dict[datetime, float] = {}
        """What was written, or may be -> when that was begun, in the order of time."""
        self._positions: dict[str, int] = {}
        """Slot -> up to where its subscriber has confirmed."""
        self._slots: dict[str, bool] = {}
        """Those that there are -> whether it still has the WAL that it needs."""
        self._written = (0, 0.0)
        """Where the primary is, and when it was asked."""
        self._written_bytes_per_s = 0.0

    async def look(self) -> None:
        connection = await self._session.take()
        try:
            began_s = asyncio.get_running_loop().time()
            await connection.execute(_BEAT, (self._instance, self._new_beat(began_s)))
            told = await (await connection.execute(_POSITIONS)).fetchall()
        except BaseException:
            with suppress(Exception):
                await connection.close()
            raise
        await self._session.give_back(connection)
        self._slots = {name: status != "lost" for name, _, status in told if name}
        self._take_positions({name: at for name, at, _ in told}, began_s)

    def _new_beat(self, now_s: float) -> datetime:
        """No other is the same."""
        last = next(reversed(self._beats), _NEVER)
        beat = max(datetime.now(UTC), last + _TICK)
        self._beats[beat] = now_s
        if len(self._beats) > _BEATS_MOST:
            del self._beats[next(iter(self._beats))]
        return beat

    def _take_positions(self, positions: dict[str | None, int | None], at_s: float) -> None:
        written = positions.pop(None, None) or 0
        before, before_s = self._written
        if before_s and at_s > before_s:
            self._written_bytes_per_s = max(written - before, 0) / (at_s - before_s)
        self._written = (written, at_s)
        self._positions = {name: at for name, at in positions.items() if name and at is not None}

    def age_s(self, beat: datetime, now_s: float) -> float | None:
        """How long ago at most a shadow that has this beat had everything; None: not known.

        One of before this process began is older than its first one; by how much, the clock tells."""
        if beat in self._beats:
            return max(now_s - self._beats[beat], 0.0)
        if not self._beats:
            return None
        return max(now_s - next(iter(self._beats.values())), (datetime.now(UTC) - beat).total_seconds())

    def lost(self, slot: str, since_s: float) -> str:
        """Why its subscriber can never go on, in words; empty: nothing is known that says so.

        :param since_s: by then it was there."""
        if slot not in self._slots:
            return _SLOT_GONE if self._written[1] > since_s else ""
        return "" if self._slots[slot] else _SLOT_LOST

    def lag_bytes(self, slot: str | None) -> tuple[int | None, float, float]:
        """What its subscriber lacks, the rate that it grows by if it stops, and when that was read."""
        written, at_s = self._written
        at = self._positions.get(slot or "")
        return (None if at is None else max(written - at, 0)), self._written_bytes_per_s, at_s

    async def close(self) -> None:
        await self._session.close()


class PostgresReplica:
    def __init__(self, target: model.LagTarget, primary: PostgresPrimary) -> None:
        self._target, self._primary = target, primary
        self._lag = partial(model.Lag, target.shadow, target.service)
        self._session = _Session((target.address, target.port), target.sync.variables)
        self._slot: tuple[str, float] | None = None
        """Its subscription's, and when that was first read."""
        self._beat: datetime | None = None
        self._errors: int | None = None
        self._is_failing = False
        """It failed, and nothing has come since."""

    async def read(self) -> model.Lag:
        connection = await self._session.take()
        try:
            lag = await self._read(connection)
        except BaseException:
            with suppress(Exception):
                await connection.close()
            raise
        await self._session.give_back(connection)
        return lag

    async def _read(self, connection: _Connection) -> model.Lag:
        now_s = asyncio.get_running_loop().time()
        row = await (await connection.execute(_COPIES)).fetchone()
        done, tables, slot, has_beats, is_enabled, runs = row or (0, 0, None, False, None, None)
        if not slot:
            return self._lag(now_s, copied=False, reason="there is no subscription yet")
        beat = None
        if has_beats:
            beat = await (await connection.execute(_SEEN, (self._target.instance,))).fetchone()
        await self._look_for_errors(connection, beat[0] if beat else None)
        lost, stopped = self._lost(slot), self._stopped(is_enabled=is_enabled, runs=runs)
        if done < tables or not tables or beat is None:
            why = "it has no row of penumbra.heartbeat"
            if done < tables or not tables:
                why = f"{done} of {tables} tables are copied"
            why = ": ".join(part for part in (why, lost or stopped) if part)
            return self._lag(now_s, copied=False, reason=why, is_lost=bool(lost))
        lag_s = self._primary.age_s(beat[0], now_s)
        lag_bytes, rate, bytes_s = self._primary.lag_bytes(slot)
        if self._target.sync.max_lag_bytes is not None and bytes_s:
            now_s = min(now_s, bytes_s)
        return self._lag(now_s, lag_s, lag_bytes, rate, reason=lost or stopped, is_lost=bool(lost))

    async def _look_for_errors(self, connection: _Connection, beat: datetime | None) -> None:
        if beat != self._beat:
            self._beat, self._is_failing = beat, False
        if connection.info.server_version < _COUNTS_ERRORS:
            return
        row = await (await connection.execute(_ERRORS)).fetchone()
        errors, before = (row[0] or 0) if row else 0, self._errors
        self._errors = errors
        self._is_failing |= before is not None and errors > before

    def _lost(self, slot: str) -> str:
        if self._slot is None or self._slot[0] != slot:
            self._slot = (slot, asyncio.get_running_loop().time())
        return self._primary.lost(*self._slot)

    def _stopped(self, *, is_enabled: bool, runs: bool) -> str:
        """Why nothing comes at present, in words; empty: it may."""
        if not is_enabled:
            return _DISABLED
        if self._is_failing:
            return _FAILING
        return "" if runs else _NOT_RUNNING

    async def close(self) -> None:
        await self._session.close()
