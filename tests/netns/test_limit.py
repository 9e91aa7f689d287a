# SPDX-License-Identifier: Apache-2.0
"""A burst that nobody foresaw spills to the shadow while the controller can do nothing about it."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from controlplane import model
from controlplane.adapters.clock import MachineClock
from controlplane.adapters.dataplane import MapDataplane
from controlplane.model import LIMIT_WINDOW_S
from tests.netns.steered import Steered, assert_unharmed, eventually, steered

pytestmark = pytest.mark.slow

CAPACITY, LIMIT = 40, 10
"""Flows/s, and what that allows in one window of 100 ms."""
BURST = 200.0


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Steered]:
    with steered(tmp_path) as made:
        yield made


def configure(site: Steered) -> None:
    root = site.configuration()
    root["services"]["web"]["endpoints"]["web-1"]["capacity"] = f"{CAPACITY} flows/s"
    site.configure(root)


@dataclass(frozen=True)
class Burst:
    """New flows that each was given, and that the live one's limit sent elsewhere."""

    live: int
    shadow: int
    limited: int
    windows: int


def burst(site: Steered, dataplane: MapDataplane, shadow: str) -> Burst:
    before, began_s = dataplane.counters(), time.monotonic()
    traffic = site.traffic(BURST, "--persistent-share", "0")
    traffic.flows(300)
    assert_unharmed(traffic.stop())
    windows = math.ceil((time.monotonic() - began_s) / LIMIT_WINDOW_S) + 1
    after = dataplane.counters()

    def grown(name: str, member: str) -> int:
        return int(getattr(after, name)[after.rows[member]] - getattr(before, name)[before.rows[member]])

    assert grown("offered", "web-1") > 300, "a burst is the live endpoint's demand, whoever is given it"
    return Burst(grown("flows", "web-1"), grown("flows", shadow), grown("limited", "web-1"), windows)


def assert_spilled(seen: Burst) -> None:
    assert seen.limited > 20, f"nothing was past the limit: {seen}"
    assert seen.shadow == seen.limited, f"what was past it is the shadow's: {seen}"
    assert seen.shadow <= LIMIT * seen.windows, f"the shadow has a limit too: {seen}"
    assert seen.live > seen.windows, f"the live one is not idle: {seen}"


def test_a_burst_spills_while_the_controller_is_stopped_and_not_without_a_limit(site: Steered) -> None:
    configure(site)
    site.start()
    site.asked("shadow", "add", "web-1")
    eventually(lambda: site.shadow().get("state") == "ready", 40, site.said)
    shadow = str(site.shadow()["name"])
    dataplane = MapDataplane.open(site.instance, MachineClock())

    def limits() -> dict[str, int]:
        return {name: member.limit for name, member in dataplane.installed().members.items()}

    try:
        eventually(lambda: limits() == {"web-1": LIMIT, shadow: LIMIT}, 10, limits)
        assert site.group()["spill"] == 0.0, "without demand the controller spills nothing"
        assert site.controller is not None
        site.controller.send_signal(signal.SIGSTOP)
        assert_spilled(burst(site, dataplane, shadow))

        # The negative control: the same without the limit, and still no controller that could do anything.
        assert site.end(signal.SIGKILL) == -signal.SIGKILL
        dataplane.apply(model.SetLimit("web-1", 0))
        assert dataplane.installed().members["web-1"].spill == 0.0
        with pytest.raises(AssertionError, match="nothing was past the limit"):
            assert_spilled(burst(site, dataplane, shadow))
    finally:
        dataplane.close()
