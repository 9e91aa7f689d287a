# SPDX-License-Identifier: Apache-2.0
"""The routing rule in plain Python, for tests: what steer must do with one packet after another.

It imports nothing of ours, or it would prove nothing. It knows no buckets: its flow cache is a dictionary
that forgets nothing, so it is compared where the program's cache is not full. Time is what it is told, in
ticks. Frames are for tests/reference_frames.py, which asks this for the route of what it found in them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_address

U64 = (1 << 64) - 1
SLOTS, SLOT_TRIES, SLOT_STRIDE, RING_TRIES = 128, 16, 53, 8
ALL = 0xFFFFFFFF
TCP, UDP = 6, 17
NEVER = 1 << 62
STAMP_TICKS = 62
"""A SYN's time is remembered in 24 bits of microseconds: 16 s."""
ACK_WINDOW, ACK_BITS = 65536, 0xFFFFFF

Reference = tuple[int, int]
"""Index of an endpoint and the generation of that index."""
Target = tuple[str, int, int]
"""Address, port, protocol."""


@dataclass(frozen=True)
class Hop:
    """A next hop that is trusted."""

    mtu: int = 0
    """Bytes of IP packet; 0: unknown."""
    vlan: int = 0
    to: bytes = bytes.fromhex("020000000e01")
    by: bytes = bytes.fromhex("020000000a01")
    """MAC addresses, of the next hop and of the device that leads there."""


@dataclass(frozen=True)
class Idle:
    """Ticks that a flow may be silent for."""

    opening: int = NEVER
    established: int = NEVER
    closing: int = NEVER
    udp: int = NEVER


@dataclass
class Endpoint:
    address: str
    port: int
    protocol: int
    service: int
    generation: int = 1
    present: bool = True
    down: bool = False
    draining: bool = False
    evicted: int = 0
    """Of 256 of its flows so many are misses, by their tags."""
    spill: int = 0
    limit: int = 0
    """New flows that it is given in one window; 0: any number."""
    used: int = 0
    """Of them, those given already."""
    slots: list[Reference | None] = field(default_factory=lambda: [None] * SLOTS)
    hop: Hop | None = Hop()
    """None: its packets are left to the kernel."""

    @property
    def takes_new(self) -> bool:
        return not self.down and not self.draining

    def admits(self) -> bool:
        """Counts a new flow; False: the limit is reached."""
        if not self.limit:
            return True
        self.used += 1
        return self.used <= self.limit


@dataclass
class Service:
    vip: str
    port: int
    protocol: int
    ring: list[Reference]
    keep: bool = False
    affinity: bool = False
    """All flows of a client's address go alike."""
    requests: str = "off"
    """off, http1, tls"""
    present: bool = True


@dataclass(frozen=True)
class Choice:
    live: int | None
    """Whom the ring chose."""
    given: Reference
    hashed: Reference
    """Who would be given it if there were no limits."""
    spilled: bool = False
    """By the live one's slots."""


@dataclass
class Flow:
    endpoint: Reference
    marks: set[str]
    due: int = 0
    """Sequence number of the byte that a request may begin with."""
    seen: int = 0
    """The tick in which it was seen last."""
    expects: int = 0
    """What the client has to acknowledge, once there is a "syn-ack"."""

    @property
    def closing(self) -> bool:
        return bool(self.marks & {"fin client", "fin endpoint", "rst"})


@dataclass(frozen=True)
class Packet:
    source: str
    source_port: int
    destination: str
    port: int
    protocol: int
    flags: str = ""
    """TCP flags in scapy's letters."""
    ttl: int = 64
    payload: bytes = b""
    sequence: int = 1000
    acknowledged: int = 2000
    bytes: int = 0
    """Of the IP packet."""
    may_be_cut: bool = True
    """By a router, into fragments."""

    @property
    def opens(self) -> bool:
        return "S" in self.flags and "A" not in self.flags


@dataclass(frozen=True)
class Outcome:
    reason: str
    endpoint: int | None = None
    """Who was given it, or who sent it."""
    source: tuple[str, int] | None = None
    destination: tuple[str, int] | None = None
    """What it leaves with; both None: as it came."""
    hop: Hop | None = None
    """None: it stays with the kernel, or ends."""
    mtu: int = 0
    """Of the way that it is too large for, where it may not be cut."""

    @property
    def left(self) -> bool:
        return self.source is not None or self.destination is not None


@lru_cache(4096)
def number(address: str) -> int:
    return int(ip_address(address))


def mix(value: int) -> int:
    """MurmurHash3's 64-bit finaliser."""
    value ^= value >> 33
    value = value * 0xFF51AFD7ED558CCD & U64
    value ^= value >> 33
    value = value * 0xC4CEB9FE1A85EC53 & U64
    return value ^ value >> 33


def flow_hash(key: tuple[int, int], client: str, vip: str, client_port: int, port: int, protocol: int) -> int:
    one, other = number(client), number(vip)
    if ":" in client:
        value = (one >> 64 ^ key[0]) * (key[1] | 1) & U64
        value ^= value >> 32
        value = (value ^ one & U64) * (key[0] | 1) & U64
        value ^= value >> 29
        folded = (other >> 64) * 0xD6E8FEB86659FD93 + (other & U64) & U64
        value = (value ^ folded) * (key[1] | 1) & U64
    else:
        value = ((one << 32 | other) ^ key[0]) * (key[1] | 1) & U64
    value ^= value >> 32
    value = (value ^ (protocol << 32 | port << 16 | client_port)) * (key[0] | 1) & U64
    value ^= value >> 29
    value = value * 0x9E3779B97F4A7C15 & U64
    return value ^ value >> 32


def is_martian(address: str) -> bool:
    if ":" not in address:
        first = int(address.partition(".")[0])
        return first in (0, 127) or first >= 224
    value = number(address)
    return value >> 120 == 0xFF or value >> 118 == 0xFE80 >> 6 or value >> 32 == 0


def pick_hash(value: int) -> int:
    return mix(value ^ 0xD6E8FEB86659FD93)


def ring_slot(pick: int, attempt: int, size: int) -> int:
    if attempt:
        pick = mix((pick + attempt * 0xA0761D6478BD642F) & U64)
    return (pick >> 32) * size >> 32


def spill_bits(pick: int) -> int:
    return pick & 0xFFFFFFFF


def shadow_slot(pick: int) -> int:
    return mix(pick ^ 0xA0761D6478BD642F) % SLOTS


def is_timed(flow: int, sequence: int, shift: int) -> bool:
    """Whether the request that begins there is one of those that are timed, of 2**shift."""
    return mix(flow ^ sequence) % (1 << shift) == 0


def is_application_data(payload: bytes) -> bool:
    """TLS: and longer than an alert of TLS 1.3, which looks the same."""
    return len(payload) >= 5 and payload[0] == 0x17 and int.from_bytes(payload[3:5]) > 19


def asks(packet: Packet, service: Service) -> bool:
    """Whether it has bytes of a request."""
    return is_application_data(packet.payload) if service.requests == "tls" else bool(packet.payload)


def answers(packet: Packet, service: Service) -> bool:
    """Whether it has bytes of an answer; "100 Continue" alone is none yet."""
    if service.requests == "tls":
        return is_application_data(packet.payload)
    more = packet.payload[:4] == b"HTTP" and packet.payload[8:12] == b" 100" and len(packet.payload) <= 41
    return bool(packet.payload) and not more


class Steering:
    """The installed state, the flows, and what was counted."""

    def __init__(self, key: tuple[int, int]) -> None:
        self.key = key
        self.services: dict[int, Service] = {}
        self.endpoints: dict[int, Endpoint] = {}
        self.returns: dict[Target, int] = {}
        self.direct: list[IPv4Network | IPv6Network] = []
        self.own: list[str] = []
        self.flows: dict[tuple[int, str, int], Flow] = {}
        self.counted: Counter[tuple[str, int]] = Counter()
        self.now = 0
        """Tick."""
        self.idle = Idle()
        self.seen_ticks = 0
        """When a flow was seen last is noted late, by so many ticks."""
        self.insert_limit = NEVER
        """New flows that are remembered in a tick."""
        self.inserted = self.flooded = self.floods = 0
        self.insert_tick = self.flood_tick = -1
        self.icmp_limit = NEVER
        """ICMP errors of the access point's own that are sent in a tick."""
        self.icmp_sent, self.icmp_tick = 0, -1
        self.gateways: dict[int, Hop] = {}
        """IP version -> the way to clients that are not near."""
        self.near: list[IPv4Network | IPv6Network] = []

    def service_at(self, target: Target) -> int | None:
        for index, service in self.services.items():
            if service.present and target == (service.vip, service.port, service.protocol):
                return index
        return None

    def route(self, packet: Packet) -> Outcome:
        index = self.service_at((packet.destination, packet.port, packet.protocol))
        if index is not None:
            return self._forward(packet, index, self.services[index])
        sender = self.returns.get((packet.source, packet.source_port, packet.protocol))
        if sender is not None:
            return self._give_back(packet, sender)
        return Outcome("drop_vip_port" if self.would_loop(packet.destination) else "pass_other")

    # ---- client to endpoint ---------------------------------------------------------------

    def _forward(self, packet: Packet, index: int, service: Service) -> Outcome:
        if packet.ttl <= 1:
            return Outcome("pass_ttl")
        name = (index, packet.source, packet.source_port)
        looked_for = not (packet.opens and self.flood_tick == self.now)
        flow = self.flows.get(name) if looked_for else None
        chosen = self._goes_on(packet, index, service, flow) if flow else None
        if chosen is None and self.is_no_client(packet.source):
            return Outcome("drop_source")
        if chosen is None:
            chosen = self._start(packet, name, service)
        if chosen is None:
            return Outcome("drop_no_endpoint")
        outcome = self.to_endpoint(chosen, packet.bytes, packet.may_be_cut)
        self.count_sent(outcome, packet.bytes)
        return outcome

    def to_endpoint(self, index: int, size: int, may_be_cut: bool) -> Outcome:
        """How a packet of ``size`` bytes leaves for it."""
        endpoint = self.endpoints[index]
        reason = self._way("forward", endpoint.hop, size, may_be_cut)
        if endpoint.hop and reason == "pass_mtu":
            return Outcome(reason, index, mtu=endpoint.hop.mtu)
        hop = endpoint.hop if reason == "forward_hop" else None
        return Outcome(reason, index, destination=(endpoint.address, endpoint.port), hop=hop)

    def to_client(self, sender: int, client: str, size: int, may_be_cut: bool) -> Outcome:
        """How a packet leaves that is from an endpoint of a service, under the service's name."""
        service = self.services[self.endpoints[sender].service]
        gateway = None if self._is_near(client) else self.gateways.get(6 if ":" in client else 4)
        reason = self._way("return", gateway, size, may_be_cut)
        if gateway and reason == "pass_mtu":
            return Outcome(reason, sender, mtu=gateway.mtu)
        hop = gateway if reason == "return_hop" else None
        return Outcome(reason, sender, source=(service.vip, service.port), hop=hop)

    @staticmethod
    def _way(kind: str, hop: Hop | None, size: int, may_be_cut: bool) -> str:
        if hop is None:
            return f"{kind}_kernel"
        if hop.mtu and size > hop.mtu:
            return f"{kind}_cut" if may_be_cut else "pass_mtu"
        return f"{kind}_hop"

    def count_sent(self, outcome: Outcome, size: int) -> None:
        if outcome.left and outcome.endpoint is not None:
            kind = "return_" if outcome.source else ""
            self.counted[f"{kind}packets", outcome.endpoint] += 1
            self.counted[f"{kind}bytes", outcome.endpoint] += size

    def _goes_on(self, packet: Packet, index: int, service: Service, flow: Flow) -> int | None:
        endpoint = self._present(flow.endpoint)
        if endpoint is None or endpoint.service != index:
            return None
        if not self._still_serves(endpoint, service, flow, (packet.source, packet.source_port)):
            return None
        if packet.opens:
            if (
                flow.closing
                or self.is_idle(flow, TCP)
                or not (endpoint.takes_new or "established" in flow.marks)
            ):
                return None
            if "syn-ack" not in flow.marks:
                flow.marks.add("sent again")
            return flow.endpoint[0]
        if packet.protocol == UDP and self.is_idle(flow, UDP):
            return None
        gained: set[str] = set()
        if "R" in packet.flags:
            gained = {"rst"}
        elif packet.protocol == TCP:
            gained |= {"fin client"} if "F" in packet.flags else set()
            if "syn-ack" in flow.marks and "A" in packet.flags:
                ahead = (packet.acknowledged - flow.expects) & ACK_BITS
                gained |= {"established"} if ahead < ACK_WINDOW else set()
        new = self._mark(flow, gained, packet, service, packet.source, packet.source_port)
        if "established" in new and service.requests == "off":
            flow.due = flow.expects  # the program keeps both in one place, and nobody looked
        if packet.protocol == TCP and service.requests != "off":
            self._asks(packet, service, flow, "established" in new)
        return flow.endpoint[0]

    def _asks(self, packet: Packet, service: Service, flow: Flow, just_open: bool) -> None:
        """The first payload after an answer is a request, but not what the endpoint had already."""
        if "request" in flow.marks:
            if "R" in packet.flags:
                flow.marks.remove("request")
                flow.due = packet.sequence
                self.counted["aborted", flow.endpoint[0]] += 1
            return
        if not flow.marks & {"established", "midstream"}:
            return
        if just_open:
            flow.due = packet.sequence
        if "R" in packet.flags or not asks(packet, service):
            if service.requests == "tls" and packet.payload[0:1] + packet.payload[6:7] == b"\x14\x17":
                flow.due = packet.sequence + len(packet.payload) - 1
            return
        before = (flow.due - packet.sequence - len(packet.payload)) % (1 << 24)
        if before < 1 << 23:
            flow.due = packet.sequence + 1 if before > 1 << 16 else flow.due
            return
        flow.marks.add("request")
        flow.seen = self.now
        self.counted["requests", flow.endpoint[0]] += 1

    def _start(self, packet: Packet, name: tuple[int, str, int], service: Service) -> int | None:
        room = "R" not in packet.flags and self._may_remember()
        remembered = room and (packet.protocol == UDP or packet.opens)
        pick = self._pick_bits(service, packet.source, packet.source_port)
        choice = self._pick(name[0], service, pick, limited=remembered and not service.affinity)
        if choice is None:
            return None
        live, chosen = choice.live, choice.given
        self.counted["limited", choice.hashed[0]] += chosen != choice.hashed
        marks: set[str] = set()
        if packet.protocol == TCP and not packet.opens:
            marks = {"midstream", *(["fin client"] if "F" in packet.flags else [])}
            self._count("midstream", live)
        elif packet.protocol == UDP and not room:
            self.counted["unremembered", chosen[0]] += 1
        else:
            marks = {"syn"} if packet.opens else set()
            self._count("offered", live)
            self.counted["spilled", live or 0] += choice.spilled
            self.counted["flows", chosen[0]] += 1
            self.counted["unremembered", chosen[0]] += not room
        if room:
            before = self.flows.get(name)
            if before and "request" in before.marks and self._present(before.endpoint):
                self.counted["aborted", before.endpoint[0]] += 1
            due = packet.sequence + len(packet.payload)
            self.flows[name] = Flow(chosen, marks, due, self.now)
        return chosen[0]

    def _may_remember(self) -> bool:
        """Past so many in a tick there is a flood, and nothing more is remembered until the next one."""
        if self.insert_tick != self.now:
            self.insert_tick, self.inserted = self.now, 0
        if self.inserted < self.insert_limit:
            self.inserted += 1
            return True
        self.floods += self.flood_tick != self.now
        self.flood_tick = self.now
        self.flooded += 1
        return False

    def _pick_bits(self, service: Service, client: str, client_port: int) -> int:
        """What ring, spill and slot are taken from."""
        port = 0 if service.affinity else client_port
        return pick_hash(flow_hash(self.key, client, service.vip, port, service.port, service.protocol))

    def _pick(self, index: int, service: Service, pick: int, *, limited: bool) -> Choice | None:
        """None: nobody is there."""
        if not service.ring:
            return None
        named = service.ring[ring_slot(pick, 0, len(service.ring))]
        live = self._present(named)
        if live:
            spill = live.spill if live.takes_new else ALL
            spills = spill == ALL or spill_bits(pick) < spill
            if not spills and (not limited or live.admits()):
                return Choice(named[0], named, named)
            shadows = list(self._usable_slots(index, live, pick))[:2]
            hashed = shadows[0] if spills and shadows else named
            for shadow in shadows:
                if not limited or self.endpoints[shadow[0]].admits():
                    return Choice(named[0], shadow, hashed, spilled=True)
            if live.takes_new:
                return Choice(named[0], named, hashed)
            if shadows:
                return Choice(named[0], hashed, hashed, spilled=True)
        for attempt in range(1, RING_TRIES + 1):
            other = service.ring[ring_slot(pick, attempt, len(service.ring))]
            member = self._present(other)
            if member and member.takes_new:
                return Choice(named[0] if live else None, other, other)
        return Choice(named[0], named, named) if live else None

    def _usable_slots(self, index: int, live: Endpoint, pick: int) -> Iterator[Reference]:
        """Members of the flow's slot and of those after it, the first one never again."""
        first = None
        for i in range(SLOT_TRIES):
            slot = live.slots[(shadow_slot(pick) + i * SLOT_STRIDE) % SLOTS]
            member = self._present(slot)
            if slot and member and member.takes_new and member.service == index and slot != first:
                first = first or slot
                yield slot

    # ---- endpoint to client ---------------------------------------------------------------

    def _give_back(self, packet: Packet, sender: int) -> Outcome:
        endpoint = self.endpoints[sender]
        service = self.services[endpoint.service]
        flow = self.flows.get((endpoint.service, packet.destination, packet.port))
        if flow and (flow.endpoint != (sender, endpoint.generation) or self.is_idle(flow, packet.protocol)):
            flow = None
        if not flow:
            if self.is_direct(packet.destination):
                return Outcome("pass_direct")
            if self._is_vip(packet.destination):
                return Outcome("drop_vip_port")
        if packet.ttl <= 1:
            return Outcome("pass_ttl")
        outcome = self.to_client(sender, packet.destination, packet.bytes, packet.may_be_cut)
        if flow and outcome.left:
            self._answered(packet, flow, service, sender)
        self.count_sent(outcome, packet.bytes)
        return outcome

    def _answered(self, packet: Packet, flow: Flow, service: Service, sender: int) -> None:
        gained: set[str] = set()
        if packet.protocol == UDP:
            gained = {"established"}
        elif "R" in packet.flags:
            gained = {"rst"}
            self.counted["resets", sender] += "rst" not in flow.marks
        elif "S" in packet.flags:
            gained = {"syn-ack"} if "syn" in flow.marks else set()
            timed = "sent again" not in flow.marks and self.now - flow.seen < STAMP_TICKS
            if gained - flow.marks and timed:
                self.counted["rtt_count", sender] += 1
        else:
            gained |= {"fin endpoint"} if "F" in packet.flags else set()
            gained |= {"established"} if "midstream" in flow.marks else set()
        self._mark(flow, gained, packet, service, packet.destination, packet.port)
        if "S" in packet.flags and "syn-ack" in flow.marks and "established" not in flow.marks:
            flow.expects = (packet.sequence + 1) & ALL
        if "request" in flow.marks and service.requests != "off":
            self._replies(packet, service, flow, sender)

    def _replies(self, packet: Packet, service: Service, flow: Flow, sender: int) -> None:
        if "R" not in packet.flags and answers(packet, service):
            self.counted["answered", sender] += 1
        elif "R" in packet.flags or "F" in packet.flags:
            self.counted["aborted", sender] += 1
        else:
            return
        flow.marks.remove("request")
        flow.due = packet.acknowledged

    def _mark(
        self, flow: Flow, gained: set[str], packet: Packet, service: Service, client: str, port: int
    ) -> set[str]:
        new = gained - flow.marks
        if new or flow.closing or self.now - flow.seen > self.seen_ticks:
            flow.seen = self.now
        flow.marks |= gained
        if "established" in new and "midstream" not in flow.marks:
            pick = self._pick_bits(service, client, port)
            named = service.ring[ring_slot(pick, 0, len(service.ring))]
            self._count("completed", named[0] if self._present(named) else None)
        if new & {"fin client", "fin endpoint"} and {"fin client", "fin endpoint"} <= flow.marks:
            self.counted["fins", flow.endpoint[0]] += 1
        return new

    def may_refuse(self) -> bool:
        """Whether one more ICMP error may be sent; counts it."""
        if self.icmp_tick != self.now:
            self.icmp_tick, self.icmp_sent = self.now, 0
        within = self.icmp_sent < self.icmp_limit
        self.icmp_sent += within
        return within

    # ---- what an ICMP error is about ---------------------------------------------------------

    def error_about_answer(self, source: Target, client: tuple[str, int]) -> int | None:
        """Who gets an error about what left as ``source``, a service; None: it is about no flow."""
        index = self.service_at(source)
        flow = self.flows.get((index, *client)) if index is not None else None
        endpoint = self._present(flow.endpoint) if flow else None
        if index is None or flow is None or endpoint is None or endpoint.service != index:
            return None
        return flow.endpoint[0] if self._still_serves(endpoint, self.services[index], flow, client) else None

    def error_about_request(self, client: tuple[str, int], destination: Target) -> int | None:
        """Which endpoint an error is about that was sent to ``client``; None: about no flow."""
        sender = self.returns.get(destination)
        if sender is None:
            return None
        endpoint = self.endpoints[sender]
        flow = self.flows.get((endpoint.service, *client))
        return sender if flow and flow.endpoint == (sender, endpoint.generation) else None

    # ---- small things ----------------------------------------------------------------------

    def serves(self, reference: Reference) -> bool:
        endpoint = self._present(reference)
        return endpoint is not None and not endpoint.down

    def is_idle(self, flow: Flow, protocol: int) -> bool:
        if flow.closing:
            limit = self.idle.closing
        elif protocol == UDP:
            limit = self.idle.udp
        else:
            limit = self.idle.established if "established" in flow.marks else self.idle.opening
        return self.now - flow.seen > limit

    def _still_serves(
        self, endpoint: Endpoint, service: Service, flow: Flow, client: tuple[str, int]
    ) -> bool:
        value = flow_hash(self.key, client[0], service.vip, client[1], service.port, service.protocol)
        if max(value >> 32, 1) % 256 < endpoint.evicted:
            return False
        return not endpoint.down or (service.keep and "established" in flow.marks)

    def _present(self, reference: Reference | None) -> Endpoint | None:
        if reference is None:
            return None
        endpoint = self.endpoints.get(reference[0])
        if endpoint and endpoint.present and endpoint.generation == reference[1]:
            return endpoint
        return None

    def is_no_client(self, address: str) -> bool:
        return is_martian(address) or address in self.own or self._is_vip(address)

    def would_loop(self, address: str) -> bool:
        """The kernel would send it back to the router."""
        return self._is_vip(address) and not self.is_direct(address)

    def is_direct(self, address: str) -> bool:
        return any(ip_address(address) in prefix for prefix in self.direct)

    def _is_near(self, address: str) -> bool:
        return any(ip_address(address) in prefix for prefix in self.near)

    def _is_vip(self, address: str) -> bool:
        return any(service.vip == address for service in self.services.values())

    def _count(self, name: str, endpoint: int | None) -> None:
        if endpoint is not None:
            self.counted[name, endpoint] += 1
