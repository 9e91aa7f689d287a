# SPDX-License-Identifier: Apache-2.0
"""What the program counts: counters, reasons, histograms. Sums over CPUs, no system calls."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from controlplane.adapters import layout, steering
from controlplane.adapters.maps import Maps
from controlplane.ports import Counters

_FIELDS = tuple(name for name in layout.ENDPOINT_COUNTERS.names or () if name != "pad")


def counters(maps: Maps, at_s: float) -> Counters:
    rows = steering.endpoint_rows(maps)
    top = max(rows.values(), default=0) + 1
    words = layout.ENDPOINT_COUNTERS.itemsize // 8
    cpus = maps.counters.shape[0]
    summed = maps.counters.view("<u8").reshape(cpus, -1, words)[:, :top].sum(axis=0, dtype=np.uint64)
    by_field = {name: summed[:, layout.ENDPOINT_COUNTERS.fields[name][1] // 8] for name in _FIELDS}  # type: ignore[index]
    return Counters(at_s=at_s, rows=rows, **by_field)


def reasons(maps: Maps) -> dict[str, int]:
    """Packets by reason; they only grow."""
    summed = maps.reasons.sum(axis=0, dtype=np.uint64).tolist()
    return dict(zip(layout.REASONS, summed, strict=False))


def bucket_edges_us() -> npt.NDArray[np.float64]:
    """Lower edges of the histogram's buckets and the last one's upper edge (bpf/histogram.h)."""
    bucket = np.arange(layout.HISTOGRAM_BUCKETS + 1)
    octave, sub = bucket // layout.HISTOGRAM_SUB, bucket % layout.HISTOGRAM_SUB
    log = (layout.HISTOGRAM_SUB + sub) * 2.0 ** (octave - 1)
    return np.where(bucket < layout.HISTOGRAM_SUB, bucket, log).astype(np.float64)


def quantiles_us(histogram: npt.NDArray[np.uint32], shares: Sequence[float]) -> list[float | None]:
    """Quantiles of a histogram of microseconds, interpolated within a bucket; None without samples.

    :param histogram: (HISTOGRAM_BUCKETS,), or a difference of two readings.
    """
    cumulated = np.concatenate(([0], np.cumsum(histogram, dtype=np.float64)))
    if not cumulated[-1]:
        return [None] * len(shares)
    # Only rising places count, so that a quantile never falls into an empty bucket.
    rising = np.flatnonzero(np.diff(cumulated) > 0)
    edges = bucket_edges_us()
    found: list[float | None] = []
    for share in shares:
        at = share * cumulated[-1]
        bucket = rising[np.searchsorted(cumulated[rising + 1], at)]
        inside = (at - cumulated[bucket]) / (cumulated[bucket + 1] - cumulated[bucket])
        found.append(float(edges[bucket] + inside * (edges[bucket + 1] - edges[bucket])))
    return found
