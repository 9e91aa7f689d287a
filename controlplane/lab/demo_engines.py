# SPDX-License-Identifier: Apache-2.0
"""Container engines on the lab's hosts, and the live endpoint as a container."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import docker

from controlplane.lab.demo_setting import (
    CONCURRENCY,
    LIVE,
    LIVE_HOST,
    PORT,
    SERVICE_TIME_S,
    SHADOW_HOSTS,
    START_UP_S,
)
from controlplane.lab.dockerd import Dockerd, DockerdError, host_rootfs
from controlplane.lab.lab import Lab
from controlplane.lab.network import LabError

IMAGE = "penumbra-lab"
ROOT = Path(__file__).resolve().parents[2]


class Engines:
    """An engine per host that has or may get an endpoint."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self._engines = {
            host: Dockerd(lab.topology.namespace(host), lab.folder / f"engine-{host}")
            for host in (LIVE_HOST, *SHADOW_HOSTS)
        }

    def start(self, check: Callable[[], None]) -> None:
        """:param check: asked between two engines whether to go on. Raises ``LabError``."""
        try:
            for engine in self._engines.values():
                engine.start()
                check()
            # Only there: a clone brings its image along.
            self._engines[LIVE_HOST].import_image(IMAGE, host_rootfs())
        except (DockerdError, docker.errors.DockerException) as error:
            raise LabError(str(error)) from None

    def stop(self) -> None:
        """Also ends engines that a killed process left."""
        for engine in self._engines.values():
            if engine.folder.exists():
                engine.stop()

    @property
    def host_variables(self) -> Mapping[str, Mapping[str, object]]:
        return {host: {"docker_host": engine.url} for host, engine in self._engines.items()}

    def run_live(self) -> None:
        """The live endpoint, its port published on its host. Raises ``LabError``."""
        command = ["python3", "-m", "controlplane.lab.server", "--port", str(PORT)]
        command += ["--service-time", str(SERVICE_TIME_S), "--concurrency", str(CONCURRENCY)]
        command += ["--start-up", str(START_UP_S)]
        client = self._engines[LIVE_HOST].client()
        try:
            client.containers.run(
                IMAGE,
                command,
                detach=True,
                name=LIVE,
                # It answers by its host name, which is rewritten in clones if it is the container's.
                hostname=LIVE,
                environment={"PYTHONPATH": "/penumbra"},
                volumes={
                    "/usr": {"bind": "/usr", "mode": "ro"},
                    str(ROOT): {"bind": "/penumbra", "mode": "ro"},
                },
                ports={f"{PORT}/tcp": PORT},
                read_only=True,
                tmpfs={"/tmp": "size=1m"},  # noqa: S108 - the container's
            )
        except docker.errors.DockerException as error:
            raise LabError(f"the live endpoint's container does not start: {error}") from None
        finally:
            client.close()
