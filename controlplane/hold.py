# SPDX-License-Identifier: Apache-2.0
"""How long a member stays that is no longer wanted: the longer, the sooner it was wanted again before.

A size near which demand hovers would else start and stop a member all day long. So each restart soon after a
stop doubles that member's hold, and one that comes late makes it the usual one again.
"""

from __future__ import annotations

import numpy as np

_SOON = 2.0
"""Holds after a stop within which a restart is one too soon."""


class Hold:
    """Told step by step which size is wanted. Sizes are indices that ascend from 0."""

    def __init__(self, steps: int, most: int, initial: int) -> None:
        """:param steps: that a member usually stays. ``most``: that one is held at most. ``initial``: the
        size that there is."""
        self._usual, self._most, self._now, self._there = steps, max(steps, most), 0, initial
        self._wanted = np.zeros(max(initial, 8), dtype=np.int64)
        """(sizes,) the step that wanted a larger one last."""
        self._stopped = np.full(len(self._wanted), np.iinfo(np.int64).min // 2)
        self._steps = np.full(len(self._wanted), float(steps))

    @property
    def there(self) -> int:
        return self._there

    def after(self, size: int) -> int:
        """The size to have from now on, no less than the one that is wanted."""
        self._now += 1
        if (missing := size - len(self._wanted)) > 0:
            self._wanted = np.pad(self._wanted, (0, missing))
            self._stopped = np.pad(self._stopped, (0, missing), constant_values=self._stopped.min())
            self._steps = np.pad(self._steps, (0, missing), constant_values=self._usual)
        if size > self._there:
            self._start(slice(self._there, size))
        self._wanted[:size] = self._now
        held = self._now - self._wanted[: max(self._there, size)] < self._steps[: max(self._there, size)]
        there = int(np.flatnonzero(held)[-1]) + 1 if held.any() else 0
        self._stopped[there : self._there] = self._now
        self._there = there
        return there

    def _start(self, sizes: slice) -> None:
        soon = self._now - self._stopped[sizes] <= _SOON * self._steps[sizes]
        longer = np.minimum(2.0 * self._steps[sizes], self._most)
        self._steps[sizes] = np.where(soon, longer, self._usual)
