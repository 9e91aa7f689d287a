# SPDX-License-Identifier: Apache-2.0
"""Writes services and members into the maps, in an order that is safe for packets in flight.

An index is freed by one store that clears its state and raises its generation: from then on rings, slots
and cached flows that name it name nobody. It then rests for RETURN_REST_S, in which its address is still
known as the source of returns, before it is given to another; so no packet that read the old contents is
left when the new are written, and no barrier is needed. Only the same address, port and protocol gets it
back at once: whoever still reads it sends to the same place. New contents count from the store that sets
its state again.
"""

from __future__ import annotations

from ipaddress import ip_network

import numpy as np

from controlplane import model, ring
from controlplane.adapters import gateways, layout, libbpf, readings, slot_table, steering
from controlplane.adapters.layout import (
    ENDPOINT_DOWN,
    ENDPOINT_DRAINING,
    ENDPOINT_EVICTED,
    ENDPOINT_PRESENT,
    SERVICE_PRESENT,
)
from controlplane.adapters.maps import Maps
from controlplane.addresses import with_port
from controlplane.model import Role
from controlplane.ports import DataplaneError

RETURN_REST_S = 60.0
"""How long a removed member's address is still known as the source of returns."""

_CELL_ALIGNMENT = layout.RING_LINE_CELLS
_REQUEST_FLAGS = {
    model.Requests.OFF: 0,
    model.Requests.HTTP1: layout.SERVICE_REQUESTS_HTTP1,
    model.Requests.TLS: layout.SERVICE_REQUESTS_TLS,
}


def apply(maps: Maps, step: model.Step, now_tick: int) -> None:
    """Takes one step; twice is the same as once. The caller holds the instance's write lock."""
    match step:
        case model.InstallService(service):
            _install_service(maps, service)
        case model.RemoveService(name):
            _remove_service(maps, name)
        case model.InstallMember(member):
            _install_member(maps, member, now_tick)
        case model.RemoveMember(name):
            _remove_member(maps, name, now_tick)
        case model.SetRing(service, weights):
            _set_ring(maps, service, dict(weights))
        case model.SetSlots(name, slots):
            _set_slots(maps, _row(maps, name), dict(slots))
        case model.SetSpill(name, share):
            maps.endpoints["spill"][_row(maps, name)] = steering.spill_bits(share)
        case model.SetLimit(name, limit):
            maps.limits["limit"][_row(maps, name)] = limit
        case model.SetDown(name, down):
            _set_flag(maps, _row(maps, name), ENDPOINT_DOWN, down)
        case model.SetDraining(name, draining, evicted):
            _set_draining(maps, _row(maps, name), draining, evicted)


def _row(maps: Maps, name: str) -> int:
    row = maps.endpoint_names.get(name)
    if row is None:
        raise DataplaneError(f"member {name!r} is not installed; see: penumbra maps endpoints")
    return row


def _service_row(maps: Maps, name: str) -> int:
    row = maps.service_names.get(name)
    if row is None:
        raise DataplaneError(f"service {name!r} is not installed; see: penumbra maps services")
    return row


def _label(name: str) -> bytes:
    encoded = name.encode()
    if len(encoded) >= layout.NAME_BYTES:
        raise DataplaneError(
            f"name {name!r}: at most {layout.NAME_BYTES - 1} bytes fit, give it a shorter one"
        )
    return encoded


# ---- services ------------------------------------------------------------------------


def _install_service(maps: Maps, service: model.VirtualService) -> None:
    label = _label(service.name)
    flags = SERVICE_PRESENT | _REQUEST_FLAGS[service.requests]
    if service.on_down is model.OnDown.KEEP:
        flags |= layout.SERVICE_ON_DOWN_KEEP
    if service.affinity is model.Affinity.SOURCE:
        flags |= layout.SERVICE_AFFINITY
    index = maps.service_names.get(service.name)
    if index is not None:
        found = maps.services[index]
        key = found["vip"].tobytes() + int(found["port"]).to_bytes(2, "big") + bytes([found["protocol"], 0])
        wanted = layout.target(service.vip, service.port, service.protocol.value)
        if key != wanted or found["ring_size"] != service.ring_size:
            raise DataplaneError(
                f"service {service.name!r}: VIP, port, protocol and ring size can't change while it is "
                "installed: remove it first"
            )
    else:
        index = _free_service(maps)
        base = _free_cells(maps, service)
        maps.cells[base : base + 2 * service.ring_size] = 0
        row = maps.services[index : index + 1]
        row["vip"] = np.frombuffer(layout.mapped(service.vip), "u1")
        row["port"], row["protocol"] = service.port, service.protocol.value
        row["ring_base"], row["ring_size"], row["ring_active"] = base, service.ring_size, 0
        maps.service_labels["name"][index] = label
    _mark_destinations(maps, *steering.present_services(maps).tolist(), index)
    gateways.cover(maps, [ip_network(service.vip)])
    maps.services["request_shift"][index] = service.request_sample.bit_length() - 1
    maps.services["flags"][index] = flags
    key = layout.target(service.vip, service.port, service.protocol.value)
    maps.service_targets.put(key, index)
    _count_vip(maps, layout.mapped(service.vip))


def _remove_service(maps: Maps, name: str) -> None:
    index = maps.service_names.get(name)
    if index is None:
        return
    found = maps.services[index]
    vip = found["vip"].tobytes()
    key = vip + int(found["port"]).to_bytes(2, "big") + bytes([found["protocol"], 0])
    maps.service_targets.delete(key)
    maps.services["flags"][index] = 0
    _mark_destinations(maps, *steering.present_services(maps).tolist())
    _count_vip(maps, vip)


def _mark_destinations(maps: Maps, *services: int) -> None:
    """Tells the program which destinations may be services', by a bit each."""
    words = np.zeros(layout.DESTINATION_WORDS, "<u8")
    for row in maps.services[list(services)]:
        bit = layout.destination_bit(row["vip"].tobytes(), int(row["port"]))
        words[bit // 64] |= np.uint64(1 << bit % 64)
    maps.settings["destinations"][:] = words


def _count_vip(maps: Maps, mapped: bytes) -> None:
    """``vips`` holds how many services a VIP has, and none when there are none."""
    present = steering.present_services(maps)
    count = int((maps.services["vip"][present] == np.frombuffer(mapped, "u1")).all(axis=1).sum())
    key = mapped + bytes(4)
    if count:
        libbpf.map_update(maps.vips, key, count.to_bytes(4, "little"))
        maps.settings["own_sources"] |= np.uint64(layout.source_bit(mapped))
    else:
        libbpf.map_delete(maps.vips, key)
        mark_own_sources(maps)


def mark_own_sources(maps: Maps) -> None:
    """Tells the program for which sources it has to look whether they are a VIP or this host's own."""
    vips = maps.services["vip"][steering.present_services(maps)]
    keys, kinds = libbpf.map_lookup_batch(maps.direct, layout.PREFIX, layout.INDEX)
    own = keys["address"][kinds == layout.DIRECT_OWN]
    bits = 0
    for address in (*vips, *own):
        bits |= layout.source_bit(address.tobytes())
    maps.settings["own_sources"] = bits


def _free_service(maps: Maps) -> int:
    """An index that no service has, and no member that is installed or rests names."""
    used = np.zeros(maps.sizes.services, np.bool_)
    used[steering.present_services(maps)] = True
    known = (maps.endpoints["state"] & np.uint64(ENDPOINT_PRESENT) != 0) | (
        maps.endpoint_labels["removed_tick"] != 0
    )
    used[maps.endpoints["service"][known]] = True
    free = np.flatnonzero(~used)
    if not free.size:
        raise DataplaneError(
            f"no room for another service: sizes.services is {maps.sizes.services}; raise it"
        )
    return int(free[0])


def _free_cells(maps: Maps, service: model.VirtualService) -> int:
    """First fit for both copies of a ring between those of the installed services."""
    needed = 2 * service.ring_size
    rows = maps.services[steering.present_services(maps)]
    at = 0
    for base, size in sorted(zip(rows["ring_base"].tolist(), rows["ring_size"].tolist(), strict=True)):
        if base - at >= needed:
            break
        at = -(-(base + 2 * size) // _CELL_ALIGNMENT) * _CELL_ALIGNMENT
    if at + needed > len(maps.cells):
        raise DataplaneError(
            f"service {service.name!r}: no room for two rings of {service.ring_size} cells: sizes.ring_cells "
            f"is {len(maps.cells)}; raise it"
        )
    return at


# ---- members -------------------------------------------------------------------------


def _install_member(maps: Maps, member: model.Member, now_tick: int) -> None:
    label = _label(member.name)
    service = _service_row(maps, member.service)
    protocol = int(maps.services["protocol"][service])
    key = layout.target(member.address, member.port, protocol)
    index = maps.endpoint_names.get(member.name)
    if index is not None and _is_same(maps, index, member, service, key):
        _set_flag(maps, index, ENDPOINT_DOWN, member.down)
        return
    if index is not None:
        _remove_member(maps, member.name, now_tick)
    reap(maps, now_tick)
    index = _free_endpoint(maps, member, key)
    parent = index if member.parent is None else maps.endpoint_names.get(member.parent)
    if parent is None:
        raise DataplaneError(f"shadow {member.name!r}: its live endpoint {member.parent!r} is not installed")

    row = maps.endpoints[index : index + 1]
    maps.slots[index] = 0
    row["address"] = np.frombuffer(layout.mapped(member.address), "u1")
    row["port"], row["protocol"], row["role"] = member.port, protocol, member.role.value
    row["service"], row["spill"], row["parent"] = service, 0, parent
    row["hop_expires"] = 0
    maps.limits["limit"][index] = 0
    label_row = maps.endpoint_labels[index : index + 1]
    label_row["name"], label_row["weight"], label_row["removed_tick"] = label, 0, 0
    readings.begin_anew(maps, index)
    maps.endpoint_targets.put(key, index)
    flags = ENDPOINT_PRESENT | (ENDPOINT_DOWN if member.down else 0)
    maps.endpoints["state"][index] = steering.generation(maps, index) << 32 | flags
    if member.role is Role.LIVE:
        _adopt_shadows(maps, member.name, index)


def _is_same(maps: Maps, index: int, member: model.Member, service: int, key: bytes) -> bool:
    row = maps.endpoints[index]
    parent = steering.endpoint_name(maps, int(row["parent"])) if row["role"] == Role.SHADOW.value else None
    return (
        _key(maps, index) == key
        and row["service"] == service
        and row["role"] == member.role.value
        and parent == member.parent
    )


def _key(maps: Maps, index: int) -> bytes:
    row = maps.endpoints[index]
    return bytes(row["address"].tobytes() + int(row["port"]).to_bytes(2, "big") + bytes([row["protocol"], 0]))


def _adopt_shadows(maps: Maps, name: str, index: int) -> None:
    """Shadows of a live endpoint that comes back under the same name stay its shadows."""
    present = steering.present_endpoints(maps)
    for shadow in present[maps.endpoints["role"][present] == Role.SHADOW.value].tolist():
        if steering.endpoint_name(maps, int(maps.endpoints["parent"][shadow])) == name:
            maps.endpoints["parent"][shadow] = index


def _free_endpoint(maps: Maps, member: model.Member, key: bytes) -> int:
    """The index that this address had, or the first one that is free and has rested."""
    index = maps.endpoint_targets.get(key)
    state = maps.endpoints["state"]
    if index is not None:
        if int(state[index]) & ENDPOINT_PRESENT:
            other = steering.endpoint_name(maps, index)
            raise DataplaneError(
                f"member {member.name!r}: {with_port(member.address, member.port)} is {other!r}: "
                "remove that first"
            )
        return index
    present = state & np.uint64(ENDPOINT_PRESENT) != 0
    free = ~present & (maps.endpoint_labels["removed_tick"] == 0)
    free[0] = False
    free[maps.endpoints["parent"][present]] = False
    found = np.flatnonzero(free)
    if not found.size:
        raise DataplaneError(
            f"no room for member {member.name!r}: sizes.endpoints is {maps.sizes.endpoints} and removed ones "
            f"rest for {RETURN_REST_S:.0f} s; raise it"
        )
    return int(found[0])


def _remove_member(maps: Maps, name: str, now_tick: int) -> None:
    index = maps.endpoint_names.get(name)
    if index is None:
        return
    service = int(maps.endpoints["service"][index])
    in_ring = steering.read_rings(maps, [service]).get(service, {})
    own_reference = steering.reference(maps, index)
    live = steering.live_endpoints(maps)
    naming = live[(maps.slots[live] == own_reference).any(axis=1) & (live != index)]
    slots_of = {row: steering.read_slots(maps, row) for row in naming.tolist()}
    maps.endpoint_labels["removed_tick"][index] = now_tick or 1
    maps.endpoints["state"][index] = (steering.generation(maps, index) + 1 & 0xFFFFFFFF) << 32
    maps.endpoints["hop_expires"][index] = 0
    maps.endpoint_labels["weight"][index] = 0
    # A plan takes it out of ring and slots before; what is left then is not what the labels say.
    rest = {other: weight for other, weight in in_ring.items() if other != name}
    if name in in_ring and rest and maps.services["flags"][service] & SERVICE_PRESENT:
        _set_ring(maps, steering.service_name(maps, service), rest)
    for row, slots in slots_of.items():
        _set_slots(maps, row, {other: weight for other, weight in slots.items() if other != name})


def reap(maps: Maps, now_tick: int) -> None:
    """Frees the indices that have rested: from here on their addresses are nobody's."""
    removed = maps.endpoint_labels["removed_tick"]
    rested = now_tick - removed.astype(np.int64) >= layout.ticks(RETURN_REST_S)
    for index in np.flatnonzero((removed != 0) & rested).tolist():
        key = _key(maps, index)
        if maps.endpoint_targets.get(key) == index:
            maps.endpoint_targets.delete(key)
        removed[index] = 0


def _set_flag(maps: Maps, index: int, flag: int, on: bool) -> None:
    state = int(maps.endpoints["state"][index])
    maps.endpoints["state"][index] = state | flag if on else state & ~flag


def _set_draining(maps: Maps, index: int, draining: bool, evicted: float) -> None:
    state = int(maps.endpoints["state"][index]) & ~(ENDPOINT_DRAINING | ENDPOINT_EVICTED)
    flags = ENDPOINT_DRAINING | steering.evicted_bits(evicted) if draining else 0
    maps.endpoints["state"][index] = state | flags


# ---- ring and slots ------------------------------------------------------------------


def _set_ring(maps: Maps, service: str, weights: dict[str, float]) -> None:
    """Writes the copy that is not in use, then flips; the labels are empty meanwhile, so that after a
    crash in between the ring is seen as not set."""
    at = _service_row(maps, service)
    thousandths = {
        name: steering.ring_weight(weight) for name, weight in sorted(weights.items()) if weight > 0
    }
    thousandths = {name: weight for name, weight in thousandths.items() if weight}
    rows = []
    for name in thousandths:
        index = maps.endpoint_names.get(name)
        if index is None or maps.endpoints["service"][index] != at:
            raise DataplaneError(f"ring of {service!r}: {name!r} is not an installed member of it")
        rows.append(index)
    row = maps.services[at]
    size, active = int(row["ring_size"]), int(row["ring_active"])
    names = list(thousandths)
    references = np.zeros(size, np.uint32)
    if names:
        cells = ring.build(names, [float(thousandths[name]) for name in names], size)
        references = np.array([steering.reference(maps, index) for index in rows], np.uint32)[cells]
    live = steering.live_endpoints(maps)
    base = int(row["ring_base"]) + (0 if active else size)
    maps.cells[base : base + size] = references
    maps.endpoint_labels["weight"][live[maps.endpoints["service"][live] == at]] = 0
    maps.services["ring_active"][at] = 1 - active
    maps.endpoint_labels["weight"][rows] = list(thousandths.values())


def _set_slots(maps: Maps, index: int, weights: dict[str, float]) -> None:
    rows: dict[str, int] = {}
    for name in weights:
        row = maps.endpoint_names.get(name)
        if row is None:
            raise DataplaneError(
                f"slots of {steering.endpoint_name(maps, index)!r}: {name!r} is not installed"
            )
        rows[name] = row
    for name, row in rows.items():
        if maps.endpoints["role"][row] == Role.SHADOW.value and maps.endpoints["parent"][row] == index:
            maps.endpoint_labels["weight"][row] = steering.ring_weight(weights[name])
    references = {name: steering.reference(maps, row) for name, row in rows.items()}
    maps.slots[index] = [0 if name is None else references[name] for name in slot_table.place(weights)]
