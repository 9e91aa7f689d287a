# SPDX-License-Identifier: Apache-2.0
"""What a host uses, as Prometheus' node_exporter tells it.

Sources: https://prometheus.io/docs/instrumenting/exposition_formats/ and the collectors cpu, meminfo, netdev
and netclass of https://github.com/prometheus/node_exporter. Busy is what neither idles nor waits for a disk.
The network's share is that of the device nearest to its speed, in the direction that has more of it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from controlplane import model

ANSWER_MOST = 16 << 20
KEPT_MOST = 1 << 20
"""Bytes of lines that are looked at: those of 500 CPUs are a quarter of it."""
LINE_MOST = 65_536
KNOWN_MOST = 100_000

_CPU = "node_cpu_seconds_total"
_AVAILABLE, _TOTAL = "node_memory_MemAvailable_bytes", "node_memory_MemTotal_bytes"
_RECEIVED, _SENT = "node_network_receive_bytes_total", "node_network_transmit_bytes_total"
_SPEED = "node_network_speed_bytes"
_OF_DEVICES = frozenset({_RECEIVED, _SENT, _SPEED})
_WANTED = tuple(name.encode() for name in (_CPU, _AVAILABLE, _TOTAL, *_OF_DEVICES))
_IDLE = frozenset({"idle", "iowait"})
_VIRTUAL = ("lo", "veth", "docker", "br-", "virbr")
"""Devices whose speed is nobody's."""


class Series(NamedTuple):
    metric: str
    of: str
    """CPU or device; empty: the host."""
    mode: str = ""


class Scrape(NamedTuple):
    at_s: float
    values: Mapping[Series, float]


class Lines:
    """Reads lines of the text format. What stands before a value is the same at each scrape, and on many
    hosts: it is parsed once, for that takes twenty times as long as to know it again."""

    def __init__(self) -> None:
        self._known: dict[str, Series | None] = {}
        """None: nobody's device."""

    def scrape(self, text: str, at_s: float) -> Scrape:
        """Raises ValueError for what is no exposition of a host, KeyError for a label that is not there."""
        values: dict[Series, float] = {}
        for line in text.splitlines():
            before, _, value = line.rpartition(" ")
            if before in self._known:
                series, number = self._known[before], float(value)
            else:
                series, number = self._parse(line, before)
            if series is not None:
                values[series] = number
        if not values:
            raise ValueError(f"answered no {_CPU} and nothing else that is wanted: that is no node_exporter")
        return Scrape(at_s, values)

    def _parse(self, line: str, before: str) -> tuple[Series | None, float]:
        for family in text_string_to_metric_families(f"{line}\n"):
            for name, labels, value, timestamp, *_ in family.samples:
                series = _series(name, labels)
                if timestamp is None and len(self._known) < KNOWN_MOST:
                    self._known[before] = series
                return series, value
        return None, 0.0


def _series(name: str, labels: Mapping[str, str]) -> Series | None:
    if name == _CPU:
        return Series(name, labels["cpu"], labels["mode"])
    if name in (_AVAILABLE, _TOTAL):
        return Series(name, "")
    if name in _OF_DEVICES and not labels["device"].startswith(_VIRTUAL):
        return Series(name, labels["device"])
    return None


class NodeExporter:
    """One host."""

    def __init__(self, source: model.UsageSource, session: aiohttp.ClientSession, lines: Lines) -> None:
        """:param session: of the event loop that reads it.
        :param lines: of all hosts."""
        self._url = source.at
        self._good_s = source.good_s
        self._session = session
        self._lines = lines
        self._before: Scrape | None = None

    async def read(self, member: str) -> model.Usage:
        """Raises ValueError for what makes no sense, aiohttp's errors and OSError for what isn't reached."""
        async with self._session.get(self._url, allow_redirects=False) as response:
            if response.status != 200:
                raise ValueError(f"{self._url} answered {response.status}")
            at_s = asyncio.get_running_loop().time()
            text = await wanted(response.content, _WANTED, KEPT_MOST)
        now = self._lines.scrape(text, at_s)
        before, self._before = self._before, now
        return usage(before, now, member, self._good_s)


def samples(line: str) -> Iterator[tuple[str, Mapping[str, str], float]]:
    """A line of the text format. Raises ValueError for what is none."""
    for family in text_string_to_metric_families(f"{line}\n"):
        yield from ((name, labels, value) for name, labels, value, *_ in family.samples)


async def wanted(content: aiohttp.StreamReader, starts: tuple[bytes, ...], kept_most: int) -> str:
    """The lines that are: a host tells a hundred times as many.

    :param starts: with one of them they begin."""
    kept: list[bytes] = []
    read = size = 0
    rest = b""
    async for chunk in content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        found = [line for line in lines if line.startswith(starts)]
        kept += found
        read, size = read + len(chunk), size + sum(map(len, found))
        if read > ANSWER_MOST or size > kept_most or len(rest) > LINE_MOST:
            raise ValueError(f"answered more than a host has to tell, {read} bytes and more")
    if rest.startswith(starts):
        kept.append(rest)
    return b"\n".join(kept).decode()


def usage(before: Scrape | None, now: Scrape, member: str, good_s: float) -> model.Usage:
    """Rates are of the time between two scrapes; a scrape that was long ago is as none."""
    cpu = network = None
    if before is not None and 0.0 < now.at_s - before.at_s <= good_s:
        cpu, network = _cpu(before, now), _network(before, now)
    cpus = len({series.of for series in now.values if series.metric == _CPU})
    total = now.values.get(Series(_TOTAL, ""))
    return model.Usage(
        member,
        now.at_s,
        cpu,
        _memory(now),
        network,
        good_s=good_s,
        of_cpus=float(cpus) if cpus else None,
        of_memory_bytes=total if total is not None and total > 0 else None,
    )


def _cpu(before: Scrape, now: Scrape) -> float | None:
    """None: a counter fell, for the host was started anew."""
    total = idle = 0.0
    for series, value in now.values.items():
        if series.metric != _CPU or series not in before.values:
            continue
        spent = value - before.values[series]
        if spent < 0:
            return None
        total += spent
        idle += spent if series.mode in _IDLE else 0.0
    return _share(total - idle, total) if total > 0 else None


def _memory(now: Scrape) -> float | None:
    available, total = now.values.get(Series(_AVAILABLE, "")), now.values.get(Series(_TOTAL, ""))
    if available is None or total is None or not total > 0:
        return None
    return _share(total - available, total)


def _network(before: Scrape, now: Scrape) -> float | None:
    """None: no device tells its speed. A device whose counter fell was made anew, and is left out once."""
    over_s = now.at_s - before.at_s
    shares = [
        (value - before.values[series]) / over_s / speed
        for series, value in now.values.items()
        if series.metric in (_RECEIVED, _SENT)
        and (speed := now.values.get(Series(_SPEED, series.of), 0.0)) > 0
        and value >= before.values.get(series, math.inf)
    ]
    return _share(max(shares), 1.0) if shares else None


def _share(part: float, whole: float) -> float | None:
    """None: somebody told NaN."""
    share = part / whole
    return min(max(share, 0.0), 1.0) if share == share else None
