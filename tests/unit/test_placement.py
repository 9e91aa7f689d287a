# SPDX-License-Identifier: Apache-2.0
"""Which host gets the next shadow, and whether the reason that is given is the true one."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv4Address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane import model, placement
from controlplane.hosts import LONGEST_PAUSE_S, Hosts, wish
from controlplane.model import Endpoint, Host, Shadow, ShadowState
from controlplane.placement import Candidate, Wish, choose

PARENT = Endpoint("web-1", "web", IPv4Address("10.0.0.1"), 80, host="a")
ASKED = Wish("web-1", "a")
NAMES = "abcdef"
READ = model.UsageSource(model.UsageKind.NODE_EXPORTER, "http://{host}:9100/metrics")
SHARES = st.integers(0, 96).map(lambda k: k / 64)

CANDIDATES = st.lists(
    st.builds(
        Candidate,
        name=st.sampled_from(NAMES),
        slots=st.integers(1, 4),
        taken=st.integers(0, 4),
        siblings=st.integers(0, 2),
        used=st.one_of(st.none(), SHARES),
        unread=st.sampled_from(["", "", "its use was read 40 s ago"]),
        failures=st.integers(0, 3),
        avoided_s=st.sampled_from([0.0, 0.0, 12.0]),
        region=st.sampled_from(["", "eu-west", "us-east"]),
        price_per_hour=st.sampled_from([0.0, 0.25, 0.5, 1.0]),
    ),
    max_size=6,
    unique_by=lambda one: one.name,
)
WISHES = st.builds(
    Wish,
    parent=st.just("web-1"),
    parent_host=st.sampled_from(["a", "z"]),
    regions=st.sampled_from([(), ("eu-west",), ("us-east", "eu-west")]),
    cost_weight=st.sampled_from([0.0, 0.25, 1.0]),
    left_per_hour=st.sampled_from([None, 0.3, 2.0]),
)


def usable(one: Candidate, asked: Wish) -> bool:
    """As the rule is told to people, not as the code has it."""
    affordable = asked.left_per_hour is None or one.price_per_hour <= asked.left_per_hour
    return one.taken < one.slots and not one.avoided_s and not one.unread and affordable


@settings(max_examples=150, deadline=None)
@given(CANDIDATES, WISHES)
def test_only_a_usable_host_and_never_the_parents_while_another_is(candidates, asked):
    placed = choose(candidates, asked)
    fit = {one.name for one in candidates if usable(one, asked)}
    assert (placed.host is None) is (not fit)
    if fit:
        assert placed.host in fit
        assert placed.host != asked.parent_host or fit == {asked.parent_host}
    assert placed == choose(candidates, asked), "the same again"


@settings(max_examples=100, deadline=None)
@given(CANDIDATES, WISHES)
def test_a_better_region_goes_before_spread_use_and_price(candidates, asked):
    chosen = next((one for one in candidates if one.name == choose(candidates, asked).host), None)
    fit = [one for one in candidates if usable(one, asked) and one.name != asked.parent_host]
    if chosen in fit and asked.regions:
        ranks = {region: rank for rank, region in enumerate(asked.regions)}
        assert ranks.get(chosen.region, 9) == min(ranks.get(one.region, 9) for one in fit)


@settings(max_examples=100, deadline=None)
@given(CANDIDATES, WISHES, st.sampled_from([(0.0, 0.25), (0.25, 2.0), (0.0, 64.0)]))
def test_the_more_prices_count_the_cheaper_the_host(candidates, asked, weights):
    prices = {one.name: one.price_per_hour for one in candidates}
    less, more = (choose(candidates, replace(asked, cost_weight=weight)).host for weight in weights)
    assert less is None or prices[more] <= prices[less]


@settings(max_examples=100, deadline=None)
@given(CANDIDATES, WISHES)
def test_the_reason_names_the_hosts_and_numbers_that_are_true(candidates, asked):
    placed, of = choose(candidates, asked), {one.name: one for one in candidates}
    for name, number, size in re.findall(r"([a-f])(?: \(|: )(\d+) of (\d+) slots taken", placed.why):
        assert (of[name].taken, of[name].slots) == (int(number), int(size))
    if placed.host is None:
        return
    best = of[placed.host]
    assert placed.why.startswith(f"{best.load:.0%}")
    others = re.match(r"[^(,]*\(([^)]*)\)", placed.why)
    for name, share in re.findall(r"([a-f]) (\d+)%", others[1]) if others else ():
        assert usable(of[name], asked)
        assert f"{of[name].load:.0%}" == f"{share}%"
    assert ("other host than web-1" in placed.why) is (best.name != asked.parent_host)
    assert best.region in placed.why


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 5), st.integers(1, 12), st.lists(SHARES, min_size=5, max_size=5))
def test_shadows_of_a_parent_are_spread_evenly(hosts, count, uses):
    held = dict.fromkeys(NAMES[1 : hosts + 1], 0)
    for _ in range(count):
        asked = [
            Candidate(name, slots=20, taken=n, siblings=n, used=uses[k])
            for k, (name, n) in enumerate(held.items())
        ]
        held[choose(asked, ASKED).host] += 1
    assert max(held.values()) - min(held.values()) <= 1


def test_negative_control_a_choice_by_use_alone_breaks_each_rule(monkeypatch):
    """The examples above can tell: each of them is one that a choice by use alone gets wrong."""
    monkeypatch.setattr(placement, "_unfit", lambda one, asked: "")
    monkeypatch.setattr(placement, "_rank", lambda one, asked: 0)
    for worst in (
        Candidate("b", used=0.0, taken=1),
        Candidate("b", used=0.0, unread="old"),
        Candidate("b", used=0.0, avoided_s=5.0, failures=1),
    ):
        assert choose([replace(worst, failures=0), Candidate("c", used=0.9)], ASKED).host == "b"
    near = [Candidate("b", used=0.9, region="eu-west"), Candidate("c", used=0.1, region="us-east")]
    assert choose(near, replace(ASKED, regions=("eu-west",))).host == "c"


# ---- from what is known of hosts -----------------------------------------------------------


def configured(
    usage: model.UsageSource | None = READ, budget: float | None = None, **hosts: Host
) -> model.Config:
    shadows = model.ShadowSettings(hosts=("b", "c"))
    service = model.Service(
        "web", IPv4Address("192.0.2.1"), 80, model.Protocol.TCP, (PARENT,), shadows=shadows
    )
    there = {name: Host(name, slots=4) for name in "abc"} | hosts
    return model.Config("test", ("eth9",), {"web": service}, there, host_usage=usage, budget_per_hour=budget)


def on(host: str, k: int, parent: str = "web-1", state: ShadowState = ShadowState.READY) -> Shadow:
    return Shadow(f"{parent}-s{k}", "web", parent, host, "netns", state, 0.0, 0.0, ready_unix_s=0.0)


def told(hosts: Hosts, at_s: float = 100.0, **cpu: float) -> Hosts:
    hosts.observe(
        model.Usage(f"host:{name}", at_s, cpu=share, memory=0.1, of_cpus=8.0) for name, share in cpu.items()
    )
    return hosts


def placed(hosts: Hosts, config: model.Config, *shadows: Shadow, now_s: float = 101.0, again=None):
    found = hosts.candidates(config, shadows, PARENT, ("b", "c"), now_s, 1000.0, again)
    return choose(found, wish(config, PARENT, shadows))


def test_who_is_least_used_with_the_shadow_on_it_gets_it_and_the_words_say_so():
    hosts = told(Hosts(), a=0.4, b=0.5, c=0.1)
    assert placed(hosts, configured()).host == "c"
    # Its parent is all of a's members: 40 % of 8 CPUs.
    assert placed(hosts, configured()).why == "50% used with it (b 90%), other host than web-1"


def test_a_larger_host_is_less_used_by_the_same_shadow():
    hosts = told(Hosts(), a=0.4)
    hosts.observe(
        [
            model.Usage("host:b", 100.0, cpu=0.2, of_cpus=4.0),
            model.Usage("host:c", 100.0, cpu=0.3, of_cpus=32.0),
        ]
    )
    assert placed(hosts, configured()).why.startswith("40% used with it (b 100%)")


def test_an_endpoints_own_reading_goes_before_its_hosts():
    config = configured()
    docker = replace(READ, kind=model.UsageKind.DOCKER)
    config = replace(config, services={"web": replace(config.services["web"], usage=docker)})
    hosts = told(Hosts(), a=0.9, b=0.1, c=0.2)
    hosts.observe([model.Usage("web-1", 100.0, cpu=0.5, of_cpus=2.0)])
    assert placed(hosts, config).why.startswith("22% used with it (c 32%)")


@pytest.mark.parametrize("state", [ShadowState.REQUESTED, ShadowState.PROVISIONING, ShadowState.WARMING])
def test_a_shadow_on_order_is_reckoned_with(state):
    hosts = told(Hosts(), a=0.2, b=0.1, c=0.25)
    assert placed(hosts, configured(), on("b", 1, "web-2", state)).host == "c"
    assert placed(hosts, configured(), on("b", 1, "web-2")).host == "b", "readings hold it"


def test_stale_or_never_read_use_keeps_a_host_out_and_without_a_source_slots_tell():
    hosts = told(Hosts(), a=0.2, b=0.1)
    assert placed(hosts, configured()).why.endswith("not c (its use was not read yet)")
    told(hosts, at_s=200.0, c=0.9)
    late = placed(hosts, configured(), now_s=201.0)
    assert late.host == "c"
    assert "b (its use was read 101 s ago)" in late.why
    assert placed(hosts, configured(usage=None), on("c", 1, "web-2")).why == (
        "25% of its slots used with it (c 50%), other host than web-1"
    )


def test_hosts_back_off_in_doubling_pauses_until_a_run_succeeds():
    hosts, now = Hosts(), 1000.0
    pauses = [hosts.failed("b", "unreachable", now).until_unix_s - now for _ in range(8)]
    assert pauses == [5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0]
    assert placed(hosts, configured(usage=None)).why.endswith("not b (avoided for 300 s after 8 runs failed)")
    again = Hosts()
    again.recall(hosts.to_keep())
    assert again.failing == hosts.failing
    assert again.avoided_s("b", -1e9) == LONGEST_PAUSE_S, "whatever became of the clock"
    assert again.failed("b", "unreachable", now + 601.0).runs == 1, "long after the last it is the first"
    assert hosts.succeeded("b")
    assert placed(hosts, configured(usage=None)).host == "b"
    assert not hosts.succeeded("b")


def test_when_all_fail_who_failed_least_is_next():
    hosts = Hosts()
    hosts.failed("b", "no", 990.0)
    hosts.failed("b", "no", 996.0)
    hosts.failed("c", "no", 994.9)
    assert placed(hosts, configured(usage=None)).host == "c"
    hosts.failed("c", "no", 999.0)
    nobody = placed(hosts, configured(usage=None))
    assert nobody.host is None
    assert nobody.why.startswith("no host can take it (b: avoided for 6 s after 2 runs failed, c: avoided")


def test_a_failed_shadow_goes_elsewhere_if_there_is_an_elsewhere():
    failed = on("b", 1, state=ShadowState.FAILED)
    assert placed(Hosts(), configured(usage=None), failed, again=failed).host == "c"
    small = configured(usage=None, c=Host("c", slots=1), b=Host("b", slots=1))
    assert placed(Hosts(), small, failed, on("c", 1, "web-2"), again=failed).host == "b", (
        "its own slot is free"
    )


def test_the_budget_holds_for_all_shadows_together():
    config = configured(
        usage=None, budget=1.0, b=Host("b", 4, price_per_hour=0.4), c=Host("c", 4, price_per_hour=0.3)
    )
    assert placed(Hosts(), config, on("b", 1)).host == "c"
    nobody = placed(Hosts(), config, on("b", 1), on("b", 2))
    assert nobody.host is None
    assert "c: 0.3/h, and 0.2/h are left of budget_per_hour" in nobody.why
    assert placed(Hosts(), replace(config, budget_per_hour=1.1), on("b", 1), on("b", 2)).host == "c"


def test_the_parents_region_is_preferred_where_none_is_named():
    config = configured(
        usage=None, a=Host("a", region="eu"), b=Host("b", region="us"), c=Host("c", 4, region="eu")
    )
    assert placed(Hosts(), config, on("c", 1)).host == "c"
    shadows = model.ShadowSettings(hosts=("b", "c"), regions=("us",))
    config = replace(config, services={"web": replace(config.services["web"], shadows=shadows)})
    assert placed(Hosts(), config).host == "b"


def test_what_can_not_be_removed_from_a_failing_host_is_not_counted_against_limits():
    config = replace(configured(usage=None), max_shadows=1)
    ghost = on("b", 1, state=ShadowState.REMOVING)
    assert placement.full(config, [ghost], PARENT) is not None
    assert placement.full(config, [ghost], PARENT, {"b"}) is None


def test_names_are_the_first_that_is_free():
    assert placement.name("web-1", ["web-1-s1", "web-1-s3"]) == "web-1-s2"
