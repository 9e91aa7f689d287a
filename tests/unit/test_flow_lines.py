# SPDX-License-Identifier: Apache-2.0
"""Flows written all at once are what ``json.dumps`` and ``ipaddress`` write one by one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, ip_address
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.adapters import flow_lines, layout
from controlplane.adapters.flow_table import STATES, Listed
from controlplane.addresses import MAPPED, Address

NAMES = ["", "web-1", 'sp"ace\\d', "größer"]
GROUP = st.one_of(st.sampled_from([0, 0, 0, 1, 0xA, 0xBC, 0xFFF, 0xFFFF]), st.integers(0, 0xFFFF))
V6 = st.lists(GROUP, min_size=8, max_size=8).map(
    lambda groups: IPv6Address(b"".join(group.to_bytes(2, "big") for group in groups))
)
ADDRESSES = st.one_of(V6.filter(lambda address: address not in MAPPED), st.ip_addresses(v=4))
FLOWS = st.tuples(
    ADDRESSES,
    st.integers(0, 0xFFFF),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 3),
    st.integers(0, 500),
)
Flow = tuple[Address, int, int, int, int, int]


def maps() -> SimpleNamespace:
    labels = np.zeros(len(NAMES), layout.LABEL)
    labels["name"] = [name.encode() for name in NAMES]
    sizes = SimpleNamespace(services=len(NAMES), endpoints=len(NAMES))
    return SimpleNamespace(sizes=sizes, service_labels=labels, endpoint_labels=labels)


def listed(flows: list[Flow]) -> Listed:
    addresses, *numbers = zip(*flows, strict=True)
    packed = b"".join(layout.mapped(address) for address in addresses)
    clients = np.frombuffer(packed, ">u8").astype(np.uint64).reshape(-1, 2)
    return Listed(clients, *(np.array(column, np.intp) for column in numbers))


def one_by_one(flows: list[Flow]) -> Iterator[str]:
    for address, port, service, endpoint, state, idle in flows:
        yield json.dumps(
            {
                "client": str(address),
                "client_port": port,
                "service": NAMES[service],
                "endpoint": NAMES[endpoint] if endpoint else "",
                "state": STATES[state],
                "idle_s": round(idle * layout.TICK_S, 3),
            }
        )


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(FLOWS, min_size=1, max_size=12), max_size=4))
def test_each_line_is_what_json_writes_of_the_flow(parts: list[list[Flow]]) -> None:
    text = b"".join(bytes(part) for part in flow_lines.json_lines(maps(), map(listed, parts)))
    assert text.decode("ascii").splitlines() == [line for part in parts for line in one_by_one(part)]


@pytest.mark.parametrize(
    "address",
    [
        "::",
        "::1",
        "1::",
        "0:1::",
        "1:0:0:2::3",
        "1:0:0:2:0:0:3:4",
        "1:2:3:4:5:6:7:0",
        "0:2:3:4:5:6:7:8",
        "1:0:2:3:4:5:6:7",
        "::1:2:3:4:5:6",
        "1:2:3:4:5:6::",
        "2001:db8::1:0:0:1",
        "0.0.0.0",
        "255.10.0.1",
    ],
)
def test_an_address_is_written_in_its_canonical_form(address: str) -> None:
    assert str(ip_address(address)) == next(written([ip_address(address)])), "RFC 5952 section 4.2"


def test_addresses_of_both_versions_may_stand_in_one_list() -> None:
    both = [IPv4Address("10.0.0.1"), IPv6Address("2001:db8::1"), IPv4Address("192.0.2.1")]
    assert list(written(both)) == [str(address) for address in both]


def written(addresses: list[Address]) -> Iterator[str]:
    for part in flow_lines.json_lines(maps(), [listed([(one, 1, 1, 1, 1, 1) for one in addresses])]):
        for line in bytes(part).splitlines():
            yield json.loads(line)["client"]
