# SPDX-License-Identifier: Apache-2.0
"""Which host gets the next shadow, and whether what was made there can be steered to."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from controlplane.addresses import Address, of_one_host, with_port
from controlplane.model import Config, Endpoint, Host, Service, Shadow


def choose(
    hosts: Mapping[str, Host], allowed: Sequence[str], shadows: Iterable[Shadow], parent: Endpoint
) -> str | None:
    """The best host with a free slot, or None.

    Not the parent's host if another is free; then the one with the fewest shadows of this parent; then
    the emptiest (share of slots in use); then the configured order. A shadow that is being removed or
    has failed keeps its slot until its record is gone: what runs there is not known.
    """
    held = list(shadows)

    def cost(name: str) -> tuple[bool, int, float, int]:
        used = sum(shadow.host == name for shadow in held)
        ours = sum(shadow.host == name and shadow.parent == parent.name for shadow in held)
        return name == parent.host, ours, used / hosts[name].slots, allowed.index(name)

    free = [
        name
        for name in allowed
        if name in hosts and sum(shadow.host == name for shadow in held) < hosts[name].slots
    ]
    return min(free, key=cost, default=None)


def full(config: Config, shadows: Iterable[Shadow], parent: Endpoint) -> str | None:
    """Why no more are allowed, however many slots are free; None: more are."""
    held = list(shadows)
    most = config.services[parent.service].shadows.max_per_service
    if most is not None and sum(shadow.service == parent.service for shadow in held) >= most:
        return f"its service {parent.service} has {most} shadows, max_per_service"
    if config.max_shadows is not None and len(held) >= config.max_shadows:
        return f"there are {len(held)} shadows in all, max_shadows"
    return None


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
