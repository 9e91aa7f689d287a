# SPDX-License-Identifier: Apache-2.0
"""A lab: made, used, and gone without a trace, however its maker ends."""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from controlplane.lab import network, processes, state
from controlplane.lab.network import LabError
from controlplane.lab.topology import Topology

GRACE_S = 2.0
ENDINGS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class Status:
    """``up``: complete and in use; ``abandoned``: remains that ``down`` removes; else there is none."""

    lab: str
    up: bool
    abandoned: bool
    owner_pid: int | None
    namespaces: tuple[str, ...]
    pids: tuple[int, ...]


def topology_of(name: str) -> Topology:
    """Of a lab as it was made; as usual where there is none. ``ValueError``: no lab has such a name."""
    usual = Topology(name)
    present = state.read(name)
    return Topology(name, ip_version=present.ip_version) if present else usual


class Lab:
    """``with Lab(Topology("name")) as lab``: Ctrl-C, SIGTERM and SIGHUP take it down; after a kill -9 the
    next ``up`` or ``down`` of that name does. ``stay=True`` (for ``penumbra lab up``): after ``leave`` it
    outlives its maker. Raises ``LabError``."""

    def __init__(self, topology: Topology | None = None, *, stay: bool = False) -> None:
        self.topology = topology or Topology()
        self.stay = stay
        self.folder = state.RUN / f"lab-{self.topology.lab}"
        """Log files of what runs in it; gone with it."""
        self._children: list[subprocess.Popen[bytes]] = []
        self._restore: list[tuple[signal.Signals, object]] = []
        self._left = False

    # ---- up and down ----------------------------------------------------------------

    def up(self) -> None:
        """Refuses while another lab of that name is in use; removes the remains of a dead one first."""
        if os.geteuid() != 0:
            raise LabError("a lab needs root (network namespaces): run it with sudo")
        name = self.topology.lab
        with state.claiming():
            present = state.read(name)
            if present and not present.abandoned:
                raise LabError(f"lab {name} is already up, {_belongs(present)}; or take another name")
            fresh = state.State(
                lab=name,
                owner=processes.myself(),
                namespaces=self.topology.namespaces,
                folder=str(self.folder),
                ip_version=self.topology.ip_version,
            )
            if present:
                _remove(present)
            if taken := [one for one in fresh.namespaces if (processes.NETNS / one).exists()]:
                raise LabError(
                    f"namespace {taken[0]} exists and is not this lab's: ip netns delete {taken[0]}, or take "
                    "another name"
                )
            state.write(fresh)
        try:
            self.folder.mkdir(mode=0o755)
            network.build(self.topology)
            state.write(replace(fresh, complete=True))
        except BaseException:
            self.down()
            raise

    def leave(self) -> None:
        """From here on the lab, with all that runs in it, stays until somebody takes it down."""
        with state.claiming():
            if present := state.read(self.topology.lab):
                state.write(replace(present, owner=None))
        self._left = True

    def down(self) -> None:
        """Ends what runs in the lab and removes it. Refuses one that another living process uses.
        Signals wait until it is done."""
        with _deferred(), state.claiming():
            present = state.read(self.topology.lab)
            if present and present.owner not in (None, processes.myself()) and not present.abandoned:
                raise LabError(f"lab {present.lab} is in use, {_belongs(present)}")
            if present:
                _remove(present)
            for child in self._children:
                child.wait()
            self._children.clear()

    def status(self) -> Status:
        present = state.read(self.topology.lab)
        if present is None:
            return Status(self.topology.lab, False, False, None, (), ())
        residents = processes.residents(present.namespaces)
        return Status(
            lab=present.lab,
            up=present.complete and not present.abandoned,
            abandoned=present.abandoned,
            owner_pid=present.owner.pid if present.owner else None,
            namespaces=tuple(one for one in present.namespaces if (processes.NETNS / one).exists()),
            pids=tuple(sorted(one.pid for one in residents)),
        )

    def __enter__(self) -> Self:
        for number in (signal.SIGTERM, signal.SIGHUP):
            try:
                self._restore.append((number, signal.signal(number, _leave)))
            except ValueError:
                break  # not the main thread: its owner handles signals
        try:
            self.up()
        except BaseException:
            self._restore_signals()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self._left:
                self.down()
        finally:
            self._restore_signals()

    def _restore_signals(self) -> None:
        while self._restore:
            number, handler = self._restore.pop()
            signal.signal(number, handler)  # type: ignore[arg-type]  # what signal.signal returned

    # ---- running things inside -------------------------------------------------------

    def log(self, label: str) -> Path:
        return self.folder / f"{label}.log"

    def argv(self, node: str, argv: Sequence[str]) -> list[str]:
        return [*network.inside(self.topology.namespace(node)), *argv]

    def popen(
        self, node: str, argv: Sequence[str], *, label: str, env: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Starts a process in ``node``; its output goes to ``log(label)``. It dies with the calling thread
        (unless ``stay``), and at the latest with the lab. Ctrl-C at the terminal doesn't reach it."""
        keeper = [] if self.stay else ["setpriv", "--pdeathsig", "KILL"]
        with self.log(label).open("ab") as log:
            child = subprocess.Popen(
                [*keeper, *self.argv(node, argv)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=None if env is None else {**os.environ, **env},
                start_new_session=True,
            )
        self._children.append(child)
        with state.claiming():
            present = state.read(self.topology.lab)
            identity = processes.identify(child.pid)
            if present and identity:
                state.write(present.adding(identity))
        return child

    def run(self, node: str, argv: Sequence[str]) -> str:
        """Standard output of a short command in ``node``. Raises ``LabError`` when it fails."""
        return network.run(self.argv(node, argv))

    def entered(self, node: str) -> AbstractContextManager[None]:
        """This thread lives in ``node``: sockets made in the block stay there."""
        return network.entered(self.topology.namespace(node))

    def connect(self, node: str, address: str, port: int, timeout_s: float = 1.0) -> socket.socket:
        """A TCP connection made from ``node``."""
        with self.entered(node):
            return socket.create_connection((address, port), timeout_s)

    def endpoint(
        self,
        host: str,
        *,
        name: str,
        port: int = 8080,
        service_time_s: float = 0.1,
        spread: float = 0.0,
        concurrency: int = 8,
        start_up_s: float = 0.0,
        queue_most: int | None = None,
        agent_port: int | None = None,
        ready_within_s: float = 10.0,
    ) -> subprocess.Popen[bytes]:
        """An endpoint server (``controlplane.lab.server``) that listens when this returns."""
        address = str(self.topology.node(host).address)
        argv = [sys.executable, "-m", "controlplane.lab.server", "--name", name]
        argv += ["--address", address, "--port", str(port)]
        argv += ["--service-time", str(service_time_s), "--concurrency", str(concurrency)]
        argv += ["--spread", str(spread)] if spread else []
        argv += ["--start-up", str(start_up_s)] if start_up_s else []
        argv += [] if queue_most is None else ["--queue", str(queue_most)]
        argv += [] if agent_port is None else ["--agent-port", str(agent_port)]
        child = self.popen(host, argv, label=name)

        def answers() -> bool:
            if child.poll() is not None:
                raise LabError(f"endpoint {name} ended: {self.tail(name)}")
            return self.answers(host, name, port)

        if not _until(answers, start_up_s + ready_within_s):
            raise LabError(f"endpoint {name} does not listen after {ready_within_s:g} s: {self.tail(name)}")
        return child

    def answers(self, host: str, name: str, port: int = 8080) -> bool:
        """Whether an endpoint of that name serves there; another server may hold the port."""
        try:
            with self.connect(host, str(self.topology.node(host).address), port) as asking:
                asking.sendall(b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n")
                return f"X-Served-By: {name}\r\n".encode() in asking.recv(4096)
        except OSError:
            return False

    def tail(self, label: str) -> str:
        """The last lines of a log, for messages."""
        try:
            lines = self.log(label).read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return "it wrote nothing"
        return " | ".join(lines[-5:]) or "it wrote nothing"


def _until(condition: Callable[[], bool], timeout_s: float) -> bool:
    waited_s = 0.0
    while not condition():
        if waited_s >= timeout_s:
            return False
        select.select((), (), (), processes.PAUSE_S)
        waited_s += processes.PAUSE_S
    return True


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _belongs(present: state.State) -> str:
    if present.owner is None:
        return f"and stays until it is taken down: penumbra lab down --name {present.lab}"
    return f"made by process {present.owner.pid}: stop that first (kill {present.owner.pid})"


@contextmanager
def _deferred() -> Iterator[None]:
    """A second Ctrl-C must not leave half a lab. Commands started meanwhile inherit the mask."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDINGS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _remove(present: state.State) -> None:
    recorded = {one for one in present.processes if one.alive}
    processes.end(recorded | processes.residents(present.namespaces), GRACE_S)
    # Whoever was born meanwhile gets no grace.
    while born := processes.residents(present.namespaces):
        processes.end(born, 0.0)
    network.demolish(present.namespaces)
    _forget_shadows(present.namespaces)
    network.unmount(present.folder)
    shutil.rmtree(present.folder, ignore_errors=True)
    state.forget(present.lab)


def _forget_shadows(namespaces: Collection[str]) -> None:
    """What playbooks noted of the processes that were shadows here and have just been ended."""
    for record in state.RUN.glob("*/shadows/*.json"):
        with suppress(OSError, ValueError):
            if json.loads(record.read_text(encoding="utf-8")).get("netns") not in namespaces:
                continue
            record.unlink()
            record.with_suffix(".log").unlink(missing_ok=True)
        instance = record.parents[1]
        for folder in (record.parent, instance / "runs", instance / "servers", instance):
            with suppress(OSError):  # others' are in it
                folder.rmdir()
