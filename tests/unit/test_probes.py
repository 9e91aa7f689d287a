# SPDX-License-Identifier: Apache-2.0
"""Probes tell who answers, who refuses, who is slow and who answers wrongly: on real sockets of loopback."""

import http.server
import os
import signal
import socket
import ssl
import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import replace

import pytest

from controlplane import model
from controlplane.adapters import preflight, probes
from controlplane.adapters.probes import NetworkProber
from tests.world import config

HTTP = model.Probe(model.ProbeKind.HTTP, path="/healthz", interval_s=0.1, timeout_s=0.1)
TCP = model.Probe(interval_s=0.1, timeout_s=0.1)
NAME = "web.example"


class Handler(http.server.BaseHTTPRequestHandler):
    status = 200
    body = b""
    seen = ()

    def do_GET(self):
        type(self).seen = (self.headers["Host"], self.client_address[0])
        self.send_response(self.status if self.path == "/healthz" else 404)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    def log_message(self, *_):
        pass


def served(wrap=None):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (Handler,), {}))
    if wrap is not None:
        server.socket = wrap.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    return server


@pytest.fixture
def web():
    server = served()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def silent():
    """Accepts connections (the kernel does) and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener.getsockname()[1]


@pytest.fixture(scope="module")
def one_prober():
    prober = NetworkProber()
    yield prober
    prober.close()


@pytest.fixture
def prober(one_prober):
    yield one_prober
    one_prober.watch({})


def refused_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


def first(prober, member, wanted=lambda _: True):
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        for health in prober.results():
            if health.member == member and wanted(health):
                return health
        time.sleep(0.01)
    raise AssertionError(f"no such answer for {member} within 20 s; {dict(prober.troubles())}")


def told(prober, member, port, probe):
    """The first answer of a patient probe."""
    prober.watch({member: ("127.0.0.1", port, replace(probe, interval_s=5.0, timeout_s=5.0))})
    return first(prober, member)


def test_a_get_that_answers_is_healthy(web, prober):
    health = told(prober, "good", web.server_port, HTTP)
    assert health.ok
    assert 0 < health.latency_s < 5
    assert web.RequestHandlerClass.seen == (f"127.0.0.1:{web.server_port}", "127.0.0.1")


@pytest.mark.parametrize(
    ("status", "allowed", "ok"),
    [(503, ((200, 399),), False), (302, ((200, 399),), True), (503, ((200, 299), (503, 503)), True)],
)
def test_only_a_status_that_is_allowed_is_healthy(web, prober, status, allowed, ok):
    web.RequestHandlerClass.status = status
    health = told(prober, f"{status}-{ok}-{len(allowed)}", web.server_port, replace(HTTP, status=allowed))
    assert health.ok is ok
    assert health.reason == ("" if ok else "GET /healthz answered 503")


@pytest.mark.parametrize(
    ("body", "ok"),
    [
        (b'{"state": "ready"}', True),
        (b'{"state": "broken"}', False),
        (b"x" * 65_530 + b'state": "ready', False),
        (b"\xff" * 10 + b'"state": "ready"', True),
    ],
    ids=["found", "not found", "past 64 KiB", "after what is no UTF-8"],
)
def test_a_body_is_searched_in_its_first_64_kib(web, prober, body, ok):
    web.RequestHandlerClass.body = body
    probe = replace(HTTP, body=r'state": "(ready|degraded)')
    health = told(prober, f"body-{len(body)}-{ok}", web.server_port, probe)
    assert health.ok is ok
    assert ("without" in health.reason) is not ok


def test_a_host_is_named_and_a_source_is_whom_the_connection_comes_from(web, prober):
    assert told(prober, "named", web.server_port, replace(HTTP, host=NAME, source="127.0.0.2")).ok
    assert web.RequestHandlerClass.seen == (NAME, "127.0.0.2")


def test_tcp_checks_come_from_their_source_too_and_end_by_rst(prober):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        prober.watch({"tcp": ("127.0.0.1", listener.getsockname()[1], replace(TCP, source="127.0.0.3"))})
        connection, (address, _) = listener.accept()
        with connection, pytest.raises(ConnectionResetError):
            connection.recv(1)
        assert address == "127.0.0.3"
        assert first(prober, "tcp").ok


@pytest.mark.parametrize("probe", [TCP, HTTP], ids=["tcp", "http"])
def test_a_source_that_is_not_here_is_our_trouble_and_no_members_failure(prober, web, probe):
    here = {"good": ("127.0.0.1", web.server_port, HTTP)}
    prober.watch(here | {"a": ("127.0.0.1", web.server_port, replace(probe, source="192.0.2.7"))})
    deadline = time.monotonic() + 20
    while "a" not in prober.troubles() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert prober.troubles() == {"a": "source: 192.0.2.7: Cannot assign requested address"}
    first(prober, "good")
    assert "a" not in {health.member for health in prober.results()}
    prober.watch(here)
    assert prober.troubles() == {}


# ---- TLS ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pki(tmp_path_factory):
    """A certificate authority, another one, and a certificate for NAME that the first signed."""
    folder = tmp_path_factory.mktemp("pki")

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for name in ("ca", "other"):
        openssl("req", "-x509", *key, "-keyout", f"{name}.key", "-out", f"{name}.pem", "-days", "2",
                "-subj", f"/CN={name}")  # fmt: skip
    openssl("req", *key, "-keyout", "web.key", "-out", "web.csr", "-subj", f"/CN={NAME}")
    (folder / "san").write_text(f"subjectAltName=DNS:{NAME}\n")
    openssl("x509", "-req", "-in", "web.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-out", "web.pem", "-days", "2", "-extfile", "san")  # fmt: skip
    return folder


@pytest.fixture(scope="module")
def tls_web(pki):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pki / "web.pem", pki / "web.key")
    server = served(context)
    yield server
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize(
    ("host", "ca", "reason"),
    [
        (NAME, "ca.pem", ""),
        (NAME, "other.pem", "its certificate is not trusted: "),
        (NAME, "", "its certificate is not trusted: "),
        ("other.example", "ca.pem", "its certificate is not trusted: Hostname mismatch"),
        ("", "ca.pem", "its certificate is not trusted: IP address mismatch"),
    ],
    ids=["as it should be", "another authority", "the system's authorities", "another name", "its address"],
)
def test_a_certificate_must_be_for_the_host_and_signed_by_the_ca(pki, tls_web, prober, host, ca, reason):
    probe = replace(HTTP, kind=model.ProbeKind.HTTPS, host=host, ca=str(pki / ca) if ca else "")
    health = told(prober, f"tls-{host}-{ca}", tls_web.server_port, probe)
    assert health.ok is not reason
    assert health.reason.startswith(reason)
    assert bool(health.reason) is bool(reason)


def test_a_ca_that_is_gone_is_our_trouble(pki, tls_web, prober, tmp_path):
    probe = replace(HTTP, kind=model.ProbeKind.HTTPS, host=NAME, ca=str(tmp_path / "gone.pem"))
    prober.watch({"a": ("127.0.0.1", tls_web.server_port, probe)})
    deadline = time.monotonic() + 20
    while not prober.troubles() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "No such file" in prober.troubles()["a"]
    (tmp_path / "gone.pem").write_bytes((pki / "ca.pem").read_bytes())
    assert first(prober, "a", lambda health: health.ok)
    assert prober.troubles() == {}


def test_what_checks_can_not_be_made_with_here_is_named_with_its_path(pki, tmp_path):
    (tmp_path / "no.pem").write_text("nothing")
    settings = [
        {"ca": str(pki / "ca.pem"), "source": "127.0.0.2"},
        {"ca": str(tmp_path / "gone.pem")},
        {"ca": str(tmp_path / "no.pem")},
        {"source": "192.0.2.7"},
    ]
    service = config().services["web"]
    services = {f"s{n}": replace(service, probe=model.Probe(**one)) for n, one in enumerate(settings)}
    found = list(preflight.unusable_probes(replace(config(), services=services)))
    assert [one.split(": ", 1)[0] for one in found] == [
        "services.s1.probe.ca", "services.s2.probe.ca", "services.s3.probe.source"
    ]  # fmt: skip
    assert "No such file" in found[0]
    assert "no certificate" in found[1]
    assert "Cannot assign requested address" in found[2]


# ---- what goes wrong ------------------------------------------------------------------------------


def test_a_connect_is_enough_for_tcp_but_not_for_http(silent, prober):
    prober.watch({"tcp": ("127.0.0.1", silent, TCP), "http": ("127.0.0.1", silent, HTTP)})
    assert first(prober, "tcp", lambda health: health.ok)
    assert first(prober, "http").reason == "no answer within 0.1 s"


def test_a_tcp_connect_that_nobody_answers_takes_its_timeout(prober):
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        waiting = []
        for _ in range(4):  # its queue is full then: SYNs are dropped
            one = socket.socket()
            one.setblocking(False)
            with suppress(BlockingIOError):
                one.connect(listener.getsockname())
            waiting.append(one)
        prober.watch({"full": ("127.0.0.1", listener.getsockname()[1], TCP)})
        health = first(prober, "full", lambda health: not health.ok)
        assert health.reason == "no answer within 0.1 s"
        assert health.latency_s >= 0.1
        for one in waiting:
            one.close()


@pytest.mark.parametrize("probe", [TCP, HTTP], ids=["tcp", "http"])
def test_a_refused_connection_says_so(prober, probe):
    health = told(prober, f"refused-{probe.kind.value}", refused_port(), probe)
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
        assert told(prober, f"no-http-{len(answer)}", listener.getsockname()[1], HTTP).reason == reason
        listener.shutdown(socket.SHUT_RDWR)


# ---- when, and by whom ----------------------------------------------------------------------------


def test_as_many_answers_as_flip_a_members_health_wake_whoever_waits(web, monkeypatch):
    woken = threading.Event()
    monkeypatch.setattr(probes, "AGAIN_S", 0.05)
    prober = NetworkProber(woken.set)
    try:
        prober.watch({"a": ("127.0.0.1", web.server_port, HTTP)})
        assert woken.wait(20)
        assert len(prober.results()) >= HTTP.rise
        woken.clear()
        web.RequestHandlerClass.status = 500
        assert woken.wait(20)
        assert sum(not health.ok for health in prober.results()) >= HTTP.fall
        # The process that checks is killed: another one goes on with the same members.
        web.RequestHandlerClass.status = 200
        killed = prober.pid
        os.kill(killed, signal.SIGKILL)
        assert first(prober, "a", lambda health: health.ok)
        assert prober.pid != killed
        assert prober.troubles() == {}
        last = prober._process
    finally:
        prober.close()
    assert last.poll() is not None, "it outlives who started it"


@pytest.mark.parametrize("probe", [TCP, HTTP], ids=["tcp", "http"])
def test_who_is_to_be_checked_is_checked_at_once(web, prober, probe):
    slow = replace(probe, interval_s=30.0, timeout_s=5.0, rise=1)
    name = f"asked-{probe.kind.value}"
    prober.watch({name: ("127.0.0.1", web.server_port, slow)})
    first(prober, name)
    prober.check([name, "unknown"])
    assert first(prober, name).ok


def test_the_process_ends_with_who_started_it():
    code = (
        "from controlplane.adapters.probes import NetworkProber\n"
        "p = NetworkProber()\n"
        "print(p.pid, flush=True)\n"
        "import os; os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([os.sys.executable, "-c", code], capture_output=True, text=True, check=False)
    pid, deadline = int(done.stdout), time.monotonic() + 20
    while _runs(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not _runs(pid)


def _runs(pid):
    try:
        return open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[0] != "Z"  # noqa: PTH123
    except OSError:
        return False


def test_what_is_no_longer_watched_is_no_longer_probed(web, prober):
    prober.watch({"a": ("127.0.0.1", web.server_port, HTTP), "b": ("127.0.0.1", web.server_port, HTTP)})
    first(prober, "a")
    prober.watch({"b": ("127.0.0.1", web.server_port, HTTP)})
    first(prober, "b")
    prober.results()
    for _ in range(5):
        first(prober, "b")
    assert all(health.member == "b" for health in prober.results())
