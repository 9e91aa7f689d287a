# SPDX-License-Identifier: Apache-2.0
"""The server of playbook runs: a process that has Ansible imported, and forks for each run.

``python -m controlplane.adapters.ansible_server FOLDER``, told on its standard input which environment and
working folder runs have (two lines of JSON), and alive until that input ends. Each run is a fork of a process
that has never run a playbook, so nothing of one reaches the next. Much of Ansible's configuration is read
when it is imported: a run whose environment or ansible.cfg differs from what was there then becomes
the installed ansible-playbook instead; it is right, and merely slower.

The process has one thread: what forks must hold no other's locks.
"""

from __future__ import annotations

import array
import copy
import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from controlplane.adapters import ansible_processes
from controlplane.adapters.ansible_shim import TAKEN

ROOM = 256
"""Bytes that the environment of this process has for the label of a run."""
PER_RUN = frozenset(
    {
        ansible_processes.LABEL,
        "ANSIBLE_CACHE_PLUGIN_CONNECTION",
        "ANSIBLE_LOCAL_TEMP",
        "AWX_ISOLATED_DATA_DIR",
        "TMPDIR",
    }
)
"""Variables that differ from run to run; of Ansible's own their values are put in place of those imported."""
_MODULES = (
    "ansible._internal._errors._task_timeout",
    "ansible._internal._json._profiles._inventory_legacy",
    "ansible.cli.playbook",
    "ansible.executor.module_common",
    "ansible.executor.playbook_executor",
    "ansible.executor.process.worker",
    "ansible.plugins.callback",
    "ansible.playbook.role_include",
    "multiprocessing.popen_fork",
    "multiprocessing.resource_tracker",
    "multiprocessing.shared_memory",
    "multiprocessing.synchronize",
    "ssl",
    "urllib.request",
)
_PLUGINS = {
    "action": ("command", "gather_facts", "include_vars", "normal", "set_fact", "set_stats"),
    "become": ("su", "sudo"),
    "cache": ("jsonfile", "memory"),
    "callback": ("default", "junit", "minimal", "oneline", "tree"),
    "connection": ("local", "paramiko_ssh", "psrp", "ssh", "winrm"),
    "inventory": ("auto", "host_list", "ini", "script", "toml", "yaml"),
    "shell": ("cmd", "powershell", "sh"),
    "strategy": ("linear",),
    "vars": ("host_group_vars",),
}
"""Of Ansible's own those that each run loads, were they asked for or not."""
_READ = frozenset({"HOME", "LANG", "LANGUAGE", "LOGNAME", "PATH", "TZ", "USER"})
_READ_ALL = ("ANSIBLE_", "LC_", "PYTHON")
"""Beside the variables that Ansible's settings name."""
_LONGEST = 16 << 20
_PATIENCE_S = 10.0
_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.getenv.restype = ctypes.c_void_p


@dataclass(frozen=True, slots=True)
class Asked:
    """What a shim was called with."""

    folder: bytes
    mask: int
    arguments: Sequence[str]
    environment: Mapping[str, str]
    files: Sequence[int]
    """Its standard input, output and error."""


@dataclass(frozen=True, slots=True)
class Running:
    pid: int
    label: str
    shim: socket.socket


class Label:
    """The label of a run in /proc/PID/environ, of this process and those it forks: the kernel shows what the
    environment was at the start, so that room is written over."""

    def __init__(self) -> None:
        """Before anything is changed in the environment."""
        self._place = _LIBC.getenv(ansible_processes.LABEL.encode())
        if not self._place or len(os.environ[ansible_processes.LABEL]) != ROOM:
            raise RuntimeError("no room for the label of a run")

    def write(self, label: str) -> None:
        shown = label.encode()
        if len(shown) > ROOM:
            raise RuntimeError(f"a label of {len(shown)} bytes")
        ctypes.memmove(self._place, shown.ljust(ROOM, b"\0"), ROOM)


class Server:
    def __init__(self, folder: Path, environment: Mapping[str, str], cwd: str) -> None:
        """Listens from here on; who connects waits until Ansible is imported."""
        self._label = Label()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        os.chdir(folder)  # see the shim
        self._listener.bind("socket")
        self._listener.listen(64)
        os.chdir(cwd)
        os.environ.clear()
        os.environ.update(environment)
        self._cwd = Path.cwd()
        self._import_ansible()
        self._as_imported = _imported_by(environment)
        self._config = self._configuration()
        self._running: dict[int, Running] = {}
        """By the file descriptor that tells its end."""
        self._poll = select.poll()
        self._poll.register(0, select.POLLIN)
        self._poll.register(self._listener, select.POLLIN)

    @staticmethod
    def _import_ansible() -> None:
        """What a run loads; nothing is run, and no folder of a user's looked into."""
        for name in _MODULES:
            importlib.import_module(name)
        for kind, names in _PLUGINS.items():
            for name in names:
                with suppress(ImportError):
                    importlib.import_module(f"ansible.plugins.{kind}.{name}")
        _keep_parsed_routing()
        gc.freeze()  # what all share is not written to when a fork collects garbage of its own

    @staticmethod
    def _configuration() -> tuple[str | None, tuple[int, ...]]:
        """Which ansible.cfg holds here, and in what state it and Ansible itself are."""
        from ansible import release
        from ansible.config.manager import find_ini_config_file

        found = find_ini_config_file()
        states: list[int] = []
        for path in (found, release.__file__):
            if path is not None:
                with suppress(OSError):
                    is_now = Path(path).stat()
                    states += [is_now.st_mtime_ns, is_now.st_size, is_now.st_ino]
        return found, tuple(states)

    def _hinges_on_folder(self) -> bool:
        """Configuration names files relative to the working folder, and that is another one."""
        if (folder := Path.cwd()) == self._cwd:
            return False
        file = self._config[0]
        if file is not None and "{{CWD}}" in Path(file).read_text(errors="replace"):
            return True
        values = (value for name, value in self._as_imported.items() if name.startswith("ANSIBLE_"))
        parts = {part for value in values for part in value.split(":") if part}
        return any(
            (there / part).exists() for part in parts if part[0] not in "/~" for there in (folder, self._cwd)
        )

    @staticmethod
    def _has_own_plugins() -> bool:
        """The playbooks' folder, or one that Ansible looks into, has a plugin by the name of one that is
        imported: Ansible would take ours for it."""
        from ansible.plugins import loader

        for kind, names in _PLUGINS.items():
            plugins = getattr(loader, f"{kind}_loader")
            places = [
                *map(Path, plugins.config),
                Path(plugins.subdir),
                *Path().glob(f"roles/*/{plugins.subdir}"),
            ]
            if any((place / f"{name}.py").exists() for place in places for name in names):
                return True
        return False

    # ---- the loop ---------------------------------------------------------------------------

    def serve(self) -> None:
        while True:
            for fd, _ in self._poll.poll():
                if fd == 0:
                    self._end()
                elif fd == self._listener.fileno():
                    self._accept()
                elif fd in self._running:
                    self._ended(fd)
                else:
                    self._deserted(fd)

    def _accept(self) -> None:
        shim, _ = self._listener.accept()
        shim.settimeout(_PATIENCE_S)
        try:
            asked = _received(shim)
        except (OSError, ValueError):
            shim.close()
            return
        label = asked.environment.get(ansible_processes.LABEL, "")
        try:
            shim.sendall(TAKEN)
            pid = os.fork()
        except OSError:
            pid = -1
        if pid == 0:
            self._run(shim, asked, label)
        for fd in asked.files:
            os.close(fd)
        if pid < 0:
            shim.close()
            return
        ending = os.pidfd_open(pid)
        self._running[ending] = Running(pid, label, shim)
        self._poll.register(ending, select.POLLIN)
        self._poll.register(shim, select.POLLRDHUP | select.POLLIN)

    def _ended(self, ending: int) -> None:
        running = self._running.pop(ending)
        self._poll.unregister(ending)
        os.close(ending)
        _, status = os.waitpid(running.pid, 0)
        with suppress(OSError):
            running.shim.sendall(b"%d" % os.waitstatus_to_exitcode(status))
        with suppress(KeyError):
            self._poll.unregister(running.shim)
        running.shim.close()

    def _deserted(self, fd: int) -> None:
        """The shim has ended first, say by kill -9: so does its run."""
        for running in self._running.values():
            if running.shim.fileno() == fd:
                self._poll.unregister(fd)
                self._kill(running)

    def _kill(self, running: Running) -> None:
        with suppress(ProcessLookupError):
            os.killpg(running.pid, signal.SIGKILL)
        with suppress(ProcessLookupError):
            os.kill(running.pid, signal.SIGKILL)

    def _end(self) -> NoReturn:
        """Whoever started this is gone: so are its runs, and their processes."""
        for running in self._running.values():
            self._kill(running)
        for running in self._running.values():
            if running.label:
                ansible_processes.end_run(running.label)
        os._exit(0)

    # ---- in the fork ------------------------------------------------------------------------

    def _run(self, shim: socket.socket, asked: Asked, label: str) -> NoReturn:
        code = 1
        try:
            _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            self._label.write(label)
            # Who ends a run kills its shim, then whatever has its label: one of the two is seen.
            shim.setblocking(False)
            with suppress(BlockingIOError):
                if not shim.recv(1, socket.MSG_PEEK):
                    os._exit(1)
            self._take_place(shim, asked)
            code = self._play(asked)
        except BaseException as error:
            os.write(2, f"ERROR: {type(error).__name__}: {error}\n".encode())
        finally:
            os._exit(code)

    def _take_place(self, shim: socket.socket, asked: Asked) -> None:
        """Of the shim: its files, folder, environment."""
        os.setsid()
        for running in self._running.values():
            running.shim.close()
        for ending in self._running:
            os.close(ending)
        self._listener.close()
        shim.close()
        for number, fd in enumerate(asked.files):
            os.dup2(fd, number)
            os.close(fd)
        os.umask(asked.mask)
        os.chdir(asked.folder)
        os.environ.clear()
        os.environ.update(asked.environment)

    def _play(self, asked: Asked) -> int:
        differs = (
            _imported_by(asked.environment) != self._as_imported
            or self._configuration() != self._config
            or self._hinges_on_folder()
        )
        if differs or self._has_own_plugins():
            plain = asked.environment["PENUMBRA_PLAIN_PLAYBOOK"]
            os.execv(plain, [plain, *asked.arguments])  # noqa: S606
        import tempfile

        from ansible import constants
        from ansible.cli.playbook import PlaybookCLI

        tempfile.tempdir = None
        for name, variable in (
            ("DEFAULT_LOCAL_TMP", "ANSIBLE_LOCAL_TEMP"),
            ("CACHE_PLUGIN_CONNECTION", "ANSIBLE_CACHE_PLUGIN_CONNECTION"),
        ):
            constants.set_constant(name, asked.environment[variable])
        sys.stdin = open(0, closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
        sys.argv = ["ansible-playbook", *asked.arguments]
        try:
            PlaybookCLI.cli_executor()
        except SystemExit as ended:
            return int(ended.code or 0)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
        return 0


def _imported_by(environment: Mapping[str, str]) -> Mapping[str, str]:
    """What of it may have been read when Python was started and Ansible imported."""
    from ansible import constants

    defined = constants.config.get_configuration_definitions().values()
    names = {one["name"] for setting in defined for one in setting.get("env") or ()} | _READ
    return {
        name: value
        for name, value in environment.items()
        if (name in names or name.startswith(_READ_ALL)) and name not in PER_RUN
    }


def _keep_parsed_routing() -> None:
    """Where Ansible's own plugins went is a large file that each run parses. Its parser is made to be
    replaced by one that keeps what it made of a text."""
    import ansible
    from ansible.utils.collection_loader import _collection_finder as finder

    parse = finder._meta_yml_to_dict
    text = (Path(ansible.__file__).parent / "config/ansible_builtin_runtime.yml").read_bytes()
    parsed = parse(text, ("ansible.builtin", "runtime.yml"))

    def kept(asked: bytes, content: object) -> object:
        return copy.deepcopy(parsed) if asked == text else parse(asked, content)

    finder._meta_yml_to_dict = kept


def _received(shim: socket.socket) -> Asked:
    """Raises ``ValueError`` for what no shim of ours sends."""
    size = array.array("i").itemsize
    head, ancillary, _, _ = shim.recvmsg(16, socket.CMSG_SPACE(3 * size))
    files = array.array("i")
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            files.frombytes(data[: len(data) - len(data) % size])
    try:
        digits, _, text = head.partition(b"\n")
        wanted = int(digits)
        while len(text) < wanted <= _LONGEST:
            more = shim.recv(1 << 16)
            if not more:
                raise ValueError("cut off")
            text += more
        folder, mask, count, *parts = text.split(b"\0")
        arguments = [os.fsdecode(one) for one in parts[: int(count)]]
        pairs = (os.fsdecode(one).partition("=") for one in parts[int(count) :])
        environment = {name: value for name, _, value in pairs}
        if len(files) != 3:
            raise ValueError("not three files")
    except ValueError:
        for fd in files:
            os.close(fd)
        raise
    return Asked(folder, int(mask, 8), arguments, environment, list(files))


def main() -> None:
    folder = Path(sys.argv[1])
    del sys.path[0]  # where this package lies: none of Ansible's plugins is to find it first
    told = b""
    while not told.endswith(b"\n"):
        more = os.read(0, 1 << 16)
        if not more:
            return
        told += more
    template = json.loads(told)
    Server(folder, template["environment"], template["cwd"]).serve()


if __name__ == "__main__":
    main()
