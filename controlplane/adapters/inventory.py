# SPDX-License-Identifier: Apache-2.0
"""Reads an inventory as Ansible does, by its own ``ansible-inventory --list``, in a thread of its own.

That takes half a second, and a dynamic one as long as whom it asks. What hosts there are is not decided here
(``controlplane/inventory.py``).
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

from controlplane import inventory, model

EVERY_S = 60.0
TIMEOUT_S = 30.0
ANSWER_MOST = 64 << 20
_REASON_MOST = 500
_ENVIRONMENT = {
    # A file that is none is a failure, not an inventory without hosts.
    "ANSIBLE_INVENTORY_UNPARSED_FAILED": "1",
    "ANSIBLE_INVENTORY_ANY_UNPARSED_IS_FAILED": "1",
    "ANSIBLE_NOCOLOR": "1",
    "ANSIBLE_DEPRECATION_WARNINGS": "0",
}

_log = logging.getLogger("penumbra")


class InventoryReadError(ValueError):
    """It can't be read; the message says why."""


def read(path: Path, timeout_s: float = TIMEOUT_S) -> model.Inventory:
    """Blocks. Raises ``InventoryReadError``."""
    if not os.path.exists(path):  # noqa: PTH110 - not Path.exists: that raises where one may not look
        raise InventoryReadError("there is no such file or folder")
    program = Path(sys.executable).parent / "ansible-inventory"
    try:
        process = subprocess.Popen(
            [program, "-i", path, "--list"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(os.environ) | _ENVIRONMENT,
            cwd=path if path.is_dir() else path.parent,
            start_new_session=True,
        )
    except OSError as error:
        raise InventoryReadError(f"ansible-inventory can't be started: {error.strerror}") from None
    try:
        told, errors = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise InventoryReadError(f"no answer within {timeout_s:g} s") from None
    finally:
        _end(process)
    if process.returncode != 0:
        raise InventoryReadError(_why(errors.decode(errors="replace")))
    if len(told) > ANSWER_MOST:
        raise InventoryReadError(f"it has {len(told)} bytes; at most {ANSWER_MOST} are allowed")
    try:
        return inventory.listed(json.loads(told))
    except (ValueError, RecursionError) as error:
        raise InventoryReadError(str(error)) from None


def _end(process: subprocess.Popen[bytes]) -> None:
    """With the scripts that it started."""
    if process.poll() is None:
        os.killpg(process.pid, 9)
        process.communicate()


def _why(errors: str) -> str:
    """The first warning names the file and what is wrong with it; the last line only that something is."""
    lines = [line.strip().removeprefix("[WARNING]: ") for line in errors.splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("<<<", "(source", "[ERROR]"))]
    text = " ".join(dict.fromkeys(said or lines)) or "ansible-inventory failed and said nothing"
    return text if len(text) <= _REASON_MOST else text[: _REASON_MOST - 3] + "..."


class BackgroundInventory:
    """``ports.InventorySource``."""

    def __init__(self, every_s: float = EVERY_S, timeout_s: float = TIMEOUT_S) -> None:
        self._every_s, self._timeout_s = every_s, timeout_s
        self._lock = threading.Lock()
        self._due = threading.Event()
        self._closed = False
        self._path: Path | None = None
        self._inventory: model.Inventory | None = None
        self._trouble = ""
        self._thread = threading.Thread(target=self._keep_reading, name="inventory", daemon=True)
        self._thread.start()

    def watch(self, path: Path | None) -> None:
        with self._lock:
            if path == self._path:
                return
            self._path, self._inventory, self._trouble = path, None, ""
        self._due.set()

    def read_again(self) -> None:
        self._due.set()

    def inventory(self) -> model.Inventory | None:
        with self._lock:
            return self._inventory

    def trouble(self) -> str:
        with self._lock:
            return self._trouble

    def close(self) -> None:
        """A reading that is under way ends by itself."""
        self._closed = True
        self._due.set()

    def _keep_reading(self) -> None:
        while not self._closed:
            self._due.clear()
            with self._lock:
                path = self._path
            if path is not None:
                self._read(path)
            self._due.wait(self._every_s)

    def _read(self, path: Path) -> None:
        found, why = None, ""
        try:
            found = read(path, self._timeout_s)
        except InventoryReadError as error:
            why = str(error)
        except Exception as error:  # the thread's end must not be the last reading's
            _log.exception("the inventory can't be read")
            why = f"{type(error).__name__}: {error}"
        with self._lock:
            if path == self._path:
                self._inventory, self._trouble = found or self._inventory, why
