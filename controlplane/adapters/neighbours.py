# SPDX-License-Identifier: Apache-2.0
"""The kernel's neighbours, by rtnetlink(7): thousands in milliseconds, since they are read all the time."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass

_GET_NEIGHBOURS = 30
_ERROR, _DONE = 2, 3
_REQUEST, _DUMP, _INTERRUPTED = 0x1, 0x300, 0x10
_DESTINATION, _LINK_ADDRESS, _EXTENDED_FLAGS = 1, 2, 15
_MANAGED = 1
_USABLE = 0x02 | 0x04 | 0x08 | 0x10 | 0x80
"""NUD_REACHABLE, STALE, DELAY, PROBE, PERMANENT: the address is known (linux/neighbour.h)."""
_HEADER = struct.Struct("=IHHII")
"""struct nlmsghdr: length, type, flags, sequence number, port."""
_ENTRY = struct.Struct("=BxxxiHBB")
"""struct ndmsg: family, ifindex, state, flags, type."""
_ATTRIBUTE = struct.Struct("=HH")
_READ_BYTES = 1 << 18
_TRIES = 3


@dataclass(frozen=True, slots=True)
class Neighbour:
    mac: bytes | None
    """None: not resolved."""
    managed: bool
    """The kernel keeps it resolved by itself (NTF_MANAGED)."""


def read(family: int) -> dict[tuple[int, bytes], Neighbour]:
    """(index of the interface, packed address) -> neighbour, of one address family. Raises OSError."""
    for _ in range(_TRIES):
        found: dict[tuple[int, bytes], Neighbour] = {}
        whole = True
        for message, flags in _dump(family):
            whole &= not flags & _INTERRUPTED
            _, ifindex, state, _, _ = _ENTRY.unpack_from(message)
            attributes = _attributes(message)
            destination = attributes.get(_DESTINATION)
            if destination is not None:
                mac = bytes(attributes.get(_LINK_ADDRESS, b"")) if state & _USABLE else b""
                managed = int.from_bytes(attributes.get(_EXTENDED_FLAGS, b""), "little") & _MANAGED
                found[ifindex, bytes(destination)] = Neighbour(mac or None, bool(managed))
        if whole:
            break  # else some changed meanwhile and one may be missing: once more
    return found


def _dump(family: int) -> Iterator[tuple[memoryview, int]]:
    """Each entry from its ``struct ndmsg`` on, with the message's flags."""
    request = _ENTRY.pack(family, 0, 0, 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.bind((0, 0))
        header = _HEADER.pack(_HEADER.size + len(request), _GET_NEIGHBOURS, _REQUEST | _DUMP, 1, 0)
        kernel.sendto(header + request, (0, 0))
        while True:
            rest = memoryview(kernel.recv(_READ_BYTES))
            while rest:
                length, kind, flags, _, _ = _HEADER.unpack_from(rest)
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    number = -int.from_bytes(rest[_HEADER.size : _HEADER.size + 4], "little", signed=True)
                    raise OSError(number, f"dump of neighbours: {os.strerror(number)}")
                yield rest[_HEADER.size : length], flags
                rest = rest[_aligned(length) :]


def _attributes(message: memoryview) -> dict[int, memoryview]:
    """Type -> value of each ``struct rtattr``."""
    found, at = {}, _ENTRY.size
    while at + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, at)
        found[kind] = message[at + _ATTRIBUTE.size : at + length]
        at += _aligned(length)
    return found


def _aligned(length: int) -> int:
    return length + 3 & ~3
