# SPDX-License-Identifier: Apache-2.0
"""A live endpoint dies under load: its shadow carries the service, and nobody sends to the dead for long."""

from __future__ import annotations

import signal
import socket
import struct
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Self

import pytest

from controlplane.lab.topology import AP, UPLINK
from tests.netns.steered import DETECTED_S, Steered, Traffic, assert_unharmed, eventually, steered

pytestmark = pytest.mark.slow

WATCHED_S = 2.5
"""How long the dead is watched after the deadline."""

# Health is probed, known and said, but never written: what a broken health write would look like.
WITHHELD = """
import sys
from controlplane import model
from controlplane.adapters.dataplane import MapDataplane
from controlplane.cli import main

applied = MapDataplane.apply

def apply(self, step):
    match step:
        case model.SetDown(down=True) | model.SetSpill(share=1.0):
            print("withheld:", step, flush=True)
        case _:
            applied(self, step)

MapDataplane.apply = apply
main()
"""


class Tap:
    """When packets of clients to port 8080 came in at host1's interface, seen in host1's namespace."""

    def __init__(self, site: Steered) -> None:
        self._clients = site.lab.topology.clients.address.packed
        with site.lab.entered("host1"):
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
            self._socket.bind((UPLINK, 0x0800))
        self._socket.settimeout(0.2)
        self._ending = threading.Event()
        self.seen_s: list[float] = []
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._ending.is_set():
            with suppress(TimeoutError):
                frame, (_, _, kind, *_) = self._socket.recvfrom(2048)
                (port,) = struct.unpack_from("!H", frame, 36)
                if kind != socket.PACKET_OUTGOING and frame[26:30] == self._clients and port == 8080:
                    self.seen_s.append(time.monotonic())

    def since(self, monotonic_s: float) -> int:
        return sum(at > monotonic_s for at in self.seen_s)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join()
        self._socket.close()


SOURCE = "198.51.100.250"
"""Checks come from here: an address of the access point's that no interface's network has."""


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Steered]:
    with steered(tmp_path) as made:
        made.lab.run(AP, ["ip", "address", "add", f"{SOURCE}/32", "dev", "lo"])
        root = made.configuration()
        for service in root["services"].values():
            service["probe"]["source"] = SOURCE
        made.configure(root)
        yield made


def kill_endpoint(site: Steered) -> None:
    """The process dies; its host answers with RST."""
    assert site.live is not None
    site.live.kill()
    site.live.wait()


def cut_host(site: Steered) -> None:
    """The host neither takes nor sends anything any more, and nobody is told."""
    rules = "table inet cut { chain in { type filter hook prerouting priority raw; drop; }; "
    rules += "chain out { type filter hook output priority raw; drop; }; }"
    site.lab.run("host1", ["nft", rules])


def restore_endpoint(site: Steered) -> None:
    site.start_endpoint()


def restore_host(site: Steered) -> None:
    site.lab.run("host1", ["nft", "delete table inet cut"])


def assert_carried(traffic: Traffic, tap: Tap, died_s: float, shadow: str) -> None:
    """From the deadline on the shadow answers everything, and no client's packet goes to the dead."""
    deadline_s = died_s + DETECTED_S
    late = traffic.since(deadline_s)
    assert tap.since(deadline_s) == 0, f"{tap.since(deadline_s)} packets to the dead after the deadline"
    assert len(late) >= 25, "there was no traffic to speak of"
    answered = Counter(one.served_by if not one.failed else f"failed: {one.error}" for one in late)
    assert answered == {shadow: len(late)}


def die(site: Steered, traffic: Traffic, tap: Tap, death: object) -> float:
    """When it died. It was served until then, and packets came in after that: the fault hit."""
    traffic.flows(60)
    assert tap.since(time.monotonic() - 1.0) > 0, "the tap sees nothing"
    assert callable(death)
    death(site)
    died_s = time.monotonic()
    with pytest.raises(OSError, match=r"refused|timed out"):
        site.lab.connect("ap", str(site.lab.topology.node("host1").address), 8080, timeout_s=0.5)
    until_s = died_s + DETECTED_S + WATCHED_S
    eventually(lambda: time.monotonic() > until_s, 30)
    assert tap.since(died_s) > 0, "nobody sent to the dead: the fault did not hit"
    return died_s


@pytest.mark.parametrize(
    ("death", "recovery"),
    [(kill_endpoint, restore_endpoint), (cut_host, restore_host)],
    ids=["its process is killed", "its host is cut off silently"],
)
def test_the_shadow_of_a_dead_endpoint_carries_the_service_until_it_recovers(
    site: Steered, death: object, recovery: object
) -> None:
    site.start()
    shadow = site.add_shadow()
    traffic = site.traffic(20.0)
    with Tap(site) as tap:
        died_s = die(site, traffic, tap, death)
        assert_carried(traffic, tap, died_s, shadow)
    assert site.group()["up"] is False
    assert site.group()["spill"] == 1.0
    assert site.group()["health_reason"], "it was to be said why"
    assert 'penumbra_endpoint_healthy{endpoint="web-1",service="web"} 0.0' in site.metrics()
    assert any("web-1 is unhealthy after" in said for said in site.decisions())
    assert callable(recovery)
    recovery(site)
    recovered_s = time.monotonic()
    eventually(lambda: "web-1" in {one.served_by for one in traffic.now()[-20:]}, 20, site.said)
    traffic.flows(30)
    assert_unharmed([one for one in traffic.stop() if one in traffic.since(recovered_s)])
    assert site.group()["up"] is True
    assert site.shadow()["state"] == "ready"


@pytest.mark.parametrize("death", [kill_endpoint, cut_host], ids=["killed", "cut off"])
def test_negative_control_with_health_writes_withheld_packets_go_on_to_the_dead(
    site: Steered, death: object
) -> None:
    site.start([sys.executable, "-c", WITHHELD])
    shadow = site.add_shadow()
    traffic = site.traffic(20.0)
    with Tap(site) as tap:
        died_s = die(site, traffic, tap, death)
        with pytest.raises(AssertionError, match=r"packets to the dead after the deadline"):
            assert_carried(traffic, tap, died_s, shadow)
    assert "withheld: SetDown(member='web-1', down=True)" in site.said(), "the fault did not hit"
    assert site.end(signal.SIGTERM) == 0
