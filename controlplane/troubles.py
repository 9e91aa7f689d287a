# SPDX-License-Identifier: Apache-2.0
"""Who is slow, failing or overworked, and whether one more member may help: not where the neighbours are so
too, or the shadow."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from controlplane import model, penalties, weights
from controlplane.baseline import REMARKABLE
from controlplane.capacity import Capacities
from controlplane.clones import Clones
from controlplane.loads import Loads
from controlplane.observe import Counted
from controlplane.pool import Unit
from controlplane.shadows import Members

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

_FAR = 0.9
"""Who is asked for more than this part of its capacity may be saturated now and then."""


@dataclass(frozen=True, slots=True, eq=False)
class Evidence:
    """What is known of all groups now."""

    loads: Loads
    capacities: Capacities
    applied: Floats
    """(groups,) capacities that are gone by; NaN: not known."""
    used_up: Collection[str]
    """Members that are as busy as can be."""


@dataclass(frozen=True, slots=True)
class Trouble:
    """Slow answers or errors of a unit's groups, or too much work."""

    words: str
    others_too: bool
    shadows_too: bool
    is_helped: bool
    """One of them has a shadow."""
    alone: frozenset[str]
    """Live endpoints whose shadows, if they have some, and neighbours are well."""


_NONE = Trouble("", False, False, False, frozenset())


class Troubles:
    def __init__(self) -> None:
        self._clones = Clones()
        self._alone: set[str] = set()

    def take(self, names: Sequence[str], counted: Counted, over_s: float) -> None:
        """:param names: of shadows. ``counted``: (names,) by how much theirs grew."""
        self._clones.take(names, counted, over_s)

    def begin(self) -> None:
        """Who still is in trouble is told by ``of``."""
        self._alone.clear()

    def is_alone(self, name: str) -> bool:
        """A live endpoint that is in trouble, and its shadows, if it has some, are not."""
        return name in self._alone

    def common(self, loads: Loads, roster: Members) -> Flags:
        """(groups,) who is in trouble, though its rate is usual, as others are: it tells nothing of it."""
        conditions = loads.conditions
        bad = conditions.in_trouble & (conditions.rate[: len(loads.names)] < REMARKABLE)
        found: Flags = bad & conditions.others_too
        for i in np.flatnonzero(bad).tolist():
            signs = conditions.troubled_signs(i)
            found[i] |= any(self._clones.is_as_bad(one.name, signs) for one in roster.of(loads.names[i]))
        return found

    def of(self, unit: Unit, own: Sequence[model.Shadow], known: Evidence) -> Trouble:
        """:param own: its shadows."""
        them = [known.loads.index[endpoint.name] for endpoint in unit.endpoints]
        if any(known.loads.conditions.in_trouble[i] for i in them):
            found = self._ill(unit, them, own, known.loads)
        else:
            found = _overworked(unit, them, own, known)
        self._alone |= found.alone
        return found

    def _ill(self, unit: Unit, them: Sequence[int], own: Sequence[model.Shadow], loads: Loads) -> Trouble:
        conditions, names = loads.conditions, loads.names
        found = [i for i in them if conditions.in_trouble[i]]
        which = [i for i in found if not conditions.others_too[i]] or found
        words = conditions.trouble(which[0])
        if unit.is_pool:
            words = f"{names[which[0]]}: {words}" + (f" and {len(which) - 1} more" if len(which) > 1 else "")
        signs = {names[i]: conditions.troubled_signs(i) for i in which}
        helpers = [shadow for shadow in own if shadow.parent in signs]
        bad = {s.parent for s in helpers if self._clones.is_as_bad(s.name, signs[s.parent])}
        others_too = bool(conditions.others_too[which[0]])
        alone = frozenset() if others_too else frozenset(signs.keys() - bad)
        return Trouble(words, others_too, bool(bad), bool(helpers), alone)


def _overworked(unit: Unit, them: Sequence[int], own: Sequence[model.Shadow], known: Evidence) -> Trouble:
    """Saturated by what it should be able to serve: its capacity is given too high, not all that is asked for
    is seen, or something else is at work there."""
    loads, used_up = known.loads, known.used_up
    for i in them:
        name, capacity = loads.names[i], float(known.applied[i])
        if not known.capacities.overworked[i] or not loads.high(i) <= _FAR * capacity:
            continue
        how = "as busy as can be" if name in used_up else "saturated"
        words = f"{how} at {loads.demand[i]:.0f}/s, though it should serve {capacity:.0f}/s"
        helpers = {shadow.name for shadow in own if shadow.parent == name}
        are_too = not helpers.isdisjoint(used_up)
        return Trouble(
            f"{name}: {words}" if unit.is_pool else words,
            others_too=False,
            shadows_too=are_too,
            is_helped=bool(helpers),
            alone=frozenset() if are_too else frozenset({name}),
        )
    return _NONE


def least_kept(
    loads: Loads,
    units_of: Callable[[str], Collection[Unit]],
    roster: Members,
    is_up: Callable[[str, bool], bool],
    kept: Collection[str],
) -> dict[int, float]:
    """Index of a live endpoint that is slow or failing, and some of whose neighbours are not -> the part of
    its weight that it must keep, as others can't take more. At most half of a service's may lose some: who
    becomes slow while others give less is overloaded.

    :param units_of: a service's. ``kept``: live endpoints that have lost some of their weight already."""
    conditions, least = loads.conditions, dict[int, float]()
    ill = conditions.in_trouble & ~conditions.others_too
    for i in np.flatnonzero(ill).tolist():
        units = units_of(loads.service(i).name)
        endpoints = {one.name: one for unit in units for one in unit.endpoints}
        them = [(name, loads.index[name]) for name in endpoints]
        if not any(not ill[j] and is_up(name, True) for name, j in them):
            continue
        serving = [(name, j) for name, j in them if is_up(name, True) and loads.share(j) > 0.0]
        losing = sum(name in kept or j in least for name, j in serving)
        if loads.names[i] not in kept and losing >= len(serving) // 2:
            continue
        ring = weights.ring_weights(endpoints)
        ready = {
            j: sum(s.state is model.ShadowState.READY and is_up(s.name, False) for s in roster.of(name))
            for name, j in them
        }
        others = sum(
            (ready[j] + (not ill[j] and is_up(name, True))) * float(loads.capacity[j]) for name, j in them
        )
        if any(unit.is_pool for unit in units):
            share = ring[loads.names[i]] / sum(ring[name] * (1 + ready[j]) for name, j in them)
        else:
            share = ring[loads.names[i]] / sum(ring.values()) / (1 + ready[i])
        least[i] = penalties.least_kept(float(sum(loads.need[j] for _, j in them)), others, share)
    return least
