# SPDX-License-Identifier: Apache-2.0
"""From what is installed to what is wanted, in ordered steps.

After any step: a service with a usable member has a ring, no ring and no slot names a member that is not
installed, and a down live endpoint keeps its shadows. A plan cut short is resumed by planning again.
"""

from __future__ import annotations

from collections.abc import Iterator, Set
from dataclasses import replace

from controlplane.model import (
    InstallMember,
    InstallService,
    Member,
    RemoveMember,
    RemoveService,
    Role,
    SetDown,
    SetDraining,
    SetLimit,
    SetRing,
    SetSlots,
    SetSpill,
    Steering,
    Step,
    VirtualService,
)


def plan(installed: Steering, wanted: Steering) -> tuple[Step, ...]:
    """The steps; none when nothing differs."""
    return tuple(_steps(installed, wanted))


def _identity(member: Member) -> tuple[object, ...]:
    return member.service, member.address, member.port, member.role, member.parent


def _same_service(a: VirtualService, b: VirtualService) -> bool:
    """Whether the one can become the other while flows go on."""
    return (a.vip, a.port, a.protocol, a.ring_size) == (b.vip, b.port, b.protocol, b.ring_size)


def _steps(installed: Steering, wanted: Steering) -> Iterator[Step]:
    anew = {
        n
        for n, s in installed.services.items()
        if n in wanted.services and not _same_service(s, wanted.services[n])
    }
    gone = installed.services.keys() - wanted.services.keys()
    moved = {
        name
        for name, member in installed.members.items()
        if name in wanted.members and _identity(member) != _identity(wanted.members[name])
    }
    # An address has one name at a time: who has it goes before who gets it comes.
    places = {(member.address, member.port) for member in wanted.members.values()}
    moved |= {
        name
        for name, member in installed.members.items()
        if name not in wanted.members and (member.address, member.port) in places
    }
    # A ring can't be left empty: a service that keeps nobody is installed anew.
    anew |= {n for n, s in installed.services.items() if n not in gone and s.ring and s.ring.keys() <= moved}
    replaced = moved | {
        name
        for name, member in installed.members.items()
        if name in wanted.members and member.service in anew | gone
    }
    kept = {n: m for n, m in installed.members.items() if n in wanted.members and n not in replaced}

    # A service goes before its members, so that it never sends to one that is removed.
    for name in sorted(gone | anew):
        yield RemoveService(name)
    rings = {n: dict(s.ring) for n, s in installed.services.items() if n not in gone | anew}
    yield from _replace_members(installed, replaced, rings, kept)
    for name in sorted(wanted.services.keys() - rings.keys()):
        yield InstallService(replace(wanted.services[name], ring={}))
        rings[name] = {}
    for name in sorted(wanted.services.keys() & installed.services.keys() - anew):
        if replace(wanted.services[name], ring=installed.services[name].ring) != installed.services[name]:
            yield InstallService(replace(wanted.services[name], ring={}))
    order = sorted(wanted.members.values(), key=lambda m: (m.role is not Role.LIVE, m.name))
    for member in order:
        if member.name not in kept:
            yield InstallMember(replace(member, spill=0.0, slots={}, limit=0, draining=False, evicted=0.0))
    yield from _set_members(kept, order)
    for name, service in sorted(wanted.services.items()):
        if rings[name] != dict(service.ring):
            yield SetRing(name, dict(service.ring))
    # A member goes down after its flows have somewhere else to go.
    for member in order:
        if member.down and member.name in kept and not kept[member.name].down:
            yield SetDown(member.name, True)
    yield from _remove(installed, installed.members.keys() - wanted.members.keys() - moved)


def _replace_members(
    installed: Steering, replaced: set[str], rings: dict[str, dict[str, float]], kept: dict[str, Member]
) -> Iterator[Step]:
    """Takes members that come back under the same name, and those whose address another gets, out of rings
    and slots, then away."""
    for name, ring in rings.items():
        rest = {n: w for n, w in ring.items() if n not in replaced}
        if rest and rest != ring:
            yield SetRing(name, rest)
            rings[name] = rest
    for name, member in installed.members.items():
        if name in replaced:
            continue
        rest = {n: w for n, w in member.slots.items() if n not in replaced}
        if rest != dict(member.slots):
            spill = member.spill if rest else 0.0
            if spill != member.spill:
                yield SetSpill(member.name, spill)
            yield SetSlots(member.name, rest)
            if name in kept:
                kept[name] = replace(member, slots=rest, spill=spill)
    yield from _remove(installed, replaced)
    for ring in rings.values():
        for name in replaced:
            ring.pop(name, None)


def _remove(installed: Steering, names: Set[str]) -> Iterator[Step]:
    """A live endpoint goes before the shadows that its slots name."""
    for name in sorted(names, key=lambda n: (installed.members[n].role is not Role.LIVE, n)):
        yield RemoveMember(name)


def _set_members(kept: dict[str, Member], order: list[Member]) -> Iterator[Step]:
    for member in order:
        before = kept.get(member.name)
        if before is not None and before.down and not member.down:
            yield SetDown(member.name, False)
        drains = (before.draining, before.evicted) if before else (False, 0.0)
        if drains != (member.draining, member.evicted):
            yield SetDraining(member.name, member.draining, member.evicted)
    for member in order:
        before = kept.get(member.name)
        spill = before.spill if before else 0.0
        # Less spill before fewer slots, more after more: never spill into nothing.
        if member.spill < spill:
            yield SetSpill(member.name, member.spill)
        if dict(member.slots) != dict(before.slots if before else {}):
            yield SetSlots(member.name, dict(member.slots))
        if member.spill > spill:
            yield SetSpill(member.name, member.spill)
        if member.limit != (before.limit if before else 0):
            yield SetLimit(member.name, member.limit)
