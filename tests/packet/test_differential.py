# SPDX-License-Identifier: Apache-2.0
"""Random packets between random changes: the program and tests/reference.py agree on every one."""

from __future__ import annotations

import random
from ipaddress import ip_network

import pytest
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from controlplane.adapters import layout
from tests import reference
from tests.packet.rig import KEY, TCP_NUMBER, UDP_NUMBER, Rig, refused, rewritten, tcp, udp

PACKETS = 4000
BUCKETS = 256
"""So few that now and then a flow lies in its second bucket, and enough that none has to give way."""
CHANGE_EVERY = 25
OWN, OWN6 = "192.0.2.200", "2001:db8::200"
CLIENTS = [
    *(f"192.0.2.{i}" for i in range(1, 13)),
    *(OWN, "198.51.100.3", "0.1.2.3", "127.0.0.1", "224.0.0.5", "255.255.255.255"),
]
"""The last six are none: the access point itself, a VIP, martians."""
CLIENTS6 = [
    *(f"2001:db8:0:{i}::{i * 7:x}" for i in range(1, 13)),
    *(OWN6, "2001:db8:1::6", "::1", "fe80::1", "ff02::1", "::192.0.2.1"),
]
PORTS = range(40_000, 40_003)
SERVICES = {
    1: ("198.51.100.1", 80, TCP_NUMBER, False, "http1"),
    2: ("198.51.100.1", 53, UDP_NUMBER, False, "off"),
    3: ("198.51.100.3", 443, TCP_NUMBER, True, "tls"),
    4: ("2001:db8:1::4", 80, TCP_NUMBER, False, "http1"),
    5: ("2001:db8:1::4", 53, UDP_NUMBER, False, "off"),
    6: ("2001:db8:1::6", 443, TCP_NUMBER, True, "off"),
}
AFFINITY = (3, 5)
"""Services that give all flows of a client alike."""
LIVE, SHADOWS, RING = 4, 3, 61
TCP_FLAGS = ["S", "S", "SA", "A", "A", "PA", "PA", "FA", "R", "RA", "F", "SR"]
BEGINNINGS = (
    *(b"", b"\x17\x03\x03\x01\x02", b"\x16", b"\x17\x03\x03\x00\x13"),
    *(b"\x14\x03\x03\x00\x01\x01\x17", b"HTTP/1.1 100 Continue\r\n\r\n"),
)
"""Of payload: data, a handshake, an alert of TLS 1.3, its client's last message, no answer yet."""
COUNTED = (
    "packets",
    "return_packets",
    "flows",
    "offered",
    "completed",
    "spilled",
    "limited",
    "midstream",
    "unremembered",
    "resets",
    "fins",
    "rtt_count",
    "requests",
    "answered",
    "aborted",
)


class Both:
    """The program and the reference, changed alike."""

    def __init__(self, rig: Rig, seed: int) -> None:
        self.rig, self.random = rig, random.Random(seed)
        self.expected = reference.Steering(KEY)
        rig.settings["bucket_mask"] = BUCKETS - 1
        for limit in ("opening", "established", "closing", "udp"):  # the reference knows no time
            rig.settings[f"idle_{limit}_ticks"] = 1 << 30
        for index, (vip, port, protocol, keep, requests) in SERVICES.items():
            rig.service(index, vip, port, protocol, keep=keep, affinity=index in AFFINITY, requests=requests)
            live = [self._endpoint(index, protocol, index * 20 + i) for i in range(LIVE)]
            shadows = [self._endpoint(index, protocol, index * 20 + 10 + i) for i in range(SHADOWS)]
            cells = [self.random.choice([*live, *live, None]) for _ in range(RING - 1)]
            ring = [*live[:1], *[cell or live[-1] for cell in cells]]
            rig.ring(index, [layout.reference(*cell) for cell in ring])
            self.expected.services[index] = reference.Service(
                vip, port, protocol, ring, keep, index in AFFINITY, requests
            )
            for member in live:
                self._slots(member[0], shadows)
        for prefix in ("192.0.2.9/32", "203.0.113.0/24", "2001:db8:0:9::/64", "2001:db8:2::/96"):
            rig.direct(prefix)
            self.expected.direct.append(ip_network(prefix))
        for own in (OWN, OWN6):
            rig.own(own)
            self.expected.own.append(own)
            self.expected.direct.append(ip_network(own))

    def _endpoint(self, service: int, protocol: int, index: int) -> reference.Reference:
        v6 = ":" in SERVICES[service][0]
        address, port = (f"2001:db8:2::{index:x}" if v6 else f"203.0.113.{index}"), 8000 + index
        self.rig.endpoint(index, service, address, port)
        self.expected.endpoints[index] = reference.Endpoint(address, port, protocol, service)
        self.expected.returns[address, port, protocol] = index
        return index, 1

    def _slots(self, live: int, shadows: list[reference.Reference]) -> None:
        named = [shadow for shadow in shadows if self.random.random() < 0.8]
        slots = [self.random.choice(named) if named else None for _ in range(128)]
        spill = self.random.choice([0, 1 << 30, 1 << 31, 3 << 30, layout.SPILL_ALL])
        self.rig.slots[live] = [layout.reference(*slot) if slot else 0 for slot in slots]
        self.rig.endpoints[live : live + 1]["spill"] = spill
        self.expected.endpoints[live].slots = list(slots)
        self.expected.endpoints[live].spill = spill

    def _limit(self, index: int) -> None:
        """For a window of time that stands still."""
        endpoint = self.expected.endpoints[index]
        endpoint.limit, endpoint.used = self.random.choice([0, 1, 1, 2]), 0
        self.rig.limit(index, endpoint.limit)

    def change(self) -> None:
        """One endpoint's state, another's slots and spill, and some limits."""
        for limited in self.random.sample(list(self.expected.endpoints), 2):
            self._limit(limited)
        index = self.random.choice(list(self.expected.endpoints))
        endpoint = self.expected.endpoints[index]
        endpoint.down = self.random.random() < 0.25
        endpoint.draining = self.random.random() < 0.2
        endpoint.present = self.random.random() < 0.9
        # The generation moves only with a reuse of the index; the ring then names nobody until rewritten.
        endpoint.generation = self.random.choice([1, 1, 1, 1, 2, 4097])
        self.rig.state(
            index,
            present=endpoint.present,
            down=endpoint.down,
            draining=endpoint.draining,
            generation=endpoint.generation,
        )
        if endpoint.generation == 4097:
            endpoint.generation = 1  # the low 12 bits are what a reference carries
        service = self.random.choice(list(SERVICES))
        shadows = [(service * 20 + 10 + i, 1) for i in range(SHADOWS)]
        self._slots(service * 20 + self.random.randrange(LIVE), shadows)

    def packet(self) -> reference.Packet:
        vip, port, protocol, *_ = SERVICES[self.random.choice(list(SERVICES))]
        clients = CLIENTS6 if ":" in vip else CLIENTS
        client, client_port = self.random.choice(clients), self.random.choice(PORTS)
        flags = self.random.choice(TCP_FLAGS) if protocol == TCP_NUMBER else ""
        ttl = self.random.choice([64] * 20 + [2, 1])
        if self.random.random() < 0.4 and self.expected.flows:
            (_, client, client_port), flow = self.random.choice(list(self.expected.flows.items()))
            index = flow.endpoint[0]
            if self.random.random() < 0.1:
                alike = [
                    i for i, e in self.expected.endpoints.items() if (":" in e.address) == (":" in client)
                ]
                index = self.random.choice(alike)
            sender = self.expected.endpoints[index]
            protocol = sender.protocol
            flags = self.random.choice(["SA", "SA", "A", "PA", "FA", "R"]) if protocol == TCP_NUMBER else ""
            source = (sender.address, sender.port)
            return self._packet(*source, client, client_port, protocol, flags, ttl, asked=True)
        if self.random.random() < 0.05:
            port += 1
        if self.random.random() < 0.03:
            v6 = ":" in vip
            vip = self.random.choice(
                ["2001:db8:2::77", "2001:db8:1::99"] if v6 else ["203.0.113.77", "198.51.100.99"]
            )
        return self._packet(client, client_port, vip, port, protocol, flags, ttl)

    def _packet(self, *fields: str | int, asked: bool = False) -> reference.Packet:
        """Bytes and numbers as in a conversation that never gets far: many are sent again."""
        payload = self.random.randbytes(self.random.randrange(40))
        if self.random.random() < 0.7:
            payload = self.random.choice(BEGINNINGS) + payload[:-1]
        sequence = 1000 + self.random.randrange(400)
        acknowledged = 1000 + self.random.randrange(400) if asked else 2000
        return reference.Packet(*fields, payload, sequence, acknowledged)  # type: ignore[arg-type]

    def frame(self, packet: reference.Packet) -> Packet:
        fields = (packet.source, packet.source_port, packet.destination, packet.port)
        if packet.protocol == UDP_NUMBER:
            return udp(*fields, packet.payload, packet.ttl)
        numbers = {"sequence": packet.sequence, "acknowledged": packet.acknowledged}
        return tcp(*fields, packet.flags, packet.payload, packet.ttl, **numbers)


def agree(rig: Rig, seed: int, packets: int = PACKETS) -> Both:
    """Sends random packets; an AssertionError names the first that the two treat differently."""
    both = Both(rig, seed)
    for number in range(packets):
        if number % CHANGE_EVERY == CHANGE_EVERY - 1:
            both.change()
            rig.stop_time()  # on a slow machine a handshake would outlast its stamp
        packet = both.packet()
        frame = both.frame(packet)
        expected = both.expected.route(packet)
        result = rig.send(frame)
        assert result.reason == expected.reason, f"packet {number}: {packet}"
        if expected.source or expected.destination:
            hop = {} if expected.reason == "forward_hop" else {"hop": None}
            wanted = rewritten(frame, source=expected.source, destination=expected.destination, **hop)
            assert result.raw == wanted, f"packet {number}: {Ether(result.raw)!r}"
        elif expected.reason == "reply_ttl":
            assert result.raw == refused(frame, expected.teller), f"packet {number}: {Ether(result.raw)!r}"
        else:
            assert result.raw == bytes(frame), f"packet {number}"
    for index in both.expected.endpoints:
        counted = {name: both.expected.counted[name, index] for name in COUNTED}
        assert rig.counts(index, *COUNTED) == counted, f"endpoint {index}"
    return both


@pytest.mark.parametrize("seed", range(4))
def test_program_and_reference_agree(rig: Rig, seed: int) -> None:
    both = agree(rig, seed)
    for name, least in {"completed": 20, "limited": 5, "requests": 20, "answered": 20, "aborted": 10}.items():
        assert sum(both.expected.counted[name, index] for index in both.expected.endpoints) > least, name
