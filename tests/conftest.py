# SPDX-License-Identifier: Apache-2.0
"""Settings of all tests: in CI random examples are the same each time; at a desk they differ."""

import os
import signal

import pytest
from hypothesis import settings

# Under nohup(1) every child would be deaf to it too.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

settings.register_profile("repeatable", derandomize=True, deadline=None)
if os.environ.get("CI"):
    settings.load_profile("repeatable")

LONGEST = (
    *("test_mutations", "test_trouble", "test_demo", "test_restart", "test_short_way", "test_failover"),
    *("test_end_to_end_playbooks", "test_dataplane_load", "test_lab_traffic", "test_cli_running"),
    *("test_invariants", "test_bypass", "test_end_to_end", "test_requests", "test_dataplane_traffic"),
)
"""Files that take more than half a minute, by their time: begun first, for none is divided between workers
and at the end the others would stand idle."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONGEST)))
