# SPDX-License-Identifier: Apache-2.0
"""``bpf/note.h``: what a program that was built to tell notes of its decisions.

Held equal to the C by ``tests/packet/test_layout.py``, but no part of the layout of an instance's maps: the
program that steers notes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

NOTES_MAX = 128
NOTES = (
    "long_way", "parsed", "device", "service", "sender", "error_about", "fragment", "hash", "flow", "life",
    "no_flow", "stale", "other_tuple", "no_client", "direct", "affinity", "ring", "live", "spill", "limit",
    "slot", "other_live", "choice", "flooded", "moved", "place", "no_place", "taken", "not_kept", "counted",
    "completed", "gained", "request", "endpoint", "hop", "no_hop", "route", "route_mtu", "no_port",
    "too_big", "refused", "reason",
)  # fmt: skip
STALES = ("gone", "down", "idle", "closed", "draining", "evicted")
CHOICES = ("live", "spilled", "other", "last", "nobody")
COUNTS = ("new", "midstream", "unremembered")
ASKS = ("started", "answered", "aborted", "sent_again")
PARSED = ("parsed", "not_ip", "other", "vlan", "fragment", "icmp", "other_protocol", "broken")
"""``enum parsed`` of bpf/parse.h, without its prefix; the first is PARSED itself."""

NOTE_ROW = np.dtype([("kind", "<u4"), ("a", "<u4"), ("b", "<u8")])
TRACE = np.dtype([("count", "<u4"), ("refused_mtu", "<u4"), ("row", NOTE_ROW, NOTES_MAX)])
STRUCTS = {"note_row": NOTE_ROW, "trace": TRACE}


@dataclass(frozen=True, slots=True)
class Note:
    kind: str
    """One of NOTES; what its numbers mean says bpf/note.h."""
    a: int
    b: int

    @property
    def halves(self) -> tuple[int, int]:
        """Of ``b``: high, low."""
        return self.b >> 32, self.b & 0xFFFFFFFF


def read(trace: npt.NDArray[Any]) -> list[Note]:
    """The notes in a ``struct trace``, in order."""
    rows = trace["row"][: min(int(trace["count"]), NOTES_MAX)]
    return [Note(NOTES[row["kind"]], int(row["a"]), int(row["b"])) for row in rows]
