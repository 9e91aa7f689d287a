# SPDX-License-Identifier: Apache-2.0
"""When a member is checked next, and how many answers in a row were alike."""

from __future__ import annotations

import random

from controlplane.model import Probe

QUICK_S = 0.1
"""Between the checks of a member of whom nothing is known yet, or who is asked about."""
QUICK_PER_S = 2000.0
"""Of all members of whom nothing is known yet: where there are thousands each waits longer."""
ASKED_AGAIN_S = 1.0
"""Who was asked about is asked about again after so long."""


class Beat:
    """One member's. Its checks never overlap."""

    __slots__ = ("_alike", "_asked", "_asked_s", "_ok", "_settled", "due_s", "probe")

    def __init__(self, probe: Probe, due_s: float) -> None:
        self.probe = probe
        self.due_s = due_s
        """When its next check is to begin."""
        self._ok: bool | None = None
        self._alike = 0
        self._settled = False
        self._asked = False
        self._asked_s = -ASKED_AGAIN_S

    @property
    def is_new(self) -> bool:
        """So few answers came that nothing is known of it yet."""
        return not self._settled

    def ask(self, now_s: float) -> bool:
        """It shows signs of trouble: it is checked at once, and again and again until it answers well or is
        known to be down. False: it was asked about just now, or is known to be down."""
        is_down = self._ok is False and self._alike >= self.probe.fall
        if is_down or now_s - self._asked_s < ASKED_AGAIN_S:
            return False
        self._asked, self._asked_s = True, now_s
        self.due_s = min(self.due_s, now_s)
        return True

    def take(self, ok: bool, took_s: float, now_s: float, new: int = 1) -> bool:
        """Its check has ended. True if by so many alike answers in a row its health may flip.

        :param new: so many members are new."""
        self._alike = self._alike + 1 if ok is self._ok else 1
        self._ok = ok
        flips = self._alike == (self.probe.rise if ok else self.probe.fall)
        self._settled |= flips
        self._asked &= not (ok or flips)
        self.due_s = max(self.due_s + self._gap_s(took_s, new), now_s)
        return flips

    def skip(self, now_s: float) -> None:
        """It could not be checked."""
        self.due_s = max(self.due_s + self.probe.interval_s, now_s)

    def _gap_s(self, took_s: float, new: int) -> float:
        probe = self.probe
        if not self._settled:
            return quick_s(probe, new)
        if self._asked:
            return min(probe.interval_s, QUICK_S)
        if self._ok is False and self._alike < probe.fall:
            # The last of them ends, if it takes as long, `interval x fall` after the last good one began.
            return max(probe.interval_s - took_s / (probe.fall - 1), 0.0)
        return probe.interval_s * (1.0 - probe.jitter * random.random())


def quick_s(probe: Probe, new: int) -> float:
    """Between checks of new members, of whom there are so many."""
    return min(probe.interval_s, max(QUICK_S, new / QUICK_PER_S))
