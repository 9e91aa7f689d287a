# SPDX-License-Identifier: Apache-2.0
"""Reads the flow cache: who has how many flows, and which they are. All vectorised, nothing is written."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from controlplane.adapters import layout, steering
from controlplane.adapters.maps import Array, Maps
from controlplane.addresses import Address
from controlplane.model import Protocol

_CLOSING = layout.FLOW_FIN_CLIENT | layout.FLOW_FIN_ENDPOINT | layout.FLOW_RST
_BOTH_FINS = layout.FLOW_FIN_CLIENT | layout.FLOW_FIN_ENDPOINT


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
class _Entries:
    """Entries of the cache that name a present endpoint and are within their idle limit."""

    at: npt.NDArray[np.intp]
    """Where they lie in ``Maps.flows``."""
    tags: npt.NDArray[np.uint64]
    endpoints: npt.NDArray[np.intp]
    flags: npt.NDArray[np.uint64]
    idle_ticks: npt.NDArray[np.int64]
    udp: npt.NDArray[np.bool_]


def _entries(maps: Maps, now_tick: int) -> _Entries:
    ids = maps.flows["id"].copy()  # the program writes on: one reading of each
    at = np.flatnonzero(ids)
    ids, life = ids[at], maps.flows["life"][at]
    refs = ids & np.uint64(0xFFFFFFFF)
    index = (refs & np.uint64(layout.REF_INDEX_MASK)).astype(np.intp)
    index[index >= maps.sizes.endpoints] = 0
    state = maps.endpoints["state"][index]
    generation = state >> np.uint64(32) & np.uint64(layout.REF_GENERATION_MASK)
    valid = (state & np.uint64(layout.ENDPOINT_PRESENT) != 0) & (index != 0)
    valid &= generation == refs >> np.uint64(layout.REF_INDEX_BITS)
    flags = life >> np.uint64(24) & np.uint64(0xFF)
    udp = maps.endpoints["protocol"][index] == Protocol.UDP.value
    last_seen = (life >> np.uint64(32)).astype(np.uint32)
    idle = (np.uint32(now_tick) - last_seen).astype(np.int32).astype(np.int64)
    valid &= idle <= _limits(maps, flags, udp)
    return _Entries(
        at[valid], ids[valid] >> np.uint64(32), index[valid], flags[valid], idle[valid], udp[valid]
    )


def _limits(maps: Maps, flags: Array, udp: Array) -> Array:
    """Idle limit of each, in ticks, as the program has it."""
    settings = maps.settings
    limits = np.where(
        flags & np.uint64(layout.FLOW_ESTABLISHED) != 0,
        settings["idle_established_ticks"],
        settings["idle_opening_ticks"],
    )
    limits = np.where(udp, settings["idle_udp_ticks"], limits)
    return np.where(flags & np.uint64(_CLOSING) != 0, settings["idle_closing_ticks"], limits)


def active(maps: Maps, now_tick: int) -> npt.NDArray[np.intp]:
    """(endpoints,) flows of each endpoint that are neither idle nor closed."""
    entries = _entries(maps, now_tick)
    closed = entries.flags & np.uint64(_BOTH_FINS) == np.uint64(_BOTH_FINS)
    closed |= entries.flags & np.uint64(layout.FLOW_RST) != 0
    return np.bincount(entries.endpoints[~closed], minlength=maps.sizes.endpoints)


def rows(maps: Maps, now_tick: int, limit: int) -> list[FlowRow]:
    """At most ``limit`` flows, most recent first. A row whose 5-tuple doesn't hash to its tag is left out:
    it was being written."""
    entries = _entries(maps, now_tick)
    keys = maps.flow_keys[entries.at]
    known = keys["service"] < maps.sizes.services
    services = maps.services[np.where(known, keys["service"], 0)]
    hashes = flow_hash(
        maps.settings["hash_key"],
        _words(keys["client"]),
        _words(services["vip"]),
        keys["client_port"].astype(np.uint64),
        services["port"].astype(np.uint64),
        services["protocol"].astype(np.uint64),
    )
    right = known & (tag(hashes) == entries.tags)
    order = np.flatnonzero(right)
    order = order[np.argsort(entries.idle_ticks[order], kind="stable")][:limit]
    names = {i: steering.endpoint_name(maps, i) for i in np.unique(entries.endpoints[order]).tolist()}
    vips = {i: steering.service_name(maps, i) for i in np.unique(keys["service"][order]).tolist()}
    return [
        FlowRow(
            client=layout.unmapped(keys["client"][i].tobytes()),
            client_port=int(keys["client_port"][i]),
            service=vips[int(keys["service"][i])],
            endpoint=names[int(entries.endpoints[i])],
            state=_state(int(entries.flags[i]), bool(entries.udp[i])),
            idle_s=max(0, int(entries.idle_ticks[i])) * layout.TICK_S,
        )
        for i in order.tolist()
    ]


def _state(flags: int, udp: bool) -> str:
    if udp:
        return "udp"
    if flags & _CLOSING:
        return "closing"
    return "established" if flags & layout.FLOW_ESTABLISHED else "opening"


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
