# SPDX-License-Identifier: Apache-2.0
"""Devices that frames may leave by, and VLANs that are this host's: the maps ``ports`` and ``vlans``."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from controlplane.adapters import layout, libbpf
from controlplane.adapters.maps import Maps
from controlplane.adapters.netlink import Routing


def attached(maps: Maps) -> frozenset[int]:
    """Interfaces that ``write`` was given last."""
    keys, ports = libbpf.map_lookup_batch(maps.ports, layout.INDEX, layout.PORT)
    return frozenset(keys[keys == ports["ifindex"]].tolist())


def write(maps: Maps, interfaces: Collection[int], routing: Routing) -> None:
    """:param interfaces: indices of those that take redirected frames."""
    ports: dict[bytes, bytes] = {}
    vlans: dict[bytes, bytes] = {}
    for link in routing.links.values():
        carrier, tags = routing.carrier(link)
        if carrier is None or carrier.ifindex not in interfaces or len(tags) > layout.TAGS_MAX:
            continue
        key, port = np.zeros((), layout.PORT_KEY), np.zeros((), layout.PORT)
        key["ifindex"] = port["ifindex"] = carrier.ifindex
        for at, tag in enumerate(tags):
            key["vlan"][at] = port["vlan"][at] = tag.vlan
            port["protocol"][at] = tag.protocol
        index = link.ifindex.to_bytes(4, "little")
        ports[index] = port.tobytes()
        if tags:
            vlans[key.tobytes()] = index
    libbpf.map_hold(maps.ports, layout.INDEX, layout.PORT, ports)
    libbpf.map_hold(maps.vlans, layout.PORT_KEY, layout.INDEX, vlans)
