# SPDX-License-Identifier: Apache-2.0
"""Clients, services and endpoints that have IPv6 addresses only: the whole life of a service."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.netns.steered import DETECTED_S, Steered, assert_unharmed, eventually, passes, steered

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Steered]:
    with steered(tmp_path_factory.mktemp("six"), ip_version=6) as made:
        made.start()
        yield made


def reasons(site: Steered) -> dict[str, int]:
    """Reason -> packets."""
    rows = map(json.loads, site.asked("maps", "counters", "--json").splitlines())
    return {row["reason"]: row["packets"] for row in rows if "reason" in row}


def test_clients_are_answered_and_packets_leave_by_next_hops_and_routes_of_ipv6(site: Steered) -> None:
    traffic = site.traffic()
    traffic.flows(40)
    eventually(lambda: site.group()["up"] is True, 10, site.said)
    before = reasons(site)
    traffic.flows(100)
    assert {one.served_by for one in traffic.now()} == {"web-1"}
    flows = list(map(json.loads, site.asked("maps", "flows", "--json").splitlines()))
    assert_unharmed(traffic.stop())
    gained = Counter(reasons(site)) - Counter(before)
    assert gained["forward_hop"] > 200, gained
    assert gained["return_fib"] > 200, gained
    assert gained["forward_kernel"] + gained["return_kernel"] == 0, gained
    assert {row["client"] for row in flows} == {str(site.lab.topology.clients.address)}


def test_a_shadow_takes_a_share_and_carries_the_service_when_its_endpoint_dies(site: Steered) -> None:
    shadow = site.add_shadow()
    assert ":" in site.shadow()["address"]
    traffic = site.traffic()
    traffic.flows(100)
    served = Counter(one.served_by for one in traffic.now()[-60:])
    assert 10 <= served[shadow] <= 50, served
    assert site.live is not None
    site.live.kill()
    site.live.wait()
    passes(DETECTED_S)
    traffic.flows(10)
    before = len(traffic.now())
    traffic.flows(60)
    late = Counter(one.served_by if not one.failed else one.error for one in traffic.now()[before:])
    assert late == {shadow: sum(late.values())}
    site.start_endpoint()
    eventually(lambda: site.group()["up"] is True, 20, site.said)
    traffic.flows(40)
    traffic.stop()
    site.asked("shadow", "remove", shadow)
    eventually(lambda: not site.shadow(), 60, site.said)
    assert not site.shadow_processes()
