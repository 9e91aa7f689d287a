# SPDX-License-Identifier: Apache-2.0
"""Without a next hop the kernel's routes and neighbours decide: test runs inside a namespace of our own."""

from __future__ import annotations

import contextlib
import ctypes
import os
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from scapy.layers.inet import IP

from controlplane.adapters import libbpf
from controlplane.adapters.bcc import compile_program
from tests.packet.rig import PASS, REDIRECT, SIZES, Result, Rig, faulty, refused, rewritten, tcp

VIP, CLIENT, ENDPOINT = "198.51.100.10", "192.0.2.7", "203.0.113.5"
VIP6, CLIENT6 = "2001:db8:1::10", "2001:db8:c::7"
TELLS_OWN = b"BPF_FIB_LOOKUP_SRC" in Path("/sys/kernel/btf/vmlinux").read_bytes()
"""Whether this kernel tells the program which address it has towards somebody; late 6.1 does too."""
OWN = {4: "192.0.2.1", 6: "2001:db8:c::1"} if TELLS_OWN else {4: VIP, 6: VIP6}
"""Towards the client."""
CLIENT_MAC, ENDPOINT_MAC = "02:00:00:00:0c:01", "02:00:00:00:0e:01"
CLIENT_SIDE_MAC, ENDPOINT_SIDE_MAC = "02:00:00:00:0a:01", "02:00:00:00:0a:02"
CLONE_NEWNET = 0x40000000
TAG_7 = b"\x81\x00\x00\x07"
SYN = tcp(CLIENT, 4000, VIP, 80, "S")
SYNACK = tcp(ENDPOINT, 8080, CLIENT, 4000, "SA")

Send = Callable[[object], Result]


def run(*arguments: str) -> str:
    return subprocess.run(arguments, check=True, capture_output=True, text=True).stdout


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    """An access point between a client's network (side c, MTU 1500) and an endpoint's (side e, MTU 600)."""
    name = f"penumbra-fib-{os.getpid()}"
    run("ip", "netns", "add", name)
    try:
        for side, mac, mtu in (("c", CLIENT_SIDE_MAC, "1500"), ("e", ENDPOINT_SIDE_MAC, "600")):
            run("ip", "-n", name, "link", "add", side, "address", mac, "type", "veth", "peer", f"{side}x")
            run("ip", "-n", name, "link", "set", side, "mtu", mtu, "up")
            run("ip", "-n", name, "link", "set", f"{side}x", "up")
        run("ip", "-n", name, "address", "add", "192.0.2.1/24", "dev", "c")
        run("ip", "-n", name, "address", "add", "203.0.113.1/24", "dev", "e")
        run("ip", "-n", name, "address", "add", "2001:db8:c::1/64", "dev", "c", "nodad")
        for version in ("ipv4", "ipv6"):
            setting = f"net.{version}.conf.all.forwarding=1"
            run("nsenter", f"--net=/run/netns/{name}", "sysctl", "-qw", setting)
        for side, address, mac in (("c", CLIENT, CLIENT_MAC), ("e", ENDPOINT, ENDPOINT_MAC)):
            run("ip", "-n", name, "neigh", "add", address, "lladdr", mac, "dev", side, "nud", "permanent")
        yield name
    finally:
        run("ip", "netns", "del", name)


def index_of(namespace: str, device: str) -> int:
    return int(run("ip", "-n", namespace, "-o", "link", "show", device).split(":")[0])


@contextlib.contextmanager
def sending(rig: Rig, namespace: str) -> Iterator[Send]:
    """Through the program as if from the client's side; both sides take redirects."""
    rig.service(1, VIP, 80)
    rig.ring(1, [rig.endpoint(1, 1, ENDPOINT, 8080, hop=False)] * 7)
    ingress = index_of(namespace, "c")
    for device in ("c", "e"):
        rig.port(index_of(namespace, device))

    def enter() -> None:
        fd = os.open(Path("/run/netns") / namespace, os.O_RDONLY)
        if ctypes.CDLL(None, use_errno=True).setns(fd, CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "setns")
        os.close(fd)

    # setns moves one thread only, so the test's own stays where it is.
    with ThreadPoolExecutor(1, initializer=enter) as inside:
        yield lambda packet: inside.submit(rig.send, packet, ingress_ifindex=ingress).result()


@pytest.fixture
def routed(rig: Rig, namespace: str) -> Iterator[Send]:
    with sending(rig, namespace) as send:
        yield send


def test_a_packet_leaves_by_the_kernels_route(routed: Send) -> None:
    result = routed(SYN)
    assert (result.verdict, result.reason) == (REDIRECT, "forward_fib")
    assert result.raw == rewritten(SYN, destination=(ENDPOINT, 8080), hop=(ENDPOINT_MAC, ENDPOINT_SIDE_MAC))


def test_an_answer_leaves_by_the_kernels_route(routed: Send) -> None:
    routed(SYN)
    result = routed(SYNACK)
    assert (result.verdict, result.reason) == (REDIRECT, "return_fib")
    assert result.raw == rewritten(SYNACK, source=(VIP, 80), hop=(CLIENT_MAC, CLIENT_SIDE_MAC))


def test_a_client_in_a_vlan_is_answered_with_its_tag(routed: Send, rig: Rig, namespace: str) -> None:
    """As if c were a VLAN device: what the kernel's route names decides on interface and tag."""
    rig.port(index_of(namespace, "c"), index_of(namespace, "c"), [7])
    frame = bytes(SYN)
    result = routed(frame[:12] + TAG_7 + frame[12:])
    assert (result.verdict, result.reason) == (REDIRECT, "forward_fib")
    assert result.raw == rewritten(SYN, destination=(ENDPOINT, 8080), hop=(ENDPOINT_MAC, ENDPOINT_SIDE_MAC))
    result = routed(SYNACK)
    assert (result.verdict, result.reason) == (REDIRECT, "return_fib")
    wanted = rewritten(SYNACK, source=(VIP, 80), hop=(CLIENT_MAC, CLIENT_SIDE_MAC))
    assert result.raw == wanted[:12] + TAG_7 + wanted[12:]


def test_an_interface_that_takes_no_redirects_gets_it_by_the_kernel(
    routed: Send, rig: Rig, namespace: str
) -> None:
    libbpf.map_delete(rig.compiled.maps["ports"], index_of(namespace, "e").to_bytes(4, "little"))
    result = routed(SYN)
    assert (result.verdict, result.reason) == (PASS, "forward_kernel")
    assert result.raw == rewritten(SYN, destination=(ENDPOINT, 8080), hop=None)


@pytest.mark.parametrize("flags", ["DF", 0], ids=["not to be cut", "to be cut"])
def test_of_a_packet_larger_than_the_routes_mtu_its_sender_is_told_unless_it_may_be_cut(
    routed: Send, flags: object
) -> None:
    packet = tcp(CLIENT, 4000, VIP, 80, "PA", b"x" * 700)
    packet[IP].flags = flags
    result = routed(packet)
    if flags:
        assert (result.verdict, result.reason) == (REDIRECT, "reply_mtu")
        assert result.raw == refused(packet, OWN[4], 600)
    else:
        assert (result.verdict, result.reason) == (PASS, "forward_cut")
        assert result.raw == rewritten(packet, destination=(ENDPOINT, 8080), hop=None)


@pytest.mark.parametrize("flags", ["DF", 0], ids=["not to be cut", "to be cut"])
def test_an_answer_larger_than_the_route_to_its_client_never_shows_the_endpoint(
    routed: Send, flags: object
) -> None:
    """Uncut it is not forwarded; in fragments the client would get it from an address it does not know."""
    routed(SYN)
    packet = tcp(ENDPOINT, 8080, CLIENT, 4000, "PA", b"x" * 1500)
    packet[IP].flags = flags
    result = routed(packet)
    if flags:
        assert (result.verdict, result.reason) == (REDIRECT, "reply_mtu")
        assert result.raw == refused(packet, "203.0.113.1" if TELLS_OWN else VIP, 1500)
    else:
        assert (result.verdict, result.reason) == (PASS, "return_cut")
        assert result.raw == rewritten(packet, source=(VIP, 80), hop=None)


@pytest.mark.parametrize("version", [4, 6], ids=["IPv4", "IPv6"])
def test_whose_ttl_ends_is_told_so_by_the_address_that_faces_him(
    routed: Send, rig: Rig, version: int
) -> None:
    if version == 6:
        rig.service(2, VIP6, 80)
        rig.ring(2, [rig.endpoint(2, 2, "2001:db8:2::5", 8080)] * 7)
    packet = tcp(*((CLIENT, 4000, VIP) if version == 4 else (CLIENT6, 4000, VIP6)), 80, "S", ttl=1)
    result = routed(packet)
    assert (result.reason, result.raw) == ("reply_ttl", refused(packet, OWN[version]))


def test_where_the_kernel_does_not_know_it_the_vip_tells(rig: Rig, namespace: str, tmp_path: Path) -> None:
    """As an older kernel does it: a flag that it does not know is refused."""
    unknown = faulty(tmp_path, ("route.h", "#define FIB_SOURCE (1U << 4)", "#define FIB_SOURCE (1U << 30)"))
    old = Rig(compile_program(unknown, SIZES, rig.compiled.maps))
    packet = tcp(CLIENT, 4000, VIP, 80, "S", ttl=1)
    try:
        with sending(old, namespace) as send:
            result = send(packet)
    finally:
        old.compiled.close()
    assert (result.reason, result.raw) == ("reply_ttl", refused(packet, VIP))


@pytest.mark.parametrize("private", ["10.1.2.3", "172.31.0.1", "192.168.7.1", "100.64.0.9", "169.254.1.1"])
def test_a_private_address_tells_nobody_who_knows_a_public_vip(
    routed: Send, rig: Rig, namespace: str, private: str
) -> None:
    """On the way to him such are filtered."""
    route = ("route", "replace", "192.0.2.0/24", "dev", "c", "src")
    run("ip", "-n", namespace, "address", "add", f"{private}/32", "dev", "c")
    run("ip", "-n", namespace, *route, private)
    try:
        packet = tcp(CLIENT, 4000, VIP, 80, "S", ttl=1)
        assert routed(packet).raw == refused(packet, VIP)
        rig.service(3, "10.20.30.40", 80)
        rig.ring(3, [rig.endpoint(3, 3, "203.0.113.7", 8080)] * 7)
        packet = tcp(CLIENT, 4000, "10.20.30.40", 80, "S", ttl=1)
        assert routed(packet).raw == refused(packet, private if TELLS_OWN else "10.20.30.40")
    finally:
        run("ip", "-n", namespace, *route, "192.0.2.1")
        run("ip", "-n", namespace, "address", "delete", f"{private}/32", "dev", "c")


@pytest.mark.parametrize("public", ["172.32.0.1", "192.167.7.1", "100.128.0.9", "11.0.0.1"])
def test_a_public_one_beside_the_private_ones_does(routed: Send, namespace: str, public: str) -> None:
    route = ("route", "replace", "192.0.2.0/24", "dev", "c", "src")
    run("ip", "-n", namespace, "address", "add", f"{public}/32", "dev", "c")
    run("ip", "-n", namespace, *route, public)
    try:
        packet = tcp(CLIENT, 4000, VIP, 80, "S", ttl=1)
        assert routed(packet).raw == refused(packet, public if TELLS_OWN else VIP)
    finally:
        run("ip", "-n", namespace, *route, "192.0.2.1")
        run("ip", "-n", namespace, "address", "delete", f"{public}/32", "dev", "c")


def test_an_unknown_neighbour_is_the_kernels_to_resolve(routed: Send, namespace: str) -> None:
    run("ip", "-n", namespace, "neigh", "del", ENDPOINT, "dev", "e")
    try:
        assert routed(SYN).reason == "forward_kernel"
    finally:
        add = ("neigh", "replace", ENDPOINT, "lladdr", ENDPOINT_MAC, "dev", "e", "nud", "permanent")
        run("ip", "-n", namespace, *add)
    assert routed(SYN).reason == "forward_fib"
