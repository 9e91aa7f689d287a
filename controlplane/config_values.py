# SPDX-License-Identifier: Apache-2.0
"""What a value of a configuration may be: each kind with its unit, and its least and most."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from ipaddress import IPv4Address, IPv6Address, IPv6Network
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, IPvAnyAddress, IPvAnyNetwork, Strict

from controlplane import model
from controlplane.addresses import MAPPED, Address, Network, of_one_host

NAME_MOST = 36
"""Characters of a name: a label in the maps holds 47, and a shadow's name adds a suffix."""

_SEND_MOST = 255
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?")
_DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(ms|s|m|h)")
_FLOWS = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*flows/s")
_ERRORS = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*errors/s")
_BYTES = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)\s*(B|KiB|MiB|GiB|TiB)")
_URL_PATH = re.compile(r"/[!-~]*")
_UNITS = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_HOST_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._:-]{0,252}")
_REGION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_STATUS = re.compile(r"([0-9]{3})(?:\s*-\s*([0-9]{3}))?")
_SERVER = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_SERVER_MOST = 253
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_FLOWS_LEAST = 0.001
_RATE = "a rate of new flows from 0.001 to 10^9 with its unit is allowed"
_DAY_S = 86_400.0
_YEAR_S = 365 * _DAY_S


def _duration(seconds: float) -> str:
    """As a configuration has it."""
    ms = round(seconds * 1000)
    units = [unit for unit, of_s in _SECONDS.items() if ms and ms % round(of_s * 1000) == 0]
    unit = units[-1] if units else "s"
    return f"{seconds / _SECONDS[unit]:g}{unit}"


def _duration_s(least_s: float, most_s: float) -> Callable[[object], float]:
    allowed = f"a duration from {_duration(least_s)} to {_duration(most_s)} with its unit is allowed"

    def parsed(value: object) -> float:
        if isinstance(value, str) and (match := _DURATION.fullmatch(value.strip())):
            seconds = float(match[1]) * _SECONDS[match[2]]
            if least_s <= seconds <= most_s:
                return seconds
        raise ValueError(f"{allowed}, e.g. 500ms, 2s, 5m, 1h")

    return parsed


def _number(least: float, most: float, *, below: bool = False) -> Callable[[object], float]:
    """:param below: the most itself is too much."""

    def parsed(value: object) -> float:
        number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
        if least <= number < most or (number == most and not below):
            return float(number)
        to = "to below" if below else "to"
        raise ValueError(f"a number from {least:.12g} {to} {most:.12g} is allowed")

    return parsed


def _flows_per_s(value: object) -> float:
    match = _FLOWS.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is not None and (rate := float(match[1])) >= _FLOWS_LEAST:
        return rate
    raise ValueError(f'{_RATE}, e.g. "40 flows/s"')


class MaxLag(NamedTuple):
    """One of both is given."""

    seconds: float | None
    bytes: int | None


def _max_lag(value: object) -> MaxLag:
    match = _BYTES.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is not None and (size := round(float(match[1]) * _UNITS[match[2]])) >= 1:
        return MaxLag(None, size)
    try:
        return MaxLag(_duration_s(0.1, _DAY_S)(value), None)
    except ValueError:
        raise ValueError(
            "a duration from 100ms to 24h, or an amount of data, with its unit is allowed, e.g. 5s, 16MiB"
        ) from None


def _place(value: object) -> tuple[Address, int]:
    """ADDRESS:PORT, as ``addresses.with_port`` writes it."""
    host, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    try:
        if port.isdecimal() and port.isascii() and 1 <= int(port) <= 65535:
            is_v6 = host.startswith("[") and host.endswith("]")
            return _host_address(IPv6Address(host[1:-1]) if is_v6 else IPv4Address(host)), int(port)
    except ValueError:
        pass
    raise ValueError("ADDRESS:PORT of one host is allowed, e.g. 10.0.1.10:5432, [2001:db8::10]:5432")


def _errors_per_s(value: object) -> float:
    if isinstance(value, str) and (match := _ERRORS.fullmatch(value.strip())):
        return float(match[1])
    raise ValueError('a rate of ICMP errors with its unit is allowed, e.g. "1000 errors/s"')


def _limit(value: object) -> float:
    if value == "none":
        return math.inf
    try:
        return _flows_per_s(value)
    except ValueError:
        raise ValueError(f'"none" or {_RATE}, e.g. "80 flows/s"') from None


def named(value: str) -> str:
    if not _NAME.fullmatch(value) or len(value) > NAME_MOST:
        raise ValueError(f"a-z, 0-9 and inner '-' are allowed, at most {NAME_MOST} characters")
    return value


def _memory_bytes(value: object) -> float:
    match = _BYTES.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is not None and (size := float(match[1]) * _UNITS[match[2]]) > 0:
        return size
    raise ValueError('memory with its unit is allowed, e.g. "512 MiB", "16 GiB", "1 TiB"')


def _region(value: str) -> str:
    if not _REGION.fullmatch(value):
        raise ValueError("letters, digits and inner '.', '_', '-' are allowed, at most 63 characters")
    return value


def host_name(value: str) -> str:
    if not _HOST_NAME.fullmatch(value):
        raise ValueError("a name as an inventory has it is allowed: letters, digits, '.', '_', ':' and '-'")
    return value


def _url_path(value: str) -> str:
    if not _URL_PATH.fullmatch(value):
        raise ValueError("a path that begins with / and holds printable ASCII without spaces is allowed")
    return value


def _send(value: str) -> str:
    if not all(" " <= letter <= "~" or letter in "\r\n\t" for letter in value) or len(value) > _SEND_MOST:
        raise ValueError(f"a text of ASCII is allowed, at most {_SEND_MOST} characters")
    return value


def _statuses(value: object) -> tuple[tuple[int, int], ...]:
    """``200-399, 404``, or one number."""
    text = str(value) if isinstance(value, int | str) and not isinstance(value, bool) else ""
    found = [_STATUS.fullmatch(part.strip()) for part in text.split(",")]
    ranges = tuple((int(one[1]), int(one[2] or one[1])) for one in found if one is not None)
    if len(ranges) < len(found) or not all(100 <= least <= most <= 599 for least, most in ranges):
        raise ValueError("statuses from 100 to 599 and ranges of them are allowed, e.g. 200-399, or 200,204")
    return ranges


def _pattern(value: str) -> str:
    try:
        re.compile(value)
    except (re.error, RecursionError, OverflowError) as error:
        raise ValueError(f"a regular expression is allowed ({error})") from None
    if not value or not value.isprintable():
        raise ValueError("a regular expression of printable characters is allowed, one at least")
    return value


def _server(value: str) -> str:
    if not _SERVER.fullmatch(value) or len(value) > _SERVER_MOST:
        raise ValueError("a host's name, or its address, is allowed, without a port")
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


def _absolute(value: Path) -> Path:
    if not value.is_absolute() or not str(value).isprintable():
        raise ValueError("an absolute path is allowed")
    return value


def _variables(value: object) -> object:
    """They go to Ansible as JSON."""
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        raise ValueError(
            "texts, finite numbers, true, false, null, and lists and mappings of them are allowed"
        ) from None
    return value


Name = Annotated[str, AfterValidator(named)]
Standby = Annotated[int, Strict(), Field(ge=0, le=1_000)]
Count = Annotated[int, Strict(), Field(ge=1, le=1_000_000)]
Port = Annotated[int, Strict(), Field(ge=1, le=65535)]
Retries = Annotated[int, Strict(), Field(ge=0, le=1000)]
Probes = Annotated[int, Strict(), Field(ge=1, le=1000)]
RingSize = Annotated[int, Strict(), Field(le=2_097_143), AfterValidator(_is_prime)]
Sample = Annotated[int, Strict(), Field(ge=1, le=65536), AfterValidator(_power_of_two)]
FlowCache = Annotated[int, Strict(), Field(ge=1024, le=1 << 28), AfterValidator(_power_of_two)]
Bool = Annotated[bool, Strict()]
Tick = Annotated[float, BeforeValidator(_duration_s(0.1, 60.0))]
ProbeInterval = Annotated[float, BeforeValidator(_duration_s(0.01, 3600.0))]
UsageInterval = Annotated[float, BeforeValidator(_duration_s(0.1, 3600.0))]
Timeout = Annotated[float, BeforeValidator(_duration_s(0.001, 3600.0))]
LeadTime = Annotated[float, BeforeValidator(_duration_s(0.001, _DAY_S))]
WarmUp = Annotated[float, BeforeValidator(_duration_s(0.0, _DAY_S))]
Life = Annotated[float, BeforeValidator(_duration_s(0.0, _YEAR_S))]
Run = Annotated[float, BeforeValidator(_duration_s(0.01, _DAY_S))]
FlowIdle = Annotated[float, BeforeValidator(_duration_s(0.1, _YEAR_S))]
SyncInterval = Annotated[float, BeforeValidator(_duration_s(0.05, 60.0))]
MaxLagOf = Annotated[MaxLag, BeforeValidator(_max_lag)]
Place = Annotated[tuple[IPvAnyAddress, int], BeforeValidator(_place)]
Weight = Annotated[float, BeforeValidator(_number(0.001, 1000.0))]
OverCost = Annotated[float, BeforeValidator(_number(0.001, 1e6))]
Headroom = Annotated[float, BeforeValidator(_number(0.0, 1.0, below=True))]
Price = Annotated[float, BeforeValidator(_number(0.0, 1e6))]
CostWeight = Annotated[float, BeforeValidator(_number(0.0, 1000.0))]
Cpus = Annotated[float, BeforeValidator(_number(0.001, 100_000.0))]
Memory = Annotated[float, BeforeValidator(_memory_bytes)]
HostName = Annotated[str, AfterValidator(host_name)]
Region = Annotated[str, AfterValidator(_region)]
Flows = Annotated[float, BeforeValidator(_flows_per_s)]
Errors = Annotated[float, BeforeValidator(_errors_per_s)]
Limit = Annotated[float, BeforeValidator(_limit)]
Send = Annotated[str, AfterValidator(_send)]
Statuses = Annotated[tuple[tuple[int, int], ...], BeforeValidator(_statuses)]
Pattern = Annotated[str, Strict(), AfterValidator(_pattern)]
Server = Annotated[str, Strict(), AfterValidator(_server)]
Jitter = Annotated[float, BeforeValidator(_number(0.0, 0.9))]
Ejected = Annotated[float, BeforeValidator(_number(0.01, 1.0))]
UrlPath = Annotated[str, AfterValidator(_url_path)]
Folder = Annotated[Path, AfterValidator(_absolute)]
Variables = Annotated[dict[str, Any], BeforeValidator(_variables)]
Requests = Annotated[model.Requests, BeforeValidator(_off)]
HostAddress = Annotated[IPvAnyAddress, BeforeValidator(_text), AfterValidator(_host_address)]
OwnAddress = Annotated[IPvAnyAddress, BeforeValidator(_text)]
Prefix = Annotated[IPvAnyNetwork, BeforeValidator(_text), AfterValidator(_not_both)]
Interface = Annotated[str, Field(min_length=1, max_length=15)]
