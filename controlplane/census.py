# SPDX-License-Identifier: Apache-2.0
"""Records against what a survey found: every shadow that exists gets a record, every record what exists.

Pure. A host that could not be asked is unknown, not empty; what changed since the survey began is left
to the next one.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

from controlplane import model, shadows
from controlplane.addresses import with_port
from controlplane.model import Found, Shadow, ShadowState

_EXPECTED = frozenset({ShadowState.WARMING, ShadowState.READY, ShadowState.DRAINING})


@dataclass(frozen=True, slots=True)
class Census:
    """What follows from a survey."""

    changed: tuple[Shadow, ...] = ()
    """Records that are new or differ."""
    gone: tuple[str, ...] = ()
    """Records of what exists nowhere."""
    strays: tuple[Found, ...] = ()
    """Second copies on another host than the record's: to be removed there."""
    doubtful: tuple[str, ...] = ()
    """Shadows that answer but were not listed."""


def of_member(member: model.Member, target: str, now_unix_s: float) -> Shadow:
    """A record for a shadow that is installed and has none: its host is not known until a survey."""
    state = ShadowState.DRAINING if member.draining else ShadowState.READY
    return Shadow(
        name=member.name,
        service=member.service,
        parent=member.parent or "",
        host="",
        target=target,
        state=state,
        requested_unix_s=now_unix_s,
        changed_unix_s=now_unix_s,
        address=member.address,
        port=member.port,
        healthy_unix_s=now_unix_s,
        ready_unix_s=now_unix_s,
        reason="installed without a record",
    )


def compare(
    records: Mapping[str, Shadow],
    survey: model.Survey,
    places: Collection[tuple[str, str]],
    endpoints: Mapping[str, model.Endpoint],
    answering: Collection[str],
    *,
    asked_unix_s: float,
    now_unix_s: float,
) -> Census:
    """:param places: (host, target) pairs that were asked.
    :param answering: shadows whose probes are answered well.
    """
    changed: list[Shadow] = []
    gone: list[str] = []
    strays: list[Found] = []
    doubtful: list[str] = []
    copies: dict[str, list[Found]] = {}
    for found in survey.found:
        copies.setdefault(found.shadow, []).append(found)
    for name, there in copies.items():
        record = records.get(name)
        if record is None:
            changed.append(_adopted(there[0], endpoints, now_unix_s))
            strays += there[1:]
        elif after := _met(record, there, asked_unix_s, now_unix_s):
            changed += [after] if after != record else []
            strays += [one for one in there if one.host != after.host]
    asked = {(host, target) for host, target in places if host not in survey.unasked}
    for name, record in records.items():
        everywhere = record.host == "" and bool(places) and not survey.unasked
        known = everywhere or (record.host, record.target) in asked
        if name in copies or not known or record.changed_unix_s >= asked_unix_s:
            continue
        if record.state in _EXPECTED and name in answering:
            doubtful.append(name)
        elif everywhere:
            gone.append(name)
        elif record.state in _EXPECTED:
            changed.append(_missing(record, now_unix_s))
    return Census(tuple(changed), tuple(gone), tuple(strays), tuple(doubtful))


def _adopted(found: Found, endpoints: Mapping[str, model.Endpoint], now_unix_s: float) -> Shadow:
    """It takes load if it can be told whose shadow it is and where; else it is removed."""
    parent = endpoints.get(found.parent)
    usable = parent is not None and parent.service == found.service and found.address and found.port
    state = ShadowState.WARMING if usable else ShadowState.REMOVING
    return Shadow(
        name=found.shadow,
        service=found.service,
        parent=found.parent,
        host=found.host,
        target=found.target,
        state=state,
        requested_unix_s=now_unix_s,
        changed_unix_s=now_unix_s,
        address=found.address if usable else None,
        port=found.port if usable else None,
        id=found.id,
        reason=f"found on {found.host} without a record",
    )


def _met(record: Shadow, there: list[Found], asked_unix_s: float, now_unix_s: float) -> Shadow | None:
    """The record after its shadow was found; None: too early to say."""
    settled = record.changed_unix_s < asked_unix_s
    same = [one for one in there if (one.address, one.port) == (record.address, record.port)]
    if not record.host:
        one = (same or there)[0]
        return replace(record, host=one.host, target=one.target)
    if record.state not in _EXPECTED or not settled:
        return None
    at_home = [one for one in there if one.host == record.host]
    if same and not at_home:
        return replace(record, host=same[0].host, target=same[0].target)
    if not at_home:
        # Elsewhere, at another address: not what was recorded. It is made again, or removed, where it is.
        moved = replace(record, host=there[0].host, target=there[0].target)
        return shadows.failed(moved, now_unix_s, f"found on {there[0].host}, not on {record.host}")
    if at_home[0].address is None or (at_home[0].address, at_home[0].port) == (record.address, record.port):
        return record
    where = _at(at_home[0])
    return shadows.failed(record, now_unix_s, f"found at {where}, not at {_at(record)}")


def _at(one: Shadow | Found) -> str:
    return with_port(one.address, one.port) if one.address and one.port else "an unknown address"


def _missing(record: Shadow, now_unix_s: float) -> Shadow:
    reason = f"no longer exists on {record.host}"
    if record.state is ShadowState.DRAINING:
        return shadows.entered(record, ShadowState.REMOVING, now_unix_s, reason)
    return shadows.failed(record, now_unix_s, reason)
