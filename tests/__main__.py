# SPDX-License-Identifier: Apache-2.0
"""All tests, in mount and process namespaces of their own: ``python -m tests [PYTEST'S ARGUMENTS]``.

Most of their time is waiting: without arguments four run at once; those marked ``calm`` follow, two at once,
then those marked ``alone``, one by one.

Network namespaces, pins, engines and processes of tests live there alone. However a run ends, by kill -9 too,
the kernel removes them with it (namespaces(7), pid_namespaces(7)); the machine's own are out of reach.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

CLONE_NEWNS = 0x00020000
CLONE_NEWPID = 0x20000000
MS_REC, MS_PRIVATE = 0x4000, 1 << 18
PR_SET_PDEATHSIG = 1
LIBC = ctypes.CDLL(None, use_errno=True)
ALL = (
    ("-n", "4", "--dist", "loadfile", "--no-loadscope-reorder", "-m", "not calm and not alone"),
    ("-n", "2", "--dist", "load", "-m", "calm"),
    ("-m", "alone"),
)
PASSED, FAILED = 0, 1  # pytest's exit status; others: interrupted, wrong use
OURS = (
    ("proc", "/proc", None),
    ("tmpfs", "/run/netns", "mode=0755"),
    ("tmpfs", "/run/penumbra", "mode=0755"),
    ("tmpfs", "/var/cache/penumbra", "mode=0700"),
    ("bpf", "/sys/fs/bpf", "mode=0700"),
)


def checked(done: int, what: str) -> None:
    if done:
        sys.exit(f"tests: {what}: {os.strerror(ctypes.get_errno())}; they need root: sudo make test")


def main() -> int:
    """The outer process: it passes signals on, and its end is the end of all."""
    LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    checked(LIBC.unshare(CLONE_NEWNS | CLONE_NEWPID), "no namespaces of their own")
    first = os.fork()
    if first == 0:
        LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        os._exit(inside())
    pass_on(first, {signal.SIGTERM: signal.SIGTERM, signal.SIGHUP: signal.SIGTERM})
    code = os.waitstatus_to_exitcode(os.waitpid(first, 0)[1])
    remove_cgroups()
    return code if code >= 0 else 128 - code


def inside() -> int:
    """The first process of the namespace: it mounts, runs pytest, and is the parent of who lost theirs."""
    mount(None, "/", None, MS_REC | MS_PRIVATE)
    for kind, place, options in OURS:
        Path(place).mkdir(exist_ok=True)
        mount(kind, place, kind, 0, options)
    code = 0
    for arguments in [sys.argv[1:]] if sys.argv[1:] else ALL:
        its = pytest(arguments)
        code = code or its
        if its not in (PASSED, FAILED):
            break
    return code


def pytest(arguments: Sequence[str]) -> int:
    """Its exit status, or 128 and the signal that ended it."""
    tests = os.fork()
    if tests == 0:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # ignored where a shell started us in the background
        os.execv(sys.executable, [sys.executable, "-m", "pytest", *arguments])  # noqa: S606
    # Pytest ends at SIGINT in order, with the fixtures' clean-up.
    pass_on(tests, {signal.SIGTERM: signal.SIGINT})
    while True:
        pid, status = os.wait()
        if pid == tests:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def mount(source: str | None, place: str, kind: str | None, flags: int, options: str | None = None) -> None:
    *where, data = (None if one is None else one.encode() for one in (source, place, kind, options))
    checked(LIBC.mount(*where, ctypes.c_ulong(flags), data), f"{place} can't be mounted")


def pass_on(pid: int, numbers: dict[signal.Signals, signal.Signals]) -> None:
    """Ctrl-C goes to the whole foreground group and needs no passing on."""

    def take(number: int, frame: FrameType | None) -> None:
        os.kill(pid, numbers[signal.Signals(number)])

    for number in numbers:
        signal.signal(number, take)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def remove_cgroups() -> None:
    """Those of engines whose test was killed; one with a process in it can't be removed, and stays."""
    places = [*Path("/sys/fs/cgroup").glob("penumbra-*"), *Path("/sys/fs/cgroup").glob("*/penumbra-*")]
    for place in places:
        for folder, _, _ in os.walk(place, topdown=False):
            try:
                Path(folder).rmdir()
            except OSError:
                break


if __name__ == "__main__":
    sys.exit(main())
