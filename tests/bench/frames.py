# SPDX-License-Identifier: Apache-2.0
"""Frames of many flows, offered to an access point by its clients and counted where they arrive."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path

import numpy as np
from scapy.layers.inet import IP, TCP, UDP
from scapy.layers.l2 import Ether

from controlplane.adapters import attach, libbpf
from controlplane.adapters.bcc import compile_file
from controlplane.lab.lab import Lab
from controlplane.lab.topology import AP, CLIENTS, UPLINK, Topology
from tests.bench.harness import BPF_DIR

SOURCE = Path(__file__).with_name("frames.c")
FRAME_BYTES = 66
"""An acknowledgement with timestamps: most of the packets that clients send."""
ENDPOINT_PORT = 8080
CLIENT_NET = IPv4Network("10.64.0.0/16")
"""Behind the clients' node; ``frames.c`` sets the lower half."""
OPENED_AT_ONCE, OPENED_PER_S = 4096, 100_000
HOSTS_MAC = "02:00:00:00:0e:01"
BATCH = 64
PLAN = np.dtype([(field, "<u4") for field in ("random", "flow_mask", "next", "in_turn", "verdict", "pad")])
XDP_DROP, XDP_TX = 1, 3
ARRIVED = np.dtype([("count", "<u8", (8,))])


@dataclass(frozen=True, slots=True)
class Arrived:
    """Frames by kind, in the order of ``enum kind``."""

    frames: int
    openings: int
    answers: int
    strange: int

    def __sub__(self, before: Arrived) -> Arrived:
        return Arrived(
            self.frames - before.frames,
            self.openings - before.openings,
            self.answers - before.answers,
            self.strange - before.strange,
        )


class Frames:
    """The programs of ``frames.c``, loaded; one counts for all labs. Close it when done."""

    def __init__(self) -> None:
        ports = [f"-DVIP_PORT={Topology().vip_port}", f"-DENDPOINT_PORT={ENDPOINT_PORT}"]
        network = int(CLIENT_NET.network_address)
        defines = [f"-DFRAME_BYTES={FRAME_BYTES}", f"-DCLIENT_NET={network:#x}", *ports]
        self._programs = {
            name: compile_file(SOURCE, name, defines, headers=BPF_DIR)
            for name in ("offer", "arrive", "pass", "relay")
        }
        self.offer_fd = self._programs["offer"].program_fd
        self.arrive_fd = self._programs["arrive"].program_fd
        self._links: list[int] = []
        maps = self._programs["offer"].maps
        self._template = maps["template"]
        self._plan = libbpf.map_view(maps["plan"], PLAN, writable=True)
        self._plan[0]["random"] = 1
        self._arrived = libbpf.map_view(self._programs["arrive"].maps["arrived"], ARRIVED)

    def close(self) -> None:
        """Detaches what was attached, too."""
        for link in self._links:
            os.close(link)
        for compiled in self._programs.values():
            compiled.close()

    # ---- at the interfaces ------------------------------------------------------------

    def catch(self, lab: Lab) -> None:
        """Frames are counted, and openings answered, at all ends of the lab from now on."""
        for node in lab.topology.leaves:
            self._attach(lab, node.name, UPLINK, "arrive")

    def let_pass(self, lab: Lab) -> None:
        """The access point's interfaces poll, as a network card's do, and its kernel gets all that comes."""
        for interface in lab.topology.ap_interfaces:
            self._attach(lab, AP, interface, "pass")

    def relay(self, lab: Lab) -> None:
        """The access point hands frames on as they come. Towards each side it has the other's hardware
        address, which is the same for all hosts, so that their kernels take them."""
        topology = lab.topology
        client = mac(lab, CLIENTS, UPLINK)
        for node in topology.hosts:
            lab.run(node.name, ["ip", "link", "set", UPLINK, "address", HOSTS_MAC])
        for node in topology.leaves:
            other = HOSTS_MAC if node.name == CLIENTS else client
            lab.run(AP, ["ip", "link", "set", node.name, "address", other])
            known = ["lladdr", other, "dev", UPLINK, "nud", "permanent"]
            lab.run(node.name, ["ip", "neighbour", "replace", str(node.gateway.ip), *known])
            with lab.entered(AP):
                index = attach.interface_index(node.name)
            key, value = node.address.packed, index.to_bytes(4, "little")
            libbpf.map_update(self._programs["relay"].maps["relay_to"], key, value)
            self._attach(lab, AP, node.name, "relay")

    def _attach(self, lab: Lab, node: str, interface: str, program: str) -> None:
        with lab.entered(node):
            index = attach.interface_index(interface)
            fd = self._programs[program].program_fd
            self._links.append(libbpf.xdp_link_create(fd, index, libbpf.XDP_FLAGS_DRV_MODE))

    # ---- frames -----------------------------------------------------------------------

    def aim(self, frame: bytes, flows: int, *, in_turn: bool = False, send: bool = True) -> None:
        """What is made from now on, of so many flows (a power of two), and whether it is sent."""
        libbpf.map_update(self._template, bytes(4), frame)
        plan = self._plan[0]
        plan["flow_mask"], plan["in_turn"], plan["next"] = flows - 1, in_turn, 0
        plan["verdict"] = XDP_TX if send else XDP_DROP

    def send(self, lab: Lab, frame: bytes, count: int) -> None:
        """Makes so many at the clients' interface. Where no thread or other CPU is involved, each batch has
        gone all its way before the next is made, and nothing is lost."""
        with lab.entered(CLIENTS):
            index = attach.interface_index(UPLINK)
            live = libbpf.BPF_F_TEST_XDP_LIVE_FRAMES
            libbpf.prog_test_run(
                self.offer_fd, frame, ingress_ifindex=index, repeat=count, flags=live, batch=BATCH
            )

    def arrived(self) -> Arrived:
        counts = self._arrived["count"].sum(axis=0)
        return Arrived(*(int(count) for count in counts[:4]))

    def open(self, lab: Lab, protocol: str, flows: int) -> None:
        """Has every flow opened and answered, no faster than is taken for a flood. RuntimeError when answers
        are missing."""
        frame = framed(lab, protocol, opening=True)
        self.aim(frame, flows, in_turn=True)
        before = self.arrived()
        for _ in range(0, flows, OPENED_AT_ONCE):
            self.send(lab, frame, OPENED_AT_ONCE)
            time.sleep(OPENED_AT_ONCE / OPENED_PER_S)
        arrived = self.arrived() - before
        if arrived != Arrived(0, flows, flows, 0):
            raise RuntimeError(f"{lab.topology.lab}: of {flows} {protocol} flows opened: {arrived}")


def framed(lab: Lab, protocol: str, *, opening: bool = False, direct: bool = False) -> bytes:
    """The frame that all are made of: to the VIP, or directly to the first host's endpoint."""
    topology = lab.topology
    link = Ether(src=mac(lab, CLIENTS, UPLINK), dst=mac(lab, AP, topology.clients.name))
    if direct:
        return frame_of(link, str(topology.hosts[0].address), ENDPOINT_PORT, protocol, opening=opening)
    return frame_of(link, str(topology.vip), topology.vip_port, protocol, opening=opening)


def frame_of(link: Ether, address: str, port: int, protocol: str, *, opening: bool) -> bytes:
    ip = IP(src=str(CLIENT_NET.network_address), dst=address)
    if protocol == "tcp":
        flags, number = ("S", 0) if opening else ("A", 1)
        options = [("NOP", None), ("NOP", None), ("Timestamp", (1, 1))]
        tcp = TCP(sport=0, dport=port, flags=flags, seq=number, ack=number, options=options)
        return bytes(link / ip / tcp)
    headers = link / ip / UDP(sport=0, dport=port)
    return bytes(headers / bytes([opening]).ljust(FRAME_BYTES - len(headers), b"\0"))


def mac(lab: Lab, node: str, interface: str) -> str:
    (link,) = json.loads(lab.run(node, ["ip", "-json", "link", "show", "dev", interface]))
    return str(link["address"])


def acquaint(lab: Lab) -> None:
    """The access point knows the way to the clients' network and everybody's hardware address."""
    topology = lab.topology
    lab.run(AP, ["ip", "route", "add", str(CLIENT_NET), "via", str(topology.clients.address)])
    for node in topology.leaves:
        known = ["lladdr", mac(lab, node.name, UPLINK), "dev", node.name, "nud", "permanent"]
        lab.run(AP, ["ip", "neighbour", "replace", str(node.address), *known])
