# SPDX-License-Identifier: Apache-2.0
"""What Penumbra makes of recorded load, beside HPA, also on a trend: ``python -m tests.score [FOLDER ...]``.

Without a folder: the traces beside this file. Each trace's score is kept in build/score.jsonl, with a hash of
the code that made it, so that a run that was broken off goes on, and one that nothing has changed is read.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, astuple
from pathlib import Path

import numpy as np

from controlplane import forecast, simulation, sizing
from tests.score.replay import Trace, traces
from tests.score.scores import POLICIES, Outcome, outcome

SHIPPED = Path(__file__).with_name("traces")
KEPT = Path("build/score.jsonl")
COLUMNS = "over % (without jumps) / lost % (without jumps) / cost, starts, reversals within ten minutes"
AZURE = "azure_llm"
"""An hour each: too little to learn from, so they are listed apart as well."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.score", description=__doc__)
    parser.add_argument("folder", nargs="*", type=Path, default=[SHIPPED])
    parser.add_argument("--lead", nargs="+", type=int, default=[60], help="seconds from an order to service")
    parser.add_argument("--speed", type=float, default=1.0, help="samples go by so many times faster")
    given = parser.parse_args()
    for lead_s in given.lead:
        print(f"\nlead {lead_s} s, speed {given.speed:g}: {COLUMNS}")
        found = {
            trace.name: scored(trace, lead_s, given.speed)
            for folder in given.folder
            for trace in traces(folder, given.speed)
        }
        for name, by_policy in found.items():
            print(f"{name:28s} " + "  ".join(shown(policy, by_policy[policy]) for policy in POLICIES))
        apart = {name: row for name, row in found.items() if not name.startswith(AZURE)}
        for label, rows in (("mean", found), ("mean without the hours", apart)):
            if rows:
                means = (f"{policy} {mean(rows, policy)}" for policy in POLICIES)
                print(f"{label:28s} " + "  ".join(means))
                print(f"{'':28s} {ratios(rows)}")


def scored(trace: Trace, lead_s: int, speed: float) -> dict[str, Outcome]:
    code = version()
    key = [trace.name, lead_s, speed, code]
    KEPT.parent.mkdir(exist_ok=True)
    KEPT.touch()
    for line in KEPT.read_text().splitlines():
        kept = json.loads(line)
        if kept["key"] == key:
            return {policy: Outcome(**kept[policy]) for policy in POLICIES}
    made = {policy: outcome(trace, float(lead_s), policy) for policy in POLICIES}
    with KEPT.open("a") as file:
        file.write(json.dumps({"key": key} | {policy: asdict(one) for policy, one in made.items()}) + "\n")
    return made


def version() -> str:
    """Of all that a score depends on."""
    rooms = [Path(str(room.__file__)).parent for room in (forecast, simulation)] + [Path(__file__).parent]
    files = [Path(str(sizing.__file__)), *(path for room in rooms for path in room.glob("*.py"))]
    return hashlib.blake2b(b"".join(path.read_bytes() for path in sorted(files)), digest_size=8).hexdigest()


def shown(policy: str, one: Outcome) -> str:
    return f"{policy} {_losses(one)} {one.starts:6d} {one.reversals:5d}"


def mean(rows: dict[str, dict[str, Outcome]], policy: str) -> str:
    outcomes = [row[policy] for row in rows.values()]
    starts = sum(one.starts for one in outcomes)
    return f"{_losses(averaged(outcomes))} {starts:6d} {'':5s}"


def averaged(outcomes: Sequence[Outcome]) -> Outcome:
    return Outcome(*np.mean([astuple(one) for one in outcomes], axis=0).tolist())


def _losses(one: Outcome) -> str:
    return (
        f"{one.over:6.3f} ({one.over_inexcusably:6.3f}) / "
        f"{one.lost:6.3f} ({one.lost_inexcusably:6.3f}) / {one.cost:5.3f}"
    )


def ratios(rows: dict[str, dict[str, Outcome]]) -> str:
    """Penumbra's means as parts of each other policy's."""
    ours, *others = (averaged([row[policy] for row in rows.values()]) for policy in POLICIES)
    parts = [_part(ours, its) for its in others]
    return "  ".join(
        f"of {policy}'s {_losses(part)}" for policy, part in zip(POLICIES[1:], parts, strict=True)
    )


def _part(one: Outcome, of: Outcome) -> Outcome:
    with np.errstate(divide="ignore", invalid="ignore"):
        return Outcome(*np.divide(astuple(one), astuple(of)).tolist())


if __name__ == "__main__":
    main()
