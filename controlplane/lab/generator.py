# SPDX-License-Identifier: Apache-2.0
"""An open-loop HTTP client: requests leave when they are due, whatever became of earlier ones.

Latency counts from the intended time, so a stalled server can't hide the requests that it kept from being
sent ("coordinated omission", G. Tene). Sockets are used directly on asyncio's event loop: a connection per
request through asyncio's transports costs twice the CPU time.
"""

from __future__ import annotations

import asyncio
import errno
import heapq
import itertools
import os
import random
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from controlplane.lab.records import Record

LIFE_LEAST_S, LIFE_MOST_S = 5.0, 30.0
PACE_S = 1.0
"""A persistent connection carries about a request in this time, so their number follows the load."""
SWEEP_S = 0.05
ANSWER_MOST = 1 << 20


@dataclass(slots=True)
class Request:
    intended_s: float
    persistent: bool
    sent_s: float = 0.0
    connect_s: float | None = None
    written_s: float = 0.0
    first_byte_s: float | None = None
    retries: int = 0
    connection: Connection | None = None
    ended: bool = False


@dataclass(frozen=True, slots=True)
class Client:
    """Whom to ask, and how."""

    address: str
    port: int
    path: str = "/"
    persistent_share: float = 0.5
    timeout_s: float = 10.0
    seed: int = 1

    def head(self, persistent: bool) -> bytes:
        host = f"[{self.address}]" if ":" in self.address else self.address
        host += "" if self.port == 80 else f":{self.port}"
        option = "keep-alive" if persistent else "close"
        return f"GET {self.path} HTTP/1.1\r\nHost: {host}\r\nConnection: {option}\r\n\r\n".encode()


class Connection:
    """A TCP connection, with at most one request on it."""

    def __init__(self, generator: Generator, number: int, persistent: bool, ends_s: float) -> None:
        self.generator = generator
        self.number = number
        self.persistent = persistent
        self.ends_s = ends_s
        self.request: Request | None = None
        self.reused = False
        self.closed = False
        self.buffer = b""
        self.began_s = generator.loop.time()
        family = socket.AF_INET6 if ":" in generator.client.address else socket.AF_INET
        self.socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def open(self, request: Request) -> None:
        self.request = request
        code = self.socket.connect_ex((self.generator.client.address, self.generator.client.port))
        if code not in (0, errno.EINPROGRESS):
            self.fail(errno.errorcode.get(code, str(code)))
            return
        self.generator.loop.add_writer(self.socket, self._connected)

    def _connected(self) -> None:
        self.generator.loop.remove_writer(self.socket)
        code = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            self.fail(errno.errorcode.get(code, os.strerror(code)))
            return
        if self.request is not None:
            self.request.connect_s = self.generator.loop.time() - self.began_s
            self.generator.loop.add_reader(self.socket, self._readable)
            self._write()

    def send(self, request: Request) -> None:
        self.request = request
        self.reused = True
        self._write()

    def _write(self) -> None:
        if self.request is not None:
            self.request.written_s = self.generator.loop.time()
        try:
            self.socket.send(self.generator.heads[self.persistent])
        except OSError as error:
            self.fail(errno.errorcode.get(error.errno or 0, "send"))

    def _readable(self) -> None:
        try:
            data = self.socket.recv(65536)
        except BlockingIOError:
            return
        except OSError as error:
            self.fail(errno.errorcode.get(error.errno or 0, "receive"))
            return
        if not data:
            self.fail("closed")
            return
        if self.request is not None and not self.buffer:
            self.request.first_byte_s = self.generator.loop.time() - self.request.written_s
        self.buffer += data
        self._answer()

    def _answer(self) -> None:
        head, found, body = self.buffer.partition(b"\r\n\r\n")
        if not found:
            if len(self.buffer) > ANSWER_MOST:
                self.fail("answer too long")
            return
        fields = dict(line.lower().partition(b": ")[::2] for line in head.split(b"\r\n")[1:])
        try:
            status, length = int(head[9:12]), int(fields[b"content-length"])
        except (ValueError, KeyError):
            self.fail("answer without status and Content-Length")
            return
        if len(body) < length:
            return
        request, self.request, self.buffer = self.request, None, b""
        if request is None:
            self.fail("answer without a request")
            return
        if not self.persistent or fields.get(b"connection") == b"close":
            self.close()
        else:
            self.generator.rest(self)
        name = fields.get(b"x-served-by")
        self.generator.answered(self, request, status, name.decode("ascii", "replace") if name else None)

    def fail(self, reason: str) -> None:
        """The connection is of no use any more, and its request neither, unless it may be sent again."""
        self.close()
        request, self.request = self.request, None
        if request is not None:
            self.generator.broken(self, request, reason)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.generator.loop.remove_reader(self.socket)
            self.generator.loop.remove_writer(self.socket)
            self.socket.close()
            self.generator.live.discard(self)


@dataclass(slots=True)
class Generator:
    """Sends a request at each of ``arrivals_s`` (ascending, from 0) and says what became of it."""

    client: Client
    arrivals_s: Sequence[float]
    done: Callable[[Record], None]
    start_s: float = 0.0
    """On the event loop's clock; set by ``run``."""
    live: set[Connection] = field(default_factory=set)
    opened: int = 0
    loop: asyncio.AbstractEventLoop = field(init=False)
    heads: tuple[bytes, bytes] = field(init=False)
    _idle: list[tuple[float, int, Connection]] = field(default_factory=list)
    """Persistent connections at rest, by when their next request is due."""
    _open: dict[int, Request] = field(default_factory=dict)
    """Requests under way, oldest first."""
    _draws: random.Random = field(init=False)
    _numbers: itertools.count[int] = field(default_factory=itertools.count)
    _next: int = 0
    _stopping: bool = False
    _wake: asyncio.Event = field(init=False)

    async def run(self, start_s: float | None = None) -> None:
        """Returns when every request has ended: at the latest ``timeout_s`` after the last was due."""
        self.loop = asyncio.get_running_loop()
        self.start_s = self.loop.time() if start_s is None else start_s
        self.heads = (self.client.head(False), self.client.head(True))
        self._draws = random.Random(self.client.seed)
        self._wake = asyncio.Event()
        self._arm()
        self._sweep()
        await self._wake.wait()
        for connection in tuple(self.live):
            connection.close()

    def stop(self) -> None:
        """Sends nothing more; what is under way still ends."""
        self._stopping = True

    def _arm(self) -> None:
        if self._next < len(self.arrivals_s):
            self.loop.call_at(self.start_s + float(self.arrivals_s[self._next]), self._due)

    def _due(self) -> None:
        if self._stopping:
            return
        now_s = self.loop.time() - self.start_s
        while self._next < len(self.arrivals_s) and self.arrivals_s[self._next] <= now_s:
            intended_s = float(self.arrivals_s[self._next])
            persistent = self._draws.random() < self.client.persistent_share
            request = Request(intended_s, persistent)
            self._open[self._next] = request
            self._next += 1
            self._dispatch(request)
        self._arm()

    def _dispatch(self, request: Request) -> None:
        now_s = self.loop.time()
        request.sent_s = now_s
        connection = self._rested(now_s) if request.persistent else None
        if connection is not None:
            request.connection = connection
            connection.send(request)
        else:
            self._fresh(request, now_s)

    def _rested(self, now_s: float) -> Connection | None:
        while self._idle and self._idle[0][0] <= now_s:
            connection = heapq.heappop(self._idle)[2]
            if not connection.closed:
                return connection
        return None

    def _fresh(self, request: Request, now_s: float) -> None:
        life_s = self._draws.uniform(LIFE_LEAST_S, LIFE_MOST_S) if request.persistent else 0.0
        connection = Connection(self, next(self._numbers), request.persistent, now_s + life_s)
        self.opened += 1
        self.live.add(connection)
        request.connection = connection
        connection.open(request)

    def rest(self, connection: Connection) -> None:
        """A persistent connection has its answer: it ends now, or waits for its next request."""
        now_s = self.loop.time()
        if now_s >= connection.ends_s or self._stopping:
            connection.close()
        else:
            heapq.heappush(self._idle, (now_s + PACE_S, connection.number, connection))

    def answered(self, connection: Connection, request: Request, status: int, name: str | None) -> None:
        self._end(connection, request, status, None if status < 500 else f"status {status}", name)

    def broken(self, connection: Connection, request: Request, reason: str) -> None:
        if connection.reused and not connection.buffer and not request.retries:
            request.retries = 1
            self._fresh(request, self.loop.time())
        else:
            self._end(connection, request, None, reason, None)

    def _end(
        self,
        connection: Connection,
        request: Request,
        status: int | None,
        error: str | None,
        name: str | None,
    ) -> None:
        request.ended = True
        intended_s = self.start_s + request.intended_s
        self.done(
            Record(
                intended_s=round(request.intended_s, 6),
                latency_s=round(self.loop.time() - intended_s, 6),
                late_s=round(request.sent_s - intended_s, 6),
                connect_s=None if request.connect_s is None else round(request.connect_s, 6),
                first_byte_s=None if request.first_byte_s is None else round(request.first_byte_s, 6),
                status=status,
                error=error,
                served_by=name,
                persistent=request.persistent,
                connection=connection.number,
                retries=request.retries,
            )
        )

    def _sweep(self) -> None:
        """Ends requests past their time and connections past their life; all by one timer."""
        now_s = self.loop.time()
        late_s = now_s - self.start_s - self.client.timeout_s
        for key, request in tuple(self._open.items()):
            if request.ended:
                del self._open[key]
            elif request.intended_s > late_s:
                break
            elif request.connection is not None:
                request.connection.close()
                request.connection.request = None
                self._end(request.connection, request, None, "timeout", None)
        for connection in tuple(self.live):
            if connection.persistent and connection.request is None and now_s >= connection.ends_s:
                connection.close()
        sent = self._stopping or self._next >= len(self.arrivals_s)
        if sent and all(request.ended for request in self._open.values()):
            self._wake.set()
        else:
            self.loop.call_later(SWEEP_S, self._sweep)
