# SPDX-License-Identifier: Apache-2.0
"""One playbook run by ansible-runner: what goes in, what its events say, why it failed."""

from __future__ import annotations

import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ansible_runner

from controlplane.adapters import ansible_processes
from controlplane.adapters.ansible_forks import PLAIN, PLAIN_VARIABLE, ForkServer

_ENVIRONMENT = {
    "ANSIBLE_GATHERING": "explicit",
    "ANSIBLE_PIPELINING": "1",
    "ANSIBLE_RETRY_FILES_ENABLED": "0",
    "ANSIBLE_NOCOLOR": "1",
    "ANSIBLE_DEPRECATION_WARNINGS": "0",
    "ANSIBLE_INJECT_FACT_VARS": "0",
    # Arguments may be secrets: in no log, neither of the host nor of a user's ansible.cfg.
    "ANSIBLE_NO_TARGET_SYSLOG": "1",
    "ANSIBLE_LOG_PATH": "/dev/null",
}
_REASON_MOST = 500
_VALIDATES = frozenset({"validate_argument_spec", "ansible.builtin.validate_argument_spec"})
"""Actions that hold variables against a role's specification."""


@dataclass(slots=True)
class Outcome:
    """What a run came to; ``reason`` is empty if it succeeded."""

    reason: str = ""
    data: Mapping[str, object] = field(default_factory=dict)
    """What the playbook handed back with set_stats."""
    results: dict[str, Mapping[str, object]] = field(default_factory=dict)
    """Host -> what its last task returned."""
    failures: dict[str, str] = field(default_factory=dict)
    """Host -> why its last task failed."""
    refused: bool = False
    """The task that failed last would on any host: it says so, or a role does not take its variables."""
    task: str = ""
    """The task that was begun last."""

    def told(self, host: str, key: str) -> object:
        """What a host's last task returned, or set as a fact, under this key; None: nothing."""
        result = self.results.get(host, {})
        return result.get(key, _mapping(result.get("ansible_facts")).get(key))


class PlaybookRun:
    """A run in a folder of its own (0700, removed after), with a label on every process it starts."""

    def __init__(
        self,
        playbook: Path,
        hosts: Mapping[str, Mapping[str, object]],
        variables: Mapping[str, object],
        server: ForkServer | None = None,
    ) -> None:
        """:param hosts: name -> its variables.
        :param server: has the run in a fork of a process that has Ansible imported."""
        self._playbook = playbook
        self._server = server
        self._hosts = hosts
        self._variables = variables
        self._cancelled = threading.Event()
        self._timed_out = False
        self._outcome = Outcome()

    def cancel(self) -> None:
        self._cancelled.set()

    @property
    def cancelled(self) -> bool:
        return self._cancelled.is_set()

    def execute(self, runs: Path, label: str, timeout_s: float, now_s: Callable[[], float]) -> Outcome:
        """Blocks until the run and all its processes have ended; shadows that it made live on."""
        folder = Path(tempfile.mkdtemp(prefix=label + "-", dir=runs))
        temporary = folder / "tmp"
        temporary.mkdir(mode=0o700)
        deadline_s = now_s() + timeout_s

        def should_end() -> bool:
            self._timed_out = self._timed_out or now_s() > deadline_s
            return self._timed_out or self._cancelled.is_set()

        try:
            runner = ansible_runner.run(
                **_asked(folder, self._playbook, temporary, label, self._commands()),
                inventory={"all": {"hosts": self._inventory(temporary)}},
                extravars=dict(self._variables),
                settings={"pexpect_timeout": 0.1},
                event_handler=self._event,
                cancel_callback=should_end,
            )
            rc, output = runner.rc, _tail(folder)
        except (
            Exception
        ) as error:  # ansible-runner raises many kinds; a run's failure must never be the thread's end
            rc, output = 1, f"ansible-runner: {error}"
        finally:
            ended = ansible_processes.end_run(label)
            shutil.rmtree(folder, ignore_errors=True)
        self._outcome.reason = one_line(self._reason(rc, output, timeout_s))
        if not ended:
            self._outcome.reason += "; some of its processes could not be ended"
        return self._outcome

    def _commands(self) -> Path:
        """The folder that ansible-playbook is found in."""
        if self._server is None:
            return PLAIN.parent
        return self._server.commands(lambda folder: _surroundings(folder, self._playbook))

    def _inventory(self, temporary: Path) -> dict[str, dict[str, object]]:
        """Modules on this machine keep their files in the run's folder; other hosts have no such folder."""
        return {
            name: {"ansible_remote_tmp": str(temporary), **variables}
            if variables.get("ansible_connection") == "local"
            else dict(variables)
            for name, variables in self._hosts.items()
        }

    def _reason(self, rc: int, output: str, timeout_s: float) -> str:
        where = f" in task {self._outcome.task}" if self._outcome.task else " before its first task"
        if self._timed_out:
            return f"timed out after {timeout_s:g} s{where}"
        if self._cancelled.is_set():
            return f"cancelled{where}"
        if rc == 0:
            return ""
        if self._outcome.failures:
            return next(iter(self._outcome.failures.values()))
        return f"{self._playbook.name} ended with status {rc}: {output or 'it said nothing'}"

    def _event(self, event: Mapping[str, object]) -> bool:
        """Takes what matters from an event; False: ansible-runner need not keep it."""
        kind = event.get("event")
        data = event.get("event_data")
        if not isinstance(data, Mapping):
            return False
        if kind == "playbook_on_task_start":
            self._outcome.task = str(data.get("task", ""))
        elif kind in ("runner_on_failed", "runner_on_unreachable") and not data.get("ignore_errors"):
            result = data.get("res")
            refused = isinstance(result, Mapping) and result.get("refused") is True
            self._outcome.refused = refused or data.get("task_action") in _VALIDATES
            message = str(result.get("msg", result)) if isinstance(result, Mapping) else str(result)
            self._outcome.failures[str(data.get("host"))] = one_line(f"task {data.get('task')}: {message}")
        elif kind == "runner_on_ok":
            self._outcome.results[str(data.get("host"))] = _mapping(data.get("res"))
        elif kind == "playbook_on_stats":
            self._outcome.data = _mapping(data.get("artifact_data"))
        return False


def _asked(folder: Path, playbook: Path, temporary: Path, label: str, commands: Path) -> dict[str, Any]:
    """Of ansible-runner, what makes a run's environment and working folder."""
    return {
        "private_data_dir": str(folder),
        "project_dir": str(playbook.parent),
        "playbook": str(playbook),
        "envvars": _ENVIRONMENT
        | {
            PLAIN_VARIABLE: str(PLAIN),
            "PATH": f"{commands}:{PLAIN.parent}:/usr/sbin:/usr/bin:/sbin:/bin",
            # A module that is killed leaves what it unpacked: here it goes with the run.
            "ANSIBLE_LOCAL_TEMP": str(temporary),
            "TMPDIR": str(temporary),
            ansible_processes.LABEL: label,
        },
        "quiet": True,
    }


def _surroundings(folder: Path, playbook: Path) -> tuple[Mapping[str, str], str]:
    """Environment and working folder of each run; made up here, and not run."""
    temporary = folder / "tmp"
    temporary.mkdir(mode=0o700)
    with tempfile.TemporaryDirectory(dir=folder) as made_up:
        asked = _asked(Path(made_up), playbook, temporary, "none", folder)
        config = ansible_runner.interface.init_runner(**asked, cancel_callback=lambda: False).config
    return {str(name): str(value) for name, value in config.env.items()}, os.fspath(config.cwd)


def literal(value: object) -> object:
    """The same, with texts that Ansible takes as they stand: braces in them are no templates."""
    if isinstance(value, str):
        return {"__ansible_unsafe": value}
    if isinstance(value, Mapping):
        return {key: literal(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [literal(inner) for inner in value]
    return value


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, Mapping) else {}


def _tail(folder: Path) -> str:
    """The last lines of what ansible-playbook printed: all there is when it ended before its first event."""
    lines: list[str] = []
    for path in sorted(folder.glob("artifacts/*/stdout")):
        lines += [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
    errors = [line for line in lines if "ERROR" in line]
    return " ".join(errors or lines[-3:])


def one_line(text: str) -> str:
    return " ".join(text.split())[:_REASON_MOST]
