# SPDX-License-Identifier: Apache-2.0
"""``make fuzz``: so many random frames; or a failure that was written down, played again. As root."""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from pathlib import Path

from controlplane.adapters import layout
from controlplane.lab import network
from tests.fuzz.both import Both, one_cpu
from tests.fuzz.episodes import FailureError, play, search
from tests.packet.rig import Rig, nowhere

FRAMES = 200_000
FAILED = Path("build/fuzz-failure.jsonl")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--frames", type=int, default=FRAMES, help="at least so many (%(default)s)")
    parser.add_argument(
        "--seed", type=int, default=random.randrange(1 << 32), help="the same, the same frames"
    )
    parser.add_argument("--again", type=Path, metavar="FILE", help=f"play what was written, as {FAILED}")
    asked = parser.parse_args()
    with one_cpu(), nowhere() as name, network.entered(name):
        rig = Rig.load()
        return play_again(rig, asked.again) if asked.again else fuzz(rig, asked.frames, asked.seed)


def play_again(rig: Rig, written: Path) -> int:
    actions = [json.loads(line) for line in written.read_text().splitlines()]
    error = play(rig, actions)
    print(FailureError(actions, error) if error else f"{len(actions)} actions: program and reference agree")
    return 1 if error else 0


def fuzz(rig: Rig, frames: int, seed: int) -> int:
    reasons: Counter[str] = Counter()

    def see(both: Both) -> None:
        counted = rig.reasons.sum(axis=0).tolist()
        reasons.update(dict(zip(layout.REASONS, counted, strict=False)))

    print(f"fuzz: at least {frames} frames, --seed {seed}", flush=True)
    began_s = time.monotonic()
    try:
        search(rig, frames, seed, see)
    except FailureError as failure:
        FAILED.parent.mkdir(exist_ok=True)
        FAILED.write_text("\n".join(map(json.dumps, failure.actions)) + "\n")
        print(f"{failure}\nseed {seed}; again: python -m tests.fuzz --again {FAILED}")
        return 1
    took_s, sent = time.monotonic() - began_s, sum(reasons.values())
    for name in layout.REASONS:
        print(f"  {name:18} {reasons[name]:7}")
    print(f"program and reference agree on {sent} frames; {took_s:.0f} s, {sent / took_s:.0f} a second")
    return 0


if __name__ == "__main__":
    sys.exit(main())
