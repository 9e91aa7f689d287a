# SPDX-License-Identifier: Apache-2.0
"""What happens next in an episode: mostly sound packets of few flows, whose lives are long so."""

from __future__ import annotations

import random
from collections.abc import Callable

from tests import reference
from tests.fuzz import forge
from tests.fuzz.both import (
    INNER,
    LIVE,
    OUTER,
    OWN,
    OWN6,
    REQUESTS,
    RING,
    SERVICES,
    SHADOWS,
    VLAN,
    Action,
    Both,
)
from tests.fuzz.forge import Envelope, Piece
from tests.reference import ALL as SPILL_ALL
from tests.reference import SLOTS, TCP, UDP
from tests.reference_frames import ERRORS, ICMP, ICMPV6

CLIENTS = {
    4: [f"192.0.2.{i}" for i in range(7, 11)] + ["20.0.0.1", "20.0.0.2", "81.2.3.4"],
    6: [f"2001:db8:0:{i:x}::{i}" for i in range(7, 11)] + ["2a00:1::1", "2a00:1::2", "2400:5::9"],
}
NO_CLIENTS = {
    4: [OWN, "198.51.100.3", "0.1.2.3", "127.0.0.1", "224.0.0.5", "255.255.255.255", "203.0.113.20"],
    6: [OWN6, "2001:db8:1::6", "::1", "::", "fe80::1", "ff02::1", "::c000:201", "2001:db8:2::50"],
}
"""This host itself, a VIP, martians; and an endpoint, which may well be one."""
OTHERS = {4: ["203.0.113.77", "198.51.100.99", "192.0.2.7"], 6: ["2001:db8:2::77", "2001:db8:1::99"]}
"""Destinations without a service; the next ones are VIPs."""
VIPS = {
    version: sorted({vip for vip, _, _ in SERVICES.values() if (":" in vip) == (version == 6)})
    for version in (4, 6)
}
ROUTERS = {4: ["192.0.2.254", "80.0.0.1"], 6: ["2001:db8:c::fe", "2a00:9::1"]}
PORTS = (40_000, 40_001, 40_002, 40_003, 0, 65_535)
STARTS = ("S", "S", "S", "S", "S", "SEC", "A", "PA", "FA", "R", "SR", "SA")
GOES_ON = ("S", "A", "A", "A", "A", "A", "PA", "PA", "PAU", "FA", "F", "R", "RA", "")
ANSWERS = ("SA", "SA", "SA", "A", "A", "PA", "PA", "FA", "R", "RA", "S", "SR", "")
SEQUENCES = (1000, 1000, 1000, 0xFFFFFFFF)
BEGINNINGS = (
    *(b"", b"", b"", b"\x17\x03\x03\x01\x02", b"\x16", b"\x17\x03\x03\x00\x13"),
    *(b"\x14\x03\x03\x00\x01\x01\x17", b"HTTP/1.1 100 Continue\r\n\r\n"),
)
"""Of payload: data, a handshake, an alert of TLS 1.3, its client's last message, no answer yet."""
TICKS = (1, 5, 9, 10, 19, 20, 21, 38, 39, 40, 41, 61, 62, 63, 240, 241, 3600, 3601, 100_000)
"""Around the limits."""


def version_of(address: str) -> int:
    return 6 if ":" in address else 4


def actions_of(both: Both, dice: random.Random) -> list[Action]:
    """What to do next."""
    what = dice.random()
    if what < 0.07:
        return dice.choice(CHANGES)(both, dice)
    if what < 0.09:
        return [["let_pass", dice.choice(TICKS)]]
    raw = spoiled(dice.choices(FRAMES, WEIGHTS)[0](both, dice), dice)
    return [["send", raw.hex()]]


# ---- changes ----------------------------------------------------------------------------------


def some_service(dice: random.Random) -> tuple[int, range, range]:
    """Its index, its live endpoints and its shadows."""
    service = dice.choice(list(SERVICES))
    first = service * 20
    return service, range(first, first + LIVE), range(first + 10, first + 10 + SHADOWS)


def change_state(both: Both, dice: random.Random) -> list[Action]:
    """Mostly of one that has flows."""
    _, live, shadows = some_service(dice)
    index = dice.choice([*live, *shadows])
    if both.steering.flows and dice.random() < 0.8:
        index = dice.choice(list(both.steering.flows.values())).endpoint[0]
    present, down, draining = dice.random() < 0.9, dice.random() < 0.35, dice.random() < 0.25
    # It moves only with a reuse of the index; the ring then names nobody. A reference has 12 bits of it.
    generation = dice.choice([1, 1, 1, 1, 1, 2, 4097])
    evicted = dice.choice([0, 0, 1, 64, 255]) if draining else 0
    return [["state", index, present, down, draining, generation, evicted]]


def change_slots(both: Both, dice: random.Random) -> list[Action]:
    """Of some of the shadows, in any order."""
    _, live, shadows = some_service(dice)
    named = [shadow for shadow in shadows if dice.random() < 0.8] or [0]
    spill = dice.choice([0, 0, 1 << 30, 1 << 31, 3 << 30, SPILL_ALL])
    return [["slots", dice.choice(live), dice.choices(named, k=SLOTS), spill]]


def change_limit(both: Both, dice: random.Random) -> list[Action]:
    _, live, shadows = some_service(dice)
    return [["limit", dice.choice([*live, *shadows]), dice.choice([0, 1, 1, 2])]]


def change_ring(both: Both, dice: random.Random) -> list[Action]:
    """Some members are in it more often than others."""
    service, live, _ = some_service(dice)
    return [["ring", service, dice.choices(live, [dice.random() + 0.05 for _ in live], k=RING)]]


def some_way(dice: random.Random) -> list[int] | None:
    if dice.random() < 0.15:
        return None
    return [dice.choice([0, 1500, 1500, 40, 60, 100]), dice.choice([0, 0, 0, 42])]


def change_hop(both: Both, dice: random.Random) -> list[Action]:
    """Of all that have one way."""
    _, live, _ = some_service(dice)
    way = some_way(dice)
    return [["hop", index, way] for index in live]


def change_gateway(both: Both, dice: random.Random) -> list[Action]:
    return [["gateway", dice.choice([4, 6]), some_way(dice)]]


def change_flags(both: Both, dice: random.Random) -> list[Action]:
    service, _, _ = some_service(dice)
    requests = dice.choice(["off", "http1", "tls", REQUESTS.get(service, "off")])
    return [["flags", service, dice.random() < 0.8, dice.random() < 0.5, requests]]


def change_insert_limit(both: Both, dice: random.Random) -> list[Action]:
    return [["insert_limit", dice.choice([None, None, None, 0, 2, 10])]]


def change_seen_ticks(both: Both, dice: random.Random) -> list[Action]:
    return [["seen_ticks", dice.choice([0, 9])]]


def change_icmp_limit(both: Both, dice: random.Random) -> list[Action]:
    return [["icmp_limit", dice.choice([None, None, 0, 2])]]


CHANGES: list[Callable[[Both, random.Random], list[Action]]] = [
    *(change_state, change_state, change_state, change_slots, change_slots, change_limit, change_limit),
    *(change_limit, change_ring, change_hop, change_hop, change_gateway, change_flags, change_insert_limit),
    *(change_seen_ticks, change_icmp_limit),
]


# ---- sound frames -----------------------------------------------------------------------------


def envelope(dice: random.Random, source: str, destination: str) -> Envelope:
    """Mostly a plain one."""
    made = Envelope(
        source, destination, dice.choice([64] * 30 + [255, 2, 1, 0]), may_be_cut=dice.random() < 0.7
    )
    if dice.random() < 0.06:
        options = dice.choice([b"\x94\x04\0\0", b"\1" * 8, b"\1" * 40])
        made = Envelope(source, destination, 64, options, dice.choice([1, 2, 4, 5]))
    if dice.random() < 0.05:
        piece = Piece(dice.randrange(1, 5), 0, dice.random() < 0.9)
        made = Envelope(source, destination, 64, made.options, made.extensions % 4, piece)
    return made


def segment(dice: random.Random, head: Envelope, protocol: int, ports: tuple[int, int], flags: str,
            numbers: tuple[int, int]) -> bytes:  # fmt: skip
    """As in a conversation that never gets far: many bytes are sent again."""
    payload = dice.choice(BEGINNINGS) + dice.randbytes(dice.choice([0, 0, 0, 1, 2, 7, 30, 60]))
    if protocol == TCP:
        options = b"\1\1\x08\x0a" + dice.randbytes(8) if dice.random() < 0.3 else b""
        return forge.tcp(head, ports, flags, numbers, payload, options)
    carried = forge.udp(head, ports, payload)
    if dice.random() < 0.1:
        return carried[:6] + b"\0\0" + carried[8:]
    return carried


def zero_sum(head: Envelope, ports: tuple[int, int], there: Envelope, then: tuple[int, int]) -> bytes:
    """A datagram whose sum will be zero once it has the addresses and ports that it leaves with."""
    return forge.udp(head, ports, forge.udp(there, then, b"\0\0")[6:8])


def request(both: Both, dice: random.Random) -> bytes:
    """Of a flow that goes on, or of any."""
    flows, flow = both.steering.flows, None
    if flows and dice.random() < 0.5:
        (service, client, client_port), flow = dice.choice(list(flows.items()))
        vip, port, protocol = SERVICES[service]
        version = version_of(vip)
    else:
        vip, port, protocol = SERVICES[dice.choice(list(SERVICES))]
        version = version_of(vip)
        client = dice.choice(CLIENTS[version] if dice.random() < 0.93 else NO_CLIENTS[version])
        client_port = dice.choice(PORTS)
    if dice.random() < 0.03:
        port = dice.choice([0, port + 1])
    if dice.random() < 0.03:
        vip = dice.choice(OTHERS[version])
    acknowledges = flow.expects if flow and dice.random() < 0.85 else dice.choice([1, 1001, 70_000])
    head = envelope(dice, client, vip)
    numbers = dice.choice([1000, 1000, 1 << 30]) + dice.randrange(400), acknowledges
    flags = dice.choice(GOES_ON if flow else STARTS)
    if flow and protocol == UDP and dice.random() < 0.1:
        to = both.steering.endpoints[flow.endpoint[0]]
        carried = zero_sum(head, (client_port, port), Envelope(client, to.address), (client_port, to.port))
    else:
        carried = segment(dice, head, protocol, (client_port, port), flags, numbers)
    return forge.frame(head, protocol, carried)


def some_flow(both: Both, dice: random.Random) -> tuple[int, tuple[str, int], reference.Endpoint]:
    """Service, client and endpoint of a flow; now and then of none."""
    flows = both.steering.flows
    if flows and dice.random() < 0.95:
        (service, *client), flow = dice.choice(list(flows.items()))
        return service, (client[0], client[1]), both.steering.endpoints[flow.endpoint[0]]
    service = dice.choice(list(SERVICES))
    version = version_of(SERVICES[service][0])
    client = dice.choice(CLIENTS[version] + NO_CLIENTS[version]), dice.choice(PORTS)
    return service, client, both.steering.endpoints[service * 20 + dice.randrange(LIVE)]


def answer(both: Both, dice: random.Random) -> bytes:
    service, (client, client_port), endpoint = some_flow(both, dice)
    if dice.random() < 0.1:
        endpoint = both.steering.endpoints[service * 20 + dice.randrange(LIVE)]
    protocol, port = endpoint.protocol, endpoint.port + (dice.random() < 0.03)
    head = envelope(dice, endpoint.address, client)
    numbers = dice.choice(SEQUENCES), 1000 + dice.randrange(400)
    flow = both.steering.flows.get((service, client, client_port))
    opening = flow and "syn" in flow.marks and "syn-ack" not in flow.marks and dice.random() < 0.8
    flags = "SA" if opening else dice.choice(ANSWERS)
    carried = segment(dice, head, protocol, (port, client_port), flags, numbers)
    return forge.frame(head, protocol, carried)


def error(both: Both, dice: random.Random) -> bytes:
    """About an answer or about a request of a flow."""
    service, client, endpoint = some_flow(both, dice)
    vip, port, protocol = SERVICES[service]
    version = version_of(vip)
    about = ((vip, port), client) if dice.random() < 0.5 else (client, (endpoint.address, endpoint.port))
    inside = Envelope(about[0][0], about[1][0], dice.choice([64, 1]))
    if dice.random() < 0.15:
        inside = Envelope(about[0][0], about[1][0], 1, b"\1" * 8, 1, Piece(9, dice.choice([0, 3]), True))
    ports = about[0][1], about[1][1]
    carried = forge.tcp(inside, ports) if protocol == TCP else forge.udp(inside, ports, b"payload")
    quoted = forge.packet(inside, protocol, carried)
    whole = quoted
    if dice.random() < 0.5:
        quoted = quoted[: dice.randrange(len(quoted) + 1)]
    to = about[0][0] if dice.random() < 0.95 else dice.choice(CLIENTS[version])
    source = dice.choice([*ROUTERS[version], about[1][0]])
    head = envelope(dice, source, to)
    kind = dice.choice(ERRORS[version]) if dice.random() < 0.95 else dice.randrange(256)
    carried = forge.icmp(head, kind, dice.randrange(5), dice.randbytes(4) + quoted)
    padding = whole[len(quoted) :] if dice.random() < 0.3 else b""
    return forge.frame(head, ICMPV6 if version == 6 else ICMP, carried) + padding


def echo(both: Both, dice: random.Random) -> bytes:
    version = dice.choice([4, 6])
    source = dice.choice(CLIENTS[version] * 3 + NO_CLIENTS[version])
    head = envelope(dice, source, dice.choice(VIPS[version] * 3 + OTHERS[version]))
    kind = dice.choice([8, 8, 0, 13] if version == 4 else [128, 128, 129, 135])
    carried = forge.icmp(head, kind, 0, dice.randbytes(dice.choice([4, 4, 5, 60])))
    return forge.frame(head, ICMPV6 if version == 6 else ICMP, carried)


def later_fragment(both: Both, dice: random.Random) -> bytes:
    firsts = list(both.access.firsts)
    if firsts and dice.random() < 0.8:
        source, destination, identity, protocol = dice.choice(firsts)
    else:
        version = dice.choice([4, 6])
        source, destination = dice.choice(CLIENTS[version]), dice.choice(VIPS[version] + OTHERS[version])
        identity, protocol = dice.randrange(1, 5), dice.choice([TCP, UDP, ICMP])
    ttl = dice.choice([64] * 10 + [1])
    piece = Piece(identity, dice.randrange(1, 0x1FFF), dice.random() < 0.5)
    head = Envelope(source, destination, ttl, may_be_cut=dice.random() < 0.9, piece=piece)
    return forge.frame(head, protocol or UDP, dice.randbytes(dice.choice([1, 8, 16, 80])))


def other(both: Both, dice: random.Random) -> bytes:
    """Of other protocols."""
    version = dice.choice([4, 6])
    if dice.random() < 0.3:
        kind = dice.choice([b"\x08\x06", b"\x88\xcc", b"\x88\x47"])
        return forge.MACS + kind + dice.randbytes(dice.randrange(60))
    head = envelope(dice, dice.choice(CLIENTS[version]), dice.choice(VIPS[version] + OTHERS[version]))
    if dice.random() < 0.2:
        head = Envelope("::ffff:192.0.2.7", "2001:db8:1::4")
    return forge.frame(head, dice.choice([47, 50, 132, 2, 43, 44, 0]), dice.randbytes(dice.randrange(30)))


FRAMES: list[Callable[[Both, random.Random], bytes]] = [request, answer, error, echo, later_fragment, other]
WEIGHTS = (50, 30, 10, 3, 5, 2)


# ---- spoiled ----------------------------------------------------------------------------------


def tagged(raw: bytearray, dice: random.Random) -> None:
    q, ad = b"\x81\0", b"\x88\xa8"
    priority = dice.choice([0, 0x6000])
    tags = dice.choice(
        [
            [(q, VLAN)],
            [(q, VLAN)],
            [(q, 0)],
            [(ad, OUTER), (q, INNER)],
            [(ad, OUTER), (q, INNER)],
            [(q, 7)],
            [(ad, OUTER)],
            [(q, 0), (q, VLAN)],
            [(ad, OUTER), (q, INNER), (q, INNER)],
        ]
    )
    raw[12:12] = b"".join(kind + (vid | priority).to_bytes(2, "big") for kind, vid in tags)


def padded(raw: bytearray, dice: random.Random) -> None:
    raw += dice.randbytes(dice.randrange(1, 24))


def cut(raw: bytearray, dice: random.Random) -> None:
    del raw[dice.randrange(14, len(raw) + 1) :]


def flipped(raw: bytearray, dice: random.Random) -> None:
    raw[dice.randrange(min(len(raw), 110))] ^= 1 << dice.randrange(8)


def rewritten(raw: bytearray, dice: random.Random) -> None:
    """Two bytes of a header become something that is often special."""
    at = dice.randrange(12, max(13, min(len(raw), 90)))
    raw[at : at + 2] = dice.choice([b"\0\0", b"\xff\xff", b"\0\1", dice.randbytes(2)])[: len(raw) - at]


def shortened(raw: bytearray, dice: random.Random) -> None:
    """The network header says that there is less, or more, than there is."""
    at = 16 if raw[12:14] == forge.KINDS[4] else 18
    if len(raw) >= at + 2:
        size = int.from_bytes(raw[at : at + 2], "big") + dice.choice([-40, -20, -8, -4, -1, 1, 4])
        raw[at : at + 2] = (size & 0xFFFF).to_bytes(2, "big")


def to_many(raw: bytearray, dice: random.Random) -> None:
    raw[0] |= 1


SPOILERS: list[Callable[[bytearray, random.Random], None]] = [
    *(tagged, tagged, tagged, padded, padded, cut, flipped, flipped, flipped),
    *(rewritten, rewritten, shortened, shortened, to_many),
]


def spoiled(sound: bytes, dice: random.Random) -> bytes:
    """Two of three stay as they are."""
    raw = bytearray(sound)
    if dice.random() < 0.33:
        for spoil in dice.sample(SPOILERS, dice.choice([1, 1, 2])):
            spoil(raw, dice)
    return bytes(raw)
