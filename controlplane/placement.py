# SPDX-License-Identifier: Apache-2.0
"""Which host gets the next shadow."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from controlplane.model import Endpoint, Host, Shadow


def choose(
    hosts: Mapping[str, Host], allowed: Sequence[str], shadows: Iterable[Shadow], parent: Endpoint
) -> str | None:
    """The best host with a free slot, or None.

    Not the parent's host if another is free; then the one with the fewest shadows of this parent; then
    the emptiest (share of slots in use); then the configured order. A shadow that is being removed or
    has failed keeps its slot until its record is gone: what runs there is not known.
    """
    held = list(shadows)

    def cost(name: str) -> tuple[bool, int, float, int]:
        used = sum(shadow.host == name for shadow in held)
        ours = sum(shadow.host == name and shadow.parent == parent.name for shadow in held)
        return name == parent.host, ours, used / hosts[name].slots, allowed.index(name)

    free = [
        name
        for name in allowed
        if name in hosts and sum(shadow.host == name for shadow in held) < hosts[name].slots
    ]
    return min(free, key=cost, default=None)


def name(parent: str, taken: Iterable[str]) -> str:
    """The first free name of a parent's shadow: web-1-s1, web-1-s2, ..."""
    used = set(taken)
    return next(name for k in range(1, len(used) + 2) if (name := f"{parent}-s{k}") not in used)
