# SPDX-License-Identifier: Apache-2.0
"""An endpoint whose route to the clients leads around the access point is reported, until it is put right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from controlplane.lab import network
from tests.netns.steered import eventually, steered

pytestmark = pytest.mark.slow
TOLD_S = 40.0
"""Two windows of ten seconds, and time to spare."""


def test_replies_that_bypass_are_reported_and_so_is_their_end(tmp_path: Path) -> None:
    with steered(tmp_path) as site:
        topology = site.lab.topology
        host, clients = topology.namespace("host1"), topology.namespace("clients")
        site.start()
        traffic = site.traffic()
        traffic.flows(40)
        assert site.status()["bypassed"] == []

        # A line of its own from host1 to the clients: replies take it, probes' answers don't.
        shortcut = f"link add around type veth peer name around netns {clients}\nlink set around up\n"
        network.run(["ip", "-n", host, "-batch", "-"], shortcut)
        network.run(["ip", "-n", clients, "link", "set", "around", "up"])
        network.run(["ip", "-n", clients, "address", "add", "10.203.0.1/24", "dev", "around"])
        network.run(["ip", "-n", host, "address", "add", "10.203.0.2/24", "dev", "around"])
        way = ["route", "replace", f"{topology.clients.address}/32", "via", "10.203.0.1"]
        network.run(["ip", "-n", host, *way])
        eventually(lambda: site.status()["bypassed"] == ["web-1"], TOLD_S, site.said)
        assert site.group()["up"] is True, "the fault is in the replies' way alone"
        assert any("its replies bypass the access point" in said for said in site.decisions())
        assert 'penumbra_endpoint_bypassed{endpoint="web-1",service="web"} 1.0' in site.metrics()
        shown = site.penumbra("status", "--instance", site.instance)
        assert "web-1: its replies bypass the access point" in shown.stderr

        network.run(["ip", "-n", host, "route", "delete", f"{topology.clients.address}/32"])
        eventually(lambda: site.status()["bypassed"] == [], TOLD_S, site.said)
        assert any("come back by the access point again" in said for said in site.decisions())
        told = [said for said in site.decisions() if "bypass" in said]
        assert len(told) == 1, told
        rows = [json.loads(line) for line in site.asked("maps", "counters", "--json").splitlines()]
        (sums,) = [row for row in rows if row.get("service") == "web"]
        (own,) = [row for row in rows if row.get("endpoint") == "web-1"]
        assert sums["packets"] == own["packets"] > sums["return_packets"] > 0
        traffic.process.terminate()
        traffic.process.wait(20)
