# SPDX-License-Identifier: Apache-2.0
"""Processes of a playbook run, known by an environment variable that all of them inherit.

ansible-runner ends the process group of ansible-playbook, but a module calls setsid and lives on, and may
still make what nobody waits for. A process-id namespace would end it, and with it the shadow that it just
started; a label in the environment tells them apart, for a shadow has its original's environment.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
from pathlib import Path

LABEL = "PENUMBRA_RUN"
_SETTLED = 2
"""Scans in a row without a find: a process may fork between two of its entries being read."""


def start_ticks(pid: int) -> str | None:
    """When a process was started (proc(5), field 22): with its pid this names it. None: gone, or a zombie."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in "ZX" else fields[19]


def owner_label() -> str:
    """PID-START of this process: the first part of the labels of its runs."""
    return f"{os.getpid()}-{start_ticks(os.getpid())}"


def owner_lives(owner: str) -> bool:
    pid, _, ticks = owner.partition("-")
    return pid.isdigit() and start_ticks(int(pid)) == ticks


def labels() -> dict[int, str]:
    """Process -> the value of its label, for all that have one and still run."""
    found = {}
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            entries = (folder / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        for entry in entries:
            name, _, value = entry.partition(b"=")
            if name.decode(errors="replace") == LABEL and start_ticks(int(folder.name)) is not None:
                found[int(folder.name)] = value.decode(errors="replace")
    return found


def end_run(label: str, within_s: float = 5.0) -> bool:
    """Kills all processes with this label, until none is left. False: some were left when time was up."""
    pause = threading.Event()
    calm = 0
    for _ in range(int(within_s / 0.01)):
        mine = [pid for pid, value in labels().items() if value == label]
        calm = 0 if mine else calm + 1
        if calm == _SETTLED:
            return True
        for pid in mine:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        if mine:
            pause.wait(0.01)
    return False


def clear_stale(runs: Path, instance: str) -> None:
    """What runs of dead controllers left: their processes and folders (PID-START-INSTANCE-COUNT)."""
    for label in set(labels().values()):
        owner, its = "-".join(label.split("-")[:2]), "-".join(label.split("-")[2:-1])
        if its == instance and not owner_lives(owner):
            end_run(label)
    for folder in runs.iterdir() if runs.is_dir() else ():
        if not owner_lives("-".join(folder.name.split("-")[:2])):
            shutil.rmtree(folder, ignore_errors=True)
