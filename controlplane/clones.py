# SPDX-License-Identifier: Apache-2.0
"""What shadows have been like in the last seconds, beside a live endpoint that is slow or failing: if they
are so too, the cause is common to them and one more would not help."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

import numpy as np
import numpy.typing as npt

from controlplane.observe import COUNTED, Counted
from controlplane.signs import Count, Time

Floats = npt.NDArray[np.float64]

_RECENT_S = 10.0
_TELLING = 5.0
"""So many flows, or times, tell something."""
_AS_SLOW, _AS_FAILING = 1.5, 2.0
"""Whoever takes, or fails, as much divided by this is as bad."""
_SHARES = {
    Count.RESETS: ("resets", "flows"),
    Count.UNANSWERED: ("unanswered", "remembered"),
    Count.ABORTED: ("aborted", "requests"),
}
_MEANS = {Time.RTT: ("rtt_sum_us", "rtt_count"), Time.RESPONSE: ("response_sum_us", "response_count")}


class Clones:
    def __init__(self) -> None:
        self._at: dict[str, int] = {}
        self._sums: Floats = np.zeros((len(COUNTED), 0))
        """(counters, shadows) of the last seconds, older ones counting less."""

    def take(self, names: Sequence[str], counted: Counted, over_s: float) -> None:
        """:param counted: (names,) by how much theirs grew."""
        if list(self._at) != list(names):
            before, sums = self._at, np.zeros((len(COUNTED), len(names)))
            for at, name in enumerate(names):
                if name in before:
                    sums[:, at] = self._sums[:, before[name]]
            self._at, self._sums = {name: at for at, name in enumerate(names)}, sums
        self._sums *= math.exp(-over_s / _RECENT_S)
        self._sums += np.nan_to_num(np.vstack([getattr(counted, name) for name in COUNTED]))

    def is_as_bad(self, name: str, signs: Collection[tuple[Count | Time, float]]) -> bool:
        """:param signs: that deviate of the live endpoint: times in us, and shares."""
        at = self._at.get(name)
        if at is None:
            return False
        sums = dict(zip(COUNTED, self._sums[:, at].tolist(), strict=True))
        sums["remembered"] = sums["flows"] - sums["unremembered"]
        sums["unanswered"] = sums["remembered"] - sums["rtt_count"]
        for sign, its in signs:
            part, of = _MEANS[sign] if isinstance(sign, Time) else _SHARES[sign]
            least = its / (_AS_SLOW if isinstance(sign, Time) else _AS_FAILING)
            if sums[of] >= _TELLING and sums[part] >= least * sums[of]:
                return True
        return False
