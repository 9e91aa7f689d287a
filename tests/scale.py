# SPDX-License-Identifier: Apache-2.0
"""As large as it gets: 512 services, 10 000 endpoints, and a flow cache that is filled without packets."""

from __future__ import annotations

import json
from dataclasses import fields
from ipaddress import IPv4Address, IPv6Address

import numpy as np

from controlplane import model
from controlplane.adapters import flow_table, layout, steering
from controlplane.adapters.maps import Maps
from controlplane.addresses import Address

SERVICES, ENDPOINTS, FLOWS = 512, 10_000, 1 << 22
LARGE, LARGE_ENDPOINTS, LARGE_RING = "large", 650, 65_537
"""One service is much larger than the others."""
RING = 2_039
SIZES = model.Sizes(SERVICES, ENDPOINTS + 240, FLOWS, 2 * (LARGE_RING + SERVICES * (RING + 16)))
V4_CLIENTS, V6_CLIENTS = 0xFFFF_0B00_0000, 0x2001_0DB8_00FE_0000
VIPS: tuple[Address, Address] = (IPv4Address("203.0.113.0"), IPv6Address("2001:db8:ffff::"))
MEMBERS: tuple[Address, Address] = (IPv4Address("10.128.0.0"), IPv6Address("2001:db8:1::"))


def config(instance: str, interfaces: tuple[str, ...] = ()) -> model.Config:
    """Every other service is IPv6's."""
    counts = [LARGE_ENDPOINTS, *np.bincount(np.arange(ENDPOINTS - LARGE_ENDPOINTS) % (SERVICES - 1)).tolist()]
    services, first = {}, 1
    for number, count in enumerate(counts):
        name = f"service-{number}" if number else LARGE
        services[name] = _service(name, number, range(first, first + count))
        first += count
    return model.Config(instance, interfaces, services, sizes=SIZES)


def _service(name: str, number: int, endpoints: range) -> model.Service:
    v6 = number % 2
    return model.Service(
        name,
        VIPS[v6] + number,
        443,
        model.Protocol.TCP,
        tuple(
            model.Endpoint(f"endpoint-{at}", name, MEMBERS[v6] + at, 8443, capacity=400.0) for at in endpoints
        ),
        ring_size=RING if number else LARGE_RING,
    )


def fill_flows(maps: Maps, count: int, tick: int, *, v6: bool) -> None:
    """The cache has ``count`` flows afterwards, where the program would put them: clients at random, to the
    endpoints of their services, last seen at some time in the last minute."""
    random = np.random.default_rng(20261125)
    members = steering.present_endpoints(maps)
    vips = maps.services["vip"][maps.endpoints["service"][members]]
    members = members[vips[:, :10].any(axis=1) == v6]
    more = count + count // 4
    index = random.choice(members, more)
    clients = np.empty((more, 2), np.uint64)
    clients[:, 0] = V6_CLIENTS + random.integers(0, 1 << 12, more) if v6 else 0
    clients[:, 1] = random.integers(1, 1 << 63, more) if v6 else V4_CLIENTS + random.permutation(more)
    ports = random.integers(1024, 1 << 16, more)
    services = maps.endpoints["service"][index]
    hashes = flow_table.flow_hash(
        maps.settings["hash_key"],
        clients,
        maps.services["vip"].view(">u8").astype(np.uint64).reshape(-1, 2)[services],
        ports.astype(np.uint64),
        maps.services["port"][services].astype(np.uint64),
        maps.services["protocol"][services].astype(np.uint64),
    )
    # Four to a bucket: the n-th of a bucket's flows lies in its n-th way, further ones are left away.
    bucket = (hashes & np.uint64(len(maps.flows) // layout.BUCKET_FLOWS - 1)).astype(np.intp)
    order = np.argsort(bucket, kind="stable")
    sorted_ = bucket[order]
    way = np.arange(more) - np.searchsorted(sorted_, sorted_)
    kept = np.flatnonzero(way < layout.BUCKET_FLOWS)
    kept = random.permutation(kept)[:count]
    at, order = sorted_[kept] * layout.BUCKET_FLOWS + way[kept], order[kept]
    generations = maps.endpoints["state"][index] >> np.uint64(32) & np.uint64(layout.REF_GENERATION_MASK)
    references = generations << np.uint64(layout.REF_INDEX_BITS) | index.astype(np.uint64)
    life = (tick - random.integers(0, 200, more)).astype(np.uint64) << np.uint64(32) | np.uint64(
        layout.FLOW_ESTABLISHED << 24
    )
    maps.flows.view("<u8")[...] = 0
    keys = np.zeros(count, layout.FLOW_KEY)
    keys["client"] = clients[order].astype(">u8").view(np.uint8).reshape(-1, 16)
    keys["client_port"], keys["service"] = ports[order], services[order]
    maps.flow_keys[at] = keys
    maps.flows["life"][at] = life[order]
    maps.flows["id"][at] = (flow_table.tag(hashes) << np.uint64(32) | references)[order]


def written(interface: str, instance: str) -> str:
    """The same as a configuration file."""
    sizes = {field.name: getattr(SIZES, field.name) for field in fields(SIZES)}
    services = {
        name: {
            "vip": str(one.vip),
            "port": one.port,
            "ring_size": one.ring_size,
            "endpoints": {
                endpoint.name: {"address": str(endpoint.address), "port": endpoint.port}
                for endpoint in one.endpoints
            },
        }
        for name, one in config(instance).services.items()
    }
    return json.dumps({"instance": instance, "interfaces": [interface], "sizes": sizes, "services": services})
