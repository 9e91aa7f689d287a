# SPDX-License-Identifier: Apache-2.0
"""The demo's second scene, played: reads, writes, a shadow, a cut; and what was seen."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from controlplane.adapters import status_file
from controlplane.adapters.clock import MachineClock
from controlplane.adapters.sqlite import SqliteStore
from controlplane.lab import processes
from controlplane.lab.database import PORT, Database
from controlplane.lab.database_traffic import Read, Stage, Write, of_row
from controlplane.lab.demo_ending import Ending
from controlplane.lab.demo_run import PENUMBRA, clear
from controlplane.lab.demo_setting import course_text
from controlplane.lab.lab import Lab
from controlplane.lab.network import LabError
from controlplane.lab.records import Lines
from controlplane.lab.stateful_report import Scene, Sight, ages_s
from controlplane.lab.stateful_setting import (
    CAPACITY,
    CUT_S,
    FALLING,
    HOLDING,
    LIVE_HOST,
    MAX_LAG_S,
    QUIET_S,
    RISING,
    SHADOW_HOST,
    WRITES_PER_S,
    Setting,
)
from controlplane.lab.topology import AP, CLIENTS
from controlplane.ports import StoreError

LOOK_S = 0.25
BEGIN_WITHIN_S = 30.0
SERVES_WITHIN_S = 60.0
"""Past the rise of load, on a machine that is busy with other things."""
BACK_WITHIN_S = 45.0
GONE_WITHIN_S = 150.0
"""Also where it is ordered once more before the crowd is forgotten (two minutes)."""
ENOUGH_READS = 20
"""So many at the shadow, before and after the cut."""
RECENT_S = 3.0


@dataclass(frozen=True, slots=True)
class Moment:
    """For the eyes, while it goes on; rates of the last seconds."""

    at_s: float
    phase: str
    offered: float
    by_original: float
    by_shadow: float
    seen: Sight | None
    oldest_s: float
    """Of what was read at the shadow of late."""
    p99_ms: float | None
    failed: int
    written: int
    said: str


@dataclass(slots=True)
class Recording:
    reads: list[Read] = field(default_factory=list)
    writes: list[Write] = field(default_factory=list)
    stages: list[Stage] = field(default_factory=list)
    seen: list[Sight] = field(default_factory=list)
    said: str = ""
    cut_s: float | None = None
    healed_s: float | None = None
    ended_s: float = 0.0


def play(setting: Setting, clock: MachineClock, ending: Ending, show: Callable[[Moment], None]) -> Scene:
    """From an empty machine to an empty machine. Raises ``LabError``."""
    lab = Lab(setting.topology)
    run = _Run(setting, lab, clock, ending, show)
    lab.up()
    try:
        run.begin()
        run.follow()
        return run.scene()
    finally:
        with ending.blocked():
            run.clear()


class _Run:
    def __init__(
        self, setting: Setting, lab: Lab, clock: MachineClock, ending: Ending, show: Callable[[Moment], None]
    ) -> None:
        self._setting, self._lab, self._clock, self._ending, self._show = setting, lab, clock, ending, show
        self._database = Database(lab, LIVE_HOST)
        self._controller: subprocess.Popen[bytes] | None = None
        self._traffic: dict[str, subprocess.Popen[bytes]] = {}
        self._store: SqliteStore | None = None
        self._lines: list[Lines] = []
        self._recording = Recording()
        self._live = str(setting.topology.node(LIVE_HOST).address)

    # ---- begin and end --------------------------------------------------------------------

    def begin(self) -> None:
        """Database, steering, traffic, controller: in the order in which a user has them."""
        lab, topology = self._lab, self._setting.topology
        self._database.make()
        self._wait(self._database.answers, "PostgreSQL does not answer", "database")
        self._database.fill()
        state_dir, config = lab.folder / "state", lab.folder / "penumbra.yml"
        config.write_text(self._setting.yaml(self._database, state_dir), encoding="utf-8")
        lab.run(AP, [PENUMBRA, "load", str(config)])
        self._ending.check()

        # Clients of the service can't reach a member as itself; the application that writes is beside it.
        self._start(LIVE_HOST, "writes", f"{self._live}:{PORT}", ["--writes", f"{WRITES_PER_S:g}"])
        reads = []
        for course in self._setting.courses:
            path = lab.folder / f"{course.name}.csv"
            path.write_text(course_text(course), encoding="utf-8")
            reads += ["--trace", str(path)]
        self._start(CLIENTS, "reads", f"{topology.vip}:{topology.vip_port}", reads)
        self._wait(lambda: bool(self._taken().reads and self._recording.writes), "nothing is read", "reads")
        self._controller = lab.popen(AP, [PENUMBRA, "run", str(config)], label="controller")
        self._store = SqliteStore(state_dir, topology.lab)

    def _start(self, node: str, label: str, target: str, options: list[str]) -> None:
        argv = [sys.executable, "-m", "controlplane.lab.database_traffic", "--target", target, *options]
        records = self._lab.folder / f"{label}.jsonl"
        self._traffic[label] = self._lab.popen(node, [*argv, "--records", str(records)], label=label)
        self._lines.append(Lines(records))

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
        self._end_traffic()
        if self._controller is not None and self._controller.poll() is None:
            self._controller.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._controller.wait(10)
        if self._store is not None:
            self._store.close()
        self._database.stop()
        clear(self._lab)

    def _end_traffic(self) -> None:
        for child in self._traffic.values():
            if child.poll() is None:
                child.send_signal(signal.SIGTERM)
                with suppress(subprocess.TimeoutExpired):
                    child.wait(15)

    # ---- the scene ------------------------------------------------------------------------

    def follow(self) -> None:
        """Each step waits for the one before, and goes on without it past its time: the verdict tells."""
        recording = self._recording
        self._until("load rises", self._is_over_peak, self._risen_s + SERVES_WITHIN_S)
        if self._served_since(0.0) >= ENOUGH_READS:
            self._next_stage(HOLDING)
            self._until("shadow serves", lambda: self._is_past(HOLDING, 5.0), 10.0)
            self._cut("-A")
            recording.cut_s = self._clock.unix_s()
            self._until("shadow is cut off", lambda: False, CUT_S)
            self._cut("-D")
            recording.healed_s = healed_s = self._clock.unix_s()
            self._until("healed", lambda: self._served_since(healed_s) >= ENOUGH_READS, BACK_WITHIN_S)
        self._next_stage(FALLING)
        self._until("load falls", self._is_empty, GONE_WITHIN_S)
        recording.ended_s = self._clock.unix_s()
        self._end_traffic()
        self._taken()

    def _until(self, phase: str, condition: Callable[[], bool], within_s: float) -> None:
        due_s = self._clock.now_s() + within_s
        while self._clock.now_s() < due_s:
            self._look(phase)
            self._require_alive()
            if condition():
                return
            self._pause()

    @property
    def _risen_s(self) -> float:
        return QUIET_S + self._setting.rise_s

    def _is_over_peak(self) -> bool:
        """The load was at its peak for some seconds, and the shadow had a part of it."""
        return self._is_past(RISING, self._risen_s + 4.0) and self._served_since(0.0) >= ENOUGH_READS

    def _is_past(self, stage: int, seconds: float) -> bool:
        began_s = next((one.began_s for one in self._recording.stages if one.stage == stage), None)
        return began_s is not None and self._clock.unix_s() >= began_s + seconds

    def _served_since(self, at_s: float) -> int:
        """Reads that began after that moment and were answered by the shadow."""
        return sum(
            one.begun_s >= at_s and one.error is None and one.served_by != self._live
            for one in self._recording.reads
        )

    def _is_empty(self) -> bool:
        seen = self._recording.seen
        return self._is_past(FALLING, 3.0) and bool(seen) and seen[-1].state is None

    def _next_stage(self, stage: int) -> None:
        self._traffic["reads"].send_signal(signal.SIGUSR1)
        self._until("next load", lambda: self._is_past(stage, 0.0), BEGIN_WITHIN_S)

    def _cut(self, how: str) -> None:
        """Whatever the original sends to the shadow's host is lost; clients reach the shadow as before."""
        self._lab.run(SHADOW_HOST, ["iptables", how, "INPUT", "-s", self._live, "-j", "DROP"])

    def _require_alive(self) -> None:
        children = {"controller": self._controller, **self._traffic}
        for label, child in children.items():
            if child is not None and (code := child.poll()) is not None:
                raise LabError(f"the {label} ended with {code}: {self._lab.tail(label)}")

    # ---- what is seen ---------------------------------------------------------------------

    def _taken(self) -> Recording:
        recording = self._recording
        for row in (row for lines in self._lines for row in lines.read()):
            match of_row(row):
                case Read() as read:
                    recording.reads.append(read)
                case Write() as write:
                    recording.writes.append(write)
                case Stage() as stage:
                    recording.stages.append(stage)
        return recording

    def _look(self, phase: str) -> None:
        recording = self._taken()
        with suppress(StoreError):  # busy; it is asked again
            self._take_status()
        at_s = self._clock.unix_s()
        recent = [one for one in recording.reads[-2000:] if one.ended_s > at_s - RECENT_S and not one.error]
        by_shadow = [one for one in recent if one.served_by != self._live]
        old_s = ages_s(by_shadow, recording.writes, np.array([one.begun_s for one in by_shadow]))
        latency_ms = [one.latency_s * 1000 for one in recent]
        self._show(
            Moment(
                at_s=at_s - recording.stages[0].began_s,
                phase=phase,
                offered=self._offered(at_s),
                by_original=(len(recent) - len(by_shadow)) / RECENT_S,
                by_shadow=len(by_shadow) / RECENT_S,
                seen=recording.seen[-1] if recording.seen else None,
                oldest_s=float(old_s.max(initial=0.0)),
                p99_ms=float(np.quantile(latency_ms, 0.99)) if latency_ms else None,
                failed=sum(one.error is not None for one in recording.reads),
                written=sum(one.error is None for one in recording.writes),
                said=recording.said,
            )
        )

    def _offered(self, at_s: float) -> float:
        """Reads/s."""
        begun = [one for one in self._recording.stages if one.began_s <= at_s]
        return float(self._setting.courses[begun[-1].stage].at(at_s - begun[-1].began_s)) if begun else 0.0

    def _take_status(self) -> None:
        text = status_file.read(self._setting.topology.lab)
        if self._store is None or text is None:
            return
        sight = sight_of(json.loads(text))
        seen = self._recording.seen
        if not seen or sight.at_s > seen[-1].at_s:
            seen.append(sight)
        newest = self._store.decisions(1)
        self._recording.said = newest[0].reason if newest else ""

    def scene(self) -> Scene:
        """What is left is looked at while the original still runs."""
        recording, topology = self._recording, self._setting.topology
        began_s = recording.stages[RISING].began_s
        at_s = np.arange(began_s, recording.ended_s, LOOK_S)
        left = self._database.left()
        left += [str(path) for path in self._database.data_dir.rglob("*")]
        shadows = self._lab.folder.with_name(topology.lab) / "shadows"
        left += [str(path) for path in shadows.glob("*")]
        left += [f"process {one.pid}" for one in processes.residents([topology.namespace(SHADOW_HOST)])]
        return Scene(
            live=self._live,
            max_lag_s=MAX_LAG_S,
            capacity=CAPACITY,
            crossing_s=began_s + self._setting.crossing_s,
            reads=recording.reads,
            writes=recording.writes,
            seen=recording.seen,
            offered=[(float(at), self._offered(float(at))) for at in at_s],
            cut_s=recording.cut_s,
            healed_s=recording.healed_s,
            found=self._database.numbers(),
            left=left,
        )


def sight_of(status: Mapping[str, Any]) -> Sight:
    group = status["services"][0]["groups"][0]
    shadow = group["shadows"][0] if group["shadows"] else None
    lag = (shadow["lag"] if shadow else None) or {}
    return Sight(
        at_s=status["at_unix_s"],
        demand=group["demand"],
        forecast=group["high"],
        spill=group["spill"],
        state=shadow["state"] if shadow else None,
        lag_s=lag.get("seconds"),
        is_open=bool(lag.get("is_open")),
    )
