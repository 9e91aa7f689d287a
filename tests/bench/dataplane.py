# SPDX-License-Identifier: Apache-2.0
"""What steering costs per packet, program only, on the instance of ``case.py``."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import Ether

from controlplane.adapters import libbpf
from tests.bench import case
from tests.bench.case import Installed, Instance
from tests.bench.figures import Figure
from tests.bench.harness import CORES, FRAME_BYTES, PACKETS, WARM_PACKETS, Flows, Harness, pinned_to

HITS = {"hit_1": 1, "hit_64k": 1 << 16, "hit_1m": 1 << 20}
MANY = 1 << 20
FLOOD_LIMIT = 1_000
"""New flows per tick and CPU that are remembered while a flood lasts."""
FIRST_CLIENT = {4: "10.0.0.0", 6: "fd00::100:0"}
SYN, ACK, DATA = "S", "A", "PA"

Taken = Iterator[tuple[str, float]]


def measure() -> Mapping[str, Figure]:
    """The figures ``dataplane.*``; about five minutes."""
    figures: dict[str, Figure] = {}
    for version, suffix in ((4, ""), (6, "_v6")):
        for protocol, cases in ((case.TCP, _tcp), (case.UDP, _udp)):
            with case.loaded(Installed(version, protocol)) as instance, pinned_to(CORES[-1]):
                for name, value in cases(instance):
                    what, dot, of = name.partition(".")
                    figures[f"dataplane.{what}{suffix}{dot}{of}"] = Figure(value, "ns")
                verified = libbpf.prog_info(instance.program_fd).verified
    figures["dataplane.verified"] = Figure(verified, "instructions")
    return figures


def _tcp(instance: Instance) -> Taken:
    forward = Flows(_frame(instance, DATA), MANY)
    for name, count in HITS.items():
        yield from _compared(name, instance, Flows(forward.frame, count))
    back = Flows(_frame(instance, DATA, back=True), MANY, back=True)
    yield from _compared("return_1m", instance, back)
    yield from _compared("new", instance, Flows(_frame(instance, SYN), MANY, in_turn=True), emptied=True)
    with _flooded(instance):
        yield from _compared("flood_syn", instance, Flows(_frame(instance, SYN), MANY))
        yield from _compared("flood_ack", instance, Flows(_frame(instance, ACK), MANY))
    if len(CORES) > 1:
        yield from _on_two_cores(instance, forward, back)


def _udp(instance: Instance) -> Taken:
    with _flooded(instance):
        yield from _compared("flood_udp", instance, Flows(_frame(instance, ""), MANY))


def _on_two_cores(instance: Instance, forward: Flows, back: Flows) -> Taken:
    """Both directions of the same flows at once: one endpoint has them all, so that answers find theirs."""
    instance.serve_by(instance.answering)
    instance.empty_cache()
    with _beside(instance, back):
        yield from _compared("hit_1m_two_cpus", instance, forward)
    with _beside(instance, forward):
        yield from _compared("return_1m_two_cpus", instance, back)


def _compared(name: str, instance: Instance, flows: Flows, *, emptied: bool = False) -> Taken:
    """Nanoseconds above an empty program; with those of one cold line, and the empty program's, taken in
    the same rounds. ``emptied``: the cache, before each round."""
    harness = Harness()
    try:
        programs = {"empty": harness.empty, "cold": harness.cold, "steer": instance.program_fd}
        took = harness.compare(programs, flows, instance.empty_cache if emptied else None)
    finally:
        harness.close()
    yield name, took["steer"] - took["empty"]
    yield f"{name}.cold", took["cold"] - took["empty"]
    yield f"{name}.empty", took["empty"]


@contextmanager
def _flooded(instance: Instance) -> Iterator[None]:
    """Next to nothing of what is new is remembered."""
    instance.empty_cache()
    instance.settings["insert_limit"] = FLOOD_LIMIT
    try:
        yield
    finally:
        instance.settings["insert_limit"] = case.NO_LIMIT


@contextmanager
def _beside(instance: Instance, flows: Flows) -> Iterator[None]:
    """The program steers these flows on another core meanwhile."""
    harness, ended, warm = Harness(), threading.Event(), threading.Event()

    def steer() -> None:
        with pinned_to(CORES[0]):
            harness.run(instance.program_fd, flows, WARM_PACKETS)
            warm.set()
            while not ended.is_set():
                harness.run(instance.program_fd, flows, PACKETS)

    other = threading.Thread(target=steer)
    other.start()
    try:
        warm.wait()
        yield
    finally:
        ended.set()
        other.join()
        harness.close()


def _frame(instance: Instance, flags: str, *, back: bool = False) -> bytes:
    """From the first client to the measured service, or ``back`` from an endpoint."""
    installed = instance.installed
    vip, client = str(installed.vip()), FIRST_CLIENT[installed.version]
    answering = str(installed.endpoint(instance.answering))
    source, destination = (answering, client) if back else (client, vip)
    ip = (IPv6 if installed.version == 6 else IP)(src=source, dst=destination)
    ports: TCP | UDP
    if installed.protocol == case.UDP:
        ports = UDP(dport=case.PORT)
    else:
        ports = TCP(dport=case.PORT, flags=flags)
        ports.options = [("NOP", None), ("NOP", None), ("Timestamp", (1, 1))]
    if back:
        ports.sport, ports.dport = case.ENDPOINT_PORT, 0
    headers = Ether(src="02:00:00:00:00:02", dst="02:00:00:00:00:01") / ip / ports
    padding = bytes(FRAME_BYTES - len(headers))
    return bytes(headers) + padding if flags == SYN else bytes(headers / padding)
