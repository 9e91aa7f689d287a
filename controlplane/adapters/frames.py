# SPDX-License-Identifier: Apache-2.0
"""Frames: made of what a packet's fields are to be, read from hexadecimal text and capture files, and shown.

With scapy, which takes half a second to import: import this where it is used.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from ipaddress import ip_address
from pathlib import Path

from scapy.error import Scapy_Exception
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Dot1AD, Dot1Q, Dot3, Ether
from scapy.packet import Packet
from scapy.utils import PcapReader

from controlplane.addresses import Address, with_port

_LEAST_BYTES = 14
_FROM, _TO = "02:00:00:00:00:01", "02:00:00:00:00:02"
"""Nobody asks for them: the program looks only at whether a frame is for many."""


def made(
    protocol: str,
    source: tuple[Address, int],
    destination: tuple[Address, int],
    *,
    flags: str = "S",
    vlans: Sequence[int] = (),
) -> bytes:
    """A frame with right checksums. ``protocol``: tcp, udp, or icmp, an echo request without ports.

    :param flags: of TCP, as letters: S, SA, A, R, F, ...
    :param vlans: VIDs, outer first.
    """
    (client, client_port), (target, port) = source, destination
    network = IPv6 if target.version == 6 else IP
    packet = network(src=str(client), dst=str(target))
    if protocol == "tcp":
        packet /= TCP(sport=client_port, dport=port, flags=flags)
    elif protocol == "udp":
        packet /= UDP(sport=client_port, dport=port)
    else:
        packet /= ICMPv6EchoRequest() if target.version == 6 else ICMP()
    frame = Ether(src=_FROM, dst=_TO)
    for place, vlan in enumerate(vlans):
        frame /= Dot1AD(vlan=vlan) if place < len(vlans) - 1 else Dot1Q(vlan=vlan)
    return bytes(frame / packet)


def from_hex(text: str) -> bytes:
    """Ethernet frame from hexadecimal digits; spaces, colons and line ends between them don't matter.

    Raises ValueError.
    """
    try:
        frame = bytes.fromhex("".join(text.replace(":", " ").split()))
    except ValueError:
        raise ValueError("pairs of hexadecimal digits are allowed, and spaces and colons") from None
    if len(frame) < _LEAST_BYTES:
        raise ValueError(
            f"a frame of {len(frame)} bytes; from {_LEAST_BYTES} on is allowed, an Ethernet header"
        )
    return frame


def from_file(path: Path, number: int) -> bytes:
    """The ``number``-th packet (from 1) of a pcap or pcapng file. Raises ValueError, OSError."""
    try:
        with PcapReader(str(path)) as packets:
            packet = next(itertools.islice(packets, number - 1, None), None)
    except (Scapy_Exception, EOFError) as error:
        raise ValueError(f"{path}: it is no pcap or pcapng file") from error
    if packet is None:
        raise ValueError(f"{path}: has no packet {number}")
    if len(packet) < (packet.wirelen or 0):  # how long it was decides, too
        raise ValueError(
            f"{path}: of packet {number} only {len(packet)} of {packet.wirelen} bytes were captured; "
            "whole ones are allowed (tcpdump -s 0, penumbra capture without --snaplen)"
        )
    if isinstance(packet, IP | IPv6):
        packet = Ether(src=_FROM, dst=_TO) / packet
    if not isinstance(packet, Ether):
        raise ValueError(f"{path}: its packets are {type(packet).__name__}; Ethernet and IP are allowed")
    return bytes(packet)


def source_of(frame: bytes) -> Address | None:
    """The IP address that a frame is from."""
    network = _network(Ether(frame))
    return ip_address(network.src) if network is not None else None


def shown(frame: bytes) -> str:
    """One line: addresses, tags, ports, flags, TTL, length."""
    packet = Ether(frame)
    parts = [f"{packet.src} > {packet.dst}"]
    layer: Packet = packet.payload
    while isinstance(layer, Dot1Q | Dot1AD):
        parts.append(f"VLAN {layer.vlan}")
        layer = layer.payload
    network = _network(packet)
    if network is None:
        kind = "IEEE 802.3" if isinstance(packet, Dot3) else f"EtherType 0x{packet.type:04x}"
        return f"{', '.join(parts)}, {kind}, {len(frame)} bytes"
    source, destination = ip_address(network.src), ip_address(network.dst)
    ttl = network.hlim if isinstance(network, IPv6) else network.ttl
    carried = network.payload
    if isinstance(carried, TCP | UDP):
        parts.append(f"{with_port(source, carried.sport)} > {with_port(destination, carried.dport)}")
        parts.append(f"tcp {carried.flags}" if isinstance(carried, TCP) else "udp")
    else:
        parts += [f"{source} > {destination}", network.payload.summary()]
    return f"{', '.join(parts)}, TTL {ttl}, {len(frame)} bytes"


def _network(packet: Packet) -> Packet | None:
    layer = packet.payload
    while isinstance(layer, Dot1Q | Dot1AD):
        layer = layer.payload
    return layer if isinstance(layer, IP | IPv6) else None
