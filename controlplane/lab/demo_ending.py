# SPDX-License-Identifier: Apache-2.0
"""Ctrl-C and its like, obeyed between two steps and never in the middle of one."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class EndedError(Exception):
    """Somebody asked for the end; ``number`` is the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


class Ending:
    """While installed, signals are remembered; ``check`` raises. ``wake`` ends a present wait."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self.asked: int | None = None

    @contextmanager
    def installed(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._take) for number in NUMBERS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _take(self, number: int, frame: FrameType | None) -> None:
        self.asked = self.asked or number
        self._wake()

    def check(self) -> None:
        if self.asked is not None:
            raise EndedError(self.asked)

    @contextmanager
    def blocked(self) -> Iterator[None]:
        """Signals wait, for this process and for commands started meanwhile: a second Ctrl-C must not
        end what cleans up."""
        before = signal.pthread_sigmask(signal.SIG_BLOCK, NUMBERS)
        try:
            yield
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
