# SPDX-License-Identifier: Apache-2.0
"""Frames from their fields, with right lengths and checksums: sound ones, to be spoiled afterwards."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from tests.reference import TCP, UDP
from tests.reference_frames import DESTINATION, FLAGS, FRAGMENT, HOP_BY_HOP, ICMP, ICMPV6, packed, total

MACS = bytes.fromhex("02000000 0a02 02000000 0c01")
KINDS = {4: struct.pack("!H", 0x0800), 6: struct.pack("!H", 0x86DD)}


@dataclass(frozen=True)
class Piece:
    """What makes a packet a fragment of one."""

    identity: int
    offset: int
    """In units of 8 bytes."""
    more: bool


@dataclass(frozen=True)
class Envelope:
    """The network header."""

    source: str
    destination: str
    ttl: int = 64
    options: bytes = b""
    """IPv4's; whole words."""
    extensions: int = 0
    """IPv6's, of the harmless kinds."""
    piece: Piece | None = None
    may_be_cut: bool = True

    @property
    def version(self) -> int:
        return 6 if ":" in self.source else 4


def check(covered: bytes) -> int:
    """RFC 1071's checksum of it; the field itself counts as zero."""
    return (0xFFFF - total(covered)) % 0xFFFF


def summed(envelope: Envelope, protocol: int, carried: bytes, at: int) -> bytes:
    """With the checksum at ``at``, pseudo header included (ICMP has none over IPv4)."""
    addresses = packed(envelope.source) + packed(envelope.destination)
    pseudo = b"" if protocol == ICMP else addresses + struct.pack("!II", len(carried), protocol)
    value = check(pseudo + carried)
    if protocol == UDP and not value:
        value = 0xFFFF
    return carried[:at] + struct.pack("!H", value) + carried[at + 2 :]


def tcp(
    envelope: Envelope,
    ports: tuple[int, int],
    flags: str = "A",
    numbers: tuple[int, int] = (1000, 2000),
    payload: bytes = b"",
    options: bytes = b"",
) -> bytes:
    """``options``: whole words."""
    bits = sum(1 << FLAGS.index(flag) for flag in flags)
    words = 5 + len(options) // 4
    header = struct.pack("!HHIIBBHHH", *ports, *numbers, words << 4, bits, 8192, 0, 0)
    return summed(envelope, TCP, header + options + payload, 16)


def udp(envelope: Envelope, ports: tuple[int, int], payload: bytes = b"") -> bytes:
    return summed(envelope, UDP, struct.pack("!HHHH", *ports, 8 + len(payload), 0) + payload, 6)


def icmp(envelope: Envelope, kind: int, code: int, rest: bytes) -> bytes:
    """``rest``: from the fifth byte on."""
    protocol = ICMPV6 if envelope.version == 6 else ICMP
    return summed(envelope, protocol, struct.pack("!BBH", kind, code, 0) + rest, 2)


def packet(envelope: Envelope, protocol: int, carried: bytes) -> bytes:
    """From the network header on."""
    piece = envelope.piece
    if envelope.version == 4:
        field = (piece.more << 13 | piece.offset) if piece else 0
        field |= 0 if envelope.may_be_cut else 0x4000
        words, size = 5 + len(envelope.options) // 4, 20 + len(envelope.options) + len(carried)
        identity = piece.identity if piece else 7
        header = struct.pack(
            "!BBHHHBBH", 4 << 4 | words, 0x28, size, identity, field, envelope.ttl, protocol, 0
        )
        header += packed(envelope.source) + packed(envelope.destination) + envelope.options
        return header[:10] + struct.pack("!H", check(header)) + header[12:] + carried
    chain = [HOP_BY_HOP, *[DESTINATION] * (envelope.extensions - 1)][: envelope.extensions]
    kinds = [*chain, *([FRAGMENT] if piece else []), protocol]
    headers = b"".join(bytes([following, 0, 1, 4, 0, 0, 0, 0]) for following in kinds[1 : len(chain) + 1])
    if piece:
        headers += struct.pack("!BBHI", protocol, 0, piece.offset << 3 | piece.more, piece.identity)
    carried = headers + carried
    header = struct.pack("!IHBB", 0x62812345, len(carried), kinds[0], envelope.ttl)
    return header + packed(envelope.source) + packed(envelope.destination) + carried


def frame(envelope: Envelope, protocol: int, carried: bytes) -> bytes:
    return MACS + KINDS[envelope.version] + packet(envelope, protocol, carried)
