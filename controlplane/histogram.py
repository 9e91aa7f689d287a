# SPDX-License-Identifier: Apache-2.0
"""The histograms of times that the program keeps: 16 linear buckets of a microsecond, then 16 to the octave
(bpf/histogram.h), so that a bucket is at most a sixteenth wide."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

SUB = 16
BUCKETS = 336
Counts = npt.NDArray[np.integer]


def edges_us() -> npt.NDArray[np.float64]:
    """(BUCKETS + 1,) lower edges of the buckets and the last one's upper edge."""
    bucket = np.arange(BUCKETS + 1)
    octave, sub = bucket // SUB, bucket % SUB
    log = (SUB + sub) * 2.0 ** (octave - 1)
    return np.where(bucket < SUB, bucket, log).astype(np.float64)


def quantiles_us(histograms: Counts, shares: Sequence[float]) -> npt.NDArray[np.float64]:
    """(n, shares) quantiles, interpolated within a bucket; NaN of one without samples.

    :param histograms: (n, BUCKETS), as read, or differences of two readings.
    """
    cumulated = np.cumsum(histograms, axis=1, dtype=np.float64)
    total, edges, rows = cumulated[:, -1], edges_us(), np.arange(len(histograms))
    found = np.full((len(histograms), len(shares)), np.nan)
    for column, share in enumerate(shares):
        # Above 0, or a bucket that is empty would do for the lowest.
        at = np.maximum(share * total, np.nextafter(0.0, 1.0))
        bucket = (cumulated >= at[:, None]).argmax(axis=1)
        held = np.maximum(histograms[rows, bucket], 1)
        inside = 1.0 - (cumulated[rows, bucket] - at) / held
        value = edges[bucket] + inside * (edges[bucket + 1] - edges[bucket])
        found[:, column] = np.where(total > 0, value, np.nan)
    return found
