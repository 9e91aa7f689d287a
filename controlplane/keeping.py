# SPDX-License-Identifier: Apache-2.0
"""What was learned, as the store keeps it: capacities, what is normal and usual, and the past's demand."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import numpy as np

from controlplane.capacity import Capacities
from controlplane.loads import Loads
from controlplane.outlook import Outlook
from controlplane.penalties import Penalties

_DEMAND, _USUAL, _CAPACITY, _NORMAL = "demand:", "usual:", "capacity:", "normal:"
PENALTIES = "penalties"
_NORMALS_KEPT = 1000
"""Endpoints whose normal is kept each time: some 200 kB."""

Get = Callable[[str], str | None]


class Keeping:
    def __init__(self) -> None:
        self._next_normal = 0

    def recall_capacities(
        self, services: Mapping[str, object], capacities: Capacities, get: Get
    ) -> list[str]:
        """What is wrong with them.

        :param get: of the store."""
        wrong = []
        for name in services:
            if (text := get(f"{_CAPACITY}{name}")) is not None:
                try:
                    capacities.recall(text)
                except ValueError as error:
                    wrong.append(f"{name}: its capacities: {error}")
        return wrong

    def recall_penalties(self, penalties: Penalties, get: Get) -> list[str]:
        """As above."""
        try:
            if (text := get(PENALTIES)) is not None:
                penalties.recall(text)
        except ValueError as error:
            return [str(error)]
        return []

    def recall(self, views: Mapping[str, Outlook], loads: Loads, now_unix_s: float, get: Get) -> list[str]:
        """All the rest, of which much is learned later on. What is wrong with it."""
        wrong = []
        for at, (name, view) in enumerate(views.items()):
            faults = loads.conditions.recall(at, now_unix_s, lambda day: get(f"{_USUAL}{name}:{day}"))  # noqa: B023
            wrong += [f"{name}: {fault}" for fault in faults]
            if (text := get(f"{_NORMAL}{name}")) is not None:
                try:
                    loads.conditions.recall_normal(text, now_unix_s)
                except ValueError as error:
                    wrong.append(f"{name}: {error}")
            if view.foresight is not None:
                view.foresight.begin(view.capacity)
                faults = view.foresight.recall(now_unix_s, lambda chunk: get(f"{_DEMAND}{name}:{chunk}"))  # noqa: B023
                wrong += [f"{name}: {fault}" for fault in faults]
                view.foresight.past.kept = view.foresight.past.end
        return wrong

    def news(
        self, views: Mapping[str, Outlook], loads: Loads, capacities: Capacities, now_unix_s: float
    ) -> Iterator[tuple[str, str | None]]:
        """Keys and values for the store of what came since it was asked last; None: to be forgotten."""
        for name, day, text in loads.conditions.to_keep(now_unix_s):
            yield f"{_USUAL}{name}:{day}", text
        for service in loads.services_of(capacities.take_unkept()):
            groups = np.arange(len(loads.names))[loads.groups(service.name)]
            yield f"{_CAPACITY}{service.name}", capacities.text(groups)
        yield from self._normals(views, loads, now_unix_s)
        for name, view in views.items():
            if view.foresight is None:
                continue
            past = view.foresight.past
            for chunk, text in past.chunks(past.kept):
                yield f"{_DEMAND}{name}:{chunk}", text
            past.kept = past.end

    def _normals(
        self, views: Mapping[str, Outlook], loads: Loads, now_unix_s: float
    ) -> Iterator[tuple[str, str]]:
        """Of as many services as fit, in turn."""
        names, left = list(views), _NORMALS_KEPT
        for _ in names:
            at = self._next_normal = (self._next_normal + 1) % len(names)
            yield f"{_NORMAL}{names[at]}", loads.conditions.normal(at, now_unix_s)
            left -= len(views[names[at]].names)
            if left <= 0:
                break
