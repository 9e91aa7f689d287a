# SPDX-License-Identifier: Apache-2.0
"""A process of its own that checks members' health: in a thread, the checks and a tick slow each other down.

``python -m controlplane.adapters.probe_process FD``: that socket brings what ``probes.py`` wants, and takes
the answers. It ends when the other end is closed, however that came.
"""

from __future__ import annotations

import resource
import select
import sys
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from controlplane.adapters.clock import MachineClock
from controlplane.adapters.tcp_probes import Answer, Target, TcpProbes
from controlplane.model import ProbeKind

if TYPE_CHECKING:
    from controlplane.adapters.http_probes import HttpProbes

BATCH_S = 0.05
"""Answers that flip nobody wait so long for others."""
ALIVE_S = 1.0
"""Something is sent so often, whether there are answers or not."""


class _Answers:
    """What is to be sent; used by several threads."""

    def __init__(self, clock: MachineClock, connection: Connection) -> None:
        self._clock, self._connection = clock, connection
        self._lock = threading.Lock()
        self._answers: list[Answer] = []
        self._unable: dict[str, str] = {}
        self._sent_s = clock.now_s()

    def add(self, answer: Answer, flips: bool) -> None:
        with self._lock:
            self._answers.append(answer)
        if flips:
            self.send(flips=True)

    def unable(self, member: str, why: str) -> None:
        with self._lock:
            self._unable[member] = why

    def send(self, *, flips: bool = False) -> None:
        """If it is time to."""
        with self._lock:
            since_s = self._clock.now_s() - self._sent_s
            is_due = since_s >= (BATCH_S if self._answers or self._unable else ALIVE_S)
            if flips or is_due:
                self._connection.send((flips, self._answers, self._unable))
                self._answers, self._unable = [], {}
                self._sent_s += since_s


class _Checks:
    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        clock = MachineClock()
        self.answers = _Answers(clock, connection)
        self.tcp = TcpProbes(clock.now_s, self.answers.add, self.answers.unable)
        self._http: HttpProbes | None = None
        self._targets: dict[str, Target] = {}

    def obey(self) -> None:
        match self._connection.recv():
            case ("all", targets):
                self._targets = dict(targets)
            case ("watch", changed, gone):
                self._targets |= changed
                for member in gone:
                    self._targets.pop(member, None)
            case ("check", members):
                self._check(members)
                return
        by_tcp = {m: one for m, one in self._targets.items() if one[2].kind is ProbeKind.TCP}
        self.tcp.watch(by_tcp)
        by_http = {m: one for m, one in self._targets.items() if m not in by_tcp}
        if by_http and self._http is None:
            # Here, for it takes longer to import than all the rest, and most need no HTTP.
            from controlplane.adapters.http_probes import HttpProbes

            self._http = HttpProbes(self.answers.add, self.answers.unable)
        if self._http is not None:
            self._http.watch(by_http)

    def _check(self, members: list[str]) -> None:
        for member in members:
            target = self._targets.get(member)
            if target is not None and target[2].kind is ProbeKind.TCP:
                self.tcp.check(member)
            elif target is not None and self._http is not None:
                self._http.check(member)


def main(fd: int) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    connection = Connection(fd)
    checks = _Checks(connection)
    waits = select.epoll()
    waits.register(fd, select.EPOLLIN)
    waits.register(checks.tcp, select.EPOLLIN)
    with suppress(EOFError, OSError):  # the other end is closed
        while True:
            within_s = checks.tcp.turn()
            checks.answers.send()
            if any(ready == fd for ready, _ in waits.poll(within_s)):
                checks.obey()


if __name__ == "__main__":
    main(int(sys.argv[1]))
