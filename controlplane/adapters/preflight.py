# SPDX-License-Identifier: Apache-2.0
"""What on this machine would lose steered packets: for ``penumbra check``. Changes nothing.

Read in the network namespace of the caller. Offloads of interfaces in other namespaces can't be seen.
"""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from controlplane import model
from controlplane.adapters import layout, netlink, redirects
from controlplane.adapters.netlink import Link, Routing

_CROWDED = 0.75
"""The kernel begins to give neighbours up before its table is full; others want some too."""
_FORWARDING = {4: "ipv4/ip_forward", 6: "ipv6/conf/all/forwarding"}


@dataclass(frozen=True, slots=True)
class Problem:
    """What is in the way, and the command that mends it."""

    what: str
    command: str
    certain: bool = True
    """False: a thing to look at, for it can't be seen from here."""


def problems(interfaces: Sequence[str], ip_versions: Collection[int] = (4,)) -> list[Problem]:
    """No certain one: nothing known is in the way of steering at these interfaces.

    :param ip_versions: of the services.
    """
    found: list[Problem] = []
    for version in sorted(ip_versions):
        key = _FORWARDING[version]
        if _setting(key) == "0":
            name = f"net.{key.replace('/', '.')}"
            found.append(
                Problem(
                    f"{name} is 0: nothing without a known next hop is forwarded, returns among it",
                    f"sysctl -w {name}=1",
                )
            )
    found += _firewall()
    links = {link.name: link for link in netlink.routing().links.values()}
    everywhere = int(_setting("ipv4/conf/all/rp_filter") or 0)
    for name in interfaces:
        link = links.get(name)
        if link is None:
            found.append(Problem(f"interface {name!r} is not in this network namespace", "ip link show"))
            continue
        if not link.up:
            found.append(Problem(f"interface {name} is down", f"ip link set {name} up"))
        if max(everywhere, int(_setting(f"ipv4/conf/{name}/rp_filter") or 0)) == 1:
            key = "all" if everywhere == 1 else name
            found.append(
                Problem(
                    f"rp_filter is 1 at {name}: returns, whose source is the VIP, may be dropped",
                    f"sysctl -w net.ipv4.conf.{key}.rp_filter=2",
                )
            )
        found += _veth_problems(name, link.kind)
        found += _vlan_problems(name, link, links.values())
    return found


def _firewall() -> Iterator[Problem]:
    """Docker's engine, once started, has the policy of iptables' FORWARD be DROP."""
    try:
        listed = subprocess.run(["nft", "--json", "list", "chains"], capture_output=True, check=True)
        rows = json.loads(listed.stdout)["nftables"]
    except (OSError, subprocess.CalledProcessError, ValueError, KeyError):
        return  # no nftables, or not for us to see
    for chain in (row["chain"] for row in rows if "chain" in row):
        if chain.get("hook") == "forward" and chain.get("policy") == "drop":
            name = f"{chain['family']} {chain['table']} {chain['name']}"
            yield Problem(
                f"the firewall's chain {name} drops what it does not name: traffic that is not steered, and "
                "packets to next hops that are not known yet, are lost unless its rules let them through",
                f"nft list chain {name}",
                certain=False,
            )


def _veth_problems(name: str, kind: str) -> list[Problem]:
    if kind != "veth":
        return []
    return [
        Problem(
            f"{name} is a veth: senders behind it must complete checksums, and receivers need GRO or XDP; "
            "both are set at its other end, which can't be seen from here",
            "there: ethtool -K DEV tx off gro on",
            certain=False,
        )
    ]


def _vlan_problems(name: str, link: Link, links: Iterable[Link]) -> Iterator[Problem]:
    if not link.kind and any(other.tag and other.below == link.ifindex for other in links):
        yield Problem(
            f"{name} carries VLANs: a card that strips tags hides them from the program",
            f"ethtool -K {name} rxvlan off",
            certain=False,
        )


def misplaced(config: model.Config) -> list[Problem]:
    """VIPs and endpoints that can't be served from where they are, as the routes are now."""
    routing = netlink.routing()
    if routing.policy_rules:
        return []  # only the kernel could tell
    found: list[Problem] = []
    for name, service in config.services.items():
        found += _misplaced_vip(f"services.{name}.vip {service.vip}", service, routing)
        for one in service.endpoints:
            where = f"services.{name}.endpoints.{one.name}.address {one.address}"
            found += _misplaced_endpoint(where, one, routing, config.interfaces)
    return found


def unusable_probes(config: model.Config) -> Iterator[str]:
    """What checks of members can't be made with here, with its path in the configuration."""
    for name, service in config.services.items():
        where, probe = f"services.{name}.probe", service.probe
        if probe.ca and (why := _no_authorities(probe.ca)):
            yield f"{where}.ca: {probe.ca}: {why}; a PEM file of certificates is allowed"
        if probe.source and (why := _no_source(probe.source)):
            yield f"{where}.source: {probe.source}: {why}; an address of this network namespace is allowed"


def _no_authorities(file: str) -> str:
    try:
        ssl.create_default_context(cafile=file)
    except ssl.SSLError:
        return "it holds no certificate, or a broken one"
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _no_source(address: str) -> str:
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as own:
            own.bind((address, 0))
    except OSError as error:
        return error.strerror or str(error)
    return ""


def uncounted() -> Iterable[Problem]:
    if why := redirects.missing():
        yield Problem(
            f"frames that the kernel loses after a redirect will not be counted: {why}",
            "a kernel with CONFIG_DEBUG_INFO_BTF and CONFIG_FTRACE",
        )


def crowded(config: model.Config) -> list[Problem]:
    """More endpoints on connected networks than the kernel takes neighbours."""
    routing = netlink.routing()
    addresses = {one.address for service in config.services.values() for one in service.endpoints}
    found = []
    for version in (4, 6):
        key = f"ipv{version}/neigh/default/gc_thresh3"
        most = int(_setting(key) or 0)  # unknown in other network namespaces than the first
        routes = [routing.route(address) for address in addresses if address.version == version]
        connected = sum(route is not None and route.gateway is None for route in routes)
        if most and connected > most * _CROWDED:
            name = f"net.{key.replace('/', '.')}"
            found.append(
                Problem(
                    f"{name} is {most}, and {connected} endpoints are on connected networks: those that "
                    "find no place in the kernel's table of neighbours are not reached",
                    f"sysctl -w {name}={2 * connected}",
                )
            )
    return found


def _misplaced_vip(where: str, service: model.Service, routing: Routing) -> Iterator[Problem]:
    route = routing.route(service.vip)
    if route is None or route.kind != netlink.UNICAST or route.gateway or not route.network.prefixlen:
        return
    link = routing.links.get(route.ifindex or 0)
    if link is not None:
        yield Problem(
            f"{where} lies in {route.network}, which {link.name} is connected to: its neighbours ask for "
            "the VIP by ARP or neighbour discovery, and nobody answers",
            f"ip address add {service.vip}/{service.vip.max_prefixlen} dev {link.name}",
        )


def _misplaced_endpoint(
    where: str, endpoint: model.Endpoint, routing: Routing, interfaces: Sequence[str]
) -> Iterator[Problem]:
    route = routing.route(endpoint.address)
    ask = f"ip route get {endpoint.address}"
    if route is None or route.kind in netlink.REFUSING:
        yield Problem(f"{where}: there is no route to it", ask)
    elif route.kind == netlink.LOCAL:
        yield Problem(
            f"{where} is this host's own: replies of its own processes leave without passing the program",
            "have the endpoint listen in a network namespace, or on another host",
        )
    elif route.kind != netlink.UNICAST:
        yield Problem(f"{where} is a broadcast or multicast address: nobody there can answer", ask)
    else:
        link = routing.links.get(route.ifindex or 0)
        carrier = routing.carrier(link)[0] if link is not None else None
        if link is not None and not {link.name, carrier.name if carrier else None} & set(interfaces):
            yield Problem(
                f"{where} is reached by {link.name}, which is not in interfaces: its replies come in there "
                "without passing the program",
                f"add {link.name} to interfaces",
            )


def memory(sizes: model.Sizes, cpus: int) -> Iterable[Problem]:
    needed, free = sum(layout.memory_bytes(sizes, cpus).values()), _available_bytes()
    if needed > free:
        yield Problem(
            f"sizes: the maps take {needed >> 20} MiB, {free >> 20} MiB are available", "take smaller sizes"
        )


def _available_bytes() -> int:
    """MemAvailable of /proc/meminfo (proc(5)), which is in KiB."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:"))


def _setting(path: str) -> str | None:
    """Of /proc/sys/net; dots in interface names stay."""
    try:
        return (Path("/proc/sys/net") / path).read_text().strip()
    except OSError:
        return None
