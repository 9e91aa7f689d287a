# SPDX-License-Identifier: Apache-2.0
"""Which slices of the address space are near: none that a network has a part in may be missing."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from controlplane.adapters import gateways, layout
from controlplane.addresses import MAPPED

V4 = st.tuples(st.integers(0, 2**32 - 1), st.integers(1, 32)).map(lambda n: IPv4Network(n, strict=False))
V6 = (
    st.tuples(st.integers(0, 2**128 - 1), st.integers(17, 128))
    .map(lambda n: IPv6Network(n, strict=False))
    .filter(
        lambda network: not network.subnet_of(MAPPED)
    )  # netlink.routing() and the configuration have none
)


def slices(network: IPv4Network | IPv6Network) -> set[int]:
    """One by one, as bpf/hash.h has them."""
    shift = network.max_prefixlen - (16 if network.version == 4 else 32)
    first = int(network.network_address) >> shift
    last = int(network.broadcast_address) >> shift
    found = range(first, last + 1)
    return set(found) if network.version == 4 else {(n * 0x9E3779B1 & 0xFFFFFFFF) >> 16 for n in found}


def marked(networks: list[IPv4Network | IPv6Network], version: int) -> set[int]:
    bits = gateways._bits(gateways._prefixes(networks), version)
    return set(np.flatnonzero(np.unpackbits(bits.view(np.uint8), bitorder="little")).tolist())


@given(st.lists(st.one_of(V4, V6), max_size=4))
@example([IPv6Network("::fffe:0:0/95")])
def test_exactly_the_slices_of_the_networks_of_that_version_are_marked(
    networks: list[IPv4Network | IPv6Network],
) -> None:
    for version in (4, 6):
        own = [network for network in networks if network.version == version]
        assert marked(networks, version) == set().union(*map(slices, own))


@pytest.mark.parametrize("network", ["2000::/15", "::/0"])
def test_of_a_prefix_of_too_many_slices_all_are_marked(network: str) -> None:
    assert len(marked([ip_network(network)], 6)) == 64 * layout.NEAR_WORDS
    assert marked([ip_network(network)], 4) == set()
