# SPDX-License-Identifier: Apache-2.0
"""What a lab made, written down before it makes it, so that any later process can clean up.

``/run/penumbra/lab-NAME.json``; files are replaced, never written in place.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from controlplane.lab.processes import Identity

RUN = Path("/run/penumbra")


@dataclass(frozen=True, slots=True)
class State:
    """Everything that exists, or may exist, because of a lab."""

    lab: str
    owner: Identity | None
    """Who made it and will take it down; None: it stays until somebody does."""
    complete: bool = False
    namespaces: tuple[str, ...] = ()
    folder: str = ""
    processes: tuple[Identity, ...] = ()
    ip_version: int = 4

    @property
    def abandoned(self) -> bool:
        """Remains: its owner died, or it was never finished."""
        if self.owner is not None:
            return not self.owner.alive
        return not self.complete

    def adding(self, process: Identity) -> State:
        living = tuple(one for one in self.processes if one.alive)
        return replace(self, processes=(*living, process))


def path(lab: str) -> Path:
    return RUN / f"lab-{lab}.json"


def read(lab: str) -> State | None:
    """None: no such lab."""
    try:
        raw = json.loads(path(lab).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return State(
        lab=raw["lab"],
        owner=Identity(**raw["owner"]) if raw["owner"] else None,
        complete=raw["complete"],
        namespaces=tuple(raw["namespaces"]),
        folder=raw["folder"],
        processes=tuple(Identity(**one) for one in raw["processes"]),
        ip_version=raw.get("ip_version", 4),
    )


def write(state: State) -> None:
    RUN.mkdir(mode=0o755, exist_ok=True)
    target = path(state.lab)
    fresh = target.with_suffix(f".{os.getpid()}")
    fresh.write_text(json.dumps(asdict(state)), encoding="utf-8")
    fresh.replace(target)


def forget(lab: str) -> None:
    path(lab).unlink(missing_ok=True)
    for fresh in RUN.glob(f"lab-{lab}.[0-9]*"):
        fresh.unlink(missing_ok=True)


@contextmanager
def claiming() -> Iterator[None]:
    """One process at a time looks at state files and decides whose a lab is. Leaves no lock file."""
    RUN.mkdir(mode=0o755, exist_ok=True)
    descriptor = os.open(RUN, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
