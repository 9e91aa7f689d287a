# SPDX-License-Identifier: Apache-2.0
"""The way to most clients: the default routes' next hops, and what they are not good for.

``near`` has a bit for all addresses that share the first 16 bits (IPv4) or a hash of the first 32 (IPv6).
Where it is set the program asks the kernel's routes; so a bit too many costs time, and one too few a packet.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from controlplane.adapters import layout, libbpf, netlink, next_hops, steering
from controlplane.adapters.maps import Maps
from controlplane.addresses import Network

_VERSIONS = (4, 6)
_SLICE_BITS = {4: 16, 6: 32}
"""Leading bits that make one slice of the address space; ``near`` has its bit."""
_SEEN_BITS = 16
"""Of a prefix that is shorter by more than these, all slices are marked."""
_MAPPED, _MAPPED_BITS = np.array([*[0] * 10, 0xFF, 0xFF], np.uint8), 96
"""What an IPv4 prefix begins with, as every address in the maps does (RFC 4291 section 2.5.5.2)."""
_NO_CLIENT = frozenset({3, 5})
"""RTN_BROADCAST, RTN_MULTICAST of linux/rtnetlink.h."""


def renew(
    maps: Maps, routing: netlink.Routing, interfaces: Iterable[int], expires_tick: int
) -> list[netlink.Hop]:
    """Writes both, for the routes as they are; the caller holds the write lock.

    :param interfaces: indices of those that take redirected frames.
    :return: the next hops, resolved or not.
    """
    covered = _covered(maps, routing)
    hops = []
    for place, version in enumerate(_VERSIONS):
        maps.near[place] = _bits(covered, version)
        hop = routing.default_hop(version)
        if hop is not None and hop.ifindex not in interfaces:
            hop = None
        if hop is None or hop.neighbour_mac is None:
            maps.gateways["hop_expires"][place] = 0
        else:
            next_hops.write(maps.gateways, np.array([place]), [hop], expires_tick)
        if hop is not None:
            hops.append(hop)
    return hops


def cover(maps: Maps, networks: Iterable[Network]) -> None:
    """Marks more, at once: what became direct, or a VIP, must not wait for ``renew``."""
    prefixes = _prefixes(networks)
    for place, version in enumerate(_VERSIONS):
        maps.near[place] |= _bits(prefixes, version)


def _covered(maps: Maps, routing: netlink.Routing) -> npt.NDArray[np.void]:
    """Routes but the default ones, direct destinations and VIPs."""
    routes = (r.network for r in routing.routes if r.network.prefixlen and r.kind not in _NO_CLIENT)
    direct, _ = libbpf.map_lookup_batch(maps.direct, layout.PREFIX, layout.INDEX)
    present = steering.present_services(maps)
    vips = np.zeros(len(present), layout.PREFIX)
    vips["length"], vips["address"] = 128, maps.services["vip"][present]
    return np.concatenate([_prefixes(routes), direct, vips])


def _prefixes(networks: Iterable[Network]) -> npt.NDArray[np.void]:
    """(n,) of layout.PREFIX."""
    return np.frombuffer(b"".join(map(layout.prefix, networks)), layout.PREFIX)


def _bits(prefixes: npt.NDArray[np.void], version: int) -> npt.NDArray[np.uint64]:
    """(NEAR_WORDS,): the slices that those prefixes have a part in which are of this IP version."""
    address, length = prefixes["address"], prefixes["length"].astype(np.int64)
    mapped = (address[:, :12] == _MAPPED).all(axis=1) & (length >= _MAPPED_BITS)
    if version == 4:
        address, length = address[mapped, 12:14], length[mapped] - _MAPPED_BITS
    else:
        address, length = address[~mapped, :4], length[~mapped]
    first = np.zeros(len(length), np.uint64)
    for byte in range(address.shape[1]):
        first = first << np.uint64(8) | address[:, byte]
    free = _SLICE_BITS[version] - length
    if (free > _SEEN_BITS).any():
        return np.full(layout.NEAR_WORDS, ~np.uint64(0))
    marked = np.zeros(64 * layout.NEAR_WORDS, np.bool_)
    marked[layout.near_bits(first[free <= 0], version)] = True
    for start, bits in zip(first[free > 0], free[free > 0].tolist(), strict=True):
        marked[layout.near_bits(start + np.arange(1 << bits, dtype=np.uint64), version)] = True
    return np.packbits(marked, bitorder="little").view("<u8")
