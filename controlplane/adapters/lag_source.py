# SPDX-License-Identifier: Apache-2.0
"""Reads how far the data of shadows is behind, in a thread with an event loop of its own, as probes are.

Each shadow is read on its own beat, and each primary once for all shadows that copy it; each reading has its
own connection and time limit, so that who hangs delays nobody else. What a reading means is not decided here
(``controlplane/lag.py``).
"""

from __future__ import annotations

import asyncio
import json
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Protocol

from controlplane import model
from controlplane.adapters import no_answer
from controlplane.adapters.lag_command import Command
from controlplane.adapters.lag_postgres import PostgresPrimary, PostgresReplica
from controlplane.adapters.lag_redis import RedisPrimary, RedisReplica
from controlplane.addresses import with_port
from controlplane.model import SyncDriver

READINGS_MOST = 100_000
LIMIT_S = 2.0
"""Of one reading, connecting included."""
BACK_OFF_MOST_S = 5.0
CLOSE_S = 1.0


class _Read(Protocol):
    async def close(self) -> None: ...


class _Primary(_Read, Protocol):
    async def look(self) -> None: ...


class _Replica(_Read, Protocol):
    async def read(self) -> model.Lag: ...


@dataclass(frozen=True, slots=True)
class _How:
    """How a primary is asked: by the login of the first shadow that copies it, and often enough for all."""

    target: model.LagTarget = field(compare=False)
    place: tuple[object, ...]
    variables: str
    interval_s: float


class BackgroundLagSource:
    """``ports.LagSource``."""

    def __init__(self) -> None:
        self._lags: deque[model.Lag] = deque(maxlen=READINGS_MOST)
        self._troubles: dict[str, str] = {}
        self._asked: Mapping[str, model.LagTarget] = {}
        self._replicas: dict[str, tuple[tuple[model.LagTarget, _How], asyncio.Task[None]]] = {}
        self._primaries: dict[_How, tuple[_Primary, asyncio.Task[None]]] = {}
        self._abandoned: set[asyncio.Task[None]] = set()
        """Readings past their limit, that have not noticed yet."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="lag", daemon=True)
        self._thread.start()

    def watch(self, targets: Mapping[str, model.LagTarget]) -> None:
        if targets != self._asked:
            self._asked = dict(targets)
            self._loop.call_soon_threadsafe(self._watch, self._asked)

    def lags(self) -> Sequence[model.Lag]:
        found = []
        while self._lags:
            found.append(self._lags.popleft())
        return found

    def troubles(self) -> Mapping[str, str]:
        """Of a copy, made at once: the thread goes on."""
        return self._troubles.copy()

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        self._watch({})
        others = [task for task in asyncio.all_tasks(self._loop) if task is not asyncio.current_task()]
        if others:
            await asyncio.wait(others, timeout=CLOSE_S)

    def _watch(self, targets: Mapping[str, model.LagTarget]) -> None:
        asked = _asked(targets.values())
        wanted = {name: (target, asked[_place(target)]) for name, target in targets.items()}
        for name in [n for n, (of, _) in self._replicas.items() if wanted.get(n) != of]:
            self._replicas.pop(name)[1].cancel()
        for how in self._primaries.keys() - set(asked.values()):
            self._primaries.pop(how)[1].cancel()
        named = targets.keys() | {with_port(*target.primary) for target in targets.values()}
        self._troubles = {name: why for name, why in self._troubles.items() if name in named}
        for name, (target, how) in wanted.items():
            if name not in self._replicas:
                replica = _replica(target, self._primary(how))
                task = self._repeat(name, target.sync.interval_s, replica, self._reading(replica))
                self._replicas[name] = ((target, how), task)

    def _primary(self, how: _How) -> _Primary | None:
        """Of all shadows that copy it; None: it need not be asked."""
        if how not in self._primaries:
            made = _new_primary(how.target)
            if made is None:
                return None
            name = with_port(*how.target.primary)
            self._primaries[how] = (made, self._repeat(name, how.interval_s, made, made.look))
        return self._primaries[how][0]

    def _reading(self, replica: _Replica) -> Callable[[], Awaitable[None]]:
        async def read() -> None:
            self._lags.append(await replica.read())

        return read

    def _repeat(
        self, name: str, interval_s: float, what: _Read, step: Callable[[], Awaitable[None]]
    ) -> asyncio.Task[None]:
        return self._loop.create_task(self._keep(name, interval_s, what, step))

    async def _keep(
        self, name: str, interval_s: float, what: _Read, step: Callable[[], Awaitable[None]]
    ) -> None:
        pause_s, due_s = interval_s, self._loop.time()
        try:
            while True:
                try:
                    await self._within_limit(step)
                except Exception as error:  # whatever went wrong, there is no reading
                    self._troubles[name] = no_answer.why(error)
                    pause_s = min(2.0 * pause_s, max(BACK_OFF_MOST_S, interval_s))
                else:
                    self._troubles.pop(name, None)
                    pause_s = interval_s
                due_s = max(due_s + pause_s, self._loop.time())
                await asyncio.sleep(due_s - self._loop.time())
        finally:
            with suppress(Exception):
                await what.close()

    async def _within_limit(self, step: Callable[[], Awaitable[None]]) -> None:
        """Past it the step is left to itself: a driver may take its time to notice that it was cancelled."""
        task = asyncio.ensure_future(_awaited(step))
        try:
            await asyncio.wait({task}, timeout=LIMIT_S)
        finally:
            if not task.done():
                task.cancel()
                self._abandoned.add(task)
                task.add_done_callback(self._forget)
        if not task.done():
            raise TimeoutError(f"no answer within {LIMIT_S:g} s")
        task.result()

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._abandoned.discard(task)
        if not task.cancelled():
            task.exception()  # nobody waits for it


async def _awaited(step: Callable[[], Awaitable[None]]) -> None:
    await step()


def _place(target: model.LagTarget) -> tuple[object, ...]:
    """What the readers of one primary share: its row of beats, say, which has one writer."""
    driver, variables = target.sync.driver, target.sync.variables
    return driver, target.instance, target.primary, str(variables.get("database", ""))


def _asked(targets: Iterable[model.LagTarget]) -> dict[tuple[object, ...], _How]:
    found: dict[tuple[object, ...], _How] = {}
    for target in targets:
        place, sync = _place(target), target.sync
        variables = json.dumps(dict(sync.variables), sort_keys=True)
        first = found.get(place) or _How(target, place, variables, sync.interval_s)
        found[place] = replace(first, interval_s=min(first.interval_s, sync.interval_s))
    return found


def _new_primary(target: model.LagTarget) -> _Primary | None:
    if target.sync.driver is SyncDriver.POSTGRES:
        return PostgresPrimary(target)
    return RedisPrimary(target) if target.sync.driver is SyncDriver.REDIS else None


def _replica(target: model.LagTarget, primary: _Primary | None) -> _Replica:
    if isinstance(primary, PostgresPrimary):
        return PostgresReplica(target, primary)
    if isinstance(primary, RedisPrimary):
        return RedisReplica(target, primary)
    return Command(target)
