# SPDX-License-Identifier: Apache-2.0
"""Settings of all tests: in CI random examples are the same each time; at a desk they differ."""

import os
import signal
from collections import defaultdict

import pytest
from hypothesis import settings

# Under nohup(1) every child would be deaf to it too.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

settings.register_profile("repeatable", derandomize=True, deadline=None)
if os.environ.get("CI"):
    settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files whose tests wait for much begin early, the longest first, each beside some that reckon: so the
    cores have work until the end. Within a file the order stays."""
    files: dict[str, list[pytest.Item]] = defaultdict(list)
    for item in items:
        files[item.nodeid.partition("::")[0]].append(item)

    def waits(file: str) -> int:
        return sum(item.get_closest_marker("slow") is not None for item in files[file])

    waiting = sorted(filter(waits, files), key=waits, reverse=True)
    reckoning = [file for file in files if not waits(file)]
    place = {file: at / len(waiting) for at, file in enumerate(waiting)}
    place |= {file: at / len(reckoning) for at, file in enumerate(reckoning)}
    items[:] = [item for file in sorted(files, key=place.__getitem__) for item in files[file]]
