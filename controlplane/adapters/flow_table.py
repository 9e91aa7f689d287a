# SPDX-License-Identifier: Apache-2.0
"""Reads the flow cache: who has how many flows, and which they are. All vectorised, nothing is written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from controlplane.adapters import layout, steering
from controlplane.adapters.maps import Array, Maps
from controlplane.addresses import Address
from controlplane.model import Protocol

STATES = ("opening", "established", "closing", "udp")
_OPENING, _ESTABLISHED, _CLOSING, _UDP = range(len(STATES))
_CLOSING_FLAGS = layout.FLOW_FIN_CLIENT | layout.FLOW_FIN_ENDPOINT | layout.FLOW_RST
_BOTH_FINS = layout.FLOW_FIN_CLIENT | layout.FLOW_FIN_ENDPOINT
_READ_AT_ONCE = 1 << 18
"""Entries; more fall out of the cores' caches between one step and the next."""
_LISTED_AT_ONCE = 1 << 14


@dataclass(frozen=True, slots=True)
class FlowRow:
    client: Address
    client_port: int
    service: str
    endpoint: str
    state: str
    """opening, established, closing; udp."""
    idle_s: float
    """To within a tick of 0.27 s."""


@dataclass(frozen=True, slots=True)
class Listed:
    """Some flows, as arrays."""

    clients: npt.NDArray[np.uint64]
    """(n, 2): the halves of mapped addresses as numbers."""
    client_ports: npt.NDArray[np.intp]
    services: npt.NDArray[np.intp]
    endpoints: npt.NDArray[np.intp]
    states: npt.NDArray[np.intp]
    """Indices into STATES."""
    idle_ticks: npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class _Entries:
    """Entries of the cache, as they were read: once each, for the program writes on."""

    at: npt.NDArray[np.intp]
    """Where they lie in ``Maps.flows``."""
    ids: npt.NDArray[np.uint64]
    lives: npt.NDArray[np.uint64]

    def take(self, some: npt.NDArray[np.intp]) -> _Entries:
        return _Entries(self.at[some], self.ids[some], self.lives[some])

    @property
    def tags(self) -> npt.NDArray[np.uint64]:
        return self.ids >> np.uint64(32)

    @property
    def endpoints(self) -> npt.NDArray[np.intp]:
        return (self.ids & np.uint64(layout.REF_INDEX_MASK)).astype(np.intp)

    @property
    def flags(self) -> npt.NDArray[np.uint8]:
        return (self.lives >> np.uint64(24)).astype(np.uint8)

    def has(self, flags: int) -> npt.NDArray[np.bool_]:
        """Those of which at least one is set."""
        has: npt.NDArray[np.bool_] = self.flags & np.uint8(flags) != 0
        return has

    def idle_ticks(self, now_tick: int) -> npt.NDArray[np.int32]:
        """Below 0: seen after ``now_tick`` was read."""
        last_seen = (self.lives >> np.uint64(32)).astype(np.uint32)
        return (np.uint32(now_tick) - last_seen).astype(np.int32)

    def udp(self, maps: Maps) -> npt.NDArray[np.bool_]:
        udp: npt.NDArray[np.bool_] = maps.endpoints["protocol"][self.endpoints] == Protocol.UDP.value
        return udp


def _entries(maps: Maps, now_tick: int) -> _Entries:
    """Those that name a present endpoint and are within their idle limit."""
    words = maps.flows.view("<u8").reshape(-1, 2)
    parts = [_valid(maps, words, start, now_tick) for start in range(0, len(words), _READ_AT_ONCE)]
    at, ids, lives = zip(*((part.at, part.ids, part.lives) for part in parts), strict=True)
    return _Entries(np.concatenate(at), np.concatenate(ids), np.concatenate(lives))


def _valid(maps: Maps, words: npt.NDArray[np.uint64], start: int, now_tick: int) -> _Entries:
    ids = words[start : start + _READ_AT_ONCE, 0].copy()
    at = np.flatnonzero(ids)
    entries = _Entries(at + start, ids[at], words[start : start + _READ_AT_ONCE, 1][at])
    return _usable(maps, entries, now_tick)


def _usable(maps: Maps, entries: _Entries, now_tick: int) -> _Entries:
    index = entries.endpoints
    index[index >= maps.sizes.endpoints] = 0
    state = maps.endpoints["state"][index]
    generation = state >> np.uint64(32) & np.uint64(layout.REF_GENERATION_MASK)
    valid = (state & np.uint64(layout.ENDPOINT_PRESENT) != 0) & (index != 0)
    valid &= generation == (entries.ids & np.uint64(0xFFFFFFFF)) >> np.uint64(layout.REF_INDEX_BITS)
    entries = entries.take(np.flatnonzero(valid))
    return entries.take(np.flatnonzero(entries.idle_ticks(now_tick) <= _limits(maps, entries)))


def _limits(maps: Maps, entries: _Entries) -> Array:
    """Idle limit of each, in ticks, as the program has it."""
    settings = maps.settings
    established, opening = settings["idle_established_ticks"], settings["idle_opening_ticks"]
    limits = np.where(entries.has(layout.FLOW_ESTABLISHED), established, opening)
    limits = np.where(entries.udp(maps), settings["idle_udp_ticks"], limits)
    return np.where(entries.has(_CLOSING_FLAGS), settings["idle_closing_ticks"], limits)


def active(maps: Maps, now_tick: int, *, established: bool = False) -> npt.NDArray[np.intp]:
    """(endpoints,) flows of each endpoint that are neither idle nor closed.

    :param established: only those whose handshake is done, or that were answered."""
    entries = _entries(maps, now_tick)
    closed = entries.flags & np.uint8(_BOTH_FINS) == np.uint8(_BOTH_FINS)
    closed |= entries.has(layout.FLOW_RST)
    if established:
        closed |= ~entries.has(layout.FLOW_ESTABLISHED)
    return np.bincount(entries.endpoints[~closed], minlength=maps.sizes.endpoints)


def in_flight(maps: Maps, now_tick: int) -> npt.NDArray[np.intp]:
    """(endpoints,) requests of each endpoint that wait for their answer, on flows that are not idle."""
    words = maps.flows.view("<u8").reshape(-1, 2)
    asked = np.uint64(layout.FLOW_REQUEST << 24)
    found = np.zeros(maps.sizes.endpoints, np.intp)
    for start in range(0, len(words), _READ_AT_ONCE):
        at = np.flatnonzero(words[start : start + _READ_AT_ONCE, 1] & asked) + start
        entries = _usable(maps, _Entries(at, words[at, 0], words[at, 1]), now_tick)
        waiting = entries.endpoints[entries.has(layout.FLOW_REQUEST)]
        found += np.bincount(waiting, minlength=maps.sizes.endpoints)
    return found


def listed(maps: Maps, now_tick: int, limit: int) -> Iterator[Listed]:
    """At most ``limit`` flows, most recent first, some thousands at a time. A row whose 5-tuple doesn't
    hash to its tag is left out: it was being written."""
    entries = _entries(maps, now_tick)
    # 16 bits are sorted by radix; who is idle for longer than they say (five hours) comes last as it lies.
    idle = entries.idle_ticks(now_tick).clip(0, 0xFFFF).astype(np.uint16)
    order = np.argsort(idle, kind="stable")
    for start in range(0, order.size, _LISTED_AT_ONCE):
        found = _known(maps, entries.take(order[start : start + _LISTED_AT_ONCE]), now_tick, limit)
        limit -= found.states.size
        yield found
        if limit <= 0:
            return


def _known(maps: Maps, entries: _Entries, now_tick: int, limit: int) -> Listed:
    """At most ``limit`` of them, those that are what their tags say."""
    keys = maps.flow_keys.view("<u8").reshape(-1, 3).take(entries.at, axis=0)
    clients = keys[:, :2].byteswap()
    ports = keys[:, 2].astype(np.uint16).byteswap().astype(np.uint64)
    service = (keys[:, 2] >> np.uint64(32)).astype(np.intp)
    known = service < maps.sizes.services
    service[~known] = 0
    hashes = flow_hash(
        maps.settings["hash_key"],
        clients,
        _words(maps.services["vip"])[service],
        ports,
        maps.services["port"].astype(np.uint64)[service],
        maps.services["protocol"].astype(np.uint64)[service],
    )
    right = np.flatnonzero(known & (tag(hashes) == entries.tags))[:limit]
    entries = entries.take(right)
    states = np.where(entries.has(layout.FLOW_ESTABLISHED), _ESTABLISHED, _OPENING)
    states[entries.has(_CLOSING_FLAGS)] = _CLOSING
    states[entries.udp(maps)] = _UDP
    return Listed(
        clients[right],
        ports[right].astype(np.intp),
        service[right],
        entries.endpoints,
        states,
        np.maximum(entries.idle_ticks(now_tick), 0).astype(np.intp),
    )


def rows(maps: Maps, now_tick: int, limit: int) -> list[FlowRow]:
    """At most ``limit`` flows, most recent first."""
    return [
        FlowRow(
            client=layout.unmapped((high << 64 | low).to_bytes(16, "big")),
            client_port=port,
            service=steering.service_name(maps, service),
            endpoint=steering.endpoint_name(maps, endpoint),
            state=STATES[state],
            idle_s=round(idle * layout.TICK_S, 3),
        )
        for some in listed(maps, now_tick, limit)
        for (high, low), port, service, endpoint, state, idle in zip(
            some.clients.tolist(),
            some.client_ports.tolist(),
            some.services.tolist(),
            some.endpoints.tolist(),
            some.states.tolist(),
            some.idle_ticks.tolist(),
            strict=True,
        )
    ]


def _words(addresses: Array) -> npt.NDArray[np.uint64]:
    """(n, 16) bytes of addresses as (n, 2) numbers."""
    return np.ascontiguousarray(addresses).view(">u8").astype(np.uint64)


def flow_hash(
    key: Array, client: Array, vip: Array, client_port: Array, port: Array, protocol: Array
) -> npt.NDArray[np.uint64]:
    """``hash_v4`` or ``hash_v6`` of bpf/hash.h.

    :param client: (n, 2) of uint64, the halves of mapped addresses as numbers; so is ``vip``.
    :param client_port: (n,) of uint64, as are ``port`` and ``protocol``.
    """
    one, bits = np.uint64(1), [np.uint64(n) for n in range(64)]
    key = np.asarray(key, np.uint64)
    low = np.uint64(0xFFFFFFFF)
    first = ((client[:, 1] << bits[32] | vip[:, 1] & low) ^ key[0]) * (key[1] | one)
    wide = (client[:, 0] ^ key[0]) * (key[1] | one)
    wide ^= wide >> bits[32]
    wide = (wide ^ client[:, 1]) * (key[0] | one)
    wide ^= wide >> bits[29]
    wide = (wide ^ (vip[:, 0] * np.uint64(0xD6E8FEB86659FD93) + vip[:, 1])) * (key[1] | one)
    mapped = (client[:, 0] == 0) & (client[:, 1] >> bits[32] == 0xFFFF)
    hashes = np.where(mapped, first, wide)
    hashes ^= hashes >> bits[32]
    hashes = (hashes ^ (protocol << bits[32] | port << bits[16] | client_port)) * (key[0] | one)
    hashes ^= hashes >> bits[29]
    hashes *= np.uint64(0x9E3779B97F4A7C15)
    hashes ^= hashes >> bits[32]
    return np.asarray(hashes, np.uint64)


def tag(hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """``hash_tag`` of bpf/hash.h: never 0."""
    tags: npt.NDArray[np.uint64] = np.maximum(hashes >> np.uint64(32), np.uint64(1))
    return tags
