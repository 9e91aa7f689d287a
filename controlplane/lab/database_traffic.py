# SPDX-License-Identifier: Apache-2.0
"""Clients of a database: either reads, which follow traces, or writes at a steady rate.

Reads have a connection each and leave when they are due, as requests do in ``generator.py``, evenly spaced:
SIGUSR1 begins the next trace. Writes follow one another, and one counts when the server has acknowledged it.
SIGTERM ends either. A line per read or write, as they come.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
from collections.abc import Coroutine
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import psycopg

from controlplane.lab import trace, traffic
from controlplane.lab.database import DATABASE, READ, READER, WRITE, WRITER

READ_WITHIN_S = 10.0
FLUSH_S = 0.2
RETRY_S = 0.2


@dataclass(frozen=True, slots=True)
class Read:
    """Moments are Unix times of this machine; it is the servers' clock, too."""

    due_s: float
    begun_s: float
    """When its connection was asked for."""
    ended_s: float
    error: str | None = None
    served_by: str | None = None
    """The server's own address."""
    newest: int = 0
    """The newest number that it saw."""
    looked_s: float = 0.0
    """When the server looked it up."""

    @property
    def latency_s(self) -> float:
        return self.ended_s - self.due_s


@dataclass(frozen=True, slots=True)
class Write:
    number: int
    """From 1 on, in the order of writing."""
    acknowledged_s: float
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Stage:
    """From here on the load follows the trace of this number."""

    stage: int
    began_s: float


def of_row(row: dict[str, Any]) -> Read | Write | Stage:
    """A line of the record file."""
    return Stage(**row) if "stage" in row else Write(**row) if "number" in row else Read(**row)


def now_s() -> float:
    return datetime.now(UTC).timestamp()


class Clients:
    """Of one server or service."""

    def __init__(self, target: tuple[str, int], file: TextIO) -> None:
        self._target, self._file = target, file
        self._open: set[asyncio.Task[None]] = set()
        self._ending = asyncio.Event()
        self._next = asyncio.Event()

    async def run(self, work: Coroutine[Any, Any, None]) -> None:
        """Returns when all that was begun has ended."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        loop.add_signal_handler(signal.SIGUSR1, self._next.set)
        flushing = asyncio.create_task(self._flush_often())
        await work
        while self._open:
            await asyncio.wait(self._open)
        flushing.cancel()

    def _end(self) -> None:
        self._ending.set()
        self._next.set()

    def _take(self, what: Read | Write | Stage) -> None:
        self._file.write(json.dumps(asdict(what), separators=(",", ":")) + "\n")

    async def _flush_often(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            self._file.flush()

    # ---- reads ----------------------------------------------------------------------

    async def read(self, courses: list[trace.Trace]) -> None:
        for stage, course in enumerate(courses):
            if not self._ending.is_set():
                await self._follow(stage, course)

    async def _follow(self, stage: int, course: trace.Trace) -> None:
        loop = asyncio.get_running_loop()
        began_s, began_unix_s = loop.time(), now_s()
        self._take(Stage(stage, began_unix_s))
        self._next.clear()
        for due_s in course.arrivals_s(stage, trace.Arrivals.EVEN).tolist():
            if await _set_within(self._next, began_s + due_s - loop.time()):
                return
            task = asyncio.create_task(self._read(began_unix_s + due_s))
            self._open.add(task)
            task.add_done_callback(self._open.discard)
        await _set_within(self._next, began_s + course.duration_s - loop.time())

    async def _read(self, due_s: float) -> None:
        begun_s = now_s()
        try:
            async with asyncio.timeout(READ_WITHIN_S):
                newest, looked_s, server, _ = await self._asked()
        except (psycopg.Error, TimeoutError, OSError) as error:
            self._take(Read(due_s, begun_s, now_s(), str(error).strip() or type(error).__name__))
        else:
            self._take(Read(due_s, begun_s, now_s(), None, server, newest, looked_s))

    async def _asked(self) -> Any:
        connection = await _connected(self._target, READER)
        try:
            return await (await connection.execute(READ)).fetchone()
        finally:
            await connection.close()

    # ---- writes ---------------------------------------------------------------------

    async def write(self, pause_s: float) -> None:
        connection: psycopg.AsyncConnection | None = None
        number = 0
        while not await _set_within(self._ending, pause_s):
            number += 1
            try:
                if connection is None or connection.closed:
                    connection = await _connected(self._target, WRITER)
                await connection.execute(WRITE, (number,))
            except psycopg.Error as error:
                self._take(Write(number, now_s(), str(error).strip()))
                await _set_within(self._ending, RETRY_S)
            else:
                self._take(Write(number, now_s()))
        if connection is not None:
            await connection.close()


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    if seconds <= 0:
        return event.is_set()
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True


async def _connected(place: tuple[str, int], user: str) -> psycopg.AsyncConnection:
    return await psycopg.AsyncConnection.connect(
        host=place[0], port=place[1], user=user, dbname=DATABASE, sslmode="disable", autocommit=True
    )


def main() -> None:
    made = argparse.ArgumentParser(prog="python -m controlplane.lab.database_traffic", description=__doc__)
    made.add_argument("--target", type=traffic.target, required=True, metavar="ADDRESS:PORT")
    which = made.add_mutually_exclusive_group(required=True)
    which.add_argument("--trace", type=Path, action="append", help="reads/s; repeatable")
    which.add_argument("--writes", type=float, metavar="PER_SECOND")
    made.add_argument("--records", type=Path, required=True, metavar="FILE")
    arguments = made.parse_args()

    async def run(file: TextIO) -> None:
        clients = Clients(arguments.target, file)
        if arguments.writes:
            await clients.run(clients.write(1.0 / arguments.writes))
        else:
            await clients.run(clients.read([trace.load(path) for path in arguments.trace]))

    with arguments.records.open("w", encoding="utf-8") as file:
        asyncio.run(run(file))


if __name__ == "__main__":
    main()
