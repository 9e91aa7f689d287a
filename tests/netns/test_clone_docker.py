# SPDX-License-Identifier: Apache-2.0
"""A clone is the original and nothing of it is anywhere else, in engines of our own."""

from __future__ import annotations

import base64
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.errors import DockerException

from controlplane import model
from controlplane.adapters.ansible import AnsibleProvisioner
from controlplane.adapters.ansible_run import PlaybookRun
from controlplane.adapters.clock import MachineClock
from controlplane.lab.dockerd import Dockerd, host_rootfs
from tests.netns.steered import eventually, playbooks_with
from tests.netns.test_provision_docker import (
    ADDRESS,
    ROOT,
    USR,
    Engine,
    client,
    engine,
    no_containers_left,
    original,
    result_of,
    shadow_of,
)

__all__ = ["client", "engine", "no_containers_left"]

OTHER = IPv4Address("10.78.1.2")
CANARY = "canary-5bd1e2-of-a-secret"
SYNC = model.Sync(model.SyncDriver.COMMAND)
PASSWD = {
    "/etc/passwd": {"bind": "/etc/passwd", "mode": "ro"},
    "/etc/group": {"bind": "/etc/group", "mode": "ro"},
}
POSTGRES = """
chown postgres /data
exec setpriv --reuid postgres --regid postgres --clear-groups sh -c '
  test -s /data/PG_VERSION || /usr/lib/postgresql/15/bin/initdb -N -D /data -A trust >/dev/null
  exec /usr/lib/postgresql/15/bin/postgres -D /data -c unix_socket_directories=/data -c fsync=off'
"""
TEMPLATE = "{{ lookup('pipe', 'touch %s') }}"

# What may differ between inspect(original) and inspect(clone), and why.
MAY_DIFFER = {
    "Id": "each has its own",
    "Name": "each has its own",
    "Created": "when it was made",
    "State": "what it is doing",
    "RestartCount": "what it is doing",
    "ExecIDs": "what it is doing",
    "LogPath": "in a folder of its id",
    "ResolvConfPath": "in a folder of its id",
    "HostnamePath": "in a folder of its id",
    "HostsPath": "in a folder of its id",
    "GraphDriver": "its own layer",
    "Path": "says the same as Config",
    "Args": "says the same as Config",
    "Config.Image": "by id, whatever its name means by now",
    "Config.Hostname": "it was the original's id",
    "Config.Labels": "its own, less those of who owns the original; looked at one by one",
    "HostConfig.PortBindings": "a host's port serves one",
    "HostConfig.Mounts": "what only the running one named is named",
    "NetworkSettings": "addresses, MACs, ports: the engine's choice; looked at one by one",
}
EVERYTHING: dict[str, Any] = {
    "command": ["sleep", "1000"],
    "entrypoint": ["/usr/bin/env"],
    "user": "1000:1000",
    "hostname": "chosen",
    "domainname": "lab",
    "stop_signal": "SIGINT",
    "cap_add": ["NET_ADMIN"],
    "cap_drop": ["NET_RAW"],
    "ulimits": [docker.types.Ulimit(name="nofile", soft=512, hard=600)],
    "devices": ["/dev/null:/dev/nil:r"],
    "sysctls": {"net.ipv4.ip_default_ttl": "42"},
    "security_opt": ["no-new-privileges"],
    "log_config": docker.types.LogConfig(type="json-file", config={"max-size": "1m"}),
    "init": True,
    "extra_hosts": {"db": "10.0.0.9"},
    "dns": ["10.0.0.53"],
    "dns_search": ["lab"],
    "dns_opt": ["ndots:2"],
    "group_add": ["27"],
    "pid_mode": "host",
    "ipc_mode": "shareable",
    "uts_mode": None,
    "shm_size": "8m",
    "mem_limit": "64m",
    "mem_reservation": "32m",
    "cpu_shares": 512,
    "cpuset_cpus": "0",
    "oom_score_adj": 100,
    "pids_limit": 40,
    "tmpfs": {"/scratch": "size=1m,mode=700"},
    "restart_policy": {"Name": "unless-stopped"},
    "environment": {"A": "1", "EMPTY": ""},
    "stdin_open": True,
    "tty": True,
}


def by_field(inspected: dict[str, Any]) -> dict[str, str]:
    found = {}
    # Mode is how it was asked for; RW and Propagation say what it is.
    mounts = [{key: value for key, value in one.items() if key != "Mode"} for one in inspected["Mounts"]]
    in_order = {"Mounts": sorted(mounts, key=lambda one: str(one["Destination"]))}
    for part, value in (inspected | in_order).items():
        if part in ("Config", "HostConfig"):
            found |= {f"{part}.{key}": json.dumps(one, sort_keys=True) for key, one in value.items()}
        else:
            found[part] = json.dumps(value, sort_keys=True)
    return found


def differences(was: dict[str, Any], now: dict[str, Any]) -> set[str]:
    old, new = by_field(was), by_field(now)
    return {field for field in old.keys() | new.keys() if old.get(field) != new.get(field)}


@pytest.fixture(scope="module")
def provisioner(engine: Engine) -> Iterator[AnsibleProvisioner]:
    made = engine.provisioner()
    yield made
    made.close()


def made_by(provisioner: AnsibleProvisioner, order: model.Order) -> model.RunResult:
    provisioner.provision(order)
    return result_of(provisioner)


def read_by(provisioner: AnsibleProvisioner, *orders: model.Order) -> list[model.Inspection]:
    provisioner.inspect(orders)
    found: list[model.Inspection] = []
    eventually(lambda: found.extend(provisioner.inspected() or ()) or found)
    return found


def environment_of(container: docker.models.containers.Container) -> bytes:
    """As its process has it."""
    container.reload()
    entries = Path(f"/proc/{container.attrs['State']['Pid']}/environ").read_bytes().split(b"\0")
    return b"\0".join(sorted(one for one in entries if not one.startswith(b"HOSTNAME=")))


def create_with_bytes(engine: Engine, body: bytes, name: str) -> None:
    """By the API itself: clients refuse to send what is not UTF-8."""
    socket = engine.daemon.url.removeprefix("unix://")
    command = ["curl", "-sf", "--unix-socket", socket, "-H", "Content-Type: application/json"]
    url = f"http://engine/containers/create?name={name}"
    subprocess.run([*command, "--data-binary", "@-", url], input=body, check=True, capture_output=True)


def test_all_that_an_engine_tells_is_the_same_but_for_what_the_list_says_and_values_are_no_templates(
    engine: Engine, client: docker.DockerClient, provisioner: AnsibleProvisioner, tmp_path: Path
) -> None:
    touched = tmp_path / "touched"
    hostile = {
        "T1": TEMPLATE % touched,
        "T2": "{% set x = 1 %}{{ 7*7 }}",
        "QUOTES": "'\"`$(touch x)\\",
        "LINES": "a\nb\r\n\tc",
        "UNSAFE": "!unsafe {{ x }}",
        "SMILE": "\N{GRINNING FACE}\N{SNOWMAN}",
    }
    settings = EVERYTHING | {
        "environment": EVERYTHING["environment"] | hostile,
        "command": ["sleep", "1000", *hostile.values()],
        "entrypoint": ["/usr/bin/python3", "-c", "import time; time.sleep(1000)"],
        "labels": hostile,
        "ports": {"8080/tcp": 18080},
        "volumes": USR,
    }
    live = client.containers.run("lab", detach=True, **settings)
    was = client.api.inspect_container(live.id)
    # What else is not UTF-8 the engine takes as U+FFFD: that is what the original has, and its clone.
    create_with_bytes(
        engine,
        json.dumps(
            {
                "Image": "lab",
                "Entrypoint": ["/usr/bin/sleep", "1000"],
                "Env": ["BYTES=@@"],
                "HostConfig": {
                    "Binds": ["/usr:/usr:ro"],
                    "PortBindings": {"8080/tcp": [{"HostPort": "18081"}]},
                },
                "ExposedPorts": {"8080/tcp": {}},
            }
        )
        .encode()
        .replace(b"@@", b"\xff\xfe"),
        "odd",
    )
    odd = client.containers.get("odd")
    odd.start()
    for parent, port, name in ((live, 18080, "web-1-s1"), (odd, 18081, "web-1-s2")):
        result = made_by(provisioner, engine.order(ADDRESS, port, name))
        assert result.reason == ""
        (shadow,) = [one for one in shadow_of(client, engine) if one.labels["penumbra.shadow"] == name]
        assert result.id == shadow.labels["penumbra.id"] != ""
        assert environment_of(shadow) == environment_of(parent)
        now = client.api.inspect_container(shadow.id)
        was = client.api.inspect_container(parent.id)
        assert differences(was, now) <= MAY_DIFFER.keys()
        added = {label for label in now["Config"]["Labels"] if label.startswith("penumbra.")}
        assert {f"penumbra.{one}" for one in ("instance", "service", "parent", "id", "created")} <= added
        kept = {k: v for k, v in now["Config"]["Labels"].items() if k not in added}
        assert kept == (was["Config"]["Labels"] or {})
        assert now["NetworkSettings"]["Networks"].keys() == was["NetworkSettings"]["Networks"].keys()
    assert not touched.exists()
    assert b"\xef\xbf\xbd" in environment_of(odd), "so the engine took what it was given"
    ids = {one.id for one in provisioner.existing([("host-a", "docker")]).found}
    assert len(ids) == 2, "each has its own"


@pytest.mark.parametrize(
    ("options", "differs"),
    [
        ({"links": {"side": "db"}}, {"HostConfig.Links"}),  # told with the container's own name
        ({"volumes_from": ["side:ro"], "volumes": {}}, {"HostConfig.VolumesFrom"}),
        ({"ipc_mode": "container:side", "pid_mode": "container:side"}, set()),
        (
            {"auto_remove": True, "restart_policy": {}, "mac_address": "02:42:ac:11:00:99"},
            {"Config.MacAddress"},
        ),
    ],
)
def test_what_names_another_container_is_so_in_the_clone(
    engine: Engine, client: docker.DockerClient, tmp_path: Path, options: dict[str, Any], differs: set[str]
) -> None:
    """By the module itself, in this process."""
    volumes = USR | {"shared": {"bind": "/shared", "mode": "rw"}}
    client.containers.run(
        "lab", ["/usr/bin/sleep", "1000"], volumes=volumes, detach=True, name="side", ipc_mode="shareable"
    )
    live = original(client, **options)
    module = penumbra_docker()
    asked = {name: given.get("default") for name, given in module.ARGUMENTS.items()}
    asked |= {
        "instance": engine.instance,
        "name": "web-1-s1",
        "service": "web",
        "parent": {"name": "web-1", "address": str(ADDRESS), "port": 18080},
        "docker_host": engine.daemon.url,
        "address": str(ADDRESS),
        "port_range": [20000, 29999],
        "run_dir": str(tmp_path),
        "id": "1",
        "created": "then",
    }
    assert module.present(asked)["changed"]
    was, now = (client.api.inspect_container(one) for one in (live.id, module.container_name(asked)))
    assert differences(was, now) - MAY_DIFFER.keys() == differs
    if "links" in options:
        assert now["HostConfig"]["Links"][0].rpartition("/")[2] == "db"
    if "volumes_from" in options:
        assert {one["Destination"]: one["RW"] for one in now["Mounts"]}["/shared"] is False


def test_negative_control_a_clone_without_its_limits_is_noticed(
    engine: Engine, client: docker.DockerClient, tmp_path: Path
) -> None:
    rules = (ROOT / "playbooks/module_utils/penumbra_container.py").read_text()
    broken = rules.replace(
        "    _labels(config, wishes, notes)\n",
        '    host["PidsLimit"] = 0\n    _labels(config, wishes, notes)\n',
    )
    books = playbooks_with(tmp_path / "books", "module_utils/penumbra_container.py", broken)
    provisioner = engine.provisioner(books)
    try:
        live = original(client)
        assert made_by(provisioner, engine.order(ADDRESS, 18080, "web-1-s1")).reason == ""
        (shadow,) = shadow_of(client, engine)
        found = differences(live.attrs, client.api.inspect_container(shadow.id))
        assert "HostConfig.PidsLimit" in found - MAY_DIFFER.keys()
    finally:
        provisioner.close()


# ---- originals that are gone ------------------------------------------------------------


def test_a_shadow_is_made_when_the_original_is_dead_and_when_its_host_is(
    engine: Engine, client: docker.DockerClient, tmp_path: Path
) -> None:
    """The original is on the other host; its engine is killed, not stopped."""
    source = Dockerd(engine.outside, Path(f"/run/penumbra/{engine.outside}"))
    variables = {**engine.host.variables, "docker_host": source.url, "address": str(OTHER)}
    its = model.Host("host-b", variables=variables)
    hosts = {"host-a": engine.host, "host-b": its}
    provisioner = AnsibleProvisioner(engine.instance, hosts, MachineClock(), run_dir=tmp_path)
    order = engine.order(OTHER, 18080, "web-1-s1")
    order = replace(order, parent=replace(order.parent, host="host-b"))
    try:
        with source:
            source.import_image("lab", host_rootfs())
            there = source.client()
            live = original(there)
            image = live.image.id
            there.close()
            (read,) = read_by(provisioner, replace(order, host=its))
            assert (read.endpoint, read.host, read.reason) == ("web-1", "host-b", "")
            kept = replace(order, specification=read.text)

            source.kill()
            refused = made_by(provisioner, order)
            assert "no engine answers" in refused.reason
            assert "no specification of web-1 is kept" in refused.reason
            refused = made_by(provisioner, kept)
            assert f"image {image} of {live.name} is not on the shadow's host" in refused.reason
            assert "load it there" in refused.reason
            assert CANARY not in refused.reason
            assert shadow_of(client, engine) == []

            source.resume()
            there = source.client()
            [one.remove(force=True) for one in there.containers.list(all=True)]
            again = original(there)
            (read,) = read_by(provisioner, replace(order, host=its))
            assert read.text != kept.specification, "it is another one now"
            kept = replace(order, specification=read.text)
            assert made_by(provisioner, kept).reason == ""
            (shadow,) = shadow_of(client, engine)
            assert shadow.image.id == again.image.id == image, "the image came along"
            provisioner.deprovision(kept)
            assert result_of(provisioner).reason == ""

            again.remove(force=True)
            there.close()
            result = made_by(provisioner, kept)
            assert result.reason == "", "the original is dead"
            eventually(lambda: engine.answers(result.address, result.port))
            provisioner.deprovision(kept)
            assert result_of(provisioner).reason == ""
            source.kill()
            result = made_by(provisioner, kept)
            assert result.reason == "", "its host is dead"
            eventually(lambda: engine.answers(result.address, result.port))
    finally:
        provisioner.close()
        for one in client.images.list():
            if "lab:latest" not in one.tags:
                [container.remove(force=True) for container in client.containers.list(all=True)]
                client.images.remove(one.id, force=True)


def test_an_image_that_is_cut_off_on_its_way_leaves_nothing_half(
    engine: Engine, client: docker.DockerClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    container = client.containers.create("lab", "x")
    container.put_archive("/root", host_rootfs())
    image = container.commit("big", "latest").id
    archive = b"".join(client.images.get("big").save())
    client.images.remove("big")
    module = penumbra_docker()

    class Source:
        def __init__(self, part: float) -> None:
            self.part = part

        def get_image(self, asked: str) -> Iterator[bytes]:
            assert asked == image
            yield archive[: int(len(archive) * self.part)]
            if self.part < 1:
                raise ConnectionResetError("cut off")

    def connect_to(part: float) -> None:
        engines = {"from": Source(part), "to": client.api}
        monkeypatch.setattr(module, "connect", lambda url, timeout: engines[url])

    connect_to(0.5)
    with pytest.raises((DockerException, OSError)):
        module.transfer(image, "from", "to")
    assert [one for one in client.images.list(all=True) if one.id == image] == []
    eventually(lambda: list((engine.daemon.folder / "data/tmp").glob("*")) == [])
    connect_to(1.0)
    module.transfer(image, "from", "to")
    assert client.images.get(image).id == image
    client.images.remove(image)


def penumbra_docker() -> Any:
    for name, place in (
        ("ansible.module_utils.penumbra_container", "module_utils/penumbra_container.py"),
        ("penumbra_docker", "library/penumbra_docker.py"),
    ):
        spec = importlib.util.spec_from_file_location(name, ROOT / "playbooks" / place)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    import ansible.module_utils

    ansible.module_utils.penumbra_container = sys.modules["ansible.module_utils.penumbra_container"]
    return module


# ---- data -------------------------------------------------------------------------------


def with_a_driver(folder: Path) -> Path:
    """Playbooks whose sync driver does nothing: that there is one counts."""
    books = playbooks_with(folder, "empty.yml", "[]\n")
    tasks = books / "roles/sync_command/tasks"
    tasks.mkdir(parents=True, exist_ok=True)
    for name in ("start", "stop"):
        (tasks / f"{name}.yml").write_text("[]\n")
    return books


def sql(container: docker.models.containers.Container, text: str) -> str:
    command = ["/usr/lib/postgresql/15/bin/psql", "-h", "/data", "-U", "postgres", "-Atc", text]
    done = container.exec_run(
        ["setpriv", "--reuid", "postgres", "--clear-groups", "--regid", "postgres", *command]
    )
    return str(done.output.decode().strip()) if done.exit_code == 0 else ""


def test_two_postgresqls_never_share_a_data_directory(
    engine: Engine, client: docker.DockerClient, tmp_path: Path
) -> None:
    live = client.containers.run(
        "lab",
        ["/bin/sh", "-c", POSTGRES],
        detach=True,
        ports={"5432/tcp": 15432},
        volumes=USR | PASSWD | {"pgdata": {"bind": "/data", "mode": "rw"}},
    )
    eventually(lambda: sql(live, "create table t (x int)") == "CREATE TABLE")
    provisioner = engine.provisioner(with_a_driver(tmp_path / "books"))
    order = engine.order(ADDRESS, 15432, "web-1-s1")
    fresh = replace(order, variables={"fresh_mounts": ["/data"]})
    try:
        refused = made_by(provisioner, order).reason
        assert "has the writable mount /data (volume pgdata): two writers may destroy its data" in refused
        assert [one.name for one in client.volumes.list()] == ["pgdata"]

        asked = replace(fresh, sync=SYNC)
        assert made_by(provisioner, asked).reason == ""
        (shadow,) = shadow_of(client, engine)
        eventually(lambda: sql(shadow, "select count(*) from pg_class where relname = 't'") == "0")
        identifier = "select system_identifier from pg_control_system()"
        assert sql(live, identifier) != sql(shadow, identifier), "two databases"
        (volume,) = [one for one in client.volumes.list() if one.name != "pgdata"]
        labels = volume.attrs["Labels"]
        assert (labels["penumbra.shadow"], labels["penumbra.parent"]) == ("web-1-s1", "web-1")

        # Cut off between the two: what is left is found, and removed.
        shadow.remove(force=True)
        (found,) = provisioner.existing([("host-a", "docker")]).found
        assert (found.shadow, found.parent, found.address) == ("web-1-s1", "web-1", None)
        provisioner.deprovision(asked)
        assert result_of(provisioner).reason == ""
        assert [one.name for one in client.volumes.list()] == ["pgdata"]
        assert sql(live, "select count(*) from pg_class where relname = 't'") == "1", "the original is whole"
    finally:
        provisioner.close()
        live.remove(force=True)
        client.volumes.get("pgdata").remove()


# ---- secrets ----------------------------------------------------------------------------


def needles() -> list[bytes]:
    """The secret, and what of it stands in base64 whatever it follows."""
    texts = [base64.b64encode(b"\0" * before + CANARY.encode())[4:-4] for before in range(3)]
    return [CANARY.encode(), *texts]


def written_in(*folders: Path) -> list[Path]:
    """Files that hold the secret. What a run removes meanwhile holds none."""
    found = []
    for folder, _, names in (one for root in folders for one in os.walk(root)):
        for path in (Path(folder) / name for name in names):
            with contextlib.suppress(FileNotFoundError):
                if path.is_file() and any(needle in path.read_bytes() for needle in needles()):
                    found.append(path)
    return found


CONTROLLER = """
import dataclasses, sys, time
from ipaddress import IPv4Address
from pathlib import Path
from controlplane.lab.dockerd import Dockerd
from tests.netns.test_provision_docker import Engine
netns, folder, outside, instance, run_dir, books, text = sys.argv[1:]
engine = Engine(Dockerd(netns, Path(folder)), outside, instance, Path(run_dir))
order = engine.order(IPv4Address("10.78.1.1"), 18080, "web-1-s1")
provisioner = engine.provisioner(Path(books))
provisioner.provision(dataclasses.replace(order, specification=text))
time.sleep(100)
"""


def test_secrets_are_in_the_runs_folder_while_it_runs_and_nowhere_after_not_even_after_kill_9(
    engine: Engine, client: docker.DockerClient, tmp_path: Path
) -> None:
    secret = {"PYTHONPATH": "/penumbra", "TOKEN": CANARY}
    original(client, environment=secret, labels={"key": CANARY})
    hanging = (ROOT / "playbooks/roles/docker/tasks/provision.yml").read_text() + (
        "\n- name: Hang\n  ansible.builtin.command: sleep 100\n  changed_when: false\n"
    )
    books = playbooks_with(tmp_path / "books", "roles/docker/tasks/provision.yml", hanging)
    run_dir = tmp_path / "run"
    its = replace(engine, run_dir=run_dir)
    first = its.provisioner()
    order = its.order(ADDRESS, 18080, "web-1-s1")
    (read,) = read_by(first, order)
    assert any(needle in read.text.encode() for needle in needles()), "the specification holds it"
    first.close()
    assert written_in(run_dir) == [], "nothing is left of the reading"

    places = [engine.daemon.netns, str(engine.daemon.folder), engine.outside, engine.instance]
    controller = subprocess.Popen(
        [sys.executable, "-c", CONTROLLER, *places, str(run_dir), str(books), read.text], cwd=ROOT
    )
    eventually(lambda: shadow_of(client, engine))
    found = written_in(run_dir)
    assert found, "what is searched for can be found"
    for path in found:
        folder = run_dir / engine.instance / "runs" / path.relative_to(run_dir).parts[2]
        assert path.is_relative_to(folder)
        assert folder.stat().st_mode & 0o077 == 0
    controller.send_signal(signal.SIGKILL)
    controller.wait()

    after = its.provisioner()
    assert written_in(run_dir, Path.home() / ".ansible") == []
    assert [one.shadow for one in after.existing([("host-a", "docker")]).found] == ["web-1-s1"]
    plan = after.plan(replace(order, shadow="web-1-s2", specification=read.text))
    assert (plan.reason, plan.made_from) == ("", "live")
    assert CANARY not in str(plan)
    rows = {row["field"]: row["verdict"] for row in plan.rows}
    assert (rows["Config.Env.TOKEN"], rows["HostConfig.Memory"]) == ("same", "same")
    assert (rows["Name"], rows["Config.Labels.penumbra.id"]) == ("rewritten", "added")
    after.deprovision(order)
    assert result_of(after).reason == ""
    after.close()
    assert written_in(run_dir) == []


def test_neither_what_fails_nor_any_event_of_a_run_quotes_a_secret(
    engine: Engine,
    client: docker.DockerClient,
    provisioner: AnsibleProvisioner,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """From what was kept: such an original does not run. The engine quotes what it refuses."""
    live = original(client)
    order = engine.order(ADDRESS, 18080, "web-1-s1")
    (read,) = read_by(provisioner, order)
    kept = json.loads(base64.b64decode(read.text))
    live.remove(force=True)
    kept["Config"]["Env"] = [f"TOKEN={CANARY}", f"={CANARY}"]
    text = base64.b64encode(json.dumps(kept).encode()).decode()
    events: list[str] = []
    take = PlaybookRun._event
    monkeypatch.setattr(PlaybookRun, "_event", lambda run, one: [events.append(str(one)), take(run, one)][1])
    reason = made_by(provisioner, replace(order, specification=text)).reason
    assert "***" in reason
    assert CANARY not in reason
    assert shadow_of(client, engine) == [], "nothing is left of the try"
    assert len(events) > 3
    assert not [one for one in events if any(needle.decode() in one for needle in needles())]
