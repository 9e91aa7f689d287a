# SPDX-License-Identifier: Apache-2.0
"""Health checks by TCP connect: thousands a second by one core, which asyncio's streams can't do.

A connection is closed by RST as soon as it is there (SO_LINGER 0): so no port of ours waits for anything.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import struct
from collections import deque
from collections.abc import Callable, Mapping
from heapq import heappop, heappush

from controlplane.adapters.probe_beat import Beat, quick_s
from controlplane.model import Probe

Target = tuple[str, int, Probe]
Answer = tuple[str, bool, float, float, str]
"""Member, whether it is well, when its check ended, how long that took, and why it is not well."""

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)
_BIND_ADDRESS_NO_PORT = 24
"""linux/in.h: the port is chosen when it is known who is connected to."""
_LEAST_WAIT_S = 0.001
_MOST_WAIT_S = 0.05
OURS = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL, errno.EAGAIN, errno.EPERM}
)
"""What keeps us from checking; it says nothing of the member."""


class _Check:
    __slots__ = ("address", "beat", "family", "member", "port", "probe", "seq", "socket", "started_s")

    def __init__(self, member: str, target: Target, beat: Beat) -> None:
        self.member = member
        self.address, self.port, self.probe = target
        self.family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        self.beat = beat
        self.socket: socket.socket | None = None
        self.started_s = 0.0
        self.seq = 0
        """Of its last entry among those that are due: others of its are void."""


class TcpProbes:
    """Runs where it is called. ``answer`` gets each answer, and whether it may flip its member's health;
    ``unable`` a member that could not be checked, and why."""

    def __init__(
        self,
        now_s: Callable[[], float],
        answer: Callable[[Answer, bool], None],
        unable: Callable[[str, str], None],
    ) -> None:
        self._now_s, self._answer, self._unable_to = now_s, answer, unable
        self._epoll = select.epoll()
        self._checks: dict[str, _Check] = {}
        self._due: list[tuple[float, int, _Check]] = []
        self._open: dict[int, _Check] = {}
        self._deadlines: dict[float, deque[tuple[float, socket.socket, _Check]]] = {}
        """By timeout: those of one length end in the order in which they began."""
        self._seq = 0
        self._new = 0

    def fileno(self) -> int:
        """Readable while ``turn`` has something to do before the time is up that it returned."""
        return self._epoll.fileno()

    def watch(self, targets: Mapping[str, Target]) -> None:
        for member in [one for one, check in self._checks.items() if one not in targets]:
            self._forget(member)
        new = []
        for member, target in targets.items():
            known = self._checks.get(member)
            if known is None or (known.address, known.port, known.probe) != target:
                self._forget(member)
                new.append(member)
        self._new += len(new)
        now_s = self._now_s()
        for at, member in enumerate(new):
            target = targets[member]
            phase_s = at / len(new) * quick_s(target[2], self._new)
            self._checks[member] = check = _Check(member, target, Beat(target[2], now_s + phase_s))
            self._push(check)

    def check(self, member: str) -> None:
        check = self._checks.get(member)
        if check is not None and check.beat.ask(self._now_s()) and check.socket is None:
            self._push(check)

    def close(self) -> None:
        for member in list(self._checks):
            self._forget(member)
        self._epoll.close()

    def turn(self) -> float:
        """Takes what has ended and begins what is due. How long until it is to be called again at most."""
        events = self._epoll.poll(0, max(len(self._open), 1))  # all: what is left would be late
        now_s = self._now_s()
        for fd, _ in events:
            check = self._open.get(fd)
            if check is not None and check.socket is not None:
                self._end(check, check.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR), now_s)
        for waiting in self._deadlines.values():
            while waiting and (waiting[0][0] <= now_s or waiting[0][2].socket is not waiting[0][1]):
                _, opened, check = waiting.popleft()
                if check.socket is opened:
                    self._end(check, errno.ETIMEDOUT, now_s)
        due = self._due
        while due and due[0][0] <= now_s:
            _, seq, check = heappop(due)
            if seq == check.seq and check.socket is None:
                self._begin(check, now_s)
        firsts = [waiting[0][0] for waiting in self._deadlines.values() if waiting]
        if due:
            firsts.append(due[0][0])
        until_s = min(firsts, default=now_s + _MOST_WAIT_S) - now_s
        return min(max(until_s, _LEAST_WAIT_S), _MOST_WAIT_S)

    def _push(self, check: _Check) -> None:
        self._seq += 1
        check.seq = self._seq
        heappush(self._due, (check.beat.due_s, self._seq, check))

    def _forget(self, member: str) -> None:
        check = self._checks.pop(member, None)
        if check is not None:
            self._new -= check.beat.is_new
            check.seq = -1
            self._close(check)

    def _close(self, check: _Check) -> None:
        if check.socket is not None:
            self._open.pop(check.socket.fileno(), None)
            check.socket.close()
            check.socket = None

    def _begin(self, check: _Check, now_s: float) -> None:
        probe = check.probe
        check.started_s = now_s
        try:
            opened = socket.socket(
                check.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            )
        except OSError as error:
            self._unable(check, error, now_s)
            return
        check.socket = opened
        try:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            if probe.source:
                opened.setsockopt(socket.IPPROTO_IP, _BIND_ADDRESS_NO_PORT, 1)
                opened.bind((probe.source, 0))
            failed = opened.connect_ex((check.address, check.port))
        except OSError as error:
            self._unable(check, error, now_s)
            return
        if failed in (0, errno.EINPROGRESS):
            fd = opened.fileno()
            self._open[fd] = check
            self._epoll.register(fd, select.EPOLLOUT | select.EPOLLONESHOT)
            waiting = self._deadlines.get(probe.timeout_s)
            if waiting is None:
                waiting = self._deadlines[probe.timeout_s] = deque()
            waiting.append((now_s + probe.timeout_s, opened, check))
        elif failed in OURS:
            self._unable(check, OSError(failed, os.strerror(failed)), now_s)
        else:
            self._end(check, failed, now_s)

    def _end(self, check: _Check, failed: int, now_s: float) -> None:
        self._close(check)
        took_s = now_s - check.started_s
        if not failed:
            reason = ""
        elif failed == errno.ETIMEDOUT:
            reason = f"no answer within {check.probe.timeout_s:g} s"
        else:
            reason = os.strerror(failed)
        was_new = check.beat.is_new
        flips = check.beat.take(not failed, took_s, now_s, self._new)
        self._new -= was_new and not check.beat.is_new
        self._push(check)
        self._answer((check.member, not failed, now_s, took_s, reason), flips)

    def _unable(self, check: _Check, error: OSError, now_s: float) -> None:
        self._close(check)
        check.beat.skip(now_s)
        self._push(check)
        self._unable_to(check.member, cannot(check.probe, error.errno or 0))


def cannot(probe: Probe, number: int) -> str:
    """Why a member could not be checked."""
    if not probe.source:
        return os.strerror(number)
    where = "source: " if number == errno.EADDRNOTAVAIL else "from "
    return f"{where}{probe.source}: {os.strerror(number)}"
