# SPDX-License-Identifier: Apache-2.0
"""Each rule of the policy is a row: a group as it is, and the act that follows."""

from __future__ import annotations

import math
from dataclasses import replace
from ipaddress import IPv4Address

import numpy as np
import pytest

from controlplane import drains, groups, policy
from controlplane.groups import Act, Group, Memory, Verdict
from controlplane.model import Shadow, ShadowSettings, ShadowState

NOW = 10_000.0
SETTINGS = ShadowSettings(
    hosts=("a", "b"), headroom=0.2, min_life_s=20.0, idle_s=10.0, drain_s=10.0, retries=2, retry_after_s=5.0
)
HORIZON_S = 5.0


def shadow(k: int, state: ShadowState, age_s: float = 1.0, **more: object) -> Shadow:
    made = Shadow(
        name=f"web-s{k}",
        service="web",
        parent="web",
        host="a",
        target="netns",
        state=state,
        requested_unix_s=NOW - age_s,
        changed_unix_s=NOW - age_s,
        address=None if state in (ShadowState.REQUESTED, ShadowState.PROVISIONING) else IPv4Address(k),
        port=80,
        ready_unix_s=NOW - age_s if state in (ShadowState.READY, ShadowState.DRAINING) else None,
        attempts=1 if state is ShadowState.FAILED else 0,
    )
    return replace(made, **more)


def group(high: float, *shadows: Shadow, sick: tuple[str, ...] = (), **more: object) -> Group:
    up = frozenset(
        s.name for s in shadows if s.state in (ShadowState.READY, ShadowState.DRAINING) and s.name not in sick
    )
    made = Group("web", 100.0, high, high, HORIZON_S, 0.9, True, True, shadows, up, {})
    return replace(made, **more)


def decided(now: Group, memory: Memory = Memory()) -> Verdict:  # noqa: B008 - frozen
    return policy.decide(SETTINGS, now, memory, NOW)[0][0]


def all_decided(now: Group) -> list[tuple[Act, str | None]]:
    return [(one.act, one.shadow) for one in policy.decide(SETTINGS, now, long_since(), NOW)[0]]


def drained(k: int, since_s: float, **more: object) -> Shadow:
    """It gets no new flows since then."""
    return shadow(k, ShadowState.DRAINING, since_s, share=0.0, **more)


def long_since() -> Memory:
    """Everything has been so for an hour."""
    return Memory((NOW - 3600.0,) * 5, (NOW - 3600.0,) * 5, troubled_since=NOW - 3600.0)


SLOW = "RTT 5 ms, 0.5 ms is normal"


READY, ON_ORDER, WARM = ShadowState.READY, ShadowState.PROVISIONING, ShadowState.WARMING
DRAINING, FAILED, REMOVING = ShadowState.DRAINING, ShadowState.FAILED, ShadowState.REMOVING
OLD, LATE_S = 100.0, 8.0

ROWS = {
    "demand within capacity and headroom: hold": (group(79.0), Act.HOLD),
    "the forecast passes the threshold: add": (group(81.0), Act.ADD),
    "demand now passes it although the forecast does not: add": (group(50.0, level=81.0), Act.ADD),
    "no reading yet: hold": (group(math.nan), Act.HOLD),
    "capacity not known: hold": (group(500.0, capacity=None), Act.HOLD),
    "capacity not known, and it is saturated: add": (group(500.0, capacity=None, saturated=True), Act.ADD),
    "capacity not known, saturated, readings are stale: hold": (
        group(500.0, capacity=None, saturated=True, fresh=False), Act.HOLD),
    "capacity not known, saturated, but down: hold": (
        group(500.0, capacity=None, saturated=True, live_up=False), Act.HOLD),
    "capacity not known, saturated, one is on order: hold": (
        group(500.0, shadow(1, ON_ORDER), capacity=None, saturated=True), Act.HOLD),
    "capacity not known, saturated though a shadow has long been there: one more": (
        group(500.0, shadow(1, READY, OLD), capacity=None, saturated=True), Act.ADD),
    "capacity not known, saturated like all others, though a shadow has long been there: hold": (
        group(500.0, shadow(1, READY, OLD), capacity=None, saturated=True, trouble=SLOW, others_too=True),
        Act.HOLD),
    "capacity not known, saturated with a shadow: hold": (
        group(500.0, shadow(1, READY), capacity=None, saturated=True), Act.HOLD),
    "capacity not known, saturated again while it drains: it comes back": (
        group(500.0, shadow(1, DRAINING), capacity=None, saturated=True), Act.KEEP),
    "capacity not known, more than was served alone: the shadow stays": (
        group(500.0, shadow(1, READY, OLD), capacity=None, proven=400.0), Act.HOLD),
    "capacity not known, less than was served alone for long: drain": (
        group(300.0, shadow(1, READY, OLD), capacity=None, proven=400.0), Act.DRAIN),
    "one ordered by hand failed, its pause is over: retry": (
        group(1.0, shadow(1, FAILED, 6.0, by_hand=True), capacity=None),
        Act.RETRY,
    ),
    "one ordered by hand failed just now: hold": (
        group(1.0, shadow(1, FAILED, 4.0, by_hand=True), capacity=None),
        Act.HOLD,
    ),
    "one is on order: hold": (group(110.0, shadow(1, ON_ORDER)), Act.HOLD),
    "one is warming: hold": (group(110.0, shadow(1, WARM)), Act.HOLD),
    "one is ready: hold": (group(110.0, shadow(1, READY)), Act.HOLD),
    "need for three, one on order, and that has lasted: add": (group(170.0, shadow(1, ON_ORDER)), Act.ADD),
    "need for three, two on order: hold": (
        group(170.0, shadow(1, ON_ORDER), shadow(2, ON_ORDER)), Act.HOLD),
    "the order is late: one replacement": (group(110.0, shadow(1, ON_ORDER, LATE_S)), Act.ADD),
    "the order and its replacement are late: hold": (
        group(110.0, shadow(1, ON_ORDER, LATE_S), shadow(2, ON_ORDER, LATE_S)), Act.HOLD),
    "never healthy, and its replacement late: hold": (
        group(110.0, shadow(1, WARM, LATE_S), shadow(2, WARM, LATE_S)), Act.HOLD),
    "a ready one is unhealthy: one replacement": (
        group(110.0, shadow(1, READY, OLD), sick=("web-s1",)), Act.ADD),
    "failed just now: one replacement": (group(110.0, shadow(1, FAILED)), Act.ADD),
    "failed and its replacement too: hold": (
        group(110.0, shadow(1, FAILED), shadow(2, FAILED)), Act.HOLD),
    "failed, the pause is over: again": (group(110.0, shadow(1, FAILED, 6.0)), Act.RETRY),
    "failed twice, the pause is longer": (
        group(110.0, shadow(1, FAILED, 6.0, attempts=2), shadow(2, FAILED)), Act.HOLD),
    "as many as a group may have: hold": (
        group(900.0, *(shadow(k, READY) for k in range(1, 5))), Act.HOLD),
    "a draining one comes back before another is made": (group(110.0, shadow(1, DRAINING)), Act.KEEP),
    "the rate deviates near the threshold: add": (group(70.0, rate_deviation=0.6), Act.ADD),
    "the rate deviates near the second threshold: hold": (
        group(150.0, shadow(1, READY), rate_deviation=0.6), Act.HOLD),
    "the rate deviates far from it: hold": (group(60.0, rate_deviation=0.6), Act.HOLD),
    "slow without demand: one": (group(30.0, trouble=SLOW), Act.ADD),
    "slow, and the shadows too: a common cause": (
        group(30.0, shadow(1, READY), trouble=SLOW, shadows_too=True, is_helped=True), Act.HOLD),
    "slow, and so are the service's others: a common cause": (
        group(30.0, trouble=SLOW, others_too=True), Act.HOLD),
    "slow, and a shadow is there and is not: hold": (
        group(30.0, shadow(1, READY, OLD), trouble=SLOW, is_helped=True), Act.HOLD),
    "slow, and a shadow is there of another one: one of its own": (
        group(60.0, shadow(1, READY), trouble=SLOW, endpoints=2, others_up=1), Act.ADD),
    "slow, and a shadow is there that is slow too and not needed: drain": (
        group(30.0, shadow(1, READY, OLD), trouble=SLOW, shadows_too=True, is_helped=True), Act.DRAIN),
    "slow, and demand rises: by demand": (
        group(170.0, shadow(1, READY, OLD), trouble=SLOW, shadows_too=True, is_helped=True), Act.ADD),
    "failures, and demand has doubled: add": (group(110.0, failing=True), Act.ADD),
    "slow, but on stale readings: hold": (group(30.0, trouble=SLOW, fresh=False), Act.HOLD),
    "down without a shadow: add": (group(30.0, live_up=False), Act.ADD),
    "down, a neighbour is there: hold": (group(0.0, live_up=False, neighbour_up=True), Act.HOLD),
    "down, and its shadow does not answer either: a common cause": (
        group(30.0, shadow(1, READY, OLD), sick=("web-s1",), live_up=False), Act.HOLD),
    "down, its shadow serves: neither idle nor removable": (
        group(0.0, shadow(1, READY, OLD), live_up=False), Act.HOLD),
    "down, its only shadow drains: kept": (group(0.0, shadow(1, DRAINING, 60.0), live_up=False), Act.KEEP),
    "down, its only shadow drains by command: it serves on": (
        group(0.0, shadow(1, DRAINING, 60.0, by_hand=True), live_up=False), Act.ADD),
    "unneeded for long: drain": (group(30.0, shadow(1, READY, OLD)), Act.DRAIN),
    "unneeded, but while the rate deviates so near the threshold it would come back at once: hold": (
        group(70.0, shadow(1, READY, OLD), rate_deviation=0.6), Act.HOLD),
    "unneeded, and nothing deviates: drain": (group(70.0, shadow(1, READY, OLD)), Act.DRAIN),
    "unneeded, but young: hold": (group(30.0, shadow(1, READY, 9.0)), Act.HOLD),
    "unneeded, its least life ends with the ramp: drain": (group(30.0, shadow(1, READY, 10.0)), Act.DRAIN),
    "unneeded, as so much fails, here and at its neighbours: hold": (
        group(30.0, shadow(1, READY, OLD), trouble="30 % are reset", others_too=True, error_deviation=0.9),
        Act.HOLD),
    "unneeded now, but it pays: hold": (group(30.0, shadow(1, READY, OLD), sized=2), Act.HOLD),
    "more pay than the forecast asks for: add": (group(30.0, sized=2), Act.ADD),
    "more were wanted when there were readings to learn from: hold": (
        group(30.0, sized=2, sized_blindly=True), Act.HOLD),
    "more were wanted then, and one drains: kept": (
        group(30.0, shadow(1, DRAINING), sized=2, sized_blindly=True), Act.KEEP),
    "unneeded now, but it was wanted then: hold": (
        group(30.0, shadow(1, READY, OLD), sized=2, sized_blindly=True), Act.HOLD),
    "as many as pay are on order: hold": (group(30.0, shadow(1, ON_ORDER), sized=2), Act.HOLD),
    "more pay, but the order is late: one replacement": (
        group(30.0, shadow(1, ON_ORDER, LATE_S), sized=2), Act.ADD),
    "more pay than a group may have: hold": (
        group(30.0, *(shadow(k, READY, OLD) for k in range(1, 5)), sized=9), Act.HOLD),
    "more pay, and one drains: kept": (group(30.0, shadow(1, DRAINING), sized=2), Act.KEEP),
    "unneeded on stale readings: hold": (group(30.0, shadow(1, READY, OLD), fresh=False), Act.HOLD),
    "unneeded, but by hand: hold": (group(30.0, shadow(1, READY, OLD, by_hand=True)), Act.HOLD),
    "two unneeded, the first gets fewer and fewer new flows: the second waits": (
        group(30.0, shadow(1, READY, OLD), shadow(2, DRAINING, 0.5)), Act.HOLD),
    "two unneeded, the first gets no new flows since just now: hold": (
        group(30.0, shadow(1, READY, OLD), drained(2, 1.0)), Act.HOLD),
    "two unneeded, the first waits for its old flows: the next": (
        group(30.0, shadow(1, READY, OLD), drained(2, 6.0)), Act.DRAIN),
    "two unneeded, the first gives up its old flows: hold": (
        group(30.0, shadow(1, READY, OLD), drained(2, 0.5, evicted=0.2)), Act.HOLD),
    "many unneeded, one gets fewer new flows: the others wait": (
        group(30.0, *(shadow(k, READY, OLD) for k in range(1, 6)), shadow(6, DRAINING, 0.5)), Act.HOLD),
    "a tenth of the ramp later: fewer new flows": (group(30.0, shadow(1, DRAINING, 1.0)), Act.EASE),
    "half a second later, and it was given no new flows: none from now on": (
        group(30.0, shadow(1, DRAINING, 0.5), given={"web-s1": 1.0}), Act.EASE),
    "half a second later, and it was given some: hold": (
        group(30.0, shadow(1, DRAINING, 0.5), given={"web-s1": 1.1}), Act.HOLD),
    "the same on stale readings: hold": (group(30.0, shadow(1, DRAINING, 1.0), fresh=False), Act.HOLD),
    "the ramp, and what is left no longer fits: kept": (group(90.0, shadow(1, DRAINING, 1.0)), Act.KEEP),
    "the ramp, no flows left: nobody goes before it is over": (
        group(30.0, shadow(1, DRAINING, 0.5), flows={"web-s1": 0}), Act.HOLD),
    "drained, no flows left: remove": (group(30.0, drained(1, 3.0), flows={"web-s1": 0}), Act.REMOVE),
    "drained just now, no flows seen: hold": (
        group(30.0, drained(1, 1.0), flows={"web-s1": 0}), Act.HOLD),
    "draining, flows left: hold": (group(30.0, drained(1, 3.0), flows={"web-s1": 1}), Act.HOLD),
    "drain deadline: some of its flows are given away": (
        group(30.0, drained(1, 11.0), flows={"web-s1": 9}), Act.EVICT),
    "drain deadline, all but the last are given away: remove": (
        group(30.0, drained(1, 1.0, evicted=0.95), flows={"web-s1": 1}), Act.REMOVE),
    "drain deadline, some were given away just now: hold": (
        group(30.0, drained(1, 0.5, evicted=0.5), flows={"web-s1": 9}), Act.HOLD),
    "drain deadline, and the load is back: kept": (
        group(90.0, drained(1, 1.0, evicted=0.5), flows={"web-s1": 9}), Act.KEEP),
    "drain deadline on stale readings: hold": (
        group(30.0, drained(1, 11.0), flows={"web-s1": 0}, fresh=False), Act.HOLD),
    "drain deadline on stale readings, by command: it goes on": (
        group(30.0, shadow(1, DRAINING, 11.0, by_hand=True), flows={"web-s1": 9}, fresh=False), Act.EVICT),
    "by command, and the load is back: it goes on": (
        group(90.0, shadow(1, DRAINING, 3.0, by_hand=True), shadow(2, ON_ORDER), flows={"web-s1": 0}),
        Act.REMOVE),
    "failed and not needed, after its pause: remove": (group(30.0, shadow(1, FAILED, 6.0)), Act.REMOVE),
    "one is being removed: hold": (group(30.0, shadow(1, REMOVING)), Act.HOLD),
}  # fmt: skip


@pytest.mark.parametrize(("now", "act"), ROWS.values(), ids=ROWS.keys())
def test_a_rule(now, act):
    verdict = decided(now, long_since())
    assert verdict.act is act, verdict.reason


def test_while_one_is_on_order_the_next_waits_until_the_need_has_lasted():
    now = group(170.0, shadow(1, ON_ORDER))
    (verdict,), memory = policy.decide(SETTINGS, now, Memory(), NOW)
    assert verdict.act is Act.HOLD
    assert policy.decide(SETTINGS, now, memory, NOW + 2.0)[0][0].act is Act.HOLD
    assert policy.decide(SETTINGS, now, memory, NOW + 3.0)[0][0].act is Act.ADD


def test_idle_time_starts_anew_when_demand_comes_back_or_readings_go_stale():
    calm = group(30.0, shadow(1, READY, OLD))
    for interruption in (group(110.0, shadow(1, READY, OLD)), replace(calm, fresh=False)):
        _, memory = policy.decide(SETTINGS, interruption, long_since(), NOW)
        (verdict,), memory = policy.decide(SETTINGS, calm, memory, NOW + 1.0)
        assert verdict.act is Act.HOLD
        # Of the 10 s it may get fewer new flows in the last 5.
        assert policy.decide(SETTINGS, calm, memory, NOW + 5.0)[0][0].act is Act.HOLD
        assert policy.decide(SETTINGS, calm, memory, NOW + 6.0)[0][0].act is Act.DRAIN


class Told:
    """A group that the policy is asked about every second, and whose orders are there at once."""

    def __init__(self) -> None:
        self.now_s, self.memory, self.shadows = NOW, Memory(), ()
        self.acts: list[Act] = []

    def tick(self, seconds: int, high: float = 30.0, **more: object) -> None:
        for _ in range(seconds):
            self.now_s += 1.0
            helped = bool(self.shadows) and "trouble" in more
            now = group(high, *self.shadows, is_helped=helped, **more)
            (verdict, *_), self.memory = policy.decide(SETTINGS, now, self.memory, self.now_s)
            self.acts.append(verdict.act)
            if verdict.act is Act.ADD:
                made = shadow(len(self.shadows) + 1, READY)
                self.shadows += (replace(made, ready_unix_s=self.now_s, changed_unix_s=self.now_s),)
            if verdict.act is Act.DRAIN:
                self.shadows = self.shadows[:-1]


def test_slow_answers_are_answered_once_and_again_only_after_they_were_normal_for_a_while():
    told = Told()
    told.tick(2, trouble=SLOW)
    assert Act.ADD not in told.acts, "not for long yet"
    told.tick(300, trouble=SLOW)
    told.shadows = ()  # somebody took it away
    told.tick(300, trouble=SLOW)
    told.tick(500)
    told.tick(300, trouble=SLOW)
    assert told.acts.count(Act.ADD) == 1, "normal for 500 s only"
    told.tick(610)
    told.tick(60, trouble=SLOW)
    assert told.acts.count(Act.ADD) == 2


def test_the_answer_stays_until_they_have_been_normal_for_a_while():
    told = Told()
    told.tick(300, trouble=SLOW)
    told.tick(590)
    assert (told.acts.count(Act.ADD), told.acts.count(Act.DRAIN)) == (1, 0)
    told.tick(60)
    assert told.acts.count(Act.DRAIN) == 1


def test_in_a_time_with_failures_members_at_most_double_each_minute():
    told = Told()
    told.tick(10)
    told.tick(55, high=900.0, failing=True)
    assert len(told.shadows) == 1, "of one: two"
    told.tick(60, high=900.0, failing=True)
    assert len(told.shadows) == 3
    told.tick(1, high=900.0)
    assert len(told.shadows) == 4, "the time with failures is over"


def test_a_verdict_of_slow_answers_tells_why():
    assert (
        "RTT 5 ms, 0.5 ms is normal, without rising demand"
        in decided(group(30.0, trouble=SLOW), long_since()).reason
    )
    held = decided(group(30.0, trouble=SLOW, others_too=True), long_since())
    assert held.reason == f"web: {SLOW}, and so with its neighbours: a common cause, no more shadows"


def test_where_no_capacity_is_known_the_reason_to_hold_says_when_a_shadow_goes():
    stays = group(500.0, shadow(1, READY, OLD), capacity=None)
    assert decided(stays).reason == "web: capacity is not known yet, 2 members until it is"
    served = decided(replace(stays, proven=400.0)).reason
    assert served == f"{decided(stays).reason}, or demand, 500/s, is below 320/s, by what it served alone"


def test_the_youngest_drains_first():
    verdict = decided(group(30.0, shadow(1, READY, 200.0), shadow(2, READY, OLD)), long_since())
    assert (verdict.act, verdict.shadow) == (Act.DRAIN, "web-s2")


def many(count: int, state: ShadowState = ShadowState.READY, **more: object) -> list[Shadow]:
    return [shadow(k, state, OLD + k, **more) for k in range(1, count + 1)]


def test_one_drains_at_a_time_and_of_many_members_up_to_a_third_the_youngest():
    settings = replace(SETTINGS, max_per_endpoint=100)

    def begun(count: int, sized: int = 1) -> list[str | None]:
        memory = Memory((None,) * 60, (NOW - 3600.0,) * 60)
        verdicts, _ = policy.decide(settings, group(30.0, *many(count), sized=sized), memory, NOW)
        return [one.shadow for one in verdicts if one.act is Act.DRAIN]

    assert [len(begun(count)) for count in (1, 4, 5, 38)] == [1, 1, 2, 13]
    assert begun(5) == ["web-s1", "web-s2"]
    assert len(begun(40, sized=38)) == 3, "those that don't pay"
    assert begun(40, sized=41) == []


def test_of_many_no_more_drain_than_leave_enough_for_what_was_needed_of_late():
    settings = replace(SETTINGS, max_per_endpoint=100)
    lately = tuple(NOW - (3600.0 if n > 15 else 1.0) for n in range(1, 61))
    verdicts, _ = policy.decide(settings, group(30.0, *many(20)), Memory((None,) * 60, lately), NOW)
    assert [one.act for one in verdicts] == [Act.DRAIN] * 5, "the last minutes took 16 members"


def test_all_that_are_drained_go_at_once_and_those_that_drain_go_on_beside_each_other():
    done = [drained(k, 3.0) for k in range(1, 5)]
    flows = {one.name: 0 for one in done}
    on_the_way = [shadow(5, ShadowState.DRAINING, 1.0), drained(6, 11.0)]
    assert all_decided(group(30.0, *done, *on_the_way, flows=flows | {"web-s6": 9})) == [
        *((Act.REMOVE, one.name) for one in done),
        (Act.EASE, "web-s5"),
        (Act.EVICT, "web-s6"),
    ]


def test_as_many_are_kept_as_are_missing_those_with_most_of_their_share_first_and_others_stand_still():
    there = [shadow(k, ShadowState.DRAINING, 1.0, share=share) for k, share in ((1, 0.2), (2, 0.5), (3, 0.9))]
    assert all_decided(group(210.0, *there)) == [(Act.KEEP, "web-s3"), (Act.KEEP, "web-s2")]
    assert all_decided(group(30.0, *there, sized=2)) == [(Act.KEEP, "web-s3")]
    sick = replace(group(210.0, *there, drained(4, 11.0)), up=frozenset({"web-s3"}), flows={"web-s4": 0})
    assert (Act.REMOVE, "web-s4") in all_decided(sick), "who can't serve does not come back"


def test_who_is_missing_beyond_those_that_come_back_is_ordered_at_once():
    now = group(30.0, shadow(1, ShadowState.DRAINING), sized=4)
    assert all_decided(now) == [(Act.KEEP, "web-s1"), (Act.ADD, None)]
    assert policy.decide(SETTINGS, now, long_since(), NOW)[0][1].count == 2


def test_a_drain_from_its_first_step_to_its_last():
    settings = ShadowSettings(headroom=0.2)
    draining, seen = shadow(1, ShadowState.READY, 1000.0), []
    memory = Memory((None,) * 3, (NOW - 3600.0,) * 3)
    for second in range(200):
        left = round(1000 * (1.0 - draining.evicted))
        now = group(30.0, draining, flows={"web-s1": left})
        for one in policy.decide(settings, now, memory, NOW + second)[0]:
            if one.act not in (Act.HOLD, Act.REMOVE):
                draining = groups.obeyed(draining, one, NOW + second)
            if one.act is not Act.HOLD:
                seen.append((second, one.act, draining.share, draining.evicted))
        if seen and seen[-1][1] is Act.REMOVE:
            break
    shares = [(second, share) for second, act, share, _ in seen if act is Act.EASE]
    assert shares == [(3 * n, pytest.approx(1.0 - 0.1 * n)) for n in range(1, 11)], "to nothing in 30 s"
    slices = [(second, evicted) for second, act, _, evicted in seen if act is Act.EVICT]
    # 1000 flows, and the live one has room for 50/s more than it is to serve: half of that is 25/s.
    assert slices[0] == (60, 0.02)
    assert np.allclose(np.diff([evicted for _, evicted in slices]), 0.02)
    assert seen[-1][0] == 60 + 49


@pytest.mark.parametrize(
    ("flows", "room", "part"), [(100, 1000.0, 0.1), (1000, 100.0, 0.05), (1000, 0.0, 0.01)]
)
def test_a_slice_is_no_larger_than_what_others_have_room_for(flows, room, part):
    step = drains.next_step(SETTINGS, drained(1, 11.0), flows, room, NOW)
    assert step is not None
    assert (step.evicted, step.is_over) == (part, False)


def test_pauses_double_and_end_at_five_minutes():
    settings = replace(SETTINGS, retries=20)
    assert [groups.pause_s(settings, n) for n in (1, 2, 3, 4, 10)] == [5.0, 10.0, 20.0, 40.0, 300.0]
    assert groups.pause_s(SETTINGS, 3) == 300.0


def test_as_many_as_pay_are_ordered_at_once_and_no_more_than_allowed():
    assert decided(group(30.0, sized=3)).count == 2
    assert decided(group(30.0, shadow(1, ON_ORDER), sized=4)).count == 2
    assert decided(group(30.0, sized=9)).count == SETTINGS.max_per_endpoint
    reason = decided(group(30.0, sized=3, sized_reason="it pays")).reason
    assert reason == "shadow web +2: 3 wanted and 1 member is there: it pays"


def test_every_reason_is_a_sentence_with_its_numbers():
    assert decided(group(171.0), long_since()).reason == (
        "shadow web +1: p90 demand 171/s in 5 s > 0.8 x 100/s"
    )


@pytest.mark.parametrize(
    ("now", "who"),
    [
        (group(50.0, shadow(1, READY), live_up=False), "its shadows take over"),
        (group(50.0, shadow(1, ON_ORDER), live_up=False), "and a shadow for it is on order"),
        (group(50.0, shadow(1, ON_ORDER), live_up=False, neighbour_up=True), "its neighbours take over"),
    ],
)
def test_who_is_down_has_only_those_named_that_serve(now, who):
    assert decided(now).reason == f"web: down, {who}"
