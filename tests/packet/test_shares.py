# SPDX-License-Identifier: Apache-2.0
"""Each member's share of new flows is within one point of what was asked for."""

from __future__ import annotations

from ipaddress import IPv4Address

import numpy as np
import numpy.typing as npt
import pytest

from controlplane.adapters import flow_table, layout, libbpf, slot_table, steering
from tests import reference
from tests.packet.rig import KEY, TCP_NUMBER, Rig, tcp

U64 = npt.NDArray[np.uint64]
VIP, PORT = "198.51.100.10", 80
POINT = 0.01
SPILLS = (0.01, 0.1, 0.5, 0.9, 1.0)
WEIGHTS = {
    **{f"{n} alike": {f"shadow-{i}": 1.0 for i in range(n)} for n in range(1, 9)},
    "unequal": {"shadow-0": 0.5, "shadow-1": 0.3, "shadow-2": 0.15, "shadow-3": 0.05},
}
PORTS = np.arange(1024, 65536, dtype=np.uint64)
KEYS = [KEY, *((int(a), int(b)) for a, b in np.random.default_rng(7).integers(0, 2**64, (7, 2), np.uint64))]
Key = tuple[int, int]


def mix(values: U64) -> U64:
    """tests/reference.py's, over arrays."""
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        values = (values ^ values >> np.uint64(33)) * np.uint64(factor)
    return values ^ values >> np.uint64(33)


def picks(key: Key, clients: U64, ports: U64) -> U64:
    mapped = np.uint64(0xFFFF << 32)
    words = np.stack([np.zeros_like(clients), clients | mapped], axis=1)
    vip = np.array([[0, int(IPv4Address(VIP)) | 0xFFFF << 32]], np.uint64)
    service = (np.uint64(PORT), np.uint64(TCP_NUMBER))
    hashes = flow_table.flow_hash(np.array(key, np.uint64), words, vip, ports, *service)
    return mix(hashes ^ np.uint64(0xD6E8FEB86659FD93))


def sequential(key: Key) -> U64:
    """Every port of one address, in turn."""
    return picks(key, np.full(len(PORTS), int(IPv4Address("192.0.2.7")), np.uint64), PORTS)


def scattered(key: Key, flows: int) -> U64:
    random = np.random.default_rng(key[0] % 2**32)
    clients = random.integers(0, 2**32, flows, np.uint64)
    return picks(key, clients, random.integers(1024, 2**16, flows, np.uint64))


def neighbouring(key: Key) -> U64:
    """Every client of a /16, in turn, of whose flows no port counts: ``affinity: source``."""
    clients = np.arange(1 << 16, dtype=np.uint64) + np.uint64(int(IPv4Address("10.7.0.0")))
    return picks(key, clients, np.zeros(len(clients), np.uint64))


def given(pick: U64, spill: float, weights: dict[str, float]) -> dict[str, int]:
    """Flows of each shadow, and of the live one under "live"."""
    names = slot_table.place(weights)
    spilled = pick & np.uint64(0xFFFFFFFF) < steering.spill_bits(spill)
    if steering.spill_bits(spill) == layout.SPILL_ALL:
        spilled[:] = True
    slots = mix(pick[spilled] ^ np.uint64(0xA0761D6478BD642F)) % np.uint64(layout.SHADOW_SLOTS)
    per_slot = np.bincount(slots.astype(np.intp), minlength=layout.SHADOW_SLOTS)
    counts = {name: int(per_slot[[named == name for named in names]].sum()) for name in weights}
    return {"live": int((~spilled).sum()), **counts}


def wanted(spill: float, weights: dict[str, float]) -> dict[str, float]:
    total = sum(weights.values())
    return {"live": 1 - spill, **{name: spill * weight / total for name, weight in weights.items()}}


def furthest(counts: dict[str, int], spill: float, weights: dict[str, float]) -> float:
    total = sum(counts.values())
    return max(abs(counts[name] / total - share) for name, share in wanted(spill, weights).items())


def test_the_arrays_say_what_the_reference_says() -> None:
    for port, pick in zip(PORTS[:500].tolist(), sequential(KEY)[:500].tolist(), strict=True):
        value = reference.flow_hash(KEY, "192.0.2.7", VIP, port, PORT, TCP_NUMBER)
        assert pick == reference.pick_hash(value)
        weights = WEIGHTS["3 alike"]
        slot = slot_table.place(weights)[reference.shadow_slot(pick)]
        expected = slot if reference.spill_bits(pick) < steering.spill_bits(0.5) else "live"
        assert given(np.array([pick], np.uint64), 0.5, weights)[str(expected)] == 1


@pytest.mark.parametrize("weights", WEIGHTS.values(), ids=WEIGHTS.keys())
@pytest.mark.parametrize("spill", SPILLS, ids=lambda spill: f"spill {spill:.0%}")
def test_within_a_point_whatever_the_key(spill: float, weights: dict[str, float]) -> None:
    for key in KEYS:
        for flows, pick in {
            "sequential ports of one address": sequential(key),
            "scattered": scattered(key, 65_536),
            "clients whose flows go alike": neighbouring(key),
        }.items():
            assert furthest(given(pick, spill, weights), spill, weights) < POINT, (flows, KEYS.index(key))


@pytest.mark.parametrize("spill", SPILLS, ids=lambda spill: f"spill {spill:.0%}")
def test_within_a_point_for_each_live_endpoint_of_a_ring(spill: float) -> None:
    """Ring, spill and slot take different bits, so no member's flows are special."""
    pick, weights, members = scattered(KEY, 1 << 20), WEIGHTS["3 alike"], 5
    chosen = (pick >> np.uint64(32)) * np.uint64(members) >> np.uint64(32)
    for member in range(members):
        own = pick[chosen == member]
        assert abs(len(own) / len(pick) - 1 / members) < POINT
        assert furthest(given(own, spill, weights), spill, weights) < POINT


def test_slots_by_the_rings_bits_would_be_noticed() -> None:
    """Were the slot of a flow a function of its spill bits, low spill would reach few shadows."""
    pick, weights = sequential(KEY), WEIGHTS["8 alike"]
    spilled = pick & np.uint64(0xFFFFFFFF) < steering.spill_bits(0.1)
    slots = (pick[spilled] & np.uint64(0xFFFFFFFF)) * np.uint64(layout.SHADOW_SLOTS) >> np.uint64(32)
    names = slot_table.place(weights)
    counts = {name: sum(names[slot] == name for slot in slots.tolist()) for name in weights}
    assert furthest({"live": int((~spilled).sum()), **counts}, 0.1, weights) > POINT


@pytest.mark.parametrize(
    ("spill", "weights"),
    [(0.1, "8 alike"), (0.5, "unequal"), (0.9, "3 alike"), (1.0, "5 alike")],
    ids=lambda part: part if isinstance(part, str) else f"spill {part:.0%}",
)
@pytest.mark.parametrize("affinity", [False, True], ids=["by flow", "by client"])
def test_the_program_gives_each_member_exactly_these_flows(
    rig: Rig, spill: float, weights: str, affinity: bool
) -> None:
    shares = WEIGHTS[weights]
    rig.service(1, VIP, PORT, affinity=affinity)
    rig.ring(1, [rig.endpoint(1, 1, "203.0.113.1", 8080)] * 7)
    indices = {name: 2 + i for i, name in enumerate(shares)}
    references = {
        name: rig.endpoint(index, 1, f"203.0.113.{index}", 8080, parent=1) for name, index in indices.items()
    }
    rig.slots[1] = [references[str(name)] for name in slot_table.place(shares)]
    rig.endpoints[1:2]["spill"] = steering.spill_bits(spill)
    pick = neighbouring(KEY) if affinity else sequential(KEY)
    frame = bytearray(bytes(tcp("10.7.0.0" if affinity else "192.0.2.7", 0, VIP, PORT, "S")))
    for number in range(len(pick)) if affinity else PORTS.tolist():
        if affinity:  # the last half of the client's address; the port is whatever
            frame[28:30], frame[34:36] = number.to_bytes(2, "big"), (number * 7 % 65_536).to_bytes(2, "big")
        else:
            frame[34:36] = number.to_bytes(2, "big")
        libbpf.prog_test_run(rig.compiled.program_fd, bytes(frame))
    counted = {name: rig.count(index, "flows") for name, index in {"live": 1, **indices}.items()}
    assert counted == given(pick, spill, shares)
    assert rig.counts(1, "offered", "spilled") == {
        "offered": len(pick),
        "spilled": len(pick) - counted["live"],
    }
    assert furthest(counted, spill, shares) < POINT
