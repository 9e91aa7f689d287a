# SPDX-License-Identifier: Apache-2.0
"""YAML -> ``model.Config``. An unknown key, a bad unit or a contradiction is an error that names its path.

Nothing here looks at the machine: that an interface or a host exists is for ``penumbra check``.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv4Address, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, ValidationError, model_validator

from controlplane import config_errors, config_text, data_sync, model, usage_source
from controlplane import config_values as values
from controlplane.addresses import Address, Network

INVENTORY_PREFIX = "penumbra_"
"""Of host variables that are settings of ours."""


class ConfigError(ValueError):
    """The configuration is refused. ``problems``: one line each, with path, value and what is allowed."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, value: object) -> object:
        """A key whose section is all comments holds null: that says as much as an empty section."""
        return {} if value is None else value


class _Probe(_Section):
    kind: model.ProbeKind = model.ProbeKind.TCP
    port: values.Port | None = None
    path: values.UrlPath | None = None
    status: values.Statuses | None = None
    body: values.Pattern | None = None
    host: values.Server | None = None
    ca: values.Folder | None = None
    source: values.OwnAddress | None = None
    interval: values.ProbeInterval = 1.0
    timeout: values.Timeout = 0.5
    jitter: values.Jitter | None = None
    rise: values.Probes = 2
    fall: values.Probes = 3
    max_ejected: values.Ejected | None = None

    def probe(self) -> model.Probe:
        given = _given(self, {"interval": "interval_s", "timeout": "timeout_s"})
        given |= {key: str(given[key]) for key in ("ca", "source") if key in given}
        return model.Probe(**given)


class _Usage(_Section):
    """Which of ``url``, ``address``, ``port``, ``send``, ``path`` and ``container`` there may be depends on
    the kind."""

    kind: model.UsageKind
    url: str | None = None
    address: str | None = None
    port: values.Port | None = None
    send: values.Send | None = None
    path: str | None = None
    container: str | None = None
    interval: values.UsageInterval = 5.0
    timeout: values.Timeout = 1.0

    def given(self) -> dict[str, object]:
        of = {key: getattr(self, key) for key in usage_source.GIVEN}
        return {key: value for key, value in of.items() if value is not None}

    def source(self) -> model.UsageSource:
        return usage_source.source(self.kind, self.given(), self.interval, self.timeout)

    def host_source(self) -> model.UsageSource:
        return usage_source.host_source(self.kind, self.given(), self.interval, self.timeout)


class _Sync(_Section):
    driver: model.SyncDriver
    max_lag: values.MaxLagOf
    on_lag: model.OnLag = model.OnLag.HOLD
    interval: values.SyncInterval = 0.5
    copy_timeout: values.Run = 600.0
    primary: values.Place | None = None
    variables: values.Variables = Field(default_factory=dict)

    def to_model(self) -> model.Sync:
        return model.Sync(
            driver=self.driver,
            max_lag_s=self.max_lag.seconds,
            max_lag_bytes=self.max_lag.bytes,
            on_lag=self.on_lag,
            interval_s=self.interval,
            copy_timeout_s=self.copy_timeout,
            primary=self.primary,
            variables=self.variables,
        )


class _Forecast(_Section):
    method: model.ForecastMethod | None = None


class _Shadows(_Section):
    target: values.Name | None = None
    hosts: tuple[values.HostName, ...] | None = None
    regions: tuple[values.Region, ...] | None = None
    cost_weight: values.CostWeight | None = None
    max_per_endpoint: values.Count | None = None
    max_per_service: values.Count | None = None
    standby: values.Standby | None = None
    standing: values.Bool | None = None
    over_cost: values.OverCost | None = None
    headroom: values.Headroom | None = None
    lead_time: values.LeadTime | None = None
    warm_up: values.WarmUp | None = None
    min_life: values.Life | None = None
    idle: values.Life | None = None
    drain: values.Life | None = None
    timeout: values.Run | None = None
    retries: values.Retries | None = None
    retry_after: values.Run | None = None
    variables: values.Variables | None = None


class _Endpoint(_Section):
    address: values.HostAddress
    port: values.Port
    weight: values.Weight = 1.0
    capacity: values.Flows | None = None
    limit: values.Limit | None = None
    host: values.HostName | None = None


class _Service(_Section):
    vip: values.HostAddress
    port: values.Port
    protocol: Literal["tcp", "udp"] = "tcp"
    on_down: model.OnDown = model.OnDown.RESET
    affinity: model.Affinity = model.Affinity.NONE
    ring_size: values.RingSize = 16381
    probe: _Probe = _Probe()
    usage: _Usage | None = None
    endpoints: Annotated[dict[values.Name, _Endpoint], Field(min_length=1)]
    forecast: _Forecast = _Forecast()
    shadows: _Shadows = _Shadows()
    requests: values.Requests = model.Requests.OFF
    request_sample: values.Sample = 16
    access: model.Access | None = None
    sync: _Sync | None = None


class _Capacity(_Section):
    cpus: values.Cpus | None = None
    memory: values.Memory | None = None


class _HostSettings(_Section):
    """What host variables of an inventory may say, too."""

    slots: Annotated[int, Strict(), Field(ge=1, le=10_000)] = 1
    region: values.Region = ""
    price_per_hour: values.Price = 0.0
    capacity: _Capacity = _Capacity()
    usage: _Usage | None = None


class _Host(_HostSettings):
    variables: values.Variables = Field(default_factory=dict)


class _Sizes(_Section):
    services: Annotated[int, Strict(), Field(ge=1, le=65536)] = 64
    endpoints: Annotated[int, Strict(), Field(ge=2, le=1_048_575)] = 1024
    flows: values.FlowCache = 262_144
    ring_cells: Annotated[int, Strict(), Field(ge=64, le=1 << 30)] = 4_194_304


class _Idle(_Section):
    opening: values.FlowIdle = 10.0
    established: values.FlowIdle = 900.0
    closing: values.FlowIdle = 5.0
    udp: values.FlowIdle = 60.0


class _Metrics(_Section):
    address: values.OwnAddress = IPv4Address("127.0.0.1")
    port: values.Port = 9464


class _Root(_Section):
    instance: values.Name = "default"
    mode: model.Mode = model.Mode.ACT
    tick: values.Tick = 1.0
    max_shadows: values.Count | None = None
    budget_per_hour: values.Price | None = None
    interfaces: Annotated[tuple[values.Interface, ...], Field(min_length=1)]
    direct: tuple[values.Prefix, ...] = ()
    sizes: _Sizes = _Sizes()
    idle: _Idle = _Idle()
    insert_limit: values.Flows = 200_000.0
    icmp_limit: values.Errors = 1000.0
    playbooks: values.Folder | None = None
    state_dir: values.Folder = Path("/var/lib/penumbra")
    metrics: _Metrics = _Metrics()
    inventory: values.Folder | None = None
    host_usage: _Usage | None = None
    hosts: dict[values.HostName, _Host] = Field(default_factory=dict)
    services: Annotated[dict[values.Name, _Service], Field(min_length=1)]


def load(path: Path) -> model.Config:
    """Reads a configuration file. Raises ``ConfigError``; nothing else is touched."""
    try:
        return parse(config_text.read(path))
    except config_text.TextError as error:
        raise ConfigError([f"{path}: {error}"]) from None
    except ConfigError as error:
        raise ConfigError(f"{path}: {problem}" for problem in error.problems) from None


def parse(text: str) -> model.Config:
    """Parses a configuration. Raises ``ConfigError`` with every problem found."""
    try:
        raw = config_text.parse(text)
    except config_text.TextError as error:
        raise ConfigError([str(error)]) from None
    if not isinstance(raw, dict):
        held = "nothing" if raw is None else "no mapping"
        raise ConfigError([f"the file holds {held}; a mapping with interfaces and services is allowed"])
    try:
        root = _Root.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(config_errors.lines(error, _Root)) from None
    if problems := list(_contradictions(root)):
        raise ConfigError(problems)
    return _to_model(root)


def _contradictions(root: _Root) -> Iterable[str]:
    for name, service in root.services.items():
        yield from _in_service(root, f"services.{name}", service)
    yield from _across_services(root)
    yield from _in_hosts(root)
    cells = sum(2 * service.ring_size for service in root.services.values())
    if cells > root.sizes.ring_cells:
        yield f"sizes.ring_cells: {root.sizes.ring_cells} is too few; {cells} or more is allowed"
    if len(root.services) > root.sizes.services:
        yield f"sizes.services: {root.sizes.services} is too few; {len(root.services)} or more is allowed"
    endpoints = sum(len(service.endpoints) for service in root.services.values())
    if endpoints >= root.sizes.endpoints:
        yield f"sizes.endpoints: {root.sizes.endpoints} is too few; more than {endpoints} is allowed"
    if len(set(root.interfaces)) != len(root.interfaces):
        yield f"interfaces: {list(root.interfaces)} names one twice; each once is allowed"


def _in_service(root: _Root, where: str, service: _Service) -> Iterable[str]:
    hosts = {f"shadows.hosts.{at}": host for at, host in enumerate(service.shadows.hosts or ())}
    hosts |= {f"endpoints.{name}.host": one.host for name, one in service.endpoints.items() if one.host}
    keys = f"allowed: {', '.join(root.hosts)}" if root.hosts else "none is there"
    for path, host in hosts.items():
        if host not in root.hosts and root.inventory is None:
            yield f"{where}.{path}: {host!r} is not a key of hosts; {keys}"
    allowed = service.shadows.hosts or ()
    for at, host in enumerate(allowed):
        if host in allowed[:at]:
            yield f"{where}.shadows.hosts.{at}: {host!r} stands twice; each once is allowed"
    regions = service.shadows.regions or ()
    for at, region in enumerate(regions):
        if region in regions[:at]:
            yield f"{where}.shadows.regions.{at}: {region!r} stands twice; each once is allowed"
    yield from _in_standby(f"{where}.shadows.standby", service.shadows)
    for name, one in service.endpoints.items():
        if service.affinity is model.Affinity.SOURCE and one.limit is not None and one.limit < math.inf:
            yield (
                f"{where}.endpoints.{name}.limit: {one.limit:g} flows/s would part the flows of a client, "
                f"which affinity: source keeps together; one of the two is allowed"
            )
    yield from _in_probe(f"{where}.probe", service)
    if service.usage is not None:
        yield from _in_usage(where, service.usage, service.endpoints)
    yield from _in_data(where, root.tick, service)
    if service.requests is not model.Requests.OFF and service.protocol == "udp":
        yield f"{where}.requests: {service.requests.value} can't be told on a udp service; off is allowed"
    if service.ring_size < 100 * len(service.endpoints):
        yield (
            f"{where}.ring_size: {service.ring_size} is too small for {len(service.endpoints)} endpoints; "
            f"100 cells or more for each are allowed"
        )


def _in_standby(where: str, given: _Shadows) -> Iterable[str]:
    if not given.standby:
        return
    most = given.max_per_endpoint or model.ShadowSettings().max_per_endpoint
    if given.standby > most:
        yield f"{where}: {given.standby} is more than max_per_endpoint, {most}; at most that is allowed"
    if not given.hosts:
        yield f"{where}: {given.standby} have no host to be on; with shadows.hosts it is allowed"


def _in_data(where: str, tick_s: float, service: _Service) -> Iterable[str]:
    if service.access is model.Access.WRITE and service.shadows.hosts:
        yield (
            f"{where}.shadows.hosts: {list(service.shadows.hosts)}: access: write, and what is written to a "
            f"shadow would be lost; none is allowed. Give reads a service of their own: another vip or port "
            f"with access: read"
        )
    sync = service.sync
    if sync is None:
        return
    if service.access is not model.Access.READ:
        yield f"{where}.sync: copies are only read; with access: read it is allowed"
    if sync.on_lag is model.OnLag.EVICT and service.on_down is model.OnDown.KEEP:
        yield f"{where}.sync.on_lag: evict moves flows that on_down: keep leaves; one of the two is allowed"
    problems = data_sync.problems(sync.driver, sync.variables)
    yield from (f"{where}.sync.variables.{key}: {problem}" for key, problem in problems)
    least_s = data_sync.least_max_lag_s(sync.interval, tick_s)
    if sync.max_lag.seconds is not None and sync.max_lag.seconds < least_s:
        yield (
            f"{where}.sync.max_lag: {sync.max_lag.seconds:g}s can't be kept with interval {sync.interval:g}s "
            f"and tick {tick_s:g}s; {least_s:g}s or more is allowed (two intervals, a tick and half a second)"
        )


def _in_probe(where: str, service: _Service) -> Iterable[str]:
    probe = service.probe
    if probe.timeout > probe.interval:
        yield (
            f"{where}.timeout: {probe.timeout:g}s is longer than the interval ({probe.interval:g}s); "
            f"at most the interval is allowed"
        )
    if probe.kind is model.ProbeKind.TCP and service.protocol == "udp" and probe.port is None:
        yield (
            f"{where}.kind: tcp, the default, can't probe a udp service; http is allowed, "
            f"asked over TCP on the same port, or a port that is TCP's"
        )
    of_http = ("path", "status", "body", "host")
    for key in (*(of_http if probe.kind is model.ProbeKind.TCP else ()), "ca"):
        value = getattr(probe, key)
        if value is not None and probe.kind is not model.ProbeKind.HTTPS:
            kinds = "https" if key == "ca" else "http or https"
            yield f"{where}.{key}: kind: {probe.kind.value} has no use for it; allowed with {kinds}"
    if probe.source is not None and probe.source.version != service.vip.version:
        yield (
            f"{where}.source: {probe.source} is not of the IP version of its service's vip ({service.vip}); "
            f"one of the same version is allowed"
        )


def _in_hosts(root: _Root) -> Iterable[str]:
    if root.host_usage is not None:
        yield from _of_host("host_usage", root.host_usage)
    for name, host in root.hosts.items():
        if host.usage is not None:
            yield from _of_host(f"hosts.{name}.usage", host.usage)


def _of_host(where: str, usage: _Usage) -> Iterable[str]:
    yield from _in_source(where, usage, of_host=True)


def _in_source(where: str, usage: _Usage, *, of_host: bool = False) -> Iterable[str]:
    problems = usage_source.problems(usage.kind, usage.given(), of_host=of_host)
    yield from (f"{where}.{key}: {problem}" for key, problem in problems)
    if usage.timeout > usage.interval:
        yield (
            f"{where}.timeout: {usage.timeout:g}s is longer than the interval ({usage.interval:g}s); "
            f"at most the interval is allowed"
        )


def _in_usage(where: str, usage: _Usage, endpoints: Mapping[str, _Endpoint]) -> Iterable[str]:
    yield from _in_source(f"{where}.usage", usage)
    sound = not any(usage_source.problems(usage.kind, usage.given()))
    if sound and usage_source.names_host(usage.source()):
        for name, one in endpoints.items():
            if one.host is None:
                yield f"{where}.endpoints.{name}.host: is missing, and {where}.usage names {{host}}"


def _across_services(root: _Root) -> Iterable[str]:
    """VIPs, endpoints' targets and names: what may stand only once in the whole configuration."""
    vips = {service.vip: name for name, service in root.services.items()}
    targets: dict[tuple[Address, str, int], str] = {}
    names: dict[str, str] = {}
    for service_name, service in root.services.items():
        where = f"services.{service_name}"
        served = (service.vip, service.protocol, service.port)
        if served in targets:
            yield f"{where}.vip: {_target(served)} is {targets[served]} already; one each is allowed"
        targets.setdefault(served, where)
        for name, endpoint in service.endpoints.items():
            path = f"{where}.endpoints.{name}"
            if name in names:
                yield f"{path}: the name is that of {names[name]}; names must differ across services"
            names.setdefault(name, path)
            if endpoint.address.version != service.vip.version:
                yield (
                    f"{path}.address: {endpoint.address} is not of the IP version of its service's vip "
                    f"({service.vip}); one of the same version is allowed"
                )
            if endpoint.address in vips:
                yield (
                    f"{path}.address: {endpoint.address} is the vip of services.{vips[endpoint.address]}; "
                    f"an address of its own is allowed"
                )
            target = (endpoint.address, service.protocol, endpoint.port)
            if target in targets:
                yield f"{path}: {_target(target)} is {targets[target]} already; each may serve one service"
            targets.setdefault(target, path)


def _target(key: tuple[Address, str, int]) -> str:
    return f"{key[0]} {key[1]} port {key[2]}"


def _given(section: BaseModel, renamed: Mapping[str, str]) -> dict[str, Any]:
    """What the user gave, under the model's names: the model's defaults stay where nothing was given."""
    return {
        renamed.get(key, key): value
        for key in section.model_fields_set
        if (value := getattr(section, key)) is not None
    }


def _to_model(root: _Root) -> model.Config:
    return model.Config(
        instance=root.instance,
        interfaces=root.interfaces,
        services={name: _service(name, service) for name, service in root.services.items()},
        hosts={name: _host(name, host, host.variables) for name, host in root.hosts.items()},
        mode=root.mode,
        tick_s=root.tick,
        max_shadows=root.max_shadows,
        budget_per_hour=root.budget_per_hour,
        inventory=root.inventory,
        host_usage=None if root.host_usage is None else root.host_usage.host_source(),
        direct=(
            *root.direct,
            *host_addresses(host.variables for host in root.hosts.values()),
            *_probe_sources(root.services),
        ),
        sizes=model.Sizes(**root.sizes.model_dump()),
        idle=model.Idle(**{f"{key}_s": value for key, value in root.idle.model_dump().items()}),
        insert_limit_per_s=root.insert_limit,
        icmp_limit_per_s=root.icmp_limit,
        playbooks=root.playbooks,
        state_dir=root.state_dir,
        metrics_address=str(root.metrics.address),
        metrics_port=root.metrics.port,
    )


def _host(name: str, host: _HostSettings, variables: Mapping[str, object]) -> model.Host:
    return model.Host(
        name,
        host.slots,
        variables,
        host.region,
        host.price_per_hour,
        model.HostCapacity(host.capacity.cpus, host.capacity.memory),
        None if host.usage is None else host.usage.host_source(),
        frozenset(host.model_fields_set),
    )


def inventory_host(name: str, variables: Mapping[str, object], given: model.Host | None) -> model.Host:
    """A host of the inventory: settings are its variables that begin with ``penumbra_``.

    :param given: the same host as the file has it, whose settings and variables win.
    Raises ``ConfigError``."""
    settings = {
        key.removeprefix(INVENTORY_PREFIX): value
        for key, value in variables.items()
        if key.startswith(INVENTORY_PREFIX)
    }
    where = f"inventory host {name}: {INVENTORY_PREFIX}"
    try:
        values.host_name(name)
    except ValueError as error:
        raise ConfigError([f"inventory host {name!r}: {error}"]) from None
    try:
        host = _HostSettings.model_validate(settings)
    except ValidationError as error:
        raise ConfigError(f"{where}{line}" for line in config_errors.lines(error, _HostSettings)) from None
    if host.usage is not None and (problems := list(_of_host(f"{where}usage", host.usage))):
        raise ConfigError(problems)
    if given is None:
        return _host(name, host, variables)
    kept: dict[str, Any] = {key: getattr(given, key) for key in given.given - {"variables"}}
    return replace(_host(name, host, {**variables, **given.variables}), **kept, given=given.given)


def host_addresses(variables: Iterable[Mapping[str, object]]) -> Iterable[Network]:
    """What a shadow-to-be copies from its parent goes to its host before it is a member."""
    for of_host in variables:
        for key in ("address", "ansible_host"):
            try:
                yield ip_network(str(of_host.get(key)))
            except ValueError:
                continue  # a name, or none


def _probe_sources(services: Mapping[str, _Service]) -> Iterable[Network]:
    """What members answer to checks is for who checks, and no VIP's."""
    return dict.fromkeys(ip_network(one.probe.source) for one in services.values() if one.probe.source)


_SHADOW_NAMES = {
    key: f"{key}_s" for key in ("lead_time", "warm_up", "min_life", "idle", "drain", "timeout", "retry_after")
}


def _service(name: str, service: _Service) -> model.Service:
    return model.Service(
        name=name,
        vip=service.vip,
        port=service.port,
        protocol=model.Protocol[service.protocol.upper()],
        endpoints=tuple(
            model.Endpoint(key, name, one.address, one.port, one.weight, one.capacity, one.host, one.limit)
            for key, one in service.endpoints.items()
        ),
        on_down=service.on_down,
        affinity=service.affinity,
        ring_size=service.ring_size,
        probe=service.probe.probe(),
        usage=None if service.usage is None else service.usage.source(),
        forecast=model.ForecastSettings(**_given(service.forecast, {})),
        shadows=model.ShadowSettings(**_given(service.shadows, _SHADOW_NAMES)),
        requests=service.requests,
        request_sample=service.request_sample,
        access=service.access,
        sync=None if service.sync is None else service.sync.to_model(),
    )
