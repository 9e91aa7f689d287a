# SPDX-License-Identifier: Apache-2.0
"""Which route leads to an address: the kernel's choice, found without looking at all of them."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controlplane.adapters import netlink
from controlplane.adapters.netlink import Hop, Route, Routing
from controlplane.ports import DataplaneError

TABLES = (255, 254, 253)
ADDRESSES = st.one_of(
    st.integers(0, 7).map(lambda n: IPv4Address("10.0.0.0") + (n << 29)),
    st.integers(0, 7).map(lambda n: IPv6Address("2001:db8::") + (n << 61)),
)
NETWORKS = st.one_of(
    st.tuples(ADDRESSES, st.integers(0, 8)).map(lambda one: ip_network((str(one[0]), one[1]), strict=False)),
    ADDRESSES.map(lambda address: ip_network(str(address))),
)
ROUTES = st.builds(
    lambda network, table, metric: Route(network, netlink.UNICAST, table, metric, 2, None, None),
    NETWORKS,
    st.sampled_from(TABLES),
    st.integers(0, 3),
)


@given(st.lists(ROUTES, max_size=30), ADDRESSES)
def test_it_is_the_first_that_leads_there_in_the_kernels_order(
    routes: list[Route], address: IPv4Address | IPv6Address
) -> None:
    routes.sort(key=lambda route: (TABLES.index(route.table), -route.network.prefixlen, route.metric))
    routing = Routing({}, tuple(routes), {}, policy_rules=False)
    leading = (r for r in routes if r.network.version == address.version and address in r.network)
    assert routing.route(address) == next(leading, None)


class FullKernel:
    """Takes one neighbour."""

    taken = 0

    def __enter__(self) -> FullKernel:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def neigh(self, *_: object, **__: object) -> Iterator[object]:
        if self.taken:
            raise OSError(errno.ENOBUFS, "No buffer space available")
        self.taken += 1
        return iter(())


def test_that_the_kernel_takes_no_more_neighbours_is_said_with_the_command(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(netlink, "_kernel", FullKernel)
    hops = [Hop(2, b"\x02" * 6, 2, IPv6Address("2001:db8::1") + n, None, False, 1500) for n in range(2)]
    netlink.manage_neighbours(hops[:1])
    with pytest.raises(DataplaneError, match=r"sysctl -w net\.ipv6\.neigh\.default\.gc_thresh3="):
        netlink.manage_neighbours(hops)
