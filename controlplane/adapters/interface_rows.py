# SPDX-License-Identifier: Apache-2.0
"""Which row of the counters each interface has: the maps ``interfaces`` and ``interface_labels``.

The program finds a row by one multiplication (bpf/interface.h), so the multiplier is chosen here: one under
which all attached interfaces have rows of their own. A row stays its interface's until unload, also when that
is no longer attached, and counts are summed by name: when another multiplier has to be taken, an interface
goes on in another row, and what it counted before stays its own. The more rows have an owner, the rarer are
such multipliers: who has no row of its own under the best of those tried is counted among the others.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from controlplane.adapters import layout
from controlplane.adapters.maps import Maps

_TRIES = 16
_TRIED_AT_ONCE = 4096
"""Multipliers; with 16 interfaces, every second one serves; with 24 and 48 rows taken, one in 600."""


def namespace() -> int:
    """The calling thread's network namespace, as the kernel numbers it."""
    return Path("/proc/thread-self/ns/net").stat().st_ino


def assign(maps: Maps, interfaces: Mapping[int, str], netns: int) -> tuple[str, ...]:
    """Gives each of the attached interfaces (ifindex -> name) a row, and takes theirs from those that are
    attached no longer. Returns the names of those for whom there is none.

    Safe for packets in flight: whatever a packet finds meanwhile is its interface's row, or the others'.
    """
    rows, labels = maps.interfaces, maps.interface_labels
    for row in np.flatnonzero(rows["netns"] == netns).tolist():
        name = interfaces.get(int(rows["ifindex"][row]))
        if name is not None:
            labels["name"][row] = name.encode()  # it may have been renamed
    indices = np.array(list(interfaces), np.uint32)
    names = np.array([name.encode() for name in interfaces.values()], labels["name"].dtype)
    multiplier, places = _fitting(int(maps.settings["interface_multiplier"]), indices, names, labels["name"])
    cells = rows.view("<u8").reshape(-1)
    for ifindex, name, row in zip(indices.tolist(), names, places.tolist(), strict=True):
        if row != layout.OTHER_INTERFACES:
            labels["name"][row] = name
            cells[row] = netns << 32 | ifindex
    maps.settings["interface_multiplier"] = multiplier
    cells[np.setdiff1d(np.arange(layout.INTERFACE_ROWS), places)] = 0
    return tuple(interfaces[ifindex] for ifindex in indices[places == layout.OTHER_INTERFACES].tolist())


def rows_of(multipliers: npt.NDArray[np.uint32], indices: npt.NDArray[np.uint32]) -> npt.NDArray[np.intp]:
    """``interface_row`` of bpf/interface.h: (multipliers, indices)."""
    product = multipliers[:, None].astype(np.uint64) * indices[None, :] & np.uint64(0xFFFFFFFF)
    return (product >> np.uint64(layout.INTERFACE_SHIFT)).astype(np.intp)


def _fitting(
    present: int,
    indices: npt.NDArray[np.uint32],
    names: npt.NDArray[np.bytes_],
    owners: npt.NDArray[np.bytes_],
) -> tuple[int, npt.NDArray[np.intp]]:
    """A multiplier with the most rows of their own, the present one if it has as many; and the rows."""
    random = np.random.default_rng(0)
    best, placed, chosen = present, -1, np.zeros(0, np.intp)
    tried = np.array([present], np.uint32)
    for _ in range(_TRIES):
        rows = rows_of(tried, indices)
        taken = (owners[rows] != b"") & (owners[rows] != names[None, :])
        rows = _distinct(np.where(taken, layout.OTHER_INTERFACES, rows))
        having = (rows != layout.OTHER_INTERFACES).sum(axis=1)
        at = int(having.argmax())
        if having[at] > placed:
            best, placed, chosen = int(tried[at]), int(having[at]), rows[at]
        if placed == indices.size:
            break
        tried = random.integers(0, 1 << 31, _TRIED_AT_ONCE, np.uint32) * np.uint32(2) + np.uint32(1)
    return best, chosen


def _distinct(rows: npt.NDArray[np.intp]) -> npt.NDArray[np.intp]:
    """Who meets another on the way there has none."""
    order = rows.argsort(axis=1, kind="stable")
    ordered = np.take_along_axis(rows, order, 1)
    met = np.zeros_like(ordered, bool)
    met[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    np.put_along_axis(met, order, met.copy(), 1)
    return np.where(met, layout.OTHER_INTERFACES, rows)
