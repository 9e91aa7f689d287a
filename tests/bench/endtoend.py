# SPDX-License-Identifier: Apache-2.0
"""Penumbra beside what others put at an access point, in network namespaces, in one run."""

from __future__ import annotations

import shutil
from collections.abc import Mapping

from tests.bench import connections, forwarding
from tests.bench.figures import Figure

NEEDED = ("haproxy", "nft", "ip", "ethtool")


def measure() -> Mapping[str, Figure]:
    """The figures ``endtoend.*``; about 90 s."""
    if missing := [command for command in NEEDED if shutil.which(command) is None]:
        raise RuntimeError(f"{', '.join(missing)}: not installed; make bench installs what it needs")
    return {**forwarding.measure(), **connections.measure()}
