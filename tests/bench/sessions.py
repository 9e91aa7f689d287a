# SPDX-License-Identifier: Apache-2.0
"""TCP sessions of one small request each. ``serve ADDRESS PORT``: answers and closes. ``drive COUNT BURST
TARGET...``: opens, asks, reads to the end and closes, so many at once; prints a ``Driven`` as JSON.
"""

from __future__ import annotations

import gc
import json
import socket
import sys
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

REQUEST = b"GET / HTTP/1.0\r\n\r\n"
ANSWER = b"HTTP/1.0 200 OK\r\nContent-Length: 61\r\n\r\n" + bytes(61)


@dataclass(frozen=True, slots=True)
class Driven:
    sessions: int
    failed: int
    cpu_ns: int
    """Of the process, while it drove."""


def cpu_ns(pid: int | str = "thread-self") -> int:
    """Of one thread (a process's first), what softirqs took meanwhile included (sched-stats.rst)."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0])


def serve(address: str, port: int) -> None:
    listener = socket.create_server((address, port), backlog=4096)
    while True:
        session, _ = listener.accept()
        with session, suppress(OSError):  # a health check asks nothing and is gone
            if session.recv(4096):
                session.sendall(ANSWER)


def drive(count: int, burst: int, targets: list[tuple[str, int]]) -> Driven:
    failed, began_ns = 0, cpu_ns()
    for first in range(0, count, burst):
        opened = []
        for number in range(first, first + burst):
            session = socket.socket()
            session.connect(targets[number % len(targets)])
            opened.append(session)
        for session in opened:
            session.sendall(REQUEST)
        for session in opened:
            failed += _read(session) != ANSWER
            session.close()
    return Driven(first + burst, failed, cpu_ns() - began_ns)


def _read(session: socket.socket) -> bytes:
    answer = b""
    with suppress(OSError):
        while part := session.recv(4096):
            answer += part
    return answer


def main(command: str, *arguments: str) -> None:
    gc.disable()
    if command == "serve":
        serve(arguments[0], int(arguments[1]))
        return
    count, burst, *targets = arguments
    pairs = [target.rpartition(":") for target in targets]
    driven = drive(int(count), int(burst), [(host, int(port)) for host, _, port in pairs])
    print(json.dumps(asdict(driven)))


if __name__ == "__main__":
    main(*sys.argv[1:])
