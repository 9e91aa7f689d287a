# SPDX-License-Identifier: Apache-2.0
"""Random traffic of every kind that comes to an access point, and who counts it at the peers.

Most of it is marked. What carries the mark comes to a peer only by a redirect: the access point's own stack
drops it (``stop_in_stack``), and so do the peers once they have counted it.
"""

from __future__ import annotations

import os
import random
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6DestUnreach, ICMPv6EchoRequest, ICMPv6PacketTooBig, IPv6
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from controlplane.adapters import libbpf
from controlplane.adapters.bcc import compile_file
from controlplane.lab import network
from controlplane.lab.topology import AP, UPLINK, Topology

MARK = 0x2C
"""Type of service or traffic class: DSCP 11."""
_COUNTER = """
#include <linux/types.h>
BPF_F_TABLE("array", u32, u64, seen, 1, BPF_F_MMAPABLE);

int count(struct xdp_md *ctx)
{
	unsigned char *at = (void *)(long)ctx->data;
	void *end = (void *)(long)ctx->data_end;
	u32 zero = 0;
	u64 *count = seen.lookup(&zero);
	u32 mark;

	if ((void *)(at + 16) > end || !count)
		return XDP_PASS;
	if (at[12] == 0x08 && at[13] == 0x00)
		mark = at[15];
	else if (at[12] == 0x86 && at[13] == 0xdd)
		mark = (at[14] & 15) << 4 | at[15] >> 4;
	else
		return XDP_PASS;
	/* Time exceeded, from the access point itself: what it quotes is marked. */
	if (mark != MARK && (void *)(at + 64) <= end) {
		if (at[12] == 0x08 && at[23] == 1 && at[34] == 11)
			mark = at[43];
		else if (at[12] == 0x86 && at[20] == 58 && at[54] == 3)
			mark = (at[62] & 15) << 4 | at[63] >> 4;
	}
	if (mark != MARK)
		return XDP_PASS;
	__sync_fetch_and_add(count, 1);
	return XDP_DROP;
}
"""


@contextmanager
def counted(
    topology: Topology, nodes: Sequence[str], folder: Path, bpf_dir: Path
) -> Iterator[dict[str, np.ndarray]]:
    """Marked frames that came to each node, [1] each; taken there by XDP, which makes it take redirects."""
    source = folder / "count.c"
    source.write_text(_COUNTER)
    links, seen = [], {}
    try:
        for node in nodes:
            program = compile_file(source, "count", [f"-DMARK={MARK}"], headers=bpf_dir)
            seen[node] = libbpf.map_view(program.maps["seen"], "<u8")
            with network.entered(topology.namespace(node)):
                index = socket.if_nametoindex(UPLINK)
                links.append(libbpf.xdp_link_create(program.program_fd, index, libbpf.XDP_FLAGS_DRV_MODE))
            program.close()
        yield seen
    finally:
        for link in links:
            os.close(link)


def stop_in_stack(topology: Topology, node: str) -> None:
    """Its own stack takes no marked packet: none is forwarded or answered by it."""
    rules = "add table inet mixed\nadd chain inet mixed in { type filter hook prerouting priority -300; }\n"
    rules += "".join(f"add rule inet mixed in {ip} dscp {MARK >> 2} drop\n" for ip in ("ip", "ip6"))
    command = [*network.inside(topology.namespace(node)), "nft", "-f", "-"]
    subprocess.run(command, input=rules, text=True, check=True)


def device_count(topology: Topology, interface: str, suffix: str) -> int:
    """What the driver itself counts, over all queues of a device of the access point: ethtool -S."""
    shown = network.run([*network.inside(topology.namespace(AP)), "ethtool", "-S", interface])
    lines = [line.strip().partition(": ") for line in shown.splitlines()]
    return sum(int(value) for name, _, value in lines if name.endswith(suffix))


class Senders:
    """Frames from nodes' uplinks to the access point, past the nodes' own stacks."""

    def __init__(self, topology: Topology, nodes: Sequence[str]) -> None:
        self._sockets: dict[str, socket.socket] = {}
        self.heads: dict[str, Ether] = {}
        for node in nodes:
            with (
                network.entered(topology.namespace(AP)),
                socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as theirs,
            ):
                theirs.bind((node, 0))
                to = theirs.getsockname()[4].hex(":")
            with network.entered(topology.namespace(node)):
                out = self._sockets[node] = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
                out.bind((UPLINK, 0))
            self.heads[node] = Ether(src=out.getsockname()[4].hex(":"), dst=to)

    def send(self, node: str, frame: bytes) -> bool:
        """False: there was no room for it."""
        try:
            self._sockets[node].send(frame)
        except OSError:
            return False
        return True

    def close(self) -> None:
        for one in self._sockets.values():
            one.close()


# ---- frames -----------------------------------------------------------------------------


def _ip(source: str, target: str, ttl: int = 64) -> Packet:
    if ":" in source:
        return IPv6(src=source, dst=target, hlim=ttl, tc=MARK)
    return IP(src=source, dst=target, ttl=ttl, tos=MARK)


def from_clients(rng: random.Random, head: Ether, client: str, vip: str, other: str) -> bytes:
    """One random frame of a client's.

    :param vip: with a TCP service at port 80, a UDP one at 53, and no other.
    :param other: an address that is no VIP.
    """
    v6 = ":" in vip
    port, load = rng.randrange(1024, 1424), bytes(rng.randrange(0, 1400))
    ip = _ip(client, vip)
    steered = rng.choice(
        [
            ip / TCP(sport=port, dport=80, flags=rng.choice(["S", "A", "PA", "FA", "R"])) / load,
            ip / UDP(sport=port, dport=53) / load,
        ]
    )
    kind = rng.randrange(16)
    if kind < 7:
        return bytes(head / steered)
    if kind == 7:  # no such service
        return bytes(head / ip / rng.choice([TCP(sport=port, dport=81), UDP(sport=port, dport=80)]))
    if kind == 8:
        echo = ICMPv6EchoRequest(id=port, data=load) if v6 else ICMP(type=8, id=port) / load
        return bytes(head / ip / echo)
    if kind == 9:  # an error about an answer
        about = _ip(vip, client) / TCP(sport=80, dport=port) / Raw(b"x" * 8)
        said = ICMPv6PacketTooBig(mtu=1280) if v6 else ICMP(type=3, code=4, nexthopmtu=1280)
        return bytes(head / ip / said / about)
    if kind == 10:
        return bytes(head / _ip(client, other) / TCP(sport=port, dport=80))
    if kind == 11:
        return bytes(Ether(src=head.src, dst=head.dst, type=0x88B5) / Raw(rng.randbytes(60)))
    if kind == 12:
        tagged = Ether(src=head.src, dst=head.dst) / Dot1Q(vlan=rng.randrange(1, 4000))
        return bytes(tagged / steered)
    if kind == 13:  # who can't be a client, and whose TTL ends
        wrong = rng.choice([_ip(vip, vip), _ip("::1" if v6 else "127.0.0.1", vip), _ip(client, vip, ttl=1)])
        return bytes(head / wrong / UDP(sport=port, dport=53))
    frame = bytearray(bytes(head / steered))
    if kind == 14:  # cut off, anywhere
        return bytes(frame[: rng.randrange(20, 60)])
    frame[rng.randrange(14, min(len(frame), 54))] ^= 1 << rng.randrange(
        8
    )  # broken: checksums, lengths, addresses
    frame[14:16] = bytes(head / ip)[14:16]
    return bytes(frame)


def from_endpoint(rng: random.Random, head: Ether, own: str, client: str, vip: str) -> bytes:
    """One random frame of an endpoint's: answers from 8080 (TCP) and 5353 (UDP), and other things."""
    v6 = ":" in vip
    port, load, ip = rng.randrange(1024, 1424), bytes(rng.randrange(0, 1400)), _ip(own, client)
    kind = rng.randrange(10)
    if kind < 5:
        return bytes(
            head / ip / TCP(sport=8080, dport=port, flags=rng.choice(["SA", "A", "PA", "FA"])) / load
        )
    if kind == 5:
        return bytes(head / ip / UDP(sport=5353, dport=port) / load)
    if kind == 6:  # not from a service
        return bytes(head / ip / UDP(sport=9, dport=port))
    if kind == 7:  # to the VIP itself
        return bytes(head / _ip(own, vip) / TCP(sport=8080, dport=rng.choice([80, 443])))
    if kind == 8:  # an error about what a client sent
        about = _ip(client, own) / TCP(sport=port, dport=8080) / Raw(b"x" * 8)
        said = ICMPv6DestUnreach() if v6 else ICMP(type=3, code=1)
        return bytes(head / ip / said / about)
    return bytes(Ether(src=head.src, dst=head.dst, type=0x88B5) / Raw(rng.randbytes(60)))
