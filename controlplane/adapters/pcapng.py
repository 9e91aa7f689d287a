# SPDX-License-Identifier: Apache-2.0
"""Blocks of a pcapng file (draft-ietf-opsawg-pcapng): Ethernet, nanoseconds, verdicts, comments."""

from __future__ import annotations

import struct

_SECTION, _INTERFACE, _PACKET = 0x0A0D0D0A, 1, 6
_BYTE_ORDER, _LINKTYPE_ETHERNET, _NANOSECONDS = 0x1A2B3C4D, 1, 9
_COMMENT, _NAME, _DESCRIPTION, _RESOLUTION, _APPLICATION = 1, 2, 3, 9, 4
_FLAGS, _VERDICT = 2, 4 + 3
_VERDICT_XDP = 2
_PACKET_HEAD = struct.Struct("<IIIIIII")
_WORD = struct.Struct("<I")
_PADDING = (b"", b"\0\0\0", b"\0\0", b"\0")
INBOUND, OUTBOUND = 1, 2


def section(application: str) -> bytes:
    """What a file begins with; of unknown length, so that it can be a pipe."""
    head = struct.pack("<IHHq", _BYTE_ORDER, 1, 0, -1)
    return _block(_SECTION, head + _option(_APPLICATION, application.encode()) + _option(0, b""))


def interface(name: str, description: str, snap: int) -> bytes:
    """The n-th of them is interface n of the packets; all have to come with the same ``snap``."""
    head = struct.pack("<HHI", _LINKTYPE_ETHERNET, 0, snap)
    options = (
        (_NAME, name.encode()),
        (_DESCRIPTION, description.encode()),
        (_RESOLUTION, bytes([_NANOSECONDS])),
        (0, b""),
    )
    return _block(_INTERFACE, head + b"".join(_option(code, value) for code, value in options))


def packet_options(comment: str, direction: int, verdict: int) -> bytes:
    """For ``packet``, which many have alike. ``verdict`` is an XDP_* number."""
    verdicts = struct.pack("<BQ", _VERDICT_XDP, verdict)
    options = (
        (_COMMENT, comment.encode()),
        (_FLAGS, struct.pack("<I", direction)),
        (_VERDICT, verdicts),
        (0, b""),
    )
    return b"".join(_option(code, value) for code, value in options)


def packet(number: int, time_ns: int, length: int, data: bytes, options: bytes) -> bytes:
    """A frame of interface ``number``. ``time_ns`` since 1970; ``length`` as it was on the wire."""
    padding = _PADDING[len(data) & 3]
    total = _PACKET_HEAD.size + len(data) + len(padding) + len(options) + _WORD.size
    high, low = time_ns >> 32, time_ns & 0xFFFFFFFF
    head = _PACKET_HEAD.pack(_PACKET, total, number, high, low, len(data), length)
    return b"".join((head, data, padding, options, _WORD.pack(total)))


def _option(code: int, value: bytes) -> bytes:
    return struct.pack("<HH", code, len(value)) + value + _PADDING[len(value) & 3]


def _block(kind: int, body: bytes) -> bytes:
    total = len(body) + 3 * _WORD.size
    return _WORD.pack(kind) + _WORD.pack(total) + body + _WORD.pack(total)
