# SPDX-License-Identifier: Apache-2.0
"""Commands about an instance as a whole: check, load, unload, run, reload, status."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from controlplane import config, model, requests
from controlplane.adapters import loader
from controlplane.adapters.clock import MachineClock
from controlplane.cli import instance as instances
from controlplane.cli import output, wiring
from controlplane.cli.options import AsJson, ConfigFile, InstanceName
from controlplane.cli.output import EXIT_USAGE, fail, say, warn
from controlplane.journal import fails_open
from controlplane.ports import StoreError
from controlplane.requests import SERVES_ON

RELOAD_S = 10.0
STALE_S = 5.0
NOVEL_S = 3600.0
"""What was new longer ago is left to ``penumbra explain``."""
TRAFFIC = ("name", "received", "forwarded", "passed", "dropped", "sent", "lost", "refused", "error")
EJECTED = ("endpoint", "name", "ejected", "held_s", "flaps", "reason")
USAGE = ("endpoint", "name", "cpu", "memory", "network", "weight", "asks", "strength", "age_s")
LAG = (
    "endpoint",
    "name",
    "is_open",
    "seconds",
    "max_seconds",
    "bytes",
    "max_bytes",
    "on_lag",
    "age_s",
    "reason",
)
HOSTS = (
    "name",
    "region",
    "taken",
    "slots",
    "cpu",
    "memory",
    "network",
    "price_per_hour",
    "failures",
    "reason",
)
_MIB = 1 << 20


def register(app: typer.Typer) -> None:
    for command in (check, load, unload, run, reload, status):
        app.command()(command)


def check(config_file: ConfigFile) -> None:
    """Look at CONFIG and at this machine; change nothing.

    Example: penumbra check penumbra.yml
    """
    configured = _checked(config_file)
    if problems := wiring.against_inventory(configured):
        raise config.ConfigError(f"{config_file}: {problem}" for problem in problems)
    wiring.require_bpf(mounted=False)  # load mounts it
    endpoints = sum(len(service.endpoints) for service in configured.services.values())
    counts = f"{output.counted(len(configured.services), 'service')}, {output.counted(endpoints, 'endpoint')}"
    say(f"{config_file}: {counts}, mode {configured.mode.value}")
    _print_memory(wiring.memory(configured))
    for hint in wiring.hints(configured):
        warn(f"in the way: {hint}")


def _print_memory(taken: list[wiring.Memory]) -> None:
    total = sum(one.taken_bytes for one in taken)
    say(f"its maps take {total / _MIB:.1f} MiB of the kernel's memory, for so many as sizes allow:")
    for one in taken:
        each = f"{one.taken_bytes / one.count:,.0f} bytes each"
        say(f"  {one.kind:10}  {one.count:>9}  {one.taken_bytes / _MIB:8.1f} MiB  {each:>17}")


def load(config_file: ConfigFile) -> None:
    """Compile, pin and attach the program; it steers from then on, with or without a controller.

    Loaded already: it goes on with its flows, is attached where it is not yet, and an older version's program
    is replaced from one packet to the next.

    Example: penumbra load penumbra.yml
    """
    configured = _checked(config_file)
    wiring.prepare()
    loaded, as_configured = wiring.load(configured, config_file)
    state = "loaded" if loaded.fresh else "was loaded already and goes on"
    if loaded.replaced:
        state += " with another program, this version's for these MTUs"
    say(f"instance {configured.instance} {state}; next: penumbra run {config_file}")
    if not as_configured:
        warn("it goes on with the services and endpoints that it had: run, or reload, applies the file's")
    for attachment in loaded.attachments:
        line = wiring.mode_line(attachment)
        if attachment.mode.name == "NATIVE":
            say(line)
        else:
            warn(line)
    if loaded.uncounted:
        warn(f"frames that the kernel loses after a redirect are not counted: {loaded.uncounted}")
    if loaded.rowless:
        warn(
            f"{', '.join(loaded.rowless)}: counted together as 'other', for too many interfaces have been "
            "attached since the maps were made; penumbra unload begins anew"
        )


def unload(instance: InstanceName = None) -> None:
    """Detach the program and remove its maps: nothing is steered any more. Shadows and the store stay.

    Example: penumbra unload
    """
    names = instances.loaded()
    if instance is None and len(names) != 1:
        if not names:
            say("no instance is loaded")
            return
        fail(f"several instances are loaded ({', '.join(names)}): name one with --instance", EXIT_USAGE)
    name = instance if instance is not None else names[0]
    if (pid := instances.running_controller(name)) is not None:
        fail(f"a controller of instance {name!r} runs: stop it first (kill {pid or 'in its own namespace'})")
    loader.unload(name)
    instances.forget(name)
    say(f"instance {name} unloaded" if name in names else f"instance {name} was not loaded")


def run(
    config_file: ConfigFile,
    record: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="add all that is read and decided to it: simulate --replay FILE"),
    ] = None,
) -> None:
    """Run the controller; loads the program first if need be. Ctrl-C (SIGINT), SIGTERM or SIGHUP ends it,
    steering goes on.

    Example: penumbra run penumbra.yml
    """
    configured = _checked(config_file)
    wiring.prepare()
    wiring.run(configured, config_file, record)


def reload(instance: InstanceName = None) -> None:
    """Have the controller read its configuration again. A bad one is refused and the running one stays.

    Example: penumbra reload
    """
    at = instances.find(instance)
    config.load(at.config)  # what it names is looked for by the controller, in its own network namespace
    store = at.store()
    if at.controller_pid() is None:
        fail(f"no controller of instance {at.name!r} runs: penumbra run {at.config}")
    clock = MachineClock()
    asked_unix_s, until_s = clock.unix_s(), clock.now_s() + RELOAD_S
    requests.request_reload(store)
    while clock.now_s() < until_s:
        for one in store.decisions(50):
            if one.subject == "config" and one.at_unix_s >= asked_unix_s:
                if one.action == "refuse":
                    fail(one.reason, EXIT_USAGE)
                say(one.reason)
                return
        clock.wait_until(clock.now_s() + 0.1)
    fail(f"the controller did not answer within {RELOAD_S:g} s; see: penumbra status")


def status(
    instance: InstanceName = None,
    as_json: AsJson = False,
    decisions: Annotated[
        int, typer.Option(min=0, max=1000, help="how many of the last decisions to show")
    ] = 8,
) -> None:
    """What is steered where, what is forecast, and what was decided and why.

    Example: penumbra status --json
    """
    at = instances.find(instance)
    found = instances.told(at.name)
    found["controller_pid"] = at.controller_pid()
    try:
        found["decisions"] = [output.plain(one) for one in at.store().decisions(decisions)]
    except StoreError as error:
        warn(f"decisions can't be read: {error}")
        found["decisions"] = []
    if as_json:
        output.document(found)
        return
    _print_status(at, found)


def _print_status(at: instances.Instance, found: dict[str, Any]) -> None:
    pid = found["controller_pid"]
    runs = f"controller {pid}" if pid is not None else f"no controller runs (penumbra run {at.config})"
    if "services" not in found:
        say(f"instance {at.name}: {runs}; nothing decided yet")
        return
    frozen = ", frozen" if found["frozen"] else ""
    say(f"instance {at.name}: {runs}, mode {found['mode']}{frozen}")
    age_s = MachineClock().unix_s() - found["at_unix_s"]
    if age_s > STALE_S:
        warn(
            f"the last tick was {age_s:.0f} s ago, what follows is as old"
            + (f": process {pid} hangs or is stopped" if pid is not None else "")
        )
    if not found["fresh"]:
        warn("counters are not fresh: weights stay and nothing is removed")
    for part, trouble in found["troubles"].items():
        warn(f"{part} does not work: {trouble}")
    for name in found.get("bypassed", ()):
        warn(f"{name}: its replies bypass the access point")
    groups, shadows = [], []
    pools = [{"service": one["name"], **one["pool"]} for one in found["services"] if one.get("pool")]
    for service in found["services"]:
        if service["fail_open"]:
            those = (shadow for group in service["groups"] for shadow in group["shadows"])
            warn(f"{service['name']}: {fails_open([one['name'] for one in those if _is_too_old(one)])}")
        if service.get("common_cause"):
            warn(f"{service['name']}: {service['common_cause']}: a common cause, no shadows for it")
        if on := [group["name"] for group in service["groups"] if group["serves_on"]]:
            warn(f"{', '.join(on)}: drained, but {SERVES_ON}")
        for group in service["groups"]:
            drained = "drained, serves on" if group["serves_on"] else "drained"
            up = drained if group["up"] and group["drained"] else group["up"]
            groups.append({"service": service["name"], **group, "up": up})
            if group.get("standby_lacks"):
                warn(f"{group['name']}: fewer shadows stand by than are to, for {group['standby_lacks']}")
            shadows += [{"endpoint": group["name"], **shadow} for shadow in group["shadows"]]
    columns = ("service", "name", "up", "demand", "level", "high", "capacity", "spill", "wanted", "reason")
    output.rows(columns, groups, as_json=False)
    if pools:
        say("")
        of_pools = ("service", "demand", "high", "capacity", "wanted", "standing", "reason")
        output.rows(of_pools, pools, as_json=False)
    if unusual := [group for group in groups if group.get("deviation_reason") or group.get("penalty")]:
        say("")
        scores = ("rate_deviation", "latency_deviation", "error_deviation")
        output.rows(("service", "name", *scores, "penalty", "deviation_reason"), unusual, as_json=False)
    if novel := [
        {"service": one["name"], **one["novelty"], "rate_novelty": one["novelty"]["last_score"]}
        for one in found["services"]
        if one.get("novelty") and one["novelty"]["reason"] and one["novelty"]["age_s"] <= NOVEL_S
    ]:
        say("")
        output.rows(("service", "rate_novelty", "age_s", "reason"), novel, as_json=False)
    if shadows:
        say("")
        columns = ("endpoint", "name", "state", "host", "address", "port", "up", "served", "age_s", "reason")
        output.rows(columns, shadows, as_json=False)
    if ill := [
        {"endpoint": group["name"], "name": member["name"], **member["ejection"]}
        for group in groups
        for member in (group, *group["shadows"])
        if member.get("ejection")
    ]:
        say("")
        output.rows(EJECTED, ill, as_json=False)
    if found["hosts"]:
        say("")
        output.rows(HOSTS, found["hosts"], as_json=False)
        if found["budget_per_hour"] is not None or any(one["price_per_hour"] for one in found["hosts"]):
            say(_cost(found))
    if requests := [
        {"endpoint": group["name"], **member, **member["requests"]}
        for group in groups
        for member in (group, *group["shadows"])
        if member["requests"]
    ]:
        say("")
        told = ("endpoint", "name", "per_s", "in_flight", "p50_ms", "p99_ms", "aborted_per_s", "aborted")
        output.rows(told, requests, as_json=False)
    if used := [
        {"endpoint": group["name"], "name": member["name"], **member["usage"]}
        for group in groups
        for member in (group, *group["shadows"])
        if member.get("usage")
    ]:
        say("")
        output.rows(USAGE, used, as_json=False)
    if copies := [
        {**shadow["lag"], "endpoint": shadow["endpoint"], "name": shadow["name"]}
        for shadow in shadows
        if shadow.get("lag")
    ]:
        say("")
        output.rows(LAG, copies, as_json=False)
    if found.get("traffic"):
        say("")
        output.rows(TRAFFIC, found["traffic"], as_json=False)
    if found["decisions"]:
        say("")
        for one in reversed(found["decisions"]):
            say(f"{output.clock_time(one['at_unix_s'])}  {one['reason']}")


def _is_too_old(shadow: Mapping[str, Any]) -> bool:
    """It would have served, but for its data."""
    lag = shadow.get("lag")
    return shadow["state"] == model.ShadowState.READY.value and lag is not None and not lag["is_open"]


def _cost(found: dict[str, Any]) -> str:
    budget = found["budget_per_hour"]
    of = "" if budget is None else f" of {budget:g}/h, budget_per_hour"
    reserve = sum(service.get("standbys_cost_per_hour", 0.0) for service in found["services"])
    standby = f"; those that stand by {reserve:g}/h" if reserve else ""
    return f"shadows cost {found['cost_per_hour']:g}/h{of}{standby}"


def _checked(path: Path) -> model.Config:
    """The configuration, if this machine has what it names; else the command ends with 2."""
    configured = config.load(path)
    if problems := wiring.against_machine(configured):
        raise config.ConfigError(f"{path}: {problem}" for problem in problems)
    return configured
