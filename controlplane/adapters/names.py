# SPDX-License-Identifier: Apache-2.0
"""Which row of a map has which name.

Who is where stands in the maps alone, and other processes write there too. So what is remembered here is
a hint: a row is looked at again before it is named, and what is not there is looked for among the rows
that changed. Nothing depends on who wrote, or on being told of it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from controlplane.adapters import layout
from controlplane.adapters.seen import Seen

_NAME_WORDS = range(layout.NAME_BYTES // 8)


class Names:
    """Names of the rows that are present.

    :param flags: (n,) of unsigned integers, in the map's memory.
    :param present: the bit of ``flags`` that says that a row is somebody's.
    :param labels: (n,) of layout.LABEL.
    """

    def __init__(self, flags: npt.NDArray[np.integer], present: int, labels: npt.NDArray[np.void]) -> None:
        self._flags, self._bit = flags, flags.dtype.type(present)
        self._labels = labels["name"]
        self._named = Seen(labels, _NAME_WORDS)
        self._present = np.zeros(len(labels), np.bool_)
        self._rows: dict[str, int] = {}
        self._name_of: dict[int, str] = {}
        self._lent = False

    def get(self, name: str) -> int | None:
        """The row of that name; None: nobody has it. A microsecond for who is where it was, whatever the
        number of rows."""
        row = self._rows.get(name)
        if row is not None and self._flags[row] & self._bit and _text(self._labels[row]) == name:
            return row
        self._refresh()
        return self._rows.get(name)

    def rows(self) -> Mapping[str, int]:
        """Name of each row that is present -> its index, as it is now; never changed later."""
        self._refresh()
        self._lent = True
        return self._rows

    def _refresh(self) -> None:
        present = (self._flags & self._bit) != 0
        changed = np.union1d(self._named.take(), np.flatnonzero(present != self._present))
        self._present = present
        if not changed.size:
            return
        if self._lent:
            self._rows, self._lent = dict(self._rows), False
        for row in changed.tolist():
            before = self._name_of.pop(row, None)
            if before is not None and self._rows.get(before) == row:
                del self._rows[before]
        there = changed[present[changed]]
        for row, label in zip(there.tolist(), self._named.rows["name"][there], strict=True):
            name = _text(label)
            self._rows[name] = row
            self._name_of[row] = name


def _text(label: bytes) -> str:
    return bytes(label).decode(errors="replace")
