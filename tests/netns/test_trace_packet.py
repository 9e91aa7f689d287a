# SPDX-License-Identifier: Apache-2.0
"""``penumbra trace-packet`` on a loaded instance: what it says comes to pass, and asking changes nothing."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether
from scapy.utils import wrpcap
from typer.testing import CliRunner

from controlplane.adapters import dry_run, frames, ingress
from controlplane.adapters.clock import MachineClock
from controlplane.adapters.dataplane import MapDataplane
from controlplane.adapters.explanation import Explanation, explain
from controlplane.adapters.maps import open_instance
from controlplane.cli import app, wiring
from controlplane.lab.topology import AP, CLIENTS
from tests.netns.nobody import NOBODY
from tests.netns.steered import PENUMBRA, Steered, steered

FIRST_PORT = 41_000
KNOCK = (
    *("/usr/bin/python3", "-c"),
    "import socket, sys\n"
    "for port in sys.argv[3:]:\n"
    "    with socket.socket() as knocks:\n"
    "        knocks.settimeout(3)\n"
    "        knocks.bind(('', int(port)))\n"
    "        knocks.connect_ex((sys.argv[1], int(sys.argv[2])))\n",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Steered]:
    """Loaded, with two live endpoints, of which one is there; no controller."""
    with steered(tmp_path_factory.mktemp("site")) as made:
        root = made.configuration()
        endpoints = root["services"]["web"]["endpoints"]
        endpoints["web-2"] = {**endpoints["web-1"], "port": endpoints["web-1"]["port"] + 1}
        made.configure(root)
        done = made.penumbra("load", made.config)
        assert done.returncode == 0, done.stderr
        yield made


def ends(site: Steered, port: int) -> tuple[str, ...]:
    topology = site.lab.topology
    return "--from", f"{topology.clients.address}:{port}", "--to", f"{topology.vip}:{topology.vip_port}"


def told(site: Steered, *questions: Sequence[object]) -> list[dict[str, Any]]:
    """Asked two at once."""
    with ThreadPoolExecutor(2) as pool:
        texts = pool.map(lambda one: site.asked("trace-packet", *one, "--json"), questions)
    return [json.loads(text) for text in texts]


def seen(site: Steered) -> tuple[dict[int, str], object, object, object]:
    dataplane = MapDataplane.open(site.instance, MachineClock())
    try:
        flows = {one.client_port: one.endpoint for one in dataplane.flows(10_000)}
        steered = {name: n for name, n in dataplane.reasons().items() if not name.startswith("pass_")}
        return flows, steered, dataplane.counters().packets.tolist(), dataplane.peek_events()
    finally:
        dataplane.close()


def test_new_flows_get_whom_it_said(site: Steered) -> None:
    """Those of real clients, which open them afterwards."""
    ports = range(FIRST_PORT, FIRST_PORT + 12)
    topology = site.lab.topology
    vip = (topology.vip, topology.vip_port)

    def asked(port: int, flags: str) -> Explanation:
        frame = frames.made("tcp", (topology.clients.address, port), vip, flags=flags)
        return explain(questioned.maps, questioned.run.ask(frame, arrives.ifindex))

    with site.lab.entered(AP):
        arrives = ingress.of_source(site.instance, topology.clients.address)
        questioned = dry_run.question(site.instance, wiring.bpf_dir())
        try:
            before = seen(site)
            said = {port: asked(port, "S") for port in ports}
            assert seen(site) == before
            assert {one.flow for one in said.values()} == {"new"}
            assert {one.endpoint for one in said.values()} == {"web-1", "web-2"}
            site.lab.run(CLIENTS, [*KNOCK, *map(str, (*vip, *ports))])
            flows = seen(site)[0]
            known = [asked(port, "A") for port in ports]
        finally:
            questioned.close()
    assert [flows.get(port) for port in ports] == [said[port].endpoint for port in ports]
    assert [(one.flow, one.endpoint) for one in known] == [("known", flows[port]) for port in ports]


def test_people_read_the_verdict_the_way_and_the_packet_as_it_leaves(site: Steered) -> None:
    """And that another version's program steers, if one does."""
    maps = open_instance(site.instance)
    maps.settings["source"] ^= np.uint64(1)
    try:
        done = site.penumbra("trace-packet", *ends(site, 42_000), "--instance", site.instance)
    finally:
        maps.settings["source"] ^= np.uint64(1)
        maps.close()
    assert done.returncode == 0, done.stderr
    assert "another version's program steers" in done.stderr
    first, *rest = done.stdout.splitlines()
    assert first.startswith(("redirect (forward_", "pass (forward_kernel)"))
    assert "endpoint: web-" in first
    said = (
        "in by clients: ",
        "  service web",
        "  ring cell ",
        "  spill 0",
        "  counts as a new",
        "leaves as: ",
    )
    for part in said:
        assert any(line.startswith(part) for line in rest), (part, rest)


def test_a_frame_that_is_no_ip_s_is_passed(site: Steered) -> None:
    text = site.asked("trace-packet", "--hex", "00" * 60, "--in", CLIENTS)
    assert "pass_not_ip" in text
    assert "IEEE 802.3, 60 bytes" in text


def test_a_frame_and_a_capture_file_are_asked_alike(site: Steered) -> None:
    topology = site.lab.topology
    packet = IP(src=str(topology.clients.address), dst=str(topology.vip)) / TCP(
        sport=43_000, dport=topology.vip_port
    )
    frame = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:02") / packet
    path = site.folder / "packets.pcap"
    wrpcap(str(path), [Ether() / IP(src="192.0.2.1", dst="192.0.2.2"), frame])
    by_fields, by_hex, by_file = told(
        site,
        ends(site, 43_000),
        ("--hex", bytes(frame).hex()),
        ("--pcap", path, "--packet", "2", "--in", CLIENTS),
    )
    for one in (by_fields, by_hex, by_file):
        one.pop("next_hop_left_s")
        one["steps"] = [step for step in one["steps"] if "next hop" not in step]
    assert by_fields["sent"] == bytes(frame).hex()
    assert by_fields == by_hex == by_file


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "say which packet"),
        ("--hex xyz", "--hex"),
        ("--hex 00", "a frame of 1 bytes"),
        ("--hex -", "a frame of 0 bytes"),
        ("--hex 00 --to 198.51.100.1:80", "say which packet"),
        ("--hex 00 --vlan 7", "no --from, no --vlan"),
        ("--from 192.0.2.1:1", "say which packet"),
        ("--to 198.51.100.1:80", "--from is missing"),
        ("--from 192.0.2.1 --to 198.51.100.1:80", "ADDRESS:PORT"),
        ("--from 192.0.2.1:70000 --to 198.51.100.1:80", "ADDRESS:PORT"),
        ("--from 192.0.2.1:1 --to [2001:db8::1]:80", "both of IPv4"),
        ("--from 192.0.2.1:1 --to 198.51.100.1:80 --protocol sctp", "tcp, udp, icmp"),
        ("--from 192.0.2.1:1 --to 198.51.100.1:80 --flags X", "FSRPAUEC"),
        ("--from 192.0.2.1:1 --to 198.51.100.1:80 --vlan 7,8,9", "4094"),
    ],
)
def test_what_is_asked_wrongly_is_wrong_usage(arguments: str, said: str) -> None:
    shown = CliRunner().invoke(app, ["trace-packet", *arguments.split()])
    assert shown.exit_code == 2
    assert len(shown.stderr.splitlines()) == 1
    assert said in shown.stderr


def test_what_was_captured_in_part_is_refused(tmp_path: Path) -> None:
    whole, cut = (Ether() / IP(dst="198.51.100.1") / TCP() / bytes(40) for _ in range(2))
    cut.wirelen = len(cut) + 1
    wrpcap(str(tmp_path / "some.pcap"), [whole, cut])
    assert frames.from_file(tmp_path / "some.pcap", 1) == bytes(whole)
    shown = CliRunner().invoke(app, ["trace-packet", "--pcap", str(tmp_path / "some.pcap"), "--packet", "2"])
    assert shown.exit_code == 2
    assert f"only {len(cut)} of {len(cut) + 1} bytes were captured" in shown.stderr


def test_what_is_missing_is_a_line_with_what_to_do(site: Steered) -> None:
    asking = [PENUMBRA, "trace-packet", *ends(site, 44_000)]
    ours = ["--instance", site.instance]
    cases = {
        "sudo": site.lab.argv(AP, [*NOBODY, *asking, *ours]),
        "is not loaded": site.lab.argv(AP, [*asking, "--instance", "nobody"]),
        "is attached to: name one with --in (clients, host1": site.lab.argv(
            AP, [*asking, *ours, "--in", "lo"]
        ),
        "attached to no interface of this network namespace": site.lab.argv("host1", [*asking, *ours]),
    }

    def run(argv: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(argv, capture_output=True, text=True, timeout=60, check=False)

    with ThreadPoolExecutor(2) as pool:
        for said, done in zip(cases, pool.map(run, cases.values()), strict=True):
            assert (done.returncode, done.stdout) == (1, ""), (said, done.stderr)
            (line,) = done.stderr.splitlines()
            assert said in line
