# SPDX-License-Identifier: Apache-2.0
"""Where it is read what members use: what a configuration may say of it, and what that is for each member."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from controlplane import model
from controlplane.model import UsageKind

KEYS = {
    UsageKind.NODE_EXPORTER: ("url",),
    UsageKind.AGENT_CHECK: ("address", "port", "send"),
    UsageKind.CGROUP: ("path",),
    UsageKind.DOCKER: ("url", "container"),
    UsageKind.CADVISOR: ("url", "container"),
}
GIVEN = ("url", "address", "port", "send", "path", "container")
_OF_HOSTS = {
    UsageKind.NODE_EXPORTER: ("url",),
    UsageKind.DOCKER: ("url",),
    UsageKind.CADVISOR: ("url",),
}
"""Kinds that tell of whole hosts, and their keys there."""
OF_MEMBERS = frozenset({UsageKind.CGROUP, UsageKind.DOCKER, UsageKind.CADVISOR})
"""Kinds that tell of members alone, not of all that runs on their hosts."""
_HOST_KEY = "host:"
"""Before a host's name among members' names, which have no colon."""
_NEEDED = {UsageKind.AGENT_CHECK: "port", UsageKind.CGROUP: "path"}
_ENGINE = "unix:///var/run/docker.sock"
_URLS = {
    UsageKind.NODE_EXPORTER: "http://{address}:9100/metrics",
    UsageKind.DOCKER: "{docker_host}",
    UsageKind.CADVISOR: "http://{host}:8080/metrics",
}
_DEFAULTS = {"address": "{address}"}
_PLACEHOLDERS = {
    "url": ("name", "address", "port", "host", "docker_host"),
    "address": ("name", "address", "host"),
    "path": ("name",),
    "container": ("name",),
}
_OF_HOST = ("name", "host", "docker_host")
"""Placeholders of a host's own: it has no address and port of a member."""
_CONTAINER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}")
"""A folder of this host can't be named after what others call themselves."""
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_HOST_MOST = 253
_PRINTABLE = re.compile(r"[!-~]+")


def problems(
    kind: UsageKind, given: Mapping[str, object], *, of_host: bool = False
) -> Iterator[tuple[str, str]]:
    """Keys, and what is wrong with them.

    :param given: key -> value of what was given of ``GIVEN``.
    :param of_host: it is read what a whole host uses."""
    if of_host and kind not in _OF_HOSTS:
        allowed = ", ".join(one.value for one in _OF_HOSTS)
        yield "kind", f"{kind.value!r}: does not tell what a host uses; allowed: {allowed}"
        return
    taken = (_OF_HOSTS if of_host else KEYS)[kind]
    for key, value in given.items():
        if key not in taken:
            yield key, f"{value!r}: {kind.value} has no such key; allowed: {', '.join(taken)}"
        elif key in _PLACEHOLDERS:
            names = _OF_HOST if of_host else _PLACEHOLDERS[key]
            if problem := _misplaced(names, str(value)) or _no_place(kind, key, str(value)):
                yield key, f"{value!r}: {problem}"
    if (needed := _NEEDED.get(kind)) and needed not in given:
        yield needed, "is missing and must be given"


def _misplaced(names: tuple[str, ...], text: str) -> str:
    allowed = ", ".join(f"{{{name}}}" for name in names)
    for name in _PLACEHOLDER.findall(text):
        if name not in names:
            return f"{{{name}}} stands for nothing here; {allowed} is allowed"
    return f"a brace without its other; {allowed} is allowed" if set("{}") & set(_filled(text, {})) else ""


def _no_place(kind: UsageKind, key: str, text: str) -> str:
    values = {"name": "a", "address": "192.0.2.1", "port": "80", "host": "a", "docker_host": _ENGINE}
    example = _filled(text, values)
    if key == "container":
        return "" if _CONTAINER.fullmatch(example) else "the name of a container is allowed"
    if kind is UsageKind.DOCKER:
        return "" if is_engine(example) else _ENGINE_ALLOWED
    if key == "path":
        is_one = Path(example).is_absolute() and example.isprintable()
        return "" if is_one else "an absolute path is allowed"
    if key == "address":
        is_one = (_HOST.fullmatch(example) and len(example) <= _HOST_MOST) or _is_address(example)
        return "" if is_one else "an address, or the name of a host, is allowed"
    return "" if _is_url(example) else "an http or https URL, without a user in it, is allowed"


_ENGINE_ALLOWED = "unix:///PATH or tcp://HOST:PORT is allowed"


def is_engine(url: str) -> bool:
    """Whether it is one whose API can be asked from here."""
    if url.startswith("unix://"):
        path = url.removeprefix("unix://")
        return Path(path).is_absolute() and path.isprintable()
    return url.startswith("tcp://") and _is_url(url.replace("tcp://", "http://", 1))


def _is_address(text: str) -> bool:
    try:
        ip_address(text)
    except ValueError:
        return False
    return True


def _is_url(text: str) -> bool:
    try:
        url = urlsplit(text)
        is_one = bool(url.hostname) and url.port != 0
    except ValueError:
        return False
    whole = _PRINTABLE.fullmatch(text) is not None
    return is_one and whole and url.scheme in ("http", "https") and "@" not in url.netloc


def source(
    kind: UsageKind, given: Mapping[str, object], interval_s: float, timeout_s: float
) -> model.UsageSource:
    """Of a service; ``given`` without problems."""
    key = next(key for key in KEYS[kind] if key in _PLACEHOLDERS)
    at, port, send = (
        given.get(key, _URLS.get(kind, _DEFAULTS.get(key))),
        given.get("port", 0),
        given.get("send"),
    )
    selector = str(given.get("container", "{name}")) if "container" in KEYS[kind] else ""
    return model.UsageSource(kind, str(at), int(str(port)), str(send or ""), interval_s, timeout_s, selector)


def host_source(
    kind: UsageKind, given: Mapping[str, object], interval_s: float, timeout_s: float
) -> model.UsageSource:
    """Of a host, or of all of them; ``given`` without problems."""
    at = str(given.get("url", _URLS[kind])).replace("{address}", "{host}")
    return model.UsageSource(kind, at, interval_s=interval_s, timeout_s=timeout_s)


def names_host(one: model.UsageSource) -> bool:
    """By the address of a member's host; one that is not told has its engine on this machine."""
    return "host" in _PLACEHOLDER.findall(one.at)


def of_endpoints(config: model.Config) -> dict[str, model.UsageSource]:
    """All live endpoints'."""
    return {
        one.name: _of(
            service.usage,
            one.name,
            str(one.address),
            one.port,
            config.hosts.get(one.host or ""),
            service.usage.selector.replace("{name}", one.name),
        )
        for service in config.services.values()
        if service.usage is not None
        for one in service.endpoints
    }


def of_shadow(
    one: model.UsageSource, shadow: model.Shadow, hosts: Mapping[str, model.Host], instance: str
) -> model.UsageSource | None:
    """None: where it is, is not known yet, or its host is no longer.

    Its container is found by its labels: what it is called is for the role that made it."""
    host = hosts.get(shadow.host)
    needs_host = names_host(one) or one.kind is UsageKind.DOCKER
    if shadow.address is None or shadow.port is None or (host is None and needs_host):
        return None
    labels = f"penumbra.instance={instance},penumbra.shadow={shadow.name}" if one.selector else ""
    return _of(one, shadow.name, str(shadow.address), shadow.port, host, labels)


def of_hosts(config: model.Config) -> dict[str, model.UsageSource]:
    """Those that shadows may come to, and those that live endpoints are on, by keys that no member has."""
    named = {name for service in config.services.values() for name in service.shadows.hosts}
    named |= {one.host or "" for service in config.services.values() for one in service.endpoints}
    found = {}
    for name in sorted(named & config.hosts.keys()):
        host = config.hosts[name]
        usage = host.usage or config.host_usage
        if usage is not None and not host.gone:
            found[host_key(name)] = _of(usage, name, "", 0, host, "")
    return found


def host_key(host: str) -> str:
    return f"{_HOST_KEY}{host}"


def host_of(key: str) -> str | None:
    """None: it is a member's."""
    return key.removeprefix(_HOST_KEY) if key.startswith(_HOST_KEY) else None


def _of(
    one: model.UsageSource, name: str, address: str, port: int, host: model.Host | None, selector: str
) -> model.UsageSource:
    values = {"name": name, "address": address, "port": str(port), "host": _host_address(host)}
    if one.kind is not UsageKind.AGENT_CHECK:
        values = {key: f"[{value}]" if ":" in value else value for key, value in values.items()}
    values["docker_host"] = str((host.variables.get("docker_host") if host else None) or _ENGINE)
    return replace(one, at=_filled(one.at, values), selector=selector)


def _host_address(host: model.Host | None) -> str:
    """Where Ansible finds it, else its name."""
    if host is None:
        return ""
    return str(host.variables.get("ansible_host") or host.variables.get("address") or host.name)


def _filled(text: str, values: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda found: values.get(found[1], ""), text)
