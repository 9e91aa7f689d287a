# SPDX-License-Identifier: Apache-2.0
"""Frames with VLAN tags: which are this host's, and with which tags they leave."""

from __future__ import annotations

import struct

import pytest

from tests.packet.rig import PASS, REDIRECT, TCP_NUMBER, Rig, rewritten, tcp

VIP, CLIENT, ENDPOINT = "198.51.100.10", "192.0.2.7", "203.0.113.5"
VIP6, CLIENT6, ENDPOINT6 = "2001:db8:1::10", "2001:db8:c::7", "2001:db8:2::5"
IFINDEX = 1
"""Of the loopback, which a test run's packets come in by."""
Q, AD = 0x8100, 0x88A8
SYN = tcp(CLIENT, 4000, VIP, 80, "S")
SYN6 = tcp(CLIENT6, 4000, VIP6, 80, "S")
OUT = rewritten(SYN, destination=(ENDPOINT, 8080))
OUT6 = rewritten(SYN6, destination=(ENDPOINT6, 8080))

Tags = tuple[tuple[int, int], ...]
"""(EtherType, control), outer first."""


def tagged(frame: bytes, tags: Tags) -> bytes:
    return frame[:12] + b"".join(struct.pack("!HH", *tag) for tag in tags) + frame[12:]


@pytest.fixture
def steered(rig: Rig) -> Rig:
    """VLAN 5 is this host's, and so are 100 with 5 and 7 in it."""
    for index, vip, endpoint in ((1, VIP, ENDPOINT), (2, VIP6, ENDPOINT6)):
        rig.service(index, vip, 80, TCP_NUMBER)
        rig.ring(index, [rig.endpoint(index, index, endpoint, 8080)] * 7)
    rig.port(IFINDEX)
    rig.port(105, IFINDEX, [5])
    rig.port(106, IFINDEX, [100, 5], [AD, Q])
    return rig


COMES: dict[str, Tags] = {
    "untagged": (),
    "tagged": ((Q, 5),),
    "tagged with a priority": ((Q, 0x6005),),
    "with a priority and no VLAN": ((Q, 0x6000),),
    "with two tags": ((AD, 100), (Q, 5)),
}
LEAVES: dict[str, int] = {"untagged": 0, "tagged": 42}


@pytest.mark.parametrize("comes", COMES.values(), ids=[f"comes {name}" for name in COMES])
@pytest.mark.parametrize("vlan", LEAVES.values(), ids=[f"leaves {name}" for name in LEAVES])
@pytest.mark.parametrize(("packet", "out"), [(SYN, OUT), (SYN6, OUT6)], ids=["IPv4", "IPv6"])
def test_a_frame_leaves_with_the_tags_of_its_next_hop(
    steered: Rig, packet: object, out: bytes, comes: Tags, vlan: int
) -> None:
    steered.endpoints[1:3]["hop_vlan"] = vlan
    result = steered.send(tagged(bytes(packet), comes))
    assert (result.verdict, result.reason) == (REDIRECT, "forward_hop")
    assert result.raw == tagged(out, ((Q, vlan),) if vlan else ())


PASSES: dict[str, Tags] = {
    "of another VLAN": ((Q, 6),),
    "of an inner VLAN that is another's": ((AD, 100), (Q, 6)),
    "of an outer VLAN alone": ((AD, 100),),
    "with both tags the other way round": ((AD, 5), (Q, 100)),
    "with three tags": ((AD, 100), (Q, 5), (Q, 5)),
}


@pytest.mark.parametrize("comes", PASSES.values(), ids=PASSES.keys())
@pytest.mark.parametrize("packet", [SYN, SYN6], ids=["IPv4", "IPv6"])
def test_a_frame_that_is_not_this_host_s_passes_as_it_came(steered: Rig, packet: object, comes: Tags) -> None:
    frame = tagged(bytes(packet), comes)
    result = steered.send(frame)
    assert (result.verdict, result.reason, result.raw) == (PASS, "pass_vlan", frame)
    assert steered.flow_count() == 0


@pytest.mark.parametrize("length", range(14, 14 + 8 + 20))
def test_a_frame_cut_before_its_ip_header_ends_passes(steered: Rig, length: int) -> None:
    frame = tagged(bytes(SYN), COMES["with two tags"])[:length]
    result = steered.send(frame)
    assert (result.verdict, result.raw) == (PASS, frame)
    assert result.reason in ("pass_not_ip", "pass_vlan")


def test_what_the_kernel_is_to_forward_keeps_its_tags(steered: Rig) -> None:
    steered.endpoints[1:2]["hop_expires"] = 1
    result = steered.send(tagged(bytes(SYN), COMES["tagged"]))
    assert (result.verdict, result.reason) == (PASS, "forward_kernel")
    wanted = rewritten(SYN, destination=(ENDPOINT, 8080), hop=None)
    assert result.raw == tagged(wanted, COMES["tagged"])
