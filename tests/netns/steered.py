# SPDX-License-Identifier: Apache-2.0
"""The whole system in a lab: an access point with a real controller, real endpoints, real traffic."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import yaml

from controlplane.adapters import loader, pins, status_file
from controlplane.adapters.ansible import shipped_playbooks
from controlplane.adapters.sqlite import SqliteStore
from controlplane.addresses import with_port
from controlplane.cli import instance as instances
from controlplane.lab.configuration import Choices, LiveEndpoint, written
from controlplane.lab.lab import Lab
from controlplane.lab.records import Follower, Record
from controlplane.lab.topology import AP, Topology

PENUMBRA = str(Path(sys.executable).with_name("penumbra"))
INTERVAL_S, TIMEOUT_S, FALL = 0.3, 0.25, 3
DETECTED_S = INTERVAL_S * FALL + 1.0
"""After so long nobody sends to the dead any more."""
SHADOW_LABEL = b"PENUMBRA_SHADOW="


def eventually(condition: Callable[[], object], within_s: float = 30.0, what: object = "") -> None:
    """``what``: said when it did not come to pass; called if it can be."""
    deadline = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {within_s:g} s: {what() if callable(what) else what}")
        time.sleep(0.05)


def passes(seconds: float) -> None:
    """Lets time go by, where the passing of time is the matter."""
    until = time.monotonic() + seconds
    eventually(lambda: time.monotonic() >= until, seconds + 5)


@dataclass
class Traffic:
    """Requests that leave whatever becomes of them, from ``controlplane.lab.traffic``."""

    process: subprocess.Popen[bytes]
    path: Path
    lab: Lab
    label: str
    seen: list[Record] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._follower = Follower(self.path)

    def now(self) -> list[Record]:
        """What has ended so far."""
        self.seen += self._follower.read()
        return self.seen

    @property
    def start_s(self) -> float:
        """``intended_s`` = 0 on ``time.monotonic``."""
        self.now()
        assert self._follower.start is not None
        return self._follower.start.start_monotonic_s

    def since(self, monotonic_s: float) -> list[Record]:
        """Requests that were due after that moment and have ended."""
        return [one for one in self.now() if self.start_s + one.intended_s >= monotonic_s]

    def flows(self, count: int, within_s: float = 20.0) -> None:
        """Waits for that many more answers."""
        before = len(self.now())
        eventually(lambda: len(self.now()) >= before + count, within_s, f"{count} more answers")

    def stop(self) -> list[Record]:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(20) == 0, self.lab.tail(self.label)
        return self.now()


def assert_unharmed(records: Sequence[Record]) -> None:
    """No request failed, and no connection was lost or changed its endpoint."""
    assert len(records) > 10, "there was no traffic to speak of"
    failed = [one for one in records if one.failed]
    assert not failed, f"{len(failed)} of {len(records)} failed, first: {failed[0]}"
    assert not [one for one in records if one.retries], "a kept connection was lost"
    served: dict[int, set[str | None]] = defaultdict(set)
    for one in records:
        served[one.connection].add(one.served_by)
    moved = {number: names for number, names in served.items() if len(names) > 1}
    assert not moved, f"connections changed their endpoint: {moved}"


def shadow_processes(instance: str) -> dict[int, str]:
    """Process -> the name of the shadow that it is, by the labels in its environment."""
    found: dict[int, str] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"PENUMBRA_INSTANCE={instance}".encode() in environment:
            names = [one for one in environment if one.startswith(SHADOW_LABEL)]
            found |= {int(entry.name): name.removeprefix(SHADOW_LABEL).decode() for name in names}
    return found


def playbooks_with(folder: Path, place: str, text: str) -> Path:
    """A copy of the shipped playbooks, with another text in the file at ``place``."""
    shutil.copytree(shipped_playbooks(), folder, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / place).write_text(text)
    return folder


def children(pid: int) -> list[str]:
    """All descendants, ``PID COMMAND`` each."""
    listed = subprocess.run(
        ["ps", "-e", "-o", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    )
    parents: dict[int, list[tuple[int, str]]] = defaultdict(list)
    for line in listed.stdout.splitlines():
        own, parent, command = line.split(None, 2)
        parents[int(parent)].append((int(own), command))
    found: list[str] = []
    waiting = [pid]
    while waiting:
        for child, command in parents[waiting.pop()]:
            found.append(f"{child} {command}")
            waiting.append(child)
    return found


class Steered:
    """A lab whose access point is an instance of Penumbra's; ``folder`` is the test's own."""

    def __init__(self, folder: Path, lab: Lab) -> None:
        self.folder = folder
        self.lab = lab
        self.instance = lab.topology.lab
        self.config = folder / "penumbra.yml"
        self.state_dir = folder / "state"
        self.controller: subprocess.Popen[bytes] | None = None
        self.live: subprocess.Popen[bytes] | None = None
        self._serial = 0
        self._label = ""

    # ---- configuration and commands --------------------------------------------------

    def configuration(self, **sections: object) -> dict[str, Any]:
        """One live endpoint on host1; its shadows on host2 and host3 get half of new flows or more."""
        choices = Choices(
            endpoints=[LiveEndpoint("host1", "web-1")],
            shadow_hosts={"host2": 2, "host3": 2},
            tick="500ms",
            probe={"interval": f"{INTERVAL_S}s", "timeout": f"{TIMEOUT_S}s", "rise": 2, "fall": FALL},
            shadows={"lead_time": "4s", "warm_up": "500ms", "drain": "40s", "timeout": "30s",
                     "retry_after": "1s", "retries": 5},
        )  # fmt: skip
        root: dict[str, Any] = yaml.safe_load(written(self.lab.topology, choices, self.state_dir))
        return root | sections

    def configure(self, root: Mapping[str, Any]) -> None:
        self.config.write_text(yaml.safe_dump(dict(root), sort_keys=False))

    def penumbra(self, *arguments: object, timeout_s: float = 60.0) -> subprocess.CompletedProcess[str]:
        """The command, at the access point."""
        argv = self.lab.argv(AP, [PENUMBRA, *map(str, arguments)])
        return subprocess.run(argv, capture_output=True, text=True, timeout=timeout_s, check=False)

    def asked(self, *arguments: object) -> str:
        """Output of a command about this instance that must succeed."""
        done = self.penumbra(*arguments, "--instance", self.instance)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done.stdout

    # ---- the controller --------------------------------------------------------------

    def start(self, argv: Sequence[str] = (PENUMBRA,), *, ready: bool = True) -> subprocess.Popen[bytes]:
        """``penumbra run``; returns after its first tick. ``argv``: something in place of the command."""
        began_unix_s = time.time()
        self._serial += 1
        self._label = f"controller-{self._serial}"
        self.controller = self.lab.popen(AP, [*argv, "run", str(self.config)], label=self._label)
        if ready:
            self.await_tick(began_unix_s)
        return self.controller

    def said(self) -> str:
        """All that the present controller wrote."""
        return self.lab.log(self._label).read_text()

    def await_tick(self, after_unix_s: float | None = None) -> dict[str, Any]:
        after = time.time() if after_unix_s is None else after_unix_s

        def ticked() -> bool:
            assert self.controller is None or self.controller.poll() is None, self.said()
            return bool(self.status().get("at_unix_s", 0) > after)

        eventually(ticked, 60, self.said)  # it may have to compile first, on a busy machine
        return self.status()

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        assert self.controller is not None
        self.controller.send_signal(number)
        return self.controller.wait(30)

    # ---- what is known ---------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """The last status, read where ``penumbra status`` reads it; empty before the first tick."""
        return dict(json.loads(status_file.read(self.instance) or "{}"))

    def group(self) -> dict[str, Any]:
        return dict(self.status()["services"][0]["groups"][0])

    def shadow(self) -> dict[str, Any]:
        """The only shadow; empty if there is none."""
        shadows = self.group()["shadows"]
        assert len(shadows) <= 1, shadows
        return dict(shadows[0]) if shadows else {}

    def decisions(self) -> list[str]:
        """Newest first."""
        store = SqliteStore(self.state_dir, self.instance)
        try:
            return [one.reason for one in store.decisions(500)]
        finally:
            store.close()

    def metrics(self) -> str:
        """As Prometheus reads them."""
        with self.lab.connect(AP, "127.0.0.1", 9464) as connection:
            connection.sendall(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n")
            parts = []
            while data := connection.recv(65536):
                parts.append(data)
        return b"".join(parts).decode()

    def shadow_processes(self) -> dict[int, str]:
        return shadow_processes(self.instance)

    # ---- things to do ----------------------------------------------------------------

    def start_endpoint(self) -> None:
        """web-1, which is ``live`` from now on."""
        self.live = self.lab.endpoint("host1", name="web-1", service_time_s=0.02, concurrency=16)

    def add_shadow(self) -> str:
        """By command; its name once it is ready and new flows spill to it."""
        self.asked("shadow", "add", "web-1")
        eventually(
            lambda: self.shadow().get("state") == "ready" and self.group()["spill"] > 0.4, 40, self.said
        )
        return str(self.shadow()["name"])

    def traffic(self, rate: float = 25.0, *more: str, most_s: float = 300.0) -> Traffic:
        """Flows from now until it is stopped; returns when answers come in."""
        self._serial += 1
        label = f"traffic-{self._serial}"
        trace = self.folder / f"{label}.csv"
        with trace.open("w") as file:
            csv.writer(file).writerows([("timestamp", "value"), (0, rate), (most_s, rate)])
        path = self.folder / f"{label}.jsonl"
        argv = [sys.executable, "-m", "controlplane.lab.traffic", "--trace", str(trace)]
        argv += ["--target", with_port(self.lab.topology.vip, self.lab.topology.vip_port)]
        argv += ["--timeout", "3", "--records", str(path), "--summary", str(self.folder / label), *more]
        running = Traffic(self.lab.popen("clients", argv, label=label), path, self.lab, label)
        eventually(lambda: running.now(), 15, lambda: self.lab.tail(label))
        return running

    # ---- the end ---------------------------------------------------------------------

    def __enter__(self) -> Self:
        self.lab.up()
        return self

    def __exit__(self, *_: object) -> None:
        try:
            if self.controller is not None and self.controller.poll() is None:
                self.controller.kill()
                self.controller.wait()
            loader.unload(self.instance)
            instances.forget(self.instance)
        finally:
            for pid in self.shadow_processes():
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.lab.down()
            shutil.rmtree(pins.LOCKS / self.instance, ignore_errors=True)


@contextmanager
def steered(folder: Path, ip_version: int = 4, *, start: bool = True) -> Iterator[Steered]:
    """A lab with a name of its own, and web-1 on host1 if it is to start; no program is loaded yet."""
    with Steered(folder, Lab(Topology(f"s{uuid.uuid4().hex[:8]}", ip_version=ip_version))) as made:
        made.configure(made.configuration())
        if start:
            made.start_endpoint()
        yield made
