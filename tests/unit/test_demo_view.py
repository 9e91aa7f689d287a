# SPDX-License-Identifier: Apache-2.0
"""What the demo shows while it runs, on terminals of all kinds."""

from __future__ import annotations

import io
import re

import pytest
from rich.console import Console

from controlplane.lab import trace
from controlplane.lab.demo_run import Moment
from controlplane.lab.demo_setting import Kind, Setting, course_of
from controlplane.lab.demo_view import View
from controlplane.lab.report import Observation
from controlplane.lab.topology import Topology

SEEN = Observation(41.0, 204.0, 204.0, 347.0, 0.6, {"web-1-s1": "ready", "web-1-s2": "provisioning"})
SAID = "web-1: p90 demand 375/s in 10 s > 0.7 x 3 x 170/s, but it has 2 shadows already"


def shown(encoding: str, term: str, terminal: bool) -> str:
    """All that three runs write."""
    written = io.BytesIO()
    with io.TextIOWrapper(written, encoding=encoding, write_through=True) as file:
        environ = {"TERM": term}
        console = Console(file=file, width=80, height=24, force_terminal=terminal, _environ=environ)
        with View(console, Setting(Topology("t"), course_of(trace.flat(20, 60), 10))).showing() as show:
            for kind in Kind:
                show(Moment(kind, 41.0, 385.0, SEEN, 73.0, 12, SAID))
        return written.getvalue().decode(encoding)


def test_on_80_by_24_every_figure_of_three_runs_is_whole():
    frame = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown("utf-8", "xterm", True)).rpartition("requests/s;")[2]
    assert frame.count("\n") < 24
    assert max(len(line) for line in frame.splitlines()) <= 80
    for figure in ("41 s", "385", "655", "60%", "73 ms", "12"):
        assert len(re.findall(rf"(?<!\S){figure}(?!\S)", frame)) >= 3, frame
    assert "\u2026" not in frame


@pytest.mark.parametrize(("term", "terminal"), [("dumb", True), ("xterm", False)], ids=["dumb", "pipe"])
def test_where_nothing_can_be_redrawn_there_are_plain_lines(term: str, terminal: bool):
    lines = shown("ascii", term, terminal)
    assert lines.count("run: ") == 3
    assert "\x1b[2K" not in lines
    assert lines.count("offered 385") == 3


def test_a_terminal_that_knows_ascii_only_is_no_obstacle():
    assert "385" in shown("ascii", "xterm", True)
