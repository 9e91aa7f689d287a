# SPDX-License-Identifier: Apache-2.0
"""How shadows of a service that is read get its data: what a configuration may say of it, and where lag is
read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from controlplane import model
from controlplane.model import SyncDriver

SLACK_S = 0.5
"""For what reading and deciding take."""
_TEXTS = {
    SyncDriver.POSTGRES: ("database", "user", "password_file", "sslmode"),
    SyncDriver.REDIS: ("user", "password_file"),
    SyncDriver.COMMAND: (),
}
"""Of the drivers' variables those that the controller reads; the others are for the playbooks."""
_NEEDED = {SyncDriver.POSTGRES: ("database", "user"), SyncDriver.REDIS: (), SyncDriver.COMMAND: ("lag",)}


def problems(driver: SyncDriver, variables: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Keys of the driver's variables, and what is wrong with them."""
    for key in _NEEDED[driver]:
        if key not in variables:
            yield key, "is missing and must be given"
    for key in _TEXTS[driver]:
        if key in variables and not isinstance(variables[key], str):
            yield key, f"{variables[key]!r}: a text is allowed"
    if driver is SyncDriver.COMMAND and "lag" in variables and not _is_command(variables["lag"]):
        yield "lag", f"{variables['lag']!r}: a command is allowed: a list of texts, or a text for the shell"


def _is_command(value: object) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    return isinstance(value, Sequence) and bool(value) and all(isinstance(one, str) for one in value)


def least_max_lag_s(interval_s: float, tick_s: float) -> float:
    """A smaller agreement can't be kept: data seems an interval old when it is read, the reading is an
    interval old when it is judged, and is judged again a tick later."""
    return round(2.0 * interval_s + tick_s + SLACK_S, 3)


def target(
    instance: str, service: model.Service, parent: model.Endpoint, shadow: model.Shadow
) -> model.LagTarget | None:
    """None: it has no copy of data, or where it is, is not known yet."""
    if service.sync is None or shadow.address is None or shadow.port is None:
        return None
    return model.LagTarget(
        shadow.name,
        instance,
        service.name,
        service.sync,
        shadow.address,
        shadow.port,
        service.sync.primary_of(parent),
    )
