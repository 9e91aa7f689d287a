# SPDX-License-Identifier: Apache-2.0
"""Reads back from the maps what is installed: names, services, members. Writes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from controlplane.adapters import layout, slot_table
from controlplane.adapters.layout import ENDPOINT_DOWN, ENDPOINT_DRAINING, ENDPOINT_PRESENT, SERVICE_PRESENT
from controlplane.adapters.maps import Array, Maps
from controlplane.model import Affinity, Member, OnDown, Protocol, Requests, Role, VirtualService

THOUSANDTHS = 1000
_EVICTED_PARTS = 256
_EVICTED_DECIMALS = 2
"""Coarser than a 256th."""
_SPILL_DECIMALS = 9
"""Coarser than 2**-32, so that a share set with so many decimals is read back as it was set."""


def present_endpoints(maps: Maps) -> Array:
    """Indices of the installed members, ascending."""
    return np.flatnonzero(maps.endpoints["state"] & np.uint64(ENDPOINT_PRESENT))


def present_services(maps: Maps) -> Array:
    return np.flatnonzero(maps.services["flags"] & SERVICE_PRESENT)


def live_endpoints(maps: Maps) -> Array:
    """Indices of the installed live members, ascending."""
    present = present_endpoints(maps)
    live: Array = present[maps.endpoints["role"][present] == Role.LIVE.value]
    return live


def endpoint_rows(maps: Maps) -> Mapping[str, int]:
    """Name of each installed member -> its index."""
    return maps.endpoint_names.rows()


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


def evicted_share(state: int) -> float:
    """Of an endpoint's flows that others have."""
    parts = (state & layout.ENDPOINT_EVICTED) >> layout.ENDPOINT_EVICTED_SHIFT
    return round(parts / _EVICTED_PARTS, _EVICTED_DECIMALS)


def evicted_bits(share: float) -> int:
    """Of ``endpoint.state``, for a share of 0..1; of a share of 1 a 256th stays."""
    return min(round(share * _EVICTED_PARTS), _EVICTED_PARTS - 1) << layout.ENDPOINT_EVICTED_SHIFT


def ring_weight(weight: float) -> int:
    return round(weight * THOUSANDTHS)


def read_member(maps: Maps, index: int) -> Member | None:
    """Slot weights come back as they were set (in thousandths) where the labels of a live endpoint's own
    shadows still explain its slots, else as shares of the slots. None: nobody is installed there."""
    endpoint = maps.endpoints[index]
    state = int(endpoint["state"])
    if not state & ENDPOINT_PRESENT:
        return None
    role = Role(int(endpoint["role"]))
    return Member(
        name=endpoint_name(maps, index),
        service=service_name(maps, int(endpoint["service"])),
        address=layout.unmapped(endpoint["address"].tobytes()),
        port=int(endpoint["port"]),
        role=role,
        parent=endpoint_name(maps, int(endpoint["parent"])) if role is Role.SHADOW else None,
        down=bool(state & ENDPOINT_DOWN),
        draining=bool(state & ENDPOINT_DRAINING),
        evicted=evicted_share(state),
        spill=spill_share(int(endpoint["spill"])) if role is Role.LIVE else 0.0,
        slots=read_slots(maps, index) if role is Role.LIVE else {},
        limit=int(maps.limits["limit"][index]),
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


def read_slots(maps: Maps, index: int) -> dict[str, float]:
    counted = slot_counts(maps, index) if maps.slots[index].any() else {}
    if not counted:
        return {}
    rows = {name: maps.endpoint_names.get(name) for name in counted}
    of_shadows = {
        name: int(maps.endpoint_labels["weight"][row]) / THOUSANDTHS
        for name, row in rows.items()
        if row is not None and row != index and int(maps.endpoints["parent"][row]) == index
    }
    if slot_table.counts(of_shadows) == counted:
        return of_shadows
    return {name: count / layout.SHADOW_SLOTS for name, count in counted.items()}


def read_service(maps: Maps, index: int) -> VirtualService | None:
    """Without its ring, for which see ``read_rings``. None: none is installed there."""
    service = maps.services[index]
    if not service["flags"] & SERVICE_PRESENT:
        return None
    return VirtualService(
        name=service_name(maps, index),
        vip=layout.unmapped(service["vip"].tobytes()),
        port=int(service["port"]),
        protocol=Protocol(int(service["protocol"])),
        on_down=OnDown.KEEP if service["flags"] & layout.SERVICE_ON_DOWN_KEEP else OnDown.RESET,
        ring_size=int(service["ring_size"]),
        affinity=Affinity.SOURCE if service["flags"] & layout.SERVICE_AFFINITY else Affinity.NONE,
        requests=_requests(int(service["flags"])),
        request_sample=1 << int(service["request_shift"]),
    )


def _requests(flags: int) -> Requests:
    if flags & layout.SERVICE_REQUESTS_TLS:
        return Requests.TLS
    return Requests.HTTP1 if flags & layout.SERVICE_REQUESTS_HTTP1 else Requests.OFF


def read_rings(maps: Maps, services: npt.ArrayLike) -> dict[int, dict[str, float]]:
    """Index of each of the services that has a ring -> name of a live endpoint in it -> its weight, as
    ``SetRing`` labelled them."""
    live = live_endpoints(maps)
    weights = maps.endpoint_labels["weight"][live]
    in_ring = (weights != 0) & np.isin(maps.endpoints["service"][live], services)
    live, weights = live[in_ring], weights[in_ring]
    rings: dict[int, dict[str, float]] = {}
    for service, name, weight in zip(
        maps.endpoints["service"][live].tolist(),
        maps.endpoint_labels["name"][live].tolist(),
        weights.tolist(),
        strict=True,
    ):
        rings.setdefault(service, {})[_text(name)] = weight / THOUSANDTHS
    return rings
