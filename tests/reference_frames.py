# SPDX-License-Identifier: Apache-2.0
"""Frames in plain Python, for tests: what steer must make of one, byte by byte.

It imports nothing of ours but the routing rule beside it. Checksums are never updated: both packets are
summed up whole, and what is missing to the right sum must be missing after as before: of a sound
packet nothing.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, replace
from functools import lru_cache
from socket import AF_INET, AF_INET6, inet_ntop, inet_pton

from tests.reference import TCP, UDP, Hop, Outcome, Packet, Reference, Steering

DROP, PASS, REDIRECT = 1, 2, 4
IPV4, IPV6, TAGS = 0x0800, 0x86DD, (0x8100, 0x88A8)
ICMP, ICMPV6 = 1, 58
HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION = 0, 43, 44, 60
EXTENSIONS = 4
"""IPv6's extension headers that are looked past."""
FRAGMENT_TICKS = 38
ENDS_HERE = {"pass_ttl": ("reply_ttl", "drop_ttl"), "pass_mtu": ("reply_mtu", "drop_mtu")}
"""What the rule says of a packet that can't go on: what becomes of it, and of one that gets no answer."""
ERRORS = {4: (3, 11, 12), 6: (1, 2, 3, 4)}
ECHO_REQUEST, ECHO_REPLY, OWN_TTL = {4: 8, 6: 128}, {4: 0, 6: 129}, 64
CHECK_AT = {TCP: 16, UDP: 6}
FLAGS = "FSRPAUEC"


@dataclass(frozen=True)
class Expected:
    reason: str
    verdict: int
    frame: bytes


@dataclass(frozen=True)
class Network:
    """An IP header, and what it says of the packet behind it."""

    version: int
    at: int
    """Where it begins in the frame."""
    carried: int
    """Where what it carries begins, past options and extension headers."""
    end: int
    source: str
    destination: str
    protocol: int
    ttl: int
    may_be_cut: bool = False
    identity: tuple[str, str, int, int] | None = None
    """What the fragments of its packet have in common; None: it is in one piece."""

    @property
    def bytes(self) -> int:
        return self.end - self.at


@dataclass(frozen=True)
class First:
    """Where the first fragment of a packet went."""

    forward: Reference | None
    """None: to the client."""
    endpoint: int
    tick: int


class BrokenError(Exception):
    """Malformed; it is dropped if it is ours."""

    def __init__(self, destination: str) -> None:
        super().__init__(destination)
        self.destination = destination


class NotOursError(Exception):
    """It is not ours to judge, for the reason that it names."""

    def __init__(self, reason: str, destination: str | None = None) -> None:
        super().__init__(reason)
        self.reason, self.destination = reason, destination
        """Destination: if that is a VIP it ends here instead."""


class LaterFragmentError(Exception):
    """A fragment that is not the first one."""

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        self.network = network


@lru_cache(4096)
def _text(address: bytes) -> str:
    return inet_ntop(AF_INET if len(address) == 4 else AF_INET6, address)


@lru_cache(4096)
def packed(address: str) -> bytes:
    return inet_pton(AF_INET6 if ":" in address else AF_INET, address)


def total(covered: bytes) -> int:
    """The sum of 16-bit words in one's complement, as a number below 65535 (RFC 1071: 2^16 is 1 there)."""
    return int.from_bytes(covered + b"\0" * (len(covered) % 2), "big") % 0xFFFF


def keep_sum(before: bytes, after: bytearray, at: int) -> None:
    """Sets the checksum at ``at`` of ``after`` so that both are off by the same."""
    (check,) = struct.unpack_from("!H", after, at)
    struct.pack_into("!H", after, at, (check + total(before) - total(bytes(after))) % 0xFFFF)


# ---- what is in a frame -----------------------------------------------------------------------


def tags_of(frame: bytes) -> tuple[list[int], int, int]:
    """The VIDs, outer first; the EtherType behind the tags, and where what it names begins."""
    vids: list[int] = []
    kind, at = struct.unpack_from("!H", frame, 12)[0], 14
    while kind in TAGS and len(vids) < 2:
        if len(frame) < at + 4:
            raise NotOursError("pass_not_ip")
        control, kind = struct.unpack_from("!HH", frame, at)
        vids.append(control & 0xFFF)
        at += 4
    return vids, kind, at


def read_v4(frame: bytes, at: int) -> Network:
    first, _, size, identity, offset, ttl, protocol = struct.unpack_from("!BBHHHBB", frame, at)
    source, destination = _text(frame[at + 12 : at + 16]), _text(frame[at + 16 : at + 20])
    header = (first & 15) * 4
    if first >> 4 != 4 or header < 20 or size < header or size > len(frame) - at:
        raise BrokenError(destination)
    pieces = (source, destination, identity, protocol) if offset & 0x3FFF else None
    network = Network(
        4, at, at + header, at + size, source, destination, protocol, ttl, not offset & 0x4000, pieces
    )
    if offset & 0x1FFF:
        raise LaterFragmentError(network)
    return network


def read_v6(frame: bytes, at: int) -> Network:
    first, size, protocol, ttl = struct.unpack_from("!IHBB", frame, at)
    source, destination = _text(frame[at + 8 : at + 24]), _text(frame[at + 24 : at + 40])
    if any(address[:12] == bytes(10) + b"\xff\xff" for address in (packed(source), packed(destination))):
        raise NotOursError("pass_other")
    carried, end = at + 40, at + 40 + size
    if first >> 28 != 6 or end > len(frame):
        raise BrokenError(destination)
    pieces = None
    for count in range(EXTENSIONS + 1):
        if protocol not in (HOP_BY_HOP, ROUTING, FRAGMENT, DESTINATION):
            return Network(6, at, carried, end, source, destination, protocol, ttl, identity=pieces)
        if count == EXTENSIONS or carried + 8 > end:
            break
        following, length, third, fourth, identity = struct.unpack_from("!BBBBI", frame, carried)
        if protocol == FRAGMENT:
            if (third << 8 | fourth) & 0xFFF9:
                pieces = (source, destination, identity, 0)
            if (third << 8 | fourth) & 0xFFF8:
                raise LaterFragmentError(
                    Network(6, at, carried, end, source, destination, protocol, ttl, identity=pieces)
                )
            length = 0
        if carried + (length + 1) * 8 > end:
            break
        if protocol == ROUTING and fourth:
            raise NotOursError("pass_not_ip", destination)
        protocol, carried = following, carried + (length + 1) * 8
    raise BrokenError(destination)


def read_ports(frame: bytes, network: Network) -> Packet:
    """A TCP or UDP packet's part in the routing rule."""
    held, at = network.end - network.carried, network.carried
    if network.protocol not in (TCP, UDP):
        raise NotOursError("pass_not_ip", network.destination)
    if held < (20 if network.protocol == TCP else 8):
        raise BrokenError(network.destination)
    source_port, port = struct.unpack_from("!HH", frame, at)
    packet = Packet(network.source, source_port, network.destination, port, network.protocol, "", network.ttl)
    packet = replace(packet, bytes=network.bytes, may_be_cut=network.may_be_cut)
    if network.protocol == UDP:
        size, check = struct.unpack_from("!HH", frame, at + 4)
        if size < 8 or (size > held and not network.identity) or (network.version == 6 and not check):
            raise BrokenError(network.destination)
        return packet
    sequence, acknowledged, words, bits = struct.unpack_from("!IIBB", frame, at + 4)
    if words >> 4 < 5 or (words >> 4) * 4 > held:
        raise BrokenError(network.destination)
    flags = "".join(letter for place, letter in enumerate(FLAGS) if bits >> place & 1)
    payload = frame[at + (words >> 4) * 4 : network.end]
    return replace(packet, flags=flags, payload=payload, sequence=sequence, acknowledged=acknowledged)


# ---- how it leaves ----------------------------------------------------------------------------


def with_ports(frame: bytes, network: Network, outcome: Outcome, *, ports: bool = True) -> bytearray:
    """Address and port of one side replaced; without ``ports`` (later fragments) the address alone."""
    out = bytearray(frame)
    (address, port), own = (
        (outcome.source, True) if outcome.source else (outcome.destination or ("", 0), False)
    )
    replace_address(out, network, address, own)
    if ports:
        at, check_at = network.carried, network.carried + CHECK_AT[network.protocol]
        struct.pack_into("!H", out, at + (0 if own else 2), port)
        unsummed = network.protocol == UDP and frame[check_at : check_at + 2] == b"\0\0"
        if not unsummed:
            settle_sum(frame, out, network, CHECK_AT[network.protocol])
            if network.protocol == UDP and out[check_at : check_at + 2] == b"\0\0":
                out[check_at : check_at + 2] = b"\xff\xff"
    return out


def settle_sum(frame: bytes, out: bytearray, network: Network, check_at: int) -> None:
    """The checksum of what the network layer carries, which covers both addresses too."""
    addresses = slice(network.at + (12 if network.version == 4 else 8), network.at + header_bytes(network))
    carried = slice(network.carried, network.end)
    after = out[carried] + b"\0" * (network.end - network.carried & 1) + out[addresses]
    before = frame[carried] + b"\0" * (network.end - network.carried & 1) + frame[addresses]
    keep_sum(before, after, check_at)
    place = network.carried + check_at
    out[place : place + 2] = after[check_at : check_at + 2]


def header_bytes(network: Network) -> int:
    """Without options and extension headers."""
    return 20 if network.version == 4 else 40


def replace_address(out: bytearray, network: Network, address: str, own: bool) -> None:
    """``own``: the source."""
    new = packed(address)
    at = network.at + (12 if network.version == 4 else 8) + (0 if own else len(new))
    change_header(out, network, at, new)


def change_header(out: bytearray, network: Network, at: int, new: bytes) -> None:
    """Some bytes of the network header, with its checksum if it has one."""
    header = slice(network.at, network.carried if network.version == 4 else network.at + 40)
    before = bytes(out[header])
    out[at : at + len(new)] = new
    if network.version == 4:
        after = out[header]
        keep_sum(before, after, 10)
        out[header] = after


def sent(out: bytearray, network: Network, hop: Hop | None) -> bytes:
    """By the hop as a router does, with its tag and no other; without one as the kernel is to get it."""
    if hop is None:
        return bytes(out)
    ttl = network.at + (8 if network.version == 4 else 7)
    change_header(out, network, ttl, bytes([network.ttl - 1]))
    kind = IPV4 if network.version == 4 else IPV6
    tag = struct.pack("!HH", TAGS[0], hop.vlan) if hop.vlan else b""
    return hop.to + hop.by + tag + struct.pack("!H", kind) + bytes(out[network.at :])


# ---- what can't go on ---------------------------------------------------------------------------


def told_nobody(outcome: Outcome) -> str:
    """Of later fragments and ICMP errors."""
    return ENDS_HERE[outcome.reason][1] if outcome.reason in ENDS_HERE else outcome.reason


def error(frame: bytes, network: Network, teller: str, mtu: int) -> bytes:
    """The ICMP error that quotes it: too large for that MTU; 0: its time is exceeded."""
    v6 = network.version == 6
    headers, most = (40 + 8, 1280) if v6 else (20 + 8, 576)
    quoted = frame[network.at : min(network.end, network.at + most - headers)]
    kind, code = ((2, 0) if mtu else (3, 0)) if v6 else ((3, 4) if mtu else (11, 0))
    said = bytearray(struct.pack("!BBHI", kind, code, 0, mtu) + quoted)
    ends = packed(teller) + packed(network.source)
    if v6:
        covered = ends + struct.pack("!II", len(said), ICMPV6) + said
        header = struct.pack("!IHBB", 6 << 28, len(said), ICMPV6, OWN_TTL) + ends
    else:
        covered, size = bytes(said), 20 + len(said)
        first = bytearray(struct.pack("!BBHHHBBH", 0x45, 0xC0, size, 0, 0x4000, OWN_TTL, ICMP, 0) + ends)
        struct.pack_into("!H", first, 10, 0xFFFF - total(bytes(first)))
        header = bytes(first)
    struct.pack_into("!H", said, 2, 0xFFFF - total(covered))
    return header + bytes(said)


# ---- every frame ------------------------------------------------------------------------------


class AccessPoint:
    """Frames in, frames out. ``steering`` is installed, and told the time, by whoever asks."""

    def __init__(self, steering: Steering) -> None:
        self.steering = steering
        self.vlans: set[tuple[int, int]] = set()
        """Tags of frames that are this host's, outer first; 0: none."""
        self.firsts: dict[tuple[str, str, int, int], First] = {}

    def receive(self, frame: bytes) -> Expected:
        try:
            reason, out = self._sort(frame)
        except NotOursError as passes:
            ends = passes.destination is not None and self.steering.would_loop(passes.destination)
            reason, out = "drop_vip_port" if ends else passes.reason, frame
        except BrokenError as broken:
            ours = self.steering.would_loop(broken.destination)
            reason, out = "drop_broken" if ours else "pass_other", frame
        verdict = PASS
        if reason.endswith("_hop") or reason.startswith("reply"):
            verdict = REDIRECT
        elif reason.startswith("drop"):
            verdict = DROP
        return Expected(reason, verdict, out)

    def _sort(self, frame: bytes) -> tuple[str, bytes]:
        if frame[0] & 1:
            raise NotOursError("pass_other")
        vids, kind, at = tags_of(frame)
        if kind in TAGS:
            raise NotOursError("pass_vlan")
        if kind not in (IPV4, IPV6) or len(frame) < at + (20 if kind == IPV4 else 40):
            raise NotOursError("pass_not_ip")
        if any(vids) and (*vids, 0)[:2] not in self.vlans:
            raise NotOursError("pass_vlan")
        try:
            network = read_v4(frame, at) if kind == IPV4 else read_v6(frame, at)
        except LaterFragmentError as later:
            return self._follow_first(frame, later.network)
        if network.protocol == (ICMP if kind == IPV4 else ICMPV6):
            return self._icmp(frame, network)
        packet = read_ports(frame, network)
        outcome = self.steering.route(packet)
        if outcome.reason in ENDS_HERE:
            return self._refuse(frame, network, packet, outcome)
        if not outcome.left:
            return outcome.reason, frame
        if network.identity:
            self._remember_first(network.identity, outcome)
        return outcome.reason, sent(with_ports(frame, network, outcome), network, outcome.hop)

    def _refuse(self, frame: bytes, network: Network, packet: Packet, outcome: Outcome) -> tuple[str, bytes]:
        """Its sender is told by the VIP; no route is known, so this host has no address towards him."""
        steering = self.steering
        if steering.is_no_client(network.source):
            return "drop_source", frame
        if not steering.may_refuse():
            return "drop_icmp_limit", frame
        index = steering.service_at((packet.destination, packet.port, packet.protocol))
        if index is None:
            sender = steering.returns[packet.source, packet.source_port, packet.protocol]
            index = steering.endpoints[sender].service
        answer = error(frame, network, steering.services[index].vip, outcome.mtu)
        return ENDS_HERE[outcome.reason][0], frame[6:12] + frame[:6] + frame[12 : network.at] + answer

    # ---- fragments ----------------------------------------------------------------------

    def _remember_first(self, identity: tuple[str, str, int, int], outcome: Outcome) -> None:
        assert outcome.endpoint is not None
        generation = self.steering.endpoints[outcome.endpoint].generation
        forward = (outcome.endpoint, generation) if outcome.destination else None
        self.firsts[identity] = First(forward, outcome.endpoint, self.steering.now)

    def _follow_first(self, frame: bytes, network: Network) -> tuple[str, bytes]:
        assert network.identity is not None
        steering, first = self.steering, self.firsts.get(network.identity)
        if first is None or steering.now - first.tick > FRAGMENT_TICKS:
            ends = steering.would_loop(network.destination)
            return "drop_fragment" if ends else "pass_fragment", frame
        if network.ttl <= 1:
            return "drop_ttl", frame
        if first.forward is None:
            outcome = steering.to_client(
                first.endpoint, network.destination, network.bytes, network.may_be_cut
            )
        elif steering.serves(first.forward):
            outcome = steering.to_endpoint(first.endpoint, network.bytes, network.may_be_cut)
        else:
            return "drop_fragment", frame
        if not outcome.left:
            return told_nobody(outcome), frame
        steering.count_sent(outcome, network.bytes)
        return outcome.reason, sent(with_ports(frame, network, outcome, ports=False), network, outcome.hop)

    # ---- ICMP ---------------------------------------------------------------------------

    def _icmp(self, frame: bytes, network: Network) -> tuple[str, bytes]:
        followed = self._follow_flow(frame, network)
        if followed:
            return followed
        if not self.steering.would_loop(network.destination):
            return "pass_icmp", frame
        at = network.carried
        if network.end < at + 8 or frame[at] != ECHO_REQUEST[network.version]:
            return "drop_vip_port", frame
        if self.steering.is_no_client(network.source):
            return "drop_source", frame
        return "reply_echo", self._echo(frame, network)

    def _echo(self, frame: bytes, network: Network) -> bytes:
        out = bytearray(frame)
        out[network.carried] = ECHO_REPLY[network.version]
        replace_address(out, network, network.destination, True)
        replace_address(out, network, network.source, False)
        change_header(out, network, network.at + (8 if network.version == 4 else 7), bytes([OWN_TTL]))
        self._settle_icmp(frame, out, network)
        return bytes(out[6:12] + out[:6] + out[12:])

    @staticmethod
    def _settle_icmp(frame: bytes, out: bytearray, network: Network) -> None:
        if network.version == 6:
            settle_sum(frame, out, network, 2)
            return
        after = out[network.carried : network.end]
        keep_sum(frame[network.carried : network.end], after, 2)
        out[network.carried : network.end] = after

    def _follow_flow(self, frame: bytes, network: Network) -> tuple[str, bytes] | None:
        """None: it is no error about a flow."""
        inner = self._read_embedded(frame, network)
        if inner is None or network.ttl <= 1 or inner.source != network.destination:
            return None
        source_port, port = struct.unpack_from("!HH", frame, inner.carried)
        steering, size = self.steering, network.bytes
        sender = None
        given = steering.error_about_answer(
            (inner.source, source_port, inner.protocol), (inner.destination, port)
        )
        if given is None:
            sender = steering.error_about_request(
                (inner.source, source_port), (inner.destination, port, inner.protocol)
            )
        if given is not None:
            outcome = steering.to_endpoint(given, size, network.may_be_cut)
        elif sender is not None:
            outcome = steering.to_client(sender, network.destination, size, network.may_be_cut)
        else:
            return None
        if not outcome.left:
            return told_nobody(outcome), frame
        out = bytearray(frame)
        # Outside and inside opposite sides have the other one's name.
        address, port = outcome.destination or outcome.source or ("", 0)
        own = outcome.source is not None
        replace_address(out, network, address, own)
        replace_address(out, inner, address, not own)
        struct.pack_into("!H", out, inner.carried + (2 if own else 0), port)
        self._settle_icmp(frame, out, network)
        return outcome.reason, sent(out, network, outcome.hop)

    @staticmethod
    def _read_embedded(frame: bytes, network: Network) -> Network | None:
        """The packet that an error is about; None: it is no error, or shows no ports of TCP or UDP."""
        icmp, at, end = network.carried, network.carried + 8, network.end
        least = 20 if network.version == 4 else 40
        if at + least > end or frame[icmp] not in ERRORS[network.version]:
            return None
        if frame[at] >> 4 != network.version:
            return None
        if network.version == 4:
            (offset,) = struct.unpack_from("!H", frame, at + 6)
            header, protocol = (frame[at] & 15) * 4, frame[at + 9]
            source, destination = frame[at + 12 : at + 16], frame[at + 16 : at + 20]
            if header < 20 or offset & 0x1FFF:
                return None
        else:
            header, protocol = 40, frame[at + 6]
            source, destination = frame[at + 8 : at + 24], frame[at + 24 : at + 40]
        if protocol not in (TCP, UDP) or at + header + 4 > end:
            return None
        carried = at + header
        return Network(network.version, at, carried, end, _text(source), _text(destination), protocol, 0)
