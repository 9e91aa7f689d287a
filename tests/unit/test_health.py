# SPDX-License-Identifier: Apache-2.0
"""Health flips after enough answers in a row, never before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from controlplane.health import MemberHealth
from controlplane.model import Health, Probe


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
