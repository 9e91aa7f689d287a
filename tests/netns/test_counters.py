# SPDX-License-Identifier: Apache-2.0
"""Counters reconcile: whatever came in by an interface left under one named reason, and what was redirected
was counted at the peer or is among the errors."""

from __future__ import annotations

import os
import random
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import numpy as np
import pytest

from controlplane import model
from controlplane.adapters import layout, loader, redirects
from controlplane.adapters.clock import MachineClock
from controlplane.adapters.dataplane import MapDataplane
from controlplane.adapters.maps import opened
from controlplane.lab import network
from controlplane.lab.topology import AP, CLIENTS, UPLINK, Topology
from controlplane.ports import InterfaceCounts
from tests.netns import mixed
from tests.netns.steered import eventually

BPF_DIR = Path(__file__).resolve().parents[2] / "bpf"
REDIRECTING = tuple(
    reason
    for reason in layout.REASONS
    if reason.startswith(("forward_", "return_", "reply_")) and not reason.endswith("_kernel")
)
"""Reasons that end in a redirect."""
NO_GRO = "host3"
"""Whose uplink gets no XDP program: what it takes depends on its offloads."""
COUNTING = (CLIENTS, "host1", "host2")
MIXED = (
    *("forward_hop", "forward_kernel", "return_fib", "reply_echo", "pass_other", "pass_not_ip", "pass_vlan"),
    *("pass_icmp", "reply_ttl", "drop_vip_port", "drop_broken", "drop_source"),
)
"""Reasons that the traffic has frames for."""
SIZES = model.Sizes(services=8, endpoints=64, flows=4096, ring_cells=65536)


def six(topology: Topology) -> Topology:
    """The same lab's IPv6 side."""
    return Topology(topology.lab, ip_version=6)


def acquaint(topology: Topology, name: str) -> None:
    """IPv6 addresses on the node's link, and the access point knows its neighbour there by both versions."""
    ap, there = topology.namespace(AP), topology.namespace(name)
    node, own = topology.node(name), six(topology).node(name)
    for namespace, device, address in ((ap, name, own.gateway), (there, UPLINK, own.interface)):
        network.run(["ip", "-n", namespace, "address", "replace", str(address), "dev", device, "nodad"])
    mac = network.run(["ip", "-n", there, "-o", "link", "show", UPLINK])
    mac = mac.partition("link/ether ")[2].split()[0]
    for neighbour in (node.address, own.address):
        network.run(["ip", "-n", ap, "neigh", "replace", str(neighbour), "lladdr", mac,
                     "nud", "permanent", "dev", name])  # fmt: skip


@pytest.fixture(scope="module")
def site(topology: Topology, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, np.ndarray]]:
    """IPv6 beside IPv4, neighbours known, and who counts at the peers."""
    for node in topology.leaves:
        for name, device in ((AP, node.name), (node.name, UPLINK)):
            setting = f"net.ipv6.conf.{device}.disable_ipv6=0"
            network.run([*network.inside(topology.namespace(name)), "sysctl", "-q", "-w", setting])
        acquaint(topology, node.name)
    forwarding = "net.ipv6.conf.all.forwarding=1"
    network.run([*network.inside(topology.namespace(AP)), "sysctl", "-q", "-w", forwarding])
    for node in (AP, NO_GRO):
        mixed.stop_in_stack(topology, node)
    with mixed.counted(topology, COUNTING, tmp_path_factory.mktemp("count"), BPF_DIR) as seen:
        yield seen


def install(dataplane: MapDataplane, topology: Topology) -> None:
    """A TCP and a UDP service for each IP version: an endpoint on every host, and one behind a device
    that takes no redirects."""
    for version, side in ((4, topology), (6, six(topology))):
        for protocol, port, own in ((model.Protocol.TCP, 80, 8080), (model.Protocol.UDP, 53, 5353)):
            name = f"{protocol.name.lower()}{version}"
            addresses = [host.address for host in side.hosts]
            addresses.append(ip_address("10.202.0.2" if version == 4 else "2001:db8:b::2"))
            service = model.VirtualService(name, side.vip, port, protocol, model.OnDown.RESET, ring_size=251)
            dataplane.apply(model.InstallService(service))
            for at, address in enumerate(addresses):
                member = model.Member(f"{name}-{at}", name, address, own, model.Role.LIVE)
                dataplane.apply(model.InstallMember(member))
            dataplane.apply(model.SetRing(name, {f"{name}-{at}": 1.0 for at in range(len(addresses))}))
    with network.entered(topology.namespace(AP)):
        dataplane.set_direct([])


@dataclass
class Ledger:
    """What our program, the kernel's drivers and the peers count."""

    topology: Topology
    config: model.Config
    dataplane: MapDataplane
    seen: Mapping[str, np.ndarray]

    def read(self) -> dict[str, dict[str, int]]:
        """Interface -> what was counted of it, while nothing came in."""
        while True:
            ours = {one.name: one for one in self.dataplane.interface_counts()}
            others = ours.pop("other")
            assert not sum(others.reasons.values()), "an interface has no row of its own"
            theirs = {
                name: {
                    "received": mixed.device_count(self.topology, name, "_xdp_packets"),
                    "xmit": mixed.device_count(self.topology, name, "_xdp_xmit"),
                    "seen": int(self.seen[name][0]) if name in self.seen else 0,
                }
                for name in ours
            }
            if ours == {one.name: one for one in self.dataplane.interface_counts()[1:]}:
                return {name: theirs[name] | self._of(one) for name, one in ours.items()}

    def _of(self, one: InterfaceCounts) -> dict[str, int]:
        assert one.redirects is not None
        sent = {name: getattr(one.redirects, name) for name in ("sent", "lost", "refused")}
        return {**one.reasons, **sent}

    def renewed(self) -> dict[str, dict[str, int]]:
        """A reading after next hops were renewed: they hold for some seconds."""
        with network.entered(self.topology.namespace(AP)):
            self.dataplane.renew_hops()
        return self.read()

    def count_redirects_by(self, bpf_dir: Path) -> str:
        fds = opened(self.config.instance)
        try:
            with closing(redirects.compiled(bpf_dir, fds)) as counting:
                return redirects.attach(self.config.instance, counting, fds)
        finally:
            for fd in fds.values():
                os.close(fd)

    def since(self, before: Mapping[str, Mapping[str, int]]) -> dict[str, dict[str, int]]:
        return {
            name: {what: count - before[name][what] for what, count in counts.items()}
            for name, counts in self.read().items()
        }


@pytest.fixture(scope="module")
def ledger(topology: Topology, site: Mapping[str, np.ndarray]) -> Iterator[Ledger]:
    """Of an instance at all interfaces of the access point."""
    config = model.Config(topology.lab, topology.ap_interfaces, services={}, sizes=SIZES)
    with steered(config, topology) as dataplane:
        install(dataplane, topology)
        yield Ledger(topology, config, dataplane, site)


@contextmanager
def steered(config: model.Config, topology: Topology, bpf_dir: Path = BPF_DIR) -> Iterator[MapDataplane]:
    with network.entered(topology.namespace(AP)):
        done = loader.load(config, bpf_dir)
        dataplane = MapDataplane.open(config.instance, MachineClock())
    try:
        assert (done.uncounted, done.rowless) == ("", ())
        yield dataplane
    finally:
        dataplane.close()
        loader.unload(config.instance)


class Traffic:
    """A few thousand frames, about a third of them steered, half of them IPv6."""

    def __init__(self, topology: Topology) -> None:
        self.senders = mixed.Senders(topology, [node.name for node in topology.leaves])
        self.rng = random.Random(5)
        self.frames: list[tuple[str, bytes]] = []
        rng, heads = self.rng, self.senders.heads
        for side in (topology, six(topology)):
            client, vip = str(side.clients.address), str(side.vip)
            hosts = {host.name: str(host.address) for host in side.hosts}
            for _ in range(450):
                frame = mixed.from_clients(rng, heads[CLIENTS], client, vip, hosts["host1"])
                self.frames.append((CLIENTS, frame))
            for _ in range(150):
                name = rng.choice(list(hosts))
                self.frames.append((name, mixed.from_endpoint(rng, heads[name], hosts[name], client, vip)))

    def send(self, times: int = 5) -> None:
        for _ in range(times):
            for node, frame in self.rng.sample(self.frames, len(self.frames)):
                self.senders.send(node, frame)


@pytest.fixture(scope="module")
def traffic(topology: Topology, site: object) -> Iterator[Traffic]:
    made = Traffic(topology)
    yield made
    made.senders.close()


def by_reason(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: counts[name] for name in layout.REASONS}


def assert_reconciled(gained: Mapping[str, Mapping[str, int]]) -> None:
    """The sums of one reading's differences to another."""
    for name, counts in gained.items():
        assert counts["received"] == sum(by_reason(counts).values()), (name, counts)
        assert counts["sent"] == counts["xmit"], (name, counts)
        if name in COUNTING:
            assert counts["sent"] == counts["seen"], (name, counts)
    asked = sum(counts[reason] for counts in gained.values() for reason in REDIRECTING)
    ended = sum(counts[what] for counts in gained.values() for what in ("sent", "lost", "refused"))
    assert asked == ended, gained


def reconciled(
    ledger: Ledger, before: Mapping[str, Mapping[str, int]], within_s: float = 5.0
) -> dict[str, dict[str, int]]:
    """What was gained, once the last frames have arrived."""
    gained = ledger.since(before)

    def settled() -> bool:
        with suppress(AssertionError):
            assert_reconciled(gained)
            return True
        gained.update(ledger.since(before))
        return False

    eventually(settled, within_s, gained)
    return gained


def test_every_frame_left_under_one_reason_and_what_was_redirected_is_accounted_for(
    ledger: Ledger, traffic: Traffic
) -> None:
    before = ledger.renewed()
    traffic.send()
    gained = reconciled(ledger, before)
    total = Counter[str]()
    for name, counts in gained.items():
        total.update(counts)
        assert counts["received"] >= sum(node == name for node, _ in traffic.frames), "there was no traffic"
    assert not {reason for reason in MIXED if not total[reason]}, "the traffic was not mixed"


def set_link(topology: Topology, node: str, device: str, *words: str) -> None:
    network.run(["ip", "-n", topology.namespace(node), "link", "set", device, *words])


def set_gro(topology: Topology, node: str, state: str) -> None:
    network.run([*network.inside(topology.namespace(node)), "ethtool", "-K", UPLINK, "gro", state])


@dataclass(frozen=True)
class Fault:
    """Something that makes the kernel lose frames that are redirected to host3."""

    begin: Callable[[Topology], None]
    end: Callable[[Topology], None]
    errors: tuple[str, ...]
    """Any of these is told; which one depends on the kernel. Empty: none is named."""


def link_fault(node: str, device: str, words: str, undo: str, *errors: str) -> Fault:
    return Fault(
        lambda lab: set_link(lab, node, device, *words.split()),
        lambda lab: set_link(lab, node, device, *undo.split()),
        errors,
    )


FAULTS = {
    "the peer has neither GRO nor XDP": Fault(
        lambda lab: set_gro(lab, NO_GRO, "off"),
        lambda lab: set_gro(lab, NO_GRO, "on"),
        ("ENOTSUP", "ENXIO"),
    ),
    "the peer is down": link_fault(NO_GRO, UPLINK, "down", "up", "ENXIO"),
    "the peer's MTU is smaller": link_fault(NO_GRO, UPLINK, "mtu 1280", "mtu 1500"),
    "the interface is down": link_fault(AP, NO_GRO, "down", "up", "ENETDOWN"),
    "the interface's MTU has become smaller": link_fault(AP, NO_GRO, "mtu 1280", "mtu 1500", "EMSGSIZE"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_the_kernel_loses_is_among_the_errors_when(
    ledger: Ledger, traffic: Traffic, topology: Topology, fault: str
) -> None:
    what, tick = FAULTS[fault], layout.tick_at(time.monotonic())
    # An earlier fault's error of the same tick may be told.
    eventually(lambda: layout.tick_at(time.monotonic()) > tick)
    before = ledger.renewed()
    what.begin(topology)
    try:
        traffic.send()
        gained = reconciled(ledger, before)[NO_GRO]
    finally:
        what.end(topology)
        acquaint(topology, NO_GRO)  # who is down forgets
    assert gained["lost"] + gained["refused"] > 0, gained
    told = next(one.redirects for one in ledger.dataplane.interface_counts() if one.name == NO_GRO)
    assert told is not None
    if what.errors:
        assert told.error in what.errors


def edited(folder: Path, name: str, old: str, new: str) -> Path:
    """A copy of bpf/ with another text in one file."""
    made = folder / "bpf"
    shutil.copytree(BPF_DIR, made, dirs_exist_ok=True)
    text = (BPF_DIR / name).read_text()
    assert old in text, "the text is gone from the source: name it anew"
    (made / name).write_text(text.replace(old, new))
    return made


def test_a_program_swap_under_traffic_neither_loses_nor_doubles_a_count(
    ledger: Ledger, traffic: Traffic, topology: Topology, tmp_path: Path
) -> None:
    """Both programs: that of the packet's path and that of the redirects."""
    before = ledger.renewed()
    going = threading.Event()

    def keep_sending() -> None:
        while not going.is_set():
            traffic.send(1)
            going.wait(0.02)

    sender = threading.Thread(target=keep_sending)
    sender.start()
    try:
        for source in (edited(tmp_path, "steer.c", "/* The one way out:", "/* This way out:"), BPF_DIR):
            with network.entered(topology.namespace(AP)):
                done = loader.load(ledger.config, source)
                assert (done.replaced, done.uncounted) == (True, "")
                ledger.dataplane.renew_hops()
    finally:
        going.set()
        sender.join()
    gained = reconciled(ledger, before)
    assert sum(counts["received"] for counts in gained.values()) > 2 * len(traffic.frames)


NOT_COUNTING = {
    "what the driver did not take": "\tcounted->lost += drops;\n",
    "what the driver took": "\tcounted->sent += (int)ctx->args[2];\n",
    "what did not come to the driver": "\tcounted->refused++;\n",
}


def test_redirects_that_nobody_counts_are_noticed(
    ledger: Ledger, traffic: Traffic, topology: Topology, tmp_path: Path
) -> None:
    """The negative control: the same sums, with each of these lines missing in turn."""
    missed = []
    for what, line in NOT_COUNTING.items():
        assert ledger.count_redirects_by(edited(tmp_path, "redirects.c", line, "")) == ""
        before = ledger.renewed()
        for fault in ("the peer's MTU is smaller", "the interface's MTU has become smaller"):
            FAULTS[fault].begin(topology)
            traffic.send(1)
            FAULTS[fault].end(topology)
        try:
            reconciled(ledger, before, within_s=0.3)
            missed.append(what)
        except AssertionError:
            pass
    assert ledger.count_redirects_by(BPF_DIR) == ""
    assert not missed


def test_others_redirects_are_not_ours(ledger: Ledger, traffic: Traffic, topology: Topology) -> None:
    """Another instance's, in a namespace of its own where interfaces have the same indices."""
    other = Topology(f"{topology.lab}o")
    try:
        network.build(other)
        config = model.Config(other.lab, other.ap_interfaces, services={}, sizes=SIZES)
        with steered(config, other) as dataplane:
            install(dataplane, other)
            with network.entered(other.namespace(AP)):
                dataplane.renew_hops()
            before = ledger.read()
            theirs = Traffic(other)
            theirs.send(1)
            theirs.senders.close()
            redirected = sum(one.redirects.sent for one in dataplane.interface_counts() if one.redirects)
            assert redirected > 0
        gained = ledger.since(before)
        assert not any(counts[what] for counts in gained.values() for what in ("sent", "lost", "refused"))
    finally:
        network.demolish(other.namespaces)
