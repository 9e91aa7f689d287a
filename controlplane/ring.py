# SPDX-License-Identifier: Apache-2.0
"""Weighted Maglev: which live endpoint each cell of a service's ring names.

Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016, section 3.4:
every endpoint prefers the cells in an order of its own (offset + j * skip modulo a prime), and the
endpoints take turns in claiming their most preferred cell that is still empty. Weights decide who has
how many turns, and when: the k-th turn of an endpoint comes at (k + 1/2) / weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt

_SEARCHED_CELLS = 256
"""So many last cells are found by search instead of by probing, which there takes size/empty probes."""

_LEAST_RATIO = 1e-9
"""Weights below this part of the largest one count as this part: one cell, without underflow."""


def build(names: Sequence[str], weights: Sequence[float], size: int) -> npt.NDArray[np.int32]:
    """The ring: ``size`` cells, each an index into ``names``.

    Depends on the set of (name, weight) alone, not on their order. Every cell is filled. An endpoint has
    its share of the cells to within one, at least one if its weight is above 0, none if it is 0. Only
    ratios of weights matter. 1 000 endpoints and 65 537 cells take about 40 ms.

    :param size: a prime; a hundred cells per endpoint keep what moves on a change small.
    :raises ValueError: names twice, no weight above 0, a negative or infinite one, ``size`` not prime or
        below the number of endpoints.
    """
    share = _checked_shares(names, weights, size)
    # From here on endpoints are in an order made of their names: ties between turns go by it.
    members = sorted((_hash(name), i) for i, name in enumerate(names) if share[i] > 0)
    index = np.array([i for _, i in members], dtype=np.int32)
    offsets = [hashed % size for (hashed, _), _ in members]
    skips = [hashed % (size - 1) + 1 for (_, hashed), _ in members]

    turns = _turns(share[index], size)
    probed = max(size - _SEARCHED_CELLS, 0)
    owner = _probe(turns[:probed].tolist(), offsets, skips, size)
    _search(owner, turns[probed:].tolist(), offsets, skips)
    return index[owner]


def _checked_shares(names: Sequence[str], weights: Sequence[float], size: int) -> npt.NDArray[np.float64]:
    weight = np.asarray(weights, dtype=np.float64)
    if len(names) != weight.size:
        raise ValueError(f"{len(names)} names but {weight.size} weights")
    if len(set(names)) != len(names):
        raise ValueError("a name occurs twice")
    if not np.all(np.isfinite(weight)) or np.any(weight < 0):
        raise ValueError("weights must be finite and not negative")
    if not np.any(weight > 0):
        raise ValueError("a ring needs at least one endpoint with a weight above 0")
    if not is_prime(size):
        raise ValueError(f"ring size {size} is not a prime")
    if np.count_nonzero(weight) > size:
        raise ValueError(f"ring size {size} is below the number of endpoints, {np.count_nonzero(weight)}")
    # Divided by the largest first: the sum of huge weights must not overflow.
    weight = np.where(weight > 0, np.maximum(weight / weight.max(), _LEAST_RATIO), 0.0)
    return np.asarray(weight / math.fsum(weight), dtype=np.float64)  # fsum: in any order the same


def is_prime(number: int) -> bool:
    """Trial division: enough for ring sizes (microseconds)."""
    if number < 4:
        return number >= 2
    return number % 2 != 0 and all(number % d for d in range(3, int(number**0.5) + 1, 2))


def _hash(name: str) -> tuple[int, int]:
    """Two independent 64-bit numbers of a name, alike on every machine."""
    digest = blake2b(name.encode(), digest_size=16, person=b"penumbra ring").digest()
    return int.from_bytes(digest[:8], "big"), int.from_bytes(digest[8:], "big")


def _counts(share: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.intp]:
    """How many cells each has: largest remainders, at least one each. Shares sum to 1."""
    exact = share * size
    count = np.maximum(np.floor(exact).astype(np.intp), 1)
    left = size - int(count.sum())
    if left > 0:
        count[np.argsort(count - exact, kind="stable")[:left]] += 1
    for _ in range(-left):  # what the smallest got beyond their share, the largest give
        count[np.argmax(count)] -= 1
    return count


def _turns(share: npt.NDArray[np.float64], size: int) -> npt.NDArray[np.intp]:
    """Whose turn it is, ``size`` times."""
    count = _counts(share, size)
    who = np.repeat(np.arange(share.size), count)
    first = np.cumsum(count) - count
    due = (np.arange(who.size) - first[who] + 0.5) / share[who]
    return who[np.argsort(due, kind="stable")]


def _probe(turns: list[int], offsets: list[int], skips: list[int], size: int) -> npt.NDArray[np.int32]:
    """The paper's loop over the given turns. Cells left empty hold -1."""
    owner = [-1] * size
    following = list(offsets)
    for i in turns:
        cell = following[i]
        skip = skips[i]
        while owner[cell] >= 0:
            cell += skip
            if cell >= size:
                cell -= size
        owner[cell] = i
        following[i] = cell
    return np.array(owner, dtype=np.int32)


def _search(owner: npt.NDArray[np.int32], turns: list[int], offsets: list[int], skips: list[int]) -> None:
    """The remaining turns, with what probing would find: the size being prime, cell c comes
    (c - offset) / skip modulo size in an endpoint's order, and the first empty one is the least."""
    size = owner.size
    empty = np.flatnonzero(owner < 0)
    left = empty.size
    inverse = {i: pow(skips[i], -1, size) for i in set(turns)}
    for i in turns:
        nearest = int(np.argmin((empty[:left] - offsets[i]) * inverse[i] % size))
        owner[empty[nearest]] = i
        left -= 1
        empty[nearest] = empty[left]
