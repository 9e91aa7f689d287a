# SPDX-License-Identifier: Apache-2.0
"""What a lab looks like: nodes, links, addresses. Values only.

Every node is a network namespace of its own and veth ends are born inside them, so labs may share
addresses and interface names; only namespaces carry the lab's name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_interface

from controlplane.addresses import Address

AP = "ap"
CLIENTS = "clients"
UPLINK = "uplink"
"""The interface towards the access point, in clients and hosts."""
_VIPS = {4: "203.0.113.10", 6: "2001:db8:f::10"}
_CLIENTS = {4: "198.51.100.{}/24", 6: "2001:db8:c::{}/64"}
_HOSTS = {4: "10.201.{}.{}/24", 6: "2001:db8:a:{}::{}/64"}
"""Host's number, then 1: the access point's end, 2: the other."""
NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,22}[a-z0-9])?")


@dataclass(frozen=True, slots=True)
class Node:
    """A network namespace with one link to the access point, whose end there has the node's name."""

    name: str
    interface: IPv4Interface | IPv6Interface
    gateway: IPv4Interface | IPv6Interface

    @property
    def address(self) -> Address:
        return self.interface.ip


@dataclass(frozen=True, slots=True)
class Topology:
    """Clients, an access point, hosts. The VIP lies outside every subnet, so clients route it via the
    access point: rp_filter and accept_local never matter."""

    lab: str = "lab"
    hosts_count: int = 3
    ip_version: int = 4
    vip_port: int = 80

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.lab):
            raise ValueError(f"lab name {self.lab!r}: at most 24 of a-z, 0-9 and inner '-' are allowed")
        if not 1 <= self.hosts_count <= 200:
            raise ValueError(f"{self.hosts_count} hosts: 1 to 200 are allowed")

        if self.ip_version not in _VIPS:
            raise ValueError(f"IP version {self.ip_version}: 4 or 6 is allowed")

    @property
    def vip(self) -> Address:
        return ip_address(_VIPS[self.ip_version])

    @property
    def clients(self) -> Node:
        text = _CLIENTS[self.ip_version]
        return Node(CLIENTS, ip_interface(text.format(2)), ip_interface(text.format(1)))

    @property
    def hosts(self) -> tuple[Node, ...]:
        text = _HOSTS[self.ip_version]
        return tuple(
            Node(f"host{i}", ip_interface(text.format(i, 2)), ip_interface(text.format(i, 1)))
            for i in range(1, self.hosts_count + 1)
        )

    @property
    def leaves(self) -> tuple[Node, ...]:
        return (self.clients, *self.hosts)

    @property
    def node_names(self) -> tuple[str, ...]:
        return (AP, *(node.name for node in self.leaves))

    @property
    def ap_interfaces(self) -> tuple[str, ...]:
        """Where steering attaches: the access point's end of every link."""
        return tuple(node.name for node in self.leaves)

    def node(self, name: str) -> Node:
        """Raises ``KeyError`` for the access point and for unknown names."""
        return {node.name: node for node in self.leaves}[name]

    def namespace(self, node: str) -> str:
        if node not in self.node_names:
            raise ValueError(f"no node {node!r} in lab {self.lab}; there are: {', '.join(self.node_names)}")
        return f"{self.lab}-{node}"

    @property
    def namespaces(self) -> tuple[str, ...]:
        return tuple(self.namespace(node) for node in self.node_names)
