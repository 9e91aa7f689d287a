# SPDX-License-Identifier: Apache-2.0
"""What a control group of this host uses of what it may use.

Source: https://docs.kernel.org/admin-guide/cgroup-v2.html: cpu.stat, cpu.max, cpuset.cpus.effective,
memory.current, memory.max, memory.stat. A limit that a group above it has is not looked at.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import NamedTuple

from controlplane import model

_FILE_MOST = 65_536
_MEMINFO = Path("/proc/meminfo")
_UNLIMITED = "max"


class _Spent(NamedTuple):
    at_s: float
    usage_us: int


class Cgroup:
    """One group, version 2."""

    def __init__(self, source: model.UsageSource) -> None:
        self._folder = Path(source.at)
        self._good_s = source.good_s
        self._spent: _Spent | None = None

    async def read(self, member: str) -> model.Usage:
        """Raises OSError where there is no such group, ValueError where its files hold something else."""
        at_s = asyncio.get_running_loop().time()
        stat = _table(_text(self._folder / "cpu.stat"))
        before, self._spent = self._spent, _Spent(at_s, stat["usage_usec"])
        return model.Usage(
            member, at_s, cpu=self._cpu(before, self._spent), memory=self._memory(), good_s=self._good_s
        )

    def _cpu(self, before: _Spent | None, now: _Spent) -> float | None:
        if before is None or not 0.0 < now.at_s - before.at_s <= self._good_s:
            return None
        spent_us = now.usage_us - before.usage_us
        if spent_us < 0:  # a group of the same name was made anew
            return None
        return min(spent_us / 1e6 / (now.at_s - before.at_s) / self._cpus(), 1.0)

    def _cpus(self) -> float:
        """That it may keep busy."""
        granted = _optional(self._folder / "cpuset.cpus.effective")
        most = float((granted and _counted(granted)) or os.cpu_count() or 1)
        quota = _optional(self._folder / "cpu.max")
        if quota is None or quota.split()[0] == _UNLIMITED:
            return most
        quota_us, period_us = map(int, quota.split())
        return min(most, quota_us / period_us)

    def _memory(self) -> float | None:
        """Page cache that nobody used lately is given back when it is needed: it counts as free."""
        current = _optional(self._folder / "memory.current")
        if current is None:
            return None  # the root, or the controller is not enabled
        idle = _table(_optional(self._folder / "memory.stat") or "").get("inactive_file", 0)
        limit = _optional(self._folder / "memory.max") or _UNLIMITED
        most = _total() if limit == _UNLIMITED else int(limit)
        return min(max(int(current) - idle, 0) / most, 1.0) if most else 1.0


def _total() -> int:
    """Bytes of this host."""
    words = _text(_MEMINFO).split()
    return 1024 * int(words[words.index("MemTotal:") + 1])


def _counted(cpus: str) -> int:
    """Of a list such as 0-3,6."""
    ends = (part.partition("-") for part in cpus.split(",") if part)
    return sum(int(last or first) - int(first) + 1 for first, _, last in ends)


def _table(text: str) -> dict[str, int]:
    pairs = (line.split() for line in text.splitlines())
    return {key: int(value) for key, value in pairs}


def _optional(path: Path) -> str | None:
    try:
        return _text(path)
    except FileNotFoundError:
        return None


def _text(path: Path) -> str:
    """Not by ``open``, which would wait for the other end of a pipe."""
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        return os.read(fd, _FILE_MOST).decode("ascii").strip()
    finally:
        os.close(fd)
