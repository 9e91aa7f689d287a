# SPDX-License-Identifier: Apache-2.0
"""The whole system steers, clones by command, drains and removes: real processes, real packets."""

from __future__ import annotations

import json
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress

import pytest

from controlplane import model
from controlplane.adapters import pins
from controlplane.adapters.clock import MachineClock
from controlplane.adapters.dataplane import MapDataplane
from controlplane.lab.topology import AP
from tests.netns.steered import Steered, assert_unharmed, eventually, steered

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Steered]:
    with steered(tmp_path_factory.mktemp("site")) as made:
        made.start()
        yield made


@pytest.fixture(scope="module")
def administration(site: Steered) -> Iterator[None]:
    """Something like SSH on host1: the server speaks first."""
    with site.lab.entered("host1"):
        listener = socket.create_server(("0.0.0.0", 2222))

    def greet() -> None:
        with suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(b"SSH-2.0-lab\r\n")

    threading.Thread(target=greet, daemon=True).start()
    yield
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()


def who_answers(site: Steered, node: str, address: str, port: int) -> str:
    """X-Served-By of one GET on a connection of its own."""
    with site.lab.connect(node, address, port, timeout_s=1.5) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        answer = b""
        while data := connection.recv(4096):
            answer += data
    assert answer.startswith(b"HTTP/1.1 200"), answer
    return answer.partition(b"X-Served-By: ")[2].partition(b"\r\n")[0].decode()


def assert_steers(site: Steered) -> None:
    """The program runs natively on every interface of the access point, and clients get their answers."""
    links = json.loads(site.lab.run(AP, ["ip", "-j", "-d", "link", "show"]))
    modes = {one["ifname"]: one.get("xdp", {}).get("mode") for one in links if one["ifname"] != "lo"}
    assert modes == dict.fromkeys(site.lab.topology.ap_interfaces, 1), "1 is native"
    vip = site.lab.topology.vip
    answers = Counter(who_answers(site, "clients", str(vip), 80) for _ in range(10))
    assert answers == {"web-1": 10}


def test_clients_are_answered_through_the_program_in_native_mode(site: Steered) -> None:
    assert_steers(site)
    for interface in site.lab.topology.ap_interfaces:
        assert f"{interface}: native" in site.said()
        assert f'penumbra_xdp_native{{interface="{interface}"}} 1.0' in site.metrics()


def test_probes_replication_and_administration_pass_the_access_point_that_steers(
    site: Steered, administration: None
) -> None:
    host1 = str(site.lab.topology.node("host1").address)
    assert site.group()["up"] is True
    assert who_answers(site, AP, host1, 8080) == "web-1"
    assert who_answers(site, "host2", host1, 8080) == "web-1"
    for node in (AP, "clients", "host3"):
        with site.lab.connect(node, host1, 2222) as connection:
            assert connection.recv(32) == b"SSH-2.0-lab\r\n", node


def test_a_shadow_by_command_takes_a_share_and_is_drained_without_a_failed_request(site: Steered) -> None:
    traffic = site.traffic()
    site.asked("shadow", "add", "web-1")
    eventually(lambda: site.shadow().get("state") == "ready", 40, site.said)
    name = site.shadow()["name"]
    assert list(site.shadow_processes().values()) == [name]
    traffic.flows(100)
    served = Counter(one.served_by for one in traffic.now()[-60:])
    assert 10 <= served[name] <= 50, served

    site.asked("shadow", "remove", name)
    eventually(lambda: site.shadow()["state"] == "draining", 10, site.said)
    begun = max(one.connection for one in traffic.now())
    traffic.flows(60)
    state = site.shadow()["state"]  # while connections to it, which live for 5 to 30 s, go on
    late = [one for one in traffic.now() if one.connection > begun + 5 and not one.persistent]
    assert late
    assert {one.served_by for one in late} == {"web-1"}, "a draining shadow was given new flows"
    old = [one for one in traffic.now() if one.connection <= begun and one.served_by == name]
    assert old, "its old connections were to live on"
    assert state in ("draining", "removing"), "the last of them may be over"
    assert_unharmed(traffic.stop())
    eventually(lambda: not site.shadow(), 20, site.said)
    assert not site.shadow_processes()
    assert any("drained in" in said for said in site.decisions())


def test_negative_control_a_shadow_that_is_cut_instead_of_drained_harms_requests(site: Steered) -> None:
    name = site.add_shadow()
    traffic = site.traffic()
    eventually(lambda: {one.served_by for one in traffic.now() if one.persistent} >= {name}, 10)
    traffic.flows(60)
    (pid,) = site.shadow_processes()
    site.lab.run("host2", ["kill", "-9", str(pid)])
    traffic.flows(60)
    seen = traffic.stop()
    site.asked("shadow", "remove", name)
    eventually(lambda: not site.shadow(), 60, site.said)
    with pytest.raises(AssertionError, match=r"failed|lost"):
        assert_unharmed(seen)


def test_negative_control_with_the_services_ring_withheld_nobody_answers(site: Steered) -> None:
    assert_steers(site)
    site.end()
    dataplane = MapDataplane.open(site.instance, MachineClock())
    dataplane.apply(model.SetRing("web", {}))
    try:
        with pytest.raises(OSError, match=r"timed out|refused"):
            assert_steers(site)
        assert dataplane.reasons()["drop_no_endpoint"] > 0, "the fault did not hit"
    finally:
        dataplane.close()
    site.start()
    eventually(lambda: site.status()["steps"] > 0, 10)
    assert_steers(site)


def test_negative_control_detached_nobody_answers(site: Steered) -> None:
    assert_steers(site)
    site.end()
    assert site.penumbra("unload", "--instance", site.instance).returncode == 0
    assert not list(pins.LOCKS.glob(f"{site.instance}*")), "unload left files"
    with pytest.raises(AssertionError, match="native"):
        assert_steers(site)
    with pytest.raises(OSError, match=r"timed out|unreachable|refused"):
        who_answers(site, "clients", str(site.lab.topology.vip), 80)
