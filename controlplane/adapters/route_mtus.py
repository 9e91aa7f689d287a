# SPDX-License-Identifier: Apache-2.0
"""MTUs of routes, where they have some of their own (``ip route ... mtu 1400``): the kernel forwards by them,
but the lookup that programs have of its routes overlooks them unless they are locked."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_address, ip_network

from controlplane.adapters import layout, libbpf, netlink
from controlplane.adapters.maps import Maps
from controlplane.addresses import Network

_MOST = 0xFFFF
_NONE = 0
_ALL_V4, _V4_MAPPED = ip_network("0.0.0.0/0"), ip_address("::ffff:0.0.0.0")


def renew(maps: Maps, routing: netlink.Routing) -> None:
    """For the routes as they are; the caller holds the write lock."""
    entries = {
        layout.prefix(network): mtu.to_bytes(4, "little")
        for network, mtu in by_prefix(routing.routes).items()
    }
    libbpf.map_hold(maps.route_mtus, layout.PREFIX, layout.INDEX, entries)


def by_prefix(routes: Iterable[netlink.Route]) -> Mapping[Network, int]:
    """Bytes by prefix; 0 for those of routes without an MTU that lie within one that has one.

    :param routes: in the order of the kernel's choice: of two with one prefix the first counts.
    """
    mtus: dict[Network, int] = {}
    for route in routes:
        mtus.setdefault(route.network, min(route.mtu or _NONE, _MOST))
    found = {network: mtu for network, mtu in mtus.items() if mtu}
    lengths = {(network.version, network.prefixlen) for network in found}
    within = [
        network
        for network, mtu in mtus.items()
        if not mtu and any(network.supernet(new_prefix=bits) in found for bits in _shorter(network, lengths))
    ]
    # In the map IPv4's addresses are some of IPv6's.
    if _ALL_V4 not in found and any(_V4_MAPPED in network for network in found):
        within.insert(0, _ALL_V4)
    return dict([*found.items(), *((network, _NONE) for network in within)][: layout.ROUTE_MTUS])


def _shorter(network: Network, lengths: Iterable[tuple[int, int]]) -> Iterable[int]:
    return (bits for version, bits in lengths if version == network.version and bits < network.prefixlen)
