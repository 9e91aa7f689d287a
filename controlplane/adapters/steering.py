# SPDX-License-Identifier: Apache-2.0
"""Reads back from the maps what is installed: names, services, members. Writes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from controlplane.adapters import layout, slot_table
from controlplane.adapters.layout import ENDPOINT_DOWN, ENDPOINT_DRAINING, ENDPOINT_PRESENT, SERVICE_PRESENT
from controlplane.adapters.maps import Array, Maps
from controlplane.model import Member, OnDown, Protocol, Role, Steering, VirtualService

THOUSANDTHS = 1000
_SPILL_DECIMALS = 9
"""Coarser than 2**-32, so that a share set with so many decimals is read back as it was set."""


def present_endpoints(maps: Maps) -> Array:
    """Indices of the installed members, ascending."""
    return np.flatnonzero(maps.endpoints["state"] & np.uint64(ENDPOINT_PRESENT))


def present_services(maps: Maps) -> Array:
    return np.flatnonzero(maps.services["flags"] & SERVICE_PRESENT)


def endpoint_rows(maps: Maps) -> dict[str, int]:
    """Name of each installed member -> its index."""
    present = present_endpoints(maps)
    return {_text(n): i for n, i in zip(maps.endpoint_labels["name"][present], present.tolist(), strict=True)}


def service_rows(maps: Maps) -> dict[str, int]:
    present = present_services(maps)
    return {_text(n): i for n, i in zip(maps.service_labels["name"][present], present.tolist(), strict=True)}


def endpoint_name(maps: Maps, index: int) -> str:
    """Also of one that was removed, until its index is given to another; empty: nobody's."""
    return _text(maps.endpoint_labels["name"][index]) if 0 < index < maps.sizes.endpoints else ""


def service_name(maps: Maps, index: int) -> str:
    return _text(maps.service_labels["name"][index]) if index < maps.sizes.services else ""


def _text(label: bytes) -> str:
    return bytes(label).decode(errors="replace")


def generation(maps: Maps, index: int) -> int:
    return int(maps.endpoints["state"][index]) >> 32


def reference(maps: Maps, index: int) -> int:
    return layout.reference(index, generation(maps, index))


def spill_share(spill: int) -> float:
    return 1.0 if spill == layout.SPILL_ALL else round(spill / 2**32, _SPILL_DECIMALS)


def spill_bits(share: float) -> int:
    """``endpoint.spill`` for a share of 0..1."""
    return layout.SPILL_ALL if share >= 1.0 else min(round(share * 2**32), layout.SPILL_ALL - 1)


def ring_weight(weight: float) -> int:
    return round(weight * THOUSANDTHS)


def read(maps: Maps) -> Steering:
    """All that is installed. Slot weights come back as they were set (in thousandths) where the labels of a
    live endpoint's own shadows still explain its slots, else as shares of the slots."""
    rows = endpoint_rows(maps)
    members = {name: _member(maps, name, index, rows) for name, index in rows.items()}
    services = {name: _service(maps, name, index, rows) for name, index in service_rows(maps).items()}
    return Steering(services=services, members=members)


def _member(maps: Maps, name: str, index: int, rows: Mapping[str, int]) -> Member:
    endpoint = maps.endpoints[index]
    role, state = Role(int(endpoint["role"])), int(endpoint["state"])
    return Member(
        name=name,
        service=service_name(maps, int(endpoint["service"])),
        address=layout.unmapped(endpoint["address"].tobytes()),
        port=int(endpoint["port"]),
        role=role,
        parent=endpoint_name(maps, int(endpoint["parent"])) if role is Role.SHADOW else None,
        down=bool(state & ENDPOINT_DOWN),
        draining=bool(state & ENDPOINT_DRAINING),
        spill=spill_share(int(endpoint["spill"])) if role is Role.LIVE else 0.0,
        slots=read_slots(maps, index, rows) if role is Role.LIVE else {},
    )


def slot_counts(maps: Maps, index: int) -> dict[str, int]:
    """Slots per name in a live endpoint's table; references to members that are gone count for nobody."""
    found = Counter(maps.slots[index].tolist())
    named: dict[str, int] = {}
    for ref, count in found.items():
        at = ref & layout.REF_INDEX_MASK
        if 0 < at < maps.sizes.endpoints and ref == reference(maps, at) and _is_present(maps, at):
            named[endpoint_name(maps, at)] = count
    return named


def _is_present(maps: Maps, index: int) -> bool:
    return bool(int(maps.endpoints["state"][index]) & ENDPOINT_PRESENT)


def read_slots(maps: Maps, index: int, rows: Mapping[str, int]) -> dict[str, float]:
    counted = slot_counts(maps, index)
    if not counted:
        return {}
    of_shadows = {
        name: int(maps.endpoint_labels["weight"][rows[name]]) / THOUSANDTHS
        for name in counted
        if int(maps.endpoints["parent"][rows[name]]) == index and rows[name] != index
    }
    if slot_table.counts(of_shadows) == counted:
        return of_shadows
    return {name: count / layout.SHADOW_SLOTS for name, count in counted.items()}


def _service(maps: Maps, name: str, index: int, rows: Mapping[str, int]) -> VirtualService:
    service = maps.services[index]
    return VirtualService(
        name=name,
        vip=layout.unmapped(service["vip"].tobytes()),
        port=int(service["port"]),
        protocol=Protocol(int(service["protocol"])),
        on_down=OnDown.KEEP if service["flags"] & layout.SERVICE_ON_DOWN_KEEP else OnDown.RESET,
        ring_size=int(service["ring_size"]),
        ring=read_ring(maps, index, rows),
    )


def read_ring(maps: Maps, service: int, rows: Mapping[str, int]) -> dict[str, float]:
    """Weights of the live endpoints in the ring, as ``SetRing`` labelled them."""
    endpoints, weights = maps.endpoints, maps.endpoint_labels["weight"]
    return {
        name: int(weights[index]) / THOUSANDTHS
        for name, index in rows.items()
        if endpoints["service"][index] == service
        and endpoints["role"][index] == Role.LIVE.value
        and weights[index]
    }
