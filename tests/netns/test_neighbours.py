# SPDX-License-Identifier: Apache-2.0
"""The kernel's neighbours as they are read are those that ``ip neighbour`` shows."""

from __future__ import annotations

import json
import socket
from ipaddress import ip_address

import pytest

from controlplane.adapters import neighbours, netlink
from controlplane.adapters.neighbours import Neighbour
from controlplane.lab import network
from controlplane.lab.topology import AP, Topology
from tests.netns.steered import eventually

NAMES = {socket.AF_INET: "10.77.{}.{}", socket.AF_INET6: "2001:db8:77:{:x}::{:x}"}
USABLE = {"REACHABLE", "STALE", "DELAY", "PROBE", "PERMANENT"}


def shown(ap: str, family: socket.AddressFamily, ifindex: int) -> dict[tuple[int, bytes], Neighbour]:
    option = "-6" if family == socket.AF_INET6 else "-4"
    rows = json.loads(
        network.run(["ip", "-n", ap, option, "-json", "neigh", "show", "dev", "clients", "nud", "all"])
    )
    return {
        (ifindex, ip_address(row["dst"]).packed): Neighbour(
            bytes.fromhex(row["lladdr"].replace(":", "")) if USABLE & set(row["state"]) else None,
            "managed" in row,
        )
        for row in rows
    }


@pytest.mark.parametrize("family", list(NAMES), ids=["IPv4", "IPv6"])
def test_thousands_are_read_as_the_kernel_has_them(topology: Topology, family: socket.AddressFamily) -> None:
    ap = topology.namespace(AP)
    addresses = [NAMES[family].format(n >> 8, n & 0xFF) for n in range(1, 3001)]
    lines = [
        f"neigh replace {address} lladdr 02:00:00:00:{n >> 8:02x}:{n & 0xFF:02x} dev clients nud permanent"
        for n, address in enumerate(addresses)
    ]
    silent = NAMES[family].format(99, 1)
    enabled = "net.ipv6.conf.clients.disable_ipv6=0"
    network.run([*network.inside(ap), "sysctl", "-qw", enabled])  # a topology of IPv4 has it off
    network.run(["ip", "-n", ap, "-batch", "-"], stdin="\n".join(lines))
    with network.entered(ap):
        ifindex = socket.if_nametoindex("clients")

        def compared() -> bool:
            """The kernel changes and forgets some meanwhile: those that no one has made permanent."""
            network.run(["ip", "-n", ap, "neigh", "replace", silent, "dev", "clients", "nud", "failed"])
            before = shown(ap, family, ifindex)
            found = neighbours.read(family)
            of_it = {key: one for key, one in found.items() if key[0] == ifindex}
            routing = netlink.routing().neighbours
            if before != shown(ap, family, ifindex):
                return False
            assert of_it == before
            assert routing.items() >= of_it.items()
            assert len(of_it) > 3000
            assert found[ifindex, ip_address(silent).packed].mac is None
            return True

        eventually(compared)
