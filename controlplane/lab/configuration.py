# SPDX-License-Identifier: Apache-2.0
"""Penumbra's configuration for a lab: what a user would write for these hosts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from controlplane.lab.topology import Topology

HEALTHZ = {"kind": "http", "path": "/healthz"}
"""What the lab's own endpoints answer."""


@dataclass(frozen=True, slots=True)
class LiveEndpoint:
    host: str
    name: str
    port: int = 8080
    capacity: float | None = None
    """New flows/s."""


@dataclass(frozen=True, slots=True)
class Choices:
    """What differs between labs. Mappings are sections of the configuration, taken as they are."""

    endpoints: Sequence[LiveEndpoint]
    service: str = "web"
    shadow_hosts: Mapping[str, int] = field(default_factory=dict)
    """Host -> how many shadows it may carry."""
    mode: str = "act"
    tick: str = "1s"
    probe: Mapping[str, object] = field(default_factory=dict)
    usage: Mapping[str, object] = field(default_factory=dict)
    """Empty: what endpoints use is not read."""
    data: Mapping[str, object] = field(default_factory=dict)
    """``access`` and ``sync`` of a service that keeps data."""
    forecast: Mapping[str, object] = field(default_factory=dict)
    shadows: Mapping[str, object] = field(default_factory=dict)
    host_variables: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Host -> variables for its playbooks, beside the usual ones."""
    instance: str | None = None
    """Default: the lab's name."""
    metrics_port: int = 9464


def written(topology: Topology, choices: Choices, state_dir: Path) -> str:
    """The YAML text; ``controlplane.config.parse`` takes it."""
    carriers = {*choices.shadow_hosts, *(one.host for one in choices.endpoints)}
    endpoints = {
        one.name: {
            "address": str(topology.node(one.host).address),
            "port": one.port,
            "host": one.host,
            **({} if one.capacity is None else {"capacity": f"{one.capacity:g} flows/s"}),
        }
        for one in choices.endpoints
    }
    shadows = {"target": "netns", "hosts": list(choices.shadow_hosts), **choices.shadows}
    root = {
        "instance": choices.instance or topology.lab,
        "mode": choices.mode,
        "tick": choices.tick,
        "interfaces": list(topology.ap_interfaces),
        "state_dir": str(state_dir),
        "metrics": {"port": choices.metrics_port},
        "hosts": {
            name: {
                "slots": choices.shadow_hosts.get(name, 1),
                "variables": {
                    "ansible_connection": "local",
                    "netns": topology.namespace(name),
                    "address": str(topology.node(name).address),
                    **choices.host_variables.get(name, {}),
                },
            }
            for name in sorted(carriers)
        },
        "services": {
            choices.service: {
                "vip": str(topology.vip),
                "port": topology.vip_port,
                "probe": {**({} if "kind" in choices.probe else HEALTHZ), **choices.probe},
                **({"usage": dict(choices.usage)} if choices.usage else {}),
                **choices.data,
                "forecast": dict(choices.forecast),
                "shadows": shadows,
                "endpoints": endpoints,
            }
        },
    }
    return yaml.safe_dump(root, sort_keys=False)
