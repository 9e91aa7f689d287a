# SPDX-License-Identifier: Apache-2.0
"""Reads what members use, in a thread with an event loop of its own, as probes are.

Each place is read on its own beat, phases spread over the interval; members that name the same place share a
reading. What it means for a member is not decided here (``controlplane/usage.py``).
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

import aiohttp

from controlplane import model
from controlplane.adapters import no_answer
from controlplane.adapters.agent_check import AgentCheck
from controlplane.adapters.cadvisor import Cadvisor
from controlplane.adapters.cgroup import Cgroup
from controlplane.adapters.container_engine import Container, Engine, EngineHost
from controlplane.adapters.node_exporter import Lines, NodeExporter
from controlplane.model import UsageKind

READINGS_MOST = 100_000
FIRST_WITHIN_S = 1.0
"""Each place is read for the first time so soon: an agent's word is not waited for longer than need be."""
AT_ONCE = 256
"""Places that are read at a time: each takes a file descriptor until its timeout."""


class _Reader(Protocol):
    async def read(self, member: str) -> model.Usage: ...


class BackgroundLoadSource:
    """``ports.LoadSource``."""

    def __init__(self) -> None:
        self._usages: deque[model.Usage] = deque(maxlen=READINGS_MOST)
        self._troubles: dict[str, str] = {}
        self._asked: Mapping[str, model.UsageSource] = {}
        self._members: dict[model.UsageSource, tuple[str, ...]] = {}
        self._reading: dict[model.UsageSource, asyncio.Task[None]] = {}
        self._sessions: dict[str, aiohttp.ClientSession] = {}
        """By the path of the socket that they are connected to; empty: by address and port."""
        self._lines = Lines()
        self._gate = asyncio.Semaphore(AT_ONCE)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="usage", daemon=True)
        self._thread.start()

    def watch(self, targets: Mapping[str, model.UsageSource]) -> None:
        if targets != self._asked:
            self._asked = dict(targets)
            self._loop.call_soon_threadsafe(self._watch, self._asked)

    def usages(self) -> Sequence[model.Usage]:
        found = []
        while self._usages:
            found.append(self._usages.popleft())
        return found

    def troubles(self) -> Mapping[str, str]:
        """Of a copy, made at once: the thread goes on."""
        return {name: why for name, why in self._troubles.copy().items() if name in self._asked}

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _watch(self, targets: Mapping[str, model.UsageSource]) -> None:
        members: dict[model.UsageSource, tuple[str, ...]] = {}
        for member, source in targets.items():
            members[source] = (*members.get(source, ()), member)
        self._members = members
        for name in self._troubles.keys() - targets.keys():
            del self._troubles[name]
        for source in self._reading.keys() - members.keys():
            self._reading.pop(source).cancel()
        new = [source for source in members if source not in self._reading]
        for at, source in enumerate(new):
            self._reading[source] = self._loop.create_task(self._keep_reading(source, at / len(new)))

    async def _keep_reading(self, source: model.UsageSource, phase: float) -> None:
        reader: _Reader | None = None
        due = self._loop.time() + phase * source.interval_s
        first = due - phase * max(source.interval_s - FIRST_WITHIN_S, 0.0)
        await asyncio.sleep(first - self._loop.time())
        while True:
            async with self._gate:
                try:
                    reader = reader or self._reader(source)
                except ValueError as error:  # say, a host's engine is only reached through ssh
                    self._troubles |= dict.fromkeys(self._members[source], str(error))
                else:
                    await self._read(source, reader)
            due = max(due + source.interval_s, self._loop.time())
            await asyncio.sleep(due - self._loop.time())

    async def _read(self, source: model.UsageSource, reader: _Reader) -> None:
        members = self._members[source]
        try:
            async with asyncio.timeout(source.timeout_s):
                usage = await reader.read(members[0])
        except TimeoutError:
            self._troubles |= dict.fromkeys(members, f"no answer within {source.timeout_s:g} s")
        except Exception as error:  # whatever went wrong, there is no reading
            self._troubles |= dict.fromkeys(members, no_answer.why(error))
        else:
            for member in members:
                self._troubles.pop(member, None)
                self._usages.append(replace(usage, member=member))

    def _reader(self, source: model.UsageSource) -> _Reader:
        if source.kind is UsageKind.AGENT_CHECK:
            return AgentCheck(source)
        if source.kind is UsageKind.CGROUP:
            return Cgroup(source)
        if source.kind is UsageKind.DOCKER:
            path = source.at.removeprefix("unix://") if source.at.startswith("unix://") else ""
            engine = Engine(source.at, self._session(path))
            return Container(source, engine) if source.selector else EngineHost(source, engine)
        if source.kind is UsageKind.CADVISOR:
            return Cadvisor(source, self._session())
        return NodeExporter(source, self._session(), self._lines)

    def _session(self, path: str = "") -> aiohttp.ClientSession:
        if path not in self._sessions:
            to_path = aiohttp.UnixConnector(path, force_close=True, limit=0) if path else None
            self._sessions[path] = aiohttp.ClientSession(
                connector=to_path or aiohttp.TCPConnector(force_close=True, limit=0),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": "penumbra", "Accept-Encoding": "identity"},
                auto_decompress=False,
            )
        return self._sessions[path]

    async def _end(self) -> None:
        tasks = list(self._reading.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for session in self._sessions.values():
            await session.close()
