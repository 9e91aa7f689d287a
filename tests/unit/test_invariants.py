# SPDX-License-Identifier: Apache-2.0
"""What must always hold, under random demand, faults, restarts and readings."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane import loop, model, policy, weights
from controlplane.fleet import Fleet
from controlplane.roster import Roster
from tests.world import CAPACITY, World, config

EVENTS = st.sampled_from(
    [
        "restart", "store breaks", "store works", "counters stop", "counters go on", "probes stop",
        "probes go on", "runs fail", "runs work", "runs hang", "live dies", "live lives", "shadow dies",
        "shadow lives", "data plane breaks", "data plane works", "store lost", "nothing", "nothing",
    ]
)  # fmt: skip


LATE_S = 2.0
"""Between ticks where nothing happens any more: the controller is busy, and readings are not stale yet."""


def happen(world: World, event: str) -> None:
    match event:
        case "restart":
            world.restart()
        case "store breaks" | "store works":
            world.store.broken = event.endswith("breaks")
        case "counters stop" | "counters go on":
            world.dataplane.still = event.endswith("stop")
        case "probes stop" | "probes go on":
            world.prober.silent = event.endswith("stop")
        case "runs fail" | "runs work" | "runs hang":
            world.provisioner.fail = event.endswith("fail")
            world.provisioner.hang = event.endswith("hang")
        case "live dies":
            world.prober.dead.add("web-1")
        case "live lives":
            world.prober.dead.discard("web-1")
        case "shadow dies":
            world.prober.dead.add("web-1-s1")
        case "shadow lives":
            world.prober.dead.discard("web-1-s1")
        case "data plane breaks" | "data plane works":
            world.dataplane.broken = event.endswith("breaks")
        case "store lost":
            world.store.records.clear()
            world.restart()


def recover(world: World) -> None:
    for event in ("store works", "counters go on", "probes go on", "runs work", "live lives", "shadow lives"):
        happen(world, event)
    happen(world, "data plane works")


def assert_it_holds(world: World, steps_before: int) -> None:
    members = world.dataplane.members
    ring = world.dataplane.services["web"].ring
    assert ring, "never without a ring"
    up = [m for m in members.values() if not m.down]
    assert up, "the last one is never ejected"
    for member in members.values():
        assert member.slots.keys() <= members.keys()
        assert member.spill == 0.0 or member.slots, "nothing spills into nothing"
    live = members["web-1"]
    usable = [m for m in up if m.role is model.Role.SHADOW]
    if live.down and not world.dataplane.broken:
        assert usable, "a down live one without anybody else would be failing open"
        assert live.spill == 1.0, "its shadows take over all of it"
    blind = world.dataplane.still and world.controller.status() and not world.controller.status().fresh
    if blind:
        new = [row for row in world.store.rows[steps_before:] if row.action in ("drain", "remove")]
        assert new == [], "nothing is drained or removed on stale readings"


@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.lists(
        st.tuples(EVENTS, st.sampled_from([5.0, 40.0, 90.0, 150.0, 260.0]), st.integers(3, 25)), max_size=8
    ),
    st.integers(0, 1000),
)
def test_whatever_happens_the_invariants_hold_and_in_the_end_nothing_is_left(story, seed):
    live_through(story, seed)


def live_through(story: Iterable[tuple[str, float, int]], seed: int) -> None:
    world = World(config(), seed)
    world.ticks(5, 30.0)
    for event, demand, ticks in story:
        happen(world, event)
        for _ in range(ticks):
            said = len(world.store.rows)
            world.tick(demand)
            if not world.dataplane.broken:
                assert_it_holds(world, said)
            assert len(world.provisioner.exists) <= 5, "what exists is bounded"
    recover(world)
    world.ticks(120, 10.0)
    for _ in range(1000):  # who was started twice stays for ten minutes
        if not world.store.records:
            break
        world.tick(10.0, step_s=LATE_S)
    world.ticks(160, 10.0, step_s=LATE_S)  # a survey finds what nobody remembers
    assert world.controller.status().troubles == {}, world.controller.status().troubles
    assert world.provisioner.exists == set(), "no orphans"
    assert world.store.records == {}
    assert list(world.dataplane.members) == ["web-1"]
    lost = world.dataplane.lost
    world.ticks(5, 30.0)
    assert world.dataplane.lost == lost


STORIES = (
    [("nothing", 150.0, 25), ("live dies", 150.0, 25), ("live lives", 40.0, 25)],
    [("nothing", 150.0, 25), ("probes stop", 5.0, 25), ("nothing", 5.0, 25), ("nothing", 5.0, 25)],
    [("nothing", 150.0, 30), ("nothing", 5.0, 2), ("counters stop", 5.0, 40)],
    [("live dies", 40.0, 20), ("live lives", 40.0, 20)],
    [("nothing", 150.0, 10), ("restart", 150.0, 20), ("store lost", 150.0, 20)],
    [("runs hang", 150.0, 60), ("runs work", 150.0, 20)],
)


def without_takeover(patch: pytest.MonkeyPatch) -> None:
    """A down live endpoint does not hand everything to its shadows."""
    wanted = loop.wanted_steering

    def kept(*arguments, **named):
        steering = wanted(*arguments, **named)
        members = {n: replace(m, spill=min(m.spill, 0.5)) for n, m in steering.members.items()}
        return replace(steering, members=members)

    patch.setattr(loop, "wanted_steering", kept)


def without_fail_open(patch: pytest.MonkeyPatch) -> None:
    """The last one is ejected too."""
    wanted = loop.wanted_steering

    def ejected(config, installed, fleet, *arguments, **named):
        steering = wanted(config, installed, fleet, *arguments, **named)
        members = {n: replace(m, down=not fleet.is_up(n, True)) for n, m in steering.members.items()}
        return replace(steering, members=members)

    patch.setattr(loop, "wanted_steering", ejected)


def removal_on_stale_readings(patch: pytest.MonkeyPatch) -> None:
    """And nothing is kept because it pays: that is not reckoned anew on stale readings either."""
    group = Fleet.group
    patch.setattr(Fleet, "group", lambda *args, **named: replace(group(*args, **named), fresh=True, sized=1))


def forgotten_without_removal(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Roster, "start_runs", only_provisioning(Roster.start_runs))


def only_provisioning(start_runs: Callable[..., None]) -> Callable[..., None]:
    def started(roster: Roster, installed: Iterable[str]) -> None:
        for shadow in list(roster.shadows.values()):
            if shadow.state is model.ShadowState.REMOVING and shadow.name not in installed:
                roster._forget(shadow)
        start_runs(roster, installed)

    return started


def late_orders_without_bound(patch: pytest.MonkeyPatch) -> None:
    """Each tick that an order is late is answered by one more shadow."""
    grow = policy._grow

    def greedy(settings, group, *because):
        return grow(replace(settings, max_per_endpoint=99), replace(group, shadows=()), *because)

    patch.setattr(policy, "_grow", greedy)


def spill_into_nothing(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(weights, "step_spill", lambda current, target: 0.0)
    wanted = loop.wanted_steering

    def spilled(*arguments, **named):
        steering = wanted(*arguments, **named)
        members = {n: replace(m, spill=1.0) for n, m in steering.members.items()}
        return replace(steering, members=members)

    patch.setattr(loop, "wanted_steering", spilled)


def test_these_stories_hold():
    for seed, story in enumerate(STORIES):
        live_through(story, seed)


@pytest.mark.parametrize(
    ("broken", "story", "noticed"),
    [
        (without_takeover, 0, "its shadows take over"),
        (without_fail_open, 3, "never ejected"),
        (removal_on_stale_readings, 2, "on stale readings"),
        (forgotten_without_removal, 0, "no orphans"),
        (late_orders_without_bound, 5, "bounded"),
        (spill_into_nothing, 0, "spills into nothing"),
    ],
)
def test_the_same_stories_notice_a_broken_rule(broken, story, noticed, monkeypatch):
    """The negative control: that one of them which the rule is for."""
    broken(monkeypatch)
    with pytest.raises(AssertionError, match=noticed):
        live_through(STORIES[story], story)


@pytest.mark.parametrize(("share", "seed"), [(0.2, 2), (0.6, 1)])
def test_half_an_hour_of_steady_load_neither_starts_nor_stops_anything(share, seed):
    """One may come while nothing is known yet, and goes when it does not pay."""
    world = World(config(idle_s=300.0), seed)
    world.ticks(900, share * CAPACITY)
    orders = list(world.provisioner.orders)
    assert len(world.orders()) <= 1
    world.ticks(1800, share * CAPACITY)
    assert world.provisioner.orders == orders


@pytest.mark.parametrize("old_share", [0.0, 0.5, 0.95])
@pytest.mark.parametrize("times_lead", [2.0, 3.0])
def test_during_a_ramp_the_live_one_stays_below_capacity_although_connections_live_on(old_share, times_lead):
    """Requests follow connections: only new flows can be sent elsewhere."""
    over = []
    for seed in range(5):
        world = World(config(warm_up_s=1.0), seed)
        world.provisioner.lead_s = 2.0
        over.append(seconds_over(world, old_share, times_lead * 4.5))
    assert np.median(over) <= (0 if times_lead == 3.0 else 3), over


def seconds_over(world: World, old_share: float, rise_s: float) -> int:
    """A plant of open connections: each lives 5-30 s and asks at a steady rate."""
    random = np.random.default_rng(11)
    open_until: dict[str, list[tuple[float, float]]] = {}
    over = 0
    for second in range(60 + int(rise_s) + 30):
        share = 0.3 if second < 60 else min(0.3 + 0.7 * (second - 60) / rise_s, 1.3)
        world.tick(share * CAPACITY)
        served = world.dataplane.served
        total = sum(served.values()) or 1.0
        load: dict[str, float] = {}
        for name, flows in served.items():
            # Of the new flows' demand a part comes on connections that were opened then and live on.
            load[name] = flows * (1 - old_share)
            rate = share * CAPACITY * old_share * (flows / total) / 17.5
            life_s = random.uniform(5.0, 30.0)
            open_until.setdefault(name, []).append((second + life_s, rate))
        for name, opened in open_until.items():
            load[name] = load.get(name, 0.0) + sum(rate for until, rate in opened if until > second)
        over += second > 60 and load.get("web-1", 0.0) > CAPACITY * 1.15
    return over
