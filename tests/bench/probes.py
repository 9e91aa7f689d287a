# SPDX-License-Identifier: Apache-2.0
"""What health checks cost, against members on loopback, and how soon the dead get no packets any more."""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from controlplane import model
from controlplane.adapters.probes import NetworkProber
from tests.bench.figures import Figure
from tests.netns.steered import FALL, INTERVAL_S, steered
from tests.netns.test_failover import Tap, cut_host, kill_endpoint

MEMBERS, HTTP_MEMBERS = 10_000, 500
MEASURED_S, SETTLED_S = 5.0, 3.0
ROUNDS = 3
WATCHED_S = 2.5
TIMEOUT_S = INTERVAL_S * (FALL - 1) / FALL
"""As long as it may be for all timeouts of the silent to end within interval x fall."""
US, MS = 1e6, 1e3

_ACCEPTS = """
import os, socket, sys
listener = socket.create_server(("0.0.0.0", 0), backlog=4096, reuse_port=True)
print(listener.getsockname()[1], flush=True)
for _ in range(int(sys.argv[1]) - 1):
    if not os.fork():
        break
while True:
    try:
        connection, _ = listener.accept()
        if sys.argv[2] == "http":
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 204 No Content\\r\\n\\r\\n")
        connection.close()
    except OSError:
        pass
"""


def measure() -> Mapping[str, Figure]:
    """The figures ``probes.*`` and ``failover.*``; about two minutes."""
    figures = {}
    with _members("tcp") as port:
        rates, ours, theirs = [], [], []
        for _ in range(ROUNDS):
            per_s, cpu_s = _by_prober(model.Probe(), MEMBERS, port)
            rates.append(per_s)
            ours.append(cpu_s)
            theirs.append(_by_asyncio(port))
    figures["probes.tcp_per_s"] = Figure(statistics.median(rates), "1/s")
    figures["probes.tcp"] = Figure(statistics.median(ours) * US, "us")
    figures["probes.tcp_core"] = Figure(statistics.median(ours) * MEMBERS, "core")
    ratios = [own / other for own, other in zip(ours, theirs, strict=True)]
    figures["probes.tcp_vs_asyncio"] = Figure(statistics.median(ratios), "x")
    with _members("http") as port:
        per_s, cpu_s = _by_prober(model.Probe(model.ProbeKind.HTTP), HTTP_MEMBERS, port)
    figures["probes.http"] = Figure(cpu_s * US, "us")
    figures["probes.http_per_s"] = Figure(per_s, "1/s")
    figures["failover.interval_x_fall"] = Figure(INTERVAL_S * FALL * MS, "ms")
    figures["failover.killed"] = Figure(_last_packet_s(kill_endpoint) * MS, "ms")
    figures["failover.cut_off"] = Figure(_last_packet_s(cut_host) * MS, "ms")
    return figures


@contextmanager
def _members(kind: str) -> Iterator[int]:
    """Every address of loopback answers at this port."""
    command = [sys.executable, "-c", _ACCEPTS, "2", kind]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        assert process.stdout is not None
        yield int(process.stdout.readline())
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _address(n: int) -> str:
    return f"127.1.{n // 250}.{n % 250 + 1}"


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _by_prober(probe: model.Probe, members: int, port: int) -> tuple[float, float]:
    """Good answers per second, and CPU time of the process that checks for each answer."""
    prober = NetworkProber()
    try:
        prober.watch({f"endpoint-{n}": (_address(n), port, probe) for n in range(members)})
        time.sleep(SETTLED_S)
        prober.results()
        began_s, before_s = time.monotonic(), _cpu_s(prober.pid)
        time.sleep(MEASURED_S)
        answers = prober.results()
        took_s = time.monotonic() - began_s
        used_s = _cpu_s(prober.pid) - before_s
    finally:
        prober.close()
    return sum(one.ok for one in answers) / took_s, used_s / len(answers)


def _by_asyncio(port: int) -> float:
    """CPU time of this process for each check with asyncio's streams, at a rate that it can keep."""

    async def check(n: int) -> None:
        with suppress(OSError, TimeoutError):
            async with asyncio.timeout(model.Probe().timeout_s):
                _, writer = await asyncio.open_connection(_address(n), port)
                writer.close()

    async def checks(count: int, at_once: int, one: Callable[[int], Awaitable[None]]) -> None:
        for first in range(0, count, at_once):
            await asyncio.gather(*(one(n % MEMBERS) for n in range(first, first + at_once)))

    before_s = time.process_time()
    asyncio.run(checks(MEMBERS, 10, check))
    return (time.process_time() - before_s) / MEMBERS


def _last_packet_s(death: Callable[..., None]) -> float:
    """From the death of an endpoint with a shadow, under load, to the last packet that came to it."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        site = stack.enter_context(steered(folder))
        root = site.configuration()
        next(iter(root["services"].values()))["probe"]["timeout"] = f"{TIMEOUT_S * MS:.0f}ms"
        site.configure(root)
        site.start()
        site.add_shadow()
        traffic = site.traffic(100.0)
        with Tap(site) as tap:
            traffic.flows(100)
            death(site)
            died_s = time.monotonic()
            time.sleep(INTERVAL_S * FALL + WATCHED_S)
            return max(tap.seen_s) - died_s
