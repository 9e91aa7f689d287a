# SPDX-License-Identifier: Apache-2.0
"""Makes and removes a topology's namespaces, links and settings, with iproute2 and ethtool."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from controlplane.lab.processes import NETNS
from controlplane.lab.topology import AP, UPLINK, Topology

CLONE_NEWNET = 0x40000000


class LabError(RuntimeError):
    """The lab can't do what was asked; the message says why and what to do."""


def run(argv: Sequence[str], stdin: str | None = None) -> str:
    try:
        done = subprocess.run(argv, input=stdin, capture_output=True, text=True, check=False, timeout=30)
    except FileNotFoundError:
        raise LabError(f"{argv[0]} is missing: apt-get install iproute2 ethtool util-linux procps") from None
    if done.returncode:
        raise LabError(f"{' '.join(argv)}: {done.stderr.strip() or f'exit {done.returncode}'}")
    return done.stdout


def inside(namespace: str) -> list[str]:
    """What to put before a command. Unlike ``ip netns exec`` it leaves /sys, and so bpffs, as they are."""
    return ["nsenter", f"--net={NETNS / namespace}"]


@contextmanager
def entered(namespace: str) -> Iterator[None]:
    """This thread lives in the namespace, named or a path; sockets made here stay there."""
    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        there = os.open(NETNS / namespace, os.O_RDONLY)
        try:
            if libc.setns(there, CLONE_NEWNET):
                number = ctypes.get_errno()
                raise LabError(f"can't enter namespace {namespace}: {os.strerror(number)}")
        finally:
            os.close(there)
        try:
            yield
        finally:
            libc.setns(home, CLONE_NEWNET)
    finally:
        os.close(home)


def build(topology: Topology) -> None:
    """Raises ``LabError``, with some of it made."""
    ap = topology.namespace(AP)
    run(["ip", "-batch", "-"], "".join(f"netns add {name}\n" for name in topology.namespaces))
    v6 = topology.ip_version == 6
    forwarding = "net.ipv6.conf.all.forwarding=1" if v6 else "net.ipv4.ip_forward=1"
    _settings(ap, v6, forwarding, "net.ipv4.conf.all.send_redirects=0")
    for node in topology.leaves:
        _settings(topology.namespace(node.name), v6)
    # An address that is still looked for twice can't be bound yet (RFC 4862 section 5.4).
    now = " nodad" if v6 else ""
    run(
        ["ip", "-n", ap, "-batch", "-"],
        "link set lo up\n"
        + "".join(
            f"link add {node.name} type veth peer name {UPLINK} netns {topology.namespace(node.name)}\n"
            f"address add {node.gateway} dev {node.name}{now}\n"
            f"link set {node.name} up\n"
            for node in topology.leaves
        ),
    )
    for node in topology.leaves:
        namespace = topology.namespace(node.name)
        run(
            ["ip", "-n", namespace, "-batch", "-"],
            f"link set lo up\naddress add {node.interface} dev {UPLINK}{now}\nlink set {UPLINK} up\n"
            f"route add default via {node.gateway.ip}\n",
        )
        # Checksums are complete before XDP sees the packet; GRO on a redirect's target, or frames are lost.
        run([*inside(namespace), "ethtool", "-K", UPLINK, "tx", "off", "gro", "on"])


def _settings(namespace: str, v6: bool, *more: str) -> None:
    """Set before any link exists, so that every interface inherits them."""
    wanted = ["net.ipv4.conf.all.rp_filter=0", "net.ipv4.conf.default.rp_filter=0", *more]
    wanted += ["net.ipv4.conf.default.send_redirects=0"]
    # A connection per request leaves its port in TIME_WAIT for a minute.
    wanted += ["net.ipv4.ip_local_port_range=10240 65000"]
    if Path("/proc/sys/net/ipv6").exists():
        off = int(not v6)
        wanted += [f"net.ipv6.conf.all.disable_ipv6={off}", f"net.ipv6.conf.default.disable_ipv6={off}"]
        wanted += ["net.ipv6.conf.default.accept_ra=0", "net.ipv6.conf.default.router_solicitations=0"]
    run([*inside(namespace), "sysctl", "-q", "-w", *wanted])


def demolish(namespaces: Sequence[str]) -> None:
    """Removes namespaces and the links in them, as far as they exist. Whoever lived there must be gone."""
    for name in namespaces:
        if not (NETNS / name).exists():
            continue
        # A namespace's links go some time after it; deleted by name they are gone when ip returns.
        # An entry that was never mounted (creation was cut short) has no links to ask for.
        if os.path.ismount(NETNS / name):
            shown = run(["ip", "-n", name, "-o", "link", "show", "type", "veth"])
            links = [line.split()[1].partition("@")[0].rstrip(":") for line in shown.splitlines()]
            run(["ip", "-n", name, "-batch", "-"], "".join(f"link delete {link}\n" for link in links))
        run(["ip", "netns", "delete", name])


def unmount(folder: str) -> None:
    """What container engines that were killed left mounted below a lab's folder; the deepest first."""
    lines = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    for place in reversed([line.split()[1] for line in lines]):
        if place.startswith(f"{folder}/"):
            run(["umount", "--lazy", place])
