# SPDX-License-Identifier: Apache-2.0
"""What is installed, as one value. Of thousands of members few change between two looks: each time all rows
are compared with those of the last one, and only what differs is read again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from controlplane import model
from controlplane.adapters import layout, slot_table, steering
from controlplane.adapters.maps import Maps
from controlplane.adapters.seen import Seen

_Asked = model.SetRing | model.SetSlots | model.SetSpill
_IDENTITY_AND_SPILL = range(5)
"""Of an endpoint's words all but those of its next hop, which is renewed all the time."""


class ReadBack:
    """Shares and weights that this process set come back exactly as it asked, as long as the maps hold what
    they round to."""

    def __init__(self, maps: Maps) -> None:
        self._maps = maps
        self._endpoints = Seen(maps.endpoints, _IDENTITY_AND_SPILL)
        self._endpoint_labels = Seen(maps.endpoint_labels)
        self._slots = Seen(maps.slots)
        self._limits = np.zeros(len(maps.limits), np.uint32)
        self._services = Seen(maps.services)
        self._service_labels = Seen(maps.service_labels)
        self._service_of = np.zeros(len(maps.endpoints), np.intp)
        self._asked: dict[tuple[type[model.Step], str], _Asked] = {}
        self._asked_since = np.zeros(len(maps.endpoints), np.bool_)
        self._members: list[model.Member | None] = [None] * len(maps.endpoints)
        self._rings: list[model.VirtualService | None] = [None] * len(maps.services)
        self._found = model.Steering()

    def installed(self) -> model.Steering:
        """The same object again when nothing changed."""
        dirty = self._take(self._endpoints) | self._take(self._endpoint_labels) | self._asked_since
        self._asked_since[:] = False
        renamed = self._take(self._service_labels)
        services = self._take(self._services) | renamed
        changed = self._take(self._slots) | dirty | self._take_limits()
        if not changed.any() and not services.any():
            return self._found
        services[self._service_of[dirty]] = True
        self._service_of = np.minimum(self._maps.endpoints["service"], len(services) - 1).astype(np.intp)
        services[self._service_of[dirty]] = True
        tells = self._named_by(dirty) | renamed[self._service_of]
        tells &= self._maps.endpoints["state"] & np.uint64(layout.ENDPOINT_PRESENT) != 0
        self._read_members(np.flatnonzero(changed | tells).tolist())
        self._read_services(np.flatnonzero(services))
        self._found = model.Steering(
            services={one.name: one for one in self._rings if one is not None},
            members={one.name: one for one in self._members if one is not None},
        )
        return self._found

    def asked(self, step: model.Step) -> None:
        """Was applied by this process."""
        match step:
            case model.SetRing(name) | model.SetSlots(name) | model.SetSpill(name):
                self._asked[type(step), name] = step
            case model.InstallMember(member):
                self._forget(member.name)
            case model.RemoveMember(name) | model.RemoveService(name):
                self._forget(name)
        match step:
            case model.SetRing(name, weights):
                self._look_again(weights)
            case model.SetSlots(name) | model.SetSpill(name):
                self._look_again([name])

    def _look_again(self, names: Iterable[str]) -> None:
        rows = [self._maps.endpoint_names.get(name) for name in names]
        self._asked_since[[row for row in rows if row is not None]] = True

    def _forget(self, name: str) -> None:
        for kind in (model.SetRing, model.SetSlots, model.SetSpill):
            self._asked.pop((kind, name), None)

    @staticmethod
    def _take(seen: Seen) -> npt.NDArray[np.bool_]:
        changed = np.zeros(len(seen.rows), np.bool_)
        changed[seen.take()] = True
        return changed

    def _take_limits(self) -> npt.NDArray[np.bool_]:
        before, self._limits = self._limits, self._maps.limits["limit"].copy()
        changed: npt.NDArray[np.bool_] = before != self._limits
        return changed

    def _named_by(self, dirty: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
        """Rows that say something of dirty ones: their shadows, and who has them in its slots."""
        last = len(dirty) - 1
        named: npt.NDArray[np.bool_] = dirty[np.minimum(self._maps.endpoints["parent"], last)]
        with_slots = np.flatnonzero(self._slots.rows.any(axis=1))
        indices = np.minimum(self._slots.rows[with_slots] & layout.REF_INDEX_MASK, last)
        named[with_slots] |= dirty[indices].any(axis=1)
        return named

    def _read_members(self, rows: list[int]) -> None:
        for index in rows:
            member = steering.read_member(self._maps, index)
            self._members[index] = self._member_as_asked(member, index) if member is not None else None

    def _read_services(self, rows: npt.NDArray[np.intp]) -> None:
        rings = steering.read_rings(self._maps, rows)
        for index in rows.tolist():
            service = steering.read_service(self._maps, index)
            if service is not None:
                service = replace(service, ring=self._ring_as_asked(service.name, rings.get(index, {})))
            self._rings[index] = service

    def _ring_as_asked(self, name: str, ring: Mapping[str, float]) -> Mapping[str, float]:
        asked = self._asked.get((model.SetRing, name))
        if not isinstance(asked, model.SetRing):
            return ring
        rounded = {name: steering.ring_weight(weight) for name, weight in asked.weights.items()}
        held = {name: steering.ring_weight(weight) for name, weight in ring.items()}
        return asked.weights if {n: w for n, w in rounded.items() if w} == held else ring

    def _member_as_asked(self, member: model.Member, index: int) -> model.Member:
        slots, spill = member.slots, member.spill
        asked = self._asked.get((model.SetSlots, member.name))
        if isinstance(asked, model.SetSlots) and steering.slot_counts(self._maps, index) == slot_table.counts(
            asked.slots
        ):
            slots = asked.slots
        asked = self._asked.get((model.SetSpill, member.name))
        if isinstance(asked, model.SetSpill) and _spill_as_read(asked.share) == spill:
            spill = asked.share
        if slots is member.slots and spill == member.spill:
            return member
        return replace(member, slots=slots, spill=spill)


def _spill_as_read(share: float) -> float:
    return steering.spill_share(steering.spill_bits(share))
