# SPDX-License-Identifier: Apache-2.0
"""Plans from anything to anything: they arrive, also when cut short, and nothing dangles on the way."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.model import (
    Affinity,
    InstallService,
    Member,
    OnDown,
    Protocol,
    Requests,
    Role,
    SetLimit,
    Steering,
    VirtualService,
)
from controlplane.plan import plan
from tests.fakes import FakeClock, FakeDataplane


@st.composite
def steerings(draw: st.DrawFn) -> Steering:
    """What may be wanted: every service has a live member in its ring, slots name its members' shadows."""
    services, members = {}, {}
    # Each has its own address; another steering gives it to somebody else.
    addresses = [IPv4Address("10.0.0.0") + k for k in draw(st.permutations(range(1, 19)))]
    for service in draw(st.sets(st.sampled_from(["dns", "web"]))):
        live = sorted(draw(st.sets(st.sampled_from([f"{service}-{k}" for k in range(1, 4)]), min_size=1)))
        for name in live:
            shadows = sorted(draw(st.sets(st.sampled_from([f"{name}-s1", f"{name}-s2"]))))
            for shadow in shadows:
                members[shadow] = Member(
                    shadow,
                    service,
                    addresses.pop(),
                    80,
                    Role.SHADOW,
                    name,
                    draw(st.booleans()),
                    draw(st.booleans()),
                    limit=draw(st.sampled_from([0, 10])),
                )
            slots = {s: draw(st.sampled_from([0.5, 1.0])) for s in shadows if draw(st.booleans())}
            spill = draw(st.sampled_from([0.0, 0.3, 1.0])) if slots else 0.0
            members[name] = Member(
                name,
                service,
                addresses.pop(),
                80,
                Role.LIVE,
                None,
                draw(st.booleans()),
                draw(st.booleans()),
                spill,
                slots,
                draw(st.sampled_from([0, 10, 20])),
            )
        chosen = draw(st.sets(st.sampled_from(live), min_size=1))
        ring = {name: draw(st.sampled_from([0.5, 1.0])) for name in sorted(chosen)}
        vip = IPv4Address("192.0.2.0") + draw(st.integers(1, 2))
        on_down, affinity = draw(st.sampled_from(OnDown)), draw(st.sampled_from(Affinity))
        requests = draw(st.sampled_from(Requests))
        services[service] = VirtualService(
            service, vip, 80, Protocol.TCP, on_down, 4093, ring, affinity, requests
        )
    return Steering(services, members)


def assert_nothing_dangles(now: Steering, before: Steering, wanted: Steering) -> None:
    for name, service in now.services.items():
        assert service.ring.keys() <= now.members.keys()
        was = before.services.get(name)
        if was and name in wanted.services and was.vip == wanted.services[name].vip:
            kept = was.ring.keys() & wanted.members.keys()
            same = any(
                before.members[n].address == wanted.members[n].address for n in kept if n in before.members
            )
            assert service.ring or not same, f"{name} has lost its ring on the way"
    for member in now.members.values():
        assert member.slots.keys() <= now.members.keys()
        assert member.spill == 0.0 or member.slots, f"{member.name} spills into nothing"


@settings(max_examples=150, deadline=None)
@given(steerings(), steerings(), st.integers(0, 40))
def test_a_plan_cut_anywhere_is_resumed_and_arrives(installed, wanted, cut):
    dataplane = FakeDataplane(FakeClock(), rows=64)
    for step in plan(Steering(), installed):
        dataplane.apply(step)
    assert dataplane.installed() == installed
    for step in plan(installed, wanted)[:cut]:
        dataplane.apply(step)
        assert_nothing_dangles(dataplane.installed(), installed, wanted)
    for step in plan(dataplane.installed(), wanted):
        dataplane.apply(step)
        assert_nothing_dangles(dataplane.installed(), installed, wanted)
    assert dataplane.installed() == wanted
    assert plan(wanted, wanted) == ()


def test_another_affinity_or_on_down_moves_nobody():
    web = VirtualService(
        "web", IPv4Address("192.0.2.1"), 80, Protocol.TCP, OnDown.RESET, 4093, {"web-1": 1.0}
    )
    live = Member("web-1", "web", IPv4Address("10.0.0.1"), 80, Role.LIVE)
    changed = replace(web, on_down=OnDown.KEEP, affinity=Affinity.SOURCE)
    steps = plan(Steering({"web": web}, {"web-1": live}), Steering({"web": changed}, {"web-1": live}))
    assert steps == (InstallService(replace(changed, ring={})),)


def test_a_limit_is_one_step():
    web = VirtualService(
        "web", IPv4Address("192.0.2.1"), 80, Protocol.TCP, OnDown.RESET, 4093, {"web-1": 1.0}
    )
    live = Member("web-1", "web", IPv4Address("10.0.0.1"), 80, Role.LIVE)
    installed = Steering({"web": web}, {"web-1": live})
    assert plan(installed, Steering({"web": web}, {"web-1": replace(live, limit=10)})) == (
        SetLimit("web-1", 10),
    )


@settings(max_examples=50, deadline=None)
@given(steerings(), st.sampled_from(OnDown), st.sampled_from(Requests))
def test_how_a_services_packets_are_treated_changes_while_its_flows_go_on(installed, on_down, requests):
    services = {
        name: replace(service, on_down=on_down, requests=requests)
        for name, service in installed.services.items()
    }
    steps = plan(installed, Steering(services, installed.members))
    assert all(isinstance(step, InstallService) for step in steps)
    assert {step.service.name for step in steps} == {
        name for name, service in services.items() if service != installed.services[name]
    }
