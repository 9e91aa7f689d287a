# SPDX-License-Identifier: Apache-2.0
"""Steps out of nowhere: what no policy that knows only the past is ready for, unless it always is.

A tick is one where at least two members more are needed than within the lead time before it, and where such a
rise was seen in less than a hundredth of the day before. Whoever is over capacity then is excused, all alike.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from controlplane.simulation import plant
from tests.score.replay import TICK_S, Trace

RISE = 2
"""Members."""
DAY_S = 86_400.0
USUAL = 0.99
_ANEW = 12
"""Ticks for which a day's quantile is kept."""


def jumps(trace: Trace, lead_s: float) -> npt.NDArray[np.bool_]:
    """(ticks,) where a jump excuses who is over capacity."""
    need = plant.needed(trace.demand, trace.capacity)
    span = plant.lead_steps(lead_s, TICK_S) + 1
    padded = np.concatenate([np.full(span - 1, need[0]), need])
    rise = need - np.lib.stride_tricks.sliding_window_view(padded, span).min(axis=1)
    usual = np.zeros(len(need))
    day = round(DAY_S / TICK_S)
    for begin in range(_ANEW, len(need), _ANEW):
        usual[begin : begin + _ANEW] = np.quantile(rise[max(begin - day, 0) : begin], USUAL)
    found: npt.NDArray[np.bool_] = (rise >= RISE) & (rise > usual)
    return found
