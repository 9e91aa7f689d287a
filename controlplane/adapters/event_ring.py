# SPDX-License-Identifier: Apache-2.0
"""The events' ring buffer, read through its mapped pages (Documentation/bpf/ringbuf.rst): no polling thread,
no callback per event."""

from __future__ import annotations

import mmap

import numpy as np
import numpy.typing as npt

from controlplane.adapters import layout, libbpf

_BUSY = np.uint32(1 << 31)
_DISCARDED = np.uint32(1 << 30)
_RECORD = np.dtype([("length", "<u4"), ("page", "<u4"), ("event", layout.EVENT)])
"""As long as every record: the program reserves nothing but struct event, whose size is a multiple of 8."""


class EventRing:
    """One reader's view; the place up to where it was read is shared by all readers, in the kernel."""

    def __init__(self, fd: int) -> None:
        self._bytes = libbpf.map_info(fd).max_entries
        page = mmap.PAGESIZE
        consumer = mmap.mmap(fd, page, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE, offset=0)
        # The producer's page, and the data mapped twice in a row: records never wrap.
        rest = mmap.mmap(fd, page + 2 * self._bytes, mmap.MAP_SHARED, mmap.PROT_READ, offset=page)
        self._consumed = np.frombuffer(consumer, "<u8", 1)
        self._produced = np.frombuffer(rest, "<u8", 1)
        self._data = np.frombuffer(rest, "u1", 2 * self._bytes, offset=page)

    def read(self, *, keep: bool = False) -> npt.NDArray[np.void]:
        """Events since the last read, oldest first, as layout.EVENT; ``keep`` leaves them for others."""
        start = int(self._consumed[0])
        count = (int(self._produced[0]) - start) // _RECORD.itemsize
        at = start % self._bytes
        records = self._data[at : at + count * _RECORD.itemsize].view(_RECORD)
        lengths = records["length"].copy()
        busy = np.flatnonzero(lengths & _BUSY)
        if busy.size:
            lengths = lengths[: busy[0]]
        events: npt.NDArray[np.void] = records["event"][: lengths.size][lengths & _DISCARDED == 0].copy()
        if not keep:
            self._consumed[0] = start + lengths.size * _RECORD.itemsize
        return events
