# SPDX-License-Identifier: Apache-2.0
"""The demo itself: kept promises, broken ones, a flat trace, and what is left when it is cut short."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from controlplane.config import parse
from controlplane.lab.demo import clear_remains
from controlplane.lab.demo_ending import Ending
from controlplane.lab.demo_setting import Setting, course_of
from controlplane.lab.topology import Topology
from controlplane.lab.trace import flat
from controlplane.record import redone
from tests.netns.remains import remains
from tests.netns.steered import eventually

RUN = Path("/run/penumbra")
FLAT = "timestamp,value\n" + "".join(f"{60 * minute},20\n" for minute in range(30))


@dataclass(frozen=True)
class Demo:
    """The demo under a name of its own."""

    name: str
    out: Path

    @property
    def output(self) -> Path:
        return self.out / "output"

    def start(self, *options: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "controlplane.lab.demo", "--name", self.name, *options]
        with self.output.open("wb") as file:
            return subprocess.Popen(
                [*command, "--out", str(self.out)], stdout=file, stderr=file, start_new_session=True
            )

    def run(self, *options: str, within_s: float) -> int:
        process = self.start(*options)
        try:
            return process.wait(within_s)
        finally:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
                process.wait(60)

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def figures(self) -> dict[str, object]:
        return json.loads((self.out / "demo.json").read_text())


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    made = Demo(f"d{uuid.uuid4().hex[:7]}", tmp_path)
    assert remains(made.name) == []
    yield made
    left = remains(made.name)
    if left:
        setting = Setting(Topology(made.name), course_of(flat(20, 60), 10))
        clear_remains(setting, Ending(lambda: None))
    assert left == []


@pytest.mark.calm
@pytest.mark.slow
def test_with_a_forecast_the_shadow_is_ready_in_time_and_gone_at_the_end(demo: Demo) -> None:
    code = demo.run("--only", "penumbra", "--duration", "54", within_s=150)
    assert code == 0, demo.said()
    found = demo.figures()
    run = found["penumbra"]
    assert run["failed"] == 0
    assert run["shadows"] >= 1
    assert run["forecast_ahead_s"] > 0
    assert run["p99_ms"] <= 2 * run["quiet_p99_ms"]
    assert found["shadow_serving_before_crossing_s"] > 0
    assert found["rise_s"] <= 3 * found["lead_time_s"]
    for said in ("Kept:", "Lead time:", "decision to first byte", "web-1 +1 on host2"):
        assert said in demo.said()
    assert "<svg" in (demo.out / "demo.svg").read_text()
    with (demo.out / "demo.jsonl").open() as lines:
        decisions = list(redone(lines, parse))
    assert sum(one.act == "add" for one in decisions) >= run["shadows"]
    assert [one for one in decisions if not one.is_same] == []


@pytest.mark.calm
@pytest.mark.slow
def test_with_the_forecast_frozen_the_same_run_breaks_its_promises(demo: Demo) -> None:
    """The negative control of the run above: the same assertions, nothing foreseen."""
    code = demo.run("--only", "penumbra", "--forecast", "none", "--duration", "54", within_s=150)
    assert code == 1, demo.said()
    found = demo.figures()
    # The fault hit: never did the forecast say more than what was there already.
    assert found["penumbra"]["forecast_ahead_s"] == 0
    assert found["penumbra"]["failed"] == 0
    assert found["shadow_serving_before_crossing_s"] <= 0
    assert any("after the load crossed capacity" in sentence for sentence in found["broken"])


@pytest.mark.slow
def test_a_flat_trace_starts_no_shadow(demo: Demo) -> None:
    trace = demo.out / "flat.csv"
    trace.write_text(FLAT)
    code = demo.run("--only", "penumbra", "--trace", str(trace), "--duration", "15", within_s=90)
    assert code == 0, demo.said()
    found = demo.figures()
    assert found["penumbra"]["shadows"] == 0
    assert found["penumbra"]["requests"] > 1000
    assert found["rise_s"] is None


MOMENTS = {
    "Ctrl-C while the lab is being made": (signal.SIGINT, "run: Penumbra", 0.3, 130),
    "SIGTERM while a shadow is being made": (signal.SIGTERM, "1 provisioning", 0.5, 143),
}


@pytest.mark.slow
@pytest.mark.parametrize(("number", "said", "later_s", "code"), MOMENTS.values(), ids=MOMENTS.keys())
def test_cut_short_it_leaves_nothing(
    demo: Demo, number: signal.Signals, said: str, later_s: float, code: int
) -> None:
    process = demo.start("--only", "penumbra", "--duration", "45")
    try:
        if said == "run: Penumbra":
            eventually(lambda: (RUN / f"lab-{demo.name}.json").exists(), 20, demo.said)
        else:
            eventually(lambda: said in demo.said(), 60, demo.said)
        until = time.monotonic() + later_s
        eventually(lambda: time.monotonic() > until, 10, str)
        assert remains(demo.name) != []
        os.killpg(process.pid, number)
        os.killpg(process.pid, number)
        assert process.wait(40) == code, demo.said()
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
    assert remains(demo.name) == []
    assert "nothing is left" in demo.said()


@pytest.mark.slow
def test_what_a_killed_demo_left_is_removed_by_the_next(demo: Demo) -> None:
    process = demo.start("--only", "penumbra", "--duration", "45")
    eventually(lambda: "1 provisioning" in demo.said(), 60, demo.said)
    process.kill()
    process.wait()
    assert remains(demo.name) != []
    trace = demo.out / "flat.csv"
    trace.write_text(FLAT)
    assert demo.run("--only", "none", "--trace", str(trace), "--duration", "10", within_s=60) == 0, (
        demo.said()
    )
    assert remains(demo.name) == []


WRONG = {
    "a target that is none": (["--target", "vm"], "TARGET=vm: netns or docker is allowed"),
    "a trace that is not there": (["--trace", "no.csv"], "no.csv: can't be read"),
    "a name that is none": (["--name", "A/b"], "lab name 'A/b'"),
}


@pytest.mark.parametrize(("options", "said"), WRONG.values(), ids=WRONG.keys())
def test_wrong_use_is_told_in_one_line(options: list[str], said: str) -> None:
    command = [sys.executable, "-m", "controlplane.lab.demo", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1


LACKING = {
    "no engine": (
        ["--target", "docker"],
        {"PATH": "/nowhere"},
        "dockerd is missing: apt-get install docker.io",
    ),
    "no room for the picture": (["--out", "/proc/demo"], {}, "/proc/demo"),
}


@pytest.mark.parametrize(("options", "changed", "said"), LACKING.values(), ids=LACKING.keys())
def test_what_is_lacking_is_told_before_anything_is_made(
    options: list[str], changed: dict[str, str], said: str
) -> None:
    command = [sys.executable, "-m", "controlplane.lab.demo", "--name", f"d{uuid.uuid4().hex[:7]}", *options]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=60, env={**os.environ, **changed}
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert said in done.stderr
    assert len(done.stderr.splitlines()) == 1
