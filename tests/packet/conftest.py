# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest

from controlplane.lab import network
from tests.packet.rig import Rig


@pytest.fixture(scope="session")
def nowhere() -> Iterator[str]:
    """A network namespace without any route."""
    name = f"penumbra-nowhere-{os.getpid()}"
    subprocess.run(["ip", "netns", "add", name], check=True)
    yield name
    subprocess.run(["ip", "netns", "delete", name], check=True)


@pytest.fixture(autouse=True)
def without_routes(nowhere: str) -> Iterator[None]:
    """What the program asks the kernel's routes does not depend on this machine's."""
    with network.entered(nowhere):
        yield


@pytest.fixture(scope="session")
def loaded() -> Iterator[Rig]:
    rig = Rig.load()
    yield rig
    rig.compiled.close()


@pytest.fixture
def rig(loaded: Rig) -> Rig:
    """Nothing installed, no flow, all counters zero."""
    loaded.reset()
    return loaded
