# SPDX-License-Identifier: Apache-2.0
"""Requests as the access point tells them, against what the clients beside it saw."""

from __future__ import annotations

import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from controlplane.lab.records import Record
from tests.netns.steered import Steered, assert_unharmed, eventually, steered

RATE = 150.0
MEAN_S, SPREAD = 0.06, 0.7
"""Log-normal: half of the answers take under 47 ms, one in a hundred 240 ms and more."""


def configured(site: Steered, sample: int, requests: str = "http1") -> dict[str, Any]:
    root = site.configuration()
    root["services"]["web"] |= {"requests": requests, "request_sample": sample}
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


TLS_S, KEPT = 0.08, 3
"""An answer takes so long; requests on each connection."""


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Steered]:
    folder = tmp_path_factory.mktemp("tls")
    both = folder / "certificate.pem"
    options = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-subj", "/CN=lab"]
    made = ["openssl", "req", "-x509", *options, "-keyout", str(both), "-out", str(folder / "public.pem")]
    subprocess.run(made, check=True, capture_output=True)
    both.write_text(both.read_text() + (folder / "public.pem").read_text())
    with steered(folder, start=False) as site:
        root = configured(site, 1, "tls")
        root["services"]["web"]["probe"] = {"kind": "tcp", "interval": "300ms", "timeout": "250ms"}
        at = root["services"]["web"]["endpoints"]["web-1"]
        listens = [str(at["address"]), str(at["port"]), str(both), str(TLS_S)]
        script = str(Path(__file__).with_name("tls_endpoint.py"))
        site.lab.popen("host1", [sys.executable, script, *listens], label="tls endpoint")
        site.configure(root)
        site.start()
        eventually(lambda: site.group()["up"])
        yield site


def converse(site: Steered, version: ssl.TLSVersion, connections: int) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.minimum_version = context.maximum_version = version
    vip, port = str(site.lab.topology.vip), site.lab.topology.vip_port
    for _ in range(connections):
        plain = site.lab.connect("clients", vip, port, 5)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with context.wrap_socket(plain) as talking:
            for _ in range(KEPT):
                talking.sendall(b"GET / HTTP/1.1\r\nHost: lab\r\n\r\n")
                left = 2000
                while left > 0:
                    left -= len(talking.recv(4096))
            talking.unwrap().close()  # says so first


@pytest.mark.parametrize(
    ("version", "timed"),
    [(ssl.TLSVersion.TLSv1_2, KEPT), (ssl.TLSVersion.TLSv1_3, KEPT - 1)],
    ids=["all of TLS 1.2 are timed", "all but the first of TLS 1.3 are timed"],
)
def test_requests_over_tls_are_counted_whatever_else_is_sent(
    secured: Steered, version: ssl.TLSVersion, timed: int
) -> None:
    """Handshakes, session tickets and alerts are none."""
    before = counts(secured)
    converse(secured, version, 6)
    after = counts(secured)
    assert {name: after[name] - before[name] for name in after} == {
        "requests": 6 * KEPT,
        "answered": 6 * KEPT,
        "aborted": 0,
        "response_count": 6 * timed,
    }
    (row,) = lines(secured, "endpoints")
    print(version.name, row["response_p50_ms"], row["response_p99_ms"])
    assert TLS_S * 1000 * 0.94 <= row["response_p50_ms"] <= row["response_p99_ms"] < TLS_S * 1000 * 3
