# SPDX-License-Identifier: Apache-2.0
"""Health checks, made by a process of its own (``probe_process.py``), which is started again if it ends.

Whether an answer makes a member healthy is not decided here (``controlplane/health.py``).
"""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, Pipe

from controlplane import model
from controlplane.adapters.tcp_probes import Answer, Target

RESULTS_MOST = 1_000_000
SILENT_S = 10.0
"""Who sends nothing for so long hangs."""
AGAIN_S = 1.0
"""Before a process that ended is started again."""


class NetworkProber:
    """``ports.Prober``. ``on_change`` is called, in a thread of its own, when as many answers in a row were
    alike as make a member healthy or unhealthy."""

    def __init__(self, on_change: Callable[[], None] = lambda: None) -> None:
        self._on_change = on_change
        self._answers: deque[Answer] = deque(maxlen=RESULTS_MOST)
        self._unable: dict[str, str] = {}
        self._ended = ""
        """Why nobody is checked just now."""
        self._targets: dict[str, Target] = {}
        self._lock = threading.Lock()
        self._commands: queue.SimpleQueue[tuple[object, ...] | None] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._start()
        self._threads = [
            threading.Thread(target=run, name=name, daemon=True)
            for name, run in (("probes", self._receive), ("probed", self._send))
        ]
        for thread in self._threads:
            thread.start()

    @property
    def pid(self) -> int:
        """Of the process that checks."""
        return self._process.pid

    def watch(self, targets: Mapping[str, Target]) -> None:
        if targets == self._targets:
            return
        with self._lock:
            changed = {name: one for name, one in targets.items() if self._targets.get(name) != one}
            gone = self._targets.keys() - targets.keys()
            self._targets = dict(targets)
            for name in (*gone, *changed):
                self._unable.pop(name, None)
            self._commands.put(("watch", changed, list(gone)))

    def check(self, members: Collection[str]) -> None:
        if members:
            self._commands.put(("check", list(members)))

    def results(self) -> Sequence[model.Health]:
        found = []
        while self._answers:
            found.append(model.Health(*self._answers.popleft()))
        return found

    def troubles(self) -> Mapping[str, str]:
        if self._ended:
            return {"all members": self._ended}
        return {name: why for name, why in self._unable.copy().items() if name in self._targets}

    def close(self) -> None:
        self._closing.set()
        self._commands.put(None)
        self._process.kill()
        for thread in self._threads:
            thread.join()
        self._connection.close()

    # ---- the process ----------------------------------------------------------------------------

    def _start(self) -> None:
        ours, theirs = Pipe()
        with theirs:
            fd = theirs.fileno()
            # The terminal's signals are for the controller, which ends it then.
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "controlplane.adapters.probe_process", str(fd)],
                stdin=subprocess.DEVNULL,
                start_new_session=True,
                pass_fds=(fd,),
            )
        self._connection: Connection = ours

    def _send(self) -> None:
        """The loop never waits for the process, even if that hangs."""
        while (command := self._commands.get()) is not None:
            with suppress(OSError):
                self._connection.send(command)

    def _receive(self) -> None:
        while not self._closing.is_set():
            try:
                if not self._connection.poll(SILENT_S):
                    raise EOFError
                flips, answers, unable = self._connection.recv()
            except (EOFError, OSError):
                self._restart()
                continue
            self._ended = ""
            if self._unable:
                for member, *_ in answers:
                    self._unable.pop(member, None)
            self._unable |= unable
            self._answers.extend(answers)
            if flips:
                self._on_change()

    def _restart(self) -> None:
        self._process.kill()
        ended = self._process.wait()
        if self._closing.is_set():
            return
        self._ended = f"the process that checks them ended ({ended}) and is started again"
        if self._closing.wait(AGAIN_S):
            return
        with self._lock:
            self._connection.close()
            try:
                self._start()
            except OSError as error:
                self._ended = f"the process that checks them can't be started: {error.strerror or error}"
                return
            self._commands.put(("all", dict(self._targets)))
