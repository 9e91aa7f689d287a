# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator

import pytest

from controlplane.lab import network
from tests.packet.rig import Rig, nowhere


@pytest.fixture(scope="session")
def unconnected() -> Iterator[str]:
    with nowhere() as name:
        yield name


@pytest.fixture(autouse=True)
def without_routes(unconnected: str) -> Iterator[None]:
    """What the program asks the kernel's routes does not depend on this machine's."""
    with network.entered(unconnected):
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
