# SPDX-License-Identifier: Apache-2.0
"""Endpoint servers have the capacity they claim; traffic is open-loop and honest about it."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from controlplane.lab.lab import Lab
from controlplane.lab.records import Follower, Record
from controlplane.lab.topology import Topology


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab(Topology(f"t{uuid.uuid4().hex[:8]}")) as made:
        yield made


def course(tmp_path: Path, points: Sequence[tuple[float, float]]) -> Path:
    path = tmp_path / "course.csv"
    path.write_text("timestamp,value\n" + "".join(f"{at},{level}\n" for at, level in points))
    return path


def start(lab: Lab, tmp_path: Path, port: int, *more: str) -> subprocess.Popen[bytes]:
    argv = [sys.executable, "-m", "controlplane.lab.traffic", "--target", f"10.201.1.2:{port}"]
    argv += ["--trace", str(tmp_path / "course.csv"), "--records", str(tmp_path / "records.jsonl")]
    return lab.popen("clients", [*argv, "--summary", str(tmp_path / "summary.json"), *more], label="traffic")


def records(tmp_path: Path) -> list[Record]:
    return Follower(tmp_path / "records.jsonl").read()


def test_a_server_serves_its_capacity_and_latency_from_the_intended_time_grows(
    lab: Lab, tmp_path: Path
) -> None:
    """80/s offered to 40/s: the n-th second's requests wait about n/2 s for their turn."""
    lab.endpoint("host1", name="busy", port=8081, concurrency=4)
    course(tmp_path, [(0, 80), (3, 80)])
    assert start(lab, tmp_path, 8081, "--arrivals", "even").wait(40) == 0, lab.tail("traffic")
    seen = records(tmp_path)
    assert len(seen) == 480
    assert not [one for one in seen if one.failed]
    ends_s = sorted(one.intended_s + one.latency_s for one in seen)
    assert 400 / (ends_s[439] - ends_s[39]) == pytest.approx(40, rel=0.1)
    first = [one.latency_s for one in seen if one.intended_s < 0.5]
    last = [one.latency_s for one in seen if one.intended_s > 5.5]
    assert min(last) > 4
    assert max(first) < 1
    assert max(one.late_s for one in seen) < 1


def test_a_server_below_its_capacity_answers_in_its_service_time(lab: Lab, tmp_path: Path) -> None:
    lab.endpoint("host1", name="calm", port=8082)
    course(tmp_path, [(0, 30), (2, 30)])
    assert start(lab, tmp_path, 8082).wait(30) == 0, lab.tail("traffic")
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["failed"] == 0
    assert 100 <= summary["p50_ms"] < 130
    assert summary["served_by"] == {"calm": summary["requests"]}


def test_requests_that_get_no_answer_in_time_fail(lab: Lab, tmp_path: Path) -> None:
    lab.endpoint("host1", name="slow", port=8083, service_time_s=5, concurrency=1)
    course(tmp_path, [(0, 10), (1, 10)])
    assert start(lab, tmp_path, 8083, "--timeout", "0.5", "--arrivals", "even").wait(20) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["errors"] == {"timeout": summary["requests"]}
    assert all(0.5 <= one.latency_s < 1 for one in records(tmp_path))


def test_a_full_queue_and_a_closed_port_fail_at_once(lab: Lab, tmp_path: Path) -> None:
    lab.endpoint("host1", name="narrow", port=8084, service_time_s=0.5, concurrency=1, queue_most=0)
    course(tmp_path, [(0, 20), (1, 20)])
    assert start(lab, tmp_path, 8084, "--arrivals", "even").wait(20) == 0
    assert set(json.loads((tmp_path / "summary.json").read_text())["errors"]) == {"status 503"}
    assert start(lab, tmp_path, 9, "--arrivals", "even").wait(20) == 0
    assert json.loads((tmp_path / "summary.json").read_text())["errors"] == {"ECONNREFUSED": 40}


@pytest.mark.slow
def test_half_of_the_requests_go_over_connections_that_live_5_to_30_s(lab: Lab, tmp_path: Path) -> None:
    lab.endpoint("host1", name="kept", port=8085, concurrency=16)
    course(tmp_path, [(0, 60), (12, 60)])
    child = start(lab, tmp_path, 8085)
    assert child.wait(60) == 0, lab.tail("traffic")
    seen = records(tmp_path)
    kept = [one for one in seen if one.persistent]
    assert not [one for one in seen if one.failed]
    assert len(kept) / len(seen) == pytest.approx(0.5, abs=0.04)
    spans: dict[int, list[float]] = {}
    for one in kept:
        spans.setdefault(one.connection, []).append(one.intended_s)
    lives_s = [max(at) - min(at) for at in spans.values() if min(at) < 5]
    assert max(lives_s) > 15
    assert max(lives_s) <= 30
    assert min(lives_s) >= 2, "a connection lives 5 s and carries about a request per second"
    alone = [one.connection for one in seen if not one.persistent]
    assert len(set(alone)) == len(alone)


def test_a_stopped_server_finishes_what_is_in_flight_and_kept_connections_move_on(
    lab: Lab, tmp_path: Path
) -> None:
    server = lab.endpoint("host1", name="leaving", port=8086, service_time_s=0.3)
    with lab.connect("clients", "10.201.1.2", 8086, timeout_s=5) as busy:
        busy.sendall(b"GET / HTTP/1.1\r\nHost: lab\r\n\r\nGET /healthz HTTP/1.1\r\nHost: lab\r\n\r\n")
        with lab.connect("clients", "10.201.1.2", 8086, timeout_s=5) as asking:
            asking.sendall(b"GET /stats HTTP/1.1\r\nHost: lab\r\n\r\n")
            stats = json.loads(asking.recv(4096).partition(b"\r\n\r\n")[2])
            assert stats["in_service"] == 1
            server.terminate()
            assert asking.recv(4096) == b""
        answer = busy.recv(4096)
        assert answer.startswith(b"HTTP/1.1 200 OK")
        assert b"Connection: close" in answer
    assert server.wait(5) == 0


def test_sigterm_ends_traffic_early_with_its_summary(lab: Lab, tmp_path: Path) -> None:
    lab.endpoint("host1", name="long", port=8087)
    course(tmp_path, [(0, 20), (300, 20)])
    child = start(lab, tmp_path, 8087)
    follower = Follower(tmp_path / "records.jsonl")
    seen: list[Record] = []
    for _ in range(200):
        seen += follower.read()
        if len(seen) >= 10:
            break
        signal.sigtimedwait((), 0.05)
    assert follower.start is not None
    assert follower.start.duration_s == 600
    child.terminate()
    assert child.wait(5) == 0
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert 10 <= summary["requests"] < 200
    assert summary["failed"] == 0
