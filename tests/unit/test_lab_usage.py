# SPDX-License-Identifier: Apache-2.0
"""A lab's endpoint tells how busy its slots are, in the words of node_exporter and of an agent."""

from __future__ import annotations

import http.client
import socket
import subprocess
import sys
import threading
import time

import pytest

from controlplane.adapters.load_source import BackgroundLoadSource
from controlplane.model import UsageKind, UsageSource


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


@pytest.fixture
def ports():
    port, agent_port = free_port(), free_port()
    argv = [sys.executable, "-m", "controlplane.lab.server", "--address", "127.0.0.1", "--port", str(port)]
    argv += ["--agent-port", str(agent_port), "--service-time", "0.05", "--concurrency", "2"]
    with subprocess.Popen(argv) as server:
        yield port, agent_port
        server.terminate()


def keep_busy(port: int, over: threading.Event) -> None:
    """One of the two slots."""
    deadline = time.monotonic() + 10
    while not over.is_set() and time.monotonic() < deadline:
        try:
            asking = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            while not over.is_set():
                asking.request("GET", "/")
                asking.getresponse().read()
        except OSError:
            time.sleep(0.02)  # it does not listen yet


def test_half_of_the_slots_busy_is_told_as_half(ports):
    port, agent_port = ports
    over = threading.Event()
    client = threading.Thread(target=keep_busy, args=(port, over))
    client.start()
    source = BackgroundLoadSource()
    try:
        url = f"http://127.0.0.1:{port}/metrics"
        source.watch(
            {
                "metrics": UsageSource(UsageKind.NODE_EXPORTER, url, interval_s=0.3, timeout_s=0.3),
                "agent": UsageSource(UsageKind.AGENT_CHECK, "127.0.0.1", agent_port, "", 0.3, 0.3),
            }
        )
        told: dict[str, list[float]] = {"metrics": [], "agent": []}
        deadline = time.monotonic() + 15
        while not all(len(shares) >= 4 for shares in told.values()) and time.monotonic() < deadline:
            for usage in source.usages():
                share = usage.cpu if usage.member == "metrics" else usage.weight
                told[usage.member] += [] if share is None else [share]
            time.sleep(0.02)
        assert told["metrics"][-1] == pytest.approx(0.5, abs=0.2), told
        assert told["agent"][-1] == pytest.approx(0.5, abs=0.2), told
    finally:
        source.close()
        over.set()
        client.join()
