# SPDX-License-Identifier: Apache-2.0
"""The demo's second scene: reads of a PostgreSQL spill to a shadow of it, while it is written to.

A ramp of reads, foreseen; a shadow with a copy of the data; a network that is cut and heals; the load falls.
Prints what came of it and writes stateful.json. A read's work is simulated (it holds one of four places for
0.1 s), the rest is real. Exit 0: all promises were kept; 1: one was not, or something did not start;
2: wrong usage. Ctrl-C leaves nothing behind.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console

from controlplane.adapters.clock import MachineClock
from controlplane.lab import database, stateful_report, stateful_view
from controlplane.lab.demo import OUT, require_machine, require_writable
from controlplane.lab.demo_ending import EndedError, Ending
from controlplane.lab.demo_run import clear
from controlplane.lab.lab import Lab
from controlplane.lab.network import LabError
from controlplane.lab.stateful_run import play
from controlplane.lab.stateful_setting import RISE_S, Setting
from controlplane.lab.topology import Topology
from controlplane.ports import DataplaneError, StoreError


def main() -> None:
    arguments = parser().parse_args()
    try:
        setting = setting_of(arguments)
    except ValueError as error:
        print(f"demo-stateful: {error}", file=sys.stderr)  # noqa: T201 - this is the output
        raise SystemExit(2) from None
    try:
        require_machine("netns")
        database.require()
        require_writable(arguments.out)
        raise SystemExit(demo(setting, arguments.out))
    except (LabError, DataplaneError, StoreError, OSError) as error:
        print(f"demo-stateful: {error}", file=sys.stderr)  # noqa: T201 - this is the output
        raise SystemExit(1) from None
    except KeyboardInterrupt:  # before the scene, or after it
        print("demo-stateful: ended by SIGINT, nothing is left", file=sys.stderr)  # noqa: T201 - this is the output
        raise SystemExit(130) from None
    except EndedError as ended:
        print(f"demo-stateful: ended by {ended}, nothing is left", file=sys.stderr)  # noqa: T201 - this is the output
        raise SystemExit(128 + ended.number) from None


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m controlplane.lab.demo_stateful", description=__doc__)
    made.add_argument(
        "--ungated",
        action="store_true",
        help="Penumbra is told that data may be an hour old, and judged as usual: the promise breaks",
    )
    made.add_argument("--rise", type=float, default=RISE_S, metavar="SECONDS", help="of load, to its peak")
    made.add_argument("--name", default="demo-stateful", help="of the lab and of the instance")
    made.add_argument("--out", type=Path, default=OUT, metavar="FOLDER")
    return made


def setting_of(arguments: argparse.Namespace) -> Setting:
    """Raises ``ValueError`` with what is wrong and what is allowed."""
    if not 10 <= arguments.rise <= 600:
        raise ValueError(f"--rise {arguments.rise:g}: 10 to 600 seconds are allowed")
    topology = Topology(arguments.name, hosts_count=2)
    return Setting(topology, is_gated=not arguments.ungated, rise_s=arguments.rise)


def demo(setting: Setting, out: Path) -> int:
    """Plays the scene and reports; the exit code."""
    console = Console()
    clock = MachineClock()
    ending = Ending(clock.wake)
    with ending.installed():
        clear_remains(setting, ending)
        with stateful_view.View(console).showing() as show:
            scene = play(setting, clock, ending, show)
    found = stateful_report.figures(scene)
    broken = stateful_report.broken_promises(scene, found)
    console.print(stateful_view.summary(found))
    for line in stateful_view.verdict(scene, found, broken):
        console.print(line, highlight=False, soft_wrap=True)
    document = stateful_report.as_document(found, broken)
    (out / "stateful.json").write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")
    console.print(f"Written: {out / 'stateful.json'}", highlight=False)
    return 1 if broken else 0


def clear_remains(setting: Setting, ending: Ending) -> None:
    """What a killed demo left; refuses (``LabError``) while another one of that name runs."""
    lab = Lab(setting.topology)
    if lab.status().up:
        lab.up()  # says whose it is
    with ending.blocked():
        clear(lab)


if __name__ == "__main__":
    main()
