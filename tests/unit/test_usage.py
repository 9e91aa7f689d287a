# SPDX-License-Identifier: Apache-2.0
"""What members use is known while it is fresh; what their agents ask for is done, but the last one stays."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane import model, requests, usage, usage_source
from controlplane.cli import explain
from controlplane.fleet import Fleet
from controlplane.model import Admin, Operating, Usage, UsageKind, UsageSource
from controlplane.record import redone
from tests.world import World, config, grown

NOBODY = SimpleNamespace(shadows={}, of=lambda parent: ())
AGENT = UsageSource(UsageKind.AGENT_CHECK, "{address}", 8765)


def read(configured: model.Config, source: UsageSource | None = AGENT) -> model.Config:
    return replace(configured, services={"web": replace(configured.services["web"], usage=source)})


def world_of(endpoints: int = 2, **settings: object) -> World:
    world = World(read(config(endpoints, **settings)))
    world.ticks(5, 30.0)
    return world


def ring(world: World) -> set[str]:
    return set(world.dataplane.services["web"].ring)


# ---- readings have a time -----------------------------------------------------------------


@pytest.mark.parametrize(("interval_s", "good_s"), [(0.5, 10.0), (2.0, 10.0), (5.0, 15.0), (60.0, 180.0)])
def test_a_reading_is_good_for_three_intervals_and_for_ten_seconds_at_least(interval_s, good_s):
    assert replace(AGENT, interval_s=interval_s).good_s == good_s
    fleet = Fleet(read(config()))
    fleet.observe_usage([Usage("web-1", 100.0, cpu=0.5, good_s=good_s)], NOBODY)
    assert fleet.use.usages.at("web-1", 100.0 + good_s) == Usage("web-1", 100.0, cpu=0.5, good_s=good_s)
    assert fleet.use.usages.at("web-1", 100.1 + good_s) is None, (
        "stale is not zero, and not the last one either"
    )
    assert fleet.use.usages.at("web-2", 100.0) is None


def test_the_last_reading_counts_and_one_that_comes_late_does_not():
    fleet = Fleet(read(config()))
    fleet.observe_usage([Usage("web-1", 100.0, cpu=0.5), Usage("web-1", 105.0, cpu=0.7)], NOBODY)
    fleet.observe_usage([Usage("web-1", 99.0, cpu=0.1)], NOBODY)
    assert fleet.use.usages.at("web-1", 106.0).cpu == 0.7


def test_what_is_no_longer_told_is_not_known_but_an_agents_word_holds():
    known = usage.Usages()
    known.observe([Usage("a", 1.0, cpu=0.5, weight=0.75, operating=Operating.DOWN, reason="disk")])
    known.observe([Usage("a", 2.0)])
    assert known.at("a", 2.0) == Usage("a", 2.0, weight=0.75, operating=Operating.DOWN, reason="disk")
    known.observe([Usage("a", 3.0, weight=0.5, operating=Operating.UP)])
    assert known.at("a", 3.0) == Usage("a", 3.0, weight=0.5, operating=Operating.UP)


# ---- what agents ask for ------------------------------------------------------------------

NO_NEW_FLOWS = {
    "drain": {"admin": Admin.DRAIN},
    "maint": {"admin": Admin.MAINT},
    "0%": {"weight": 0.0},
}


@pytest.mark.parametrize("asked", NO_NEW_FLOWS.values(), ids=NO_NEW_FLOWS.keys())
def test_who_asks_for_no_new_flows_gets_none_until_it_takes_that_back(asked):
    world = world_of()
    world.load_source.tell("web-1", **asked)
    world.ticks(3, 30.0)
    assert ring(world) == {"web-2"}
    member = world.dataplane.members["web-1"]
    assert (member.draining, member.down) == (True, False), "old flows finish"
    assert world.controller.status().services[0].groups[0].drained
    world.load_source.tell("web-1", weight=1.0, admin=Admin.READY)
    world.ticks(3, 30.0)
    assert ring(world) == {"web-1", "web-2"}
    assert not world.dataplane.members["web-1"].draining
    said = [row.reason for row in world.store.rows if row.action == "agent"]
    assert len(said) == 2
    assert said[0].startswith("web-1: its agent asks for no new flows (")
    assert said[1] == "web-1: its agent asks for new flows again"


def test_negative_control_words_that_nobody_merges_drain_nobody(monkeypatch):
    monkeypatch.setattr(usage, "_drain", lambda one: "")
    world = world_of()
    world.load_source.tell("web-1", admin=Admin.DRAIN)
    world.ticks(3, 30.0)
    assert world.controller.status().services[0].groups[0].usage is not None, "it was read"
    assert ring(world) == {"web-1", "web-2"}


def test_a_word_holds_while_the_agent_is_silent_but_a_share_of_nothing_ages():
    world = world_of(3)
    world.load_source.tell("web-1", admin=Admin.DRAIN)
    world.load_source.tell("web-2", weight=0.0)
    world.ticks(2, 30.0)
    assert ring(world) == {"web-3"}
    world.load_source.tells.clear()
    world.ticks(20, 30.0)
    assert ring(world) == {"web-2", "web-3"}


@pytest.mark.parametrize("mode", model.Mode)
def test_who_says_down_is_down_in_every_mode_until_it_says_up(mode):
    world = World(replace(read(config(2)), mode=mode))
    world.ticks(5, 30.0)
    world.load_source.tell("web-1", operating=Operating.DOWN, reason="disk full")
    world.ticks(3, 30.0)
    assert world.dataplane.members["web-1"].down
    assert ring(world) == {"web-2"}
    group = world.controller.status().services[0].groups[0]
    assert (group.up, group.usage.asks) == (False, "down: disk full")
    world.load_source.tells.clear()
    world.ticks(60, 30.0)
    assert world.dataplane.members["web-1"].down, "its silence takes nothing back"
    world.load_source.tell("web-1", operating=Operating.UP)
    world.ticks(3, 30.0)
    assert not world.dataplane.members["web-1"].down
    assert ring(world) == {"web-1", "web-2"}
    said = [row.reason for row in world.store.rows if row.action == "agent"]
    assert said == ["web-1: its agent says down: disk full", "web-1: its agent says up again"]


def test_negative_control_if_only_probes_told_who_is_down_it_would_stay_in_the_ring(monkeypatch):
    monkeypatch.setattr(usage.Usages, "_take", lambda known, one: None)
    world = world_of()
    world.load_source.tell("web-1", operating=Operating.DOWN)
    world.ticks(3, 30.0)
    assert world.controller.status().services[0].groups[0].usage.asks == "down", "it was read"
    assert ring(world) == {"web-1", "web-2"}


def test_an_agent_that_says_up_does_not_make_who_answers_no_probe_healthy():
    world = world_of()
    world.prober.dead.add("web-1")
    world.load_source.tell("web-1", operating=Operating.UP, admin=Admin.READY)
    world.ticks(6, 30.0)
    assert world.dataplane.members["web-1"].down


def test_who_says_up_again_gets_its_share_back_through_the_warm_up():
    world = World(read(config(2, hosts=(), warm_up_s=5.0)))
    world.ticks(5, 30.0)
    world.load_source.tell("web-1", operating=Operating.DOWN)
    world.ticks(5, 30.0)
    world.load_source.tell("web-1", operating=Operating.UP)
    world.ticks(2, 30.0)
    member = world.dataplane.members["web-1"]
    assert set(member.slots) == {"web-2"}
    assert member.spill >= 0.6
    world.ticks(10, 30.0)
    assert world.dataplane.members["web-1"].slots == {}


@pytest.mark.parametrize(
    ("asked", "drained", "opened"),
    [({"admin": Admin.MAINT}, True, False), ({"operating": Operating.DOWN}, False, True)],
    ids=["no new flows", "down"],
)
def test_when_all_ask_for_it_the_last_ones_stay(asked, drained, opened):
    world = world_of(hosts=())
    for name in ("web-1", "web-2"):
        world.load_source.tell(name, **asked)
    lost = world.dataplane.lost
    world.ticks(10, 30.0)
    assert ring(world) == {"web-1", "web-2"}
    assert not any(member.down for member in world.dataplane.members.values())
    assert all(member.draining is drained for member in world.dataplane.members.values())
    assert world.controller.status().services[0].fail_open is opened
    assert world.dataplane.lost == lost


WORDS = st.sampled_from(
    [
        {}, {"operating": Operating.DOWN}, {"operating": Operating.UP}, {"admin": Admin.DRAIN},
        {"admin": Admin.MAINT}, {"admin": Admin.READY}, {"weight": 0.0}, {"weight": 1.0},
    ]
)  # fmt: skip
EVENTS = st.tuples(st.sampled_from(["web-1", "web-2", "web-3"]), WORDS, st.booleans())


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.lists(EVENTS, max_size=8))
def test_whatever_agents_say_somebody_serves_and_the_willing_before_the_others(story):
    world = world_of(3, hosts=())
    names = ("web-1", "web-2", "web-3")
    for name, words, alive in story:
        world.load_source.tell(name, **words)
        (world.prober.dead.discard if alive else world.prober.dead.add)(name)
        world.ticks(5, 30.0)
        lost = world.dataplane.lost
        world.ticks(2, 30.0)
        serving = ring(world)
        last = {name: world.controller._fleet.use.usages.last(name) for name in names}
        up = {
            name: name not in world.prober.dead and (one is None or one.operating is not Operating.DOWN)
            for name, one in last.items()
        }
        willing = {
            name
            for name, one in last.items()
            if up[name] and (one is None or (one.admin in (None, Admin.READY) and one.weight != 0.0))
        }
        assert serving, "never without a ring"
        assert serving == (willing or {name for name in up if up[name]} or set(up))
        assert not any(up.values()) or world.dataplane.lost == lost


def test_a_shadow_is_asked_at_its_own_address_and_may_ask_for_no_new_flows_too():
    world = grown()
    world.config = read(world.config)
    requests.request_reload(world.store)
    world.ticks(2, 120.0)
    shadow = world.store.records["web-1-s1"]
    assert world.load_source.targets["web-1-s1"] == replace(AGENT, at=str(shadow.address))
    assert world.dataplane.members["web-1"].spill > 0.3
    world.load_source.tell("web-1-s1", admin=Admin.DRAIN)
    world.ticks(2, 120.0)
    assert world.dataplane.members["web-1"].slots == {}
    assert world.dataplane.members["web-1"].spill == 0.0
    assert world.dataplane.members["web-1-s1"].draining
    assert world.controller.status().services[0].groups[0].shadows[0].usage.asks == "drain"
    world.prober.dead.add("web-1")  # now better that one than none
    world.ticks(5, 120.0)
    assert world.dataplane.members["web-1"].slots == {"web-1-s1": 1.0}


@pytest.mark.parametrize("source", [None, replace(AGENT, port=9999)], ids=["none", "another one"])
def test_after_a_reload_nobody_holds_a_word_of_an_agent_that_is_no_longer_asked(source):
    world = world_of()
    world.load_source.tell("web-1", operating=Operating.DOWN, admin=Admin.DRAIN)
    world.ticks(3, 30.0)
    assert ring(world) == {"web-2"}
    world.load_source.tells.clear()
    world.config = read(config(2), source)
    requests.request_reload(world.store)
    world.ticks(3, 30.0)
    assert ring(world) == {"web-1", "web-2"}
    assert world.controller.status().services[0].groups[0].usage is None


# ---- the loop -----------------------------------------------------------------------------


def test_trouble_with_it_is_said_and_stops_nothing():
    world = world_of()
    world.load_source.failing = {"web-2": "Connection refused", "web-1": "answered 404"}
    world.ticks(2, 30.0)
    assert world.controller.status().troubles == {"usage": "web-1: answered 404 (and 1 more)"}
    assert ring(world) == {"web-1", "web-2"}
    world.load_source.failing.clear()
    world.ticks(2, 30.0)
    assert world.controller.status().troubles == {}


def test_a_source_that_breaks_altogether_stops_nothing(monkeypatch):
    world = world_of()
    monkeypatch.setattr(world.load_source, "usages", lambda: 1 / 0)
    monkeypatch.setattr(world.load_source, "watch", lambda targets: 1 / 0)
    world.prober.dead.add("web-1")
    world.ticks(6, 30.0)
    assert set(world.controller.status().troubles) == {"usage", "usage sources"}
    assert ring(world) == {"web-2"}, "health still acts"


def test_status_and_metrics_tell_it_while_it_is_fresh():
    world = world_of()
    world.load_source.tell("web-1", cpu=0.5, memory=0.25, network=0.125, weight=0.75)
    world.ticks(2, 30.0)
    world.load_source.tells.clear()
    group = json.loads(world.shown[-1])["services"][0]["groups"][0]
    assert group["usage"] == {
        "cpu": 0.5, "memory": 0.25, "network": 0.125, "weight": 0.75, "asks": "", "age_s": 0.0,
        "strength": None,
    }  # fmt: skip
    labels = {"service": "web", "endpoint": "web-1"}
    found = world.metrics.samples
    told = {s.name: s.value for s in found if s.labels == labels and s.name.endswith("_ratio")}
    assert told == {
        "spill_ratio": 0.0,
        "penalty_ratio": 0.0,
        "endpoint_cpu_utilization_ratio": 0.5,
        "endpoint_memory_utilization_ratio": 0.25,
        "endpoint_network_utilization_ratio": 0.125,
        "endpoint_agent_weight_ratio": 0.75,
    }
    world.ticks(16, 30.0)
    assert json.loads(world.shown[-1])["services"][0]["groups"][0]["usage"] == {
        "cpu": None, "memory": None, "network": None, "weight": None, "asks": "", "age_s": 16.0,
        "strength": None,
    }  # fmt: skip
    assert not any("utilization" in sample.name for sample in world.metrics.samples)


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"cpu": 0.5, "memory": 0.25}, "cpu 50%, memory 25%"),
        ({"cpu": 0.5, "weight": 0.75}, "cpu 50%, its agent: 75% of its weight"),
        ({"operating": Operating.DOWN, "reason": "disk full"}, "its agent: down: disk full"),
        ({}, "not known"),
    ],
)
def test_explain_says_it_in_a_line(told, said, monkeypatch, capsys):
    world = world_of()
    world.load_source.tell("web-1", **told)
    world.ticks(2, 30.0)
    there = SimpleNamespace(name="test", store=lambda: world.store)
    monkeypatch.setattr("controlplane.cli.instance.find", lambda name: there)
    monkeypatch.setattr("controlplane.adapters.status_file.read", lambda name: world.shown[-1])
    explain.explain("web-1", decisions=0, instance=None, as_json=False)
    assert f"  uses       {said} (0 s ago)" in capsys.readouterr().out.splitlines()


def test_what_an_agent_asked_for_is_decided_again_from_the_record():
    world = World(read(config(2, idle_s=30.0)), records=True)
    world.ticks(40, 80.0)
    world.load_source.tell("web-1", cpu=0.9, operating=Operating.DOWN, admin=Admin.READY)
    world.ticks(30, 200.0)
    world.load_source.tell("web-1", operating=Operating.UP)
    world.ticks(30, 60.0)

    def again(lines):
        return list(redone(lines, lambda number: world.configs[int(number)]))

    decisions = again(world.recorded)
    assert any(one.act != "hold" for one in decisions)
    assert [one for one in decisions if not one.is_same] == []
    lines = [json.loads(line) for line in world.recorded]
    without = [json.dumps({key: line[key] for key in line if key != "usages"}) for line in lines]
    assert any(not one.is_same for one in again(without)), "the negative control"


# ---- where it is read -----------------------------------------------------------------------


def test_places_are_filled_in_for_each_member_with_brackets_where_a_url_needs_them():
    hosts = {
        "host-a": model.Host("host-a", variables={"ansible_host": "2001:db8::9", "address": "10.0.0.9"}),
        "host-b": model.Host("host-b"),
    }
    url = UsageSource(UsageKind.NODE_EXPORTER, "http://{host}:9100/{name}?at={address}:{port}")
    configured = replace(read(config(1), url), hosts=hosts)
    assert usage_source.of_endpoints(configured) == {
        "web-1": replace(url, at="http://[2001:db8::9]:9100/web-1?at=10.0.0.1:8080")
    }
    state = model.ShadowState.READY
    shadow = model.Shadow("web-1-s1", "web", "web-1", "host-b", "netns", state, 0.0, 0.0)
    assert usage_source.of_shadow(url, shadow, hosts, "test") is None, "it has no address yet"
    there = replace(shadow, address=IPv6Address("2001:db8::5"), port=81)
    assert (
        usage_source.of_shadow(url, there, hosts, "test").at
        == "http://host-b:9100/web-1-s1?at=[2001:db8::5]:81"
    )
    assert usage_source.of_shadow(url, replace(there, host="gone"), hosts, "test") is None
    agent = replace(there, address=IPv4Address("10.0.0.5"))
    assert usage_source.of_shadow(AGENT, agent, hosts, "test") == replace(AGENT, at="10.0.0.5")
    assert usage_source.of_shadow(AGENT, there, hosts, "test").at == "2001:db8::5", "no URL, no brackets"
