# SPDX-License-Identifier: Apache-2.0
"""Faults at named steps of a shadow's life: where the system is held, what is hit, and what is left of it.

A step is reached when the store has written a state (the controller stops itself there, SIGSTOP), or when a
playbook has come so far (it waits there). So a fault hits where it should, however fast the machine is.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path

from controlplane import model
from controlplane.adapters import ansible_processes, sqlite
from controlplane.adapters.ansible import shipped_playbooks
from controlplane.adapters.clock import MachineClock
from controlplane.adapters.dataplane import MapDataplane
from controlplane.addresses import with_port
from controlplane.lab import processes
from tests.netns.steered import DETECTED_S, Steered, Traffic, eventually, shadow_processes

BARRIER = """#!/bin/sh
# FOLDER STEP: says that the run has come here, and waits while the step is armed.
[ -e "$1/armed-$2" ] || exit 0
echo $$ > "$1/new-$2" && mv "$1/new-$2" "$1/reached-$2"
while [ -e "$1/armed-$2" ]; do sleep 0.02; done
"""

STOPPING = """
import os, signal, sys
from pathlib import Path
from controlplane.adapters.sqlite import SqliteStore
from controlplane.cli import main

folder = Path(sys.argv.pop(1))
put, forget = SqliteStore.put_shadow, SqliteStore.forget_shadow

def stop_at(step):
    if (folder / f"armed-{step}").exists():
        (folder / f"reached-{step}").write_text(str(os.getpid()))
        os.kill(os.getpid(), signal.SIGSTOP)

def put_shadow(self, shadow):
    put(self, shadow)
    stop_at(shadow.state.value)

def forget_shadow(self, name):
    stop_at("forgetting")
    forget(self, name)

SqliteStore.put_shadow, SqliteStore.forget_shadow = put_shadow, forget_shadow
main()
"""

BOOKS = {"provision.yml": ("begun", "made"), "deprovision.yml": ("ending", "ended")}
"""Playbook -> its steps before and after the target's role."""
CUT = """
table inet cut {
  counter hit { }
  chain in { type filter hook prerouting priority raw; counter name hit drop; }
  chain out { type filter hook output priority raw; counter name hit drop; }
}
"""


@dataclass(frozen=True)
class Left:
    """What there is of shadows, as others than the controller see it."""

    records: Mapping[str, str]
    """In the store: name -> state."""
    steered_to: Mapping[str, str]
    """In the maps: name -> ADDRESS:PORT, of those that are not down."""
    serving: Mapping[str, str]
    """On the hosts: name -> where its process (or container) serves."""
    runs: tuple[str, ...]
    """Processes and folders of playbook runs."""
    files: tuple[str, ...]
    """What playbooks noted of shadows."""


@dataclass
class Steps:
    """Steps that are armed and reached, as files of a folder."""

    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir()

    def arm(self, step: str) -> None:
        (self.folder / f"reached-{step}").unlink(missing_ok=True)
        (self.folder / f"armed-{step}").touch()

    def await_reached(self, step: str, said: Callable[[], str]) -> int:
        """The process that is held there: the controller, or the playbook's last one."""
        mark = self.folder / f"reached-{step}"
        eventually(mark.exists, 40, lambda: f"step {step}: {said()}")
        return int(mark.read_text())

    def disarm(self) -> None:
        for mark in self.folder.glob("armed-*"):
            mark.unlink()


def with_steps(books: Path, steps: Steps) -> Path:
    """A copy of the shipped playbooks that can be held at their steps."""
    shutil.copytree(shipped_playbooks(), books, ignore=shutil.ignore_patterns("__pycache__"))
    barrier = steps.folder / "barrier"
    barrier.write_text(BARRIER)
    barrier.chmod(0o755)
    for book, (before, after) in BOOKS.items():
        text = (books / book).read_text()
        tasks = "  tasks:\n"
        assert text.count(tasks) == 1, book
        held = (
            "    - name: Step {1}\n      ansible.builtin.command: {0} {2} {1}\n      delegate_to: localhost\n"
        )
        first, last = (held.format(barrier, step, steps.folder) for step in (before, after))
        (books / book).write_text(text.replace(tasks, tasks + first) + last)
    return books


@dataclass(frozen=True)
class Row:
    """What is hit at which step, and what there is in the end."""

    victim: str
    step: str
    final: str

    @property
    def name(self) -> str:
        return f"{self.victim} at {self.step}"

    @property
    def removes(self) -> bool:
        """The step is one of a removal."""
        return self.step in ("draining", "removing", "ending", "ended", "forgetting")

    @property
    def left_alone(self) -> bool:
        """Nothing is sent to the shadow any more."""
        return self.removes and self.step != "draining"


def rows(table: str) -> list[Row]:
    """Of lines VICTIM STEP FINAL; after a ``#`` comes a remark."""
    lines = (line.partition("#")[0].split() for line in table.splitlines())
    return [Row(*words) for words in lines if words]


@dataclass
class Matrix:
    """A site with one live endpoint under load, whose shadows and their makers are hit."""

    site: Steered
    steps: Steps
    serving: Callable[[], Mapping[str, str]]
    """What serves on the hosts: shadow -> ADDRESS:PORT."""
    load: Traffic = field(init=False)
    program: str = STOPPING
    """The controller's."""
    final_s: float = 90.0
    """How long it may take until all is as it should be."""

    # ---- one row -----------------------------------------------------------------------

    def play(self, row: Row) -> str:
        """Raises ``AssertionError`` when the fault did not hit, or what is left is not as it should be. What
        it hit."""
        if row.removes:
            name = self.with_shadow()
            order = ("shadow", "remove", name)
        else:
            self.without_shadow()
            order = ("shadow", "add", "web-1")
        before = frozenset(pids())
        self.steps.arm(row.step)
        try:
            self.site.asked(*order)
            held = self.steps.await_reached(row.step, self.site.said)
            hit_s = time.monotonic()
            proof = getattr(self, f"hit_{row.victim}")(row, held, before)
        finally:
            self.steps.disarm()
            self.go_on()
        self.await_final(row.final)
        self.assert_load_kept(row, hit_s)
        return str(proof)

    def with_shadow(self) -> str:
        if self.site.shadow().get("state") != "ready":
            if not self.site.shadow():
                self.site.asked("shadow", "add", "web-1")
            self.await_final("serves")
        return str(self.site.shadow()["name"])

    def without_shadow(self) -> None:
        if name := self.site.shadow().get("name"):
            self.site.asked("shadow", "remove", name)
        self.await_final("gone")

    def await_final(self, final: str) -> None:
        """And that it stays so: nobody is still about to change it."""
        check, states = {"serves": (serves, ["ready"]), "gone": (gone, [])}[final]

        def told() -> str:
            return f"{final}: {self.left()}\n{self.site.said()[-3000:]}"

        # The records first: they cost little to read, and are the last to be so.
        eventually(lambda: list(self.records().values()) == states and check(self.left()), self.final_s, told)
        self.site.await_tick()
        eventually(
            lambda: self.site.await_tick()["troubles"] == {}, 40, lambda: self.site.status()["troubles"]
        )
        assert check(self.left()), told()

    def assert_load_kept(self, row: Row, hit_s: float) -> None:
        """New flows fail only while a host that took them is not known to be dead; else none does."""
        harmless_s = DETECTED_S + 4.0 if row.victim in ("host", "network") else 0.0
        failed = [one for one in self.load.since(hit_s + harmless_s) if one.failed]
        assert not failed, f"{len(failed)} requests failed, first: {failed[0]}"
        assert self.load.since(hit_s), "there was no load"

    # ---- what is there -----------------------------------------------------------------

    def records(self) -> dict[str, str]:
        place = f"file:{sqlite.path_of(self.site.state_dir, self.site.instance)}?mode=ro"
        with closing(sqlite3.connect(place, uri=True)) as db:
            found = db.execute("SELECT name, record FROM shadow").fetchall()
        return {name: json.loads(record)["state"] for name, record in found}

    def left(self) -> Left:
        run = Path("/run/penumbra") / self.site.instance
        labels = [one for one in ansible_processes.labels().values() if f"-{self.site.instance}-" in one]
        return Left(
            records=self.records(),
            steered_to=self.dumped(),
            serving=self.serving(),
            runs=(*labels, *(path.name for path in (run / "runs").glob("*"))),
            files=tuple(path.stem for path in (run / "shadows").glob("*.json")),
        )

    def dumped(self) -> dict[str, str]:
        """Of the maps: shadows that are not down -> ADDRESS:PORT."""
        dataplane = MapDataplane.open(self.site.instance, MachineClock())
        try:
            members = dataplane.installed().members.values()
        finally:
            dataplane.close()
        shadows = [one for one in members if one.role is model.Role.SHADOW and not one.down]
        return {one.name: with_port(one.address, one.port) for one in shadows}

    # ---- what is hit; each says what shows that it was ------------------------------------

    def hit_controller(self, row: Row, held: int, before: frozenset[int]) -> str:
        controller = self.site.controller
        assert controller is not None
        controller.kill()
        assert controller.wait(10) == -signal.SIGKILL
        return f"controller {controller.pid} killed, record {dict(self.left().records)}"

    def hit_ansible(self, row: Row, held: int, before: frozenset[int]) -> str:
        """All processes of the run, from the one that is held up to the controller."""
        chain = [pid for pid in ancestors(held) if pid not in before]
        assert chain, "no run was under way"
        for pid in reversed(chain):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        eventually(lambda: not any(map(alive, chain)), 10, "Ansible ends")
        return f"{len(chain)} processes of the run killed"

    def hit_host(self, row: Row, held: int, before: frozenset[int]) -> str:
        """It loses its power, and boots with nothing running."""
        host = self.host()
        died: list[int] = []
        try:
            packets = self.cut_off(
                host, lambda: died.extend(self.power_off(host)), 0 if row.left_alone else 3
            )
        finally:
            self.boot(host)
        assert died, f"nothing ran on {host}"
        return f"{host}: {len(died)} processes died, {packets} packets lost"

    def power_off(self, host: str) -> list[int]:
        """Which processes died."""
        found = processes.residents((self.site.lab.topology.namespace(host),))
        processes.end(found, 0.0)
        return [one.pid for one in found]

    def boot(self, host: str) -> None:
        """What runs on it without being asked for."""

    def hit_network(self, row: Row, held: int, before: frozenset[int]) -> str:
        host = self.host()
        return f"{host}: {self.cut_off(host, lambda: None, 3)} packets lost"

    def cut_off(self, host: str, meanwhile: Callable[[], object], packets: int) -> int:
        """It neither takes nor sends anything until so many packets were lost. How many were."""
        lab = self.site.lab
        lab.run(host, ["nft", CUT])
        try:
            meanwhile()
            self.steps.disarm()
            self.go_on()

            def lost() -> int:
                told = json.loads(lab.run(host, ["nft", "-j", "list", "counter", "inet", "cut", "hit"]))
                return next(int(one["counter"]["packets"]) for one in told["nftables"] if "counter" in one)

            eventually(lambda: lost() >= packets, 20, "packets are lost at the cut")
            return lost()
        finally:
            lab.run(host, ["nft", "delete table inet cut"])

    def host(self) -> str:
        (shadow,) = self.site.status()["services"][0]["groups"][0]["shadows"]
        return str(shadow["host"])

    def go_on(self) -> None:
        """The controller, if it was held or killed."""
        controller = self.site.controller
        if controller is not None and controller.poll() is None:
            controller.send_signal(signal.SIGCONT)
        else:
            self.site.start(self.argv)

    @property
    def argv(self) -> list[str]:
        return [sys.executable, "-c", self.program, str(self.steps.folder)]


def serves(left: Left) -> bool:
    """One shadow, the same for everybody."""
    return (
        list(left.records.values()) == ["ready"]
        and left.steered_to == left.serving
        and left.serving.keys() == left.records.keys()
        and not left.runs
        and set(left.files) <= left.records.keys()
    )


def gone(left: Left) -> bool:
    return left == Left({}, {}, {}, (), ())


def processes_of(instance: str) -> dict[str, str]:
    """Shadows that are processes: name -> where it serves, by the labels in its environment."""
    found: dict[str, str] = {}
    for pid, name in shadow_processes(instance).items():
        try:
            environment = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").split("\0")
        except OSError:
            continue
        of = dict(one.split("=", 1) for one in environment if one.startswith("PENUMBRA_"))
        if of:
            assert name not in found, f"two processes of {name}"
            found[name] = with_port(ip_address(of["PENUMBRA_ADDRESS"]), int(of["PENUMBRA_PORT"]))
    return found


def pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def ancestors(pid: int) -> list[int]:
    """Of a process, itself first."""
    found = []
    while pid > 1:
        found.append(pid)
        try:
            pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
    return found


def alive(pid: int) -> bool:
    return ansible_processes.start_ticks(pid) is not None
