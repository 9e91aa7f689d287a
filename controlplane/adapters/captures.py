# SPDX-License-Identifier: Apache-2.0
"""``bpf/capture.h`` as numpy dtypes, and its ring buffer read record by record.

Held equal to the C by ``tests/packet/test_layout.py``; no part of the layout of an instance's maps, for the
program that steers captures nothing.
"""

from __future__ import annotations

import mmap
import struct
from ipaddress import IPv4Network
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from controlplane.adapters import layout, libbpf
from controlplane.adapters.libbpf import MapType
from controlplane.addresses import Network

SNAP_MAX = 16384
ANY = 0xFFFFFFFF
RING_BYTES = 1 << 25
CAPTURING = np.dtype(
    [
        ("until_tick", "<u4"),
        ("snap", "<u4"),
        ("reasons", "<u8"),
        ("service", "<u4"),
        ("endpoint", "<u4"),
        ("client", "u1", 16),
        ("mask", "u1", 16),
    ]
)
CAPTURED = np.dtype(
    [
        ("time_ns", "<u8"),
        ("number", "<u8"),
        ("cpu", "<u4"),
        ("ifindex", "<u4"),
        ("length", "<u4"),
        ("captured", "<u4"),
        ("service", "<u4"),
        ("endpoint", "<u4"),
        ("leaves", "u1"),
        ("verdict", "u1"),
        ("reason", "u1"),
        ("pad", "u1", 5),
    ]
)
CAPTURED_FRAME = np.dtype([("head", CAPTURED), ("data", "u1", SNAP_MAX)])
CAPTURE_CPU = np.dtype(
    [
        ("number", "<u8"),
        ("lost", "<u8"),
        ("unseen", "<u8"),
        ("on", "<u4"),
        ("reason", "<u4"),
        ("service", "<u4"),
        ("endpoint", "<u4"),
        ("came", CAPTURED_FRAME),
        ("leaves", CAPTURED_FRAME),
    ]
)
STRUCTS = {
    "capturing": CAPTURING,
    "captured": CAPTURED,
    "captured_frame": CAPTURED_FRAME,
    "capture_cpu": CAPTURE_CPU,
}

_HEAD = struct.Struct("<QQIIIIIIBBB5x")
_LENGTH = struct.Struct("<I")
_RECORD_HEAD = 8
_BUSY, _DISCARDED = 1 << 31, 1 << 30
_AT_ONCE = 8192


def make_maps() -> dict[str, int]:
    """Those that the capturing build has beside the others: name -> descriptor."""
    cpus, index = libbpf.possible_cpus(), layout.INDEX.itemsize
    arrays = {"capture_wanted": (CAPTURING, 1), "capture_cpus": (CAPTURE_CPU, cpus)}
    found = {
        name: libbpf.map_create(MapType.ARRAY, name, index, dtype.itemsize, entries, libbpf.BPF_F_MMAPABLE)
        for name, (dtype, entries) in arrays.items()
    }
    return found | {"captured": libbpf.map_create(MapType.RINGBUF, "captured", 0, 0, RING_BYTES)}


def asked(
    client: Network | None, snap: int, reasons: int, service: int = ANY, endpoint: int = ANY
) -> npt.NDArray[np.void]:
    """A ``struct capturing``; until when is for later. ``reasons``: bits of layout.REASONS' places."""
    row = np.zeros((), CAPTURING)
    row["snap"], row["reasons"], row["service"], row["endpoint"] = snap, reasons, service, endpoint
    if client is not None:
        length = client.prefixlen + (96 if isinstance(client, IPv4Network) else 0)
        mask = (1 << 128) - (1 << 128 - length)
        row["mask"] = np.frombuffer(mask.to_bytes(16, "big"), "u1")
        row["client"] = np.frombuffer(layout.mapped(client.network_address), "u1")
    return row


class Frame(NamedTuple):
    """A ``struct captured``, and what follows it."""

    time_ns: int
    number: int
    cpu: int
    ifindex: int
    length: int
    captured: int
    service: int
    endpoint: int
    leaves: int
    verdict: int
    reason: int
    data: bytes


class FrameRing:
    """The only reader's view of the ring (Documentation/bpf/ringbuf.rst)."""

    def __init__(self, fd: int) -> None:
        self._bytes = libbpf.map_info(fd).max_entries
        page = mmap.PAGESIZE
        consumer = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
        # The producer's page, and the data mapped twice in a row: records never wrap.
        self._rest = mmap.mmap(fd, page + 2 * self._bytes, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._consumed: npt.NDArray[np.uint64] = np.frombuffer(consumer, "<u8", 1)
        self._produced: npt.NDArray[np.uint64] = np.frombuffer(self._rest, "<u8", 1)

    def read(self) -> list[Frame]:
        """The next frames, some thousands at most, in the order in which they were put there."""
        rest, mask, first = self._rest, self._bytes - 1, mmap.PAGESIZE
        at, end = int(self._consumed[0]), int(self._produced[0])
        frames: list[Frame] = []
        while at < end and len(frames) < _AT_ONCE:
            place = first + (at & mask)
            (length,) = _LENGTH.unpack_from(rest, place)
            if length & _BUSY:
                break
            if not length & _DISCARDED:
                head = _HEAD.unpack_from(rest, place + _RECORD_HEAD)
                data = place + _RECORD_HEAD + _HEAD.size
                frames.append(Frame._make((*head, rest[data : data + head[5]])))
            at += _RECORD_HEAD + ((length & ~_DISCARDED) + 7 & ~7)
        self._consumed[0] = at
        return frames
