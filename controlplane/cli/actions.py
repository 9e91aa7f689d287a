# SPDX-License-Identifier: Apache-2.0
"""Commands that ask the running controller for something: drain, undrain, shadow, freeze, thaw."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Annotated

import typer

from controlplane import config, inventory, requests
from controlplane.cli.instance import Instance, find, told
from controlplane.cli.options import InstanceName
from controlplane.cli.output import EXIT_USAGE, fail, say, warn
from controlplane.model import Config, Service, Shadow, ShadowState
from controlplane.ports import Store

shadow_app = typer.Typer(help="Shadows by hand.", no_args_is_help=True, rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    for command in (drain, undrain, freeze, thaw):
        app.command()(command)
    app.add_typer(shadow_app, name="shadow")


Endpoint = Annotated[str, typer.Argument(help="a live endpoint, as the configuration names it")]


def drain(endpoint: Endpoint, instance: InstanceName = None) -> None:
    """Give ENDPOINT no new flows; old ones finish. Holds until undrain, also over restarts.

    Example: penumbra drain web-1
    """
    at = _with_endpoint(endpoint, instance)
    store = at.store()
    requests.request_drain(store, endpoint, True)
    if _has_successor(at, store, endpoint):
        _told(at, f"{endpoint}: no new flows from the next tick on, if another member can take them")
    else:
        _told(at, f"{endpoint}: drained, but {requests.SERVES_ON}")


def _has_successor(at: Instance, store: Store, endpoint: str) -> bool:
    """Another live endpoint that is neither drained nor down, or a shadow that is ready: of a pool any, else
    its own."""
    service = _service_of(config.load(at.config), endpoint)
    names = [one.name for one in service.endpoints]
    found = [one for one in told(at.name).get("services", ()) if one["name"] == service.name]
    down = {group["name"] for one in found for group in one["groups"] if group["up"] is False}
    others = set(names) - requests.drained(store, names) - down
    helped = names if any(one["pool"] for one in found) else [endpoint]
    ready = [s for s in store.shadows().values() if s.state is ShadowState.READY and s.parent in helped]
    return bool(others or ready)


def undrain(endpoint: Endpoint, instance: InstanceName = None) -> None:
    """Give ENDPOINT new flows again.

    Example: penumbra undrain web-1
    """
    at = _with_endpoint(endpoint, instance)
    requests.request_drain(at.store(), endpoint, False)
    _told(at, f"{endpoint}: takes new flows again from the next tick on")


def freeze(instance: InstanceName = None) -> None:
    """No automatic action until thaw: no shadow is made or removed, no weight moves; health goes on.

    Example: penumbra freeze
    """
    at = find(instance)
    requests.request_freeze(at.store(), True)
    _told(at, "frozen: health checks go on, nothing else acts until: penumbra thaw")


def thaw(instance: InstanceName = None) -> None:
    """Automatic action again.

    Example: penumbra thaw
    """
    at = find(instance)
    requests.request_freeze(at.store(), False)
    _told(at, "thawed")


@shadow_app.command("add")
def shadow_add(
    endpoint: Endpoint,
    host: Annotated[str | None, typer.Option(help="a key of hosts; else the placement decides")] = None,
    instance: InstanceName = None,
) -> None:
    """Make a shadow of ENDPOINT now. It stays until it is removed by hand. While frozen it gets no new flows.

    Example: penumbra shadow add web-1 --host spare-1
    """
    at = _with_endpoint(endpoint, instance)
    store = at.store()
    configured = inventory.known(config.load(at.config), store.get(inventory.KEPT))
    if host is not None:
        _known("host", host, configured.hosts)
    service = _service_of(configured, endpoint)
    allowed = service.shadows.hosts if host is None else (host,)
    if not _has_slot(configured, allowed, store.shadows().values()):
        fail(f"no host has a free slot: {', '.join(allowed) or 'services.*.shadows.hosts names none'}")
    requests.request_shadow_add(store, endpoint, host)
    held = requests.held(configured.mode, requests.is_frozen(store))
    but = f"; no new flows go to it: {held}" if held else ""
    _told(at, f"a shadow of {endpoint} is ordered with the next tick{but}; see: penumbra status")


def _has_slot(configured: Config, allowed: Iterable[str], shadows: Collection[Shadow]) -> bool:
    hosts = [configured.hosts[name] for name in allowed if name in configured.hosts]
    return any(not one.gone and sum(s.host == one.name for s in shadows) < one.slots for one in hosts)


@shadow_app.command("remove")
def shadow_remove(
    shadow: Annotated[str, typer.Argument(help="a shadow, as penumbra status names it")],
    instance: InstanceName = None,
) -> None:
    """Drain SHADOW, then remove it.

    Example: penumbra shadow remove web-1-s1
    """
    at = find(instance)
    store = at.store()
    _known("shadow", shadow, store.shadows())
    requests.request_shadow_remove(store, shadow)
    _told(at, f"{shadow} is drained, then removed; see: penumbra status")


def _service_of(configured: Config, endpoint: str) -> Service:
    return next(s for s in configured.services.values() for e in s.endpoints if e.name == endpoint)


def _with_endpoint(endpoint: str, instance: str | None) -> Instance:
    at = find(instance)
    services = config.load(at.config).services.values()
    _known("endpoint", endpoint, [one.name for service in services for one in service.endpoints])
    return at


def _known(what: str, name: str, names: Collection[str]) -> None:
    if name not in names:
        fail(f"{what} {name!r} is not known; there are: {', '.join(names) or 'none'}", EXIT_USAGE)


def _told(at: Instance, line: str) -> None:
    say(line)
    if at.controller_pid() is None:
        warn(
            f"no controller of instance {at.name!r} runs: it is done when one does (penumbra run {at.config})"
        )
