# SPDX-License-Identifier: Apache-2.0
"""One run of the demo: a fresh lab, a live endpoint, steering, traffic, the controller; and what was seen."""

from __future__ import annotations

import json
import math
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from controlplane.adapters import status_file
from controlplane.adapters.clock import MachineClock
from controlplane.adapters.sqlite import SqliteStore
from controlplane.lab.demo_ending import Ending
from controlplane.lab.demo_engines import Engines
from controlplane.lab.demo_setting import (
    CONCURRENCY,
    LIVE,
    LIVE_HOST,
    PORT,
    SERVICE_TIME_S,
    START_UP_S,
    Kind,
    Setting,
    course_text,
)
from controlplane.lab.lab import Lab
from controlplane.lab.network import LabError
from controlplane.lab.records import Follower, Record
from controlplane.lab.report import Observation, Requests
from controlplane.lab.topology import AP, CLIENTS
from controlplane.ports import StoreError

PENUMBRA = str(Path(sys.executable).with_name("penumbra"))
LOOK_S = 0.25
BEGIN_WITHIN_S = 20.0
GONE_WITHIN_S = 75.0
"""After the end of traffic: idle, drain and removal of two shadows, with some reserve."""
RECENT_S = 3.0


@dataclass(slots=True)
class Recording:
    """What one run showed."""

    kind: Kind
    records: list[Record] = field(default_factory=list)
    seen: list[Observation] = field(default_factory=list)
    sentences: list[tuple[float, str]] = field(default_factory=list)
    """What the controller said, by seconds since the start of traffic."""
    decided: str = ""
    """What it read and decided: ``penumbra simulate --replay`` decides it again."""

    def requests(self) -> Requests:
        """In the order of their intended times."""
        ordered = sorted(self.records, key=lambda record: record.intended_s)
        return Requests(
            intended_s=np.array([record.intended_s for record in ordered]),
            latency_s=np.array([record.latency_s for record in ordered]),
            ok=np.array([not record.failed for record in ordered], dtype=np.bool_),
            served_by=np.array([record.served_by or "" for record in ordered], dtype=np.str_),
        )


@dataclass(frozen=True, slots=True)
class Moment:
    """For the eyes, while a run goes on."""

    kind: Kind
    at_s: float
    offered: float
    """Requests/s."""
    seen: Observation | None
    p99_ms: float
    """Of the last seconds' answers; NaN: there were none."""
    failed: int
    said: str


def play(
    setting: Setting, kind: Kind, clock: MachineClock, ending: Ending, show: Callable[[Moment], None]
) -> Recording:
    """One run, from an empty machine to an empty machine. Raises ``LabError``."""
    lab = Lab(setting.topology)
    run = _Run(setting, kind, lab, clock, ending, show)
    lab.up()
    try:
        run.begin()
        run.follow()
    finally:
        with ending.blocked():
            run.clear()
    return run.recording


class _Run:
    def __init__(
        self,
        setting: Setting,
        kind: Kind,
        lab: Lab,
        clock: MachineClock,
        ending: Ending,
        show: Callable[[Moment], None],
    ) -> None:
        self._setting = setting
        self._lab = lab
        self._clock = clock
        self._ending = ending
        self._show = show
        self._plan = setting.plan
        self._engines: Engines | None = None
        self._controller: subprocess.Popen[bytes] | None = None
        self._traffic: subprocess.Popen[bytes] | None = None
        self._store: SqliteStore | None = None
        self._follower = Follower(lab.folder / "records")
        self._record = lab.folder / "decided.jsonl"
        self._start_unix_s = 0.0
        self.recording = Recording(kind)

    # ---- begin and end --------------------------------------------------------------------

    def begin(self) -> None:
        """Endpoint, steering, traffic, controller: in the order in which a user has them."""
        lab, setting = self._lab, self._setting
        variables: Mapping[str, Mapping[str, object]] = {}
        if setting.target == "docker":
            self._engines = Engines(lab)
            self._engines.start(self._ending.check)
            variables = self._engines.host_variables
            self._engines.run_live()
            self._wait(
                lambda: lab.answers(LIVE_HOST, LIVE, PORT), "the live container does not answer", "engine"
            )
        else:
            lab.endpoint(
                LIVE_HOST,
                name=LIVE,
                port=PORT,
                service_time_s=SERVICE_TIME_S,
                concurrency=CONCURRENCY,
                start_up_s=START_UP_S,
            )
        state_dir = lab.folder / "state"
        config = lab.folder / "penumbra.yml"
        config.write_text(setting.yaml(self.recording.kind, state_dir, variables), encoding="utf-8")
        course = lab.folder / "course.csv"
        course.write_text(course_text(setting.course), encoding="utf-8")
        self._ending.check()
        lab.run(AP, [PENUMBRA, "load", str(config)])

        topology = setting.topology
        traffic = [sys.executable, "-m", "controlplane.lab.traffic", "--trace", str(course)]
        traffic += ["--target", f"{topology.vip}:{topology.vip_port}"]
        traffic += ["--records", str(lab.folder / "records"), "--summary", str(lab.folder / "summary")]
        self._traffic = lab.popen(CLIENTS, traffic, label="traffic")
        self._wait(self._begun, "the traffic generator sends nothing", "traffic")
        run = [PENUMBRA, "run", "--record", str(self._record), str(config)]
        self._controller = lab.popen(AP, run, label="controller")
        self._store = SqliteStore(state_dir, setting.topology.lab)

    def _begun(self) -> bool:
        self._take_records()
        if self._follower.start is None:
            return False
        self._start_unix_s = self._follower.start.start_unix_s
        return True

    def _wait(self, condition: Callable[[], bool], otherwise: str, label: str) -> None:
        due_s = self._clock.now_s() + BEGIN_WITHIN_S
        while not condition():
            if self._clock.now_s() > due_s:
                raise LabError(f"{otherwise}: {self._lab.tail(label)}")
            self._pause()

    def _pause(self) -> None:
        self._clock.wait_until(self._clock.now_s() + LOOK_S)
        self._ending.check()

    def clear(self) -> None:
        """Nothing of it stays, whatever became of it."""
        for child in (self._traffic, self._controller):
            if child is not None and child.poll() is None:
                child.send_signal(signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    child.wait(10)
        if self._record.exists():
            self.recording.decided = self._record.read_text(encoding="utf-8")
        if self._store is not None:
            self._store.close()
        if self._engines is not None:
            self._engines.stop()
        clear(self._lab)

    # ---- while it goes on -----------------------------------------------------------------

    def follow(self) -> None:
        """Until traffic has ended and, with Penumbra, until its shadows are gone."""
        deadline_s = math.inf
        while True:
            self._look()
            self._require_alive()
            if self._traffic is not None and self._traffic.poll() is not None:
                deadline_s = min(deadline_s, self._clock.now_s() + GONE_WITHIN_S)
                seen = self.recording.seen
                empty = bool(seen) and not seen[-1].shadows
                if self.recording.kind is not Kind.PENUMBRA or empty or self._clock.now_s() > deadline_s:
                    break
            self._pause()
        self._take_records()

    def _require_alive(self) -> None:
        for child, label in ((self._controller, "controller"), (self._traffic, "traffic")):
            code = None if child is None else child.poll()
            if code is not None and (label == "controller" or code != 0):
                raise LabError(f"the {label} ended with {code}: {self._lab.tail(label)}")

    def _look(self) -> None:
        self._take_records()
        with suppress(StoreError):  # busy; it is asked again
            self._take_status()
        at_s = self._clock.unix_s() - self._start_unix_s
        answered = [r.latency_s for r in self._recent(at_s)]
        seen = self.recording.seen
        sentences = self.recording.sentences
        self._show(
            Moment(
                kind=self.recording.kind,
                at_s=at_s,
                offered=float(self._setting.course.at(at_s)) if at_s <= self._plan.duration_s else 0.0,
                seen=seen[-1] if seen else None,
                p99_ms=float(np.quantile(answered, 0.99)) * 1000 if answered else math.nan,
                failed=sum(record.failed for record in self.recording.records),
                said=sentences[-1][1] if sentences else "",
            )
        )

    def _recent(self, at_s: float) -> list[Record]:
        found = []
        for record in reversed(self.recording.records):
            if record.intended_s + record.latency_s < at_s - RECENT_S:
                break
            found.append(record)
        return found

    def _take_records(self) -> None:
        self.recording.records += self._follower.read()

    def _take_status(self) -> None:
        text = status_file.read(self._setting.topology.lab)
        if self._store is None or text is None:
            return
        observation = _observation(json.loads(text), self._start_unix_s)
        seen = self.recording.seen
        if observation is not None and (not seen or observation.at_s > seen[-1].at_s):
            seen.append(observation)
        rows = self._store.decisions(200)
        self.recording.sentences = [
            (row.at_unix_s - self._start_unix_s, row.reason) for row in reversed(rows)
        ]


def _observation(status: Mapping[str, Any], start_unix_s: float) -> Observation | None:
    """None: nothing is known of demand yet."""
    group = status["services"][0]["groups"][0]
    if group["level"] is None or group["demand"] is None:
        return None
    return Observation(
        at_s=status["at_unix_s"] - start_unix_s,
        demand=group["demand"],
        level=group["level"],
        forecast=group["high"],
        spill=group["spill"],
        shadows={shadow["name"]: shadow["state"] for shadow in group["shadows"]},
    )


def clear(lab: Lab) -> None:
    """Unloads the lab's instance and removes the lab, also what a killed demo left of both."""
    instance = lab.topology.lab
    done = subprocess.run([PENUMBRA, "unload", "--instance", instance], capture_output=True, check=False)
    lab.down()
    # What controllers and playbooks wrote beside the lab.
    shutil.rmtree(lab.folder.with_name(instance), ignore_errors=True)
    if done.returncode:
        raise LabError(done.stderr.decode(errors="replace").strip())
