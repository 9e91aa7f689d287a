# SPDX-License-Identifier: Apache-2.0
"""The demo: one trace, played without shadows, with reactive ones, and with Penumbra, on this machine.

Prints the runs side by side and writes demo.svg, demo.json and demo.jsonl (what was read and decided).
Exit 0: Penumbra kept its promises; 1: it did not, or something did not start; 2: wrong usage. Ctrl-C leaves
nothing behind.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from controlplane.adapters import pins
from controlplane.adapters.clock import MachineClock
from controlplane.cli import wiring
from controlplane.lab import demo_setting, demo_view, picture, report, trace
from controlplane.lab.demo_ending import EndedError, Ending
from controlplane.lab.demo_engines import Engines
from controlplane.lab.demo_run import Recording, clear, play
from controlplane.lab.demo_setting import FLOWS_PER_REQUEST, Kind, Setting
from controlplane.lab.dockerd import DockerdError
from controlplane.lab.lab import Lab
from controlplane.lab.network import LabError
from controlplane.lab.topology import Topology
from controlplane.model import ForecastMethod
from controlplane.ports import DataplaneError, StoreError

SHIPPED = "mongo_burst"
OUT = Path("build")


def main() -> None:
    arguments = parser().parse_args()
    try:
        setting = setting_of(arguments)
    except (trace.TraceError, ValueError) as error:
        print(f"demo: {error}", file=sys.stderr)  # noqa: T201 - this is the output
        raise SystemExit(2) from None
    try:
        require_machine(setting.target)
        require_writable(arguments.out)
        raise SystemExit(demo(setting, arguments.only or list(Kind), arguments.out))
    except (LabError, DataplaneError, DockerdError, StoreError, OSError) as error:
        print(f"demo: {error}", file=sys.stderr)  # noqa: T201 - this is the output
        raise SystemExit(1) from None
    except KeyboardInterrupt:  # before the first run, or after the last
        print("demo: ended by SIGINT, nothing is left", file=sys.stderr)  # noqa: T201 - this is the output
        raise SystemExit(130) from None
    except EndedError as ended:
        print(f"demo: ended by {ended}, nothing is left", file=sys.stderr)  # noqa: T201 - this is the output
        raise SystemExit(128 + ended.number) from None


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m controlplane.lab.demo", description=__doc__)
    given = os.environ
    made.add_argument(
        "--trace",
        default=given.get("TRACE") or SHIPPED,
        help="a CSV file timestamp,value, or the name of a shipped trace (or variable TRACE)",
    )
    made.add_argument(
        "--target",
        default=given.get("TARGET") or "netns",
        help="netns (processes) or docker (containers) (or variable TARGET)",
    )
    made.add_argument(
        "--only", type=Kind, action="append", metavar="RUN", help="none, reactive or penumbra; repeatable"
    )
    made.add_argument(
        "--forecast",
        choices=[method.value for method in ForecastMethod],
        default=ForecastMethod.AUTO.value,
        help="Penumbra's method; with none it is frozen, and the promises break",
    )
    made.add_argument("--duration", type=float, default=demo_setting.DURATION_S, metavar="SECONDS")
    made.add_argument("--name", default="demo", help="of the lab and of the instance")
    made.add_argument("--out", type=Path, default=OUT, metavar="FOLDER")
    return made


def setting_of(arguments: argparse.Namespace) -> Setting:
    """Raises ``ValueError`` with what is wrong and what is allowed."""
    if arguments.target not in ("netns", "docker"):
        raise ValueError(f"TARGET={arguments.target}: netns or docker is allowed")
    if not 10 <= arguments.duration <= 3600:
        raise ValueError(f"--duration {arguments.duration:g}: 10 to 3600 seconds are allowed")
    named = arguments.trace
    given = trace.named(named)
    course = demo_setting.course_of(given, arguments.duration)
    return Setting(Topology(arguments.name), course, arguments.target, arguments.forecast)


def require_machine(target: str) -> None:
    """Root, BPF, bcc and an engine, or ``DataplaneError`` with the command that gets what is missing."""
    if os.geteuid() != 0:
        raise DataplaneError("it needs root (network namespaces, BPF): run it with sudo")
    pins.mount_bpf_filesystem()
    wiring.require_bpf()
    if target == "docker" and shutil.which("dockerd") is None:
        raise DataplaneError("dockerd is missing: apt-get install docker.io")


def require_writable(out: Path) -> None:
    """Raises ``OSError`` now, rather than when all runs are over."""
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryFile(dir=out):
        pass


def demo(setting: Setting, kinds: Sequence[Kind], out: Path) -> int:
    """Plays the runs and reports; the exit code."""
    console = Console()
    clock = MachineClock()
    ending = Ending(clock.wake)
    view = demo_view.View(console, setting)
    recordings: dict[Kind, Recording] = {}
    with ending.installed():
        clear_remains(setting, ending)
        with view.showing() as show:
            for kind in kinds:
                ending.check()
                recordings[kind] = play(setting, kind, clock, ending, show)
    return tell(console, setting, recordings, out)


def clear_remains(setting: Setting, ending: Ending) -> None:
    """What a killed demo left; refuses (``LabError``) while another one of that name runs."""
    lab = Lab(setting.topology)
    if lab.status().up:
        lab.up()  # says whose it is
    with ending.blocked():
        Engines(lab).stop()
        clear(lab)


def tell(console: Console, setting: Setting, recordings: Mapping[Kind, Recording], out: Path) -> int:
    """Figures, verdict, picture; 1 if a promise was broken."""
    plan = setting.plan
    runs = {
        kind: report.figures(plan, recording.requests(), recording.seen)
        for kind, recording in recordings.items()
    }
    penumbra = recordings.get(Kind.PENUMBRA)
    broken: list[str] = []
    if penumbra is not None:
        named = {kind.value: figures for kind, figures in runs.items()}
        broken = report.broken_promises(plan, named, penumbra.seen)
    console.print(demo_view.summary(runs))
    for line in demo_view.verdict(plan, runs.get(Kind.PENUMBRA), broken):
        console.print(line, highlight=False, soft_wrap=True)
    pictured = {
        kind.value: picture.Run(recording.requests(), recording.seen)
        for kind, recording in recordings.items()
    }
    picture.draw(plan, pictured, FLOWS_PER_REQUEST, out / "demo.svg")
    document = as_document(setting, runs, broken)
    (out / "demo.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    written = ["demo.svg", "demo.json"]
    if Kind.PENUMBRA in recordings:
        (out / "demo.jsonl").write_text(recordings[Kind.PENUMBRA].decided, encoding="utf-8")
        written.append("demo.jsonl")  # what was read and decided
    console.print(f"Written: {', '.join(str(out / name) for name in written)}", highlight=False)
    return 1 if broken else 0


def as_document(
    setting: Setting, runs: Mapping[Kind, report.Figures], broken: Sequence[str]
) -> dict[str, object]:
    """``demo.json``: a run's figures under its name, and what the verdict rests on."""

    def plain(value: object) -> object:
        if not isinstance(value, float):
            return value
        return round(value, 3) if math.isfinite(value) else None  # JSON knows no NaN

    document: dict[str, object] = {
        kind.value: {name: plain(value) for name, value in asdict(figures).items()}
        for kind, figures in runs.items()
    }
    penumbra = runs.get(Kind.PENUMBRA)
    plan = setting.plan
    return document | {
        "shadow_serving_before_crossing_s": plain(
            penumbra.shadow_serving_before_crossing_s if penumbra else None
        ),
        "lead_time_s": plain(penumbra.lead_time_s if penumbra else None),
        "rise_s": plain(plan.rise_s()),
        "crossing_s": plain(plan.crossing_s()),
        "trace": setting.course.name,
        "target": setting.target,
        "broken": list(broken),
    }


if __name__ == "__main__":
    main()
