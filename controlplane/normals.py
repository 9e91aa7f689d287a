# SPDX-License-Identifier: Apache-2.0
"""What is normal, as text in the store: who begins anew while an endpoint is slow or failing must not take
that for normal. Rates change with the hour: they are normal for some minutes only."""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from controlplane.baseline import Baseline

_RATES_S, _ALL_S = 600.0, 86_400.0
"""So long what was normal is believed: of rates, of all else."""
_TYPE = "<f4"
_MOST = 1e30


def text(baseline: Baseline, rows: npt.NDArray[np.intp], now_unix_s: float) -> str:
    """Of these rows; some 200 bytes each."""
    state = np.nan_to_num(baseline.state(rows), posinf=_MOST, neginf=-_MOST).astype(_TYPE)
    return json.dumps(
        {
            "at": round(now_unix_s, 1),
            "names": [baseline.names[row] for row in rows.tolist()],
            "normal": base64.b64encode(state.tobytes()).decode(),
        }
    )


def recall(baseline: Baseline, kept: str, now_unix_s: float) -> None:
    """Takes it up, of rows of the same names. Raises ``ValueError`` with what is wrong with it."""
    try:
        told = json.loads(kept)
        at_s, names, raw = float(told["at"]), told["names"], base64.b64decode(told["normal"], validate=True)
    except (ValueError, TypeError, KeyError, binascii.Error) as error:
        raise ValueError(f"what was normal is not readable: {type(error).__name__}: {error}") from error
    height = len(baseline.state(np.zeros(0, np.intp)))
    if not _are_names(names) or len(raw) != np.dtype(_TYPE).itemsize * height * len(names):
        raise ValueError("what was normal is not of this version, or cut off")
    state = np.frombuffer(raw, _TYPE).reshape(height, len(names)).astype(np.float64)
    if not np.isfinite(state).all():
        raise ValueError("what was normal has values that are no numbers")
    if not 0.0 <= now_unix_s - at_s <= _ALL_S:
        return
    index = {name: row for row, name in enumerate(baseline.names)}
    there = [at for at, name in enumerate(names) if name in index]
    rows = np.array([index[names[at]] for at in there], dtype=np.intp)
    baseline.restore(rows, state[:, there], with_rates=now_unix_s - at_s <= _RATES_S)


def _are_names(told: object) -> bool:
    return (
        isinstance(told, Sequence) and not isinstance(told, str) and all(isinstance(one, str) for one in told)
    )
