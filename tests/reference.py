# SPDX-License-Identifier: Apache-2.0
"""The routing rule in plain Python, for tests: what steer must do with one packet after another.

It imports nothing of ours, or it would prove nothing. It knows no buckets: its flow cache is a dictionary
that forgets nothing, so it is compared where the program's cache is not full. Time stands still.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network, ip_address

U64 = (1 << 64) - 1
SLOTS, SLOT_TRIES, SLOT_STRIDE, RING_TRIES = 128, 16, 53, 8
ALL = 0xFFFFFFFF
TCP, UDP = 6, 17

Reference = tuple[int, int]
"""Index of an endpoint and the generation of that index."""
Target = tuple[str, int, int]
"""Address, port, protocol."""


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
    spill: int = 0
    limit: int = 0
    """New flows that it is given in one window; 0: any number."""
    used: int = 0
    """Of them, those given already."""
    slots: list[Reference | None] = field(default_factory=lambda: [None] * SLOTS)

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
    teller: str = ""
    """Who tells its sender by ICMP that it does not go on."""


def mix(value: int) -> int:
    """MurmurHash3's 64-bit finaliser."""
    value ^= value >> 33
    value = value * 0xFF51AFD7ED558CCD & U64
    value ^= value >> 33
    value = value * 0xC4CEB9FE1A85EC53 & U64
    return value ^ value >> 33


def flow_hash(key: tuple[int, int], client: str, vip: str, client_port: int, port: int, protocol: int) -> int:
    one, other = int(ip_address(client)), int(ip_address(vip))
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
    number = int(ip_address(address))
    return number >> 120 == 0xFF or number >> 118 == 0xFE80 >> 6 or number >> 32 == 0


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

    def route(self, packet: Packet) -> Outcome:
        for index, service in self.services.items():
            if (packet.destination, packet.port, packet.protocol) == (
                service.vip,
                service.port,
                service.protocol,
            ):
                return self._forward(packet, index, service)
        sender = self.returns.get((packet.source, packet.source_port, packet.protocol))
        if sender is not None:
            return self._give_back(packet, sender)
        if self._is_vip(packet.destination) and not self._is_direct(packet.destination):
            return Outcome("drop_vip_port")
        return Outcome("pass_other")

    # ---- client to endpoint ---------------------------------------------------------------

    def _forward(self, packet: Packet, index: int, service: Service) -> Outcome:
        if packet.ttl <= 1:
            return self._refuse(packet, service)
        name = (index, packet.source, packet.source_port)
        flow = self.flows.get(name)
        chosen = self._goes_on(packet, index, service, flow) if flow else None
        if chosen is None and self._is_no_client(packet.source):
            return Outcome("drop_source")
        if chosen is None:
            chosen = self._start(packet, name, service)
        if chosen is None:
            return Outcome("drop_no_endpoint")
        endpoint = self.endpoints[chosen]
        self.counted["packets", chosen] += 1
        return Outcome("forward_hop", chosen, destination=(endpoint.address, endpoint.port))

    def _goes_on(self, packet: Packet, index: int, service: Service, flow: Flow) -> int | None:
        endpoint = self._present(flow.endpoint)
        if endpoint is None or endpoint.service != index:
            return None
        if endpoint.down and not (service.keep and "established" in flow.marks):
            return None
        if packet.opens:
            if flow.closing or not (endpoint.takes_new or "established" in flow.marks):
                return None
            if "syn-ack" not in flow.marks:
                flow.marks.add("sent again")
            return flow.endpoint[0]
        gained: set[str] = set()
        if "R" in packet.flags:
            gained = {"rst"}
        elif packet.protocol == TCP:
            gained |= {"fin client"} if "F" in packet.flags else set()
            if "A" in packet.flags and "syn-ack" in flow.marks:
                gained.add("established")
        new = self._mark(flow, gained, packet, service, packet.source, packet.source_port)
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
        self.counted["requests", flow.endpoint[0]] += 1

    def _start(self, packet: Packet, name: tuple[int, str, int], service: Service) -> int | None:
        remembered = packet.protocol == UDP or (packet.opens and "R" not in packet.flags)
        pick = self._pick_bits(service, packet.source, packet.source_port)
        choice = self._pick(name[0], service, pick, limited=remembered and not service.affinity)
        if choice is None:
            return None
        live, chosen = choice.live, choice.given
        self.counted["limited", choice.hashed[0]] += chosen != choice.hashed
        if packet.protocol == TCP and not packet.opens:
            marks = {"midstream", *(["fin client"] if "F" in packet.flags else [])}
            self._count("midstream", live)
        else:
            marks = {"syn"} if packet.opens else set()
            self._count("offered", live)
            self.counted["spilled", live or 0] += choice.spilled
            self.counted["flows", chosen[0]] += 1
        if "R" in packet.flags:
            if packet.opens:
                self.counted["unremembered", chosen[0]] += 1
        else:
            before = self.flows.get(name)
            if before and "request" in before.marks and self._present(before.endpoint):
                self.counted["aborted", before.endpoint[0]] += 1
            self.flows[name] = Flow(chosen, marks, packet.sequence + len(packet.payload))
        return chosen[0]

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
        if flow and flow.endpoint != (sender, endpoint.generation):
            flow = None
        if not flow:
            if self._is_direct(packet.destination):
                return Outcome("pass_direct")
            if self._is_vip(packet.destination):
                return Outcome("drop_vip_port")
        if packet.ttl <= 1:
            return self._refuse(packet, service)
        if flow:
            self._answered(packet, flow, service, sender)
        self.counted["return_packets", sender] += 1
        return Outcome("return_kernel", sender, source=(service.vip, service.port))

    def _answered(self, packet: Packet, flow: Flow, service: Service, sender: int) -> None:
        gained: set[str] = set()
        if packet.protocol == UDP:
            gained = {"established"}
        elif "R" in packet.flags:
            gained = {"rst"}
            self.counted["resets", sender] += "rst" not in flow.marks
        elif "S" in packet.flags:
            gained = {"syn-ack"} if "syn" in flow.marks else set()
            if gained - flow.marks and "sent again" not in flow.marks:
                self.counted["rtt_count", sender] += 1
        else:
            gained |= {"fin endpoint"} if "F" in packet.flags else set()
            gained |= {"established"} if "midstream" in flow.marks else set()
        self._mark(flow, gained, packet, service, packet.destination, packet.port)
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
        flow.marks |= gained
        if "established" in new and "midstream" not in flow.marks:
            pick = self._pick_bits(service, client, port)
            named = service.ring[ring_slot(pick, 0, len(service.ring))]
            self._count("completed", named[0] if self._present(named) else None)
        if new & {"fin client", "fin endpoint"} and {"fin client", "fin endpoint"} <= flow.marks:
            self.counted["fins", flow.endpoint[0]] += 1
        return new

    def _refuse(self, packet: Packet, service: Service) -> Outcome:
        """Its TTL has ended; no route is known to its sender."""
        if self._is_no_client(packet.source):
            return Outcome("drop_source")
        return Outcome("reply_ttl", teller=service.vip)

    # ---- small things ----------------------------------------------------------------------

    def _present(self, reference: Reference | None) -> Endpoint | None:
        if reference is None:
            return None
        endpoint = self.endpoints.get(reference[0])
        if endpoint and endpoint.present and endpoint.generation == reference[1]:
            return endpoint
        return None

    def _is_no_client(self, address: str) -> bool:
        return is_martian(address) or address in self.own or self._is_vip(address)

    def _is_direct(self, address: str) -> bool:
        return any(ip_address(address) in prefix for prefix in self.direct)

    def _is_vip(self, address: str) -> bool:
        return any(service.vip == address for service in self.services.values())

    def _count(self, name: str, endpoint: int | None) -> None:
        if endpoint is not None:
            self.counted[name, endpoint] += 1
