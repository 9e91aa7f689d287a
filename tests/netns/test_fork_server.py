# SPDX-License-Identifier: Apache-2.0
"""Playbooks run in forks of one process that has Ansible imported: what dies, and what it may leave."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from controlplane import requests
from controlplane.adapters import ansible_forks, ansible_processes
from controlplane.adapters.ansible import AnsibleProvisioner
from controlplane.adapters.ansible_forks import ForkServer
from controlplane.adapters.ansible_run import Outcome, PlaybookRun
from controlplane.adapters.clock import MachineClock
from controlplane.loop import Controller
from controlplane.model import ShadowState
from tests.fakes import FakeClock, FakeDataplane, FakeMetrics, FakeProber, FakeStore
from tests.netns.steered import eventually
from tests.world import config

ROOT = Path(__file__).resolve().parents[2]
HOSTS = {"here": {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}}
TELLS = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.set_stats:
        data: {told: "{{ %s }}"}
"""
HANGS = """
- hosts: all
  gather_facts: false
  tasks:
    - name: Wait for ever
      ansible.builtin.command: sleep 9875
"""


@dataclass
class Place:
    folder: Path
    server: ForkServer
    count: int = 0

    def label(self) -> str:
        return f"{ansible_processes.owner_label()}-forks-{self.count}"

    def run(self, playbook: str, timeout_s: float = 30.0) -> Outcome:
        self.count += 1
        label = self.label()
        runs = self.folder / "runs"
        runs.mkdir(exist_ok=True)
        path = self.folder / f"books/{self.count}.yml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(playbook)
        return PlaybookRun(path, HOSTS, {}, self.server).execute(runs, label, timeout_s, time.monotonic)

    def tells(self, expression: str) -> object:
        outcome = self.run(TELLS % expression)
        assert outcome.reason == ""
        return outcome.data["told"]

    def labelled(self) -> dict[int, bytes]:
        """Processes of its runs, and what they are."""
        ours = f"{ansible_processes.owner_label()}-forks-"
        return {
            pid: Path(f"/proc/{pid}/cmdline").read_bytes()
            for pid, label in ansible_processes.labels().items()
            if label.startswith(ours)
        }

    def hanging(self) -> tuple[threading.Thread, list[Outcome]]:
        """A run that has reached its module, which waits for ever."""
        outcomes: list[Outcome] = []
        thread = threading.Thread(target=lambda: outcomes.append(self.run(HANGS)))
        thread.start()
        eventually(lambda: any(what.startswith(b"sleep\0") for what in self.labelled().values()))
        return thread, outcomes


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("forks")
    server = ForkServer(folder / "server", time.monotonic)
    yield Place(folder, server)
    server.close()
    assert not (folder / "server").exists()


def test_a_run_is_a_fork_with_its_label_its_own_environment_and_files(place: Place) -> None:
    first = place.tells("lookup('pipe', 'echo $PPID') + ' ' + lookup('env', 'TMPDIR')")
    second = place.tells("lookup('pipe', 'echo $PPID') + ' ' + lookup('env', 'TMPDIR')")
    server = place.server.process_id()
    assert server is not None
    assert place.server.trouble == ""
    pids, folders = zip(*(str(told).split(" ") for told in (first, second)), strict=True)
    assert len({*pids, str(server)}) == 3
    assert len(set(folders)) == 2
    assert all(str(place.folder / "runs") in folder for folder in folders)
    assert list((place.folder / "runs").iterdir()) == []
    assert place.labelled() == {}
    resident = next(line for line in Path(f"/proc/{server}/status").read_text().splitlines() if "RSS" in line)
    print(f"the server's memory: {resident}")
    assert len(list(Path(f"/proc/{server}/task").iterdir())) == 1, "what forks has one thread"


def _shim(place: Place) -> int:
    return next(pid for pid, what in place.labelled().items() if b"server/ansible-playbook" in what)


def _fork(place: Place) -> int:
    """The first of those that are the server's forks: the run itself."""
    server = place.server.process_id()
    return min(pid for pid in place.labelled() if _parent(pid) == server)


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


@pytest.mark.parametrize(
    ("victim", "reason"),
    [
        pytest.param(_shim, "ended with status", id="the shim"),
        pytest.param(_fork, "ended with status 137", id="the fork"),
        pytest.param(
            lambda place: place.server.process_id(), "the server that ran this playbook", id="the server"
        ),
    ],
)
def test_who_dies_by_kill_9_leaves_nothing_and_others_go_well(
    place: Place, victim: Callable[[Place], int], reason: str
) -> None:
    place.tells("1")
    thread, outcomes = place.hanging()
    assert len(hangs := place.labelled()) >= 4  # shim, fork, worker, module
    pid = victim(place)
    assert place.tells("'beside it'") == "beside it"
    assert hangs.keys() == place.labelled().keys()
    began = ansible_processes.start_ticks(pid)
    os.kill(pid, signal.SIGKILL)
    thread.join(20)
    assert reason in outcomes[0].reason
    assert ansible_processes.start_ticks(pid) != began
    assert place.labelled() == {}
    assert place.tells("7 * 6") == 42
    server = place.server.process_id()
    assert server is not None
    assert ansible_processes.start_ticks(server) is not None


def test_negative_control_whose_label_is_not_looked_for_lives_on_when_its_shim_dies(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(ansible_processes, "end_run", lambda label: True)
        thread, _ = place.hanging()
        os.kill(_shim(place), signal.SIGKILL)
        thread.join(20)
        assert any(what.startswith(b"sleep\0") for what in place.labelled().values())
    assert ansible_processes.end_run(place.label())
    assert place.labelled() == {}


CONTROLLER = """
import sys, time
from pathlib import Path
from tests.netns.test_fork_server import HANGS, ForkServer, Place
folder = Path(sys.argv[1])
place = Place(folder, ForkServer(folder / "server", time.monotonic))
place.tells("1")
print(place.server.process_id(), flush=True)
place.run(HANGS)
"""


def test_kill_9_of_the_controller_ends_the_server_and_its_runs(tmp_path: Path) -> None:
    controller = subprocess.Popen(
        [sys.executable, "-c", CONTROLLER, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert controller.stdout is not None
    server = int(controller.stdout.readline())
    ours = f"{controller.pid}-{ansible_processes.start_ticks(controller.pid)}-"

    def labelled() -> list[int]:
        return [pid for pid, label in ansible_processes.labels().items() if label.startswith(ours)]

    eventually(lambda: len(labelled()) >= 4)
    controller.kill()
    controller.wait()
    eventually(lambda: not labelled(), 10)
    eventually(lambda: ansible_processes.start_ticks(server) is None, 10)


def _is_forked(place: Place, playbook: Path) -> bool:
    """A run of this playbook did not become the installed command."""
    (place.folder / "runs").mkdir(exist_ok=True)
    playbook.write_text(TELLS % "lookup('pipe', 'cat /proc/$PPID/cmdline')")
    run = PlaybookRun(playbook, HOSTS, {}, place.server)
    outcome = run.execute(place.folder / "runs", place.label(), 30.0, time.monotonic)
    return "ansible_server" in str(outcome.data["told"])


def test_playbooks_of_another_folder_are_forked_unless_that_may_matter(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.tells("1")
    assert _is_forked(place, tmp_path / "play.yml")
    (tmp_path / "ansible.cfg").write_text("[defaults]\nforks = 3\n")
    assert not _is_forked(place, tmp_path / "play.yml")
    (tmp_path / "ansible.cfg").unlink()
    monkeypatch.setenv("ANSIBLE_FORKS", "7")
    assert not _is_forked(place, tmp_path / "play.yml")


def test_what_is_found_in_the_folder_later_takes_effect_at_once(place: Place) -> None:
    """ansible.cfg, and plugins in place of Ansible's own, are read by a run, not by the server."""
    forks = "lookup('config', 'DEFAULT_FORKS')"
    assert place.tells(forks) == 5
    books = place.folder / "books"
    (books / "ansible.cfg").write_text("[defaults]\nforks = 3\n")
    try:
        assert place.tells(forks) == 3
    finally:
        (books / "ansible.cfg").unlink()
    own = books / "action_plugins/set_stats.py"
    own.parent.mkdir()
    own.write_text(
        "from ansible.plugins.action import ActionBase\n"
        "class ActionModule(ActionBase):\n"
        "    def run(self, tmp=None, task_vars=None):\n"
        "        return {'failed': True, 'msg': 'my own'}\n"
    )
    try:
        assert "my own" in place.run((TELLS % "1").replace("ansible.builtin.", "")).reason
    finally:
        own.unlink()
    assert place.tells(forks) == 5


MADE = """
- hosts: all
  gather_facts: false
  tasks:
    - ansible.builtin.set_stats:
        data: {address: "10.9.0.{{ order.parent.name.split('-')[1] }}", port: 8080}
"""


class Late(Controller):
    """Knows how late each of its ticks began, behind the cadence of the first."""

    def tick(self) -> None:
        self.began_s = [*getattr(self, "began_s", ()), time.monotonic()]
        super().tick()

    def late_s(self) -> list[float]:
        return [at - self.began_s[0] - k * self._config.tick_s for k, at in enumerate(self.began_s)]


def ten_at_once(folder: Path, threads: int, pause_s: float) -> list[float]:
    """How late ticks began while ten shadows were made at once, by playbooks.

    :param pause_s: that a tick waits for the runs.
    """
    (folder / "books").mkdir()
    for name in ("provision.yml", "deprovision.yml"):
        (folder / "books" / name).write_text(MADE)
    whole = config(endpoints=10)
    local = {name: replace(one, slots=9, variables=HOSTS["here"]) for name, one in whole.hosts.items()}
    whole = replace(whole, instance="ten", hosts=local)
    clock, fake, store = MachineClock(), FakeClock(), FakeStore()
    provisioner = AnsibleProvisioner(
        "ten", local, clock, folder / "books", folder / "run", threads, on_ended=clock.wake
    )
    controller = Late(
        *(whole, FakeDataplane(fake), FakeProber(fake), provisioner, store, clock, FakeMetrics()),
        show=lambda text: time.sleep(pause_s if provisioner.running() else 0.0),
    )
    thread = threading.Thread(target=controller.run)
    thread.start()
    try:
        for k in range(1, 11):
            requests.request_shadow_add(store, f"web-{k}")
        made = {ShadowState.WARMING, ShadowState.READY}
        eventually(
            lambda: len(store.records) == 10 and all(one.state in made for one in [*store.records.values()]),
            60.0,
            lambda: store.rows[-3:],
        )
    finally:
        controller.stop()
        clock.wake()
        thread.join()
        provisioner.close()
    return controller.late_s()


@pytest.mark.calm
def test_ten_provisionings_at_once_leave_every_tick_on_time(tmp_path: Path) -> None:
    late = ten_at_once(tmp_path, threads=10, pause_s=0.0)
    assert len(late) >= 2
    assert max(late) < 1.0, late


@pytest.mark.calm
def test_negative_control_a_loop_that_waits_for_runs_is_late(tmp_path: Path) -> None:
    assert max(ten_at_once(tmp_path, threads=2, pause_s=2.5)) >= 1.0


@pytest.mark.parametrize("fault", ["no such module", "a file in the folder's place"])
def test_without_a_server_playbooks_run_all_the_same_and_it_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    if fault == "no such module":
        broken = types.SimpleNamespace(__name__="controlplane.nothing", ROOM=256)
        monkeypatch.setattr(ansible_forks, "ansible_server", broken)
    else:
        (tmp_path / "server").write_text("")
    place = Place(tmp_path, ForkServer(tmp_path / "server", time.monotonic))
    try:
        assert place.tells("7 * 6") == 42
        assert place.tells("7 * 6") == 42
        assert place.server.trouble.startswith("playbooks run without the server")
        assert place.server.process_id() is None
    finally:
        place.server.close()
