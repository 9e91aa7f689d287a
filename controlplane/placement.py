# SPDX-License-Identifier: Apache-2.0
"""Which host gets the next shadow, and whether what was made there can be steered to."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from controlplane.addresses import Address, of_one_host, with_port
from controlplane.model import Config, Endpoint, Service, Shadow, ShadowState

_NAMED = 4
"""Other hosts that a reason names."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """A host that may carry the next shadow, as it is now."""

    name: str
    slots: int = 1
    taken: int = 0
    """Slots, by shadows in whichever state: what runs of them is not always known."""
    siblings: int = 0
    """Shadows of the same parent among them."""
    used: float | None = None
    """The share used with the shadow, of what it has most used; may exceed 1. None: its slots tell."""
    unread: str = ""
    """Why its use is not known though it should be; empty: it is, or need not be."""
    failures: int = 0
    """Runs that failed there since the last that did not."""
    avoided_s: float = 0.0
    """So long it is, for them."""
    failed_here: bool = False
    """The same shadow, when it was tried last."""
    region: str = ""
    price_per_hour: float = 0.0
    gone: bool = False

    @property
    def load(self) -> float:
        """With the shadow."""
        return (self.taken + 1) / self.slots if self.used is None else self.used


@dataclass(frozen=True, slots=True)
class Wish:
    """What is asked of a host."""

    parent: str
    parent_host: str | None
    regions: tuple[str, ...] = ()
    """Best first; empty: all alike."""
    cost_weight: float = 0.0
    """What the dearest host's price counts, in shares of use."""
    left_per_hour: float | None = None
    """Of the budget; None: there is none."""


@dataclass(frozen=True, slots=True)
class Placement:
    host: str | None
    why: str
    """In words and numbers: why this host, or why none."""
    full: bool = False
    """There is no slot, whoever asks."""


@dataclass(frozen=True, slots=True)
class Question:
    """One choice, with all that it was made of."""

    candidates: Sequence[Candidate]
    wish: Wish
    answer: Placement


def choose(candidates: Sequence[Candidate], wish: Wish) -> Placement:
    """Where the next shadow goes.

    Only where a slot is free, runs don't fail, its use is known and the budget suffices. Then in this order:
    not its parent's host; not where the same shadow failed; the better region, as every request to another
    one crosses the distance; where fewest of its siblings are; where no run failed; least use with it, plus
    the price's share of the dearest's times ``cost_weight``; the configured order.
    """
    if not candidates:
        return Placement(None, "no host has a free slot (none is configured)")
    unfit = {one.name: why for one in candidates if (why := _unfit(one, wish))}
    usable = [one for one in candidates if one.name not in unfit]
    if not usable:
        full = all(one.taken >= one.slots and not one.gone for one in candidates)
        what = "no host has a free slot" if full else "no host can take it"
        return Placement(
            None, full=full, why=f"{what} ({_listed(f'{name}: {why}' for name, why in unfit.items())})"
        )
    dearest = max(one.price_per_hour for one in candidates)

    def order(one: Candidate) -> tuple[bool, bool, int, int, bool, float]:
        cost = one.load + (wish.cost_weight * one.price_per_hour / dearest if dearest else 0.0)
        is_parents = one.name == wish.parent_host
        return is_parents, one.failed_here, _rank(one, wish), one.siblings, one.failures > 0, cost

    best = min(usable, key=order)  # of equals the first
    return Placement(best.name, _why(best, usable, unfit, wish))


def _rank(one: Candidate, wish: Wish) -> int:
    """Of its region; 0 is the best."""
    return wish.regions.index(one.region) if one.region in wish.regions else len(wish.regions)


def _unfit(one: Candidate, wish: Wish) -> str:
    """Why it can't be taken; empty: it can."""
    if one.gone:
        return "it is no host now"
    if one.taken >= one.slots:
        return f"{one.taken} of {one.slots} slots taken"
    if one.avoided_s > 0:
        runs = "1 run" if one.failures == 1 else f"{one.failures} runs"
        return f"avoided for {one.avoided_s:.0f} s after {runs} failed"
    if one.unread:
        return one.unread
    if wish.left_per_hour is not None and one.price_per_hour > wish.left_per_hour:
        left = max(wish.left_per_hour, 0.0)
        return f"{one.price_per_hour:g}/h, and {left:g}/h are left of budget_per_hour"
    return ""


def _why(best: Candidate, usable: Sequence[Candidate], unfit: Mapping[str, str], wish: Wish) -> str:
    others = [one for one in usable if one is not best]
    used = (
        f"{best.load:.0%} of its slots used with it" if best.used is None else f"{best.load:.0%} used with it"
    )
    if others:
        used += f" ({_listed(f'{one.name} {one.load:.0%}' for one in others)})"
    parts = [used]
    if best.name == wish.parent_host:
        parts.append(f"the host of {wish.parent}, as no other can take it")
    elif wish.parent_host is not None:
        parts.append(f"other host than {wish.parent}")
    if best.siblings:
        parts.append(f"{best.siblings} of its siblings there")
    if best.failed_here:
        parts.append("where it failed before")
    if best.region:
        parts.append(best.region)
    if best.price_per_hour:
        parts.append(f"{best.price_per_hour:g}/h")
    if unfit:
        parts.append(f"not {_listed(f'{name} ({why})' for name, why in unfit.items())}")
    return ", ".join(parts)


def _listed(parts: Iterable[str]) -> str:
    found = list(parts)
    more = len(found) - _NAMED
    return ", ".join(found[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def full(
    config: Config, shadows: Iterable[Shadow], parent: Endpoint, avoided: Collection[str] = ()
) -> str | None:
    """Why no more are allowed, however many slots are free; None: more are.

    :param avoided: hosts on which runs fail: what is to be removed there, and can't be, is not counted."""
    held = [one for one in shadows if one.state is not ShadowState.REMOVING or one.host not in avoided]
    most = config.services[parent.service].shadows.max_per_service
    if most is not None and sum(shadow.service == parent.service for shadow in held) >= most:
        return f"its service {parent.service} has {most} shadows, max_per_service"
    if config.max_shadows is not None and len(held) >= config.max_shadows:
        return f"there are {len(held)} shadows in all, max_shadows"
    return None


def cost_per_hour(config: Config, shadows: Iterable[Shadow]) -> float:
    """Of all of them, whatever their state: what is made or removed is paid for, too."""
    return sum(config.hosts[one.host].price_per_hour for one in shadows if one.host in config.hosts)


def name(parent: str, taken: Iterable[str]) -> str:
    """The first free name of a parent's shadow: web-1-s1, web-1-s2, ..."""
    used = set(taken)
    return next(name for k in range(1, len(used) + 2) if (name := f"{parent}-s{k}") not in used)


def unusable(
    shadow: Shadow,
    services: Mapping[str, Service],
    others: Iterable[Shadow],
    own_addresses: Collection[Address],
) -> str | None:
    """Why packets can't be sent to where a shadow is said to serve; None: they can.

    :param others: shadows that are steered to, or will be.
    :param own_addresses: of the access point: replies from there would not pass the program.
    """
    address, port, service = shadow.address, shadow.port, services.get(shadow.service)
    if address is None or port is None or service is None:
        return None
    where = with_port(address, port)
    if not 1 <= port <= 65535:
        return f"{where}: no port; 1 to 65535 are allowed"
    if not of_one_host(address):
        return f"{where}: no address of one host in a network"
    if address.version != service.vip.version:
        return f"{where}: not of the IP version of its service's vip {service.vip}"
    if address in own_addresses:
        return f"{where}: an address of the access point itself"
    for name, one in services.items():
        if address == one.vip:
            return f"{where}: the vip of service {name}"
        if one.protocol is service.protocol:
            for endpoint in one.endpoints:
                if (endpoint.address, endpoint.port) == (address, port):
                    return f"{where}: endpoint {endpoint.name}"
    for other in others:
        its = services.get(other.service)
        same = other.name != shadow.name and (other.address, other.port) == (address, port)
        if same and its is not None and its.protocol is service.protocol:
            return f"{where}: shadow {other.name}"
    return None
