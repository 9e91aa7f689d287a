# SPDX-License-Identifier: Apache-2.0
"""From the decision for one more shadow until it serves: a controller on a real clock, real probes, playbooks
and three container engines, each on a lab host of its own; only the data plane and the load are made up."""

from __future__ import annotations

import http.client
import statistics
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from ipaddress import IPv4Address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from controlplane import model, requests
from controlplane.adapters.ansible import PROVISION, AnsibleProvisioner
from controlplane.adapters.ansible_run import PlaybookRun
from controlplane.adapters.clock import MachineClock
from controlplane.adapters.probes import NetworkProber
from controlplane.lab import network
from controlplane.lab.dockerd import Dockerd, host_rootfs
from controlplane.lab.topology import AP, Topology
from controlplane.loop import Controller
from controlplane.model import ShadowState
from tests import fakes
from tests.bench.figures import Figure

ROOT = Path(__file__).resolve().parents[2]
PORT, CAPACITY = 18080, 50.0
CALM, MUCH = 10.0, 80.0
WARM_ROUNDS, COLD_ROUNDS, STANDBY_ROUNDS = 5, 2, 3
AT_ONCE = 10
WITHIN_S = 60.0
MS = 1e3
PARTS = ("queue", "runner", "module", "engine", "result", "probes")


class _Clock(MachineClock):
    @property
    def now(self) -> float:
        return self.now_s()


class _Plane(fakes.FakeDataplane):
    """New flows come at ``rate``; what is done to it has a time."""

    def __init__(self, clock: Any, moments: _Moments) -> None:
        super().__init__(clock)
        self.rate, self._offered_s, self._moments = CALM, clock.now, moments

    def counters(self) -> Any:
        now_s = self.clock.now
        if self.services:
            self.offer("web", self.rate * (now_s - self._offered_s))
        self._offered_s = now_s
        return super().counters()

    def apply(self, step: model.Step) -> None:
        super().apply(step)
        live = self.members.get("web-1")
        if isinstance(step, model.InstallMember) and step.member.role is model.Role.SHADOW:
            self._moments.serves_at[step.member.name] = str(step.member.address), step.member.port
        if live is not None and live.slots and live.spill:
            self._moments.take("spill")


class _Store(fakes.FakeStore):
    def __init__(self, moments: _Moments) -> None:
        super().__init__()
        self._moments = moments

    def log(self, decision: model.Decision) -> None:
        super().log(decision)
        if decision.action == "add":
            self._moments.take("decision")


@dataclass
class _Moments:
    """When what happened first, by the monotonic clock."""

    at_s: dict[str, float] = field(default_factory=dict)
    serves_at: dict[str, tuple[str, int]] = field(default_factory=dict)

    def take(self, name: str) -> None:
        self.at_s.setdefault(name, time.monotonic())


class _Provisioner(AnsibleProvisioner):
    """Of all rounds, as a controller has one for long."""

    moments = _Moments()

    def results(self) -> Sequence[model.RunResult]:
        found = super().results()
        if found:
            self.moments.take("result")
        return found


class _Controller(Controller):
    """Knows when its ticks began."""

    began_s: list[float]

    def tick(self) -> None:
        self.began_s.append(time.monotonic())
        super().tick()

    def lateness_s(self) -> list[float]:
        """Of each tick, behind the cadence of the first."""
        first = self.began_s[0]
        tick_s = self._config.tick_s
        return [at - first - k * tick_s for k, at in enumerate(self.began_s)]


@dataclass
class _Site:
    topology: Topology
    engines: Mapping[str, Dockerd]
    instance: str
    clock: _Clock
    provisioner: _Provisioner

    def config(self, endpoints: int = 1, standby: int = 0) -> model.Config:
        address = self.topology.hosts[0].address
        shadows = model.ShadowSettings(
            target="docker", hosts=("host1", "host2", "host3"), max_per_endpoint=2, standby=standby
        )
        service = model.Service(
            name="web",
            vip=IPv4Address("203.0.113.10"),
            port=80,
            protocol=model.Protocol.TCP,
            endpoints=tuple(
                model.Endpoint(f"web-{k + 1}", "web", address, PORT + k, capacity=CAPACITY, host="host1")
                for k in range(endpoints)
            ),
            shadows=shadows,
        )
        return model.Config(self.instance, (), {"web": service}, _hosts(self.topology, self.engines))

    @contextmanager
    def controller(self, config: model.Config) -> Iterator[tuple[_Controller, _Plane, _Store, _Moments]]:
        """One that runs in a thread of its own; its shadows are removed after."""
        moments = self.provisioner.moments = _Moments()
        plane, store = _Plane(self.clock, moments), _Store(moments)
        prober = NetworkProber(self.clock.wake)
        made = _Controller(
            config, plane, prober, self.provisioner, store, self.clock, fakes.FakeMetrics(), lambda text: None
        )
        made.began_s = []
        thread = threading.Thread(target=made.run)
        thread.start()
        try:
            yield made, plane, store, moments
        finally:
            made.stop()
            self.clock.wake()
            thread.join()
            prober.close()
            self._remove_all()

    def _remove_all(self) -> None:
        _wait(lambda: not self.provisioner.running(), "the runs")
        for engine in self.engines.values():
            with _client(engine) as client:
                for container in client.containers.list(all=True, filters={"label": "penumbra.instance"}):
                    container.remove(force=True)
        self.provisioner.results()

    def image_gone(self, host: str) -> None:
        with _client(self.engines[host]) as client:
            for image in client.images.list():
                client.images.remove(image.id, force=True)


def measure() -> Mapping[str, Figure]:
    """The figures ``provisioning.*``; about three minutes."""
    figures: dict[str, Figure] = {}
    with _site() as site:
        _round(site)  # Ansible's start, and an image on each host
        warm = [_round(site) for _ in range(WARM_ROUNDS)]
        cold = []
        for _ in range(COLD_ROUNDS):
            for host in ("host2", "host3"):
                site.image_gone(host)
            cold.append(_round(site))
        for name, rounds in (("warm", warm), ("cold", cold)):
            figures |= _figures(name, rounds)
        spills = [_standby_round(site) for _ in range(STANDBY_ROUNDS)]
        figures["provisioning.standby.spill_p50"] = Figure(statistics.median(spills) * MS, "ms")
        figures["provisioning.standby.spill_p95"] = Figure(max(spills) * MS, "ms")
        figures |= _at_once(site)
    return figures


def _figures(name: str, rounds: Sequence[Mapping[str, float]]) -> dict[str, Figure]:
    """Of a few rounds the p95 is the longest."""
    figures = {}
    for part in (*PARTS, "to_spill", "to_first_byte"):
        taken = [one[part] for one in rounds]
        figures[f"provisioning.{name}.{part}_p50"] = Figure(statistics.median(taken) * MS, "ms")
        if part.startswith("to_"):
            figures[f"provisioning.{name}.{part}_p95"] = Figure(max(taken) * MS, "ms")
    return figures


def _round(site: _Site) -> dict[str, float]:
    """Seconds of each part."""
    with site.controller(site.config()) as (_, plane, _, moments), _events_of(moments):
        _wait(lambda: plane.members, "the first tick")
        time.sleep(2.0)
        plane.rate = MUCH
        _wait(lambda: moments.serves_at, "a shadow")
        (where,) = moments.serves_at.values()
        _await_first_byte(*where, moments)
        _wait(lambda: "spill" in moments.at_s, "spill")
        engine_s = _engine_s(site)
        at = moments.at_s
    return {
        "queue": at["run"] - at["decision"],
        "runner": at["task"] - at["run"],
        "module": at["made"] - at["task"] - engine_s,
        "engine": engine_s,
        "result": at["result"] - at["made"],
        "probes": at["spill"] - at["result"],
        "to_spill": at["spill"] - at["decision"],
        "to_first_byte": at["byte"] - at["decision"],
    }


def _standby_round(site: _Site) -> float:
    """Seconds from the decision until the one that stood by is given new flows."""
    with site.controller(site.config(standby=1)) as (_, plane, store, moments):
        _wait(
            lambda: any(one.standby and one.state is ShadowState.READY for one in [*store.records.values()]),
            "one that stands by",
        )
        plane.rate = MUCH
        _wait(lambda: "spill" in moments.at_s, "spill")
        return moments.at_s["spill"] - moments.at_s["decision"]


def _at_once(site: _Site) -> dict[str, Figure]:
    """How late ticks begin while so many are made at once, and while nothing is."""
    late: dict[str, list[float]] = {}
    with site.controller(site.config(AT_ONCE)) as (controller, _, store, _):
        _wait(lambda: len(controller.began_s) > 10, "ticks")
        quiet = len(controller.began_s)
        for k in range(AT_ONCE):
            requests.request_shadow_add(store, f"web-{k + 1}")
        began_s = time.monotonic()
        _wait(lambda: _ready(store) == AT_ONCE, f"{AT_ONCE} shadows")
        took_s = time.monotonic() - began_s
        late["quiet"] = controller.lateness_s()[:quiet]
        late["at_once"] = controller.lateness_s()[quiet:]
    figures = {f"provisioning.tick_late_{name}": Figure(max(s) * MS, "ms") for name, s in late.items()}
    return figures | {f"provisioning.{AT_ONCE}_at_once": Figure(took_s, "s")}


def _ready(store: _Store) -> int:
    return sum(one.state is ShadowState.READY for one in [*store.records.values()])


@contextmanager
def _events_of(moments: _Moments) -> Iterator[None]:
    """What the runs of playbooks tell, with its time."""
    execute, event = PlaybookRun.execute, PlaybookRun._event

    def executed(self: PlaybookRun, *arguments: Any) -> Any:
        if self._playbook.name == PROVISION:
            moments.take("run")
        return execute(self, *arguments)

    def told(self: PlaybookRun, what: Mapping[str, Any]) -> bool:
        kind, data = what.get("event"), what.get("event_data") or {}
        if str(data.get("task", "")).startswith("Clone"):
            if kind == "playbook_on_task_start":
                moments.take("task")
            elif kind == "runner_on_ok":
                moments.take("made")
        return event(self, what)

    with mock.patch.object(PlaybookRun, "execute", executed), mock.patch.object(PlaybookRun, "_event", told):
        yield


def _await_first_byte(address: str, port: int, moments: _Moments) -> None:
    def answers() -> bool:
        connection = http.client.HTTPConnection(address, port, timeout=1.0)
        with suppress(OSError, http.client.HTTPException):
            connection.request("GET", "/")
            return bool(connection.getresponse().read(1))
        return False

    _wait(answers, "an answer", 0.002)
    moments.take("byte")


def _engine_s(site: _Site) -> float:
    """From the container's making until it was started, by its engine's clock."""
    for engine in site.engines.values():
        with _client(engine) as client:
            for container in client.containers.list(filters={"label": "penumbra.instance"}):
                made, started = (
                    datetime.fromisoformat(text[:26].rstrip("Z") + "+00:00")
                    for text in (container.attrs["Created"], container.attrs["State"]["StartedAt"])
                )
                return (started - made).total_seconds()
    raise RuntimeError("no engine has the shadow")


def _wait(condition: Callable[[], object], what: str, pause_s: float = 0.01) -> None:
    until = time.monotonic() + WITHIN_S
    while not condition():
        if time.monotonic() > until:
            raise RuntimeError(f"{what} did not come within {WITHIN_S:g} s")
        time.sleep(pause_s)


@contextmanager
def _client(engine: Dockerd) -> Iterator[Any]:
    client = engine.client()
    try:
        yield client
    finally:
        client.close()


def _hosts(topology: Topology, engines: Mapping[str, Dockerd]) -> dict[str, model.Host]:
    return {
        node.name: model.Host(
            node.name,
            slots=AT_ONCE,
            variables={
                "ansible_connection": "local",
                "docker_host": engines[node.name].url,
                "address": str(node.address),
            },
        )
        for node in topology.hosts
    }


@contextmanager
def _site() -> Iterator[_Site]:
    tag = uuid.uuid4().hex[:6]
    topology = Topology(f"b-{tag}", hosts_count=3)
    with ExitStack() as closing:
        closing.callback(network.demolish, topology.namespaces)
        network.build(topology)
        engines = {}
        for node in topology.hosts:
            engine = Dockerd(topology.namespace(node.name), Path(f"/run/penumbra/{tag}-{node.name}"))
            engines[node.name] = closing.enter_context(engine)
        engines["host1"].import_image("lab", host_rootfs())
        with _client(engines["host1"]) as client:
            mounts = {"/usr": {"bind": "/usr", "mode": "ro"}, str(ROOT): {"bind": "/penumbra", "mode": "ro"}}
            client.containers.run(
                "lab",
                ["python3", "-m", "controlplane.lab.server", "--port", "8080"],
                detach=True,
                environment={"PYTHONPATH": "/penumbra"},
                volumes=mounts,
                working_dir="/tmp",  # noqa: S108
                ports={"8080/tcp": [PORT + k for k in range(AT_ONCE)]},
            )
        folder = Path(closing.enter_context(TemporaryDirectory()))
        closing.enter_context(network.entered(topology.namespace(AP)))
        clock = _Clock()
        provisioner = _Provisioner(
            f"b-{tag}", _hosts(topology, engines), clock, run_dir=folder, on_ended=clock.wake
        )
        closing.callback(provisioner.close)
        yield _Site(topology, engines, f"b-{tag}", clock, provisioner)
