# SPDX-License-Identifier: Apache-2.0
"""What is normal, and what is found to deviate from it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from controlplane import baseline, signs
from controlplane.baseline import REMARKABLE, Baseline
from controlplane.clones import Clones
from controlplane.habits import Habits
from controlplane.observe import COUNTED, Counted
from controlplane.signs import Count, Signs, Time
from tests import quiet
from tests.quiet import Endpoints, Shift, Watched

FOUND_S = 30
JUDGED = slice(Count.RESETS, None)
"""All but rates, which start nothing far from capacity."""


def test_in_quiet_times_nothing_is_found():
    """Hours of 240 endpoints, 0.5 to 200 flows/s: a quarter of a week; ``python -m tests.quiet`` has many."""
    assert quiet.false_finds(240, 600, seed=3)[JUDGED].sum() == 0


def test_negative_control_with_a_quarter_of_the_evidence_chance_is_found(monkeypatch):
    monkeypatch.setattr(baseline, "_CERTAIN", 9.0)
    assert quiet.false_finds(240, 600, seed=3)[JUDGED].sum() > 10


SHIFTS = {
    "RTT x 3": (Shift(rtt=3.0), 5, (5.0, 200.0)),
    "response times x 3": (Shift(response=3.0), 6, (40.0, 200.0)),
    "10 % reset": (Shift(resets=0.1), Count.RESETS, (20.0, 200.0)),
    "20 % without SYN-ACK": (Shift(unanswered=0.2), Count.UNANSWERED, (10.0, 200.0)),
    "10 % aborted": (Shift(aborted=0.1), Count.ABORTED, (10.0, 200.0)),
    "twice as many": (Shift(rate=2.0), Count.RATE, (20.0, 200.0)),
}
"""At these rates: of fewer flows it takes longer to tell."""


@pytest.mark.parametrize(("shift", "sign", "rates"), SHIFTS.values(), ids=SHIFTS.keys())
def test_a_shift_is_found_within_30_s_nearly_always(shift, sign, rates):
    watched = Watched(Endpoints(200, np.random.default_rng(5), rates))
    for _ in range(300):
        watched.tick()
    found = np.zeros(watched.groups, bool)
    for _ in range(FOUND_S):
        watched.tick(shift)
        found |= watched.found[sign, : watched.groups]
    assert found.mean() >= 0.95


def tick(one: Baseline, rate: float, rtt_us: float = math.nan, usual_rate: float = 1.0) -> None:
    """A second of a row: a hundredth of its flows is reset."""
    counts = np.array([[rate], [rate], [0.01 * rate], [0.0], [math.nan]])
    of = np.array([[1.0], [1.0], [rate], [rate], [math.nan]])
    times = np.log(np.array([[rtt_us], [math.nan]]))
    now, every = Signs(1.0, counts, of, times), np.ones(1, bool)
    one.judge(now, np.full(1, usual_rate), np.zeros((2, 1)))
    one.learn(now, every, every)


def learned(rate: float = 100.0, rtt_us: float = 500.0) -> Baseline:
    one = Baseline(["web"])
    for _ in range(120):
        tick(one, rate, rtt_us)
    assert (one.scores < REMARKABLE).all()
    return one


def test_one_reading_alone_is_chance_and_none_tells_nothing():
    one = learned()
    for _ in range(20):
        tick(one, 1e6, 1e6)
        for _ in range(20):
            tick(one, 100.0, 500.0)
        assert (one.scores < REMARKABLE).all()
    before = one.normal_count().copy()
    tick(one, math.nan, math.nan)
    assert np.array_equal(one.normal_count(), before)


def test_what_has_deviated_for_half_an_hour_is_normal():
    one = learned()
    rtt = len(Count) + Time.RTT
    for _ in range(1700):
        tick(one, 100.0, 5000.0)
    assert one.scores[rtt, 0] == 1.0
    assert math.exp(one.normal_time()[Time.RTT, 0]) < 600.0, "not learned meanwhile"
    for _ in range(400):
        tick(one, 100.0, 5000.0)
    assert one.scores[rtt, 0] == 0.0
    assert math.exp(one.normal_time()[Time.RTT, 0]) == pytest.approx(5000.0)


def failing(one: Baseline, share: float, readings: int, flows: float = 20.0) -> None:
    counts = np.array([[flows], [flows], [flows * share], [0.0], [math.nan]])
    of = np.array([[1.0], [1.0], [flows], [flows], [math.nan]])
    for _ in range(readings):
        now, every = Signs(1.0, counts, of, np.full((2, 1), math.nan)), np.ones(1, bool)
        one.judge(now, np.ones(1), np.zeros((2, 1)))
        one.learn(now, every, every)


def until_well(flows: float) -> int:
    """Readings until who has failed, and does not any more, is no deviation."""
    one = Baseline(["web"])
    failing(one, 0.01, 120, flows)
    failing(one, 0.3, 60, flows)
    assert one.scores[Count.RESETS, 0] == 1.0
    readings = 0
    while one.scores[Count.RESETS, 0] >= REMARKABLE:
        failing(one, 0.01, 1, flows)
        readings += 1
    return readings


def test_who_is_well_again_is_soon_seen_to_be(monkeypatch):
    assert until_well(5.0) <= 30
    monkeypatch.setattr(baseline, "_HEALS", 1.0)
    assert until_well(5.0) > 60, "by evidence alone"


@pytest.mark.parametrize(("better_s", "is_found"), [(30.0, True), (1e9, False)])
def test_who_was_ill_at_first_and_then_well_for_two_minutes_is_found_ill(monkeypatch, better_s, is_found):
    monkeypatch.setattr(baseline, "_BETTER_S", better_s)
    one = Baseline(["web"])
    failing(one, 0.5, 70)
    failing(one, 0.005, 120)
    failing(one, 0.5, FOUND_S)
    assert (one.scores[Count.RESETS, 0] >= REMARKABLE) is np.bool_(is_found)


def test_what_is_usual_at_this_time_is_no_deviation():
    plain, nightly = learned(), learned()
    for _ in range(10):
        tick(plain, 300.0, 500.0)
        tick(nightly, 300.0, 500.0, usual_rate=3.0)
    assert plain.scores[Count.RATE, 0] >= REMARKABLE
    assert nightly.scores[Count.RATE, 0] < REMARKABLE


def test_rows_of_the_same_name_are_taken_over():
    one, other = learned(), Baseline(["db", "web"])
    other.resume(one)
    assert np.array_equal(other.normal_count()[:, 1], one.normal_count()[:, 0])
    assert not other.known[:, 0].any()


# ---- signs -------------------------------------------------------------------------------------


def counted(**numbers: float) -> Counted:
    return Counted(**{name: np.array([float(numbers.get(name, 0.0))]) for name in COUNTED})


def unanswered(flows: float, rtt_count: float, remembered: float, *, is_tcp: bool = True) -> float:
    now = counted(flows=flows, rtt_count=rtt_count)
    return float(signs.read(now, 1.0, np.array([is_tcp]), remembered).counts[Count.UNANSWERED, 0])


def test_a_syn_without_syn_ack_is_told_from_one_whose_handshake_was_not_timed():
    assert unanswered(100, 80, 100) == 20
    assert unanswered(100_000, 7629 + (100_000 - 7629) / 8, 100_000) == 0, "all were answered, by one CPU"
    assert unanswered(100_000, 1000, 100_000) > 90_000
    assert math.isnan(unanswered(100, 0, 100, is_tcp=False)), "UDP has none"


def test_a_shadow_is_as_bad_when_it_takes_or_fails_nearly_as_much():
    clones = Clones()
    for _ in range(10):
        clones.take(["a"], counted(flows=10, rtt_count=10, rtt_sum_us=10_000, resets=1), 1.0)
    assert clones.is_as_bad("a", [(Time.RTT, 1400.0)])
    assert not clones.is_as_bad("a", [(Time.RTT, 2000.0)])
    assert clones.is_as_bad("a", [(Count.RESETS, 0.15)])
    assert not clones.is_as_bad("a", [(Count.RESETS, 0.3)])
    assert not clones.is_as_bad("b", [(Count.RESETS, 0.0)])
    clones.take(["b", "a"], Counted(**dict.fromkeys(COUNTED, np.zeros(2))), 1.0)
    assert clones.is_as_bad("a", [(Time.RTT, 1400.0)]), "still it"


# ---- habits ------------------------------------------------------------------------------------

DAY_S = 86_400.0
NIGHT_S = 20_000 * DAY_S + 2 * 3600.0


def nights(count: int) -> Habits:
    """Each with 300 at two o'clock and 100 at noon, of the second row."""
    habits = Habits(1, 2)
    for day in range(count):
        for hour, value in ((0.0, 300.0), (10.0, 100.0)):
            habits.take(NIGHT_S + day * DAY_S + hour * 3600.0, np.array([[math.nan, value]]))
    return habits


def test_what_came_on_two_days_is_a_habit_at_that_time():
    two, one = nights(2), nights(1)
    now_s = NIGHT_S + 2 * DAY_S
    assert two.usual(now_s)[0, 1] == 300.0
    assert two.usual(now_s + 1800.0)[0, 1] == 300.0, "half an hour later too"
    assert two.usual(now_s + 10 * 3600.0)[0, 1] == 100.0
    assert np.isnan(two.usual(now_s)[0, 0])
    assert np.isnan(two.usual(now_s + 5 * 3600.0)).all()
    assert np.isnan(one.usual(now_s)).all()
    assert np.isnan(two.usual(now_s + 20 * DAY_S)).all(), "long ago"


def test_habits_are_kept_and_what_makes_no_sense_is_left_out_and_said():
    habits, kept = nights(3), {}
    for day, text in habits.days(1, 0):
        kept[day] = text
    first = min(day for day, text in kept.items() if text)
    again, now_s = Habits(1, 2), NIGHT_S + 3 * DAY_S
    assert again.recall(1, now_s, kept.get) == []
    assert again.usual(now_s)[0, 1] == 300.0
    for text in (
        "nonsense",
        '{"most": 3}',
        json.dumps({"most": {"7": [1.0]}}),
        kept[first].replace("[", "[1, "),
    ):
        wrong = Habits(1, 2).recall(1, now_s, (kept | {first: text}).get)
        assert len(wrong) == 1
        assert wrong[0].startswith(f"day {first}: ")
