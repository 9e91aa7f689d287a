# SPDX-License-Identifier: Apache-2.0
"""The packet tests on Debian's stock kernel: ``python -m tests.kernel [PYTEST'S ARGUMENTS]``."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from tests.kernel import machine, stock

REPOSITORY = Path(__file__).resolve().parents[2]
BUILD = REPOSITORY / "build" / "kernel"
LIMIT_S = 7200.0
TEST_LIMIT_S = 1200
"""Of one test: four times what it has without emulation."""
PYTEST = ("-q", "--color=no", "--durations=10", f"--timeout={TEST_LIMIT_S}")
RACES = "tests/packet/test_two_cpus.py"
FIRST = ("-s", "tests/packet/test_verifier.py")
"""It is compiled there and loads, and the number of instructions is said, before all else is tried."""
RUNS = (
    (RACES,),  # with both CPUs to themselves
    ("-n", str(machine.CPUS), "--dist", "worksteal", "tests/packet", f"--ignore={RACES}"),
)


def main() -> int:
    if os.geteuid() != 0:
        sys.exit("test-kernel: root's files are shared with the guest: sudo make test-kernel")
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    BUILD.mkdir(parents=True, exist_ok=True)
    kernel = stock.unpacked(BUILD / "package")
    started = time.monotonic()
    first, runs = ((), [sys.argv[1:]]) if sys.argv[1:] else (FIRST, RUNS)
    for run in runs:
        here = subprocess.run((sys.executable, "-m", "tests", *options(*run)), check=False)
        if here.returncode:
            return verdict("not booted, for on this machine's own they fail", kernel, here.returncode)
    try:
        status = machine.run(kernel, job(first, runs), BUILD, LIMIT_S)
    except subprocess.TimeoutExpired:
        return verdict(f"not finished after {LIMIT_S:.0f} s", kernel, 1)
    took = f"after {time.monotonic() - started:.0f} s"
    if status is None:
        return verdict(f"the machine ended without a result {took}", kernel, 1)
    return verdict(f"{'passed' if status == 0 else 'FAILED'} {took}", kernel, status)


def options(*run: str) -> tuple[str, ...]:
    return (*PYTEST, "-p", "tests.kernel.kept_builds", *run)


def job(first: Sequence[str], runs: Sequence[Sequence[str]]) -> str:
    """A shell script; it ends when the first run fails, else with the status of the last that failed."""
    python = ".venv/bin/python"
    begun = shlex.join((python, "-m", "pytest", *PYTEST, *first)) if first else "true"
    rest = "\n".join(f"{shlex.join((python, '-m', 'pytest', *options(*run)))} || status=$?" for run in runs)
    return f"""
export HOME=/root PYTHONUNBUFFERED=1 LANG=C.UTF-8 PATH=/usr/sbin:/usr/bin:/sbin:/bin
cd {shlex.quote(str(REPOSITORY))} && {begun} || exit
status=0
{rest}
exit $status
"""


def verdict(what: str, kernel: stock.Kernel, status: int) -> int:
    print(f"test-kernel: {what}, on {kernel.release}; console: {BUILD / 'console.log'}")
    return status


if __name__ == "__main__":
    sys.exit(main())
