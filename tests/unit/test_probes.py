# SPDX-License-Identifier: Apache-2.0
"""Probes tell who answers, who refuses, who is slow and who answers wrongly: on real sockets of loopback."""

import http.server
import socket
import threading
import time
from dataclasses import replace

import pytest

from controlplane import model
from controlplane.adapters.probes import NetworkProber

HTTP = model.Probe(model.ProbeKind.HTTP, "/healthz", interval_s=0.05, timeout_s=0.04)
TCP = model.Probe(model.ProbeKind.TCP, interval_s=0.05, timeout_s=0.04)


class Handler(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self):
        self.send_response(self.status if self.path == "/healthz" else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def web():
    handler = type("Handler", (Handler,), {})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def silent():
    """Accepts connections (the kernel does) and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def prober():
    prober = NetworkProber()
    yield prober
    prober.close()


def refused_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def first(prober, member, wanted=lambda _: True):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        for health in prober.results():
            if health.member == member and wanted(health):
                return health
        time.sleep(0.01)
    raise AssertionError(f"no such answer for {member} within 10 s")


def test_a_get_that_answers_is_healthy(web, prober):
    prober.watch({"a": ("127.0.0.1", web.server_port, HTTP)})
    health = first(prober, "a", lambda health: health.ok)
    assert 0 < health.latency_s < 1


def test_a_get_with_an_error_status_is_not(web, prober):
    web.RequestHandlerClass.status = 503
    prober.watch({"a": ("127.0.0.1", web.server_port, HTTP)})
    health = first(prober, "a", lambda health: "answered" in health.reason)
    assert not health.ok
    assert health.reason == "GET /healthz answered 503"


def test_a_connect_is_enough_for_tcp_but_not_for_http(silent, prober):
    prober.watch({"tcp": ("127.0.0.1", silent, TCP), "http": ("127.0.0.1", silent, HTTP)})
    assert first(prober, "tcp").ok
    assert first(prober, "http").reason == "no answer within 0.04 s"


def test_a_refused_connection_says_so(prober):
    prober.watch({"a": ("127.0.0.1", refused_port(), TCP)})
    health = first(prober, "a")
    assert not health.ok
    assert "refused" in health.reason.lower()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (b"SSH-2.0-OpenSSH_9\r\n", "answered no HTTP: Bad status line: b'SSH-2.0-OpenSSH_9'"),
        (b"HTTP/1.1 200 OK\r\nX\r\n\r\n", "answered no HTTP: Invalid header token: b'X'"),
        (b"", "closed the connection without an answer"),
    ],
)
def test_what_is_no_http_is_told_in_one_line(prober, answer, reason):
    def answers():
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(4096)
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=answers, daemon=True).start()
        port = listener.getsockname()[1]
        prober.watch({"a": ("127.0.0.1", port, replace(HTTP, timeout_s=5.0))})
        assert first(prober, "a").reason == reason
        listener.shutdown(socket.SHUT_RDWR)


def test_as_many_answers_as_flip_a_members_health_wake_whoever_waits(web):
    woken = threading.Event()
    prober = NetworkProber(woken.set)
    try:
        prober.watch({"a": ("127.0.0.1", web.server_port, HTTP)})
        assert woken.wait(10)
        assert len(prober.results()) >= HTTP.rise
        woken.clear()
        web.RequestHandlerClass.status = 500
        assert woken.wait(10)
        assert sum(not health.ok for health in prober.results()) >= HTTP.fall
    finally:
        prober.close()


def test_what_is_no_longer_watched_is_no_longer_probed(web, prober):
    prober.watch({"a": ("127.0.0.1", web.server_port, HTTP), "b": ("127.0.0.1", web.server_port, HTTP)})
    first(prober, "a")
    prober.watch({"b": ("127.0.0.1", web.server_port, HTTP)})
    first(prober, "b")
    prober.results()
    for _ in range(5):
        first(prober, "b")
    assert all(health.member == "b" for health in prober.results())
