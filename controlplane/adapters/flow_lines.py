# SPDX-License-Identifier: Apache-2.0
"""Flows as JSON lines, a million in well under a second.

A line is made of pieces that stand in tables: a client's octets or groups, its port, the name of its
service and so on. Each piece is padded with zero bytes to whole 64-bit words, so that numpy puts thousands
of lines together at once, side by side in a matrix; then the zero bytes are left out.
"""

from __future__ import annotations

import json
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from controlplane.adapters import flow_table, layout, steering
from controlplane.adapters.flow_table import Listed
from controlplane.adapters.maps import Maps

_THREADS = 2
"""Their work is numpy's; the reader's thread reads the cache and writes the lines out meanwhile."""
Words = npt.NDArray[np.uint64]

_V4_PREFIX = 0xFFFF
"""Of a mapped address: all its bits above the last 32."""
_GROUPS = 8
_VALUES = 1 << 16
_NO_COLON, _NOTHING, _GAP = _VALUES, 2 * _VALUES, 2 * _VALUES + 1
"""Where in the table of groups they stand without a colon before them; then what a gap is made of."""


def json_lines(maps: Maps, flows: Iterable[Listed]) -> Iterator[npt.NDArray[np.uint8]]:
    """Bytes of whole lines, some thousands at a time: objects as ``json.dumps`` writes them, with the keys
    client, client_port, service, endpoint, state, idle_s. Threads write some ahead of the reader."""
    lines = _Lines(maps)
    threads = min(_THREADS, len(os.sched_getaffinity(0)))
    ahead: deque[Future[npt.NDArray[np.uint8]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for some in flows:
            ahead.append(pool.submit(lines.written, some, lines.idle_times(some)))
            if len(ahead) > 2 * threads:
                yield ahead.popleft().result()
        for one in ahead:
            yield one.result()


class _Lines:
    """The tables of the pieces."""

    def __init__(self, maps: Maps) -> None:
        services = (steering.service_name(maps, index) for index in range(maps.sizes.services))
        endpoints = (steering.endpoint_name(maps, index) for index in range(maps.sizes.endpoints))
        self._opening, self._after_address = _padded(['{"client": "']), _padded(['", "client_port": '])
        self._addresses, self._ports = _Addresses(), _decimals()
        self._services = _padded(f', "service": {json.dumps(name)}, "endpoint": ' for name in services)
        self._endpoints = _padded(f'{json.dumps(name)}, "state": ' for name in endpoints)
        self._states = _padded(f'"{state}", "idle_s": ' for state in flow_table.STATES)
        self._idle_times = _padded([])

    def idle_times(self, flows: Listed) -> Words:
        """A table that is long enough for these; a line ends with them."""
        most = int(flows.idle_ticks.max(initial=0))
        if most >= len(self._idle_times):
            self._idle_times = _padded(
                f"{json.dumps(round(ticks * layout.TICK_S, 3))}}}\n" for ticks in range(2 * most + 1)
            )
        return self._idle_times

    def written(self, flows: Listed, idle_times: Words) -> npt.NDArray[np.uint8]:
        each = np.zeros(flows.states.size, np.intp)
        pieces = (
            self._opening.take(each, axis=0),
            self._addresses.written(flows.clients),
            self._after_address.take(each, axis=0),
            self._ports.take(flows.client_ports, axis=0),
            self._services.take(flows.services, axis=0),
            self._endpoints.take(flows.endpoints, axis=0),
            self._states.take(flows.states, axis=0),
            idle_times.take(flows.idle_ticks, axis=0),
        )
        padded = np.concatenate(pieces, axis=1).view(np.uint8).reshape(-1)
        text: npt.NDArray[np.uint8] = padded[padded != 0]
        return text


def _padded(texts: Iterable[str]) -> Words:
    """(n, words): each text in as many words as the longest one takes."""
    encoded = np.array([text.encode("ascii") for text in texts], np.bytes_)  # json.dumps escapes the rest
    words = -(-encoded.dtype.itemsize // 8)
    return encoded.astype(f"S{8 * words}").view("<u8").reshape(len(encoded), words)


def _decimals() -> Words:
    """(65 536, 1): each 16-bit number."""
    numbers = np.arange(_VALUES)[:, None]
    powers = 10 ** np.arange(4, -1, -1)
    text = np.zeros((_VALUES, 8), np.uint8)
    text[:, :5] = numbers // powers % 10 + ord("0")
    text[:, :4][numbers < powers[:4]] = 0
    return text.view("<u8")


def _hexadecimals() -> npt.NDArray[np.uint8]:
    """(65 536, 8): each group after a colon, without leading zeros."""
    numbers = np.arange(_VALUES)[:, None]
    shifts = np.array([12, 8, 4, 0])
    text = np.zeros((_VALUES, 8), np.uint8)
    text[:, 0] = ord(":")
    text[:, 1:5] = np.frombuffer(b"0123456789abcdef", np.uint8)[numbers >> shifts & 0xF]
    text[:, 1:4][numbers >> shifts[:3] == 0] = 0
    return text


class _Addresses:
    """As ``ipaddress`` writes them: IPv4's in two words, IPv6's (RFC 5952) in a word for each group."""

    def __init__(self) -> None:
        octets = [f"{octet}.".encode().ljust(4, b"\0") for octet in range(256)]
        octets += [f"{octet}".encode().ljust(4, b"\0") for octet in range(256)]
        self._octets = np.frombuffer(b"".join(octets), "<u4")
        with_colon = _hexadecimals()
        without = with_colon.copy()
        without[:, 0] = 0
        gap = np.frombuffer(bytes(8) + b"::".ljust(8, b"\0"), np.uint8).reshape(2, 8)
        self._groups = np.concatenate([with_colon, without, gap]).view("<u8").reshape(-1)
        self._shape = np.array([_shape(zeros) for zeros in range(1 << _GROUPS)], np.int32)

    def written(self, clients: Words) -> Words:
        """(n, words): two words if all are IPv4's, else eight.

        :param clients: (n, 2), the halves of mapped addresses as numbers.
        """
        v4 = (clients[:, 0] == 0) & (clients[:, 1] >> np.uint64(32) == _V4_PREFIX)
        if v4.all():
            return self._v4(clients[:, 1])
        text = self._v6(clients)
        text[v4, :2], text[v4, 2:] = self._v4(clients[v4, 1]), 0
        return text

    def _v4(self, low: Words) -> Words:
        octets = low.astype(">u4").view(np.uint8).reshape(-1, 4) + np.array([0, 0, 0, 256], np.intp)
        return self._octets.take(octets).view("<u8")

    def _v6(self, clients: Words) -> Words:
        groups = clients.astype(">u8").view(">u2").astype(np.int32)
        zeros = np.packbits(groups == 0, axis=1, bitorder="little")[:, 0]
        return self._groups.take(groups + self._shape.take(zeros, axis=0))


def _shape(zeros: int) -> list[int]:
    """What to add to each group to find it in the table as it is written, if those are zero whose bits are
    set: the first of the longest runs of two or more becomes a gap (RFC 5952 section 4.2)."""
    start = length = 0
    for first in range(_GROUPS):
        run = 0
        while first + run < _GROUPS and zeros >> first + run & 1:
            run += 1
        if run > length:
            start, length = first, run
    shape = [0] * _GROUPS
    shape[0] = _NO_COLON
    if length >= 2:
        shape[start : start + length] = [_GAP] + [_NOTHING] * (length - 1)
        if start + length < _GROUPS:
            shape[start + length] = _NO_COLON
    return shape
