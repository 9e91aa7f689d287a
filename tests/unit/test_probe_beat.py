# SPDX-License-Identifier: Apache-2.0
"""When a member is checked next: on a counted clock."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.adapters import probe_beat
from controlplane.adapters.probe_beat import Beat
from controlplane.model import Probe

PROBE = Probe(interval_s=1.0, timeout_s=0.5, rise=2, fall=3)


def run(beat, answers, until_s, asked_s=None):
    """When its checks began and how they ended; ``answers``: (now) -> (ok, how long it takes)."""
    found, now_s = [], 0.0
    while max(now_s, beat.due_s) < until_s:
        if asked_s is not None and asked_s < max(now_s, beat.due_s):
            beat.ask(asked_s)
            asked_s = None
        now_s = max(now_s, beat.due_s)
        ok, took_s = answers(now_s)
        found.append((now_s, ok, beat.take(ok, took_s, now_s + took_s)))
        now_s += took_s
    return found


def dies(at_s, took_s):
    return lambda now_s: (True, 0.001) if now_s < at_s else (False, took_s)


def known_s(found, took_s):
    """When it was known to be down."""
    return next(at_s + took_s for at_s, ok, flips in found if not ok and flips)


@settings(max_examples=60)
@given(st.floats(3.0, 5.0), st.sampled_from([0.0, 0.001, 0.2, 0.5]), st.integers(2, 4), st.floats(0.0, 0.5))
def test_who_dies_is_known_to_within_interval_x_fall(died_s, took_s, fall, jitter):
    probe = Probe(interval_s=1.0, timeout_s=0.5, rise=2, fall=fall, jitter=jitter)
    found = run(Beat(probe, 0.0), dies(died_s, took_s), 20.0)
    assert sum(not ok for at_s, ok, _ in found if at_s <= known_s(found, took_s)) >= fall
    assert known_s(found, took_s) - died_s <= probe.interval_s * fall + 1e-6


def test_negative_control_checks_that_go_on_at_their_interval_are_later_where_they_take_their_timeout(
    monkeypatch,
):
    gap_s = Beat._gap_s
    monkeypatch.setattr(Beat, "_gap_s", lambda self, took_s, new: gap_s(self, 0.0, new))
    found = run(Beat(PROBE, 0.0), dies(4.1001, 0.5), 20.0)
    assert known_s(found, 0.5) - 4.1001 > PROBE.interval_s * PROBE.fall + 0.2


def test_who_is_new_is_checked_fast_until_something_is_known_of_it():
    begun = [at_s for at_s, *_ in run(Beat(PROBE, 0.0), lambda now_s: (True, 0.001), 3.5)]
    assert begun == pytest.approx([0.0, 0.1, 1.1, 2.1, 3.1])
    waits = [at_s for at_s, *_ in run(Beat(PROBE, 0.0), lambda now_s: (now_s > 0.15, 0.001), 2.0)]
    assert waits == pytest.approx([0.0, 0.1, 0.2, 0.3, 1.3])


def test_where_thousands_are_new_each_is_checked_at_its_interval():
    assert probe_beat.quick_s(PROBE, 10_000) == 1.0
    assert probe_beat.quick_s(PROBE, 400) == pytest.approx(0.2)


def test_who_shows_signs_of_trouble_is_checked_at_once_and_fast_until_it_is_down():
    found = run(Beat(PROBE, 0.0), dies(5.2, 0.001), 9.0, asked_s=5.3)
    assert known_s(found, 0.001) == pytest.approx(5.501)
    assert sum(flips for _, ok, flips in found if not ok) == 1


def test_one_that_answers_well_is_checked_once_and_goes_on_as_before():
    begun = [at_s for at_s, *_ in run(Beat(PROBE, 0.0), lambda now_s: (True, 0.001), 8.0, asked_s=5.3)]
    assert begun == pytest.approx([0.0, 0.1, 1.1, 2.1, 3.1, 4.1, 5.1, 5.3, 6.3, 7.3])


def test_it_is_asked_about_once_a_second_at_most_and_not_while_it_is_down():
    beat = Beat(Probe(rise=1, fall=1), 0.0)
    beat.take(True, 0.001, 0.0)
    assert beat.ask(10.0)
    beat.take(True, 0.001, 10.0)
    assert not beat.ask(10.9)
    assert beat.ask(11.0)
    beat.take(False, 0.001, 11.0)
    assert not beat.ask(13.0)


@given(st.integers(0, 2**32))
def test_jitter_makes_checks_earlier_and_never_later(seed):
    probe_beat.random.seed(seed)
    beat = Beat(Probe(interval_s=1.0, jitter=0.3, rise=1, fall=1), 0.0)
    begun = [at_s for at_s, *_ in run(beat, lambda now_s: (True, 0.001), 30.0)]
    gaps = [after - before for before, after in pairwise(begun)]
    assert all(0.7 - 1e-9 <= gap <= 1.0 + 1e-9 for gap in gaps)
    assert max(gaps) - min(gaps) > 0.01
