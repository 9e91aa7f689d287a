# SPDX-License-Identifier: Apache-2.0
"""YAML -> ``model.Config``. An unknown key, a bad unit or a contradiction is an error that names its path.

Nothing here looks at the machine: that an interface or a host exists is for ``penumbra check``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from ipaddress import IPv4Address, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    IPvAnyAddress,
    IPvAnyNetwork,
    Strict,
    ValidationError,
    field_validator,
    model_validator,
)

from controlplane import config_errors, config_text, model, usage_source
from controlplane.addresses import MAPPED, Address, Network, of_one_host

NAME_MOST = 36
"""Characters of a name: a label in the maps holds 47, and a shadow's name adds a suffix."""

_SEND_MOST = 255
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(ms|s|m|h)")
_CAPACITY = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*flows/s")
_ERRORS = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*errors/s")
_URL_PATH = re.compile(r"/[!-~]*")
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class ConfigError(ValueError):
    """The configuration is refused. ``problems``: one line each, with path, value and what is allowed."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


def _duration_s(value: object) -> object:
    if isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
        return float(match[1]) * _SECONDS[match[2]]
    raise ValueError("a duration with its unit is allowed, e.g. 500ms, 2s, 5m, 1h")


def _flows_per_s(value: object) -> object:
    if isinstance(value, str) and (match := _CAPACITY.fullmatch(value.strip())) and float(match[1]) > 0:
        return float(match[1])
    raise ValueError('a rate of new flows above 0 and below 10^9 with its unit is allowed, e.g. "40 flows/s"')


def _errors_per_s(value: object) -> object:
    if isinstance(value, str) and (match := _ERRORS.fullmatch(value.strip())):
        return float(match[1])
    raise ValueError('a rate of ICMP errors with its unit is allowed, e.g. "1000 errors/s"')


def _limit(value: object) -> object:
    if value == "none":
        return math.inf
    try:
        return _flows_per_s(value)
    except ValueError:
        raise ValueError(
            '"none" or a rate of new flows above 0 and below 10^9 with its unit is allowed, e.g. "80 flows/s"'
        ) from None


def _named(value: str) -> str:
    if not _NAME.fullmatch(value) or len(value) > NAME_MOST:
        raise ValueError(f"a-z, 0-9 and inner '-' are allowed, at most {NAME_MOST} characters")
    return value


def _url_path(value: str) -> str:
    if not _URL_PATH.fullmatch(value):
        raise ValueError("a path that begins with / and holds printable ASCII without spaces is allowed")
    return value


def _send(value: str) -> str:
    if not all(" " <= letter <= "~" or letter in "\r\n\t" for letter in value) or len(value) > _SEND_MOST:
        raise ValueError(f"a text of ASCII is allowed, at most {_SEND_MOST} characters")
    return value


def _is_prime(value: int) -> int:
    if value < 3 or any(value % divisor == 0 for divisor in range(2, int(value**0.5) + 1)):
        raise ValueError("a prime number is allowed, e.g. 4093, 16381, 65537")
    return value


def _power_of_two(value: int) -> int:
    if value & (value - 1):
        raise ValueError("a power of two is allowed, e.g. 1, 16, 262144")
    return value


def _off(value: object) -> object:
    """YAML 1.1 has off for false."""
    return model.Requests.OFF if value is False else value


def _host_address(value: Address) -> Address:
    if not of_one_host(value):
        raise ValueError(
            "a unicast address is allowed (not loopback, link-local, multicast, reserved or IPv4-mapped)"
        )
    return value


def _not_both(value: Network) -> Network:
    if isinstance(value, IPv6Network) and value.overlaps(MAPPED):
        raise ValueError(f"it has a part in {MAPPED}, which stands for IPv4; others are allowed")
    return value


def _text(value: object) -> object:
    if not isinstance(value, str):
        raise ValueError("an address as text is allowed, e.g. 10.0.1.10 or 2001:db8::10")
    return value


Name = Annotated[str, AfterValidator(_named)]
Seconds = Annotated[float, BeforeValidator(_duration_s)]
PositiveSeconds = Annotated[float, BeforeValidator(_duration_s), Field(gt=0)]
Integer = Annotated[int, Strict()]
Number = Annotated[float, Strict()]
Count = Annotated[int, Strict(), Field(ge=1)]
Port = Annotated[int, Strict(), Field(ge=1, le=65535)]
HostAddress = Annotated[IPvAnyAddress, BeforeValidator(_text), AfterValidator(_host_address)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _empty(cls, value: object) -> object:
        """A key whose section is all comments holds null: that says as much as an empty section."""
        return {} if value is None else value


class _Probe(_Section):
    kind: model.ProbeKind = model.ProbeKind.TCP
    path: Annotated[str, AfterValidator(_url_path)] = "/"
    interval: Annotated[float, BeforeValidator(_duration_s), Field(ge=0.01)] = 1.0
    timeout: Annotated[float, BeforeValidator(_duration_s), Field(ge=0.001)] = 0.5
    rise: Annotated[int, Strict(), Field(ge=1, le=1000)] = 2
    fall: Annotated[int, Strict(), Field(ge=1, le=1000)] = 3


class _Usage(_Section):
    """Which of ``url``, ``address``, ``port``, ``send`` and ``path`` there may be depends on the kind."""

    kind: model.UsageKind
    url: str | None = None
    address: str | None = None
    port: Port | None = None
    send: Annotated[str, AfterValidator(_send)] | None = None
    path: str | None = None
    interval: Annotated[float, BeforeValidator(_duration_s), Field(ge=0.1)] = 5.0
    timeout: Annotated[float, BeforeValidator(_duration_s), Field(ge=0.001)] = 1.0

    def given(self) -> dict[str, object]:
        values = {key: getattr(self, key) for key in ("url", "address", "port", "send", "path")}
        return {key: value for key, value in values.items() if value is not None}

    def source(self) -> model.UsageSource:
        return usage_source.source(self.kind, self.given(), self.interval, self.timeout)


class _Forecast(_Section):
    method: model.ForecastMethod | None = None


class _Shadows(_Section):
    target: Literal["netns", "docker"] | None = None
    hosts: tuple[Name, ...] | None = None
    max_per_endpoint: Count | None = None
    max_per_service: Count | None = None
    standing: Annotated[bool, Strict()] | None = None
    over_cost: Annotated[float, Strict(), Field(ge=0.001, le=1e6)] | None = None
    headroom: Annotated[float, Strict(), Field(ge=0, lt=1)] | None = None
    lead_time: PositiveSeconds | None = None
    warm_up: Seconds | None = None
    min_life: Seconds | None = None
    idle: Seconds | None = None
    drain: Seconds | None = None
    timeout: PositiveSeconds | None = None
    retries: Annotated[int, Strict(), Field(ge=0, le=1000)] | None = None
    retry_after: PositiveSeconds | None = None
    variables: dict[str, Any] | None = None


class _Endpoint(_Section):
    address: HostAddress
    port: Port
    weight: Annotated[float, Strict(), Field(ge=0.001, le=1000)] = 1.0
    capacity: Annotated[float, BeforeValidator(_flows_per_s)] | None = None
    limit: Annotated[float, BeforeValidator(_limit)] | None = None
    host: Name | None = None


class _Service(_Section):
    vip: HostAddress
    port: Port
    protocol: Literal["tcp", "udp"] = "tcp"
    on_down: model.OnDown = model.OnDown.RESET
    affinity: model.Affinity = model.Affinity.NONE
    ring_size: Annotated[int, Strict(), Field(le=2_097_143), AfterValidator(_is_prime)] = 16381
    probe: _Probe = _Probe()
    usage: _Usage | None = None
    endpoints: Annotated[dict[Name, _Endpoint], Field(min_length=1)]
    forecast: _Forecast = _Forecast()
    shadows: _Shadows = _Shadows()
    requests: Annotated[model.Requests, BeforeValidator(_off)] = model.Requests.OFF
    request_sample: Annotated[int, Strict(), Field(ge=1, le=65536), AfterValidator(_power_of_two)] = 16


class _Host(_Section):
    slots: Annotated[int, Strict(), Field(ge=1, le=10_000)] = 1
    variables: dict[str, Any] = Field(default_factory=dict)


class _Sizes(_Section):
    services: Annotated[int, Strict(), Field(ge=1, le=65536)] = 64
    endpoints: Annotated[int, Strict(), Field(ge=2, le=1_048_575)] = 1024
    flows: Annotated[int, Strict(), Field(ge=1024, le=1 << 28), AfterValidator(_power_of_two)] = 262_144
    ring_cells: Annotated[int, Strict(), Field(ge=64, le=1 << 30)] = 4_194_304


class _Idle(_Section):
    opening: PositiveSeconds = 10.0
    established: PositiveSeconds = 900.0
    closing: PositiveSeconds = 5.0
    udp: PositiveSeconds = 60.0


class _Metrics(_Section):
    address: Annotated[IPvAnyAddress, BeforeValidator(_text)] = IPv4Address("127.0.0.1")
    port: Port = 9464


class _Root(_Section):
    instance: Name = "default"
    mode: model.Mode = model.Mode.ACT
    tick: Annotated[float, BeforeValidator(_duration_s), Field(ge=0.1, le=60)] = 1.0
    max_shadows: Count | None = None
    interfaces: Annotated[tuple[Annotated[str, Field(min_length=1, max_length=15)], ...], Field(min_length=1)]
    direct: tuple[Annotated[IPvAnyNetwork, BeforeValidator(_text), AfterValidator(_not_both)], ...] = ()
    sizes: _Sizes = _Sizes()
    idle: _Idle = _Idle()
    insert_limit: Annotated[float, BeforeValidator(_flows_per_s)] = 200_000.0
    icmp_limit: Annotated[float, BeforeValidator(_errors_per_s)] = 1000.0
    playbooks: Path | None = None
    state_dir: Path = Path("/var/lib/penumbra")
    metrics: _Metrics = _Metrics()
    hosts: dict[Name, _Host] = Field(default_factory=dict)
    services: Annotated[dict[Name, _Service], Field(min_length=1)]

    @field_validator("playbooks", "state_dir")
    @classmethod
    def _absolute(cls, value: Path | None) -> Path | None:
        if value is not None and not value.is_absolute():
            raise ValueError("an absolute path is allowed")
        return value


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
    keys = ", ".join(root.hosts) or "which is empty"
    for path, host in hosts.items():
        if host not in root.hosts:
            yield f"{where}.{path}: {host!r} is not a key of hosts ({keys})"
    for name, one in service.endpoints.items():
        if service.affinity is model.Affinity.SOURCE and one.limit is not None and one.limit < math.inf:
            yield (
                f"{where}.endpoints.{name}.limit: {one.limit:g} flows/s would part the flows of a client, "
                f"which affinity: source keeps together; one of the two is allowed"
            )
    probe = service.probe
    if probe.timeout > probe.interval:
        yield (
            f"{where}.probe.timeout: {probe.timeout:g}s is longer than the interval ({probe.interval:g}s); "
            f"at most the interval is allowed"
        )
    if probe.kind is model.ProbeKind.TCP and service.protocol == "udp":
        yield (
            f"{where}.probe.kind: tcp, the default, can't probe a udp service; http is allowed, "
            f"asked over TCP on the same port"
        )
    if service.usage is not None:
        yield from _in_usage(where, service.usage, service.endpoints)
    if service.requests is not model.Requests.OFF and service.protocol == "udp":
        yield f"{where}.requests: {service.requests.value} can't be told on a udp service; off is allowed"
    if service.ring_size < 100 * len(service.endpoints):
        yield (
            f"{where}.ring_size: {service.ring_size} is too small for {len(service.endpoints)} endpoints; "
            f"100 cells or more for each are allowed"
        )


def _in_usage(where: str, usage: _Usage, endpoints: Mapping[str, _Endpoint]) -> Iterable[str]:
    problems = list(usage_source.problems(usage.kind, usage.given()))
    yield from (f"{where}.usage.{key}: {problem}" for key, problem in problems)
    if usage.timeout > usage.interval:
        yield (
            f"{where}.usage.timeout: {usage.timeout:g}s is longer than the interval ({usage.interval:g}s); "
            f"at most the interval is allowed"
        )
    if not problems and usage_source.names_host(usage.source()):
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
        hosts={name: model.Host(name, host.slots, host.variables) for name, host in root.hosts.items()},
        mode=root.mode,
        tick_s=root.tick,
        max_shadows=root.max_shadows,
        direct=(*root.direct, *_host_addresses(root.hosts)),
        sizes=model.Sizes(**root.sizes.model_dump()),
        idle=model.Idle(**{f"{key}_s": value for key, value in root.idle.model_dump().items()}),
        insert_limit_per_s=root.insert_limit,
        icmp_limit_per_s=root.icmp_limit,
        playbooks=root.playbooks,
        state_dir=root.state_dir,
        metrics_address=str(root.metrics.address),
        metrics_port=root.metrics.port,
    )


def _host_addresses(hosts: Mapping[str, _Host]) -> Iterable[Network]:
    """What a shadow-to-be copies from its parent goes to its host before it is a member."""
    for host in hosts.values():
        for key in ("address", "ansible_host"):
            try:
                yield ip_network(str(host.variables.get(key)))
            except ValueError:
                continue  # a name, or none


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
        probe=model.Probe(**_given(service.probe, {"interval": "interval_s", "timeout": "timeout_s"})),
        usage=None if service.usage is None else service.usage.source(),
        forecast=model.ForecastSettings(**_given(service.forecast, {})),
        shadows=model.ShadowSettings(**_given(service.shadows, _SHADOW_NAMES)),
        requests=service.requests,
        request_sample=service.request_sample,
    )
