# SPDX-License-Identifier: Apache-2.0
"""Which instance a command is about, and who runs it: what commands in different processes share."""

from __future__ import annotations

import fcntl
import json
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from controlplane import model, status
from controlplane.adapters import ansible_processes, status_file
from controlplane.adapters.sqlite import SqliteStore
from controlplane.cli.output import EXIT_USAGE, fail, warn

RUN_DIR = status_file.RUN_DIR
PIN_ROOT = Path("/sys/fs/bpf/penumbra")


@dataclass(frozen=True, slots=True)
class Instance:
    """A loaded instance. The record lies in /run: it goes with the maps when the machine restarts."""

    name: str
    config: Path
    state_dir: Path

    def store(self) -> SqliteStore:
        return SqliteStore(self.state_dir, self.name)

    def controller_pid(self) -> int | None:
        return running_controller(self.name)


def remember(config: model.Config, path: Path) -> Instance:
    """Writes the record of a loaded instance, whole or not at all."""
    RUN_DIR.mkdir(mode=0o700, exist_ok=True)
    instance = Instance(config.instance, path.resolve(), config.state_dir)
    record = {"config": str(instance.config), "state_dir": str(instance.state_dir)}
    fresh = _record_path(config.instance).with_suffix(".new")
    fresh.write_text(json.dumps(record))
    fresh.replace(_record_path(config.instance))
    return instance


def config_of(name: str) -> Path | None:
    """The configuration that an instance was loaded from, if it is known."""
    try:
        return Path(json.loads(_record_path(name).read_text())["config"])
    except (OSError, ValueError, KeyError):
        return None


def forget(name: str) -> None:
    _lock_path(name).unlink(missing_ok=True)
    for path in (_record_path(name), clock_path(name), status_file.path_of(name)):
        path.unlink(missing_ok=True)
        path.with_suffix(".new").unlink(missing_ok=True)  # of who was killed while writing it
    its = RUN_DIR / name
    for folder in (its / "runs", its / "servers"):
        ansible_processes.clear_stale(folder, name)
    # Playbooks' folders; not while records of shadows that live on are in them.
    for folder in (its / "runs", its / "servers", its / "shadows", its):
        with suppress(OSError):
            folder.rmdir()


def loaded() -> list[str]:
    try:
        return sorted(path.name for path in PIN_ROOT.iterdir() if path.is_dir())
    except FileNotFoundError:
        return []
    except PermissionError:
        fail("needs root to look at loaded instances: run it with sudo")


def only(given: str | None) -> str:
    """The name that was given, or the only instance's that is loaded. Ends the command if there is none."""
    names = loaded()
    if given is None and len(names) > 1:
        fail(f"several instances are loaded ({', '.join(names)}): name one with --instance", EXIT_USAGE)
    if given is None and not names:
        fail("no instance is loaded: run penumbra load CONFIG first")
    return given if given is not None else names[0]


def find(given: str | None) -> Instance:
    """The named instance, or the only one that is loaded. Ends the command if there is none such."""
    names = loaded()
    if given is None and len(names) > 1:
        fail(f"several instances are loaded ({', '.join(names)}): name one with --instance", EXIT_USAGE)
    name = given if given is not None else (names[0] if names else None)
    if name is None or name not in names:
        what = "no instance is loaded" if given is None else f"instance {given!r} is not loaded"
        known = f" (loaded: {', '.join(names)})" if names else ""
        fail(f"{what}{known}: run penumbra load CONFIG first")
    try:
        record = json.loads(_record_path(name).read_text())
        return Instance(name, Path(record["config"]), Path(record["state_dir"]))
    except (OSError, ValueError, KeyError, TypeError):
        fail(f"{_record_path(name)} is missing or damaged: run penumbra load CONFIG again")


def told(name: str) -> dict[str, Any]:
    """The controller's last status; empty: there is none that can be read."""
    text = status_file.read(name)
    try:
        return status.parsed(text) if text is not None else {}
    except ValueError:
        at = status_file.path_of(name)
        warn(f"{at} is damaged, or another version's: a controller of this version writes it anew")
        return {}


def running_controller(name: str) -> int | None:
    """The process that holds the controller's lock, if one does; 0: it is in another process namespace."""
    try:
        with _lock_path(name).open() as lock:
            return None if _locked(lock) else _holder(lock)
    except FileNotFoundError:
        return None


def hold_controller_lock(name: str) -> IO[str]:
    """Held while the returned file is open (kill -9 closes it). Ends the command if another has it."""
    RUN_DIR.mkdir(mode=0o700, exist_ok=True)
    lock = _lock_path(name).open("a")
    if not _locked(lock):
        fail(f"a controller of instance {name!r} runs already (pid {_holder(lock)})")
    return lock


def _locked(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _holder(lock: IO[str]) -> int:
    """Who has the lock, by the kernel's own list: proc_locks(5), PID and MAJOR:MINOR:INODE."""
    found = os.fstat(lock.fileno())
    its = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    rows = [line.split() for line in Path("/proc/locks").read_text().splitlines()]
    return next((int(row[4]) for row in rows if row[1] == "FLOCK" and row[5] == its), 0)


def _record_path(name: str) -> Path:
    return RUN_DIR / f"{name}.instance.json"


def clock_path(name: str) -> Path:
    """Since when records count the time, the same for all controllers of this boot."""
    return RUN_DIR / f"{name}.clock"


def _lock_path(name: str) -> Path:
    return RUN_DIR / f"{name}.controller"
