# SPDX-License-Identifier: Apache-2.0
"""Requests as the access point tells them, against what the clients beside it saw."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from controlplane.lab.records import Record
from tests.netns.steered import Steered, assert_unharmed, eventually, steered

RATE = 150.0
MEAN_S, SPREAD = 0.06, 0.7
"""Log-normal: half of the answers take under 47 ms, one in a hundred 240 ms and more."""


def configured(site: Steered, sample: int) -> dict[str, Any]:
    root = site.configuration()
    root["services"]["web"] |= {"requests": "http1", "request_sample": sample}
    return root


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Steered]:
    with steered(tmp_path_factory.mktemp("requests"), start=False) as made:
        made.lab.endpoint("host1", name="web-1", service_time_s=MEAN_S, spread=SPREAD, concurrency=200)
        made.configure(configured(made, 1))
        made.start()
        yield made


def lines(site: Steered, what: str) -> list[dict[str, Any]]:
    """Of ``penumbra maps``, about web-1."""
    rows = map(json.loads, site.asked("maps", what, "--json").splitlines())
    return [row for row in rows if row.get("endpoint") == "web-1"]


def counts(site: Steered) -> dict[str, int]:
    (row,) = lines(site, "counters")
    return {name: row[name] for name in ("requests", "answered", "aborted", "response_count")}


def first_bytes_ms(seen: list[Record]) -> np.ndarray:
    return np.array([one.first_byte_s for one in seen if one.first_byte_s is not None]) * 1000


@pytest.mark.alone
@pytest.mark.slow
def test_times_are_what_clients_beside_the_access_point_measure(site: Steered) -> None:
    traffic = site.traffic(RATE)
    traffic.flows(2000, 60)
    steps = site.status()["steps"]
    status = site.await_tick()["services"][0]["groups"][0]["requests"]
    assert site.status()["steps"] == steps, "what is installed is not what is wanted"
    seen = traffic.stop()
    assert_unharmed(seen)
    eventually(lambda: counts(site)["answered"] >= len(seen), 5)
    assert counts(site) == {
        "requests": len(seen),
        "answered": len(seen),
        "aborted": 0,
        "response_count": len(seen),
    }
    (row,) = lines(site, "endpoints")
    p50, p99 = np.percentile(first_bytes_ms(seen), (50, 99))
    print(
        f"p50 {row['response_p50_ms']:.2f} of {p50:.2f} ms, p99 {row['response_p99_ms']:.2f} of {p99:.2f} ms"
    )
    assert p99 > 3 * p50, "there was no spread to speak of"
    assert row["response_p50_ms"] == pytest.approx(p50, rel=0.05)
    assert row["response_p99_ms"] == pytest.approx(p99, rel=0.10)
    assert status["per_s"] == pytest.approx(RATE, rel=0.5)
    assert status["p50_ms"] == pytest.approx(p50, rel=0.2)
    assert status["in_flight"] <= 60
    eventually(lambda: site.group()["requests"]["in_flight"] == 0, 5)
    text = site.metrics()
    assert f'penumbra_endpoint_answered_total{{endpoint="web-1",service="web"}} {len(seen)}.0' in text
    assert 'penumbra_endpoint_response_seconds{endpoint="web-1",quantile="0.99",service="web"}' in text
    assert "in_flight" in site.asked("status")


def test_another_sample_is_taken_from_the_next_request_on_and_no_flow_is_harmed(site: Steered) -> None:
    traffic = site.traffic(RATE)
    traffic.flows(100)
    site.configure(configured(site, 16))
    site.asked("reload")
    site.await_tick()
    before = counts(site)
    traffic.flows(1000, 40)
    after = counts(site)
    assert_unharmed(traffic.stop())
    started = after["requests"] - before["requests"]
    assert started >= 1000 - 60
    timed = after["response_count"] - before["response_count"]
    assert timed / started == pytest.approx(1 / 16, rel=0.5), "four standard deviations"


def test_clients_that_leave_abort_what_they_asked(site: Steered) -> None:
    before = counts(site)
    vip, port = str(site.lab.topology.vip), site.lab.topology.vip_port
    asking = [site.lab.connect("clients", vip, port) for _ in range(5)]
    for one in asking:
        one.sendall(b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n"[:-2])
    eventually(lambda: counts(site)["requests"] == before["requests"] + 5, 5)
    eventually(lambda: site.group()["requests"]["in_flight"] == 5, 5)
    for one in asking:
        one.close()
    eventually(lambda: counts(site)["aborted"] == before["aborted"] + 5, 5)
    eventually(lambda: site.group()["requests"]["in_flight"] == 0, 5)
    assert counts(site)["answered"] == before["answered"]
