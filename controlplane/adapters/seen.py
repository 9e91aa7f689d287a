# SPDX-License-Identifier: Apache-2.0
"""Which rows of a map differ from when they were last looked at: a comparison of memory, nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

_LINE_WORDS = 8


class Seen:
    """Remembers rows; in the beginning each is all zeros, as in a new map.

    :param rows: (n,) of a struct, or (n, m) of a number, in the map's memory: a multiple of 64 bytes each.
    :param words: of each row's 64-bit words those that matter, if each row has eight; None: all.
    """

    def __init__(self, rows: npt.NDArray[Any], words: Iterable[int] | None = None) -> None:
        self._now = rows.view("<u8").reshape(len(rows), -1)
        self._held = np.zeros_like(self._now)
        mask = np.full(_LINE_WORDS, 0xFF if words is None else 0, np.uint8)
        if words is not None:
            mask[list(words)] = 0xFF
        self._mask = mask.view("<u8")
        self.rows: npt.NDArray[Any] = self._held.view(rows.dtype).reshape(rows.shape)
        """As they were taken last; of a row of which nothing matters changed, perhaps earlier ones."""

    def take(self) -> npt.NDArray[np.intp]:
        """Indices of the rows that differ, ascending; from now on they are remembered as they are.

        A row that is being written may be seen half; its rest is a difference the next time.
        """
        # One byte per word says whether it differs: eight of them are a number again.
        lines = (self._now != self._held).view("<u8") & self._mask
        differs = lines[:, 0] if lines.shape[1] == 1 else lines.any(axis=1)
        changed = np.flatnonzero(differs)
        self._held[changed] = self._now[changed]
        return changed
