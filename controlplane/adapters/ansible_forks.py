# SPDX-License-Identifier: Apache-2.0
"""The controller's side of the server that forks playbook runs: begun when the first run is, begun again
when it died or Ansible was upgraded, ended with the controller."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path

import controlplane
from controlplane.adapters import ansible_processes, ansible_server, ansible_shim

PLAIN = Path(sys.executable).with_name("ansible-playbook")
"""The one that was installed with us, wherever PATH points."""
PLAIN_VARIABLE = "PENUMBRA_PLAIN_PLAYBOOK"
_SHEBANG_MOST = 255
_AGAIN_S = 60.0
"""After it could not be begun."""
_ENDS_S = 10.0


class ForkServer:
    """Safe to call from any thread."""

    def __init__(self, folder: Path, now_s: Callable[[], float]) -> None:
        """:param folder: its own, made when it begins and removed when it ends; nobody else may enter."""
        self._folder = folder
        self._now_s = now_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._began_s = 0.0
        self._died_young = False
        self._not_before_s = 0.0
        self._closed = False
        self.trouble = ""
        """Why runs are slower than they need be; empty: they are not."""

    def commands(self, surroundings: Callable[[Path], tuple[Mapping[str, str], str]]) -> Path:
        """The folder of the ansible-playbook to be called: a shim, or where there is no server itself.

        :param surroundings: environment and working folder of runs, asked for in a folder that is there;
            what differs from run to run may be anything.
        """
        with self._lock:
            if self._closed:
                return PLAIN.parent
            if self._process is not None and self._process.poll() is not None:
                self._mourn(self._process.returncode)
            if self._process is None and self._now_s() >= self._not_before_s:
                try:
                    self._begin(surroundings)
                except (OSError, ValueError) as error:
                    self._fail(str(error))
            return PLAIN.parent if self._process is None else self._folder

    def process_id(self) -> int | None:
        with self._lock:
            return None if self._process is None else self._process.pid

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._end()

    # ---- inside, under the lock -------------------------------------------------------------

    def _begin(self, surroundings: Callable[[Path], tuple[Mapping[str, str], str]]) -> None:
        interpreter = f"#!{sys.executable} -ISE\n"
        if len(interpreter) > _SHEBANG_MOST or " " in sys.executable:
            raise ValueError(f"the path {sys.executable} can't begin a script")
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True, mode=0o700)
        shim = self._folder / "ansible-playbook"
        shim.write_text(interpreter + Path(ansible_shim.__file__).read_text(encoding="utf-8"))
        shim.chmod(stat.S_IRWXU)
        environment, cwd = surroundings(self._folder)
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", ansible_server.__name__, str(self._folder)],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=os.environ | {ansible_processes.LABEL: "." * ansible_server.ROOM},
                cwd=Path(controlplane.__file__).parents[1],
                start_new_session=True,
            )
        self._began_s = self._now_s()
        template = json.dumps({"environment": dict(environment), "cwd": cwd})
        if self._process.stdin is not None:
            self._process.stdin.write(template.encode() + b"\n")
            self._process.stdin.flush()

    def _mourn(self, status: int) -> None:
        """It has died. If it did so soon, and the one before it too, the next would again."""
        is_young = self._now_s() - self._began_s < _ENDS_S
        said = (self._folder / "log").read_text(errors="replace").strip().rpartition("\n")[2]
        self._end()
        if status > 0 or (is_young and self._died_young):
            self._fail(f"it ended with status {status}: {said or 'it said nothing'}")
        self._died_young = is_young

    def _fail(self, why: str) -> None:
        self._end()
        self._not_before_s = self._now_s() + _AGAIN_S
        self.trouble = f"playbooks run without the server that spares them Ansible's start: {why}"

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            if process.stdin is not None:
                process.stdin.close()
            try:
                process.wait(_ENDS_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self._folder, ignore_errors=True)
