# SPDX-License-Identifier: Apache-2.0
"""Processes of a lab: who is who (pid and start time), who lives in which namespace, how they end."""

from __future__ import annotations

import os
import select
import signal
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

NETNS = Path("/run/netns")
PAUSE_S = 0.02


@dataclass(frozen=True, slots=True)
class Identity:
    """A process that can't be mistaken for a later one with the same pid."""

    pid: int
    start_ticks: int
    """Clock ticks after boot, field 22 of /proc/PID/stat (proc(5))."""

    @property
    def alive(self) -> bool:
        return identify(self.pid) == self


def identify(pid: int) -> Identity | None:
    """None: no such process, or a zombie."""
    try:
        line = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = line.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else Identity(pid, int(fields[19]))


def myself() -> Identity:
    found = identify(os.getpid())
    if found is None:
        raise RuntimeError("/proc/self/stat is not readable: is /proc mounted?")
    return found


def residents(namespaces: Iterable[str]) -> frozenset[Identity]:
    """Processes living in these network namespaces, without this one."""
    homes = set()
    for name in namespaces:
        with suppress(FileNotFoundError):
            status = (NETNS / name).stat()
            homes.add((status.st_dev, status.st_ino))
    # An entry that is (by accident) our own namespace would make everything on this machine a resident.
    own = Path("/proc/self/ns/net").stat()
    homes.discard((own.st_dev, own.st_ino))
    found = set()
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(FileNotFoundError, ProcessLookupError, PermissionError):
            status = Path(entry.path, "ns/net").stat()
            if (status.st_dev, status.st_ino) in homes and (identity := identify(int(entry.name))):
                found.add(identity)
    return frozenset(found)


def end(targets: Collection[Identity], grace_s: float) -> None:
    """SIGTERM, and SIGKILL for those that are left after ``grace_s``; returns when all are gone."""
    _signal(targets, signal.SIGTERM)
    left = _wait(targets, grace_s)
    _signal(left, signal.SIGKILL)
    if stuck := _wait(left, 5.0):
        raise TimeoutError(f"processes {[one.pid for one in stuck]} don't die: they hang in the kernel")


def _signal(targets: Iterable[Identity], number: signal.Signals) -> None:
    for target in targets:
        with suppress(ProcessLookupError):
            descriptor = os.pidfd_open(target.pid)
            try:
                # Checked after the descriptor is held: from here on the pid can't become another's.
                if target.alive:
                    signal.pidfd_send_signal(descriptor, number)
            finally:
                os.close(descriptor)


def _wait(targets: Collection[Identity], timeout_s: float) -> list[Identity]:
    """Those still alive after ``timeout_s`` altogether."""
    left = [one for one in targets if one.alive]
    for _ in range(int(timeout_s / PAUSE_S)):
        if not left:
            break
        select.select((), (), (), PAUSE_S)
        left = [one for one in left if one.alive]
    return left
