# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.packet.rig import Rig


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
