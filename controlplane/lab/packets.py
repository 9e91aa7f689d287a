# SPDX-License-Identifier: Apache-2.0
"""Crafted packets: built and read with scapy, sent and caught through packet sockets of a lab's nodes.

A packet socket keeps the namespace it was made in, so nothing has to run inside.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from controlplane.addresses import Address
from controlplane.lab.lab import Lab
from controlplane.lab.network import LabError
from controlplane.lab.topology import UPLINK

ETH_P_ALL = 0x0003
PAUSE_S = 0.05


def tcp(
    source: Address, target: Address, sport: int, dport: int, flags: str = "S", payload: bytes = b""
) -> Packet:
    """A TCP packet, by default a SYN; ``flags`` as scapy names them: S, SA, A, R, F, ..."""
    return _ip(source, target) / TCP(sport=sport, dport=dport, flags=flags) / payload


def udp(source: Address, target: Address, sport: int, dport: int, payload: bytes = b"") -> Packet:
    return _ip(source, target) / UDP(sport=sport, dport=dport) / payload


def _ip(source: Address, target: Address) -> Packet:
    kind = IPv6 if target.version == 6 else IP
    return kind(src=str(source), dst=str(target))


def send(lab: Lab, node: str, packets: Sequence[Packet]) -> None:
    """Sends IP packets from ``node`` (clients or a host) to its gateway, as they are, past its own stack."""
    gateway = lab.topology.node(node).gateway.ip
    with lab.entered(node), socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as out:
        out.bind((UPLINK, 0))
        head = Ether(src=out.getsockname()[4], dst=_gateway_mac(lab, node, gateway))
        for packet in packets:
            out.send(bytes(head / packet))


def _gateway_mac(lab: Lab, node: str, gateway: Address) -> str:
    """From the node's neighbours; a datagram to the discard port (RFC 863) makes the kernel ask for it."""
    for _ in range(int(2.0 / PAUSE_S)):
        show = ["ip", f"-{gateway.version}", "neigh", "show", str(gateway), "dev", UPLINK]
        words = lab.run(node, show).split()
        if "lladdr" in words:
            return words[words.index("lladdr") + 1]
        family = socket.AF_INET6 if gateway.version == 6 else socket.AF_INET
        with socket.socket(family, socket.SOCK_DGRAM) as asking:
            asking.sendto(b"", (str(gateway), 9))
        select.select((), (), (), PAUSE_S)
    raise LabError(f"{node} finds no neighbour {gateway}: is the lab up, and the access point's link too?")


class Catch:
    """What passes a node's uplink, both ways, from the moment it was opened."""

    def __init__(self, socket_: socket.socket) -> None:
        self._socket = socket_

    def until(self, wanted: Callable[[Packet], bool], timeout_s: float = 2.0) -> Packet | None:
        """The first packet that is wanted; None if none comes in time."""
        for _ in range(max(1, int(timeout_s / PAUSE_S))):
            for packet in self._waiting():
                if wanted(packet):
                    return packet
            select.select((self._socket,), (), (), PAUSE_S)
        return None

    def _waiting(self) -> Iterator[Packet]:
        while True:
            try:
                yield Ether(self._socket.recv(65536))
            except BlockingIOError:
                return


@contextmanager
def catching(lab: Lab, node: str, interface: str = UPLINK) -> Iterator[Catch]:
    with lab.entered(node):
        listening = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL))
    try:
        listening.bind((interface, ETH_P_ALL))
        listening.setblocking(False)
        yield Catch(listening)
    finally:
        listening.close()
