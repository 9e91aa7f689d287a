# SPDX-License-Identifier: Apache-2.0
"""A controller with its fakes on a fake clock, for tests of the whole loop."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

import numpy as np

from controlplane import model
from controlplane.loop import Controller
from controlplane.model import ShadowState
from controlplane.record import Recorder
from tests.fakes import (
    FakeClock,
    FakeDataplane,
    FakeInventory,
    FakeLagSource,
    FakeLoadSource,
    FakeMetrics,
    FakeProber,
    FakeProvisioner,
    FakeStore,
)

CAPACITY = 100.0


def config(endpoints: int = 1, mode: model.Mode = model.Mode.ACT, **shadow_settings: object) -> model.Config:
    settings = replace(
        model.ShadowSettings(
            hosts=("host-a", "host-b"),
            headroom=0.2,
            lead_time_s=4.0,
            warm_up_s=1.0,
            min_life_s=20.0,
            idle_s=10.0,
            drain_s=10.0,
        ),
        **shadow_settings,
    )
    service = model.Service(
        name="web",
        vip=IPv4Address("192.0.2.1"),
        port=80,
        protocol=model.Protocol.TCP,
        endpoints=tuple(
            model.Endpoint(
                f"web-{k}", "web", IPv4Address(f"10.0.0.{k}"), 8080, capacity=CAPACITY, host="host-a"
            )
            for k in range(1, endpoints + 1)
        ),
        shadows=settings,
    )
    hosts = {name: model.Host(name, slots=4) for name in ("host-a", "host-b")}
    return model.Config("test", ("eth9",), {"web": service}, hosts, mode=mode)


class World:
    """A controller with its fakes; ``restart`` makes a new controller in the same world."""

    def __init__(self, configuration: model.Config, seed: int = 1, *, records: bool = False) -> None:
        """:param records: into ``recorded``, with the configurations' numbers as their texts."""
        self.records = records
        self.configs: list[model.Config] = []
        self.config = configuration
        self.clock = FakeClock()
        self.dataplane = FakeDataplane(self.clock)
        self.store = FakeStore()
        self.prober = FakeProber(self.clock)
        self.load_source = FakeLoadSource(self.clock)
        self.lag_source = FakeLagSource(self.clock)
        self.inventory = FakeInventory()
        self.provisioner = FakeProvisioner(self.clock)
        self.metrics = FakeMetrics()
        self.shown: list[str] = []
        self.recorded: list[str] = []
        self.random = np.random.default_rng(seed)
        self.controller = self._controller()

    def _controller(self) -> Controller:
        return Controller(
            self.config,
            self.dataplane,
            self.prober,
            self.provisioner,
            self.store,
            self.clock,
            self.metrics,
            show=self.shown.append,
            load_config=lambda: self.config,
            recorder=self.recorder() if self.records else None,
            load_source=self.load_source,
            lag_source=self.lag_source,
            inventory_source=self.inventory,
        )

    def recorder(self) -> Recorder:
        def text() -> str:
            self.configs.append(self.config)
            return str(len(self.configs) - 1)

        return Recorder(self.recorded.append, text)

    def restart(self) -> None:
        """kill -9: runs under way end with the process."""
        before = self.provisioner
        self.provisioner = FakeProvisioner(self.clock, before.exists)
        self.provisioner.found, self.provisioner.unasked = before.found, before.unasked
        self.prober = FakeProber(self.clock)
        self.controller = self._controller()

    def tick(self, demand: float, noisy: bool = True, step_s: float = 1.0) -> None:
        """:param step_s: since the last one; past three ticks of the configuration readings are stale."""
        self.clock.advance(step_s)
        flows = self.random.poisson(demand * step_s) if noisy else demand * step_s
        dead = self.prober.dead
        if self.dataplane.services:
            self.dataplane.offer("web", flows, dead)
        self.controller.tick()

    def ticks(self, count: int, demand: float, noisy: bool = True, step_s: float = 1.0) -> None:
        for _ in range(count):
            self.tick(demand, noisy, step_s)

    def orders(self, kind: str = "provision") -> list[str]:
        return [name for what, name in self.provisioner.orders if what == kind]

    def states(self) -> list[ShadowState]:
        return [shadow.state for shadow in self.store.records.values()]

    def until(self, state: ShadowState, demand: float, limit: int = 60) -> None:
        for _ in range(limit):
            if state in self.states():
                return
            self.tick(demand)
        raise AssertionError(f"no shadow became {state} in {limit} ticks: {self.store.rows[-3:]}")


def grown(**settings: object) -> World:
    """A world whose one shadow is ready."""
    world = World(config(max_per_endpoint=1, **settings))
    world.ticks(25, 40.0)
    world.until(ShadowState.READY, 110.0)
    return world
