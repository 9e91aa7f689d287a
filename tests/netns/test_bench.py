# SPDX-License-Identifier: Apache-2.0
"""The controller's bench keeps up with what it measures."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.bench import control

PAGE = Path(control.__file__).with_name("README.md")


def named() -> set[str]:
    """``control.a``, ``b`` and ``_c``, as the page's table shortens them."""
    names = set[str]()
    for line in PAGE.read_text().splitlines():
        first = ""
        for name in re.findall(r"`([\w.]+)`", line.partition("|")[2].partition("|")[0]):
            first = first or name
            if first.startswith("control."):
                whole = name if name.startswith("control.") else f"control.{name}"
                names.add(first.rpartition("_")[0] + name if name.startswith("_") else whole)
    return names


def once(action: Callable[[], object], rounds: int = 1) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


@pytest.mark.slow
def test_it_measures_what_its_page_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "_timed", once)
    for name, small in (("CPUS", 8), ("LISTED", 1 << 12), ("RING_ENDPOINTS", 100)):
        monkeypatch.setattr(control, name, small)
    figures = control.measure()
    assert set(figures) == named()
    assert all(figure.value > 0 for figure in figures.values())
