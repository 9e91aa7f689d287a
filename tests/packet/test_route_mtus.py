# SPDX-License-Identifier: Apache-2.0
"""A route's own MTU counts as the kernel's lookup does not: where no next hop is cached."""

from __future__ import annotations

from ipaddress import ip_network

import pytest
from scapy.layers.inet import IP
from scapy.packet import Packet

from controlplane.adapters import layout, libbpf
from tests.packet.rig import PASS, REDIRECT, Rig, refused, rewritten, tcp
from tests.packet.test_refuse import ADDRESSES, by_gateway, install, large, versions, whole

ROUTE_MTU = 1300
NETWORKS = {4: ("192.0.2.0/24", "203.0.113.0/24"), 6: ("2001:db8:c::/48", "2001:db8:2::/48")}
"""IP version -> the clients' and the endpoints'."""
ways = pytest.mark.parametrize("way", ["to the endpoint", "to the client"])


@pytest.fixture
def steered(rig: Rig) -> Rig:
    """No next hop is cached, and in this namespace no route leads anywhere."""
    install(rig)
    rig.endpoints["hop_expires"] = 0
    return rig


def set_mtu(rig: Rig, network: str, mtu: int) -> None:
    prefix = layout.prefix(ip_network(network))
    libbpf.map_update(rig.compiled.maps["route_mtus"], prefix, mtu.to_bytes(4, "little"))


def packet_of(rig: Rig, way: str, version: int, payload: int = 1400) -> tuple[Packet, bytes, str]:
    """With what it is when it is rewritten; and the network that it goes to."""
    vip, client, endpoint = ADDRESSES[version]
    clients, endpoints = NETWORKS[version]
    if way == "to the endpoint":
        packet = large(version, payload)
        return packet, rewritten(packet, destination=(endpoint, 8080), hop=None), endpoints
    rig.send(tcp(client, 4000, vip, 80, "S"))
    packet = whole(tcp(endpoint, 8080, client, 4000, "SA", bytes(payload)))
    return packet, rewritten(packet, source=(vip, 80), hop=None), clients


@versions
@ways
def test_who_sends_more_is_told(steered: Rig, version: int, way: str) -> None:
    vip, _, _ = ADDRESSES[version]
    packet, changed, network = packet_of(steered, way, version)
    assert (steered.send(packet).verdict, steered.send(packet).raw) == (PASS, changed), "the kernel's to send"
    set_mtu(steered, network, ROUTE_MTU)
    result = steered.send(packet)
    assert (result.verdict, result.reason) == (REDIRECT, "reply_mtu")
    assert result.raw == refused(packet, vip, ROUTE_MTU)


@versions
@ways
def test_what_just_fits_leaves(steered: Rig, version: int, way: str) -> None:
    packet, _, network = packet_of(steered, way, version)
    set_mtu(steered, network, ROUTE_MTU)
    fits = 1400 - (len(packet) - 14 - ROUTE_MTU)
    packet, changed, _ = packet_of(steered, way, version, fits)
    assert len(packet) - 14 == ROUTE_MTU
    assert steered.send(packet).raw == changed
    packet, _, _ = packet_of(steered, way, version, fits + 1)
    assert steered.send(packet).reason == "reply_mtu"


@ways
def test_what_may_be_cut_is_left_to_the_kernel(steered: Rig, way: str) -> None:
    packet, _, network = packet_of(steered, way, 4)
    set_mtu(steered, network, ROUTE_MTU)
    packet[IP].flags = 0
    del packet[IP].chksum
    result = steered.send(type(packet)(bytes(packet)))
    assert (result.verdict, result.reason) == (
        PASS,
        "forward_cut" if way == "to the endpoint" else "return_cut",
    )


@versions
@ways
def test_a_route_within_without_one_has_none(steered: Rig, version: int, way: str) -> None:
    packet, changed, network = packet_of(steered, way, version)
    set_mtu(steered, network, ROUTE_MTU)
    address = packet[1].dst if way == "to the client" else ADDRESSES[version][2]
    set_mtu(steered, address, 0)
    assert steered.send(packet).raw == changed


@versions
def test_a_cached_gateway_has_its_own(steered: Rig, version: int) -> None:
    packet, _, network = packet_of(steered, "to the client", version)
    by_gateway(steered, 0)
    set_mtu(steered, network, ROUTE_MTU)
    assert steered.send(packet).reason == "return_hop"
