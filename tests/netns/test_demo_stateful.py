# SPDX-License-Identifier: Apache-2.0
"""The demo's second scene, with the gate off: all of it happens, what a killed one left is removed first, and
the verdict says that older data was read than agreed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest

from controlplane.lab.demo_ending import Ending
from controlplane.lab.demo_stateful import clear_remains
from controlplane.lab.stateful_setting import MAX_LAG_S, Setting
from controlplane.lab.topology import Topology
from tests.netns.remains import remains
from tests.netns.steered import eventually


def started(name: str, out: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "controlplane.lab.demo_stateful", "--ungated", "--rise", "25"]
    with (out / "output").open("wb") as file:
        return subprocess.Popen(
            [*command, "--name", name, "--out", str(out)], stdout=file, stderr=file, start_new_session=True
        )


@pytest.mark.calm
@pytest.mark.slow
def test_with_the_gate_off_older_data_is_read_and_the_verdict_says_so(tmp_path: Path) -> None:
    name = f"d{uuid.uuid4().hex[:7]}"

    def said() -> str:
        return (tmp_path / "output").read_text(errors="replace")

    processes: list[subprocess.Popen[bytes]] = []
    try:
        processes.append(started(name, tmp_path))
        eventually(lambda: " written " in said(), 60, said)
        os.killpg(processes[0].pid, signal.SIGKILL)
        processes[0].wait()
        assert remains(name) != []

        processes.append(started(name, tmp_path))
        assert processes[1].wait(280) == 1, said()
        found = json.loads((tmp_path / "stateful.json").read_text())
        assert found["oldest_s"] > MAX_LAG_S, "the cut did not hit"
        assert any("old was read at the shadow" in sentence for sentence in found["broken"])
        assert any("after it was cut off the shadow still had reads" in one for one in found["broken"])
        # All the rest is as with the gate.
        assert found["by_shadow"] > 100
        assert found["written"] > 1000
        assert (found["missing"], found["left"]) == (0, [])
        assert "shadow db-1 +1 on host2" in said() or "shadow db-1-s1 on host2" in said()
        assert "Kept:" not in said()
        assert remains(name) == []
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()
        clear_remains(Setting(Topology(name, hosts_count=2)), Ending(lambda: None))
