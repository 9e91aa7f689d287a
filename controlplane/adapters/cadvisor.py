# SPDX-License-Identifier: Apache-2.0
"""What a container, or a host, uses, as cAdvisor tells it.

Source: https://github.com/google/cadvisor/blob/master/docs/storage/prometheus.md. A container is found by its
``name`` label, a shadow's by ``container_label_penumbra_*``; the host is the group ``id="/"``. The working
set is memory without the page cache that nobody used lately.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import NamedTuple

import aiohttp

from controlplane import model
from controlplane.adapters import node_exporter

_CPU = "container_cpu_usage_seconds_total"
_QUOTA, _PERIOD = "container_spec_cpu_quota", "container_spec_cpu_period"
_MEMORY, _LIMIT = "container_memory_working_set_bytes", "container_spec_memory_limit_bytes"
_CPUS, _MACHINE = "machine_cpu_cores", "machine_memory_bytes"
_OF_MACHINE = (_CPUS, _MACHINE)
_WANTED = (_CPU, _QUOTA, _PERIOD, _MEMORY, _LIMIT, *_OF_MACHINE)
_ALL = "total"
"""Of CPUs, where they are not told one by one, too."""
KEPT_MOST = 16 << 20
_UNLIMITED_BYTES = 1 << 62
"""From here on a limit is version 1's word for none."""


class Told(NamedTuple):
    at_s: float
    group: str
    """Its id: another one was made anew."""
    cpu_s: float
    values: Mapping[str, float]


class Cadvisor:
    """One container, or its host."""

    def __init__(self, source: model.UsageSource, session: aiohttp.ClientSession) -> None:
        self._url, self._good_s, self._session = source.at, source.good_s, session
        self._selector = source.selector
        self._before: Told | None = None

    async def read(self, member: str) -> model.Usage:
        """Raises ValueError for what makes no sense, aiohttp's errors and OSError for what isn't reached."""
        async with self._session.get(self._url, allow_redirects=False) as response:
            if response.status != 200:
                raise ValueError(f"{self._url} answered {response.status}")
            at_s = asyncio.get_running_loop().time()
            starts = tuple(name.encode() for name in _WANTED)
            text = await node_exporter.wanted(response.content, starts, KEPT_MOST)
        now = told(text, self._selector, at_s)
        before, self._before = self._before, now
        return usage(before, now, member, self._good_s)


def labels_of(selector: str) -> dict[str, str]:
    """Labels of its series; empty selector: of the host's."""
    if not selector:
        return {"id": "/"}
    if "=" not in selector:
        return {"name": selector}
    pairs = (pair.partition("=") for pair in selector.split(","))
    return {f"container_label_{key.replace('.', '_')}": value for key, _, value in pairs}


def told(text: str, selector: str, at_s: float) -> Told:
    """Raises ValueError where nothing is told of it, or of more than one."""
    asked = labels_of(selector)
    marks = [f'{key}="{value}"' for key, value in asked.items()]
    values: dict[str, float] = {}
    cpus: dict[str, float] = {}
    groups: set[str] = set()
    for line in text.splitlines():
        of_machine = line.startswith(_OF_MACHINE)
        if not of_machine and not all(mark in line for mark in marks):
            continue  # to parse a line takes twenty times as long
        for name, labels, value in node_exporter.samples(line):
            if of_machine:
                values[name] = value
            elif all(labels.get(key) == one for key, one in asked.items()):
                groups.add(labels.get("id", ""))
                if name == _CPU:
                    cpus[labels.get("cpu", _ALL)] = value
                else:
                    values[name] = value
    if not cpus:
        raise ValueError(f"tells nothing of {', '.join(marks)}")
    if len(groups) != 1:
        raise ValueError(f"tells of {len(groups)} containers with {', '.join(marks)}")
    return Told(at_s, groups.pop(), cpus.get(_ALL, sum(cpus.values())), values)


def usage(before: Told | None, now: Told, member: str, good_s: float) -> model.Usage:
    """CPU time is of the time between two scrapes; a scrape that was long ago is as none."""
    cpus, memory_bytes = _cpus(now.values), _limit(now.values)
    cpu = None
    is_same = before is not None and before.group == now.group and now.cpu_s >= before.cpu_s
    if before is not None and is_same and 0.0 < now.at_s - before.at_s <= good_s and cpus:
        cpu = min((now.cpu_s - before.cpu_s) / (now.at_s - before.at_s) / cpus, 1.0)
    used = now.values.get(_MEMORY)
    memory = min(used / memory_bytes, 1.0) if used is not None and memory_bytes else None
    return model.Usage(
        member, now.at_s, cpu, memory, good_s=good_s, of_cpus=cpus, of_memory_bytes=memory_bytes
    )


def _cpus(values: Mapping[str, float]) -> float | None:
    """That it may keep busy. None: not told."""
    quota, period = values.get(_QUOTA, 0.0), values.get(_PERIOD, 0.0)
    most = values.get(_CPUS)
    if quota > 0 and period > 0:
        return min(quota / period, most) if most else quota / period
    return most


def _limit(values: Mapping[str, float]) -> float | None:
    limit = values.get(_LIMIT, 0.0)
    return limit if 0 < limit < _UNLIMITED_BYTES else values.get(_MACHINE)
