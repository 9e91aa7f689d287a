# SPDX-License-Identifier: Apache-2.0
"""Lag of Redis replication, by INFO replication on both sides and nothing written.

How far the primary's stream was is remembered with the time; what a shadow has taken of it tells by which
moment it has everything.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from controlplane import model
from controlplane.addresses import Address

_SAMPLES_MOST = 100_000
_LIMIT_S = 2.0


def _client(place: tuple[Address, int], variables: Mapping[str, object]) -> Redis:
    address, port = place
    password = None
    if "password_file" in variables:
        password = Path(str(variables["password_file"])).read_text(encoding="utf-8").strip("\n")
    return Redis(
        host=str(address),
        port=port,
        username=str(variables["user"]) if "user" in variables else None,
        password=password,
        socket_timeout=_LIMIT_S,
        socket_connect_timeout=_LIMIT_S,
        retry=Retry(NoBackoff(), 0),
        client_name="penumbra",
    )


class _Session:
    """One client; a new one, with the password as it is now, after a failure."""

    def __init__(self, place: tuple[Address, int], variables: Mapping[str, object]) -> None:
        self._place, self._variables = place, variables
        self._kept: Redis | None = None

    async def info(self) -> Mapping[str, Any]:
        client, self._kept = self._kept or _client(self._place, self._variables), None
        try:
            told: Mapping[str, Any] = await client.info("replication")
        except BaseException:
            await client.aclose()
            raise
        self._kept = client
        return told

    async def close(self) -> None:
        if self._kept is not None:
            await self._kept.aclose()


class RedisPrimary:
    def __init__(self, target: model.LagTarget) -> None:
        self._session = _Session(target.primary, target.sync.variables)
        self._samples: deque[tuple[float, int]] = deque(maxlen=_SAMPLES_MOST)
        """Times, and where its stream was then, or further."""
        self.stream = ""
        """Its replication id."""

    async def look(self) -> None:
        began_s = asyncio.get_running_loop().time()
        told = await self._session.info()
        stream, offset = str(told["master_replid"]), int(told["master_repl_offset"])
        if stream != self.stream or (self._samples and offset < self._samples[-1][1]):
            self._samples.clear()
            self.stream = stream
        self._samples.append((began_s, offset))

    def reached_s(self, offset: int) -> float | None:
        """Since when everything is in what ends at this offset; None: not known."""
        return next((at_s for at_s, sample in reversed(self._samples) if sample <= offset), None)

    def lag_bytes(self, offset: int) -> tuple[int | None, float, float]:
        """What who is there lacks, the rate that it grows by if it stops, and when that was read."""
        if not self._samples:
            return None, 0.0, 0.0
        at_s, newest = self._samples[-1]
        before_s, before = self._samples[-2] if len(self._samples) > 1 else (at_s - 1.0, newest)
        return max(newest - offset, 0), (newest - before) / max(at_s - before_s, 0.001), at_s

    async def close(self) -> None:
        await self._session.close()


class RedisReplica:
    def __init__(self, target: model.LagTarget, primary: RedisPrimary) -> None:
        self._target, self._primary = target, primary
        self._lag = partial(model.Lag, target.shadow, target.service)
        self._session = _Session((target.address, target.port), target.sync.variables)
        self._reached_s: float | None = None
        """By then it had everything, when it was linked last."""

    async def read(self) -> model.Lag:
        now_s = asyncio.get_running_loop().time()
        told = await self._session.info()
        why = self._is_no_copy(told)
        if why:
            self._reached_s = None
            return self._lag(now_s, copied=False, reason=why)
        offset = int(told["slave_repl_offset"])
        if told["master_link_status"] == "up":
            self._reached_s = self._primary.reached_s(offset) or self._reached_s
        lag_s = None if self._reached_s is None else max(now_s - self._reached_s, 0.0)
        lag_bytes, rate, bytes_s = self._primary.lag_bytes(offset)
        if self._target.sync.max_lag_bytes is not None and bytes_s:
            now_s = min(now_s, bytes_s)
        return self._lag(now_s, lag_s, lag_bytes, rate)

    def _is_no_copy(self, told: Mapping[str, Any]) -> str:
        """Why what it has is not the primary's data, older or not; empty: it is."""
        if told.get("role") != "slave":
            return "it is no replica"
        if int(told.get("master_sync_in_progress", 0)):
            return "it copies the primary's data"
        if not self._primary.stream:
            return "the primary was not read yet"
        if told["master_link_status"] != "up":
            return "" if self._reached_s is not None else "it is not linked to its primary yet"
        return "" if told.get("master_replid") == self._primary.stream else "it copies another primary"

    async def close(self) -> None:
        await self._session.close()
