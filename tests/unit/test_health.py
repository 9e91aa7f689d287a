# SPDX-License-Identifier: Apache-2.0
"""Health flips after enough answers in a row, never before; and who of those that fail is ejected."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane import health as rules
from controlplane.health import MemberHealth, ejections
from controlplane.model import Health, Probe

QUICK = Probe(rise=1, fall=1)


def seen(*answers: tuple[float, bool], probe: Probe = QUICK) -> MemberHealth:
    now = MemberHealth()
    for at_s, ok in answers:
        now = now.observe(Health("a", ok, at_s, 0.01, "" if ok else "refused"), probe)
    return now


@given(st.lists(st.booleans(), max_size=60), st.integers(1, 4), st.integers(1, 4))
def test_it_flips_exactly_after_its_count_in_a_row(answers, rise, fall):
    probe = Probe(rise=rise, fall=fall)
    health = MemberHealth()
    for at, ok in enumerate(answers):
        before, health = health.up, health.observe(Health("a", ok, float(at), 0.01, "refused"), probe)
        count = rise if ok else fall
        recent = answers[max(0, at + 1 - count) : at + 1]
        enough = len(recent) == count and all(answer is ok for answer in recent)
        assert health.up is (ok if enough else before)
        assert bool(health.reason) is not ok


def test_it_is_back_only_after_it_was_down():
    health, probe = MemberHealth(), Probe(rise=2, fall=2)
    back = []
    for at, ok in enumerate([True, True, True, False, True, False, False, True, True, True, False]):
        health = health.observe(Health("a", ok, float(at), 0.01), probe)
        back.append(health.back_s)
    assert back == [None] * 8 + [8.0] * 3


def test_an_answer_older_than_the_last_one_is_ignored():
    now = MemberHealth().observe(Health("a", True, 5.0, 0.01), Probe(rise=1))
    assert now.observe(Health("a", False, 4.0, 0.01, "late"), Probe(fall=1)) is now


def test_silence_is_stale_and_not_down():
    health = MemberHealth().observe(Health("a", True, 5.0, 0.01), Probe(rise=1))
    assert not health.is_stale(Probe(), 10.0)
    assert health.is_stale(Probe(), 13.0)
    assert health.up is True
    assert MemberHealth().is_stale(Probe(), 0.0)


# ---- hold-down ------------------------------------------------------------------------------------


def holds_of(outages: int, well_s: float) -> list[float]:
    """How long it is held down after each outage of 1 s, with so much between them."""
    at_s, health, holds = 0.0, seen((0.0, True)), []
    for _ in range(outages):
        at_s += well_s
        health = health.observe(Health("a", False, at_s, 0.01, "refused"), QUICK)
        at_s += 1.0
        health = health.observe(Health("a", True, at_s, 0.01), QUICK)
        holds.append(health.held_s(at_s))
        at_s += holds[-1]
    return holds


def test_hold_down_doubles_with_each_flap_up_to_five_minutes_and_the_first_has_none():
    assert holds_of(9, well_s=60.0) == [0.0, 10.0, 20.0, 40.0, 80.0, 160.0, 300.0, 300.0, 300.0]


def test_who_was_well_for_ten_minutes_begins_anew():
    assert holds_of(4, well_s=600.0) == [0.0] * 4


def test_negative_control_where_nothing_is_forgotten_it_does_not(monkeypatch):
    monkeypatch.setattr(rules, "_FORGOTTEN_S", math.inf)
    assert holds_of(4, well_s=600.0) == [0.0, 10.0, 20.0, 40.0]


def test_who_was_never_up_does_not_flap():
    assert seen((0.0, False), (1.0, True)).held_s(1.0) == 0.0


# ---- ejection -------------------------------------------------------------------------------------

UP, NEW = seen((0.0, True)), MemberHealth()


def down(at_s: float) -> MemberHealth:
    return seen((0.0, True), (at_s, False))


def held(left_s: float) -> MemberHealth:
    return UP._replace(outages=UP.outages._replace(back_s=100.0 + left_s, flaps=2))


MEMBERS = st.dictionaries(
    st.sampled_from([f"m{n}" for n in range(9)]),
    st.one_of(st.just(UP), st.just(NEW), st.floats(1.0, 90.0).map(down), st.floats(-50.0, 50.0).map(held)),
    min_size=1,
)


@settings(max_examples=300)
@given(MEMBERS, st.floats(0.01, 1.0), st.sets(st.sampled_from([f"m{n}" for n in range(9)]), max_size=2))
def test_never_more_than_its_share_and_never_the_last(members, most, absent):
    found = ejections(members, absent, most, 100.0)
    fails = {name for name, one in members.items() if one.up is False}
    assert found.failing | found.waiting == fails
    assert not found.failing & found.waiting
    well = members.keys() - fails - absent
    if not well:
        assert found.failing == fails, "it is to fail open"
        return
    out = found.failing | found.held
    assert well - out, "the last one that is well was ejected"
    assert len(out) <= max(most * (len(fails) + len(well)) + 1e-6, 1)
    assert found.held <= {name for name in well if members[name].held_s(100.0) > 0}
    assert not (found.waiting and found.held), "who is well is out, and who fails is in"
    if found.waiting:
        first = max(members[name].outages.down_s for name in found.failing)
        assert all(members[name].outages.down_s >= first for name in found.waiting)


@pytest.mark.parametrize(
    ("members", "most", "out", "waiting"),
    [
        ({"a": UP, "b": down(1), "c": down(2), "d": UP}, 0.5, {"b", "c"}, set()),
        ({"a": UP, "b": down(1), "c": down(2), "d": down(3)}, 0.5, {"b", "c"}, {"d"}),
        ({"a": UP, "b": down(1), "c": down(2), "d": down(3)}, 1.0, {"b", "c", "d"}, set()),
        ({"a": UP, "b": down(1), "c": down(1)}, 0.1, {"b"}, {"c"}),
        ({"a": UP, "b": down(1)}, 0.1, {"b"}, set()),
        ({"a": down(1), "b": down(2)}, 0.1, {"a", "b"}, set()),
        ({"a": UP, "b": held(9), "c": held(5)}, 1.0, {"b", "c"}, set()),
        ({"a": UP, "b": held(9), "c": held(5)}, 0.4, {"b"}, set()),
        ({"a": UP, "b": held(9), "c": down(1)}, 0.4, {"c"}, set()),
        ({"a": down(1), "b": held(9)}, 1.0, {"a"}, set()),
        ({"a": held(9), "b": held(5)}, 1.0, set(), set()),
    ],
)  # fmt: skip
def test_who_failed_first_is_ejected_first_and_who_is_held_down_comes_in_where_needed(
    members, most, out, waiting
):
    found = ejections(members, (), most, 100.0)
    assert (found.failing | found.held, found.waiting) == (out, waiting)


def test_negative_control_without_its_share_more_are_ejected(monkeypatch):
    members = {"a": UP, "b": down(1), "c": down(2), "d": down(3)}
    hit = []
    monkeypatch.setattr(rules.math, "floor", lambda value: hit.append(value) or 99)
    with pytest.raises(AssertionError):
        test_who_failed_first_is_ejected_first_and_who_is_held_down_comes_in_where_needed(
            members, 0.5, {"b", "c"}, {"d"}
        )
    assert hit
