# SPDX-License-Identifier: Apache-2.0
"""An access point's CPU time per TCP session (open, one small request, close): Penumbra and HAProxy.

It is what all processes of the lab take, clients' and endpoints' included, less what they take where
these are linked without an access point. What the kernel does for a packet on its way it does in the
process that sent it, or in that core's softirq thread; other processes on this machine are not in it.

All live on one core and are driven as fast as it lets them: paced, rounds scatter by more than Penumbra
costs.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path

from controlplane.lab import network
from controlplane.lab.topology import CLIENTS
from tests.bench import contenders
from tests.bench.contenders import SESSION, Contender
from tests.bench.figures import Figure
from tests.bench.frames import Frames
from tests.bench.harness import CORES, pinned_to
from tests.bench.sessions import Driven, cpu_ns

SESSIONS, BURST = 1600, 16
"""In one round; at once."""
ROUNDS = 25


def measure() -> Mapping[str, Figure]:
    """``endtoend.cpu_*``; about 40 s on one core."""
    with pinned_to(CORES[-1]), ExitStack() as stack:
        labs = _labs(stack)
        softirqs = _softirq_thread()
        for contender in labs.values():
            _session_us(contender, softirqs)  # warms up
        taken: dict[str, list[float]] = {name: [] for name in labs}
        controller = labs["penumbra"].controller
        began_s, controller_ns = time.monotonic(), cpu_ns(controller)
        for _ in range(ROUNDS):
            for name, contender in labs.items():
                taken[name].append(_session_us(contender, softirqs))
        controller_ms = (cpu_ns(controller) - controller_ns) / 1e6 / (time.monotonic() - began_s)
    median = {name: statistics.median(times) for name, times in taken.items()}
    direct = median.pop("direct")
    low, _, high = statistics.quantiles(taken["direct"], n=4)
    above = {name: taken_us - direct for name, taken_us in median.items()}
    return {
        "endtoend.cpu_direct": Figure(direct, "us/session"),
        "endtoend.cpu_direct_spread": Figure(high - low, "us/session"),
        **{f"endtoend.cpu_{name}": Figure(above_us, "us/session") for name, above_us in above.items()},
        "endtoend.cpu_vs_haproxy": Figure(above["penumbra"] / above["haproxy"], "x"),
        "endtoend.cpu_controller": Figure(controller_ms, "ms/s"),
    }


def _labs(stack: ExitStack) -> Mapping[str, Contender]:
    frames = Frames()
    stack.callback(frames.close)
    labs = {
        "direct": stack.enter_context(contenders.direct()),
        "relay": stack.enter_context(contenders.bare()),
        "penumbra": stack.enter_context(contenders.penumbra()),
        "haproxy": stack.enter_context(contenders.haproxy()),
    }
    frames.relay(labs["relay"].lab)
    return labs


def _softirq_thread() -> int:
    """The kernel's own of this core, for what is too much to be done in passing."""
    name = f"ksoftirqd/{max(os.sched_getaffinity(0))}"
    for entry in Path("/proc").iterdir():
        with suppress(OSError):  # gone meanwhile
            if entry.name.isdigit() and (entry / "comm").read_text().strip() == name:
                return int(entry.name)
    raise RuntimeError(f"no thread {name}: the kernel's are not seen from within a process namespace")


def _session_us(contender: Contender, softirqs: int) -> float:
    """CPU time per session, of all who take part in it; RuntimeError when one failed."""
    pids = (*contender.pids, softirqs)
    began_ns = sum(cpu_ns(pid) for pid in pids)
    drive = [*SESSION, "drive", str(SESSIONS), str(BURST), *contender.targets]
    driven = Driven(**json.loads(network.run(contender.lab.argv(CLIENTS, drive))))
    took_ns = sum(cpu_ns(pid) for pid in pids) - began_ns
    if driven.failed:
        raise RuntimeError(f"{contender.lab.topology.lab}: {driven.failed} of {driven.sessions} failed")
    return (took_ns + driven.cpu_ns) / driven.sessions / 1e3
