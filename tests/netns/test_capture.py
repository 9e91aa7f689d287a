# SPDX-License-Identifier: Apache-2.0
"""``penumbra capture``: real traffic read back from its file, and nothing of it left, however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.packet import Packet
from scapy.utils import PcapNgReader
from typer.testing import CliRunner

from controlplane.adapters import attach, libbpf, pins
from controlplane.adapters.bcc import PROGRAM
from controlplane.adapters.clock import MachineClock
from controlplane.adapters.dataplane import MapDataplane
from controlplane.adapters.maps import open_instance
from controlplane.cli import app
from controlplane.lab.topology import AP, CLIENTS
from tests.netns.nobody import NOBODY
from tests.netns.steered import PENUMBRA, Steered, assert_unharmed, eventually, steered

pytestmark = pytest.mark.slow

GUARD = b"controlplane.adapters.capture_guard"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Steered]:
    with steered(tmp_path_factory.mktemp("site")) as made:
        done = made.penumbra("load", made.config)
        assert done.returncode == 0, done.stderr
        eventually(lambda: ask(made) == 200, 20, "web-1 answers")
        yield made


def ask(site: Steered) -> int:
    """The status that a request of the client's gets; 0: none."""
    topology = site.lab.topology
    try:
        with site.lab.connect(CLIENTS, str(topology.vip), topology.vip_port) as connection:
            connection.sendall(b"GET / HTTP/1.0\r\nHost: web\r\n\r\n")
            return int(connection.recv(4096).split()[1])
    except OSError:
        return 0


class Running:
    """A capture at the access point, into a file; ``piped``: by its standard output."""

    def __init__(self, site: Steered, *arguments: str, piped: bool = False) -> None:
        self.path = site.folder / "capture.pcapng"
        argv = [PENUMBRA, "capture", "--instance", site.instance, *arguments]
        with self.path.open("wb") as out:
            argv += ["-w", "-" if piped else str(self.path)]
            self.process = subprocess.Popen(
                site.lab.argv(AP, argv), stdout=out, stderr=subprocess.PIPE, text=True
            )
        assert self.process.stderr is not None
        self.first = self.process.stderr.readline()
        assert "capturing at clients, host1, host2, host3" in self.first, self.first

    def end(self, number: signal.Signals | None = signal.SIGINT) -> str:
        """What it said at its end. None: it ends by itself."""
        if number is not None:
            self.process.send_signal(number)
        said = self.process.communicate(timeout=30)[1]
        assert self.process.returncode == 0, said
        return said

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate(timeout=30)

    def packets(self) -> list[Packet]:
        with PcapNgReader(str(self.path)) as file:
            return list(file)


def guards(site: Steered) -> list[int]:
    """Processes that are to put the steering program back."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if GUARD in command and site.instance.encode() in command:
            found.append(int(process.name))
    return found


def steers(site: Steered) -> bool:
    """Whether the pinned program does, everywhere."""
    program = libbpf.obj_get(pins.folder(site.instance) / PROGRAM, libbpf.Kind.PROGRAM)
    try:
        pinned = libbpf.prog_info(program).id
    finally:
        os.close(program)
    with site.lab.entered(AP):
        at = [libbpf.xdp_query(one.ifindex).program_id for one in attach.attached(site.instance)]
    return at == [pinned] * 4


def is_over(site: Steered) -> bool:
    """Nothing of a capture is left."""
    return steers(site) and not guards(site)


def steered_packets(site: Steered) -> int:
    dataplane = MapDataplane.open(site.instance, MachineClock())
    try:
        reasons = dataplane.reasons()
        return sum(n for name, n in reasons.items() if name.startswith(("forward_", "return_")))
    finally:
        dataplane.close()


def test_each_packet_is_there_as_it_came_and_as_it_left(site: Steered) -> None:
    assert is_over(site)
    running = Running(site)
    assert not steers(site), "another build steers for the time"
    before = steered_packets(site)
    for _ in range(3):
        assert ask(site) == 200
    eventually(lambda: running.path.stat().st_size > 60 * 100, 10, "it is written while it runs")
    said = running.end()
    count = steered_packets(site) - before
    assert f"penumbra: {count} packets in {2 * count} frames\n" in said
    assert "LOST" not in said
    assert is_over(site)

    packets = running.packets()
    assert len(packets) == 2 * count >= 30
    assert [one.time for one in packets] == sorted(one.time for one in packets)
    topology = site.lab.topology
    client, vip = str(topology.clients.address), (str(topology.vip), topology.vip_port)
    endpoint = (str(topology.hosts[0].address), 8080)
    for came, left in zip(packets[::2], packets[1::2], strict=True):
        forward = came[IP].src == client
        assert (came.sniffed_on, left.sniffed_on) == (
            ("clients in", "clients out") if forward else ("host1 in", "host1 out")
        )
        comment = b"to web-1 of web" if forward else b"from web-1 of web"
        for one in (came, left):
            assert comment in b"".join(one.comments)
            assert bytes(one) == bytes(with_sums(one)), "checksums as scapy computes them"
        assert left[IP].ttl == came[IP].ttl - 1
        ends = [((one[IP].src, one[TCP].sport), (one[IP].dst, one[TCP].dport)) for one in (came, left)]
        port = (client, came[TCP].sport if forward else came[TCP].dport)
        wanted = [(port, vip), (port, endpoint)] if forward else [(endpoint, port), (vip, port)]
        assert ends == wanted
        assert bytes(left[TCP].payload) == bytes(came[TCP].payload)


def with_sums(packet: Packet) -> Packet:
    computed = packet.copy()
    del computed[IP].chksum, computed[TCP].chksum
    return Ether(bytes(computed))


def test_filters_and_a_number_of_packets_into_a_pipe(site: Steered) -> None:
    client = f"{site.lab.topology.clients.address}/24"
    running = Running(
        site, "-c", "5", "--client", client, "--service", "web", "--endpoint", "web-1", piped=True
    )
    assert ask(site) == 200
    assert "5 packets in 10 frames" in running.end(None)
    assert len(running.packets()) == 10
    assert is_over(site)


def test_traffic_does_not_notice_how_captures_begin_and_end(site: Steered) -> None:
    """In order, by kill -9, by kill -9 of the guard, of both at once, and by a load."""
    traffic = site.traffic()
    Running(site).end(signal.SIGTERM)

    killed = Running(site)
    traffic.flows(10)
    killed.kill()
    eventually(lambda: is_over(site), 10, "the guard puts back")

    alone = Running(site)
    for guard in guards(site):
        os.kill(guard, signal.SIGKILL)
    assert "was killed" in alone.end(None)
    assert is_over(site)

    both = Running(site)
    for pid in (*guards(site), both.process.pid):
        os.kill(pid, signal.SIGKILL)
    both.kill()
    traffic.flows(10)
    assert not steers(site), "nobody was left to put back"
    assert site.penumbra("load", site.config).returncode == 0
    assert is_over(site)

    ended = Running(site)
    assert "another capture" in refused(site, "-w", "/dev/null")
    assert site.penumbra("load", site.config).returncode == 0
    assert "loaded anew" in ended.end(None)
    assert is_over(site)
    assert_unharmed(traffic.stop())


def refused(site: Steered, *arguments: str, node: str = AP, before: Sequence[str] = ()) -> str:
    """The line that it ends with."""
    argv = [*before, PENUMBRA, "capture", "--instance", site.instance, *arguments]
    done = subprocess.run(site.lab.argv(node, argv), capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    (line,) = done.stderr.splitlines()
    return line


def test_what_is_wrong_is_a_line_and_nothing_is_replaced(site: Steered) -> None:
    nothing = ("-w", "/dev/null")
    assert "there are: web" in refused(site, *nothing, "--service", "mail")
    assert "there are: web-1" in refused(site, *nothing, "--endpoint", "web-9")
    assert "No such file" in refused(site, "-w", "/nowhere/file")
    assert "sudo" in refused(site, *nothing, before=NOBODY)
    maps = open_instance(site.instance)
    maps.settings["source"] ^= np.uint64(1)
    try:
        assert "penumbra load CONFIG" in refused(site, *nothing)
    finally:
        maps.settings["source"] ^= np.uint64(1)
        maps.close()
    assert is_over(site)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [("-w /dev/null --client web", "ADDRESS/BITS"), ("", "--write"), ("-w x --snaplen 10", "96")],
)
def test_what_is_asked_wrongly_is_wrong_usage(arguments: str, said: str) -> None:
    shown = CliRunner().invoke(app, ["capture", *arguments.split()])
    assert shown.exit_code == 2
    assert said in shown.stderr
