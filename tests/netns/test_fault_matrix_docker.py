# SPDX-License-Identifier: Apache-2.0
"""A row per victim of the fault matrix where shadows are containers, on an engine per host."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from controlplane.lab.dockerd import Dockerd, host_rootfs
from tests.netns.matrix import Matrix, Row, Steps, rows, with_steps
from tests.netns.steered import Steered, eventually, steered

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
MOUNTS = {"/usr": {"bind": "/usr", "mode": "ro"}, str(ROOT): {"bind": "/penumbra", "mode": "ro"}}
TABLE = """
# victim    step    in the end
dockerd     begun   serves
ansible     ending  gone
controller  made    serves
network     ready   serves
host        ready   serves
"""


@dataclass
class Engines(Matrix):
    engines: dict[str, Dockerd] = field(default_factory=dict)

    def containers(self) -> dict[str, str]:
        """Shadows that are containers, running or not: name -> where they are published."""
        found: dict[str, str] = {}
        label = {"label": f"penumbra.instance={self.site.instance}"}
        for host, engine in self.engines.items():
            client = engine.client()
            try:
                listed = client.api.containers(all=True, filters=label)
            finally:
                client.close()
            for one in listed:
                name = one["Labels"]["penumbra.shadow"]
                assert name not in found, f"two containers of {name}"
                ports = [str(port["PublicPort"]) for port in one["Ports"] if "PublicPort" in port]
                found[name] = f"{self.site.lab.topology.node(host).address}:{','.join(ports)}"
        return found

    def hit_dockerd(self, row: Row, held: int, before: frozenset[int]) -> str:
        """It dies, and comes back when the controller has found that it is not there."""
        engine = self.engines["host2"]
        engine.kill()
        try:
            self.steps.disarm()
            eventually(lambda: self.site.shadow().get("state") == "failed", 40, self.site.said)
            reason = str(self.site.shadow()["reason"])
            assert "engine" in reason, reason
        finally:
            engine.resume()
        return f"run failed: {reason[:70]}"

    def power_off(self, host: str) -> list[int]:
        engine = self.engines[host]
        client = engine.client()
        inside = [one.attrs["State"]["Pid"] for one in client.containers.list()]
        client.close()
        engine.kill()
        for pid in inside:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return [*inside, *super().power_off(host)]

    def boot(self, host: str) -> None:
        self.engines[host].resume()


def run_live(site: Steered, engine: Dockerd) -> None:
    command = ["python3", "-m", "controlplane.lab.server", "--port", "8080"]
    client = engine.client()
    client.containers.run(
        "lab",
        [*command, "--service-time", "0.02", "--concurrency", "16"],
        detach=True,
        environment={"PYTHONPATH": "/penumbra"},
        volumes=MOUNTS,
        ports={"8080/tcp": 8080},
    )
    client.close()


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    folder = tmp_path_factory.mktemp("site")
    with steered(folder, start=False) as site:
        steps = Steps(folder / "steps")
        made = Engines(site, steps, lambda: made.containers())
        for host in ("host1", "host2"):
            made.engines[host] = Dockerd(site.lab.topology.namespace(host), site.lab.folder / host)
        try:
            for engine in made.engines.values():
                engine.start()
            made.engines["host1"].import_image("lab", host_rootfs())
            run_live(site, made.engines["host1"])
            root = site.configuration(playbooks=str(with_steps(folder / "playbooks", steps)))
            for host, engine in made.engines.items():
                root["hosts"][host]["variables"] = {
                    "ansible_connection": "local",
                    "docker_host": engine.url,
                    "address": str(site.lab.topology.node(host).address),
                }
            web = root["services"]["web"]
            web["shadows"] |= {"target": "docker", "hosts": ["host2"], "drain": "2s"}
            site.configure(root)
            site.start(made.argv)
            made.load = site.traffic(10.0, "--persistent-share", "0", most_s=900)
            yield made
            made.load.stop()
        finally:
            if site.controller is not None and site.controller.poll() is None:
                site.end()
            for engine in made.engines.values():
                engine.stop()


@pytest.mark.parametrize("row", rows(TABLE), ids=lambda row: row.name)
def test_one_result_whatever_fails(
    matrix: Engines, row: Row, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", (f"docker: {row.name}", matrix.play(row), row.final))
