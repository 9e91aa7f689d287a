# SPDX-License-Identifier: Apache-2.0
"""The configuration with the hosts that Ansible's inventory has, beside those of its own."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import replace

from controlplane import config as configuration
from controlplane.model import Config, Host, Inventory

_LISTED = 8
KEPT = "inventory"
"""The store's key of the last good one."""


def resolved(
    config: Config, inventory: Inventory | None, gone: Mapping[str, Host]
) -> tuple[Config, tuple[str, ...]]:
    """Hosts of both, groups in ``shadows.hosts`` as their hosts; and what is wrong, a line each: such a host
    is left out, or has what the file says of it.

    :param config: as the file has it.
    :param inventory: None: it was never read.
    :param gone: hosts that may carry something still, by what was last known of them."""
    problems: list[str] = []
    hosts = dict(config.hosts)
    for name, variables in inventory.hosts.items() if inventory else ():
        try:
            hosts[name] = configuration.inventory_host(name, variables, config.hosts.get(name))
        except configuration.ConfigError as error:
            problems += error.problems
    groups = inventory.groups if inventory else {}
    services = {}
    for name, service in config.services.items():
        shadows = replace(service.shadows, hosts=tuple(_expanded(service.shadows.hosts, hosts, groups)))
        services[name] = replace(service, shadows=shadows)
    known = hosts | {name: replace(host, gone=True) for name, host in gone.items() if name not in hosts}
    if inventory is not None:
        problems += _unknown(config, hosts, groups)
    addresses = configuration.host_addresses(host.variables for host in known.values())
    direct = tuple(dict.fromkeys((*config.direct, *addresses)))
    return replace(config, hosts=known, services=services, direct=direct), tuple(problems)


def _expanded(
    names: Iterable[str], hosts: Collection[str], groups: Mapping[str, tuple[str, ...]]
) -> Iterator[str]:
    """In their order, each once. One that is neither stays, and is said to be not known."""
    members = (one for name in names for one in ((name,) if name in hosts else groups.get(name, (name,))))
    yield from dict.fromkeys(members)


def _unknown(
    config: Config, hosts: Mapping[str, Host], groups: Mapping[str, tuple[str, ...]]
) -> Iterator[str]:
    for name, service in config.services.items():
        for at, host in enumerate(service.shadows.hosts):
            if host not in hosts and host not in groups:
                yield f"services.{name}.shadows.hosts.{at}: {host!r} is no host and no group of the inventory"
        for one in service.endpoints:
            if one.host is not None and one.host not in hosts:
                yield f"services.{name}.endpoints.{one.name}.host: {one.host!r} is no host of the inventory"


def known(config: Config, text: str | None) -> Config:
    """With the hosts that the controller knew last. :param text: what the store has of them."""
    inventory, gone = parsed(text)
    return resolved(config, inventory if config.inventory else None, gone)[0]


def changes(before: Mapping[str, Host], after: Collection[str]) -> str:
    """Which hosts came and went, in words; empty: none."""
    were = {name for name, host in before.items() if not host.gone}
    said = (("new", set(after) - were), ("no longer there", were - set(after)))
    return "; ".join(f"{_some(names)} {word}" for word, names in said if names)


def _some(names: Iterable[str]) -> str:
    found = sorted(names)
    return ", ".join(found[:_LISTED]) + (f" and {len(found) - _LISTED} more" if len(found) > _LISTED else "")


def to_keep(inventory: Inventory | None, gone: Iterable[Host]) -> str:
    """For the store: what a start goes by until the inventory is read."""
    lost = {host.name: dict(host.variables) for host in gone}
    read = None if inventory is None else {"hosts": inventory.hosts, "groups": inventory.groups}
    return json.dumps({"read": read, "gone": lost}, sort_keys=True)


def parsed(text: str | None) -> tuple[Inventory | None, dict[str, Host]]:
    """What ``to_keep`` made: the inventory, and hosts that are gone. Raises ValueError for anything else."""
    if text is None:
        return None, {}
    try:
        raw = json.loads(text)
        read, lost = raw["read"], raw["gone"]
        groups = {} if read is None else {name: tuple(its) for name, its in read["groups"].items()}
        inventory = None if read is None else Inventory(dict(read["hosts"]), groups)
        return inventory, {name: Host(name, variables=dict(its), gone=True) for name, its in lost.items()}
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"what was known of hosts is damaged: {type(error).__name__}: {error}") from None


def listed(raw: object) -> Inventory:
    """What ``ansible-inventory --list`` prints, parsed. Raises ValueError: it is something else, or empty."""
    meta = raw.get("_meta") if isinstance(raw, dict) else None
    variables = meta.get("hostvars") if isinstance(meta, dict) else None
    if not isinstance(raw, dict) or not isinstance(variables, dict):
        raise ValueError("it is no answer of ansible-inventory --list")
    below = {name: one for name, one in raw.items() if name != "_meta" and isinstance(one, dict)}
    groups = {name: tuple(_hosts_in(name, below, set())) for name in (*below, *_children(below))}
    names = dict.fromkeys((*groups.get("all", ()), *variables))
    hosts = {str(name): variables.get(name, {}) for name in names}
    if not hosts:
        raise ValueError("it holds no host")
    for name, its in hosts.items():
        if not isinstance(its, dict):
            raise ValueError(f"host {name}: no mapping of variables")
    return Inventory(hosts, {name: tuple(dict.fromkeys(its)) for name, its in groups.items()})


def _children(below: Mapping[str, Mapping[str, object]]) -> Iterator[str]:
    """Groups that are named and have nothing in them, which are not listed themselves."""
    for one in below.values():
        yield from (name for name in _names(one.get("children")) if name not in below)


def _hosts_in(group: str, below: Mapping[str, Mapping[str, object]], seen: set[str]) -> Iterator[str]:
    if group in seen:
        return
    seen.add(group)
    one = below.get(group, {})
    yield from _names(one.get("hosts"))
    for child in _names(one.get("children")):
        yield from _hosts_in(child, below, seen)


def _names(value: object) -> list[str]:
    return [str(one) for one in value] if isinstance(value, list) else []
