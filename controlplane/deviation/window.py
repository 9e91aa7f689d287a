# SPDX-License-Identifier: Apache-2.0
"""How much the last values vary, and how much they move from one to the next."""

from __future__ import annotations

import numpy as np

_SIZE = 40


class Window:
    size = _SIZE

    def __init__(self) -> None:
        self._values, self._jumps = np.zeros(_SIZE), np.zeros(_SIZE)
        self._count = 0

    def push(self, value: float) -> None:
        slot = self._count % _SIZE
        self._jumps[slot] = abs(value - self._values[(self._count - 1) % _SIZE]) if self._count else 0.0
        self._values[slot] = value
        self._count += 1

    @property
    def spread(self) -> float:
        """Standard deviation."""
        values = self._values[: self._count]
        scale = float(np.abs(values).max())  # the square of a large number is none
        return _rounded(float((values / scale).std()) * scale) if scale > 0 else 0.0

    @property
    def roughness(self) -> float:
        """Mean distance of neighbours."""
        jumps = self._jumps[: self._count]
        scale = float(jumps.max())
        return _rounded(float((jumps / scale).mean()) * scale) if scale > 0 else 0.0


def _rounded(number: float) -> float:
    """So that the same values in another order give the same."""
    return float(f"{number:.9g}")
