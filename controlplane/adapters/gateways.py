# SPDX-License-Identifier: Apache-2.0
"""The way to most clients: the default routes' next hops, and what they are not good for.

``near`` has a bit for all addresses that share the first 16 bits (IPv4) or a hash of the first 32 (IPv6).
Where it is set the program asks the kernel's routes; so a bit too many costs time, and one too few a packet.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from ipaddress import ip_network

import numpy as np
import numpy.typing as npt

from controlplane.adapters import layout, libbpf, netlink
from controlplane.adapters.maps import Maps
from controlplane.addresses import Network

_VERSIONS = (4, 6)
_SLICE_BITS = {4: 16, 6: 32}
"""Leading bits that make one slice of the address space; ``near`` has its bit."""
_SEEN_BITS = 16
"""Of a prefix that is shorter by more than these, all slices are marked."""
_NO_CLIENT = frozenset({3, 5})
"""RTN_BROADCAST, RTN_MULTICAST of linux/rtnetlink.h."""


def renew(
    maps: Maps, routing: netlink.Routing, interfaces: Iterable[int], expires_tick: int
) -> list[netlink.Hop]:
    """Writes both, for the routes as they are; the caller holds the write lock.

    :param interfaces: indices of those that take redirected frames.
    :return: the next hops, resolved or not.
    """
    covered = [*_other_routes(routing), *_direct(maps), *_vips(maps)]
    hops = []
    for place, version in enumerate(_VERSIONS):
        maps.near[place] = _bits(network for network in covered if network.version == version)
        hop = routing.default_hop(version)
        if hop is not None and hop.ifindex not in interfaces:
            hop = None
        write_hop(maps.gateways, place, hop, expires_tick)
        if hop is not None:
            hops.append(hop)
    return hops


def cover(maps: Maps, networks: Iterable[Network]) -> None:
    """Marks more, at once: what became direct, or a VIP, must not wait for ``renew``."""
    for network in networks:
        maps.near[_VERSIONS.index(network.version)] |= _bits([network])


def _other_routes(routing: netlink.Routing) -> Iterator[Network]:
    return (r.network for r in routing.routes if r.network.prefixlen and r.kind not in _NO_CLIENT)


def _direct(maps: Maps) -> Iterator[Network]:
    keys, _ = libbpf.map_lookup_batch(maps.direct, layout.PREFIX, layout.INDEX)
    return (layout.network(key) for key in keys)


def _vips(maps: Maps) -> Iterator[Network]:
    present = maps.services["flags"] & layout.SERVICE_PRESENT != 0
    return (ip_network(layout.unmapped(vip.tobytes())) for vip in maps.services["vip"][present])


def _bits(networks: Iterable[Network]) -> npt.NDArray[np.uint64]:
    """(NEAR_WORDS,): the slices that these networks, of one IP version, have a part in."""
    marked = np.zeros(64 * layout.NEAR_WORDS, np.bool_)
    for network in networks:
        free = _SLICE_BITS[network.version] - network.prefixlen
        if free > _SEEN_BITS:
            marked[:] = True
            break
        first = int.from_bytes(network.network_address.packed[:4], "big")
        if network.version == 4:
            first >>= 16
        marked[layout.near_bits(first + np.arange(1 << max(free, 0), dtype=np.uint64), network.version)] = (
            True
        )
    return np.packbits(marked, bitorder="little").view("<u8")


def write_hop(rows: npt.NDArray[np.void], index: int, hop: netlink.Hop | None, expires_tick: int) -> None:
    """Into an endpoint's or a gateway's row; never trusted while its fields change."""
    row = rows[index : index + 1]
    if hop is None or hop.neighbour_mac is None:
        row["hop_expires"] = 0
        return
    found = (int(row["hop_ifindex"][0]), row["hop_dst"].tobytes(), row["hop_src"].tobytes())
    wanted = (hop.ifindex, hop.neighbour_mac, hop.source_mac, hop.vlan, min(hop.mtu, 0xFFFF))
    if (*found, int(row["hop_vlan"][0]), int(row["hop_mtu"][0])) != wanted:
        row["hop_expires"] = 0
        row["hop_ifindex"] = hop.ifindex
        row["hop_dst"] = np.frombuffer(hop.neighbour_mac, "u1")
        row["hop_src"] = np.frombuffer(hop.source_mac, "u1")
        row["hop_vlan"], row["hop_mtu"] = wanted[-2:]
    row["hop_expires"] = expires_tick
