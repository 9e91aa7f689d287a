# SPDX-License-Identifier: Apache-2.0
"""What a control group of this host uses of what it may use.

Source: https://docs.kernel.org/admin-guide/cgroup-v2.html: cpu.stat, cpu.max, cpuset.cpus.effective,
memory.current, memory.max, memory.stat; of version 1, where each controller has a tree of its own,
https://docs.kernel.org/admin-guide/cgroup-v1/: cpuacct.usage, cpu.cfs_quota_us, cpu.cfs_period_us,
cpuset.effective_cpus, memory.usage_in_bytes, memory.limit_in_bytes, memory.stat. A limit that a group above
it has is not looked at.
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
_ROOT = Path("/sys/fs/cgroup")
_UNLIMITED_BYTES = 1 << 62
"""From here on a limit is version 1's word for none."""


class _Spent(NamedTuple):
    at_s: float
    usage_us: int


class Cgroup:
    """One group, of version 2, or of version 1 if there is none of its name."""

    def __init__(self, source: model.UsageSource, root: Path = _ROOT) -> None:
        self._folder, self._root = Path(source.at), root
        self._good_s = source.good_s
        self._spent: _Spent | None = None

    async def read(self, member: str) -> model.Usage:
        """Raises OSError where there is no such group, ValueError where its files hold something else."""
        at_s = asyncio.get_running_loop().time()
        group = self._group()
        before, self._spent = self._spent, _Spent(at_s, group.usage_us())
        cpus, most = group.cpus(), group.memory_most()
        used = group.memory_used()
        return model.Usage(
            member,
            at_s,
            cpu=self._cpu(before, self._spent, cpus),
            memory=None if used is None else min(used / most, 1.0) if most else 1.0,
            good_s=self._good_s,
            of_cpus=cpus,
            of_memory_bytes=float(most) if used is not None and most else None,
        )

    def _group(self) -> _Version2 | _Version1:
        if (self._folder / "cpu.stat").exists() or not self._folder.is_relative_to(self._root):
            return _Version2(self._folder)
        name = self._folder.relative_to(self._root)
        is_first = (self._root / "cpuacct" / name).is_dir()
        return _Version1(self._root, name) if is_first else _Version2(self._folder)

    def _cpu(self, before: _Spent | None, now: _Spent, cpus: float) -> float | None:
        if before is None or not 0.0 < now.at_s - before.at_s <= self._good_s:
            return None
        spent_us = now.usage_us - before.usage_us
        if spent_us < 0:  # a group of the same name was made anew
            return None
        return min(spent_us / 1e6 / (now.at_s - before.at_s) / cpus, 1.0)


class _Version2:
    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def usage_us(self) -> int:
        return _table(_text(self._folder / "cpu.stat"))["usage_usec"]

    def cpus(self) -> float:
        """That it may keep busy."""
        most = _granted(_optional(self._folder / "cpuset.cpus.effective"))
        quota = _optional(self._folder / "cpu.max")
        if quota is None or quota.split()[0] == _UNLIMITED:
            return most
        quota_us, period_us = map(int, quota.split())
        return min(most, quota_us / period_us)

    def memory_used(self) -> int | None:
        """Bytes. Page cache that nobody used lately is given back when it is needed: it counts as free."""
        current = _optional(self._folder / "memory.current")
        if current is None:
            return None  # the root, or the controller is not enabled
        idle = _table(_optional(self._folder / "memory.stat") or "").get("inactive_file", 0)
        return max(int(current) - idle, 0)

    def memory_most(self) -> int:
        limit = _optional(self._folder / "memory.max") or _UNLIMITED
        return _total() if limit == _UNLIMITED else int(limit)


class _Version1:
    def __init__(self, root: Path, name: Path) -> None:
        self._of = {one: root / one / name for one in ("cpuacct", "cpu", "cpuset", "memory")}

    def usage_us(self) -> int:
        return int(_text(self._of["cpuacct"] / "cpuacct.usage")) // 1000

    def cpus(self) -> float:
        most = _granted(_optional(self._of["cpuset"] / "cpuset.effective_cpus"))
        quota_us = int(_optional(self._of["cpu"] / "cpu.cfs_quota_us") or -1)
        period_us = int(_optional(self._of["cpu"] / "cpu.cfs_period_us") or 0)
        return min(most, quota_us / period_us) if quota_us > 0 and period_us > 0 else most

    def memory_used(self) -> int | None:
        used = _optional(self._of["memory"] / "memory.usage_in_bytes")
        if used is None:
            return None
        stat = _table(_optional(self._of["memory"] / "memory.stat") or "")
        return max(int(used) - stat.get("total_inactive_file", 0), 0)

    def memory_most(self) -> int:
        limit = int(_optional(self._of["memory"] / "memory.limit_in_bytes") or _UNLIMITED_BYTES)
        return _total() if limit >= _UNLIMITED_BYTES else limit


def _granted(cpus: str | None) -> float:
    return float((cpus and _counted(cpus)) or os.cpu_count() or 1)


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
