# SPDX-License-Identifier: Apache-2.0
"""What ``penumbra check`` says of the kernel's settings, and which hops the kernel's tables give."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address

import pytest

from controlplane import model
from controlplane.adapters import netlink, preflight
from controlplane.addresses import MAPPED
from controlplane.lab import network
from controlplane.lab.topology import AP, Topology


@pytest.fixture
def ap(topology: Topology) -> Iterator[str]:
    name = topology.namespace(AP)
    with network.entered(name):
        yield name


def said(*interfaces: str) -> str:
    return "\n".join(f"{p.what}: {p.command}" for p in preflight.problems(interfaces))


def test_forwarding_that_is_off_is_said_with_the_command(ap: str) -> None:
    assert "ip_forward" not in said("clients")
    network.run(["sysctl", "-qw", "net.ipv4.ip_forward=0"])
    try:
        assert "sysctl -w net.ipv4.ip_forward=1" in said("clients")
    finally:
        network.run(["sysctl", "-qw", "net.ipv4.ip_forward=1"])


def test_a_strict_reverse_path_filter_is_said(ap: str) -> None:
    assert "rp_filter" not in said("clients")
    network.run(["sysctl", "-qw", "net.ipv4.conf.clients.rp_filter=1"])
    try:
        assert "net.ipv4.conf.clients.rp_filter=2" in said("clients")
    finally:
        network.run(["sysctl", "-qw", "net.ipv4.conf.clients.rp_filter=0"])


def test_a_firewall_that_drops_what_it_forwards_is_said(ap: str) -> None:
    assert "firewall" not in said("clients")
    network.run(["nft", "add table ip filter"])
    network.run(["nft", "add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }"])
    try:
        assert "nft list chain ip filter FORWARD" in said("clients")
        network.run(["nft", "chain ip filter FORWARD { policy accept; }"])
        assert "firewall" not in said("clients")
    finally:
        network.run(["nft", "delete table ip filter"])


def test_a_missing_interface_is_said(ap: str) -> None:
    assert "nosuch" in said("nosuch")


def test_hops_follow_the_longest_prefix_and_gateways(ap: str, topology: Topology) -> None:
    host = topology.hosts[0]
    network.run(["ip", "route", "add", "192.0.2.0/24", "via", str(host.address)])
    routing = netlink.routing()
    on_link, behind = routing.hop(host.address), routing.hop(IPv4Address("192.0.2.7"))
    assert on_link is not None
    assert behind is not None
    assert (on_link.neighbour, behind.neighbour) == (host.address, host.address)
    assert routing.links[behind.ifindex].name == host.name
    assert routing.hop(host.gateway.ip) is None, "local addresses have no next hop"
    assert routing.hop(IPv4Address("8.8.8.8")) is None, "no route"


def test_routes_to_ipv4_mapped_addresses_are_none_of_ipv4_s(ap: str) -> None:
    network.run(["ip", "-6", "route", "add", "unreachable", "::ffff:0.0.0.0/96"])
    try:
        assert "::ffff:0.0.0.0/96" in network.run(["ip", "-6", "route", "show", "type", "unreachable"])
        assert MAPPED not in {route.network for route in netlink.routing().routes}
    finally:
        network.run(["ip", "-6", "route", "delete", "unreachable", "::ffff:0.0.0.0/96"])


def test_a_route_over_a_bridge_is_left_to_the_kernel(ap: str) -> None:
    network.run(["ip", "link", "add", "br0", "type", "bridge"])
    try:
        network.run(["ip", "address", "add", "192.168.77.1/24", "dev", "br0"])
        network.run(["ip", "link", "set", "br0", "up"])
        assert netlink.routing().hop(IPv4Address("192.168.77.9")) is None
    finally:
        network.run(["ip", "link", "delete", "br0"])


def test_policy_rules_leave_everything_to_the_kernel(ap: str, topology: Topology) -> None:
    network.run(["ip", "rule", "add", "from", "192.0.2.1", "lookup", "100"])
    try:
        assert netlink.routing().hop(topology.hosts[0].address) is None
    finally:
        network.run(["ip", "rule", "delete", "from", "192.0.2.1", "lookup", "100"])


def serving(vip: str, *addresses: str, interfaces: tuple[str, ...] = ("clients", "host1")) -> model.Config:
    """A service with this VIP and endpoints at these addresses."""
    endpoints = tuple(
        model.Endpoint(f"web-{at}", "web", IPv4Address(address), 80) for at, address in enumerate(addresses)
    )
    web = model.Service("web", IPv4Address(vip), 80, model.Protocol.TCP, endpoints)
    return model.Config("lab", interfaces, {"web": web})


def placed(vip: str, *addresses: str, interfaces: tuple[str, ...] = ("clients", "host1")) -> str:
    """What is said of such a service."""
    found = preflight.misplaced(serving(vip, *addresses, interfaces=interfaces))
    return "\n".join(f"{p.what}: {p.command}" for p in found)


def test_more_connected_endpoints_than_the_kernel_takes_neighbours_are_said(
    ap: str, topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the first network namespace shows the limit."""
    monkeypatch.setattr(preflight, "_setting", {"ipv4/neigh/default/gc_thresh3": "4"}.get)
    near = [str(address) for address in list(topology.hosts[0].gateway.network.hosts())[:4]]
    (problem,) = preflight.crowded(serving("203.0.113.10", *near))
    assert problem.command == "sysctl -w net.ipv4.neigh.default.gc_thresh3=8"
    network.run(["ip", "route", "replace", "192.0.2.0/24", "via", str(topology.hosts[0].address)])
    assert preflight.crowded(serving("203.0.113.10", *near[:3], "192.0.2.7", "192.0.2.8")) == []


def test_a_vip_that_nobody_answers_arp_for_is_said_with_the_command(ap: str, topology: Topology) -> None:
    clients = topology.clients
    assert placed("203.0.113.10", str(topology.hosts[0].address)) == ""
    inside = next(
        one for one in clients.gateway.network.hosts() if one not in (clients.address, clients.gateway.ip)
    )
    said_of_it = placed(str(inside))
    assert "ARP" in said_of_it
    assert f"ip address add {inside}/32 dev clients" in said_of_it
    assert placed(str(clients.gateway.ip)) == "", "the access point answers for its own address"


def test_endpoints_that_can_not_serve_from_where_they_are_are_said(ap: str, topology: Topology) -> None:
    host = topology.hosts[0]
    assert "no route" in placed("203.0.113.10", "172.31.0.9")
    assert "this host's own" in placed("203.0.113.10", str(host.gateway.ip))
    assert "broadcast" in placed("203.0.113.10", str(host.gateway.network.broadcast_address))
    assert "add host1 to interfaces" in placed("203.0.113.10", str(host.address), interfaces=("clients",))
    assert placed("203.0.113.10", str(host.address)) == ""


def test_sizes_beyond_the_machine_s_memory_are_said() -> None:
    assert list(preflight.memory(model.Sizes(), 2)) == []
    (problem,) = preflight.memory(model.Sizes(flows=1 << 28, endpoints=1_048_575), 512)
    assert "MiB are available" in problem.what
