# SPDX-License-Identifier: Apache-2.0
"""An endpoint of known capacity: ``concurrency`` requests at a time, ``service_time`` each, FIFO before it.
With a ``spread`` the times are log-normal, and ``service_time`` is their mean.

Capacity = concurrency / service time, in requests per second. A late timer must not make it smaller:
a queued request starts when the one before it was due to end, not when the timer got its turn.
Only the standard library is imported, so that it starts at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import signal
import socket
from collections import deque

HEAD_MOST = 16_384
AGENT_WINDOW_S = 5.0
BACKLOG = 4096


class Desk:
    """Slots and the queue before them. Requests are served in order of arrival."""

    def __init__(
        self, service_time_s: float, concurrency: int, queue_most: int | None, spread: float = 0.0
    ) -> None:
        self.service_time_s = service_time_s
        self.spread = spread
        self.draws = random.Random(1)
        self.concurrency = concurrency
        self.queue_most = queue_most
        self.queue: deque[tuple[Connection, float]] = deque()
        self.in_service = 0
        self.served = 0
        self.refused = 0
        self.abandoned = 0
        """Requests whose client left before their turn: they take no service time."""
        self.connections: set[Connection] = set()
        self.connections_total = 0
        self.loop = asyncio.get_running_loop()
        self.began_s = self._settled_s = self.loop.time()
        self.busy_s = 0.0
        """Of all slots together, until then."""
        self._marks = deque([(self.began_s, 0.0)])

    def _settle(self) -> float:
        """Before ``in_service`` changes."""
        now = self.loop.time()
        self.busy_s += self.in_service * (now - self._settled_s)
        self._settled_s = now
        return now

    def metrics(self) -> str:
        """Slots as node_exporter tells of CPUs."""
        idle_s = self.concurrency * (self._settle() - self.began_s) - self.busy_s
        modes = {"user": self.busy_s, "idle": idle_s}
        lines = (f'node_cpu_seconds_total{{cpu="0",mode="{mode}"}} {s}\n' for mode, s in modes.items())
        return "# TYPE node_cpu_seconds_total counter\n" + "".join(lines)

    def free_percent(self) -> int:
        """Of the slots, lately. Never 0: HAProxy takes that for no more flows at all."""
        now = self._settle()
        self._marks.append((now, self.busy_s))
        while len(self._marks) > 2 and self._marks[1][0] <= now - AGENT_WINDOW_S:
            self._marks.popleft()
        since_s, busy_s = self._marks[0]
        used = (self.busy_s - busy_s) / max(self.concurrency * (now - since_s), 1e-9)
        return max(1, round(100 * (1 - used)))

    def admit(self, connection: Connection) -> bool:
        """False: the queue is full."""
        now = self._settle()
        if self.in_service < self.concurrency:
            self.in_service += 1
            self._start(connection, now)
            return True
        if self.queue_most is not None and len(self.queue) >= self.queue_most:
            self.refused += 1
            return False
        self.queue.append((connection, now))
        return True

    def _start(self, connection: Connection, at_s: float) -> None:
        due_s = at_s + self._draw_s()
        self.loop.call_at(due_s, self._finish, connection, due_s)

    def _draw_s(self) -> float:
        if not self.spread:
            return self.service_time_s
        middle = math.log(self.service_time_s) - self.spread**2 / 2
        return self.draws.lognormvariate(middle, self.spread)

    def _finish(self, connection: Connection, due_s: float) -> None:
        self.served += 1
        while self.queue:
            following, arrived_s = self.queue.popleft()
            if following.gone:
                self.abandoned += 1
                continue
            self._start(following, max(due_s, arrived_s))
            break
        else:
            self._settle()
            self.in_service -= 1
        connection.answer(200)
        connection.resume()

    def stats(self) -> dict[str, float]:
        return {
            "served": self.served,
            "queued": len(self.queue),
            "in_service": self.in_service,
            "connections": len(self.connections),
            "connections_total": self.connections_total,
            "refused": self.refused,
            "abandoned": self.abandoned,
            "capacity": self.concurrency / self.service_time_s,
        }


class Connection(asyncio.Protocol):
    """HTTP/1.1, one request at a time; later ones wait in the buffer (RFC 9112)."""

    def __init__(self, desk: Desk, name: str) -> None:
        self.desk = desk
        self.name = name
        self.buffer = b""
        self.body_left = 0
        self.busy = False
        self.closing = False
        self.gone = False
        self.head_only = False
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("a stream is needed")
        self.transport = transport
        self.desk.connections.add(self)
        self.desk.connections_total += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        self.desk.connections.discard(self)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        if not self.busy:
            self._next()

    def _next(self) -> None:
        while not self.busy and not self.gone:
            if self.body_left:
                skipped = min(self.body_left, len(self.buffer))
                self.buffer, self.body_left = self.buffer[skipped:], self.body_left - skipped
                if self.body_left:
                    return
            head, found, rest = self.buffer.partition(b"\r\n\r\n")
            if not found:
                if len(self.buffer) > HEAD_MOST:
                    self._refuse(431)
                return
            self.buffer = rest
            self._request(head)

    def _request(self, head: bytes) -> None:
        line, _, fields = head.partition(b"\r\n")
        parts = line.split(b" ")
        if len(parts) != 3 or not parts[2].startswith(b"HTTP/1."):
            return self._refuse(400)
        fields = b"\r\n" + fields.lower()
        if b"\r\ntransfer-encoding:" in fields:
            return self._refuse(501)
        _, _, length = fields.partition(b"\r\ncontent-length:")
        if length:
            text = length.partition(b"\r\n")[0].strip()
            if not text.isdigit():
                return self._refuse(400)
            self.body_left = int(text)
        _, _, connection = fields.partition(b"\r\nconnection:")
        option = connection.partition(b"\r\n")[0]
        if b"close" in option or (parts[2] == b"HTTP/1.0" and b"keep-alive" not in option):
            self.closing = True
        self.busy = True
        self.head_only = parts[0] == b"HEAD"
        return self._route(parts[1].partition(b"?")[0])

    def _route(self, path: bytes) -> None:
        if path == b"/healthz":
            self.answer(200)
        elif path == b"/stats":
            self.answer(200, json.dumps(self.desk.stats()) + "\n", "application/json")
        elif path == b"/metrics":
            self.answer(200, self.desk.metrics(), "text/plain; version=0.0.4")
        elif path != b"/":
            self.answer(404, "there are /, /healthz, /stats and /metrics\n")
        elif not self.desk.admit(self):
            self.answer(503, "the queue is full\n")

    def _refuse(self, status: int) -> None:
        self.busy = self.closing = True
        self.answer(status)

    def answer(self, status: int, body: str | None = None, kind: str = "text/plain") -> None:
        self.busy = False
        if self.gone:
            return
        payload = (f"{self.name}\n" if body is None else body).encode()
        head = (
            f"HTTP/1.1 {status} {REASONS[status]}\r\nX-Served-By: {self.name}\r\n"
            f"Content-Type: {kind}\r\nContent-Length: {len(payload)}\r\n"
            f"Connection: {'close' if self.closing else 'keep-alive'}\r\n\r\n"
        )
        self.transport.write(head.encode() + (b"" if self.head_only else payload))
        if self.closing:
            self.transport.close()
            self.gone = True

    def resume(self) -> None:
        """Takes the next request of this connection, if it is already there."""
        if self.buffer:
            self._next()

    def finish(self) -> None:
        """Ends with the request in flight, or now if there is none."""
        self.closing = True
        if not self.busy:
            self.transport.close()


class Agent(asyncio.Protocol):
    """HAProxy's agent-check: a line, and that is all."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if not isinstance(transport, asyncio.Transport):
            raise TypeError("a stream is needed")
        transport.write(f"{self.desk.free_percent()}%\n".encode())
        transport.close()


REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    431: "Request Header Fields Too Large",
    501: "Not Implemented",
    503: "Service Unavailable",
}


async def serve(arguments: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    await asyncio.sleep(arguments.start_up)
    desk = Desk(arguments.service_time, arguments.concurrency, arguments.queue, arguments.spread)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    server = await loop.create_server(
        lambda: Connection(desk, arguments.name), arguments.address, arguments.port, backlog=BACKLOG
    )
    servers = [server]
    if arguments.agent_port is not None:
        agent = await loop.create_server(lambda: Agent(desk), arguments.address, arguments.agent_port)
        servers.append(agent)
    await stop.wait()
    for one in servers:
        one.close()
    for connection in tuple(desk.connections):
        connection.finish()
    while desk.connections:
        await asyncio.sleep(0.01)


def positive(text: str) -> float:
    value = float(text)
    if not value > 0:
        raise argparse.ArgumentTypeError(f"{text}: a number above 0 is allowed")
    return value


def count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text}: a whole number of at least 1 is allowed")
    return value


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m controlplane.lab.server", description=__doc__)
    made.add_argument("--name", default=socket.gethostname(), help="said in X-Served-By and in the body")
    made.add_argument("--address", default="0.0.0.0", help="to listen at")  # noqa: S104 - a lab host's
    made.add_argument("--port", type=int, default=8080)
    made.add_argument("--service-time", type=positive, default=0.1, metavar="SECONDS")
    made.add_argument("--spread", type=positive, default=0.0, help="of their logarithms; default: all alike")
    made.add_argument("--concurrency", type=count, default=8)
    made.add_argument("--start-up", type=float, default=0.0, metavar="SECONDS", help="until it listens")
    made.add_argument("--queue", type=int, metavar="MOST", help="requests that may wait; more get 503")
    made.add_argument(
        "--agent-port", type=int, metavar="PORT", help="says there which share is free, e.g. 75%%"
    )
    return made


if __name__ == "__main__":
    asyncio.run(serve(parser().parse_args()))
