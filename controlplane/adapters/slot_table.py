# SPDX-License-Identifier: Apache-2.0
"""A live endpoint's shadow table: which of its slots name whom.

Made of names and weights alone, so that every access point makes the same; a changed weight moves about as
many slots as its share changed by.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

from controlplane.adapters.layout import SHADOW_SLOTS


def counts(weights: Mapping[str, float]) -> dict[str, int]:
    """Slots of each name by largest remainder (Hamilton's method); names without a slot are absent.

    Sums to SHADOW_SLOTS, or to 0 when no weight is above 0. Ties go by name.
    """
    names = sorted(name for name, weight in weights.items() if weight > 0)
    total = sum(weights[name] for name in names)
    exact = {name: weights[name] / total * SHADOW_SLOTS for name in names}
    given = {name: int(share) for name, share in exact.items()}
    left = SHADOW_SLOTS - sum(given.values()) if names else 0
    by_remainder = sorted(names, key=lambda name: (given[name] - exact[name], name))
    for name in by_remainder[:left]:
        given[name] += 1
    return {name: count for name, count in given.items() if count}


def place(weights: Mapping[str, float]) -> list[str | None]:
    """The name in each slot; None everywhere when no weight is above 0.

    Every name has its own preference for each slot (rendezvous hashing, Thaler and Ravishankar 1998); the
    strongest preferences are served first, until a name has all its slots.
    """
    left = counts(weights)
    table: list[str | None] = [None] * SHADOW_SLOTS
    names = sorted(left)
    if not names:
        return table
    empty = SHADOW_SLOTS
    for name, slot in _in_turn(tuple(names)):
        if table[slot] is None and left[name]:
            table[slot] = name
            left[name] -= 1
            empty -= 1
            if not empty:
                break
    return table


@lru_cache(maxsize=1024)
def _in_turn(names: tuple[str, ...]) -> list[tuple[str, int]]:
    """All pairs of a name and a slot, the strongest preference first. Kept, for weights change often and
    names seldom."""
    preference = np.concatenate([_preferences(name) for name in names])
    order = np.argsort(preference, kind="stable")[::-1]
    return [(names[at // SHADOW_SLOTS], at % SHADOW_SLOTS) for at in order.tolist()]


def _preferences(name: str) -> npt.NDArray[np.uint64]:
    digest = b"".join(
        blake2b(name.encode(), digest_size=64, salt=block.to_bytes(2, "little")).digest()
        for block in range(SHADOW_SLOTS * 8 // 64)
    )
    return np.frombuffer(digest, "<u8")
