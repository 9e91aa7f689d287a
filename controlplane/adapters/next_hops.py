# SPDX-License-Identifier: Apache-2.0
"""How frames leave for each endpoint: in its row, trusted until they expire there."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import numpy.typing as npt

from controlplane.adapters import layout, steering
from controlplane.adapters.maps import Array, Maps
from controlplane.adapters.netlink import Hop, Routing
from controlplane.addresses import Address

LIFE_S = 5.0
RENEW_S = 3.0
"""With less left than this a next hop is renewed."""
_MTU_MOST = 0xFFFF
_FIELDS = ("hop_ifindex", "hop_dst", "hop_src", "hop_vlan", "hop_mtu")


def due(maps: Maps, now_tick: int) -> npt.NDArray[np.intp]:
    """Rows of the members whose next hop is missing or about to expire."""
    present = steering.present_endpoints(maps)
    left = maps.endpoints["hop_expires"][present].astype(np.int64) - now_tick
    found: npt.NDArray[np.intp] = present[left < layout.ticks(RENEW_S)]
    return found


def renew(
    maps: Maps, rows: npt.NDArray[np.intp], routing: Routing, interfaces: Collection[int], now_tick: int
) -> Collection[Hop]:
    """Next hops of these rows as the routes are now; returns those whose neighbours the kernel does not
    keep resolved by itself, each neighbour once. The caller holds the instance's write lock.

    :param interfaces: by which frames may leave; one that is redirected elsewhere may be lost.
    """
    usable = {
        row: hop
        for row, hop in zip(rows.tolist(), _hops(maps, rows, routing), strict=True)
        if hop is not None and hop.ifindex in interfaces
    }
    resolved = {row: hop for row, hop in usable.items() if hop.neighbour_mac is not None}
    there = np.array(list(resolved), np.intp)
    maps.endpoints["hop_expires"][np.setdiff1d(rows, there, assume_unique=True)] = 0
    if resolved:
        write(maps.endpoints, there, list(resolved.values()), now_tick + layout.ticks(LIFE_S))
    return {(hop.device, hop.neighbour): hop for hop in usable.values() if not hop.managed}.values()


def _hops(maps: Maps, rows: npt.NDArray[np.intp], routing: Routing) -> Iterable[Hop | None]:
    """All that a gateway leads to have one next hop."""
    by_gateway: dict[tuple[int, Address], Hop | None] = {}
    for packed in maps.endpoints["address"][rows]:
        address = layout.unmapped(packed.tobytes())
        route = routing.route(address)
        if route is None or route.gateway is None:
            yield routing.by(route, address)
            continue
        key = id(route), route.gateway
        if key not in by_gateway:
            by_gateway[key] = routing.by(route, address)
        yield by_gateway[key]


def write(table: Array, rows: npt.NDArray[np.intp], hops: list[Hop], expires_tick: int) -> None:
    """Resolved ones, into rows of endpoints or gateways; never trusted while their fields change."""
    wanted = np.zeros(len(rows), table.dtype)
    wanted["hop_ifindex"] = [hop.ifindex for hop in hops]
    wanted["hop_dst"] = _macs([hop.neighbour_mac or b"" for hop in hops])
    wanted["hop_src"] = _macs([hop.source_mac for hop in hops])
    wanted["hop_vlan"] = [hop.vlan for hop in hops]
    wanted["hop_mtu"] = [min(hop.mtu, _MTU_MOST) for hop in hops]
    found = table[rows]
    differs = np.zeros(len(rows), np.bool_)
    for field in _FIELDS:
        different = found[field] != wanted[field]
        differs |= different.any(axis=1) if different.ndim > 1 else different
    changed = rows[differs]
    table["hop_expires"][changed] = 0
    for field in _FIELDS:
        table[field][changed] = wanted[field][differs]
    table["hop_expires"][rows] = expires_tick


def _macs(macs: list[bytes]) -> npt.NDArray[np.uint8]:
    return np.frombuffer(b"".join(macs), np.uint8).reshape(-1, 6)
