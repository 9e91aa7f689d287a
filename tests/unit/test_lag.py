# SPDX-License-Identifier: Apache-2.0
"""Nobody is given data older than agreed: who lags loses new flows before, and gets them back when it is
well."""

from __future__ import annotations

import re
from dataclasses import replace
from ipaddress import IPv4Address
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane import lag, model, policy, shadows
from controlplane.adapters import lag_command
from controlplane.cli import control, explain
from controlplane.lag import Gates
from controlplane.model import Lag, OnLag, Shadow, ShadowState, Sync, SyncDriver
from controlplane.record import redone
from controlplane.status import parsed
from tests.world import World, config

MAX_S = 5.0
SYNC = Sync(SyncDriver.POSTGRES, max_lag_s=MAX_S)
READY = Shadow("web-1-s1", "web", "web-1", "host-a", "netns", ShadowState.READY, 0.0, 0.0)
WARMING = replace(READY, state=ShadowState.WARMING)


def synced(configured: model.Config, sync: Sync = SYNC) -> model.Config:
    service = replace(configured.services["web"], access=model.Access.READ, sync=sync)
    return replace(configured, services={"web": service})


def gates(sync: Sync = SYNC, shadow: Shadow = WARMING, now_s: float = 0.0) -> Gates:
    made = Gates()
    made.set_up(synced(config(), sync).services.values(), 1.0)
    made.look({shadow.name: shadow}, now_s)
    return made


def read(at_s: float, lag_s: float | None = 0.2, **told: object) -> Lag:
    return Lag(READY.name, "web", at_s, lag_s, **told)


def opened(sync: Sync = SYNC) -> Gates:
    """By three good readings, the last one at 3 s."""
    made = gates(sync)
    for at_s in (1.0, 2.0, 3.0):
        made.look({READY.name: WARMING}, at_s)
        said = made.take([read(at_s, lag_bytes=100)], at_s)
        assert bool(said) is (at_s == 3.0)
        assert made.serves(READY, at_s) is (at_s == 3.0)
    return made


# ---- the agreement, as a bound --------------------------------------------------------------


def test_what_clients_may_see_is_as_old_as_was_read_and_the_reading_itself():
    assert lag.oldest_s(read(10.0, 0.7), 12.0) == pytest.approx(2.7)
    assert lag.oldest_s(read(10.0, None), 12.0) == float("inf")


def test_new_flows_are_lost_a_look_before_the_data_is_too_old():
    made = opened()
    assert made.serves(READY, 6.69)  # 0.2 + 3.69 + 1.1 < 5
    assert not made.serves(READY, 6.71)
    [(name, said)] = made.take([], 6.71)
    assert name == READY.name
    assert (
        said == "web-1-s1: its data may be 5.0 s old by the next look, 5 s are agreed: it gets no new flows"
    )


def test_looks_that_are_far_apart_cost_more():
    made = opened()
    made.look({READY.name: READY}, 6.0)  # three seconds after the last one
    assert not made.serves(READY, 6.0)  # 0.2 + 3.0 + 3.1 > 5


def test_who_was_over_must_be_well_within_for_three_readings_in_a_row():
    made = opened()
    made.take([], 7.0)
    ages = [(7.1, 2.6), (7.5, 2.4), (8.0, 2.4), (8.5, 2.6), (9.0, 2.4), (9.5, 2.4)]
    for at_s, lag_s in ages:
        assert made.take([read(at_s, lag_s)], at_s) == []
        assert made.why(READY, at_s) == "its data is new enough again, and watched for some readings more"
    [(_, said)] = made.take([read(10.0, 2.4)], 10.0)
    assert said.endswith("its data is 2.4 s behind, 5 s are agreed: it gets new flows again")
    assert [made.part(READY, 2.0, at_s) for at_s in (10.0, 11.0)] == [0.1, 0.5]
    made.take([read(12.0)], 12.0)
    assert made.part(READY, 2.0, 12.0) == 1.0


def test_what_is_not_known_is_not_new_enough():
    made = gates()
    assert made.why(READY, 0.0) == "its lag is not known"
    for at_s in (1.0, 2.0, 3.0, 4.0):
        assert made.take([read(at_s, None)], at_s) == []
    assert not made.serves(READY, 4.0)
    assert not made.serves(replace(READY, name="web-1-s2"), 4.0)
    assert made.serves(replace(READY, service="other"), 4.0), "who serves no copy is not asked"


def test_a_reading_that_comes_late_tells_nothing():
    made = opened()
    made.take([read(2.5, 9.0)], 3.5)
    assert made.serves(READY, 3.5)


def test_a_copy_that_is_made_anew_is_none_until_it_is_there():
    made = opened()
    [(_, said)] = made.take([read(3.5, copied=False, reason="1 of 2 tables are copied")], 3.5)
    assert "1 of 2 tables are copied, 5 s are agreed: it gets no new flows" in said
    made.take([read(4.0), read(4.5)], 4.5)
    assert not made.serves(READY, 4.5)
    made.take([read(5.0)], 5.0)
    assert made.serves(READY, 5.0)


def test_bytes_are_what_was_read_and_what_was_written_since():
    sync = replace(SYNC, max_lag_s=None, max_lag_bytes=1000)
    made = opened(sync)
    made.take([read(3.5, None, lag_bytes=400, written_bytes_per_s=200.0)], 3.5)
    assert made.serves(READY, 5.3)  # 400 + 200 x (1.8 + 1.1) < 1000
    assert not made.serves(READY, 5.5)
    made.take([read(4.0, None, lag_bytes=0)], 4.0)
    assert made.serves(READY, 5.9)
    assert not made.serves(READY, 6.1), "a reading counts for two seconds"


def test_flows_are_evicted_only_by_agreement_and_of_who_had_some():
    hold, evict = opened(), opened(replace(SYNC, on_lag=OnLag.EVICT))
    assert not evict.is_evicted(READY, 4.0)
    assert evict.is_evicted(READY, 7.0)
    assert not hold.is_evicted(READY, 7.0)
    new = gates(replace(SYNC, on_lag=OnLag.EVICT))
    assert not new.serves(READY, 1.0)
    assert not new.is_evicted(READY, 99.0), "it never had any"


def test_after_a_restart_the_first_good_reading_is_enough_and_flows_stay_as_long_as_agreed():
    made = gates(replace(SYNC, on_lag=OnLag.EVICT), READY, 100.0)
    assert not made.serves(READY, 100.0)
    assert not made.is_evicted(READY, 105.0)
    assert made.is_evicted(READY, 105.1)
    made.take([read(105.2)], 105.2)
    assert made.part(READY, 2.0, 105.2) == 1.0
    other = gates(SYNC, READY, 100.0)
    other.take([read(101.0, 4.0)], 101.0)
    other.take([read(101.5)], 101.5)
    assert not other.serves(READY, 101.5), "what it had was too old"


def _oldest_seen(made: Gates, reads: list[tuple[float, float, bool]], gaps: list[float]) -> float:
    """Age of the oldest data that a new flow was given. ``reads``: pauses between them, of how much newer the
    data is each time, and whether the reading arrives."""
    now, data, due, seen = 0.0, 0.0, 0.0, 0.0
    waiting = list(reads)
    for gap in gaps:
        now += gap
        found = []
        while waiting and due <= now:
            pause, moves, arrives = waiting.pop(0)
            due += pause
            data = min(data + moves, due)
            if arrives and due <= now:
                found.append(read(due, due - data))
        made.look({READY.name: WARMING}, now)
        made.take(found, now)
        if made.serves(READY, now):
            # Until the next tick, at worst, flows go to it; its data may have stopped at what was read.
            last = made.of(READY.name)[1].read
            seen = max(seen, now + 1.0 + lag._JITTER_S - (last.at_s - last.lag_s))
    return seen


READS = st.lists(st.tuples(st.floats(0.1, 2.0), st.floats(0.0, 4.0), st.booleans()), min_size=5, max_size=40)


@settings(max_examples=60, deadline=None)
@given(READS, st.lists(st.floats(0.9, 1.1), min_size=5, max_size=30))
def test_no_flow_is_ever_given_data_older_than_agreed(reads, gaps):
    assert _oldest_seen(gates(), reads, gaps) <= MAX_S + 1e-6


def test_negative_control_without_the_time_until_the_next_look_older_data_is_given(monkeypatch):
    reads = [(0.5, 0.5, True)] * 12 + [(0.5, 0.0, True)] * 20
    assert 4.0 < _oldest_seen(gates(), reads, [1.0] * 16) <= MAX_S
    whole = lag.excess
    monkeypatch.setattr(lag, "excess", lambda sync, gate, now_s, _: whole(sync, gate, now_s, 0.0))
    assert _oldest_seen(gates(), reads, [1.0] * 16) > MAX_S


# ---- in the loop ----------------------------------------------------------------------------


def served(sync: Sync = SYNC, *, records: bool = False, **changed: object) -> World:
    """A world whose one shadow is ready and gets new flows."""
    world = World(synced(config(max_per_endpoint=1, **changed), sync), records=records)
    world.ticks(25, 40.0)
    world.until(ShadowState.READY, 110.0)
    world.ticks(6, 110.0)
    assert world.dataplane.served["web-1-s1"] > 0
    return world


def last_flow(world: World, seconds: int = 12) -> int:
    """Ticks after which the shadow was given the last ones."""
    last = 0
    for at in range(1, seconds + 1):
        world.tick(110.0)
        last = at if world.dataplane.served["web-1-s1"] > 0 else last
    return last


def said(world: World, action: str) -> list[str]:
    return [row.reason for row in world.store.rows if row.action == action]


@pytest.mark.parametrize("on_lag", list(OnLag))
def test_a_cut_network_takes_new_flows_within_the_agreement_and_healed_gives_them_back(on_lag):
    world = served(replace(SYNC, on_lag=on_lag))
    before = world.dataplane.members["web-1"].spill
    world.lag_source.cut = {"web-1-s1"}
    assert before > 0
    assert 2 <= last_flow(world) <= MAX_S
    live = world.dataplane.members["web-1"]
    assert (live.spill, live.slots) == (0.0, {})
    assert world.dataplane.served["web-1"] == pytest.approx(110.0, abs=40.0)
    assert world.dataplane.members["web-1-s1"].down is (on_lag is OnLag.EVICT)
    [shadow] = world.controller.status().services[0].groups[0].shadows
    assert shadow.state == "ready"
    assert shadow.weight == 0.0
    assert "no new flows go to it: its data may be" in shadow.reason
    assert (shadow.lag.is_open, shadow.lag.max_seconds) == (False, MAX_S)
    assert shadow.lag.seconds > MAX_S
    world.lag_source.cut.clear()
    world.tick(110.0)
    assert not world.dataplane.members["web-1"].slots
    world.ticks(4, 110.0)
    assert not world.dataplane.members["web-1-s1"].down
    assert world.dataplane.served["web-1-s1"] > 0
    lines = said(world, "lag")
    assert [line.rpartition(": ")[2].partition(",")[0] for line in lines] == [
        "it gets new flows",
        "it gets no new flows",
        "it gets new flows again",
    ]


def test_negative_control_without_the_gate_flows_go_on(monkeypatch):
    world = served()
    monkeypatch.setattr(Gates, "part", lambda *_: 1.0)
    world.lag_source.cut = {"web-1-s1"}
    assert last_flow(world) == 12
    assert world.controller.status().services[0].groups[0].shadows[0].lag.seconds > MAX_S


def test_a_reader_that_says_nothing_is_no_lag_of_nought():
    world = served()
    world.lag_source.unread = {"web-1-s1"}
    assert 2 <= last_flow(world) <= MAX_S
    assert world.controller.status().troubles["lag"] == "web-1-s1: no answer within 1 s"


def test_between_ticks_it_is_acted_on_too():
    world = served()
    world.lag_source.cut = {"web-1-s1"}
    world.ticks(3, 110.0)
    world.clock.advance(0.9)
    assert world.dataplane.members["web-1"].slots
    world.controller.react()
    assert not world.dataplane.members["web-1"].slots


def test_a_dead_primary_ends_in_its_live_endpoint_alone_and_never_in_old_data():
    world = served()
    world.lag_source.cut = {"web-1-s1"}
    world.prober.dead.add("web-1")
    world.ticks(3, 110.0)
    assert world.dataplane.members["web-1"].spill == 1.0, "the shadow takes over while it may"
    world.ticks(6, 110.0)
    live = world.dataplane.members["web-1"]
    assert (live.down, live.spill, live.slots) == (False, 0.0, {})
    assert world.controller.status().services[0].fail_open
    assert world.dataplane.served["web-1-s1"] == 0.0
    assert len(world.orders()) == 1, "a copy of a dead one can't be made"


def test_whatever_happens_no_flow_is_given_data_older_than_agreed():
    """By what the data is, not by what was read of it."""
    world, random = served(), np.random.default_rng(7)
    lags, given = world.lag_source, 0
    for _ in range(150):
        if random.random() < 0.15:
            lags.cut ^= {"web-1-s1"}
        if random.random() < 0.1:
            lags.unread ^= {"web-1-s1"}
        lags.behind["web-1-s1"] = float(random.choice([0.1, 0.5, 2.0, 4.0]))
        world.tick(110.0, step_s=float(random.uniform(0.95, 1.05)))
        if random.random() < 0.3:
            world.controller.react()
        if world.dataplane.served["web-1-s1"] > 0:
            given += 1
            assert world.clock.now - lags.has_s["web-1-s1"] <= MAX_S
    assert given > 30


# ---- the first copy -------------------------------------------------------------------------


def copying(world: World) -> World:
    world.lag_source.copying = {"web-1-s1"}
    world.ticks(25, 40.0)
    world.until(ShadowState.WARMING, 110.0)
    return world


def test_a_copy_takes_its_time_and_nobody_else_is_ordered_meanwhile():
    world = copying(World(synced(config(timeout_s=20.0, max_per_endpoint=1))))
    world.ticks(60, 110.0)
    [shadow] = world.store.records.values()
    assert shadow.state is ShadowState.WARMING
    assert shadow.reason == "waits for its data: 1 of 2 tables are copied"
    world.lag_source.copying.clear()
    world.until(ShadowState.READY, 110.0, limit=5)
    world.ticks(4, 110.0)
    assert world.dataplane.served["web-1-s1"] > 0


def test_a_copy_that_is_not_there_in_time_or_not_seen_to_be_made_fails():
    slow = copying(
        World(synced(config(timeout_s=5.0, max_per_endpoint=1), replace(SYNC, copy_timeout_s=15.0)))
    )
    slow.until(ShadowState.FAILED, 110.0, limit=20)
    assert said(slow, "fail")[-1].endswith("its data was not there within 15 s: 1 of 2 tables are copied")
    blind = World(synced(config(timeout_s=5.0, max_per_endpoint=1)))
    blind.lag_source.unread = {"web-1-s1"}
    blind.ticks(25, 40.0)
    blind.until(ShadowState.FAILED, 110.0, limit=20)
    assert said(blind, "fail")[-1].endswith("its data was not there within 5 s: its lag is not known")


# ---- members --------------------------------------------------------------------------------


def lagging() -> World:
    """For 40 s all that there are lag, while three members are needed."""
    world = served()
    world.config = synced(config(max_per_endpoint=4))
    world.controller.reconfigure(world.config)
    world.lag_source.behind = dict.fromkeys([f"web-1-s{k}" for k in range(1, 9)], 9.0)
    world.lag_source.has_s.clear()
    world.ticks(40, 210.0)
    return world


def test_who_lags_is_no_member_and_one_more_is_ordered_and_no_other():
    world = lagging()
    assert len(world.orders()) == 2
    told = [row.reason for row in world.store.rows if row.action == "hold"]
    assert any("must not serve" in reason and "a common cause" in reason for reason in told), told
    names = {shadow.name for shadow in world.store.records.values()}
    assert names == {"web-1-s1", "web-1-s2"}, "lag alone removes nobody"


def test_negative_control_without_that_more_are_ordered(monkeypatch):
    monkeypatch.setattr(policy, "_held_by_lag", lambda *_: "")
    assert len(lagging().orders()) > 2


def test_who_lags_and_is_not_needed_goes_first():
    world = served()
    world.lag_source.behind = {"web-1-s1": 9.0}
    world.lag_source.has_s.clear()
    world.ticks(5, 110.0)
    world.ticks(60, 30.0)
    assert any("drains: not needed for" in reason for reason in said(world, "drain")), said(world, "drain")
    assert not world.store.records


def test_the_record_decides_the_same():
    world = served(replace(SYNC, on_lag=OnLag.EVICT), records=True)
    world.lag_source.cut = {"web-1-s1"}
    for _ in range(8):
        world.tick(120.0)
        world.clock.advance(0.4)
        world.controller.react()
    world.lag_source.cut.clear()
    world.ticks(6, 120.0)
    world.restart()
    world.ticks(10, 120.0)
    decisions = list(redone(world.recorded, lambda number: world.configs[int(number)]))
    assert decisions
    assert [one for one in decisions if not one.is_same] == []
    blind = [line.replace('"lags"', '"nothing"') for line in world.recorded]
    again = list(redone(blind, lambda number: world.configs[int(number)]))
    assert any(not one.is_same for one in again), "it hangs on what was read of lag"


def test_it_is_told_to_prometheus():
    world = served()
    values = {one.name: one for one in world.metrics.samples if one.name.startswith("shadow_")}
    assert values["shadow_lag_ok"].value == 1.0
    assert values["shadow_lag_ok"].labels == {"service": "web", "endpoint": "web-1", "shadow": "web-1-s1"}
    assert 0.0 < values["shadow_lag_seconds"].value < 2.0
    assert values["shadow_max_lag_seconds"].value == MAX_S
    assert "shadow_max_lag_bytes" not in values


def test_it_is_explained():
    world = served()
    lines = "\n".join(explained(world))
    assert re.search(r"data +of web-1-s1 [0-9.]+ s old at most, 5 s agreed \(on_lag: hold\)$", lines, re.M)
    world.lag_source.cut = {"web-1-s1"}
    world.ticks(8, 110.0)
    told = r"5 s agreed \(on_lag: hold\): no new flows: its data may be [0-9.]+ s old by the next look$"
    assert re.search(told, "\n".join(explained(world)), re.M)
    told = parsed(world.shown[-1])["services"][0]["groups"][0]["shadows"][0]["lag"]
    assert {*control.LAG} - {"endpoint", "name"} <= told.keys()


def explained(world: World) -> list[str]:
    """As penumbra explain has it of web-1."""
    service = parsed(world.shown[-1])["services"][0]
    more = {key: service[key] for key in ("pool", "earlier_s", "flow_life_s", "common_cause", "novelty")}
    return list(explain._of_group({**service["groups"][0], "service": "web", **more}))


def test_a_shadows_place_and_primary_are_read():
    world = served()
    target = world.lag_source.targets["web-1-s1"]
    assert target.primary == (IPv4Address("10.0.0.1"), 8080)
    assert (target.instance, target.service, target.sync) == ("test", "web", SYNC)


# ---- a copy that goes no further ------------------------------------------------------------

DISABLED = "its subscription is disabled"
LOST = "its slot on the primary has lost WAL that it needs: its copy can't go on"


def test_why_a_copy_goes_no_further_is_told_once_and_shown_beside_its_lag():
    world = served()
    world.lag_source.cut = {"web-1-s1"}
    world.lag_source.stopped = {"web-1-s1": DISABLED}
    world.tick(110.0)
    assert said(world, "lag")[-1] == f"web-1-s1: {DISABLED}"
    assert f"(on_lag: hold): {DISABLED}" in "\n".join(explained(world)), "new flows still go to it"
    world.ticks(7, 110.0)
    assert [DISABLED in line for line in said(world, "lag")] == [False, True, True]
    assert "it gets no new flows" in said(world, "lag")[-1]
    [shadow] = world.controller.status().services[0].groups[0].shadows
    assert re.fullmatch(rf"its data may be [0-9.]+ s old by the next look \({DISABLED}\)", shadow.lag.reason)
    assert DISABLED in shadow.reason
    assert shadow.state == "ready", "it may go on"


def test_a_reason_that_comes_and_goes_is_no_news_until_it_is_well():
    made = opened()
    worker = read(3.5, 0.2, reason="its worker does not run")
    assert made.take([worker], 3.5) == [("web-1-s1", "web-1-s1: its worker does not run")]
    assert made.take([read(4.0, 2.6), replace(worker, at_s=4.5)], 4.5) == []
    assert made.take([read(at_s) for at_s in (5.0, 5.5, 6.0)], 6.0) == []
    assert made.take([replace(worker, at_s=6.5)], 6.5) != []


def lost(world: World) -> World:
    world.lag_source.cut = {"web-1-s1"}
    world.lag_source.stopped, world.lag_source.lost = {"web-1-s1": LOST}, {"web-1-s1"}
    world.tick(110.0)
    return world


def test_a_copy_that_can_never_go_on_has_failed_and_is_made_again():
    world = lost(served())
    [shadow] = world.store.records.values()
    assert (shadow.state, shadow.reason) == (ShadowState.FAILED, LOST)
    world.lag_source.cut, world.lag_source.stopped, world.lag_source.lost = set(), {}, set()
    world.until(ShadowState.READY, 110.0, limit=200)
    assert len(world.orders()) == 2


def test_negative_control_without_that_it_stays_for_ever(monkeypatch):
    monkeypatch.setattr(Gates, "lost", lambda *_: "")
    world = lost(served())
    world.ticks(60, 110.0)
    [shadow] = world.store.records.values()
    assert shadow.state is ShadowState.READY
    assert LOST in world.controller.status().services[0].groups[0].shadows[0].lag.reason


# ---- sentences ------------------------------------------------------------------------------


def test_fails_open_without_shadows_that_are_too_old_and_says_so(capsys):
    world = served()
    world.lag_source.cut = {"web-1-s1"}
    world.prober.dead.add("web-1")
    world.ticks(9, 110.0)
    too_old = "web: all members are down, or not known to have data that is new enough (web-1-s1): fails open"
    assert said(world, "fail-open") == [f"{too_old}, packets go to the others (web-1)"]
    at = SimpleNamespace(name="x", config="x.yaml")
    control._print_status(at, {**parsed(world.shown[-1]), "controller_pid": 1, "decisions": []})
    assert f"{too_old}, packets go to the others" in capsys.readouterr().err
    world.prober.dead.clear()
    world.ticks(4, 110.0)
    assert said(world, "fail-closed") == ["web: no longer fails open, packets go to who is healthy (web-1)"]


def test_who_gets_no_new_flows_does_not_serve():
    world = served()
    assert "itself and 1 shadow serve" in explained(world)[0]
    world.lag_source.cut = {"web-1-s1"}
    world.ticks(8, 110.0)
    assert "itself and 0 shadows serve" in explained(world)[0]


@pytest.mark.parametrize("lag_s", [-0.01, -0.0, 0.0])
def test_no_data_is_behind_by_less_than_nought(lag_s):
    assert lag.behind(SYNC, read(1.0, lag_s)) == "its data is 0.0 s behind"
    assert lag.oldest_s(read(1.0, lag_s), 1.0) == 0.0


def test_what_a_command_prints_may_be_a_secret():
    for told in ("garbage 1 2", "secret", "-1"):
        with pytest.raises(ValueError, match="printed no number: seconds, or bytes with a B, are") as caught:
            lag_command.parsed(told)
        assert told not in str(caught.value)


def test_who_is_healthy_again_is_not_called_unhealthy():
    its = model.ShadowSettings()
    well = replace(READY, reason="healthy and warm", healthy_unix_s=1.0)
    ill = shadows.after_probe(well, False, its, 2.0)
    assert (ill.reason, ill.healthy_unix_s) == ("unhealthy", None)
    again = shadows.after_probe(ill, True, its, 3.0)
    assert (again.reason, again.healthy_unix_s) == ("healthy again", 3.0)
    met = replace(READY, reason="adopted")
    assert shadows.after_probe(met, True, its, 3.0).reason == "adopted"
