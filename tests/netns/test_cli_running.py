# SPDX-License-Identifier: Apache-2.0
"""What commands ask of a running instance is done, and what they show is so."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import yaml

from controlplane.adapters import pins
from controlplane.lab.topology import AP
from tests.netns.steered import Steered, Traffic, assert_unharmed, eventually, steered

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Steered]:
    with steered(tmp_path_factory.mktemp("site")) as made:
        made.start()
        made.add_shadow()
        yield made


@pytest.fixture
def traffic(site: Steered) -> Iterator[Traffic]:
    """In which, in the end, nothing failed."""
    running = site.traffic()
    yield running
    assert_unharmed(running.stop())


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def fresh(traffic: Traffic, count: int = 25) -> Counter[str | None]:
    """Who served the next requests that come on connections of their own."""
    begun = max(one.connection for one in traffic.now()) + 5

    def seen() -> list[str | None]:
        return [one.served_by for one in traffic.now() if one.connection > begun and not one.persistent]

    eventually(lambda: len(seen()) >= count, 20, "enough new connections")
    return Counter(seen())


SHOWN = {
    "services": ("web", ("service", "vip", "port", "protocol", "ring")),
    "endpoints": ("web-1-s1", ("endpoint", "role", "address", "port", "parent", "down", "draining", "spill")),
    "shadows": ("web-1-s1", ("endpoint", "shadow", "share")),
    "flows": ("198.51.100.2", ("client", "client_port", "service", "endpoint", "state", "idle_s")),
    "counters": (
        "forward_hop",
        ("endpoint", "packets", "completed", "service", "flows", "interface", "received", "lost", "reason"),
    ),
    "events": ("at_s", ("at_s", "event", "endpoint", "chosen")),
}


def test_maps_are_shown_as_a_table_and_as_json(site: Steered, traffic: Traffic) -> None:
    traffic.flows(40)
    wanted = [(what, flag) for what in SHOWN for flag in ((), ("--json",))]
    with ThreadPoolExecutor(4) as pool:
        texts = list(pool.map(lambda one: site.asked("maps", one[0], *one[1]), wanted))
    for (what, flag), text in zip(wanted, texts, strict=True):
        row, columns = SHOWN[what]
        if not flag:
            assert row in text, (what, text)
            assert all(column in text for column in columns), (what, text)
            continue
        found = lines(text)
        assert found or what == "events", what
        named = {key for one in found for key in one}
        assert named >= set(columns) or what == "events", (what, named)
    for flag in ((), ("--json",)):
        some = site.penumbra("maps", "flows", "--limit", 3, *flag, "--instance", site.instance)
        assert "these are the 3 most recent" in some.stderr
        assert len(some.stdout.splitlines()) == (3 if flag else 4)
    flows = lines(texts[wanted.index(("flows", ("--json",)))])
    assert {one["endpoint"] for one in flows} == {"web-1", "web-1-s1"}
    shadows = lines(texts[wanted.index(("shadows", ("--json",)))])
    assert [(one["endpoint"], one["shadow"], one["share"]) for one in shadows] == [("web-1", "web-1-s1", 1.0)]


def test_status_is_a_table_and_json_with_what_is_forecast_and_decided(
    site: Steered, traffic: Traffic
) -> None:
    traffic.flows(60)
    text = site.asked("status")
    assert site.controller is not None
    for part in (f"controller {site.controller.pid}", "mode act", "web-1-s1", "ready", "spill", "lead time"):
        assert part in text, (part, text)
    found = json.loads(site.asked("status", "--json", "--decisions", "3"))
    (group,) = found["services"][0]["groups"]
    assert group["demand"] > 5
    assert group["shadows"][0]["state"] == "ready"
    assert found["controller_pid"] == site.controller.pid
    assert len(found["decisions"]) == 3
    assert all(one["reason"] for one in found["decisions"])
    assert abs(found["at_unix_s"] - time.time()) < 5
    assert 'penumbra_shadows{endpoint="web-1",service="web",state="ready"} 1.0' in site.metrics()


def test_explain_says_why_in_words_and_numbers_and_names_what_it_does_not_know(site: Steered) -> None:
    text = site.asked("explain", "web-1")
    for part in ("web-1 of service web", "decided", "foreseen", "pays", "capacity   not known", "web-1-s1"):
        assert part in text, (part, text)
    assert "by command" in site.asked("explain", "web-1-s1", "--decisions", "1000"), "why it was ordered"
    found = json.loads(site.asked("explain", "--json", "--decisions", "5"))
    assert found["groups"][0]["name"] == "web-1"
    assert len(found["decisions"]) == 5
    wrong = site.penumbra("explain", "nobody", "--instance", site.instance)
    assert wrong.returncode == 2
    assert "nobody: no endpoint" in wrong.stderr


def test_drain_gives_an_endpoint_no_new_flows_and_undrain_gives_them_again(
    site: Steered, traffic: Traffic
) -> None:
    assert fresh(traffic)["web-1"] > 5
    site.asked("drain", "web-1")
    eventually(lambda: site.group()["drained"] and site.group()["spill"] == 1.0, 10, site.said)
    assert set(fresh(traffic)) == {"web-1-s1"}
    assert "web-1" in {one.served_by for one in traffic.now()[-40:]}, "its old connections were to live on"
    site.asked("undrain", "web-1")
    eventually(lambda: not site.group()["drained"], 10, site.said)
    eventually(lambda: site.group()["spill"] < 1.0, 10, site.said)
    assert fresh(traffic)["web-1"] > 5


def test_freeze_and_thaw(site: Steered) -> None:
    site.asked("freeze")
    eventually(lambda: site.status()["frozen"], 10, site.said)
    assert "penumbra_frozen 1.0" in site.metrics()
    assert ", frozen" in site.asked("status")
    site.asked("thaw")
    eventually(lambda: not site.status()["frozen"], 10, site.said)
    assert "penumbra_frozen 0.0" in site.metrics()


def test_a_good_configuration_is_taken_and_a_bad_one_refused_while_the_running_one_stays(
    site: Steered, traffic: Traffic
) -> None:
    root = site.configuration()
    endpoint = root["services"]["web"]["endpoints"]["web-1"]
    endpoint["capacity"] = "99 flows/s"
    site.configure(root)
    assert site.asked("reload") == "configuration reloaded\n"
    eventually(lambda: site.group()["capacity"] == 99, 10, site.said)

    for bad, path in (({"capacity": "0 flows/s"}, "capacity"), ({"wieght": 2.0}, "wieght")):
        endpoint.update(bad)
        site.configure(root)
        done = site.penumbra("reload", "--instance", site.instance)
        assert (done.returncode, done.stdout) == (2, "")
        (line,) = done.stderr.splitlines()
        assert line.startswith(f"penumbra: {site.config}: services.web.endpoints.web-1.{path}: ")
        endpoint.update({"capacity": "99 flows/s"})
    assert site.await_tick()["troubles"] == {}
    assert site.group()["capacity"] == 99
    assert not any("refused" in said for said in site.decisions()), "the controller was not to see it"

    # What needs a restart is said, and nothing else of that file is taken.
    site.configure(site.configuration(interfaces=["clients", "host1"]))
    done = site.penumbra("reload", "--instance", site.instance)
    assert (done.returncode, done.stdout) == (2, "")
    assert "the running one stays" in done.stderr
    assert "interfaces: " in done.stderr
    assert site.await_tick()["services"][0]["groups"][0]["capacity"] == 99
    site.configure(site.configuration())
    site.asked("reload")
    eventually(lambda: site.group()["capacity"] is None, 10, site.said)


def test_what_is_not_known_is_named_with_what_there_is(site: Steered) -> None:
    for command, there in (
        (("drain", "nobody"), "web-1"),
        (("undrain", "nobody"), "web-1"),
        (("shadow", "add", "nobody"), "web-1"),
        (("shadow", "add", "web-1", "--host", "nowhere"), "host1, host2, host3"),
        (("shadow", "remove", "nobody"), "web-1-s1"),
    ):
        done = site.penumbra(*command, "--instance", site.instance)
        assert (done.returncode, done.stdout) == (2, ""), command
        assert f"there are: {there}" in done.stderr


def test_a_foreign_program_is_named_and_not_displaced(site: Steered) -> None:
    """On another host's interface, where a second instance would like to be."""
    before = links(site)
    other = site.folder / "other.yml"
    text = site.config.read_text().replace(f"instance: {site.instance}", f"instance: {site.instance}-b")
    other.write_text(text.replace("9464", "9465"))
    for command in ("load", "run"):
        done = site.penumbra(command, other)
        assert (done.returncode, done.stdout) == (1, "")
        assert "is attached and is not displaced" in done.stderr
        assert "Traceback" not in done.stderr
    assert links(site) == before
    assert not pins.folder(f"{site.instance}-b").exists()
    assert not list(pins.LOCKS.glob(f"{site.instance}-b*"))
    with site.lab.connect("clients", str(site.lab.topology.vip), 80) as connection:
        assert isinstance(connection, socket.socket)


def test_a_plan_shows_original_and_clone_and_makes_nothing(site: Steered) -> None:
    before = site.status()["services"][0]["groups"]
    plan = json.loads(site.asked("provision", "--plan", "web-1", "--json"))
    assert (plan["endpoint"], plan["made_from"], plan["refused"]) == ("web-1", "live", False)
    eventually(lambda: json.loads(site.asked("provision", "--plan", "web-1", "--json"))["kept_unix_s"], 30)
    verdicts = {row["field"]: row["verdict"] for row in plan["fields"]}
    assert (verdicts["serves at"], verdicts["executable"]) == ("rewritten", "same")
    told = [row for row in plan["fields"] if row["field"].startswith("environment ")]
    assert {row["clone"] for row in told} <= {"***", ""}, told  # an empty one is no secret
    after = site.status()["services"][0]["groups"]
    assert [len(group["shadows"]) for group in after] == [len(group["shadows"]) for group in before]


def links(site: Steered) -> dict[str, int]:
    """Interface -> the id of its XDP program."""
    found = json.loads(site.lab.run(AP, ["ip", "-j", "-d", "link", "show"]))
    return {one["ifname"]: one["xdp"]["prog"]["id"] for one in found if "xdp" in one}


def test_without_a_controller_requests_wait_for_one(site: Steered) -> None:
    site.end()
    done: subprocess.CompletedProcess[str] = site.penumbra("freeze", "--instance", site.instance)
    assert done.returncode == 0
    assert "no controller" in done.stderr
    assert "no controller runs" in site.asked("status")
    changed = yaml.safe_load(site.config.read_text())
    changed["services"]["web"]["port"] += 1
    other = site.folder / "changed.yml"
    other.write_text(yaml.safe_dump(changed))
    for path, told in ((other, True), (site.config, False)):
        done = site.penumbra("load", path)
        assert done.returncode == 0
        assert ("goes on with the services" in done.stderr) == told
    assert site.penumbra("reload", "--instance", site.instance).returncode == 1
    site.start()
    eventually(lambda: site.status()["frozen"], 10, site.said)
    site.asked("thaw")
    eventually(lambda: not site.status()["frozen"], 10, site.said)
