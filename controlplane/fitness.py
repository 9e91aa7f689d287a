# SPDX-License-Identifier: Apache-2.0
"""What members use, what they can serve by it, and what their agents ask for."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from controlplane import model, shadows, usage, weights
from controlplane.balance import Balance
from controlplane.capacity import Capacities
from controlplane.ports import Counters
from controlplane.shadows import Members

_BAND = 0.1
_BAND_ERRORS = 3.5
"""Nobody is another one than was believed within this part, or within so many standard errors: two and a half
of the difference between two members."""


class Fitness:
    def __init__(self) -> None:
        self.usages = usage.Usages()
        self.balance = Balance()
        self.used_up: frozenset[str] = frozenset()
        """Members that are as busy as can be."""
        self._sources: dict[str, model.UsageSource] = {}
        """Of live endpoints."""
        self._of_services: dict[str, model.UsageSource | None] = {}
        self._believed: dict[str, float] = {}
        """What live endpoints can serve relative to the others, as rings follow it; absent: 1."""

    def set_up(self, services: Collection[model.Service]) -> None:
        self._of_services = {service.name: service.usage for service in services}
        self._sources = {
            endpoint.name: service.usage
            for service in services
            for endpoint in service.endpoints
            if service.usage is not None
        }

    def count(self, counters: Counters) -> None:
        if self._sources:
            self.balance.count(counters)

    def observe(
        self,
        usages: Sequence[model.Usage],
        roster: Members,
        index: Mapping[str, int],
        capacities: Capacities,
    ) -> list[tuple[str, str]]:
        """Whose agent asks for something else now, and a sentence.

        :param index: of live endpoints among ``capacities``, which take what is told of them."""

        def helpers(parent: str) -> list[str]:
            return [shadow.name for shadow in roster.of(parent)]

        def flows_each(name: str) -> float | None:
            row = index.get(roster.shadows[name].parent if name in roster.shadows else name)
            return math.nan if row is None else capacities.flows_each(row)

        told = {one.member: index[one.member] for one in usages if one.member in index}
        known = {name: float(capacities.by_use[row]) for name, row in told.items()}
        by_use = self.balance.take(usages, known, helpers, flows_each)
        self.used_up = self.balance.used_up()
        capacities.take_use(
            np.array(list(told.values()), dtype=np.intp),
            np.array([by_use[name] for name in told], dtype=np.float64),
            np.array([index[name] for name in self.used_up if name in index], dtype=np.intp),
        )
        return self.usages.observe(usages)

    def of(self, endpoints: Mapping[str, model.Endpoint], now_s: float) -> Mapping[str, float] | None:
        """What each live endpoint can serve beside its capacity's share, relative to the others, by what all
        use, by its memory and by its agent; None: as much as it should."""
        if not any(name in self._sources for name in endpoints):
            return None
        told = self._balanced(endpoints, now_s)
        for name in endpoints:
            last = self.usages.at(name, now_s)
            if last is not None:
                told[name] *= weights.spared(last.memory) * (1.0 if last.weight is None else last.weight)
        return told

    def _balanced(self, endpoints: Mapping[str, model.Endpoint], now_s: float) -> dict[str, float]:
        """By what they use: as it was, but for what is no chance."""
        strengths = {name: self.balance.strength(name, now_s) for name in endpoints}
        if all(map(math.isnan, strengths.values())):
            for name in endpoints:
                self._believed.pop(name, None)
        found = weights.fitness(endpoints, strengths) or {}
        if any(self._is_another(name, one, now_s) for name, one in found.items()):
            self._believe(found)
        return {name: self._believed.get(name, 1.0) for name in endpoints}

    def _believe(self, found: Mapping[str, float]) -> None:
        before = {name: self._believed.get(name, 1.0) for name in found}
        self._believed |= found
        failing = [name for name in found if name in self.balance.failing]
        well = [name for name in found if name not in self.balance.failing]
        if not well or not failing:
            return
        # Who fails gets nothing more for what the others can't serve.
        others = sum(found[name] for name in well) / sum(before[name] for name in well)
        for name in failing:
            self._believed[name] = min(found[name], before[name] * others)

    def _is_another(self, name: str, now: float, now_s: float) -> bool:
        more = now / self._believed.get(name, 1.0) - 1.0
        if abs(more) <= _BAND or abs(more) <= _BAND_ERRORS * self.balance.error(name, now_s):
            return False
        return more < 0.0 or name not in self.balance.failing

    def is_awaited(self, endpoints: Collection[str], now_s: float) -> bool:
        """The controller has begun not long ago, and what some can serve is not told by their use yet."""
        told = [name for name in endpoints if name in self._sources]
        return self.balance.is_new(now_s) and any(math.isnan(self.balance.strength(n, now_s)) for n in told)

    def of_shadow(self, shadow: model.Shadow, mean_us: Callable[[str], float], now_s: float) -> float:
        """The part of its parent's share that a shadow can serve, by what both use and how soon they
        answer.

        :param mean_us: a member's response time; NaN: not known."""
        own, parents = (self.balance.strength(name, now_s) for name in (shadow.name, shadow.parent))
        last = self.usages.at(shadow.name, now_s)
        part = weights.fit_part(own, parents, *map(mean_us, (shadow.name, shadow.parent)))
        return part if last is None else part * weights.spared(last.memory) * (last.weight or 1.0)

    def keep(self, roster: Members) -> None:
        """Forgets who is not there any more."""
        self.usages.keep(self._source(roster))
        if self._sources:
            self.balance.keep(roster.endpoints.keys() | roster.shadows.keys())
            for name in self._believed.keys() - roster.endpoints.keys():
                del self._believed[name]

    def _source(self, roster: Members) -> Callable[[str], model.UsageSource | None]:
        def source(name: str) -> model.UsageSource | None:
            shadow = roster.shadows.get(name)
            if shadow is None or shadow.state not in shadows.INSTALLED:
                return self._sources.get(name)
            return self._of_services.get(shadow.service)

        return source
