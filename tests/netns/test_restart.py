# SPDX-License-Identifier: Apache-2.0
"""The controller ends, is killed, comes back; packets don't notice, and nothing is lost or made twice."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.adapters import ansible_processes, pins
from controlplane.lab.topology import AP
from tests.netns.steered import (
    Steered,
    Traffic,
    assert_unharmed,
    children,
    eventually,
    passes,
    steered,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Steered]:
    with steered(tmp_path_factory.mktemp("site")) as made:
        made.start()
        yield made


@pytest.fixture
def running(site: Steered) -> Steered:
    """With a controller, whatever the test before did to it."""
    if site.controller is None or site.controller.poll() is not None:
        site.start()
    return site


@pytest.fixture
def shadow(running: Steered) -> str:
    """The name of a ready shadow; made if there is none."""
    found = running.shadow()
    return found["name"] if found.get("state") == "ready" else running.add_shadow()


def kill(site: Steered) -> None:
    assert site.controller is not None
    site.controller.kill()
    site.controller.wait()


def assert_both_serve(traffic: Traffic, name: str) -> None:
    served = Counter(one.served_by for one in traffic.now()[-60:])
    assert min(served["web-1"], served[name]) >= 8, served


def through_a_restart(site: Steered, name: str) -> Traffic:
    """Load with a shadow; the controller killed, some load without any, a new controller, more load."""
    before = site.shadow_processes()
    assert list(before.values()) == [name]
    traffic = site.traffic()
    traffic.flows(80)
    kill(site)
    killed_s = time.monotonic()
    traffic.flows(60)
    site.start()
    traffic.flows(120)
    assert len(traffic.since(killed_s)) >= 150
    assert_both_serve(traffic, name)
    assert site.shadow_processes() == before, "the shadow was started again"
    assert site.shadow()["state"] == "ready"
    assert any("adopted" in said for said in site.decisions())
    return traffic


def test_killed_and_restarted_under_load_no_request_fails_and_the_shadow_is_adopted(
    running: Steered, shadow: str
) -> None:
    assert_unharmed(through_a_restart(running, shadow).stop())


def test_negative_control_with_the_pins_removed_requests_fail(running: Steered, shadow: str) -> None:
    traffic = running.traffic()
    traffic.flows(60)
    kill(running)
    assert running.penumbra("unload", "--instance", running.instance).returncode == 0
    assert not pins.folder(running.instance).exists(), "the fault did not hit"
    passes(1.0)
    running.start()
    traffic.flows(60)
    with pytest.raises(AssertionError, match=r"failed|lost"):
        assert_unharmed(traffic.stop())


def _runs(instance: str) -> list[int]:
    """Processes of playbook runs of this instance."""
    return [pid for pid, label in ansible_processes.labels().items() if f"-{instance}-" in label]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_a_signal_ends_the_controller_and_all_its_children_and_steering_goes_on(
    running: Steered, shadow: str, number: signal.Signals
) -> None:
    traffic = running.traffic()
    other = running.penumbra("shadow", "add", "web-1", "--host", "host3", "--instance", running.instance)
    assert other.returncode == 0, other.stderr
    eventually(lambda: len(running.group()["shadows"]) == 2, 10, running.said)
    eventually(lambda: _runs(running.instance), 10, running.said)
    assert running.controller is not None
    mine = children(running.controller.pid)
    assert mine, "a provisioning run was to be under way"
    assert running.end(number) == 0, running.said()
    assert "Traceback" not in running.said()
    assert not _runs(running.instance)
    traffic.flows(60)
    assert_both_serve(traffic, shadow)
    assert_unharmed(traffic.stop())
    # What was ordered is not forgotten.
    running.start()
    eventually(lambda: [s["state"] for s in running.group()["shadows"]] == ["ready", "ready"], 40)
    names = set(running.shadow_processes().values())
    assert len(running.shadow_processes()) == len(names) == 2
    (second,) = names - {shadow}
    running.asked("shadow", "remove", second)
    eventually(lambda: [s["name"] for s in running.group()["shadows"]] == [shadow], 60, running.said)


def test_a_shadow_that_no_host_has_room_for_is_refused_at_once(running: Steered, shadow: str) -> None:
    order = ("shadow", "add", "web-1", "--host", "host3", "--instance", running.instance)
    for there in (2, 3):
        assert running.penumbra(*order).returncode == 0
        eventually(lambda there=there: len(running.group()["shadows"]) == there, 10, running.said)
    full = running.penumbra(*order)
    assert (full.returncode, full.stdout) == (1, "")
    assert full.stderr == "penumbra: no host has a free slot: host3\n"
    for one in running.group()["shadows"]:
        if one["name"] != shadow:
            running.asked("shadow", "remove", one["name"])
    eventually(lambda: [s["name"] for s in running.group()["shadows"]] == [shadow], 60, running.said)


def test_a_second_controller_and_unload_are_refused_while_one_runs(running: Steered) -> None:
    assert running.controller is not None
    pid = running.controller.pid
    second = running.penumbra("run", running.config)
    assert second.returncode == 1
    assert second.stderr == (
        f"penumbra: a controller of instance {running.instance!r} runs already (pid {pid})\n"
    )
    unload = running.penumbra("unload", "--instance", running.instance)
    assert (unload.returncode, unload.stdout) == (1, "")
    assert f"stop it first (kill {pid})" in unload.stderr
    assert running.penumbra("status", "--instance", running.instance).returncode == 0
    assert running.await_tick()["troubles"] == {}


def test_a_taken_metrics_port_is_said_and_traffic_goes_on(running: Steered) -> None:
    traffic = running.traffic()
    running.end()
    with running.lab.entered(AP), socket.create_server(("127.0.0.1", 9464)):
        process = running.start(ready=False)
        assert process.wait(30) == 1
    assert "metrics.port: 127.0.0.1:9464: Address already in use" in running.said()
    assert "Traceback" not in running.said()
    traffic.flows(40)
    assert_unharmed(traffic.stop())


def test_a_full_state_disk_costs_no_request_and_is_said(site: Steered) -> None:
    if site.controller is not None and site.controller.poll() is None:
        site.end()
    disk = site.folder / "disk"
    disk.mkdir()
    site.lab.run(AP, ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)])
    usual = site.state_dir
    try:
        site.state_dir = disk / "state"
        site.configure(site.configuration())
        site.start()
        traffic = site.traffic()
        _fill(disk / "ballast")
        eventually(lambda: "disk is full" in site.said(), 20, site.said)
        eventually(lambda: "penumbra_troubles 0.0" not in site.metrics(), 10, site.metrics)
        shown = site.penumbra("status", "--instance", site.instance)
        assert shown.returncode == 0, (shown.stdout, shown.stderr)
        assert "store does not work" in shown.stderr, (shown.stdout, shown.stderr)
        assert "disk is full" in shown.stderr, (shown.stdout, shown.stderr)
        assert "the last tick was" not in shown.stderr, "the status is as old as the full disk"
        traffic.flows(60)
        (disk / "ballast").unlink()
        eventually(lambda: "penumbra_troubles 0.0" in site.metrics(), 20, site.said)
        assert site.await_tick()["troubles"] == {}
        assert_unharmed(traffic.stop())
        assert site.end() == 0
    finally:
        if site.controller is not None and site.controller.poll() is None:
            kill(site)
        site.lab.run(AP, ["umount", "-l", str(disk)])
        site.state_dir = usual
        site.configure(site.configuration())


def _fill(path: os.PathLike[str]) -> None:
    with open(path, "wb", buffering=0) as file:  # noqa: PTH123 - unbuffered
        try:
            while True:
                file.write(bytes(4096))
        except OSError:
            return


def test_a_state_dir_that_can_not_be_written_is_said_and_traffic_goes_on(site: Steered) -> None:
    if site.controller is not None and site.controller.poll() is None:
        site.end()
    blocked = Path("/sys/penumbra")  # a file system that makes no folders, for root neither
    site.configure(site.configuration(state_dir=str(blocked / "state")))
    traffic = site.traffic()
    try:
        site.start(ready=False)
        eventually(lambda: "Operation not permitted" in site.said(), 20, site.said)
        assert str(blocked / "state") in site.said()
        eventually(lambda: "penumbra_up 1.0" in site.metrics(), 20, site.said)
        assert "penumbra_troubles 0.0" not in site.metrics()
        traffic.flows(60)
        assert_unharmed(traffic.stop())
        assert site.end() == 0, site.said()
        assert "Traceback" not in site.said()
    finally:
        if site.controller is not None and site.controller.poll() is None:
            kill(site)
        site.configure(site.configuration())


def test_unload_twice_is_fine_and_leaves_no_program(running: Steered) -> None:
    running.end()
    for said in ("unloaded", "was not loaded"):
        done = running.penumbra("unload", "--instance", running.instance)
        assert done.returncode == 0
        assert said in done.stdout
    links = json.loads(running.lab.run(AP, ["ip", "-j", "-d", "link", "show"]))
    assert not [one["ifname"] for one in links if "xdp" in one]
    assert not list(pins.LOCKS.glob(f"{running.instance}.*"))
