# SPDX-License-Identifier: Apache-2.0
"""A data engine on a lab's first host, and shadows of it made on the second by the shipped playbooks."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from controlplane import model
from controlplane.adapters.ansible import AnsibleProvisioner
from controlplane.adapters.clock import MachineClock
from controlplane.addresses import Address
from controlplane.lab import network
from controlplane.lab.topology import AP, Topology
from tests.netns.steered import eventually

PASSWORD = "s3cret:\\'x y"  # noqa: S105 - of a server that lives for a test
SHADOW = "db-1-s1"
NOBODYS = ("setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups")


@dataclass
class Site:
    """Where an engine's original and its shadows live; all names are this site's own."""

    topology: Topology
    sync: model.Sync
    port: int
    variables: Mapping[str, object]
    instance: str = field(default_factory=lambda: f"t{uuid.uuid4().hex[:8]}")
    _provisioner: AnsibleProvisioner | None = None
    """Of most runs: what it needs to start is paid once."""
    folder: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="penumbra-engine-")))

    def __post_init__(self) -> None:
        self.folder.chmod(0o755)
        for name, owner in (("password", 0), ("host-password", "postgres")):
            path = self.folder / name
            path.touch(mode=0o600)
            path.write_text(PASSWORD + "\n")
            shutil.chown(path, owner)

    @property
    def run_dir(self) -> Path:
        return self.folder / "run"

    @property
    def log(self) -> Path:
        """The original's."""
        return self.folder / "log"

    @property
    def data_dir(self) -> Path:
        return self.folder / "shadows"

    @property
    def address(self) -> Address:
        return self.topology.hosts[0].address

    def at_access_point(self) -> AbstractContextManager[None]:
        return network.entered(self.topology.namespace(AP))

    def start(self, *command: str) -> subprocess.Popen[bytes]:
        """Not as root, on the first host."""
        inside = network.inside(self.topology.namespace("host1"))
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*inside, *NOBODYS, *command], cwd="/", start_new_session=True, stdout=log, stderr=log
            )

    @property
    def hosts(self) -> dict[str, model.Host]:
        return {
            name: model.Host(
                name,
                variables={
                    "ansible_connection": "local",
                    "netns": self.topology.namespace(name),
                    "data_dir": str(self.data_dir),
                },
            )
            for name in ("host1", "host2")
        }

    def order(self, shadow: str = SHADOW, sync: model.Sync | None = None, **variables: object) -> model.Order:
        parent = model.Endpoint("db-1", "db", self.address, self.port, host="host1")
        return model.Order(
            shadow,
            self.instance,
            "db",
            parent,
            model.Protocol.TCP,
            model.Probe(),
            self.hosts["host2"],
            "netns",
            60.0,
            {**self.variables, **variables},
            sync or self.sync,
        )

    def provisioner(self, playbooks: Path | None = None) -> AnsibleProvisioner:
        return AnsibleProvisioner(self.instance, self.hosts, MachineClock(), playbooks, self.run_dir)

    def provision(self, order: model.Order | None = None, playbooks: Path | None = None) -> model.RunResult:
        return self._run(AnsibleProvisioner.provision, order or self.order(), playbooks)

    def deprovision(self, order: model.Order | None = None, playbooks: Path | None = None) -> model.RunResult:
        return self._run(AnsibleProvisioner.deprovision, order or self.order(), playbooks)

    def _run(
        self,
        what: Callable[[AnsibleProvisioner, model.Order], None],
        order: model.Order,
        playbooks: Path | None,
    ) -> model.RunResult:
        if playbooks is not None:
            provisioner = self.provisioner(playbooks)
        elif self._provisioner is None:
            provisioner = self._provisioner = self.provisioner()
        else:
            provisioner = self._provisioner
        found: list[model.RunResult] = []
        try:
            with self.at_access_point():
                what(provisioner, order)
            eventually(lambda: found.extend(provisioner.results()) or found, 70.0)
        finally:
            if playbooks is not None:
                provisioner.close()
        (result,) = found
        return result

    def processes(self, shadow: str = SHADOW) -> list[int]:
        """Those that carry the labels of this shadow."""
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                entries = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if {f"PENUMBRA_INSTANCE={self.instance}".encode(), f"PENUMBRA_SHADOW={shadow}".encode()} <= {
                *entries
            }:
                found.append(int(folder.name))
        return found

    def kill(self, shadow: str = SHADOW) -> None:
        for pid in self.processes(shadow):
            os.kill(pid, signal.SIGKILL)
        eventually(lambda: not self.processes(shadow))

    def left(self) -> list[str]:
        """Processes and files of any shadow of this site."""
        run_dir = self.run_dir / self.instance
        shadows = [str(path) for kept in ("shadows", "runs") for path in run_dir.glob(f"{kept}/*")]
        data = [str(path) for path in self.data_dir.rglob("*")]
        return [*(f"process {pid}" for pid in self.processes()), *shadows, *data]

    def cut(self, host: str = "host2") -> None:
        network.run(["ip", "-n", self.topology.namespace(AP), "link", "set", host, "down"])

    def heal(self, host: str = "host2") -> None:
        network.run(["ip", "-n", self.topology.namespace(AP), "link", "set", host, "up"])

    def close(self) -> None:
        if self._provisioner is not None:
            self._provisioner.close()
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


class Writers:
    """Writes in a thread until it is told to stop; knows what was acknowledged."""

    def __init__(self, site: Site, write: Callable[[int], None], failures: Sequence[type[Exception]]) -> None:
        """:param write: writes a number, and returns when that is acknowledged; may raise ``failures``."""
        self.acknowledged: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, args=(site, write, tuple(failures)))

    def _work(self, site: Site, write: Callable[[int], None], failures: tuple[type[Exception], ...]) -> None:
        number = 0
        with site.at_access_point():
            while not self._stop.wait(0.002):
                number += 1
                try:
                    write(number)
                except failures:
                    continue
                self.acknowledged.append(number)

    def __enter__(self) -> Writers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
