# SPDX-License-Identifier: Apache-2.0
"""Endpoints that can serve 1 : 2 : 4, which nobody has configured, are equally busy within a minute."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from controlplane.lab.configuration import Choices, LiveEndpoint, written
from tests.netns.steered import Steered, eventually, passes, steered

pytestmark = pytest.mark.slow

SERVICE_TIME_S = 0.1
SLOTS = {"web-1": 3, "web-2": 6, "web-3": 12}
RATE = 120.0
"""More than half of what they can serve together."""
BUSIER_MOST = 1.15


def uneven(site: Steered, **choices: Any) -> None:
    endpoints = [LiveEndpoint(f"host{k}", name) for k, name in enumerate(SLOTS, 1)]
    text = written(site.lab.topology, Choices(endpoints=endpoints, **choices), site.state_dir)
    site.configure(yaml.safe_load(text))
    for endpoint in endpoints:
        slots = SLOTS[endpoint.name]
        site.lab.endpoint(endpoint.host, name=endpoint.name, service_time_s=SERVICE_TIME_S, concurrency=slots)
    site.start()


def busiest(given: dict[str, float]) -> float:
    """The highest utilisation, as multiples of the mean one."""
    used = [given.get(name, 0.0) / slots for name, slots in SLOTS.items()]
    return max(used) / (sum(used) / len(used))


def shares(site: Steered) -> dict[str, float]:
    ring = {group["name"]: group["ring_weight"] for group in site.status()["services"][0]["groups"]}
    total = sum(ring.values()) or 1.0
    return {name: weight / total for name, weight in ring.items()}


def test_within_a_minute_nobody_is_much_busier_than_the_others(tmp_path: Path) -> None:
    usage = {"kind": "node-exporter", "url": "http://{address}:{port}/metrics", "interval": "3s"}
    with steered(tmp_path, start=False) as site:
        uneven(site, usage=usage)
        began_s = time.monotonic()
        traffic = site.traffic(RATE, "--persistent-share", "0")
        assert busiest(shares(site)) > 1.5, "at first all get the same"
        eventually(lambda: busiest(shares(site)) < 1.05, 60, site.said)
        measured_s = time.monotonic()
        assert measured_s - began_s <= 60.0
        passes(20.0)
        seen = traffic.since(measured_s + 1.0)
        traffic.stop()
        given: dict[str, float] = {}
        for one in seen:
            given[one.served_by or ""] = given.get(one.served_by or "", 0.0) + 1.0
        assert busiest(given) <= BUSIER_MOST, given
        assert not [one for one in seen if one.failed]
        assert "endpoint_strength_flows_per_second" in site.metrics()


def test_negative_control_without_readings_it_stays_as_it_was(tmp_path: Path) -> None:
    with steered(tmp_path, start=False) as site:
        uneven(site)
        traffic = site.traffic(RATE, "--persistent-share", "0")
        passes(15.0)
        traffic.stop()
        assert busiest(shares(site)) > 1.5
