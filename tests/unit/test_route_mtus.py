# SPDX-License-Identifier: Apache-2.0
"""Which prefixes the program has to know of, for the MTUs of routes."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from hypothesis import given
from hypothesis import strategies as st

from controlplane.adapters import layout, netlink, route_mtus

MAIN, DEFAULT = 254, 253


def route(network: str, mtu: int | None = None, table: int = MAIN) -> netlink.Route:
    return netlink.Route(ip_network(network), netlink.UNICAST, table, 0, 1, None, mtu)


def told(*routes: netlink.Route) -> dict[str, int]:
    return {str(network): mtu for network, mtu in route_mtus.by_prefix(routes).items()}


def test_without_any_there_is_nothing_to_know() -> None:
    assert told(route("10.0.0.0/8"), route("0.0.0.0/0"), route("::/0")) == {}


def test_only_routes_within_one_that_has_one_are_told_of() -> None:
    assert told(
        route("10.1.2.0/24"), route("10.1.0.0/16", 1400), route("10.0.0.0/8"), route("10.1.2.3/32", 1300)
    ) == {"10.1.0.0/16": 1400, "10.1.2.3/32": 1300, "10.1.2.0/24": 0}


def test_of_two_with_one_prefix_the_first_counts() -> None:
    assert told(route("10.0.0.0/8"), route("10.0.0.0/8", 1400, DEFAULT)) == {}
    assert told(route("10.0.0.0/8", 1400), route("10.0.0.0/8", None, DEFAULT)) == {"10.0.0.0/8": 1400}


def test_ipv6_s_default_route_is_none_of_ipv4_s() -> None:
    assert told(route("::/0", 1400), route("2001:db8::/32")) == {
        "::/0": 1400,
        "2001:db8::/32": 0,
        "0.0.0.0/0": 0,
    }
    assert told(route("::/0", 1400), route("0.0.0.0/0", 1300))["0.0.0.0/0"] == 1300


def test_more_than_have_room_are_cut_from_the_end_those_with_one_stay() -> None:
    many = [route(f"10.{n >> 8}.{n & 255}.0/24") for n in range(layout.ROUTE_MTUS + 10)]
    found = told(*many, route("0.0.0.0/0", 1492))
    assert len(found) == layout.ROUTE_MTUS
    assert found["0.0.0.0/0"] == 1492
    many = [route(f"2001:{n:x}::/32") for n in range(layout.ROUTE_MTUS)]
    assert told(*many, route("::/0", 1492))["0.0.0.0/0"] == 0


NETWORKS = st.builds(
    lambda bits, length: ip_network((bits >> (32 - length) << (32 - length) if length else 0, length)),
    st.integers(0, 15).map(lambda top: top << 28 | 0x0ABCDEF),
    st.integers(0, 6),
)
ROUTES = st.lists(st.tuples(NETWORKS, st.sampled_from([None, None, 1300, 1400])), max_size=8)


@given(ROUTES, st.integers(0, 63).map(lambda top: ip_address(top << 26)))
def test_the_longest_prefix_has_the_mtu_of_the_route_that_the_kernel_chooses(routes, address) -> None:
    chosen = sorted(
        (
            netlink.Route(network, netlink.UNICAST, MAIN, at, 1, None, mtu)
            for at, (network, mtu) in enumerate(routes)
        ),
        key=lambda one: (-one.network.prefixlen, one.metric),
    )
    wanted = next((one.mtu or 0 for one in chosen if address in one.network), 0)
    prefixes = route_mtus.by_prefix(chosen)
    matching = [network for network in prefixes if address in network]
    longest = max(matching, key=lambda network: network.prefixlen, default=None)
    assert (prefixes[longest] if longest else 0) == wanted
