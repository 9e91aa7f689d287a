# SPDX-License-Identifier: Apache-2.0
"""What the controller and the command pay at 512 services, 10 000 endpoints and a million cached flows, with
the real maps. No interface is attached: no packet passes, and the machine's own networks are only read."""

from __future__ import annotations

import os
import statistics
import time
import uuid
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Address, ip_network
from pathlib import Path

import numpy as np

from controlplane import model, plan, ring
from controlplane.adapters import layout, libbpf, loader, pins, readings
from controlplane.adapters.clock import MachineClock
from controlplane.adapters.dataplane import MapDataplane
from controlplane.adapters.maps import Maps, open_instance
from controlplane.cli import wiring
from controlplane.loop import Controller
from controlplane.ports import Counters
from tests import fakes, scale
from tests.bench.figures import Figure

ROUNDS = 15
WARM_TICKS = 70
"""Until as many errors of forecasts are known as are remembered."""
CPUS = 64
LISTED = 1 << 20
RING_ENDPOINTS, RING_SIZE = 1_000, 65_537
REQUEST_COUNTERS = np.dtype([("count", "<u8", 8)])
"""What is to be read of each endpoint and CPU beside ``struct endpoint_counters``."""
SHADOWS = 4
MS, US = 1e3, 1e6


def measure() -> Mapping[str, Figure]:
    """The figures ``control.*``; about a minute."""
    figures = _rings() | _observe_decide()
    with _loaded() as (dataplane, maps, config, took_s):
        figures["control.first_load"] = Figure(took_s * MS, "ms")
        figures |= _steps(dataplane)
        figures |= _counters(maps)
        figures |= _tick(dataplane, config)
        figures |= _listing(dataplane, maps)
    return figures


def _timed(action: Callable[[], object], rounds: int = ROUNDS) -> float:
    """Median seconds, after one call that does not count."""
    action()
    taken = []
    for _ in range(rounds):
        started = time.perf_counter()
        action()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


def _rings() -> dict[str, Figure]:
    names = [f"endpoint-{n}" for n in range(RING_ENDPOINTS)]
    equal, uneven = [1.0] * RING_ENDPOINTS, [1.0 + n % 7 for n in range(RING_ENDPOINTS)]
    return {
        "control.ring": Figure(_timed(lambda: ring.build(names, equal, RING_SIZE)) * MS, "ms"),
        "control.ring_weighted": Figure(_timed(lambda: ring.build(names, uneven, RING_SIZE)) * MS, "ms"),
    }


class _Read(fakes.FakeDataplane):
    """What is read is made before it is asked for."""

    def __init__(self, clock: fakes.FakeClock) -> None:
        super().__init__(clock, rows=scale.SIZES.endpoints)
        self._random = np.random.default_rng(6)
        self.prepare()

    def prepare(self) -> None:
        """Of each endpoint 100 flows, or so, came since the last time."""
        flows = self._random.poisson(100.0, scale.SIZES.endpoints).astype(np.uint64)
        for field in ("offered", "completed", "flows", "rtt_count"):
            self.count[field] += flows
        self.count["rtt_sum_us"] += flows * np.uint64(500)
        self._steering, self._counters = super().installed(), super().counters()

    def installed(self) -> model.Steering:
        return self._steering

    def counters(self) -> Counters:
        return self._counters


class _Answered(fakes.FakeProber):
    """All answers of a second at once, made before they are asked for."""

    def __init__(self, clock: fakes.FakeClock) -> None:
        super().__init__(clock)
        self._answers: Sequence[model.Health] = ()

    def prepare(self) -> None:
        self._answers = super().results()

    def results(self) -> Sequence[model.Health]:
        answers, self._answers = self._answers, ()
        return answers


def _observe_decide() -> dict[str, Figure]:
    """From the readings to the decisions, and what is learned when these are applied; the steps of all
    services end together now and then."""
    clock = fakes.FakeClock()
    dataplane, prober = _Read(clock), _Answered(clock)
    controller = Controller(
        scale.config("bench"),
        dataplane,
        prober,
        fakes.FakeProvisioner(clock),
        fakes.FakeStore(),
        clock,
        fakes.FakeMetrics(),
        show=lambda text: None,
    )
    controller.tick()
    taken: list[tuple[float, float]] = []
    for _ in range(WARM_TICKS + 2 * ROUNDS):
        clock.advance(1.0)
        dataplane.prepare()
        prober.prepare()
        started = time.process_time()
        controller._observe()
        controller._decide()
        decided = time.process_time()
        controller._keep()
        taken.append((decided - started, time.process_time() - decided))
    decide, learn = (statistics.median(part) for part in zip(*taken[WARM_TICKS:], strict=True))
    return {
        "control.observe_decide": Figure(decide * MS, "ms"),
        "control.learn": Figure(learn * MS, "ms"),
    }


@contextmanager
def _loaded() -> Iterator[tuple[MapDataplane, Maps, model.Config, float]]:
    """As ``penumbra load`` does it, with shadows for one endpoint; unloaded after."""
    config = scale.config(f"bench-{uuid.uuid4().hex[:8]}")
    pins.mount_bpf_filesystem()
    started = time.perf_counter()
    loader.load(config, wiring.bpf_dir())
    dataplane = MapDataplane.open(config.instance, MachineClock())
    maps = open_instance(config.instance)
    try:
        for step in plan.plan(model.Steering(), wiring.as_configured(config)):
            dataplane.apply(step)
        members = (one.address for service in config.services.values() for one in service.endpoints)
        dataplane.set_direct(set(map(ip_network, members)))
        took_s = time.perf_counter() - started
        for name in _shadows():
            address = IPv4Address("10.250.0.1") + int(name[-1])
            member = model.Member(name, scale.LARGE, address, 9000, model.Role.SHADOW, "endpoint-1")
            dataplane.apply(model.InstallMember(member))
        yield dataplane, maps, config, took_s
    finally:
        maps.close()
        dataplane.close()
        loader.unload(config.instance)


def _shadows() -> list[str]:
    return [f"endpoint-1-s{n}" for n in range(SHADOWS)]


def _steps(dataplane: MapDataplane) -> dict[str, Figure]:
    """Each time another endpoint, or another weight, as the controller asks for it."""
    number = iter(range(1, 1_000_000))

    def spill() -> None:
        at = next(number)
        dataplane.apply(model.SetSpill(f"endpoint-{at * 37 % scale.ENDPOINTS + 1}", at % 100 / 100))

    def weight() -> None:
        weights = dict.fromkeys(_shadows(), 1.0) | {"endpoint-1-s0": next(number) % 50 / 100 + 0.1}
        dataplane.apply(model.SetSlots("endpoint-1", weights))

    return {
        "control.spill": Figure(_timed(spill, 500) * US, "us"),
        "control.shadow_weight": Figure(_timed(weight, 500) * US, "us"),
    }


def _counters(maps: Maps) -> dict[str, Figure]:
    """Of a kernel that could have 64 CPUs, of which all have run, and of which eight have."""
    random = np.random.default_rng(5)
    rows = layout.TRAFFIC, layout.TRAFFIC, layout.ENDPOINT_COUNTERS, REQUEST_COUNTERS
    tables = [_table(row, random) for row in rows]
    reasons = np.ones((CPUS, layout.INTERFACE_ROWS, layout.REASON_SLOTS), np.uint64)
    forwarded, returned, counters, _ = tables
    wide = replace(maps, forwarded=forwarded, returned=returned, counters=counters, reasons=reasons)
    figures = {"control.counters_64": Figure(_timed(lambda: readings.counters(wide, 0.0)) * MS, "ms")}
    everything = Figure(_timed(lambda: readings.totals(tables, readings.ran(wide))) * MS, "ms")
    figures["control.counters_64_requests"] = everything
    reasons[8:] = 0
    figures["control.counters_8"] = Figure(_timed(lambda: readings.counters(wide, 0.0)) * MS, "ms")
    return figures


def _table(row: np.dtype, random: np.random.Generator) -> np.ndarray:
    """(CPUS, rows) in a map's memory, which is the kernel's: its pages are small ones."""
    rows = CPUS * scale.SIZES.endpoints
    kind, key_bytes = libbpf.MapType.ARRAY, 4
    fd = libbpf.map_create(kind, "bench", key_bytes, row.itemsize, rows, libbpf.BPF_F_MMAPABLE)
    table = libbpf.map_view(fd, row, writable=True).reshape(CPUS, -1)
    os.close(fd)
    words = table.view("<u8")
    words[...] = random.integers(0, 1000, words.shape, np.uint64)
    return table


def _tick(dataplane: MapDataplane, config: model.Config) -> dict[str, Figure]:
    """A tick where the world stands still, prober and store being fakes; and what of it is the maps'."""
    clock = fakes.FakeClock()
    controller = Controller(
        config,
        dataplane,
        fakes.FakeProber(clock),
        fakes.FakeProvisioner(clock),
        fakes.FakeStore(),
        clock,
        fakes.FakeMetrics(),
        show=lambda text: None,
    )

    def tick() -> None:
        clock.advance(1.0)
        controller.tick()

    figures = {"control.tick": Figure(_timed(tick, 5) * MS, "ms")}
    status = controller.status()
    if status is None or status.troubles:
        raise RuntimeError(f"the ticks measured were not whole: {status.troubles if status else 'none'}")
    figures["control.installed"] = Figure(_timed(dataplane.installed) * MS, "ms")
    return figures


def _listing(dataplane: MapDataplane, maps: Maps) -> dict[str, Figure]:
    """``penumbra maps flows --json --limit 1048576``, from the open maps to the last byte in a file."""
    figures = {}
    with Path("/dev/null").open("wb") as out:
        for version, v6 in (("v4", False), ("v6", True)):
            scale.fill_flows(maps, LISTED, layout.tick_at(time.monotonic()), v6=v6)
            lines = sum(bytes(part).count(b"\n") for part in dataplane.flow_lines(LISTED))
            if lines != LISTED:
                raise RuntimeError(f"{lines} of {LISTED} flows are listed")
            taken = _timed(lambda: deque(map(out.write, dataplane.flow_lines(LISTED)), 0), 5)
            figures[f"control.list_1m_{version}"] = Figure(taken * MS, "ms")
    return figures
