# SPDX-License-Identifier: Apache-2.0
"""Labs of one shape, four endpoints each, with different things at the access point."""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import yaml

from controlplane.adapters import pins
from controlplane.lab import network
from controlplane.lab.configuration import Choices, LiveEndpoint, written
from controlplane.lab.lab import Lab
from controlplane.lab.topology import AP, CLIENTS, Topology
from tests.bench.frames import ENDPOINT_PORT, acquaint
from tests.netns.steered import Steered, eventually

HOSTS = 4
HEALTHY_S = 20.0
SESSION = [sys.executable, "-m", "tests.bench.sessions"]


@dataclass(frozen=True, slots=True)
class Contender:
    lab: Lab
    targets: tuple[str, ...]
    """What clients connect to, ADDRESS:PORT."""
    pids: tuple[int, ...]
    """The processes that sessions pass: the endpoints', the balancer's."""
    controller: int = 0
    """A process that they don't pass; 0: there is none."""


def _topology(name: str) -> Topology:
    return Topology(f"bench-{name}", hosts_count=HOSTS)


def _vip(lab: Lab) -> tuple[str, ...]:
    return (f"{lab.topology.vip}:{lab.topology.vip_port}",)


def _serve(lab: Lab) -> tuple[int, ...]:
    """A server on every host, listening."""
    pids = []
    for host in lab.topology.hosts:
        serve = [*SESSION, "serve", "0.0.0.0", str(ENDPOINT_PORT)]
        pids.append(lab.popen(host.name, serve, label=f"serve-{host.name}").pid)
        eventually(partial(_listens, lab, host.name), 10.0, f"{host.name} listens")
    return tuple(pids)


def _listens(lab: Lab, host: str) -> bool:
    try:
        lab.connect(host, "127.0.0.1", ENDPOINT_PORT).close()
    except OSError:
        return False
    return True


@contextmanager
def penumbra() -> Iterator[Contender]:
    """As a user has it: loaded and run by command, one service over TCP and one over UDP, defaults."""
    pins.mount_bpf_filesystem()
    folder = Path(tempfile.mkdtemp(prefix="penumbra-bench-"))
    try:
        with Steered(folder, Lab(_topology("penumbra"))) as steered:
            lab = steered.lab
            acquaint(lab)
            pids = _serve(lab)
            steered.config.write_text(_configuration(lab.topology, steered.state_dir))
            loaded = steered.penumbra("load", steered.config)
            if loaded.returncode:
                raise RuntimeError(f"penumbra load: {loaded.stderr}")
            controller = steered.start()
            eventually(lambda: _healthy(steered), HEALTHY_S, steered.said)
            yield Contender(lab, _vip(lab), pids, controller.pid)
    finally:
        shutil.rmtree(folder)


def _healthy(steered: Steered) -> bool:
    return all(group["up"] for service in steered.status()["services"] for group in service["groups"])


def _configuration(topology: Topology, state_dir: Path) -> str:
    root = yaml.safe_load(
        written(topology, Choices([LiveEndpoint(host.name, host.name) for host in topology.hosts]), state_dir)
    )
    (service,) = root["services"].values()
    service["probe"] = {"kind": "http", "path": "/", "interval": "1s"}
    over_udp = {f"{name}-udp": endpoint for name, endpoint in service["endpoints"].items()}
    root["services"]["web-udp"] = {**service, "protocol": "udp", "endpoints": over_udp}
    return yaml.safe_dump(root)


@contextmanager
def nftables() -> Iterator[Contender]:
    """Destination NAT by a hash of the source. Checksums are taken as checked, as a network card's driver
    would say, and packets are not looked up as this host's own, as on a router."""
    with Lab(_topology("nftables")) as lab:
        acquaint(lab)
        pids = _serve(lab)
        places = ", ".join(
            f"{number} : {host.address} . {ENDPOINT_PORT}" for number, host in enumerate(lab.topology.hosts)
        )
        spread = f"dnat to jhash ip saddr . th sport mod {HOSTS} map {{ {places} }}"
        service = f"ip daddr {lab.topology.vip} meta l4proto {{ tcp, udp }} th dport {lab.topology.vip_port}"
        rules = ["table ip balancer {", "chain incoming {", "type nat hook prerouting priority dstnat"]
        rules += [f"{service} {spread}", "}", "}", ""]
        network.run(lab.argv(AP, ["nft", "-f", "-"]), "\n".join(rules))
        tuned = ["net.netfilter.nf_conntrack_checksum=0", "net.ipv4.ip_early_demux=0"]
        lab.run(AP, ["sysctl", "-q", "-w", *tuned])
        yield Contender(lab, _vip(lab), pids)


@contextmanager
def haproxy() -> Iterator[Contender]:
    """TCP mode, one thread, no log, packets saved where it can."""
    with Lab(_topology("haproxy")) as lab:
        topology, pids = lab.topology, _serve(lab)
        lab.run(AP, ["ip", "address", "add", f"{topology.vip}/32", "dev", "lo"])
        configuration = [
            "global",
            "maxconn 4000",
            "nbthread 1",
            "defaults",
            "mode tcp",
            "timeout connect 5s",
            "timeout client 30s",
            "timeout server 30s",
            "option tcp-smart-accept",
            "option tcp-smart-connect",
            "listen web",
            f"bind {topology.vip}:{topology.vip_port} backlog 4096",
            "balance roundrobin",
            *(f"server {host.name} {host.address}:{ENDPOINT_PORT} check inter 1s" for host in topology.hosts),
        ]
        path = lab.folder / "haproxy.cfg"
        path.write_text("\n".join([*configuration, ""]))
        process = lab.popen(AP, ["haproxy", "-db", "-f", str(path)], label="haproxy")
        yield Contender(lab, _vip(lab), (*pids, process.pid))


@contextmanager
def direct() -> Iterator[Contender]:
    """Clients and endpoints on links of their own: what sessions cost where no access point is."""
    with Lab(_topology("direct")) as lab:
        targets, pids = [], _serve(lab)
        for number, host in enumerate(lab.topology.hosts):
            link, there = f"to-{host.name}", lab.topology.namespace(host.name)
            peer = ["peer", "name", "direct", "netns", there]
            lab.run(CLIENTS, ["ip", "link", "add", link, "type", "veth", *peer])
            for node, interface, last in ((CLIENTS, link, 1), (host.name, "direct", 2)):
                lab.run(node, ["ip", "address", "add", f"10.210.{number}.{last}/24", "dev", interface])
                lab.run(node, ["ip", "link", "set", interface, "up"])
                lab.run(node, ["ethtool", "-K", interface, "tx", "off", "gro", "on"])
            targets.append(f"10.210.{number}.2:{ENDPOINT_PORT}")
        yield Contender(lab, tuple(targets), pids)


@contextmanager
def bare() -> Iterator[Contender]:
    """Nothing at the access point yet."""
    with Lab(_topology("bare")) as lab:
        acquaint(lab)
        targets = tuple(f"{host.address}:{ENDPOINT_PORT}" for host in lab.topology.hosts)
        yield Contender(lab, targets, _serve(lab))
