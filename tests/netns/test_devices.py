# SPDX-License-Identifier: Apache-2.0
"""Devices that frames leave by, VLAN devices among them. The kernel of a test machine may know no VLANs:
links are made up, the maps are real."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from controlplane import model
from controlplane.adapters import devices, layout, libbpf
from controlplane.adapters.dataplane import MapDataplane
from controlplane.adapters.maps import open_instance
from controlplane.adapters.netlink import UNICAST, Link, Neighbour, Route, Routing, Tag

Q, AD = 0x8100, 0x88A8
MAC, THEIRS = b"\x02\0\0\0\0\x01", b"\x02\0\0\0\0\x02"


def link(ifindex: int, below: int | None = None, tag: Tag | None = None, kind: str = "") -> Link:
    return Link(ifindex, f"d{ifindex}", MAC, 1500, kind or ("vlan" if tag else ""), True, below, tag)


LINKS = [
    link(2),
    link(3, kind="bridge"),
    link(10, 2, Tag(5, Q)),
    link(11, 2, Tag(100, AD)),
    link(12, 11, Tag(5, Q)),
    link(13, 12, Tag(6, Q)),
    link(14, 3, Tag(5, Q)),
    link(15, 99, Tag(5, Q)),
]


def routing(device: int = 2) -> Routing:
    """10.0.0.9 is a neighbour on that device."""
    route = Route(ip_network("10.0.0.0/24"), UNICAST, 254, 0, device, None, None)
    neighbours = {(device, ip_address("10.0.0.9").packed): Neighbour(THEIRS, False)}
    return Routing({one.ifindex: one for one in LINKS}, (route,), neighbours, policy_rules=False)


@pytest.mark.parametrize(("device", "vlan"), [(2, 0), (10, 5)], ids=["an interface", "its VLAN"])
def test_a_hop_names_the_interface_below_and_the_tag(device: int, vlan: int) -> None:
    hop = routing(device).hop(ip_address("10.0.0.9"))
    assert hop is not None
    assert (hop.ifindex, hop.vlan, hop.device, hop.neighbour_mac) == (2, vlan, device, THEIRS)


@pytest.mark.parametrize(
    "device", [3, 11, 12, 14, 15], ids=["bridge", "802.1ad", "two tags", "VLAN of a bridge", "not here"]
)
def test_the_rest_is_the_kernels(device: int) -> None:
    assert routing(device).hop(ip_address("10.0.0.9")) is None


def test_the_program_is_told_of_vlans_on_top_of_attached_interfaces_only(
    loaded: MapDataplane, config: model.Config
) -> None:
    maps = open_instance(config.instance)
    try:
        devices.write(maps, {2}, routing())
        assert devices.attached(maps) == {2}
        keys, ports = libbpf.map_lookup_batch(maps.ports, layout.INDEX, layout.PORT)
        told = {
            int(key): (int(port["ifindex"]), port["vlan"].tolist(), port["protocol"].tolist())
            for key, port in zip(keys, ports, strict=True)
        }
        assert told == {
            2: (2, [0, 0], [0, 0]),
            10: (2, [5, 0], [Q, 0]),
            11: (2, [100, 0], [AD, 0]),
            12: (2, [100, 5], [AD, Q]),
        }
        keys, found = libbpf.map_lookup_batch(maps.vlans, layout.PORT_KEY, layout.INDEX)
        assert {
            (int(key["ifindex"]), *key["vlan"].tolist()): int(to) for key, to in zip(keys, found, strict=True)
        } == {(2, 5, 0): 10, (2, 100, 0): 11, (2, 100, 5): 12}
        devices.write(maps, (), routing())
        assert devices.attached(maps) == frozenset()
        assert not list(libbpf.map_keys(maps.vlans, layout.PORT_KEY.itemsize))
    finally:
        maps.close()
