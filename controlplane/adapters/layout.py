# SPDX-License-Identifier: Apache-2.0
"""bpf/structs.h and bpf/maps.h as numpy sees them: one dtype per struct, one row per map.

tests/packet/test_layout.py holds these equal to the C, field by field. Multi-byte fields are little
endian here as on the machine; those that are big endian in C (``__be16``, ``__be32``) are ``>u2`` and raw
bytes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, fields, replace
from ipaddress import IPv4Address, IPv4Network, IPv6Address

import numpy as np
import numpy.typing as npt

from controlplane import histogram
from controlplane.adapters.libbpf import MapType
from controlplane.addresses import Address, Network
from controlplane.model import LIMIT_WINDOW_S, Sizes

BUCKET_FLOWS = 4
RING_LINE_CELLS = 16
SHADOW_SLOTS = 128
TARGET_WAYS = 8
TAGS_MAX = 2
DESTINATION_BITS = 14
DESTINATION_WORDS = (1 << DESTINATION_BITS) // 64
NEAR_WORDS = 65536 // 64
HISTOGRAM_SUB = histogram.SUB
HISTOGRAM_BUCKETS = histogram.BUCKETS
REASON_SLOTS = 64
NAME_BYTES = 48
INTERFACE_ROWS = 256
INTERFACE_SHIFT = 24
OTHER_INTERFACES = 0
REDIRECT_SENT = 0
REDIRECT_REFUSED = 1
REDIRECT_PROGRAMS = 2
TICK_SHIFT = 28
TICK_S = (1 << TICK_SHIFT) / 1e9
REF_INDEX_BITS = 20
REF_INDEX_MASK = (1 << REF_INDEX_BITS) - 1
REF_GENERATION_MASK = 0xFFF
SPILL_ALL = 0xFFFFFFFF
WINDOW_NS = round(LIMIT_WINDOW_S * 1_000_000_000)
LIMIT_WINDOW = 32
DIRECT_OWN = 2
_MAPPED = bytes(10) + b"\xff\xff"
PORTS = 1024
FRAGMENTS = 16_384
"""Fragmented packets on their way at once."""
ROUTE_MTUS = 8_192
"""Routes that have an MTU of their own, or lie within such a one's prefix."""
EVENT_PAGES = 16
HASH_VERSION = 4
"""Of the formulas in bpf/hash.h, which says when to raise it."""

ENDPOINT_PRESENT = 1 << 0
ENDPOINT_DOWN = 1 << 1
ENDPOINT_DRAINING = 1 << 2
ENDPOINT_EVICTED_SHIFT = 8
ENDPOINT_EVICTED = 0xFF << ENDPOINT_EVICTED_SHIFT

SERVICE_PRESENT = 1 << 0
SERVICE_ON_DOWN_KEEP = 1 << 1
SERVICE_AFFINITY = 1 << 2
SERVICE_REQUESTS_HTTP1 = 1 << 3
SERVICE_REQUESTS_TLS = 1 << 4

FLOW_SYN = 1 << 0
FLOW_SYNACK = 1 << 1
FLOW_ESTABLISHED = 1 << 2
FLOW_FIN_CLIENT = 1 << 3
FLOW_FIN_ENDPOINT = 1 << 4
FLOW_RST = 1 << 5
FLOW_MIDSTREAM = 1 << 6
FLOW_REQUEST = 1 << 7

REASONS = (
    "forward_hop",
    "forward_fib",
    "forward_kernel",
    "forward_cut",
    "return_hop",
    "return_fib",
    "return_kernel",
    "return_cut",
    "reply_echo",
    "reply_ttl",
    "reply_mtu",
    "pass_other",
    "pass_direct",
    "pass_not_ip",
    "pass_vlan",
    "pass_icmp",
    "pass_fragment",
    "pass_ttl",
    "pass_mtu",
    "drop_vip_port",
    "drop_no_endpoint",
    "drop_broken",
    "drop_fragment",
    "drop_source",
    "drop_ttl",
    "drop_mtu",
    "drop_icmp_limit",
    "abort_impossible",
)
"""In the order of the C macro of this name; the index is the counter's place."""

SETTINGS = np.dtype(
    [
        ("layout", "<u8"),
        ("source", "<u8"),
        ("hash_key", "<u8", 2),
        ("bucket_mask", "<u4"),
        ("idle_opening_ticks", "<u4"),
        ("idle_established_ticks", "<u4"),
        ("idle_closing_ticks", "<u4"),
        ("idle_udp_ticks", "<u4"),
        ("event_ticks", "<u4"),
        ("own_sources", "<u8"),
        ("zero", "<u8"),
        ("seen_ticks", "<u4"),
        ("insert_limit", "<u4"),
        ("icmp_limit", "<u4"),
        ("interface_multiplier", "<u4"),
        ("frags", "<u4"),
        ("pad", "<u4"),
        ("destinations", "<u8", DESTINATION_WORDS),
    ]
)
TARGET = np.dtype([("address", "u1", 16), ("port", ">u2"), ("protocol", "u1"), ("pad", "u1")])
SERVICE = np.dtype(
    [
        ("vip", "u1", 16),
        ("port", ">u2"),
        ("protocol", "u1"),
        ("flags", "u1"),
        ("ring_base", "<u4"),
        ("ring_size", "<u4"),
        ("ring_active", "<u4"),
        ("request_shift", "<u4"),
        ("pad", "<u4", 7),
    ]
)
_HOP: list[tuple[str, str] | tuple[str, str, int]] = [
    ("hop_expires", "<u4"),
    ("hop_ifindex", "<u4"),
    ("hop_dst", "u1", 6),
    ("hop_src", "u1", 6),
    ("hop_vlan", ">u2"),
    ("hop_mtu", "<u2"),
]
ENDPOINT = np.dtype(
    [
        ("address", "u1", 16),
        ("port", ">u2"),
        ("protocol", "u1"),
        ("role", "u1"),
        ("service", "<u4"),
        ("state", "<u8"),
        ("spill", "<u4"),
        ("parent", "<u4"),
        *_HOP,
    ]
)
GATEWAY = np.dtype([*_HOP, ("pad", "<u4", 2)])
NEAR = np.dtype("<u8")
TARGET_BUCKET = np.dtype([("entry", "<u8", TARGET_WAYS)])
RING_LINE = np.dtype([("cell", "<u4", RING_LINE_CELLS)])
SHADOW_SLOT_TABLE = np.dtype([("slot", "<u4", SHADOW_SLOTS)])
LIMIT = np.dtype([("used", "<u8"), ("limit", "<u4"), ("pad", "<u4")])
FRAGMENT_KEY = np.dtype([("source", "u1", 16), ("destination", "u1", 16), ("id", ">u4"), ("protocol", "<u4")])
FRAGMENT = np.dtype([("ref", "<u4"), ("service", "<u4"), ("endpoint", "<u4"), ("tick", "<u4")])
FLOW = np.dtype([("id", "<u8"), ("life", "<u8")])
BUCKET = np.dtype([("flow", FLOW, BUCKET_FLOWS)])
FLOW_KEY = np.dtype([("client", "u1", 16), ("client_port", ">u2"), ("pad", "<u2"), ("service", "<u4")])
BUCKET_KEYS = np.dtype([("key", FLOW_KEY, BUCKET_FLOWS)])
TRAFFIC = np.dtype([("packets", "<u8"), ("bytes", "<u8")])
ENDPOINT_COUNTERS = np.dtype(
    [
        ("flows", "<u8"),
        ("offered", "<u8"),
        ("unremembered", "<u8"),
        ("midstream", "<u8"),
        ("completed", "<u8"),
        ("spilled", "<u8"),
        ("resets", "<u8"),
        ("fins", "<u8"),
        ("rtt_count", "<u8"),
        ("rtt_sum_us", "<u8"),
        ("limited", "<u8"),
        ("pad", "<u8"),
    ]
)
REQUEST_COUNTERS = np.dtype(
    [
        ("requests", "<u8"),
        ("answered", "<u8"),
        ("aborted", "<u8"),
        ("response_count", "<u8"),
        ("response_sum_us", "<u8"),
        ("pad", "<u8", 3),
    ]
)
BASELINE = np.dtype([("forwarded", TRAFFIC), ("returned", TRAFFIC), ("counted", ENDPOINT_COUNTERS)])
HISTOGRAM = np.dtype([("bucket", "<u4", HISTOGRAM_BUCKETS)])
INTERFACE = np.dtype([("ifindex", "<u4"), ("netns", "<u4")])
REDIRECTS = np.dtype(
    [
        ("sent", "<u8"),
        ("lost", "<u8"),
        ("refused", "<u8"),
        ("error", "<u4"),
        ("error_tick", "<u4"),
    ]
)
REASON_COUNTS = np.dtype([("count", "<u8", REASON_SLOTS)])
EVENT = np.dtype(
    [
        ("time_ns", "<u8"),
        ("kind", "<u4"),
        ("service", "<u4"),
        ("endpoint", "<u4"),
        ("chosen", "<u4"),
        ("client", "u1", 16),
        ("client_port", ">u2"),
        ("pad", "<u2"),
        ("pad2", "<u4"),
    ]
)
CPU = np.dtype(
    [
        ("jiffies", "<u8"),
        ("tick", "<u4"),
        ("insert_tick", "<u4"),
        ("inserted", "<u4"),
        ("icmp_tick", "<u4"),
        ("icmp_sent", "<u4"),
        ("flood_tick", "<u4"),
        ("flooded", "<u8"),
        ("floods", "<u8"),
        ("window", "<u4"),
        ("refused_mtu", "<u4"),
        ("pad", "<u4", 2),
    ]
)
EVENT_GATE = np.dtype([("tick", "<u4", 4)])
LABEL = np.dtype([("name", f"S{NAME_BYTES}"), ("weight", "<u4"), ("removed_tick", "<u4"), ("pad", "<u4", 2)])
PORT_KEY = np.dtype([("ifindex", "<u4"), ("vlan", ">u2", TAGS_MAX)])
PORT = np.dtype([("ifindex", "<u4"), ("vlan", ">u2", TAGS_MAX), ("protocol", ">u2", TAGS_MAX)])
PREFIX = np.dtype([("length", "<u4"), ("address", "u1", 16)])
INDEX = np.dtype("<u4")

STRUCTS = {
    "settings": SETTINGS,
    "target": TARGET,
    "target_bucket": TARGET_BUCKET,
    "service": SERVICE,
    "endpoint": ENDPOINT,
    "gateway": GATEWAY,
    "ring_line": RING_LINE,
    "shadow_slots": SHADOW_SLOT_TABLE,
    "limit": LIMIT,
    "fragment_key": FRAGMENT_KEY,
    "fragment": FRAGMENT,
    "flow": FLOW,
    "bucket": BUCKET,
    "flow_key": FLOW_KEY,
    "bucket_keys": BUCKET_KEYS,
    "traffic": TRAFFIC,
    "endpoint_counters": ENDPOINT_COUNTERS,
    "request_counters": REQUEST_COUNTERS,
    "baseline": BASELINE,
    "histogram": HISTOGRAM,
    "interface": INTERFACE,
    "reasons": REASON_COUNTS,
    "redirects": REDIRECTS,
    "event": EVENT,
    "cpu": CPU,
    "event_gate": EVENT_GATE,
    "label": LABEL,
    "prefix": PREFIX,
    "port_key": PORT_KEY,
    "port": PORT,
}
"""Name of the struct in C -> dtype."""


@dataclass(frozen=True, slots=True)
class MapLayout:
    kind: MapType
    key: np.dtype[np.void] | np.dtype[np.uint32]
    value: np.dtype[np.void] | np.dtype[np.uint32] | np.dtype[np.uint64]
    entries: int


def buckets(sizes: Sizes) -> int:
    return sizes.flows // BUCKET_FLOWS


def target_buckets(entries: int) -> int:
    """Buckets of a target table that is at most a quarter full: a power of two, at least 2."""
    return max(2, 1 << (4 * entries // TARGET_WAYS - 1).bit_length())


def source_bit(address: bytes) -> int:
    """``hash_source`` of bpf/hash.h as a mask; ``address`` is a mapped one."""
    return 1 << ((int.from_bytes(address[12:16], "little") * 0x9E3779B1 & 0xFFFFFFFF) >> 26)


def destination_bit(address: bytes, port: int) -> int:
    """``hash_destination`` of bpf/hash.h; ``address`` is a mapped one."""
    big_endian_port = port >> 8 | (port & 0xFF) << 8
    number = int.from_bytes(address[12:16], "little") ^ big_endian_port << 16
    return (number * 0x9E3779B1 & 0xFFFFFFFF) >> 32 - DESTINATION_BITS


def near_bits(first: npt.NDArray[np.uint64], version: int) -> npt.NDArray[np.uint64]:
    """``hash_near`` of bpf/hash.h. IPv4: of addresses' first 16 bits as numbers; IPv6: of their first 32."""
    if version == 4:
        return first
    mixed = first * np.uint64(0x9E3779B1) & np.uint64(0xFFFFFFFF)
    return mixed >> np.uint64(16)


def other_bucket(bucket: int, tag: int, mask: int) -> int:
    """``hash_other_bucket`` of bpf/hash.h."""
    return (bucket ^ ((tag * 0x9E3779B1 & 0xFFFFFFFF) >> 3 | 1)) & mask


def direct_prefixes(endpoints: int) -> int:
    """Entries of ``direct``: every endpoint's address, and as many of hosts and other networks as one may
    reasonably have."""
    return endpoints + 4096


def maps(sizes: Sizes, cpus: int) -> dict[str, MapLayout]:
    """Name of each map -> what it must be for these sizes; ``cpus`` as the kernel could have."""

    def array(value: np.dtype[np.void] | np.dtype[np.uint64], entries: int) -> MapLayout:
        return MapLayout(MapType.ARRAY, INDEX, value, entries)

    def indices(key: np.dtype[np.void] | np.dtype[np.uint32], entries: int) -> MapLayout:
        return MapLayout(MapType.HASH, key, INDEX, entries)

    return {
        "settings": array(SETTINGS, 1),
        "service_targets": array(TARGET_BUCKET, target_buckets(sizes.services)),
        "vips": indices(TARGET, sizes.services),
        "services": array(SERVICE, sizes.services),
        "endpoint_targets": array(TARGET_BUCKET, target_buckets(sizes.endpoints)),
        "endpoints": array(ENDPOINT, sizes.endpoints),
        "rings": array(RING_LINE, -(-sizes.ring_cells // RING_LINE_CELLS)),
        "shadow_table": array(SHADOW_SLOT_TABLE, sizes.endpoints),
        "limits": array(LIMIT, sizes.endpoints),
        "flows": array(BUCKET, buckets(sizes)),
        "flow_keys": array(BUCKET_KEYS, buckets(sizes)),
        "fragments": MapLayout(MapType.LRU_HASH, FRAGMENT_KEY, FRAGMENT, FRAGMENTS),
        "counters": array(ENDPOINT_COUNTERS, cpus * sizes.endpoints),
        "forwarded": array(TRAFFIC, cpus * sizes.endpoints),
        "returned": array(TRAFFIC, cpus * sizes.endpoints),
        "baselines": array(BASELINE, sizes.endpoints),
        "interfaces": array(INTERFACE, INTERFACE_ROWS),
        "reasons": array(REASON_COUNTS, cpus * INTERFACE_ROWS),
        "redirects": array(REDIRECTS, cpus * INTERFACE_ROWS),
        "refusals": MapLayout(MapType.PROG_ARRAY, INDEX, INDEX, 1),
        "redirect_programs": MapLayout(MapType.PROG_ARRAY, INDEX, INDEX, REDIRECT_PROGRAMS),
        "rtt": array(HISTOGRAM, sizes.endpoints),
        "direct": MapLayout(MapType.LPM_TRIE, PREFIX, INDEX, direct_prefixes(sizes.endpoints)),
        "route_mtus": MapLayout(MapType.LPM_TRIE, PREFIX, INDEX, ROUTE_MTUS),
        "gateways": array(GATEWAY, 2),
        "near": array(NEAR, 2 * NEAR_WORDS),
        "request_counters": array(REQUEST_COUNTERS, cpus * sizes.endpoints),
        "request_baselines": array(REQUEST_COUNTERS, sizes.endpoints),
        "response": array(HISTOGRAM, sizes.endpoints),
        "ports": MapLayout(MapType.HASH, INDEX, PORT, PORTS),
        "vlans": indices(PORT_KEY, PORTS),
        "cpus": array(CPU, cpus),
        "event_gates": array(EVENT_GATE, sizes.endpoints),
        "endpoint_labels": array(LABEL, sizes.endpoints),
        "service_labels": array(LABEL, sizes.services),
        "interface_labels": array(LABEL, INTERFACE_ROWS),
    }


_HASH_ELEMENT_BYTES = 48 + 16
"""Of ``struct htab_elem`` and its bucket (kernel/bpf/hashtab.c)."""
_TRIE_NODE_BYTES = 96
"""A ``struct lpm_trie_node`` with key and value, as it is allocated; a prefix has up to two."""


def memory_bytes(sizes: Sizes, cpus: int) -> dict[str, int]:
    """What maps of these sizes take of the kernel's memory at most, by what it grows with: the fields of
    ``Sizes``, ``cpus`` (counters of all endpoints, for each CPU), ``fixed``."""
    taken = dict.fromkeys((*(field.name for field in fields(sizes)), "cpus", "fixed"), 0)
    taken["fixed"] = EVENT_PAGES * 4096
    larger = {"cpus": maps(sizes, 2 * cpus)}
    larger |= {
        field.name: maps(replace(sizes, **{field.name: 2 * getattr(sizes, field.name)}), cpus)
        for field in fields(sizes)
    }
    for name, one in maps(sizes, cpus).items():
        kind = next((kind for kind, other in larger.items() if other[name].entries != one.entries), "fixed")
        taken[kind] += map_bytes(one)
    return taken


def map_bytes(one: MapLayout) -> int:
    """At most; values and keys are padded to 8 bytes."""
    value = -(-one.value.itemsize // 8) * 8
    if one.kind is MapType.ARRAY:
        return -(-one.entries * value // 4096) * 4096
    if one.kind is MapType.LPM_TRIE:
        return 2 * one.entries * _TRIE_NODE_BYTES
    return one.entries * (_HASH_ELEMENT_BYTES + -(-one.key.itemsize // 8) * 8 + value)


def names() -> list[str]:
    """Of all maps, as they are called in bpf/maps.h."""
    return [*maps(Sizes(), 1), "events"]


def layout_hash() -> int:
    """64 bits that differ when a struct, the order of reasons or the flow's hash does: what
    ``settings.layout`` must be."""
    structs = [(name, dtype.descr, dtype.itemsize) for name, dtype in STRUCTS.items()]
    text = repr((structs, REASONS, HASH_VERSION))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def mapped(address: Address) -> bytes:
    """16 bytes: IPv6 as it is, IPv4 mapped (RFC 4291 section 2.5.5.2)."""
    return _MAPPED + address.packed if isinstance(address, IPv4Address) else address.packed


def unmapped(packed: bytes) -> Address:
    """The address that 16 bytes stand for."""
    return IPv4Address(packed[12:]) if packed.startswith(_MAPPED) else IPv6Address(packed)


def prefix(network: Network) -> bytes:
    """A ``struct prefix``, the key of ``direct`` and ``route_mtus``."""
    bits = network.prefixlen + (96 if isinstance(network, IPv4Network) else 0)
    return bits.to_bytes(4, "little") + mapped(network.network_address)


def target(address: Address, port: int, protocol: int) -> bytes:
    """A ``struct target``; port and protocol 0 for the key of ``vips``."""
    return mapped(address) + port.to_bytes(2, "big") + bytes([protocol, 0])


def reference(index: int, generation: int) -> int:
    """Names an endpoint's index and the generation of that index."""
    return (generation & REF_GENERATION_MASK) << REF_INDEX_BITS | index


def ticks(seconds: float) -> int:
    """Seconds as ticks of 2**28 ns, rounded up."""
    return -int(-seconds * 1_000_000_000 // (1 << TICK_SHIFT))


def tick_at(now_s: float) -> int:
    """The tick of a CLOCK_MONOTONIC time."""
    return int(now_s * 1_000_000_000) >> TICK_SHIFT & 0xFFFFFFFF
