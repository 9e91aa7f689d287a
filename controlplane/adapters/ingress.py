# SPDX-License-Identifier: Apache-2.0
"""Where packets come in: one of the interfaces that an instance is attached to, with the tags they have."""

from __future__ import annotations

from dataclasses import dataclass

from controlplane.adapters import attach, netlink
from controlplane.adapters.libbpf import XdpMode
from controlplane.addresses import Address
from controlplane.ports import DataplaneError


@dataclass(frozen=True, slots=True)
class Ingress:
    interface: str
    ifindex: int
    vlans: tuple[int, ...] = ()
    """VIDs of the tags that frames have, outer first."""


def by_name(instance: str, name: str) -> Ingress:
    """An interface that the program is attached to, or a VLAN device on top of one.

    Raises DataplaneError: there is none such in this network namespace.
    """
    routing = netlink.routing()
    link = next((one for one in routing.links.values() if one.name == name), None)
    if link is None:
        raise DataplaneError(f"interface {name!r}: none of this name in this network namespace")
    return _ingress(instance, routing, link, f"interface {name}")


def of_source(instance: str, address: Address) -> Ingress:
    """The one that the host's own route to the address leads out by, for there its packets come in.

    Raises DataplaneError where the routes name none that the program is attached to.
    """
    routing = netlink.routing()
    route = routing.route(address)
    link = routing.links.get(route.ifindex or 0) if route is not None else None
    if link is None:
        raise DataplaneError(f"this host has no route to {address} by one interface: {_name_one(instance)}")
    return _ingress(instance, routing, link, f"the route to {address} leads by {link.name}, which")


def _ingress(instance: str, routing: netlink.Routing, link: netlink.Link, what: str) -> Ingress:
    carrier, tags = routing.carrier(link)
    if carrier is None or carrier.ifindex not in _attached_here(instance).values():
        raise DataplaneError(
            f"{what} is none that instance {instance!r} is attached to: {_name_one(instance)}"
        )
    return Ingress(carrier.name, carrier.ifindex, tuple(tag.vlan for tag in tags))


def _name_one(instance: str) -> str:
    return f"name one with --in ({', '.join(_attached_here(instance))})"


def _attached_here(instance: str) -> dict[str, int]:
    here = {one.interface: one.ifindex for one in attach.attached(instance) if one.mode is not XdpMode.NONE}
    if not here:
        raise DataplaneError(
            f"instance {instance!r} is attached to no interface of this network namespace: run this where it "
            "is, e.g. by nsenter --net=/run/netns/NAME"
        )
    return here
