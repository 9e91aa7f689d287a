# SPDX-License-Identifier: Apache-2.0
"""Where the program looks up services and endpoints by address, port and protocol (bpf/target.h).

Two-choice hashing with buckets of eight: a target lies in its home bucket or in its other one. One writer
at a time; readers see each entry change by one 64-bit store.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from controlplane.adapters import layout

_U64 = (1 << 64) - 1
_KICKS = 64
"""Entries moved out of the way before a table counts as full; at a quarter full, one is rare."""


def target_hash(key: tuple[int, int], target: bytes) -> int:
    """``hash_target`` of bpf/hash.h: 64 bits of a ``struct target`` of 20 bytes."""
    high, low = int.from_bytes(target[:8], "little"), int.from_bytes(target[8:16], "little")
    port, protocol = int.from_bytes(target[16:18], "little"), target[18]
    value = (high ^ key[0]) * 0xD6E8FEB86659FD93 & _U64
    value ^= low ^ value >> 32
    value = (value + (protocol << 16 | port)) * (key[1] | 1) & _U64
    value ^= value >> 32
    value = value * 0x9E3779B97F4A7C15 & _U64
    return value ^ value >> 32


class TargetTable:
    """A view on one map of ``struct target_bucket``.

    :param entries: (buckets, TARGET_WAYS) of uint64, the map's memory; buckets are a power of two.
    :param rows: what the indices name, (n,) of layout.SERVICE or layout.ENDPOINT.
    :param address: the field of ``rows`` that holds the address.
    :param settings: () of layout.SETTINGS, for the hash key.
    """

    def __init__(
        self,
        entries: npt.NDArray[np.uint64],
        rows: npt.NDArray[np.void],
        address: str,
        settings: npt.NDArray[np.void],
    ) -> None:
        self._entries, self._rows, self._address, self._settings = entries, rows, address, settings

    def get(self, target: bytes) -> int | None:
        """Index of the row whose address, port and protocol are ``target``; None: not in the table."""
        at = self._find(target)
        return None if at is None else int(self._entries[at]) & 0xFFFFFFFF

    def put(self, target: bytes, index: int) -> None:
        """Points the target at a row, which must be written before. Raises OverflowError: table full."""
        home, tag = self._home(target)
        at = self._find(target)
        if at is None:
            at = self._place(home, tag)
        self._entries[at] = tag << 32 | index

    def delete(self, target: bytes) -> None:
        at = self._find(target)
        if at is not None:
            self._entries[at] = 0

    def clear(self) -> None:
        self._entries[...] = 0

    def _home(self, target: bytes) -> tuple[int, int]:
        value = target_hash(tuple(self._settings["hash_key"].tolist()), target)
        return value & (len(self._entries) - 1), value >> 32 or 1

    def _other(self, bucket: int, tag: int) -> int:
        return layout.other_bucket(bucket, tag, len(self._entries) - 1)

    def _find(self, target: bytes) -> tuple[int, int] | None:
        home, tag = self._home(target)
        for bucket in (home, self._other(home, tag)):
            ways = self._entries[bucket]
            for way in np.flatnonzero(ways >> np.uint64(32) == tag).tolist():
                row = self._rows[int(ways[way]) & 0xFFFFFFFF]
                found = row[self._address].tobytes() + int(row["port"]).to_bytes(2, "big")
                if found + bytes([row["protocol"], 0]) == target:
                    return bucket, way
        return None

    def _place(self, home: int, tag: int) -> tuple[int, int]:
        """A free entry of one of both buckets that has none of this tag, moving others if need be: an
        entry is copied to where it goes before its old place is written, so none is ever missing."""
        for bucket in (home, self._other(home, tag)):
            tags = self._entries[bucket] >> np.uint64(32)
            if not (tags == tag).any() and (free := np.flatnonzero(self._entries[bucket] == 0)).size:
                return bucket, int(free[0])
        path = self._path(home, tag)
        for (bucket, way), (to, to_way) in zip(reversed(path[:-1]), reversed(path[1:]), strict=True):
            self._entries[to, to_way] = self._entries[bucket, way]
        return path[0]

    def _path(self, home: int, tag: int) -> list[tuple[int, int]]:
        """Places, each one's entry to move to the next; the last one is free."""
        bucket = home
        path: list[tuple[int, int]] = []
        for step in range(_KICKS):
            if (free := np.flatnonzero(self._entries[bucket] == 0)).size:
                return [*path, (bucket, int(free[0]))]
            way = (tag + step) % layout.TARGET_WAYS
            if (bucket, way) in path:
                break
            path.append((bucket, way))
            bucket = self._other(bucket, int(self._entries[bucket, way]) >> 32)
        raise OverflowError("no room for another target")
