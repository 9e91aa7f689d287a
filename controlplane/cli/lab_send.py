# SPDX-License-Identifier: Apache-2.0
"""``penumbra lab send``: crafted packets into the lab, and what came back."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import TYPE_CHECKING, Annotated

import typer

from controlplane.addresses import Address
from controlplane.cli.output import EXIT_USAGE, fail, say
from controlplane.lab.lab import Lab, topology_of
from controlplane.lab.network import LabError
from controlplane.lab.topology import CLIENTS

if TYPE_CHECKING:
    from scapy.packet import Packet

TCP_FLAGS = re.compile(r"[FSRPAUEC]{1,8}")
ANSWER_S = 0.3
"""Answers that come later than this after the last one are not shown."""


def send(
    name: Annotated[str, typer.Option("--name", metavar="NAME", help="which lab")] = "lab",
    source: Annotated[str, typer.Option("--from", metavar="NODE", help="clients or a host")] = CLIENTS,
    to: Annotated[str | None, typer.Option(metavar="ADDRESS:PORT", help="default: the VIP")] = None,
    udp: Annotated[bool, typer.Option("--udp", help="datagrams instead of TCP")] = False,
    flags: Annotated[str, typer.Option(help="of TCP, as letters: S, SA, A, R, F, ...")] = "S",
    source_port: Annotated[
        int, typer.Option(min=1, max=65535, help="of the first; the next has the next")
    ] = 40000,
    payload: Annotated[str, typer.Option(help="text after the header")] = "",
    count: Annotated[int, typer.Option(min=1, max=10000, help="how many packets")] = 1,
) -> None:
    """Send crafted packets past the sender's own stack, and show what comes back to their ports.

    The sender's kernel knows nothing of these flows: it answers a SYN-ACK with a reset, which is shown too.

    Example: penumbra lab send --flags S --count 3
    """
    from controlplane.lab import packets  # scapy takes half a second to import: other commands don't wait

    try:
        lab = Lab(topology_of(name), stay=True)
    except ValueError as error:
        fail(str(error), EXIT_USAGE)
    topology = lab.topology
    if source not in (node.name for node in topology.leaves):
        names = ", ".join(node.name for node in topology.leaves)
        fail(f"--from {source!r}: no node of the lab; allowed: {names}", EXIT_USAGE)
    address, port = _target(to) if to is not None else (topology.vip, topology.vip_port)
    if address.version != topology.vip.version:
        fail(f"--to {to!r}: the lab has IPv{topology.vip.version}; such an address is allowed", EXIT_USAGE)
    if not udp and not TCP_FLAGS.fullmatch(flags):
        fail(f"--flags {flags!r}: letters of FSRPAUEC are allowed", EXIT_USAGE)
    if source_port + count > 65536:
        fail(f"--count {count}: from source port {source_port} on at most {65536 - source_port}", EXIT_USAGE)
    if not lab.status().up:
        fail(f"lab {name} is not up: penumbra lab up --name {name}")
    mine, content = topology.node(source).address, payload.encode()
    crafted = [
        packets.udp(mine, address, source_port + at, port, content)
        if udp
        else packets.tcp(mine, address, source_port + at, port, flags, content)
        for at in range(count)
    ]
    ports = range(source_port, source_port + count)
    try:
        with packets.catching(lab, source) as caught:
            packets.send(lab, source, crafted)
            while (seen := caught.until(lambda packet: _is_of(packet, ports), ANSWER_S)) is not None:
                say((seen.getlayer("IPv6") or seen["IP"]).summary())
    except LabError as error:
        fail(str(error))


def _target(text: str) -> tuple[Address, int]:
    address, _, port = text.rpartition(":")
    try:
        found = ip_address(address.removeprefix("[").removesuffix("]")), int(port)
        if not 1 <= found[1] <= 65535:
            raise ValueError(port)
    except ValueError:
        fail(f"--to {text!r}: ADDRESS:PORT is allowed, e.g. 203.0.113.10:80", EXIT_USAGE)
    return found


def _is_of(packet: Packet, ports: range) -> bool:
    """Of one of these flows, either way."""
    layer = packet.getlayer("TCP") or packet.getlayer("UDP")
    return layer is not None and (layer.sport in ports or layer.dport in ports)
