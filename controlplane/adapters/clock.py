# SPDX-License-Identifier: Apache-2.0
"""The machine's clocks, and a wait that a signal or a finding ends early."""

from __future__ import annotations

import threading
import time


class MachineClock:
    """``ports.Clock`` on CLOCK_MONOTONIC and CLOCK_REALTIME."""

    def __init__(self) -> None:
        self._woken = threading.Event()

    def now_s(self) -> float:
        return time.monotonic()

    def unix_s(self) -> float:
        return time.time()

    def wait_until(self, at_s: float) -> None:
        self._woken.wait(max(0.0, at_s - time.monotonic()))
        self._woken.clear()

    def wake(self) -> None:
        """Ends the present wait, or the next one at once. Safe from any thread and from signal handlers."""
        self._woken.set()
