# SPDX-License-Identifier: Apache-2.0
"""What members use is read from real sockets and files; who is late, wrong or without end blocks nobody."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import pytest

from controlplane.adapters import agent_check, node_exporter
from controlplane.adapters.load_source import BackgroundLoadSource
from controlplane.model import Admin, Operating, Usage, UsageKind, UsageSource

FAST = {"interval_s": 0.1, "timeout_s": 0.5}


CPU = {"idle": 1000.0, "iowait": 10.0, "user": 500.0, "system": 90.0, "steal": 0.0}
LATER = {"idle": 1006.0, "iowait": 10.5, "user": 502.5, "system": 91.0, "steal": 0.0}
"""Of 10 s, 3.5 were busy."""


def exposition(cpu: dict[str, float], received: float, available: float = 6e9) -> str:
    """As node_exporter tells it: help and types, more than is wanted, and devices that are nobody's."""
    busy = "".join(
        f'node_cpu_seconds_total{{cpu="{number}",mode="{mode}"}} {seconds}\n'
        for number in (0, 1)
        for mode, seconds in cpu.items()
    )
    return (
        "# HELP go_gc_duration_seconds A summary of the pause duration of garbage collection cycles.\n"
        "# TYPE go_gc_duration_seconds summary\n"
        'go_gc_duration_seconds{quantile="0"} 4.5e-05\n'
        "# HELP node_cpu_seconds_total Seconds the CPUs spent in each mode.\n"
        "# TYPE node_cpu_seconds_total counter\n"
        f"{busy}"
        'node_cpu_guest_seconds_total{cpu="0",mode="user"} 9e9\n'
        "# TYPE node_memory_MemAvailable_bytes gauge\n"
        f"node_memory_MemAvailable_bytes {available:e}\n"
        "node_memory_MemTotal_bytes 8e+09\n"
        f'node_network_receive_bytes_total{{device="eth0"}} {received:e}\n'
        'node_network_receive_bytes_total{device="eth1"} 5000\n'
        f'node_network_receive_bytes_total{{device="lo"}} {received * 1e6:e}\n'
        f'node_network_receive_bytes_total{{device="veth1a2b"}} {received * 1e6:e}\n'
        'node_network_transmit_bytes_total{device="eth0"} 7000\n'
        'node_network_speed_bytes{device="eth0"} 1.25e+09\n'
        'node_network_speed_bytes{device="eth1"} -125000\n'
        'node_network_speed_bytes{device="veth1a2b"} 1.25e+08\n'
    )


FIRST, SECOND = exposition(CPU, 1e6), exposition(LATER, 2.6e7)


@contextmanager
def serving(answer: Callable[[socket.socket], None]):
    """A server of ours at a port of loopback: each connection is given to ``answer`` and closed."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=handle, args=(peer,), daemon=True).start()

    def handle(peer: socket.socket) -> None:
        with closing(peer), suppress(OSError):  # who asked may have hung up
            answer(peer)

    threading.Thread(target=serve, daemon=True).start()
    yield listener.getsockname()[1]
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


@pytest.fixture
def reader():
    source = BackgroundLoadSource()
    yield source
    source.close()


def until(found: Callable[[], object], what: str):
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        if result := found():
            return result
        time.sleep(0.01)
    raise AssertionError(f"no {what} within 10 s")


def read(reader: BackgroundLoadSource, wanted: Callable[[Usage], bool] = lambda _: True) -> Usage:
    return until(lambda: next(filter(wanted, reader.usages()), None), "such reading")


def trouble(reader: BackgroundLoadSource, member: str = "a") -> str:
    return until(lambda: reader.troubles().get(member), "trouble")


def exporter(port: int, path: str = "/metrics", **times: float) -> UsageSource:
    return UsageSource(UsageKind.NODE_EXPORTER, f"http://127.0.0.1:{port}{path}", **{**FAST, **times})


def agent(port: int, send: str = "", **times: float) -> UsageSource:
    return UsageSource(UsageKind.AGENT_CHECK, "127.0.0.1", port, send, **{**FAST, **times})


def http(body: str | bytes, status: str = "200 OK", head: str = "") -> Callable[[socket.socket], None]:
    data = body.encode() if isinstance(body, str) else body

    def answer(peer: socket.socket) -> None:
        while not peer.recv(65536).endswith(b"\r\n\r\n"):
            pass
        peer.sendall(f"HTTP/1.1 {status}\r\n{head}Content-Length: {len(data)}\r\n\r\n".encode() + data)

    return answer


# ---- node_exporter ------------------------------------------------------------------------


def test_two_scrapes_of_a_host_tell_what_of_it_is_busy_to_all_its_members(reader):
    answers = iter([FIRST, SECOND])
    asked = []

    def answer(peer: socket.socket) -> None:
        asked.append(peer)
        http(next(answers, SECOND))(peer)

    with serving(answer) as port:
        reader.watch({"a": exporter(port), "b": exporter(port)})
        found: list[Usage] = []
        until(lambda: found.extend(reader.usages()) or len(found) >= 4, "two readings of both")
    first, of_b, second, _ = found[:4]
    assert (first.member, first.cpu, first.memory, first.network) == ("a", None, 0.25, None)
    size = {"of_cpus": 2.0, "of_memory_bytes": 8e9}
    assert of_b == Usage("b", first.at_s, memory=0.25, good_s=10.0, **size)
    assert second.cpu == pytest.approx(0.35)
    assert second.network == pytest.approx(2.5e7 / (second.at_s - first.at_s) / 1.25e9)
    assert len(asked) <= len(found) / 2 + 1, "one scrape for both"


def less(text: str, *without: str) -> str:
    return "".join(f"{line}\n" for line in text.splitlines() if not any(word in line for word in without))


REBOOTED = exposition(dict.fromkeys(CPU, 5.0), 1e3)
SCRAPES = {
    "as it should be": (FIRST, SECOND, (0.35, 0.25, 0.002)),
    "no CPU": (FIRST, less(SECOND, "node_cpu"), (None, 0.25, 0.002)),
    "no memory that is available": (FIRST, less(SECOND, "MemAvailable"), (0.35, None, 0.002)),
    "no speed": (FIRST, less(SECOND, "speed"), (0.35, 0.25, None)),
    "another device than before": (FIRST, SECOND.replace("eth0", "eth7"), (0.35, 0.25, None)),
    "a host that was started anew": (SECOND, REBOOTED, (None, 0.25, 0.0)),
    "a host that stands still": (FIRST, FIRST, (None, 0.25, 0.0)),
    "a CPU more": (less(FIRST, 'cpu="1"'), SECOND, (0.35, 0.25, 0.002)),
    "a CPU that is not a number": (FIRST, SECOND.replace("502.5", "NaN"), (None, 0.25, 0.002)),
    "memory that is not a number": (FIRST, SECOND.replace("6.000000e+09", "NaN"), (0.35, None, 0.002)),
    "more memory than there is": (FIRST, SECOND.replace("6.000000e+09", "9e9"), (0.35, 0.0, 0.002)),
    "a link that is full": (FIRST, SECOND.replace("2.600000e+07", "9e12"), (0.35, 0.25, 1.0)),
}


@pytest.mark.parametrize(("before", "after", "told"), SCRAPES.values(), ids=SCRAPES.keys())
def test_what_a_scrape_does_not_tell_is_not_known(before, after, told):
    lines = node_exporter.Lines()
    first, second = lines.scrape(before, 100.0), lines.scrape(after, 110.0)
    usage = node_exporter.usage(first, second, "a", 15.0)
    assert (usage.cpu, usage.memory, usage.network) == pytest.approx(told)


def test_lines_with_a_timestamp_and_labels_with_spaces_are_read_as_those_without():
    lines = node_exporter.Lines()
    line = 'node_cpu_seconds_total{cpu="0 a",mode="idle"} '
    found = [
        lines.scrape(line + value, 1.0).values
        for value in ("1 1700000000", "2 1700000001", "3", "4.5", "4e1")
    ]
    series = node_exporter.Series("node_cpu_seconds_total", "0 a", "idle")
    assert found == [{series: value} for value in (1.0, 2.0, 3.0, 4.5, 40.0)]


def test_a_scrape_of_long_ago_is_as_none():
    lines = node_exporter.Lines()
    first, second = lines.scrape(FIRST, 100.0), lines.scrape(SECOND, 116.0)
    assert node_exporter.usage(first, second, "a", 15.0).cpu is None


ODD_EXPORTERS = {
    "an error": (http("", "500 Internal Server Error"), "answered 500"),
    "a redirect, to itself": (http("", "302 Found", "Location: /metrics\r\n"), "answered 302"),
    "something else": (http("<html>It works!</html>"), "that is no node_exporter"),
    "nothing": (http(""), "that is no node_exporter"),
    "a metric cut in two": (http(FIRST + 'node_cpu_seconds_total{cpu="0",mo'), ""),
    "a CPU without a mode": (http('node_cpu_seconds_total{cpu="0"} 1\n'), "it does not tell mode"),
    "no text": (http(b"node_cpu_seconds_total\xff\xfe 1\n"), "utf-8"),
    "no HTTP": (lambda peer: peer.sendall(b"SSH-2.0-OpenSSH_9.2\r\n"), ""),
    "less than it says": (http(b"x" * 10, head="Content-Length: 99\r\n"), ""),
    "a reset": (lambda peer: peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0" * 2), ""),
}


@pytest.mark.parametrize(("answer", "why"), ODD_EXPORTERS.values(), ids=ODD_EXPORTERS.keys())
def test_an_exporter_that_answers_oddly_is_trouble_and_no_reading(reader, answer, why):
    with serving(answer) as port:
        reader.watch({"a": exporter(port)})
        said = trouble(reader)
    assert why in said
    assert len(said) <= 240
    assert reader.usages() == []


def endless(piece: bytes) -> Callable[[socket.socket], None]:
    def answer(peer: socket.socket) -> None:
        peer.recv(65536)
        peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999\r\n\r\n")
        while True:
            peer.sendall(piece)

    return answer


@pytest.mark.parametrize(
    "piece",
    [b"go_threads 8\n" * 5000, b'node_cpu_seconds_total{cpu="0",mode="idle"} 1\n' * 1000, b"x" * 65536],
    ids=["of lines", "of lines that are wanted", "of one line"],
)
def test_an_answer_without_end_is_cut(reader, piece):
    with serving(endless(piece)) as port:
        reader.watch({"a": exporter(port, interval_s=5.0, timeout_s=5.0)})
        assert "more than a host has to tell" in trouble(reader)


# ---- agent-check --------------------------------------------------------------------------

WORDS = {
    b"75%": {"weight": 0.75},
    b"0%": {"weight": 0.0},
    b"250%": {"weight": 1.0},
    b"drain": {"admin": Admin.DRAIN},
    b"maint": {"admin": Admin.MAINT},
    b"READY 50%": {"admin": Admin.READY, "weight": 0.5},
    b"up": {"operating": Operating.UP},
    b"down": {"operating": Operating.DOWN},
    b"down#disk full": {"operating": Operating.DOWN, "reason": "disk full"},
    b"down # disk \xff\x1b[1m": {"operating": Operating.DOWN, "reason": "disk \N{REPLACEMENT CHARACTER}?[1m"},
    b"stopped#by hand": {"operating": Operating.DOWN, "reason": "stopped: by hand"},
    b"fail": {"operating": Operating.DOWN, "reason": "fail"},
    b"up,ready\t10%, maxconn:30 ": {"operating": Operating.UP, "admin": Admin.READY, "weight": 0.1},
    b"75%,maxconn:30,maint,down": {"weight": 0.75, "admin": Admin.MAINT, "operating": Operating.DOWN},
    b"down up": {"operating": Operating.UP},
    b"up#fine": {"operating": Operating.UP},
}


@pytest.mark.parametrize(("line", "told"), WORDS.items())
def test_an_agents_words_are_haproxys(line, told):
    assert agent_check.parse(line, "a", 5.0, 15.0) == Usage("a", 5.0, good_s=15.0, **told)


BAD_WORDS = {
    b"": "there is no word in it",
    b" ,\t#down": "there is no word in it",
    b"drian": "'drian' is no word of an agent; allowed: ready, drain, maint, up, down, fail, stopped, 75%",
    b"drain please": "'please' is no word",
    b"75": "'75' is no word",
    b"75.5%": "no word",
    b"-5%": "no word",
    b"maxconn:": "no word",
    b"maxconn: 30": "no word",
    b"9999999999%": "no word",
    "½%".encode(): "not ASCII",
    b"\0\1\2": "no word",
    b"A" * 1000: "no word",
}


@pytest.mark.parametrize(("line", "why"), BAD_WORDS.items())
def test_half_a_sentence_of_an_agent_is_not_acted_on(line, why):
    with pytest.raises(ValueError, match=why) as refused:
        agent_check.parse(line, "a", 5.0, 15.0)
    assert len(str(refused.value)) <= 300
    assert str(refused.value).isprintable()


def reset_after(data: bytes) -> Callable[[socket.socket], None]:
    def answer(peer: socket.socket) -> None:
        peer.sendall(data)
        time.sleep(0.05)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")

    return answer


def in_pieces(peer: socket.socket) -> None:
    for piece in (b"dr", b"ai", b"n\r", b"\nup\n"):
        peer.sendall(piece)
        time.sleep(0.01)


def and_waits(data: bytes) -> Callable[[socket.socket], None]:
    def answer(peer: socket.socket) -> None:
        peer.sendall(data)
        peer.recv(1)

    return answer


AGENTS = {
    "a line": lambda peer: peer.sendall(b"drain\n"),
    "a line of CR and LF": lambda peer: peer.sendall(b"drain\r\n"),
    "no line's end": lambda peer: peer.sendall(b"drain"),
    "CR alone, and it waits": and_waits(b"drain\r"),
    "LF, and it waits": and_waits(b"drain\n"),
    "in pieces, and more lines": in_pieces,
    "no line's end and a reset": reset_after(b"drain"),
}


@pytest.mark.parametrize("answer", AGENTS.values(), ids=AGENTS.keys())
def test_an_agents_line_ends_as_it_may(reader, answer):
    with serving(answer) as port:
        reader.watch({"a": agent(port)})
        usage = read(reader)
    assert usage == Usage("a", usage.at_s, admin=Admin.DRAIN)


def test_an_agent_is_sent_what_it_waits_for(reader):
    def answer(peer: socket.socket) -> None:
        peer.sendall(b"40%\n" if peer.recv(100) == b"state web-1\n" else b"10%\n")

    with serving(answer) as port:
        reader.watch({"a": agent(port, "state web-1\n"), "b": agent(port, "x")})
        assert read(reader, lambda usage: usage.member == "a").weight == 0.4
        assert read(reader, lambda usage: usage.member == "b").weight == 0.1


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda peer: peer.sendall(b"A" * 100_000), "more than 1024 bytes without a line's end"),
        (lambda peer: peer.sendall(b"hello\n"), "answered 'hello': 'hello' is no word of an agent"),
        (lambda peer: None, "there is no word in it"),
        (reset_after(b""), "reset"),
    ],
    ids=["no end", "no word", "nothing", "a reset"],
)
def test_an_agent_that_answers_oddly_is_trouble_and_no_reading(reader, answer, why):
    with serving(answer) as port:
        reader.watch({"a": agent(port)})
        assert why in trouble(reader)
    assert reader.usages() == []


# ---- cgroups ------------------------------------------------------------------------------


def group(folder, usage_us: int, **files: str) -> None:
    files = {
        "cpu.stat": f"usage_usec {usage_us}\nuser_usec 1\nsystem_usec 2\nnr_periods 0\n",
        "cpu.max": "50000 100000",
        "memory.current": "600",
        "memory.max": "1000",
        "memory.stat": "anon 300\nfile 250\ninactive_file 200\nactive_file 50\n",
    } | {name.replace("_", ".", 1): text for name, text in files.items()}
    for name, text in files.items():
        (folder / "next").write_text(f"{text}\n")
        (folder / "next").replace(folder / name)


def cgroup(folder) -> UsageSource:
    return UsageSource(UsageKind.CGROUP, str(folder), **FAST)


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({}, 0.5),
        ({"cpu_max": "max 100000", "cpuset_cpus.effective": "0-2,5"}, 4),
        ({"cpu_max": "800000 100000", "cpuset_cpus.effective": "0"}, 1),
        ({"cpu_max": "max 100000"}, os.cpu_count()),
    ],
    ids=["a quota", "its CPUs", "fewer CPUs than its quota", "those of the host"],
)
def test_a_group_is_as_busy_as_what_it_may_use(reader, tmp_path, files, cpus):
    group(tmp_path, 1_000_000, **files)
    reader.watch({"a": cgroup(tmp_path)})
    found = [read(reader)]
    group(tmp_path, 1_005_000, **files)
    until(lambda: found.extend(reader.usages()) or found[-1].cpu, "reading after that")
    at = next(at for at, usage in enumerate(found) if usage.cpu)
    over_s = found[at].at_s - found[at - 1].at_s
    assert found[0].cpu is None
    assert found[at].cpu == pytest.approx(0.005 / over_s / cpus)
    assert (found[at].network, found[at].weight) == (None, None)


@pytest.mark.parametrize(
    ("files", "memory"),
    [
        ({}, 0.4),
        ({"memory_stat": "anon 1"}, 0.6),
        ({"memory_current": "100"}, 0.0),
        ({"memory_max": "300"}, 1.0),
        ({"memory_max": "0"}, 1.0),
    ],
    ids=["less what is idle", "nothing idle", "all idle", "over", "none allowed"],
)
def test_memory_is_what_could_not_be_given_back(reader, tmp_path, files, memory):
    group(tmp_path, 1, **files)
    reader.watch({"a": cgroup(tmp_path)})
    assert read(reader).memory == pytest.approx(memory)


def test_without_a_limit_memory_is_a_share_of_the_hosts(reader, tmp_path):
    pages = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    group(tmp_path, 1, memory_max="max", memory_current=str(pages // 4 + 200))
    reader.watch({"a": cgroup(tmp_path)})
    assert read(reader).memory == pytest.approx(0.25, abs=0.01)


def test_this_hosts_own_root_group_is_read_where_there_is_one(reader):
    """The kernel's own files, as far as a root has them."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    root = next((Path(at) for _, at, kind, *_ in mounts if kind == "cgroup2"), None)
    if root is None or "usage_usec" not in (root / "cpu.stat").read_text():
        pytest.skip("no cgroup v2 here")
    reader.watch({"a": cgroup(root)})
    assert 0.0 <= read(reader, lambda usage: usage.cpu is not None).cpu <= 1.0


def test_a_group_without_a_memory_controller_tells_of_no_memory(reader, tmp_path):
    group(tmp_path, 1)
    (tmp_path / "memory.current").unlink()
    reader.watch({"a": cgroup(tmp_path)})
    assert read(reader).memory is None


def test_a_group_that_was_made_anew_tells_of_no_cpu_once(reader, tmp_path):
    group(tmp_path, 10**12)
    reader.watch({"a": cgroup(tmp_path)})
    read(reader, lambda usage: usage.cpu == 0.0)
    group(tmp_path, 0)
    assert read(reader, lambda usage: usage.cpu != 0.0).cpu is None
    assert read(reader).cpu == 0.0


def test_a_group_that_is_not_there_or_holds_something_else_is_trouble(reader, tmp_path):
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd/cpu.stat").write_text("usage_usec many\n")
    (tmp_path / "pipe").mkdir()
    os.mkfifo(tmp_path / "pipe/cpu.stat")
    reader.watch({name: cgroup(tmp_path / name) for name in ("none", "odd", "pipe")})
    assert trouble(reader, "none") == f"{tmp_path}/none/cpu.stat: No such file or directory"
    assert "many" in trouble(reader, "odd")
    assert trouble(reader, "pipe") == "it does not tell usage_usec", "a pipe is not waited for"


# ---- in the background --------------------------------------------------------------------


def hang(peer: socket.socket) -> None:
    peer.recv(1_000_000)
    peer.recv(1_000_000)


def test_who_never_answers_holds_up_nobody_and_is_given_up(reader):
    with serving(hang) as silent, serving(lambda peer: peer.sendall(b"7%\n")) as port:
        reader.watch(
            {f"e{n}": exporter(silent, f"/{n}", timeout_s=0.1) for n in range(40)}
            | {f"s{n}": agent(silent, f"{n}", timeout_s=0.1) for n in range(40)}
            | {"a": agent(port)}
        )
        started = time.monotonic()
        for _ in range(5):
            read(reader, lambda usage: usage.member == "a")
        assert time.monotonic() - started < 7.0, "one after the other they took eight seconds each time"
        assert trouble(reader, "e7") == trouble(reader, "s7") == "no answer within 0.1 s"
        started = time.monotonic()
        reader.usages()
        reader.troubles()
        assert time.monotonic() - started < 0.1


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208 - counted, not looked at


def test_nothing_stays_open_of_those_that_hang_reset_or_talk_for_ever():
    odd = (hang, reset_after(b"up\nup"), endless(b"x" * 65536), lambda peer: peer.sendall(b"A" * 10**6))
    before = open_files()
    source = BackgroundLoadSource()
    with serving(odd[0]) as a, serving(odd[1]) as b, serving(odd[2]) as c, serving(odd[3]) as d:
        listening = open_files()
        targets = {f"{n}": ask(port) for n, port in enumerate((a, b, c, d)) for ask in (agent,)}
        targets |= {f"e{n}": exporter(port, timeout_s=0.1) for n, port in enumerate((a, b, c, d))}
        source.watch(targets)
        for name in ("0", "2", "3", "e0", "e1", "e2", "e3"):
            trouble(source, name)
        source.watch({})
        until(lambda: open_files() <= listening, "end of what was open")
        source.close()
    until(lambda: open_files() <= before, "end of all that was open")


def test_what_is_no_longer_watched_is_no_longer_read_and_no_trouble(reader):
    with serving(lambda peer: peer.sendall(b"7%\n")) as port, serving(lambda peer: None) as broken:
        reader.watch({"a": agent(port), "b": agent(broken)})
        read(reader)
        trouble(reader, "b")
        reader.watch({"a": agent(port, "again")})
        assert reader.troubles() == {}
        read(reader)
        reader.usages()
        assert {read(reader).member for _ in range(5)} == {"a"}


def test_who_works_again_is_no_trouble(reader):
    answers = iter([b"odd\n"])
    with serving(lambda peer: peer.sendall(next(answers, b"7%\n"))) as port:
        reader.watch({"a": agent(port)})
        trouble(reader)
        read(reader)
        assert reader.troubles() == {}


def test_all_are_read_within_the_first_second_whatever_the_interval(reader):
    with serving(lambda peer: peer.sendall(b"7%\n")) as port:
        started = time.monotonic()
        reader.watch({f"m{n}": agent(port, f"{n}", interval_s=600.0) for n in range(20)})
        seen: set[str] = set()
        until(lambda: seen.update(usage.member for usage in reader.usages()) or len(seen) == 20, "20")
        assert time.monotonic() - started < 5.0
