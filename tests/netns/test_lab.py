# SPDX-License-Identifier: Apache-2.0
"""The lab comes, serves, and goes without a trace."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from controlplane import config
from controlplane.lab import configuration, packets, processes, state
from controlplane.lab.lab import Lab
from controlplane.lab.network import LabError
from controlplane.lab.topology import Topology
from tests.netns.remains import remains
from tests.netns.steered import PENUMBRA, eventually

OWNER = """
import sys, signal
from controlplane.lab.lab import Lab
from controlplane.lab.topology import Topology
with Lab(Topology(sys.argv[1])) as lab:
    lab.endpoint("host1", name="web-1")
    print("up", flush=True)
    signal.pause()
"""


@pytest.fixture
def name() -> Iterator[str]:
    made = f"t{uuid.uuid4().hex[:8]}"
    yield made
    for left in (made, f"{made}b"):
        if state.read(left) is not None:
            Lab(Topology(left)).down()


def root_links() -> set[str]:
    shown = subprocess.run(
        ["ip", "-j", "link", "show", "type", "veth"], capture_output=True, check=True
    ).stdout
    return {link["ifname"] for link in json.loads(shown or b"[]") if link}


def owned(name: str) -> subprocess.Popen[bytes]:
    """Another process that has a lab with an endpoint."""
    owner = subprocess.Popen([sys.executable, "-c", OWNER, name], stdout=subprocess.PIPE)
    assert owner.stdout is not None
    assert owner.stdout.readline() == b"up\n"
    return owner


def test_a_lab_routes_from_clients_to_hosts_and_leaves_nothing(name: str) -> None:
    links = root_links()
    with Lab(Topology(name)) as lab:
        server = lab.endpoint("host2", name="web-2")
        with lab.connect("clients", "10.201.2.2", 8080) as client:
            client.sendall(b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n")
            assert b"X-Served-By: web-2" in client.recv(4096)
        status = lab.status()
        assert status.up
        assert status.pids == (server.pid,)
        assert len(status.namespaces) == 5
        assert root_links() == links
        assert remains(name)
    assert remains(name) == []
    assert server.poll() is not None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_takes_the_lab_down_with_all_that_runs_in_it(name: str, number: signal.Signals) -> None:
    owner = owned(name)
    owner.send_signal(number)
    assert owner.wait(10) != 0
    assert remains(name) == []


def test_after_a_kill_the_endpoint_dies_too_and_down_removes_the_rest(name: str) -> None:
    owner = owned(name)
    (server,) = Lab(Topology(name)).status().pids
    owner.kill()
    owner.wait()
    eventually(lambda: processes.identify(server) is None)
    assert Lab(Topology(name)).status().abandoned
    Lab(Topology(name)).down()
    assert remains(name) == []


def test_up_cleans_the_remains_of_a_dead_lab_and_strangers_in_its_namespaces(name: str) -> None:
    owner = owned(name)
    namespace = processes.NETNS / f"{name}-host3"
    stranger = subprocess.Popen(["nsenter", f"--net={namespace}", "sleep", "60"])
    try:
        eventually(lambda: Path(f"/proc/{stranger.pid}/ns/net").samefile(namespace), 5, "it enters")
        owner.kill()
        owner.wait()
        with Lab(Topology(name)) as lab:
            assert stranger.wait(5) == -signal.SIGTERM
            assert lab.status().pids == ()
    finally:
        stranger.kill()
        stranger.wait()
    assert remains(name) == []


def test_a_half_built_lab_is_removed(name: str) -> None:
    topology = Topology(name)
    state.write(
        state.State(
            name, processes.Identity(2**22 - 1, 1), namespaces=topology.namespaces, folder="/nonexistent"
        )
    )
    subprocess.run(["ip", "netns", "add", topology.namespaces[0]], check=True)
    (processes.NETNS / topology.namespaces[1]).touch()  # as left when creation is cut short
    Lab(topology).down()
    assert remains(name) == []


def test_a_living_lab_of_another_process_is_neither_replaced_nor_removed(name: str) -> None:
    owner = owned(name)
    try:
        with pytest.raises(LabError, match=f"made by process {owner.pid}"):
            Lab(Topology(name)).up()
        with pytest.raises(LabError, match=f"made by process {owner.pid}"):
            Lab(Topology(name)).down()
        assert Lab(Topology(name)).status().up
    finally:
        owner.terminate()
        owner.wait()


def test_a_foreign_namespace_of_that_name_is_left_alone(name: str) -> None:
    subprocess.run(["ip", "netns", "add", f"{name}-ap"], check=True)
    try:
        with pytest.raises(LabError, match=f"namespace {name}-ap exists and is not this lab's"):
            Lab(Topology(name)).up()
        Lab(Topology(name)).down()
        assert (processes.NETNS / f"{name}-ap").exists()
    finally:
        subprocess.run(["ip", "netns", "delete", f"{name}-ap"], check=True)


def test_a_recorded_pid_that_now_is_another_process_is_not_killed(name: str) -> None:
    bystander = subprocess.Popen(["sleep", "60"])
    try:
        state.write(
            state.State(name, None, processes=(processes.Identity(bystander.pid, 1),), folder="/nonexistent")
        )
        Lab(Topology(name)).down()
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_a_lab_that_stays_outlives_its_maker_until_it_is_taken_down(name: str) -> None:
    program = (
        "import sys; from controlplane.lab.lab import Lab; from controlplane.lab.topology import Topology\n"
        "lab = Lab(Topology(sys.argv[1]), stay=True); lab.up(); lab.endpoint('host1', name='web-1');"
        "lab.leave()"
    )
    subprocess.run([sys.executable, "-c", program, name], check=True)
    lab = Lab(Topology(name))
    assert lab.status().up
    assert len(lab.status().pids) == 1
    with pytest.raises(LabError, match=f"lab down --name {name}"):
        lab.up()
    lab.down()
    assert remains(name) == []


def test_what_is_still_mounted_in_a_labs_folder_is_unmounted_and_not_emptied(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "kept").touch()
    lab = Lab(Topology(name))
    lab.up()
    mounted = lab.folder / "engine/data"
    mounted.mkdir(parents=True)
    subprocess.run(["mount", "--bind", tmp_path, mounted], check=True)
    lab.down()
    assert (tmp_path / "kept").exists()
    assert remains(name) == []


def test_two_labs_at_once_do_not_meet(name: str) -> None:
    with Lab(Topology(name)) as one, Lab(Topology(f"{name}b")) as other:
        one.endpoint("host1", name="one")
        with pytest.raises(OSError, match="refused"):
            other.connect("clients", "10.201.1.2", 8080)
        one.down()
        other.endpoint("host1", name="other")
        other.connect("clients", "10.201.1.2", 8080).close()
    assert remains(name) == []


def test_an_endpoint_that_can_not_start_says_why(name: str) -> None:
    with Lab(Topology(name)) as lab:
        lab.endpoint("host1", name="first")
        with pytest.raises(LabError, match=r"endpoint second ended: .*address already in use"):
            lab.endpoint("host1", name="second")


def test_crafted_packets_leave_as_they_are_and_are_caught_behind_the_access_point(name: str) -> None:
    client, host = IPv4Address("198.51.100.2"), IPv4Address("10.201.1.2")
    with Lab(Topology(name)) as lab, packets.catching(lab, "host1") as caught:
        packets.send(
            lab,
            "clients",
            [packets.udp(client, host, 40000, 53, b"odd"), packets.tcp(client, host, 40001, 80)],
        )
        datagram = caught.until(lambda packet: "UDP" in packet and packet["UDP"].dport == 53)
        syn = caught.until(lambda packet: "TCP" in packet and packet["TCP"].dport == 80)
    assert datagram is not None
    assert bytes(datagram["UDP"].payload)[:3] == b"odd"
    assert datagram["IP"].ttl == 63
    assert syn is not None
    assert str(syn["TCP"].flags) == "S"


def test_crafted_packets_are_sent_and_answers_shown_by_the_command(name: str) -> None:
    def sent(*options: str) -> subprocess.CompletedProcess[str]:
        argv = [PENUMBRA, "lab", "send", "--name", name, *options]
        return subprocess.run(argv, capture_output=True, text=True, check=False)

    assert "is not up" in sent().stderr
    with Lab(Topology(name)) as lab:
        lab.endpoint("host1", name="web-1")
        shown = sent("--to", "10.201.1.2:8080", "--source-port", "41000", "--count", "2").stdout
        assert re.search(r"198\.51\.100\.2:41001 > 10\.201\.1\.2:\S+ S\b", shown), shown
        assert re.search(r"10\.201\.1\.2:\S+ > 198\.51\.100\.2:41000 SA\b", shown), shown
    for wrong in (
        ["--to", "web"],
        ["--from", "ap"],
        ["--flags", "X"],
        ["--source-port", "65535", "--count", "2"],
    ):
        refused = sent(*wrong)
        assert refused.returncode == 2
        assert wrong[0] in refused.stderr or "--count" in refused.stderr


def test_the_configuration_for_a_lab_is_accepted() -> None:
    topology = Topology("lab")
    choices = configuration.Choices(
        [configuration.LiveEndpoint("host1", "web-1", capacity=40)], shadow_hosts={"host2": 2}
    )
    made = config.parse(configuration.written(topology, choices, Path("/run/x")))
    assert made.interfaces == ("clients", "host1", "host2", "host3")
    assert made.services["web"].vip == topology.vip
    assert made.hosts["host2"].variables["netns"] == "lab-host2"


@pytest.mark.parametrize("bad", ["", "Lab", "a/b", "-lab", "x" * 25])
def test_a_name_that_can_not_be_a_namespace_is_refused(bad: str) -> None:
    with pytest.raises(ValueError, match="lab name"):
        Topology(bad)
