# SPDX-License-Identifier: Apache-2.0
"""A container engine of our own, in a network namespace, that leaves nothing behind.

It has its own data, socket, pid file and cgroup parent, and its bridge, rules and ip_forward are the
namespace's: the machine's stay as they are. Images are made from an archive; no registry is needed.
"""

from __future__ import annotations

import io
import os
import shutil
import signal
import subprocess
import tarfile
import threading
from pathlib import Path
from types import TracebackType

import docker

from controlplane.lab import processes

NETNS = Path("/run/netns")
_POLL_S = 0.05
_ORPHAN_GRACE_S = 10.0


class DockerdError(RuntimeError):
    """The engine can't be started; the message says why and what to do."""


class Dockerd:
    """``with Dockerd("host-a-ns", Path("/run/x")) as engine: engine.client()``. Needs root and docker.io.

    ``folder`` is made for it and removed after; keep its path short (a socket's has at most 107 bytes).
    """

    def __init__(self, netns: str, folder: Path) -> None:
        self.netns = netns
        self.folder = folder
        self.cgroup = f"penumbra-{netns}"
        self._daemon: subprocess.Popen[bytes] | None = None
        self._killed = False
        self._pause = threading.Event()

    @property
    def url(self) -> str:
        """The host variable ``docker_host`` for the playbooks."""
        return f"unix://{self.folder}/docker.sock"

    def __enter__(self) -> Dockerd:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def client(self) -> docker.DockerClient:
        return docker.DockerClient(base_url=self.url, timeout=60)

    def start(self, within_s: float = 30.0) -> None:
        if shutil.which("dockerd") is None:
            raise DockerdError("dockerd is missing: apt-get install docker.io")
        self.folder.mkdir(parents=True, mode=0o700)
        self.resume(within_s)

    def kill(self) -> None:
        """As a machine that is out of memory does: at once, and its containers run on."""
        if self._daemon is not None:
            self._daemon.kill()
            self._daemon.wait()
            self._daemon = None
            self._killed = True

    def resume(self, within_s: float = 30.0) -> None:
        """Starts the daemon on what is there."""
        self._killed = False
        with (self.folder / "log").open("ab") as log:
            self._daemon = subprocess.Popen(
                ["nsenter", f"--net={NETNS / self.netns}", "dockerd", *self._options()],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        for _ in range(int(within_s / _POLL_S)):
            if self._daemon.poll() is not None:
                break
            if self._answers():
                return
            self._pause.wait(_POLL_S)
        raise DockerdError(f"dockerd in {self.netns} did not start: {self._last_lines()}")

    def _options(self) -> list[str]:
        return [
            f"--host={self.url}",
            f"--data-root={self.folder}/data",
            f"--exec-root={self.folder}/exec",
            f"--pidfile={self.folder}/pid",
            f"--cgroup-parent=/{self.cgroup}",
            "--userland-proxy=false",
            "--storage-driver=overlay2",
            # Without CAP_SYS_RESOURCE a higher limit than our own can't be given.
            "--default-ulimit=nofile=1024:1024",
        ]

    def _answers(self) -> bool:
        if not (self.folder / "docker.sock").exists():
            return False
        try:
            client = self.client()
            try:
                return bool(client.ping())
            finally:
                client.close()
        except (docker.errors.DockerException, OSError):
            return False

    def _last_lines(self) -> str:
        lines = (self.folder / "log").read_text(errors="replace").splitlines()
        return " | ".join(lines[-3:])

    def import_image(self, tag: str, rootfs: bytes) -> None:
        """Makes an image of a tar archive."""
        client = self.client()
        try:
            client.api.import_image_from_data(rootfs, repository=tag, tag="latest")
        finally:
            client.close()

    def stop(self) -> None:
        """Ends containers and daemon, and removes their mounts, cgroups and files. Fine to do twice."""
        if self._killed:
            self.resume()  # nobody else ends its containers
        if self._answers():
            self._remove_containers()
        if self._daemon is not None:
            self._daemon.terminate()
            try:
                self._daemon.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(self._daemon.pid, signal.SIGKILL)
                self._daemon.wait()
            self._daemon = None
        else:
            self._end_orphan()
        self._remove_leftovers()

    def _end_orphan(self) -> None:
        """A daemon whose maker was killed, by its pid file."""
        try:
            found = processes.identify(int((self.folder / "pid").read_text()))
            arguments = Path(f"/proc/{found.pid}/cmdline").read_bytes() if found else b""
        except (OSError, ValueError):
            return
        if found and f"--pidfile={self.folder}/pid".encode() in arguments:
            processes.end([found], _ORPHAN_GRACE_S)

    def _remove_containers(self) -> None:
        client = self.client()
        try:
            for container in client.containers.list(all=True):
                container.remove(force=True)
        finally:
            client.close()

    def _remove_leftovers(self) -> None:
        mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
        for mount in reversed(mounts):
            if mount.startswith(f"{self.folder}/"):
                subprocess.run(["umount", "-l", mount], check=False)
        for cgroup in [
            *Path("/sys/fs/cgroup").glob(f"*/{self.cgroup}"),
            Path("/sys/fs/cgroup") / self.cgroup,
        ]:
            for folder, _, _ in os.walk(cgroup, topdown=False):
                Path(folder).rmdir()
        shutil.rmtree(self.folder, ignore_errors=True)


def host_rootfs() -> bytes:
    """A tar archive of an image that holds nothing itself: its /usr is the machine's, mounted read-only.

    Run it with ``volumes={"/usr": {"bind": "/usr", "mode": "ro"}}``: Python is there.
    """
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name in ("usr", "etc", "tmp", "proc", "sys", "dev", "run", "root"):
            folder = tarfile.TarInfo(name)
            folder.type, folder.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(folder)
        for name in ("bin", "sbin", "lib", "lib64"):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = tarfile.SYMTYPE, f"usr/{name}"
            tar.addfile(link)
    return archive.getvalue()
