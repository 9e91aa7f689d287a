# SPDX-License-Identifier: Apache-2.0
"""``penumbra provision --plan``: original against clone, before anything is made."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated

import typer

from controlplane import config, inventory, model, placement, specifications
from controlplane.adapters.ansible import AnsibleProvisioner
from controlplane.adapters.clock import MachineClock
from controlplane.cli import output
from controlplane.cli.instance import Instance, find
from controlplane.cli.options import AsJson, InstanceName
from controlplane.cli.output import EXIT_FAILED, EXIT_USAGE, fail, say, warn
from controlplane.ports import Store

REFUSED = "refused"
COLUMNS = ("field", "verdict", "original", "clone", "reason")
_FIRST = (REFUSED, "rewritten", "added", "left out")
"""What differs is told before what is the same."""


def register(app: typer.Typer) -> None:
    app.command()(provision)


def provision(
    endpoint: Annotated[str, typer.Argument(help="a live endpoint, as the configuration names it")],
    plan: Annotated[bool, typer.Option("--plan", help="show what would be made; changes nothing")] = False,
    host: Annotated[str | None, typer.Option(help="a key of hosts; else the first of shadows.hosts")] = None,
    instance: InstanceName = None,
    as_json: AsJson = False,
) -> None:
    """Show what a shadow of ENDPOINT would be: field by field the original against its clone. Ends with 1 if
    it would be refused. Values of environment, command and labels are not shown.

    Example: penumbra provision --plan web-1
    """
    if not plan:
        fail(f"only --plan is there: it shows what penumbra shadow add {endpoint} would make", EXIT_USAGE)
    at = find(instance)
    store = at.store()
    configured = inventory.known(config.load(at.config), store.get(inventory.KEPT))
    order, kept = _order(configured, store, endpoint, host)
    found = _planned(at, configured, order)
    if found.reason:
        fail(found.reason)
    rows = sorted(found.rows, key=lambda row: (_rank(row["verdict"]), row["field"]))
    refused = any(row["verdict"] == REFUSED for row in rows)
    if as_json:
        output.document(
            {
                "endpoint": endpoint,
                "host": order.host.name,
                "target": order.target,
                "made_from": found.made_from,
                "kept_unix_s": kept.at_unix_s if kept else None,
                "refused": refused,
                "fields": rows,
            }
        )
    else:
        _show(order, found, kept, rows)
    if refused:
        raise SystemExit(EXIT_FAILED)


def _order(
    configured: model.Config, store: Store, endpoint: str, host: str | None
) -> tuple[model.Order, specifications.Kept | None]:
    parents = {one.name: one for service in configured.services.values() for one in service.endpoints}
    if endpoint not in parents:
        fail(f"endpoint {endpoint!r} is not known; there are: {', '.join(parents)}", EXIT_USAGE)
    parent = parents[endpoint]
    service = configured.services[parent.service]
    chosen = host or next(iter(service.shadows.hosts), None)
    if chosen is None:
        fail(f"services.{service.name}.shadows.hosts names none: it gets no shadows, but see --host")
    if chosen not in configured.hosts:
        fail(f"host {chosen!r} is not known; there are: {', '.join(configured.hosts) or 'none'}", EXIT_USAGE)
    kept = specifications.kept(store, endpoint, service.shadows.target)
    order = model.Order(
        shadow=placement.name(endpoint, store.shadows().keys() | parents.keys()),
        instance=configured.instance,
        service=service.name,
        parent=parent,
        protocol=service.protocol,
        probe=service.probe,
        host=configured.hosts[chosen],
        target=service.shadows.target,
        timeout_s=service.shadows.timeout_s,
        variables=service.shadows.variables,
        sync=service.sync,
        specification=kept.text if kept else "",
    )
    return order, kept


def _planned(at: Instance, configured: model.Config, order: model.Order) -> model.Plan:
    provisioner = AnsibleProvisioner(at.name, configured.hosts, MachineClock(), configured.playbooks)
    try:
        return provisioner.plan(order)
    finally:
        provisioner.close()


def _show(
    order: model.Order,
    found: model.Plan,
    kept: specifications.Kept | None,
    rows: list[Mapping[str, str]],
) -> None:
    source = "the original as it runs"
    if found.made_from == "kept" and kept is not None:
        then = datetime.fromtimestamp(kept.at_unix_s).astimezone().isoformat(timespec="seconds")
        source = f"what was read of the original at {then}, for it can't be read now"
    say(f"{order.shadow}, a shadow of {order.parent.name} on {order.host.name}, is made from {source}:")
    output.rows(COLUMNS, rows, as_json=False)
    for row in rows:
        if row["verdict"] == REFUSED:
            warn(f"it would be refused: {row['reason']}")


def _rank(verdict: str) -> int:
    return _FIRST.index(verdict) if verdict in _FIRST else len(_FIRST)
