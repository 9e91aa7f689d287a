# SPDX-License-Identifier: Apache-2.0
"""What containers use, and all of an engine's together, as its API tells; nothing runs beside them.

Source: https://docs.docker.com/reference/api/engine/version/v1.41/ (containers/json, containers/ID/json,
containers/ID/stats with one-shot, info). The memory that counts is what ``docker stats`` shows: without the
page cache that nobody used lately.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import quote

import aiohttp

from controlplane import model, usage_source

ANSWER_MOST = 16 << 20
AT_ONCE = 16
"""Containers of one engine that are asked about at a time."""


class _Spent(NamedTuple):
    at_s: float
    cpu_s: Mapping[str, float]
    """Container's id -> CPU time."""


class Engine:
    """One engine's API."""

    def __init__(self, url: str, session: aiohttp.ClientSession) -> None:
        """:param url: ``unix:///PATH``, whose session is connected to that path, or ``tcp://HOST:PORT``."""
        if not usage_source.is_engine(url):
            raise ValueError(f"{url}: unix:///PATH or tcp://HOST:PORT can be asked")
        is_here = url.startswith("unix://")
        self._url = "http://engine" if is_here else url.replace("tcp://", "http://", 1).rstrip("/")
        self._session = session

    async def get(self, path: str) -> Any:
        """None: there is no such thing. Raises ValueError and aiohttp's errors."""
        async with self._session.get(self._url + path, allow_redirects=False) as response:
            if response.status == 404:
                return None
            if response.status != 200:
                raise ValueError(f"the engine answered {response.status} to {path.partition('?')[0]}")
            data = b""
            async for chunk in response.content.iter_any():
                data += chunk
                if len(data) > ANSWER_MOST:
                    raise ValueError(f"the engine answered more than {ANSWER_MOST} bytes")
            return json.loads(data)

    async def running(self, selector: str = "") -> list[str]:
        """Ids; all of them, or of one name or some labels."""
        labels = selector.split(",") if "=" in selector else []
        filters = {"label": labels} if labels else {"name": [f"^/{selector}$"]} if selector else {}
        found = await self.get(f"/containers/json?filters={quote(json.dumps(filters))}")
        return [str(one["Id"]) for one in found or ()]

    async def stats(self, container: str) -> Any:
        return await self.get(f"/containers/{container}/stats?stream=false&one-shot=true")


class Container:
    """One container, which is found anew when it was made anew."""

    def __init__(self, source: model.UsageSource, engine: Engine) -> None:
        self._selector, self._good_s, self._engine = source.selector, source.good_s, engine
        self._id = ""
        self._quota_cpus: float | None = None
        self._before: _Spent | None = None

    async def read(self, member: str) -> model.Usage:
        """Raises ValueError for what makes no sense, aiohttp's errors and OSError for what isn't reached."""
        stats: Any = await self._engine.stats(self._id) if self._id else None
        if not _is_running(stats):
            await self._find()
            stats = await self._engine.stats(self._id)
        if not _is_running(stats):
            raise ValueError(f"container {self._selector} does not run")
        at_s = asyncio.get_running_loop().time()
        before, self._before = self._before, _Spent(at_s, {self._id: _cpu_s(stats)})
        online = float(stats["cpu_stats"].get("online_cpus") or os.cpu_count() or 1)
        cpus = online if self._quota_cpus is None else min(self._quota_cpus, online)
        limit = float(stats["memory_stats"].get("limit") or 0)
        spent_s = _spent_s(before, self._before, self._good_s)
        return model.Usage(
            member,
            at_s,
            cpu=None if spent_s is None else _share(spent_s, cpus),
            memory=_share(_memory(stats), limit) if limit else None,
            good_s=self._good_s,
            of_cpus=cpus,
            of_memory_bytes=limit or None,
        )

    async def _find(self) -> None:
        found = await self._engine.running(self._selector)
        if len(found) != 1:
            count = "no running container is" if not found else f"{len(found)} running containers are"
            raise ValueError(f"{count} {self._selector}")
        if found[0] != self._id:
            self._id, self._before = found[0], None
            self._quota_cpus = _quota_cpus(await self._engine.get(f"/containers/{self._id}/json"))


class EngineHost:
    """All containers of an engine, against what it says that its host has."""

    def __init__(self, source: model.UsageSource, engine: Engine) -> None:
        self._good_s, self._engine = source.good_s, engine
        self._before: _Spent | None = None

    async def read(self, member: str) -> model.Usage:
        """Raises as ``Container.read`` does."""
        info = await self._engine.get("/info")
        cpus, memory_bytes = float(info["NCPU"]), float(info["MemTotal"])
        gate = asyncio.Semaphore(AT_ONCE)

        async def stats(container: str) -> tuple[str, Any]:
            async with gate:
                return container, await self._engine.stats(container)

        told = await asyncio.gather(*map(stats, await self._engine.running()))
        there = {container: one for container, one in told if _is_running(one)}
        at_s = asyncio.get_running_loop().time()
        spent = _Spent(at_s, {container: _cpu_s(one) for container, one in there.items()})
        before, self._before = self._before, spent
        spent_s = _spent_s(before, spent, self._good_s)
        return model.Usage(
            member,
            at_s,
            cpu=None if spent_s is None else _share(spent_s, cpus),
            memory=_share(sum(map(_memory, there.values())), memory_bytes),
            good_s=self._good_s,
            of_cpus=cpus,
            of_memory_bytes=memory_bytes,
        )


def _is_running(stats: Any) -> bool:
    """One that has just ended has numbers, too, and no memory."""
    return stats is not None and bool(stats.get("memory_stats")) and bool(stats.get("cpu_stats"))


def _cpu_s(stats: Any) -> float:
    return float(stats["cpu_stats"]["cpu_usage"]["total_usage"]) / 1e9


def _memory(stats: Any) -> float:
    memory = stats["memory_stats"]
    told = memory.get("stats") or {}
    idle = told.get("total_inactive_file", told.get("inactive_file", 0))  # cgroup v1, v2
    return max(float(memory["usage"]) - float(idle), 0.0)


def _spent_s(before: _Spent | None, now: _Spent, good_s: float) -> float | None:
    """Per second, of containers that were there before. None: nothing to compare with, or a counter fell."""
    if before is None or not 0.0 < now.at_s - before.at_s <= good_s:
        return None
    spent = [cpu_s - before.cpu_s[name] for name, cpu_s in now.cpu_s.items() if name in before.cpu_s]
    if any(one < 0 for one in spent):
        return None
    return sum(spent) / (now.at_s - before.at_s)


def _quota_cpus(container: Any) -> float | None:
    """CPUs that its limits leave to it; None: it has none."""
    limits = (container or {}).get("HostConfig") or {}
    found = []
    if limits.get("NanoCpus"):
        found.append(limits["NanoCpus"] / 1e9)
    if (limits.get("CpuQuota") or 0) > 0:
        found.append(limits["CpuQuota"] / (limits.get("CpuPeriod") or 100_000))
    if limits.get("CpusetCpus"):
        found.append(float(_counted(limits["CpusetCpus"])))
    return min(found, default=None)


def _counted(cpus: str) -> int:
    """Of a list such as 0-3,6."""
    ends = (part.partition("-") for part in cpus.split(",") if part)
    return sum(int(last or first) - int(first) + 1 for first, _, last in ends)


def _share(part: float, whole: float) -> float:
    return min(max(part / whole, 0.0), 1.0)
