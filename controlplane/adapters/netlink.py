# SPDX-License-Identifier: Apache-2.0
"""The kernel's links, routes and neighbours, of the network namespace of the caller; the only module that
imports ``pyroute2``."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv6Network, ip_address, ip_network
from typing import Any

from controlplane.adapters.neighbours import Neighbour as Neighbour
from controlplane.adapters.neighbours import read as read_neighbours
from controlplane.addresses import MAPPED, Address, Network
from controlplane.ports import DataplaneError

_AF_INET, _AF_INET6 = 2, 10
ETH_P_8021Q = 0x8100
_IPV6_MTU_LEAST = 1280
UNICAST, LOCAL = 1, 2
"""Kinds of routes: RTN_* of linux/rtnetlink.h."""
REFUSING = frozenset({6, 7, 8})
"""RTN_BLACKHOLE, RTN_UNREACHABLE, RTN_PROHIBIT."""
_TABLES = (255, 254, 253)
"""local, main, default: what the three standard rules look at, in this order."""
_STANDARD_RULES = {0, 32766, 32767}
_NTF_EXT_MANAGED = 1
_NO_REDIRECT = {"bridge", "bond", "team", "vlan", "vxlan", "macvlan", "ipvlan", "dummy", "tun", "wireguard"}


@dataclass(frozen=True, slots=True)
class Tag:
    vlan: int
    """VID."""
    protocol: int
    """EtherType: 802.1Q's or 802.1ad's."""


@dataclass(frozen=True, slots=True)
class Link:
    ifindex: int
    name: str
    mac: bytes
    mtu: int
    kind: str
    """veth, bridge, ...; empty for hardware."""
    up: bool
    below: int | None = None
    """Index of the interface that a VLAN device is on top of."""
    tag: Tag | None = None
    """Of a VLAN device."""


@dataclass(frozen=True, slots=True)
class Route:
    network: Network
    kind: int
    """RTN_* of linux/rtnetlink.h."""
    table: int
    metric: int
    ifindex: int | None
    """None: several next hops, or none."""
    gateway: Address | None
    """IPv4 may go by an IPv6 one (RFC 8950)."""
    mtu: int | None


@dataclass(frozen=True, slots=True)
class Hop:
    """How packets leave for an address."""

    ifindex: int
    """What frames leave by."""
    source_mac: bytes
    device: int
    """Whose neighbour it is: ``ifindex``, or a VLAN device on top of that."""
    neighbour: Address
    neighbour_mac: bytes | None
    """None: not resolved yet."""
    managed: bool
    """The kernel keeps the neighbour resolved by itself (NTF_MANAGED)."""
    mtu: int
    vlan: int = 0
    """VID of the 802.1Q tag that frames carry; 0: none."""


@dataclass(frozen=True, slots=True)
class _Prefixes:
    """The routes of one table whose prefixes have one length."""

    version: int
    shift: int
    """Bits of an address that don't count."""
    routes: dict[int, Route]
    """By the bits that do."""


def _by_prefix(routes: Iterable[Route]) -> list[_Prefixes]:
    """In the same order; of two routes to one network the first counts."""
    found: dict[tuple[int, int, int], _Prefixes] = {}
    for route in routes:
        network = route.network
        key = route.table, network.version, network.prefixlen
        shift = network.max_prefixlen - network.prefixlen
        one = found.setdefault(key, _Prefixes(network.version, shift, {}))
        one.routes.setdefault(int(network.network_address) >> shift, route)
    return list(found.values())


@dataclass(frozen=True, slots=True)
class Routing:
    """One reading of everything that decides on next hops."""

    links: Mapping[int, Link]
    routes: tuple[Route, ...]
    """In the order of the kernel's choice: table, longest prefix, smallest metric; none to mapped ones."""
    neighbours: Mapping[tuple[int, bytes], Neighbour]
    """By interface and packed address."""
    policy_rules: bool
    """There are rules beyond the standard three: only the kernel can tell then."""
    _prefixes: list[_Prefixes] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_prefixes", _by_prefix(self.routes))

    def route(self, address: Address) -> Route | None:
        """The kernel's choice; None where it has none."""
        number, version = int(address), address.version
        for one in self._prefixes:
            if one.version == version and (route := one.routes.get(number >> one.shift)) is not None:
                return route
        return None

    def hop(self, address: Address) -> Hop | None:
        return self.by(self.route(address), address)

    def default_hop(self, version: int) -> Hop | None:
        """Of the default route; None as for ``by``, and where it has no gateway."""
        defaults = (r for r in self.routes if r.network.version == version and not r.network.prefixlen)
        default = next(defaults, None)
        return self.by(default, default.gateway) if default is not None and default.gateway else None

    def by(self, route: Route | None, address: Address) -> Hop | None:
        """None where the kernel had better decide: no, local or multipath route, policy rules, or an
        interface (a bridge) that takes no redirected frames."""
        if self.policy_rules or route is None or route.kind != UNICAST or route.ifindex is None:
            return None
        link = self.links.get(route.ifindex)
        if link is None or not link.up or len(link.mac) != 6:
            return None
        carrier, tags = self.carrier(link)
        if carrier is None or carrier.kind in _NO_REDIRECT or len(tags) > 1:
            return None
        if tags and tags[0].protocol != ETH_P_8021Q:
            return None
        via = route.gateway or address
        neighbour = self.neighbours.get((link.ifindex, via.packed), Neighbour(None, False))
        mtu = min(link.mtu, route.mtu or link.mtu)
        vlan = tags[0].vlan if tags else 0
        return Hop(carrier.ifindex, link.mac, link.ifindex, via, neighbour.mac, neighbour.managed, mtu, vlan)

    def carrier(self, link: Link) -> tuple[Link | None, tuple[Tag, ...]]:
        """The interface that a device's frames leave by, and the tags that they have then, outer first;
        (itself, ()) for what is no VLAN device. None: not in this network namespace."""
        tags: tuple[Tag, ...] = ()
        below: Link | None = link
        while below is not None and below.tag is not None:
            tags = (below.tag, *tags)
            below = self.links.get(below.below or 0)
        return below, tags


def _kernel() -> Any:
    # Here, for it takes a fifth of a command's start, and most of them ask nothing of the kernel.
    from pyroute2 import IPRoute

    return IPRoute()


def routing() -> Routing:
    """Reads links, routes, neighbours and rules: seven dumps. Raises OSError."""
    routes: list[Route] = []
    neighbours: dict[tuple[int, bytes], Neighbour] = {}
    rules: set[int] = set()
    with _kernel() as kernel:
        links = [_link(message) for message in kernel.get_links()]
        for family in (_AF_INET, _AF_INET6):
            routes += [_route(message) for message in kernel.get_routes(family=family)]
            neighbours |= read_neighbours(family)
            rules |= {message.get_attr("FRA_PRIORITY") or 0 for message in kernel.get_rules(family=family)}
    chosen = sorted(
        (route for route in routes if route.table in _TABLES and not _to_mapped(route.network)),
        key=lambda route: (_TABLES.index(route.table), -route.network.prefixlen, route.metric),
    )
    return Routing(
        links={link.ifindex: link for link in links},
        routes=tuple(chosen),
        neighbours=neighbours,
        policy_rules=not rules <= _STANDARD_RULES,
    )


def _to_mapped(network: Network) -> bool:
    """No packet goes there, and in the maps it would be an IPv4 route. Distributions add such routes, to
    refuse what should not be: unreachable ::ffff:0.0.0.0/96."""
    return isinstance(network, IPv6Network) and network.subnet_of(MAPPED)


def _mac(text: str | None) -> bytes:
    return bytes.fromhex(text.replace(":", "")) if text else b""


def _link(message: Any) -> Link:
    information = message.get_attr("IFLA_LINKINFO")
    kind = (information.get_attr("IFLA_INFO_KIND") if information else None) or ""
    tag = _tag(information.get_attr("IFLA_INFO_DATA")) if kind == "vlan" else None
    return Link(
        ifindex=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        mac=_mac(message.get_attr("IFLA_ADDRESS")),
        mtu=message.get_attr("IFLA_MTU") or 0,
        kind=kind,
        up=bool(message["flags"] & 1),
        below=message.get_attr("IFLA_LINK") if tag else None,
        tag=tag,
    )


def _tag(data: Any) -> Tag:
    return Tag(data.get_attr("IFLA_VLAN_ID"), data.get_attr("IFLA_VLAN_PROTOCOL") or ETH_P_8021Q)


def _route(message: Any) -> Route:
    metrics = message.get_attr("RTA_METRICS")
    via = message.get_attr("RTA_VIA")
    gateway = via["addr"] if via else message.get_attr("RTA_GATEWAY")
    mtu = metrics.get_attr("RTAX_MTU") if metrics else None
    if mtu and message["family"] == _AF_INET6:
        mtu = max(mtu, _IPV6_MTU_LEAST)  # as ip6_forward() does
    anywhere = "::" if message["family"] == _AF_INET6 else "0.0.0.0"  # noqa: S104
    return Route(
        network=ip_network((message.get_attr("RTA_DST") or anywhere, message["dst_len"])),
        kind=message["type"],
        table=message.get_attr("RTA_TABLE") or message["table"],
        metric=message.get_attr("RTA_PRIORITY") or 0,
        ifindex=message.get_attr("RTA_OIF"),
        gateway=ip_address(gateway) if gateway else None,
        mtu=mtu,
    )


def manage_neighbours(hops: Iterable[Hop]) -> None:
    """Has the kernel resolve these neighbours now and keep them so (NTF_MANAGED, Linux 5.16).

    An older kernel refuses the flag; its neighbours are resolved by the packets that it forwards.
    Raises DataplaneError when the kernel takes no more.
    """
    from pyroute2.netlink.exceptions import NetlinkError

    with _kernel() as kernel:
        for hop in hops:
            try:
                kernel.neigh(
                    "replace",
                    family=_AF_INET6 if hop.neighbour.version == 6 else _AF_INET,
                    dst=str(hop.neighbour),
                    ifindex=hop.device,
                    state=0,
                    flags_ext=_NTF_EXT_MANAGED,
                )
            except NetlinkError:
                continue
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                table = f"net.ipv{hop.neighbour.version}.neigh.default.gc_thresh3"
                raise DataplaneError(
                    f"the kernel's table of neighbours is full, packets to the others pass the kernel: "
                    f"sysctl -w {table}=NUMBER, twice as many as there are endpoints on connected networks"
                ) from error


def local_addresses() -> frozenset[Address]:
    """Addresses of this host (in this network namespace), loopback's among them."""
    with _kernel() as kernel:
        found = [m.get_attr("IFA_LOCAL") or m.get_attr("IFA_ADDRESS") for m in kernel.get_addr()]
    return frozenset(ip_address(text) for text in found if text)
