# SPDX-License-Identifier: Apache-2.0
"""What the program counts: counters, reasons, histograms. Sums over CPUs."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt

from controlplane.adapters import layout
from controlplane.adapters.maps import Maps
from controlplane.ports import Counters, InterfaceCounts, Redirects

_THREADS = 4
"""One core reads 20 to 25 GB/s, a few all that there is."""
_WORTH_THREADS_BYTES = 16 << 20
"""Less is read in the time that starting threads takes."""
_OTHER = "other"
"""The name under which interfaces without a row of their own are counted together."""
_REQUESTS = layout.SERVICE_REQUESTS_HTTP1 | layout.SERVICE_REQUESTS_TLS
_TRAFFIC = ("packets", "bytes", "return_packets", "return_bytes")


def _names(struct: np.dtype) -> tuple[str, ...]:
    return tuple(name for name in struct.names or () if name != "pad")


_COLUMNS = (*_TRAFFIC, *_names(layout.ENDPOINT_COUNTERS))
"""Of a row as ``struct baseline`` has it."""
_REQUEST_COLUMNS = _names(layout.REQUEST_COUNTERS)


def counters(maps: Maps, at_s: float) -> Counters:
    rows = maps.endpoint_names.rows()
    top = max(rows.values(), default=0) + 1
    tables = [table[:, :top] for table in _tables(maps)]
    told = bool((maps.services["flags"] & _REQUESTS).any())
    if told:
        tables.append(maps.request_counters[:, :top])
    summed = [one.reshape(top, -1) for one in totals(tables, ran(maps))]
    requests = np.zeros((top, len(_REQUEST_COLUMNS)), np.uint64)
    if told:
        requests = summed.pop() - maps.request_baselines[:top].view("<u8").reshape(top, -1)
    before = maps.baselines[:top].view("<u8").reshape(top, -1)
    columns: list[npt.NDArray[np.uint64]] = []  # views: a table of all of them would be a copy
    for one in summed:
        one -= before[:, len(columns) : len(columns) + one.shape[1]]
        columns += list(one.T)
    by_field = dict(zip(_COLUMNS, columns, strict=False))  # padding comes last, here and there
    by_field |= zip(_REQUEST_COLUMNS, requests.T, strict=False)
    return Counters(at_s=at_s, rows=rows, requests_read=told, **by_field)


def _tables(maps: Maps) -> tuple[npt.NDArray[np.void], ...]:
    """(cpus, endpoints) each, in the order of ``struct baseline``."""
    return maps.forwarded, maps.returned, maps.counters


def begin_anew(maps: Maps, index: int) -> None:
    """From here on the counters and times of this index are those of another member.

    What each CPU adds to by itself can't be cleared from here; times can, for they are added atomically.
    """
    maps.baselines[index : index + 1].view("<u8")[:] = np.concatenate(
        [_of_all_cpus(table, index) for table in _tables(maps)]
    )
    maps.request_baselines[index : index + 1].view("<u8")[:] = _of_all_cpus(maps.request_counters, index)
    maps.rtt[index] = maps.response[index] = 0


def _of_all_cpus(table: npt.NDArray[np.void], index: int) -> npt.NDArray[np.uint64]:
    counted = table[:, index].copy().view("<u8").reshape(len(table), -1)
    total: npt.NDArray[np.uint64] = counted.sum(axis=0, dtype=np.uint64)
    return total


def ran(maps: Maps) -> npt.NDArray[np.intp]:
    """CPUs that a packet left on, ascending. The kernel could have far more CPUs than queues interrupt; the
    others' counters are all zero. One that only just begins is counted with the next reading."""
    rows = [layout.OTHER_INTERFACES, *np.flatnonzero(maps.interface_labels["name"] != b"").tolist()]
    return np.flatnonzero(maps.reasons[:, rows].any(axis=(1, 2)))


def totals(
    tables: Sequence[npt.NDArray[np.void]], cpus: npt.NDArray[np.intp]
) -> list[npt.NDArray[np.uint64]]:
    """Sums over CPUs: of each table (cpus, rows) of a struct of 64-bit numbers, (rows * numbers,).

    What it takes is the time that memory takes to be read, so large ones are read by several threads.

    :param cpus: those that count, ascending.
    """
    numbers = [table.view("<u8") for table in tables]
    threads = _THREADS if sum(one[0].nbytes for one in numbers) * cpus.size >= _WORTH_THREADS_BYTES else 1
    parts = np.array_split(cpus, min(threads, len(os.sched_getaffinity(0))))
    if len(parts) == 1:
        return _summed(numbers, cpus)
    with ThreadPoolExecutor(len(parts) - 1) as pool:
        others = pool.map(lambda part: _summed(numbers, part), parts[1:])
        summed = _summed(numbers, parts[0])
    for other in others:
        for total, more in zip(summed, other, strict=True):
            total += more
    return summed


def _summed(
    tables: Sequence[npt.NDArray[np.uint64]], cpus: npt.NDArray[np.intp]
) -> list[npt.NDArray[np.uint64]]:
    """Neighbouring CPUs in one go, which is twice as fast as one by one."""
    blocks = [part for part in np.split(cpus, np.flatnonzero(np.diff(cpus) != 1) + 1) if part.size]
    sums = []
    for table in tables:
        total = np.zeros(table.shape[1], np.uint64)
        for at, block in enumerate(blocks):
            lines = table[block[0] : block[-1] + 1]
            if not at:
                np.add.reduce(lines, axis=0, out=total)
            else:
                for line in lines:
                    total += line
        sums.append(total)
    return sums


def reasons(maps: Maps) -> dict[str, int]:
    """Packets by reason, over all interfaces; they only grow."""
    summed = maps.reasons.sum(axis=(0, 1), dtype=np.uint64).tolist()
    return dict(zip(layout.REASONS, summed, strict=False))


def interfaces(maps: Maps, *, redirects: bool) -> list[InterfaceCounts]:
    """By name: each interface that is attached or was, and those that have no row of their own.

    :param redirects: whether somebody counts them.
    """
    names = maps.interface_labels["name"]
    named = {_OTHER: [layout.OTHER_INTERFACES]}
    for row in np.flatnonzero(names != b"").tolist():
        named.setdefault(bytes(names[row]).decode(), []).append(row)
    return [_interface(maps, name, rows, redirects) for name, rows in named.items()]


def _interface(maps: Maps, name: str, rows: list[int], redirects: bool) -> InterfaceCounts:
    reasons = maps.reasons[:, rows].sum(axis=(0, 1), dtype=np.uint64).tolist()
    there = maps.redirects[:, rows]
    counted = Redirects(
        sent=int(there["sent"].sum()),
        lost=int(there["lost"].sum()),
        refused=int(there["refused"].sum()),
        error=_last_error(there),
    )
    return InterfaceCounts(
        name, dict(zip(layout.REASONS, reasons, strict=False)), counted if redirects else None
    )


def _last_error(redirects: npt.NDArray[np.void]) -> str:
    """Of all CPUs."""
    last = redirects.reshape(-1)[redirects["error_tick"].argmax()]
    code = int(last["error"])
    return errno.errorcode.get(code, str(code)) if code else ""
