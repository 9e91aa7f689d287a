# SPDX-License-Identifier: Apache-2.0
"""IPv4 and IPv6 alike: what an address is, which no host has, and how one is written with its port."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_network

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

MAPPED = IPv6Network("::ffff:0:0/96")
"""Stands for IPv4 (RFC 4291 section 2.5.5.2), also in the maps; never on the wire."""
_UNSPECIFIED = tuple(map(ip_network, ("0.0.0.0/8", "::/96")))


def of_one_host(address: Address) -> bool:
    """Whether packets can be routed to it, and from it: not loopback, link-local, multicast, reserved or
    mapped. IPv6 prefixes that IANA has not given out yet are fine: networks use them inside."""
    if address.is_loopback or address.is_multicast or address.is_link_local:
        return False
    if isinstance(address, IPv4Address):
        return not address.is_reserved and address not in _UNSPECIFIED[0]
    if address.scope_id is not None:
        return False
    return address not in MAPPED and address not in _UNSPECIFIED[1]


def with_port(address: Address, port: int) -> str:
    """RFC 3986 section 3.2.2: an IPv6 address stands in brackets."""
    return f"[{address}]:{port}" if isinstance(address, IPv6Address) else f"{address}:{port}"
