# SPDX-License-Identifier: Apache-2.0
"""Provisioning by the shipped playbooks, for real: a container is cloned, in an engine of our own."""

from __future__ import annotations

import os
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

import docker
import pytest

from controlplane import model
from controlplane.adapters.ansible import AnsibleProvisioner
from controlplane.adapters.clock import MachineClock
from controlplane.adapters.load_source import BackgroundLoadSource
from controlplane.lab.dockerd import Dockerd, host_rootfs
from controlplane.model import UsageKind, UsageSource
from tests.netns.steered import eventually, playbooks_with

ROOT = Path(__file__).resolve().parents[2]
ADDRESS = IPv4Address("10.78.1.1")
USR = {"/usr": {"bind": "/usr", "mode": "ro"}, str(ROOT): {"bind": "/penumbra", "mode": "ro"}}


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


@dataclass(frozen=True)
class Engine:
    """A lab host with an engine, and a client host that reaches it."""

    daemon: Dockerd
    outside: str
    instance: str
    run_dir: Path

    @property
    def host(self) -> model.Host:
        return model.Host(
            "host-a",
            variables={
                "ansible_connection": "local",
                "docker_host": self.daemon.url,
                "address": str(ADDRESS),
            },
        )

    def provisioner(self, playbooks: Path | None = None) -> AnsibleProvisioner:
        hosts = {"host-a": self.host}
        return AnsibleProvisioner(self.instance, hosts, MachineClock(), playbooks, self.run_dir)

    def order(self, address: IPv4Address, port: int, shadow: str, **variables: object) -> model.Order:
        parent = model.Endpoint("web-1", "web", address, port, host="host-a")
        return model.Order(
            shadow,
            self.instance,
            "web",
            parent,
            model.Protocol.TCP,
            model.Probe(),
            self.host,
            "docker",
            60.0,
            variables,
        )

    def answers(self, address: IPv4Address | None, port: int | None, netns: str | None = None) -> bool:
        at = f"--net=/run/netns/{netns or self.outside}"
        command = ["nsenter", at, "curl", "-sf", "-m", "1", f"http://{address}:{port}/"]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    tag = uuid.uuid4().hex[:6]
    inside, outside = f"pd-{tag}", f"pc-{tag}"
    daemon = Dockerd(inside, Path(f"/run/penumbra/pd-{tag}"))
    try:
        for netns in (inside, outside):
            run("ip", "netns", "add", netns)
            run("ip", "-n", netns, "link", "set", "lo", "up")
        run(
            "ip", "link", "add", "v0", "netns", inside, "type", "veth", "peer", "name", "v0", "netns", outside
        )
        for netns, address in ((inside, str(ADDRESS)), (outside, "10.78.1.2")):
            run("ip", "-n", netns, "address", "add", f"{address}/24", "dev", "v0")
            run("ip", "-n", netns, "link", "set", "v0", "up")
        with daemon:
            daemon.import_image("lab", host_rootfs())
            yield Engine(daemon, outside, f"t-{tag}", tmp_path_factory.mktemp("run"))
        assert not daemon.folder.exists()
        assert str(daemon.folder) not in Path("/proc/self/mounts").read_text()
        assert list(Path("/sys/fs/cgroup").glob(f"*/{daemon.cgroup}")) == []
    finally:
        for netns in (inside, outside):
            subprocess.run(["ip", "netns", "delete", netns], check=False)


@pytest.fixture(scope="module")
def client(engine: Engine) -> Iterator[docker.DockerClient]:
    made = engine.daemon.client()
    yield made
    made.close()


@pytest.fixture(autouse=True)
def no_containers_left(client: docker.DockerClient) -> Iterator[None]:
    yield
    for container in client.containers.list(all=True):
        container.remove(force=True)
    for volume in client.volumes.list():
        volume.remove()


@pytest.fixture(scope="module")
def provisioner(engine: Engine) -> Iterator[AnsibleProvisioner]:
    made = engine.provisioner()
    yield made
    made.close()


def original(client: docker.DockerClient, **options: object) -> docker.models.containers.Container:
    command = ["python3", "-m", "controlplane.lab.server", "--port", "8080"]
    settings = {
        "environment": {"PYTHONPATH": "/penumbra", "BRACES": "{{ 7*7 }}"},
        "volumes": USR,
        "ports": {"8080/tcp": 18080},
        "mem_limit": "128m",
        "nano_cpus": 500_000_000,
        "pids_limit": 50,
        "cap_drop": ["NET_RAW"],
        "read_only": True,
        "tmpfs": {"/tmp": "size=1m"},  # noqa: S108
        "labels": {"team": "web", "com.docker.compose.project": "shop"},
        "working_dir": "/tmp",  # noqa: S108
        "healthcheck": {"test": ["CMD", "true"], "interval": 10**9},
        "restart_policy": {"Name": "on-failure", "MaximumRetryCount": 3},
    }
    return client.containers.run("lab", command, detach=True, **(settings | options))


def result_of(provisioner: AnsibleProvisioner) -> model.RunResult:
    found: list[model.RunResult] = []
    eventually(lambda: found.extend(provisioner.results()) or found)
    (result,) = found
    return result


def shadow_of(client: docker.DockerClient, engine: Engine) -> list[docker.models.containers.Container]:
    return client.containers.list(all=True, filters={"label": f"penumbra.instance={engine.instance}"})


def assert_cloned_once_and_gone(
    engine: Engine, client: docker.DockerClient, provisioner: AnsibleProvisioner
) -> None:
    live = original(client)
    eventually(lambda: engine.answers(ADDRESS, 18080))
    order = engine.order(ADDRESS, 18080, "web-1-s1")
    begun_s = time.monotonic()
    provisioner.provision(order)
    made = result_of(provisioner)
    assert made.reason == ""
    assert made.address == ADDRESS
    assert made.port != 18080
    eventually(lambda: engine.answers(made.address, made.port))
    print(
        f"docker: decision to result {made.ended_s - made.started_s:.2f} s, "
        f"to 200 {time.monotonic() - begun_s:.2f} s"
    )

    (shadow,) = shadow_of(client, engine)
    was, now = client.api.inspect_container(live.id), client.api.inspect_container(shadow.id)
    assert "BRACES={{ 7*7 }}" in now["Config"]["Env"]
    for key in ("Env", "Cmd", "Entrypoint", "WorkingDir", "User", "Healthcheck"):
        assert now["Config"].get(key) == was["Config"].get(key), key
    assert now["Image"] == was["Image"]
    differing = {key for key in was["HostConfig"] if now["HostConfig"].get(key) != was["HostConfig"][key]}
    assert differing <= {"PortBindings", "Mounts", "VolumesFrom"}
    labels = now["Config"]["Labels"]
    assert (labels["team"], labels["penumbra.shadow"], labels["penumbra.parent"]) == (
        "web",
        "web-1-s1",
        "web-1",
    )
    assert "com.docker.compose.project" not in labels
    assert now["Config"]["Hostname"] != was["Config"]["Hostname"]

    provisioner.provision(order)
    assert result_of(provisioner).port == made.port
    assert [container.id for container in shadow_of(client, engine)] == [shadow.id]
    (found,) = provisioner.existing([("host-a", "docker")]).found
    assert (found.shadow, found.parent, found.address, found.port) == (
        "web-1-s1",
        "web-1",
        ADDRESS,
        made.port,
    )

    for _ in range(2):
        provisioner.deprovision(order)
        assert result_of(provisioner).reason == ""
        assert shadow_of(client, engine) == []
    live.remove(force=True)


def test_a_published_container_is_cloned_whole_once_and_gone_after(
    engine: Engine, client: docker.DockerClient, provisioner: AnsibleProvisioner
) -> None:
    assert_cloned_once_and_gone(engine, client, provisioner)


def test_negative_control_a_removal_that_removes_nothing_is_noticed(
    engine: Engine, client: docker.DockerClient, tmp_path: Path
) -> None:
    books = playbooks_with(tmp_path / "books", "roles/docker/tasks/deprovision.yml", "[]\n")
    provisioner = engine.provisioner(books)
    try:
        with pytest.raises(AssertionError):
            assert_cloned_once_and_gone(engine, client, provisioner)
        assert len(shadow_of(client, engine)) == 1, "the fault hit: the container lives on"
    finally:
        provisioner.close()


def test_a_routed_container_gets_an_address_of_its_own_in_place_of_the_fixed_one(
    engine: Engine, client: docker.DockerClient, provisioner: AnsibleProvisioner
) -> None:
    pool = docker.types.IPAMPool(subnet="10.79.0.0/24", gateway="10.79.0.1")
    network = client.networks.create("back", ipam=docker.types.IPAMConfig(pool_configs=[pool]))
    live = original(client, ports={}, network="back")
    live.stop(timeout=0)
    network.disconnect(live)
    network.connect(live, ipv4_address="10.79.0.77")
    live.start()
    try:
        provisioner.provision(engine.order(IPv4Address("10.79.0.77"), 8080, "web-1-s2"))
        made = result_of(provisioner)
        assert made.reason == ""
        assert made.address in IPv4Network("10.79.0.0/24")
        assert (made.address, made.port) != (IPv4Address("10.79.0.77"), 8080)
        eventually(lambda: engine.answers(made.address, made.port, engine.daemon.netns))
    finally:
        for container in (*shadow_of(client, engine), live):
            container.remove(force=True)
        network.remove()


def test_a_writable_mount_is_refused_by_name_unless_it_is_marked_shared(
    engine: Engine, client: docker.DockerClient, provisioner: AnsibleProvisioner
) -> None:
    live = original(client, volumes=USR | {"orders": {"bind": "/data", "mode": "rw"}})
    provisioner.provision(engine.order(ADDRESS, 18080, "web-1-s3"))
    refused = result_of(provisioner)
    assert refused.state is model.RunState.FAILED
    assert "has the writable mount /data (volume orders)" in refused.reason
    assert "add /data to shared_mounts" in refused.reason
    assert shadow_of(client, engine) == []

    order = engine.order(ADDRESS, 18080, "web-1-s3", shared_mounts=["/data"])
    provisioner.provision(order)
    assert result_of(provisioner).reason == ""
    (shadow,) = shadow_of(client, engine)
    assert {mount["Destination"]: mount["RW"] for mount in shadow.attrs["Mounts"]}["/data"] is True
    provisioner.deprovision(order)
    assert result_of(provisioner).reason == ""
    assert client.volumes.get("orders")
    live.remove(force=True)


def test_a_clone_on_another_engine_takes_the_image_along_but_no_volume(
    engine: Engine, client: docker.DockerClient, tmp_path: Path
) -> None:
    live = original(client)
    kept = original(
        client, ports={"8080/tcp": 18081}, volumes=USR | {"orders": {"bind": "/data", "mode": "rw"}}
    )
    with Dockerd(engine.outside, Path(f"/run/penumbra/{engine.outside}")) as other:
        spare = model.Host("host-b", variables={**engine.host.variables, "docker_host": other.url})
        spare = replace(spare, variables={**spare.variables, "address": "10.78.1.2"})
        provisioner = AnsibleProvisioner(
            engine.instance, {"host-a": engine.host, "host-b": spare}, MachineClock(), run_dir=tmp_path
        )
        there = other.client()
        try:
            assert there.images.list() == []
            provisioner.provision(replace(engine.order(ADDRESS, 18080, "web-1-s4"), host=spare))
            made = result_of(provisioner)
            assert made.reason == ""
            assert made.address == IPv4Address("10.78.1.2")
            eventually(lambda: engine.answers(made.address, made.port, engine.daemon.netns))
            assert [image.id for image in there.images.list()] == [live.image.id]

            order = engine.order(ADDRESS, 18081, "web-1-s5", shared_mounts=["/data"])
            provisioner.provision(replace(order, host=spare))
            assert "volume orders (/data) is not on the shadow's host" in result_of(provisioner).reason
            assert there.volumes.list() == []
        finally:
            there.close()
            provisioner.close()
    for container in (live, kept):
        container.remove(force=True)


def test_what_a_container_uses_is_read_of_the_engine_and_of_its_cgroup_alike(
    engine: Engine, client: docker.DockerClient
) -> None:
    labels = {"penumbra.instance": "t", "penumbra.shadow": "web-1-s1"}
    busy = client.containers.run(
        "lab",
        ["python3", "-c", "while True: pass"],
        name="busy",
        detach=True,
        volumes=USR,
        mem_limit="64m",
        nano_cpus=200_000_000,
        labels=labels,
    )
    fast = {"interval_s": 0.5, "timeout_s": 0.5}
    of_engine = UsageSource(UsageKind.DOCKER, engine.daemon.url, **fast)
    reader = BackgroundLoadSource()
    try:
        reader.watch(
            {
                "name": replace(of_engine, selector="busy"),
                "labels": replace(
                    of_engine, selector=",".join(f"{key}={one}" for key, one in labels.items())
                ),
                "host:host-a": of_engine,
                "cgroup": UsageSource(
                    UsageKind.CGROUP, f"/sys/fs/cgroup/{engine.daemon.cgroup}/{busy.id}", **fast
                ),
            }
        )
        told: dict[str, model.Usage] = {}

        def all_told() -> bool:
            told.update({one.member: one for one in reader.usages() if (one.cpu or 0.0) > 0.02})
            return len(told) == 4

        eventually(all_told, 20, lambda: f"{told} {reader.troubles()}")
    finally:
        reader.close()
    for name in ("name", "labels", "cgroup"):
        assert told[name].of_cpus == pytest.approx(0.2)
        assert told[name].of_memory_bytes == 64 << 20
        assert 0.0 < (told[name].memory or 0.0) < 0.8
    assert told["host:host-a"].of_cpus == os.cpu_count()
