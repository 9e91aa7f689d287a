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
}
_NEEDED = {UsageKind.AGENT_CHECK: "port", UsageKind.CGROUP: "path"}
_DEFAULTS = {"url": "http://{address}:9100/metrics", "address": "{address}"}
_PLACEHOLDERS = {
    "url": ("name", "address", "port", "host"),
    "address": ("name", "address", "host"),
    "path": ("name",),
}
"""A folder of this host can't be named after what others call themselves."""
_PLACEHOLDER = re.compile(r"\{([^{}]*)\}")
_HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_HOST_MOST = 253
_PRINTABLE = re.compile(r"[!-~]+")


def problems(kind: UsageKind, given: Mapping[str, object]) -> Iterator[tuple[str, str]]:
    """Keys, and what is wrong with them.

    :param given: key -> value of what was given of url, address, port, send and path."""
    taken = KEYS[kind]
    for key, value in given.items():
        if key not in taken:
            yield key, f"{value!r}: {kind.value} has no such key; allowed: {', '.join(taken)}"
        elif key in _PLACEHOLDERS and (problem := _misplaced(key, str(value)) or _no_place(key, str(value))):
            yield key, f"{value!r}: {problem}"
    if (needed := _NEEDED.get(kind)) and needed not in given:
        yield needed, "is missing and must be given"


def _misplaced(key: str, text: str) -> str:
    allowed = ", ".join(f"{{{name}}}" for name in _PLACEHOLDERS[key])
    for name in _PLACEHOLDER.findall(text):
        if name not in _PLACEHOLDERS[key]:
            return f"{{{name}}} stands for nothing here; {allowed} is allowed"
    return f"a brace without its other; {allowed} is allowed" if set("{}") & set(_filled(text, {})) else ""


def _no_place(key: str, text: str) -> str:
    example = _filled(text, {"name": "a", "address": "192.0.2.1", "port": "80", "host": "a"})
    if key == "path":
        is_one = Path(example).is_absolute() and example.isprintable()
        return "" if is_one else "an absolute path is allowed"
    if key == "address":
        is_one = (_HOST.fullmatch(example) and len(example) <= _HOST_MOST) or _is_address(example)
        return "" if is_one else "an address, or the name of a host, is allowed"
    return "" if _is_url(example) else "an http or https URL, without a user in it, is allowed"


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
    at, port, send = str(given.get(key, _DEFAULTS.get(key))), given.get("port", 0), given.get("send", "")
    return model.UsageSource(kind, at, int(str(port)), str(send), interval_s, timeout_s)


def names_host(one: model.UsageSource) -> bool:
    return "host" in _PLACEHOLDER.findall(one.at)


def of_endpoints(config: model.Config) -> dict[str, model.UsageSource]:
    """All live endpoints'."""
    return {
        one.name: _of(service.usage, one.name, str(one.address), one.port, config.hosts.get(one.host or ""))
        for service in config.services.values()
        if service.usage is not None
        for one in service.endpoints
    }


def of_shadow(
    one: model.UsageSource, shadow: model.Shadow, hosts: Mapping[str, model.Host]
) -> model.UsageSource | None:
    """None: where it is, is not known yet, or its host is no longer."""
    host = hosts.get(shadow.host)
    if shadow.address is None or shadow.port is None or (host is None and names_host(one)):
        return None
    return _of(one, shadow.name, str(shadow.address), shadow.port, host)


def _of(
    one: model.UsageSource, name: str, address: str, port: int, host: model.Host | None
) -> model.UsageSource:
    values = {"name": name, "address": address, "port": str(port), "host": _host_address(host)}
    if one.kind is UsageKind.NODE_EXPORTER:
        values = {key: f"[{value}]" if ":" in value else value for key, value in values.items()}
    return replace(one, at=_filled(one.at, values))


def _host_address(host: model.Host | None) -> str:
    """Where Ansible finds it, else its name."""
    if host is None:
        return ""
    return str(host.variables.get("ansible_host") or host.variables.get("address") or host.name)


def _filled(text: str, values: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda found: values.get(found[1], ""), text)
