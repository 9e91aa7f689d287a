# SPDX-License-Identifier: Apache-2.0
"""The controller's trouble, for real: killed at every stage, signals, a lost store, everybody dead."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from controlplane.adapters import ansible_processes, pins
from controlplane.ports import StoreError
from tests.netns.steered import Steered, assert_unharmed, eventually, passes, steered

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Steered]:
    with steered(tmp_path_factory.mktemp("site")) as made:
        root = made.configuration()
        root["services"]["web"]["shadows"] |= {"drain": "6s", "warm_up": "2s"}
        made.configure(root)
        made.start()
        yield made


@pytest.fixture
def running(site: Steered) -> Iterator[Steered]:
    """With a controller and no shadow, whatever the test before did to it."""
    if site.controller is None or site.controller.poll() is not None:
        site.start()
    for shadow in site.group()["shadows"]:
        site.asked("shadow", "remove", shadow["name"])
    eventually(lambda: not site.group()["shadows"], 60, site.said)
    yield site
    for pid in site.shadow_processes():
        os.kill(pid, signal.SIGCONT)


def kill(site: Steered) -> None:
    assert site.controller is not None
    site.controller.kill()
    site.controller.wait()


# ---- kill -9 in a run (tests/netns/test_fault_matrix.py has the stages) -----------------------


def _labels() -> list[str]:
    return list(ansible_processes.labels().values())


def test_unload_after_a_kill_in_mid_run_ends_the_run_and_leaves_no_folder(running: Steered) -> None:
    running.asked("shadow", "add", "web-1")
    eventually(lambda: any(f"-{running.instance}-" in one for one in _labels()), 20, running.said)
    kill(running)
    assert any(f"-{running.instance}-" in one for one in _labels()), "the run ended by itself"
    assert running.penumbra("unload", "--instance", running.instance).returncode == 0
    assert not [one for one in _labels() if f"-{running.instance}-" in one]
    assert not list(pins.LOCKS.glob(f"{running.instance}/runs"))
    assert not list(pins.LOCKS.glob(f"{running.instance}.*"))


# ---- signals ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "numbers",
    [
        [signal.SIGHUP],
        [signal.SIGTERM, signal.SIGHUP, signal.SIGINT] * 20,
    ],
    ids=["its terminal goes", "all at once"],
)
def test_signals_however_many_end_it_once_and_steering_goes_on(
    running: Steered, numbers: list[signal.Signals]
) -> None:
    traffic = running.traffic()
    running.asked("shadow", "add", "web-1")
    eventually(lambda: any(f"-{running.instance}-" in one for one in _labels()), 20, running.said)
    process = running.controller
    assert process is not None
    for number in numbers:
        process.send_signal(number)
        time.sleep(0.01)
    assert process.wait(30) == 0, running.said()
    assert "Traceback" not in running.said()
    assert not [one for one in _labels() if f"-{running.instance}-" in one]
    traffic.flows(20)
    running.start()
    assert_unharmed(traffic.stop())


def test_under_nohup_the_end_of_its_terminal_is_not_its_end(running: Steered) -> None:
    running.end()
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # what nohup(1) does; children inherit it
    try:
        process = running.start()
    finally:
        signal.signal(signal.SIGHUP, before)
    process.send_signal(signal.SIGHUP)
    running.await_tick()
    assert process.poll() is None, running.said()
    assert running.end(signal.SIGTERM) == 0
    assert "SIGTERM: the controller ends, steering goes on" in running.said()


def test_stopped_for_long_it_goes_on_and_takes_nobody_for_dead(running: Steered) -> None:
    traffic = running.traffic()
    name = running.add_shadow()
    process = running.controller
    assert process is not None
    before = len(running.decisions())
    process.send_signal(signal.SIGSTOP)
    passes(8.0)
    process.send_signal(signal.SIGCONT)
    running.await_tick()
    passes(2.0)
    new = running.decisions()[: len(running.decisions()) - before]
    assert not [said for said in new if "unhealthy" in said or "down" in said], new
    assert running.shadow()["name"] == name
    assert running.shadow()["state"] == "ready"
    assert_unharmed(traffic.stop())


# ---- the store ----------------------------------------------------------------------------


def _delete(path: Path) -> None:
    for one in path.parent.glob(f"{path.name}*"):
        one.unlink()


def _spoil(path: Path) -> None:
    for part in ("", "-wal"):
        with path.with_name(path.name + part).open("r+b") as file:
            file.write(os.urandom(9000))


def _ready(site: Steered) -> str | None:
    """The ready shadow's name; None if there is none, or the store can't be read."""
    try:
        shadow = site.shadow()
    except (StoreError, LookupError):
        return None
    return str(shadow["name"]) if shadow.get("state") == "ready" else None


@pytest.mark.parametrize("harm", [_delete, _spoil], ids=["deleted", "filled with garbage"])
def test_a_store_lost_under_load_costs_nothing_and_is_there_again(
    running: Steered, harm: Callable[[Path], None]
) -> None:
    traffic = running.traffic()
    name = running.add_shadow()
    harm(running.state_dir / f"{running.instance}.db")
    passes(7.0)  # it is looked at every 5 s
    assert running.await_tick()["troubles"] == {}
    assert running.shadow()["state"] == "ready"
    assert running.penumbra("status", "--instance", running.instance).returncode == 0
    kill(running)
    before = running.shadow_processes()
    running.start(ready=False)
    # What it had read of a spoiled file it may have kept going with; a new process has to set it aside.
    eventually(lambda: _ready(running) == name, 30, running.said)
    assert running.shadow()["state"] == "ready"
    assert running.shadow_processes() == before
    assert_unharmed(traffic.stop())


# ---- everybody dead -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first_dead", "first_back"), [("web-1", "its shadow"), ("its shadow", "web-1")], ids=["live", "shadow"]
)
def test_an_endpoint_and_its_only_shadow_both_dead_are_served_again_as_they_come_back(
    running: Steered, first_dead: str, first_back: str
) -> None:
    site = running
    name = site.add_shadow()
    traffic = site.traffic(15.0)
    assert site.live is not None
    (shadow_pid,) = site.shadow_processes()
    pids = {"web-1": site.live.pid, "its shadow": shadow_pid}
    names = {"web-1": "web-1", "its shadow": name}
    second_dead = next(one for one in pids if one != first_dead)
    second_back = next(one for one in pids if one != first_back)

    def ups() -> dict[str, object]:
        return {"web-1": site.group()["up"], "its shadow": site.shadow()["up"]}

    try:
        os.kill(pids[first_dead], signal.SIGSTOP)
        eventually(lambda: ups()[first_dead] is False, 10, site.said)
        os.kill(pids[second_dead], signal.SIGSTOP)
        eventually(lambda: not any(ups().values()), 10, site.said)
        eventually(lambda: site.status()["services"][0]["fail_open"], 5, site.said)
        assert site.await_tick()["troubles"] == {}
        os.kill(pids[first_back], signal.SIGCONT)
        back_s = time.monotonic()
        eventually(lambda: ups()[first_back], 10, site.said)
        eventually(
            lambda: {one.served_by for one in traffic.now()[-15:]} == {names[first_back]}, 15, site.said
        )
        assert not site.status()["services"][0]["fail_open"]
        os.kill(pids[second_back], signal.SIGCONT)
        eventually(lambda: all(ups().values()), 10, site.said)
    finally:
        for pid in pids.values():
            os.kill(pid, signal.SIGCONT)
    settled_s = time.monotonic() + 3.5  # older requests were given up by then
    eventually(lambda: len(traffic.since(settled_s)) > 20, 20, site.said)
    assert traffic.since(back_s)
    assert_unharmed([one for one in traffic.stop() if one in traffic.since(settled_s)])
    assert site.shadow()["state"] == "ready"
