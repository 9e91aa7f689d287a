# SPDX-License-Identifier: Apache-2.0
"""``penumbra lab`` as a user has it: cut short, taken down in use, and asked for what can't be."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from controlplane.lab import processes, state
from controlplane.lab.lab import Lab
from controlplane.lab.topology import AP, Topology
from tests.netns.nobody import NOBODY
from tests.netns.remains import remains
from tests.netns.steered import PENUMBRA, eventually


def penumbra(*argv: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*before, PENUMBRA, *argv], capture_output=True, text=True, check=False, timeout=60)


@pytest.fixture
def name() -> Iterator[str]:
    made = f"t{uuid.uuid4().hex[:8]}"
    yield made
    penumbra("lab", "down", "--name", made)
    assert remains(made) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("part", ["host1", "web-1"])
def test_cut_short_lab_up_leaves_nothing(name: str, number: signal.Signals, part: str) -> None:
    begun = {"host1": processes.NETNS / f"{name}-host1", "web-1": state.RUN / f"lab-{name}/web-1.log"}
    for _ in range(5):
        maker = subprocess.Popen([PENUMBRA, "lab", "up", "--name", name], start_new_session=True)
        eventually(begun[part].exists)
        os.killpg(maker.pid, number)
        if maker.wait(20) != 0:
            assert remains(name) == []
            return
        # The signal came when it was done: then it is up, as it said.
        assert penumbra("lab", "down", "--name", name).returncode == 0
    pytest.fail("no signal came in time")


def test_a_killed_lab_up_is_no_obstacle_to_the_next(name: str) -> None:
    maker = subprocess.Popen([PENUMBRA, "lab", "up", "--name", name])
    eventually((state.RUN / f"lab-{name}/web-1.log").exists)
    maker.kill()
    maker.wait()
    assert Lab(Topology(name)).status().abandoned
    again = penumbra("lab", "up", "--name", name)
    assert again.returncode == 0, again.stderr
    assert len(Lab(Topology(name)).status().pids) == 1
    twice = penumbra("lab", "up", "--name", name)
    assert (twice.returncode, twice.stderr.count("\n")) == (1, 1)
    assert f"penumbra lab down --name {name}" in twice.stderr


@pytest.mark.parametrize("unloaded_first", [False, True], ids=["in use", "unloaded before"])
def test_lab_down_takes_its_instance_and_the_records_of_its_shadows_along(
    name: str, unloaded_first: bool
) -> None:
    assert penumbra("lab", "up", "--name", name).returncode == 0
    lab = Lab(Topology(name))
    config = str(lab.folder / "penumbra.yml")
    subprocess.run(lab.argv(AP, [PENUMBRA, "load", config]), check=True, capture_output=True)
    records = state.RUN / name / "shadows"
    records.mkdir(parents=True)
    (records / "web-1-s1.json").write_text(json.dumps({"shadow": "web-1-s1", "netns": f"{name}-host2"}))
    (records / "web-1-s1.log").touch()
    other = state.RUN / f"{name}-other/shadows/web-1-s1.json"
    other.parent.mkdir(parents=True)
    other.write_text(json.dumps({"shadow": "web-1-s1", "netns": "elsewhere"}))
    try:
        if unloaded_first:
            assert penumbra("unload", "--instance", name).returncode == 0
        down = penumbra("lab", "down", "--name", name)
        assert (down.returncode, down.stderr) == (0, "")
        assert other.exists()
    finally:
        other.unlink()
        other.parent.rmdir()
        other.parents[1].rmdir()
    assert remains(name) == []


def test_lab_down_takes_along_what_a_copy_of_its_configuration_loaded_and_says_so(
    name: str, tmp_path: Path
) -> None:
    assert penumbra("lab", "up", "--name", name).returncode == 0
    lab, copy = Lab(Topology(name)), tmp_path / "copy.yml"
    text = (lab.folder / "penumbra.yml").read_text()
    copy.write_text(text.replace(f"instance: {name}\n", f"instance: {name}-copy\n"))
    subprocess.run(lab.argv(AP, [PENUMBRA, "load", str(copy)]), check=True, capture_output=True)
    down = penumbra("lab", "down", "--name", name)
    assert (down.returncode, down.stderr) == (0, "")
    assert f"instance {name}-copy, loaded in it from {copy}, is unloaded" in down.stdout
    assert remains(name) == []


def test_ctrl_c_ends_traffic_with_its_summary(name: str) -> None:
    assert penumbra("lab", "up", "--name", name).returncode == 0
    argv = [PENUMBRA, "lab", "traffic", "--name", name, "--trace", "mongo_burst", "--peak", "60"]
    sender = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, start_new_session=True)
    eventually(lambda: len(Lab(Topology(name)).status().pids) == 2)
    (generator,) = (pid for pid in Lab(Topology(name)).status().pids if "lab.traffic" in command_of(pid))
    # Until it catches signals itself.
    eventually(lambda: int(caught_by(generator), 16) & (1 << (signal.SIGTERM - 1)))
    os.killpg(sender.pid, signal.SIGINT)
    out, _ = sender.communicate(timeout=20)
    assert sender.returncode == 0
    assert json.loads(out)["requests"] >= 0


def command_of(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_text()


def caught_by(pid: int) -> str:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(line.split()[1] for line in lines if line.startswith("SigCgt"))


WRONG = {
    "an unknown trace": ("--trace", "nope"),
    "a missing file": ("--trace", "missing.csv"),
    "a folder": ("--trace", "/usr"),
    "a negative peak": ("--trace", "mongo_burst", "--peak", "-3"),
    "a peak that is no number": ("--trace", "mongo_burst", "--peak", "nan"),
    "an endless duration": ("--trace", "mongo_burst", "--duration", "inf"),
    "too high a peak": ("--trace", "mongo_burst", "--peak", "1e12"),
    "too long a duration": ("--trace", "mongo_burst", "--duration", "1e12"),
    "a negative seed": ("--trace", "mongo_burst", "--seed", "-1"),
}


def test_traffic_that_can_not_be_is_wrong_usage(name: str) -> None:
    assert penumbra("lab", "up", "--name", name).returncode == 0
    for what, argv in WRONG.items():
        done = penumbra("lab", "traffic", "--name", name, *argv)
        assert done.returncode == 2, what
        assert "Traceback" not in done.stderr, what
        assert any(said in done.stderr for said in ("allowed", "there are", "can't be read", "should be")), (
            what
        )


@pytest.mark.parametrize("command", ["up", "down", "status", "traffic"])
def test_without_root_a_line_says_what_to_do(command: str) -> None:
    more = ("--trace", "mongo_burst") if command == "traffic" else ()
    done = penumbra("lab", command, *more, before=tuple(NOBODY))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "penumbra: a lab needs root (network namespaces): run it with sudo\n"
