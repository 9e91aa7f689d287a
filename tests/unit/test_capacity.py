# SPDX-License-Identifier: Apache-2.0
"""What an endpoint can serve is learned from how it answers, and from nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from controlplane import capacity, ceilings, queueing, response_curve, saturation
from controlplane.capacity import Capacities, News
from controlplane.ceilings import Ceilings, Ended
from controlplane.observe import Rows, Work, growth, rates, work
from controlplane.ports import Counters
from controlplane.saturation import Saturation
from tests.fakes import FIELDS
from tests.queues import LATEST, response_time

EACH = 8
SERVERS = np.repeat([1, 4, 20], EACH)
TRUTH = np.tile([50.0, 100.0, 400.0, 1000.0], 3 * EACH // 4)
N = len(TRUTH)
MINUTE = 60
NOBODY = np.zeros(N, bool)

Course = Callable[[int], float]


def swinging(low: float, high: float, period_s: float = 200.0) -> Course:
    return lambda second: (low + high) / 2 + (high - low) / 2 * np.sin(2 * np.pi * second / period_s)


class Plant:
    """Endpoints that serve what they can, told second by second; answers take a constant millisecond and
    their share of the queue."""

    def __init__(
        self, given: float = np.nan, told: int = 0, learned: Capacities | None = None, seed: int = 3
    ) -> None:
        """:param given: as a part of the truth. ``told``: requests to a flow; 0: they are not told."""
        self.random = np.random.default_rng(seed)
        self.truth = TRUTH.copy()
        self.told, self.queues = told, True
        names = [f"web/{at}" for at in range(N)]
        self.learned = learned or Capacities(names, given * TRUTH, np.full(N, told > 0))
        self.news: list[News] = []
        self.backlog = np.zeros(N)

    def work(self, load: float, slower: float) -> Work:
        asked = self.random.poisson(load * TRUTH).astype(float) if self.queues else load * TRUTH
        there = asked + self.backlog
        done = np.minimum(there, self.truth)
        self.backlog = np.minimum(there - done, self.truth)
        busy = np.minimum(load * TRUTH / self.truth, LATEST)
        queue = np.array([float(response_time(b, s)) for b, s in zip(busy, SERVERS, strict=True)])
        queue = queue if self.queues else np.ones(N)
        took_us = 1000.0 * slower * (1.0 + queue + self.backlog / self.truth * SERVERS)
        took_us *= np.exp(0.1 * self.random.normal(size=N))
        each = max(self.told, 1)
        lost = np.maximum(asked - done, 0.0)
        return Work(
            1.0, done, each * asked, each * done, done, done * took_us, np.zeros(N), lost, np.zeros(N)
        )

    def run(
        self, seconds: int, load: Course, slower: Course = lambda second: 1.0, usable: bool = True
    ) -> np.ndarray:
        """(readings, endpoints) what was used, as a part of what they can serve. Readings are late by up to
        five seconds, so that one tells of several."""
        used, unread = [], None
        for second in range(seconds):
            unread = _sum(unread, self.work(load(second), slower(second)))
            if self.random.random() < 0.3 and unread.over_s < 5.0:
                continue
            self.learned.take(unread, np.full(N, usable), NOBODY)
            self.news += self.learned.learn()
            used.append(self.learned.used / self.truth)
            unread = None
        return np.array(used)


def _sum(before: Work | None, now: Work) -> Work:
    if before is None:
        return now
    return Work(*(getattr(before, f) + getattr(now, f) for f in Work.__slots__))


@pytest.fixture(scope="module")
def known() -> str:
    """What was learned of those whose load was 60 to 95 %."""
    plant = Plant()
    plant.run(600, swinging(0.6, 0.95))
    return plant.learned.text(np.arange(N))


def knowing(known: str, given: float = np.nan) -> Plant:
    plant = Plant(given)
    plant.learned.recall(known)
    return plant


def within_a_tenth_a_minute(used: np.ndarray) -> bool:
    """Readings are 1.4 s apart."""
    apart = used[MINUTE:] / used[:-MINUTE]
    return bool(np.nanmin(apart) > 0.9**1.5 and np.nanmax(apart) < 1.1**1.5)


@pytest.mark.parametrize("told", [0, 5])
def test_learned_at_60_to_95_percent_and_never_far_above_the_truth(told):
    plant = Plant(told=told)
    used = plant.run(600, swinging(0.6, 0.95))
    assert np.isfinite(used[-1][SERVERS < 20]).all()
    assert np.nanmin(used) >= 0.7
    assert np.nanmax(used) <= 1.1
    assert np.nanmedian(used[-1]) <= 1.0
    high = plant.learned.high[SERVERS < 20] / TRUTH[SERVERS < 20]
    assert (high > 1.0).all(), "the truth is in the interval"


def test_negative_control_a_curve_that_tells_nothing_teaches_nothing():
    plant = Plant()
    plant.queues = False
    assert np.isnan(plant.run(600, swinging(0.6, 0.95))).all()


def test_overload_is_learned_from_what_is_still_answered():
    used = Plant().run(400, lambda second: 0.5 + second / 500)
    assert 0.75 <= used[-1].min() <= used[-1].max() <= 1.05


def test_nothing_is_learned_below_half():
    assert np.isnan(Plant().run(900, swinging(0.1, 0.45))).all()


def test_what_is_known_does_not_move_below_half(known):
    plant = knowing(known)
    before = plant.learned.low.copy()
    plant.run(600, lambda second: 0.4, slower=lambda second: 1.0 + second / 100)
    assert plant.learned.low == pytest.approx(before, rel=1e-3, nan_ok=True)


def test_nothing_is_learned_of_what_is_unfit():
    assert np.isnan(Plant().run(600, swinging(0.6, 1.1), usable=False)).all()


def test_a_gap_is_no_window():
    plant = Plant()
    work = plant.work(0.9, 1.0)
    for _ in range(50):
        plant.learned.take(
            Work(60.0, *(60 * getattr(work, f) for f in Work.__slots__[1:])), np.full(N, True), NOBODY
        )
    assert not plant.learned._curve.count.any()


def slow_when_it_matters(plant: Plant) -> np.ndarray:
    """A database is slow whenever load is high, which it has served."""
    load = swinging(0.6, 0.9)
    return plant.run(500, load, slower=lambda second: 5.0 if load(second) > 0.75 else 1.0)


def test_slow_answers_that_no_load_brought_do_not_count(known):
    plant = knowing(known)
    used = slow_when_it_matters(plant)
    assert np.nanmin(used / used[0]) > 0.95


def test_negative_control_without_the_comparison_at_the_same_rate_they_do(known, monkeypatch):
    monkeypatch.setattr(response_curve, "_SHIFTED", 1e9)
    plant = knowing(known)
    used = slow_when_it_matters(plant)
    assert np.nanmin(used / used[0]) < 0.9
    assert within_a_tenth_a_minute(used)


def test_less_can_be_served_is_followed_by_a_tenth_a_minute(known):
    plant = knowing(known)
    plant.truth = 0.6 * TRUTH
    used = plant.run(15 * MINUTE, swinging(0.55, 0.8))
    assert within_a_tenth_a_minute(used)
    assert np.nanmax(used[-1]) <= 1.1
    assert np.nanmin(used[-1]) >= 0.7


def test_negative_control_without_a_limit_it_jumps(known, monkeypatch):
    monkeypatch.setattr(capacity, "_A_MINUTE", 10.0)
    plant = knowing(known)
    plant.truth = 0.6 * TRUTH
    assert not within_a_tenth_a_minute(plant.run(5 * MINUTE, swinging(0.55, 0.8)))


def test_too_much_was_given_the_lower_is_used_once_it_was_seen_and_said_once():
    plant = Plant(given=1.3)
    used = plant.run(15 * MINUTE, swinging(0.6, 1.25))
    assert used[0].tolist() == [pytest.approx(1.3)] * N
    assert within_a_tenth_a_minute(np.where(np.isclose(used, 1.3), np.nan, used)), "after it was refuted"
    assert 0.85 <= used[-1].min() <= used[-1].max() <= 1.05
    assert {plant.learned.source(row) for row in range(N)} == {"learned"}
    assert all(plant.learned.contradicted(row) for row in range(N))
    told = [one.name for one in plant.news if "are given: the lower is used" in one.reason]
    assert sorted(told, key=int) == [str(at) for at in range(N)]


def test_too_little_was_given_is_said_and_used():
    plant = Plant(given=0.7)
    used = plant.run(10 * MINUTE, swinging(0.5, 0.95))
    assert used == pytest.approx(np.full(used.shape, 0.7))
    assert any("are given and used" in one.reason for one in plant.news)


def test_too_much_was_given_and_nobody_was_saturated_it_is_used():
    used = Plant(given=1.3).run(10 * MINUTE, swinging(0.1, 0.6))
    assert used == pytest.approx(np.full(used.shape, 1.3))


def test_saturation_is_told_within_seconds_and_not_of_a_flood():
    plant = Plant()
    plant.run(100, lambda second: 0.6)
    assert not plant.learned.saturated.any()
    plant.run(20, lambda second: 1.4)
    assert plant.learned.saturated.all()
    quiet = Plant()
    quiet.run(100, lambda second: 0.6)
    for _ in range(30):
        read = quiet.work(0.6, 1.0)
        flood = replace(read, asked=read.asked + 1e5, unanswered=np.zeros(N))
        quiet.learned.take(flood, np.full(N, True), NOBODY)
    assert not quiet.learned.saturated.any()


def test_who_is_overloaded_from_the_first_on_is_known_by_what_it_does_not_answer():
    plant = Plant()
    used = plant.run(120, lambda second: 1.5)
    assert plant.learned.saturated.all()
    assert 0.85 <= used[-1].min() <= used[-1].max() <= 1.05
    answering = Plant()
    for _ in range(120):
        work = answering.work(1.5, 1.0)
        answering.learned.take(replace(work, unanswered=np.zeros(N)), np.full(N, True), NOBODY)
        answering.learned.learn()
    assert not answering.learned.saturated.any(), "SYNs that are answered, and no more, may be a flood's"
    assert np.isnan(answering.learned.used).all()


def test_what_was_learned_is_kept_and_goes_on(known):
    plant = knowing(known)
    fresh = Plant().learned
    fresh.recall(plant.learned.text(np.arange(N)))
    assert fresh.used == pytest.approx(plant.learned.used, nan_ok=True)
    assert fresh.high == pytest.approx(plant.learned.high, nan_ok=True)
    assert Plant(learned=fresh).run(60, swinging(0.6, 0.9))[-1] == pytest.approx(
        plant.run(60, swinging(0.6, 0.9))[-1], rel=0.05, nan_ok=True
    )


def test_what_was_learned_goes_to_the_same_endpoints_only(known):
    before = knowing(known).learned
    names = [before.names[3], "web/other", before.names[5], before.names[7]]
    told = np.array([False, False, True, False])
    after = Capacities(names, np.array([np.nan, np.nan, np.nan, 17.0]), told)
    after.resume(before)
    assert after.used[0] == before.used[3]
    assert np.isnan(after.used[1:3]).all()
    assert after.used[3] == 17.0, "what is given now"


@pytest.mark.parametrize(
    "text", ["", "{}", '{"endpoints": [1], "given": [1], "told": [1], "values": "AAAA"}']
)
def test_what_was_kept_and_makes_no_sense_is_refused(text):
    with pytest.raises(ValueError, match="Error"):
        Plant().learned.recall(text)


def test_the_curve_of_one_server_is_the_textbooks():
    loads = np.array([0.1, 0.5, 0.9])
    assert queueing.growth(loads, np.array(1.0), np.array(0.0)) == pytest.approx(1.0 / (1.0 - loads))


def counters(at_s: float, **counts: int) -> Counters:
    table = {field: np.array([counts.get(field, 0)], dtype=np.uint64) for field in FIELDS}
    return Counters(at_s=at_s, rows={"a": 0}, **table)


def read(before: Counters, after: Counters, told: bool) -> Work:
    rows = Rows(["a"])
    answered = growth(before, after, rows, ("answered",))["answered"]
    return work(rates(before, after, rows), answered, np.zeros(1), np.array([told]))


@pytest.mark.parametrize(
    ("told", "counts", "asked", "done", "answers", "unanswered"),
    [
        pytest.param(
            False,
            {"offered": 100, "flows": 60, "spilled": 40, "completed": 90, "rtt_count": 55},
            60,
            54,
            55,
            5,
            id="its own part of what the group completes",
        ),
        pytest.param(
            False,
            {"offered": 100, "flows": 100, "unremembered": 40, "completed": 60, "rtt_count": 60},
            60,
            60,
            60,
            0,
            id="what is not remembered is not asked for",
        ),
        pytest.param(
            False,
            {"offered": 9000, "flows": 9000, "completed": 1000, "rtt_count": 1000},
            9000,
            1000,
            1000,
            0,
            id="of so many not all handshakes are timed",
        ),
        pytest.param(
            True,
            {"offered": 9, "flows": 9, "completed": 9, "requests": 80, "answered": 70, "response_count": 5},
            80,
            70,
            5,
            10,
            id="requests, where they are told",
        ),
    ],
)
def test_work_is_read_from_counters(told, counts, asked, done, answers, unanswered):
    found = read(counters(1.0), counters(2.0, **counts), told)
    assert (found.asked[0], found.done[0], found.answers[0]) == (asked, pytest.approx(done), answers)
    assert found.unanswered[0] == unanswered


def test_requests_that_are_not_read_are_no_work():
    after = replace(counters(2.0, offered=10, flows=10, completed=10), requests_read=False)
    found = read(counters(1.0), after, True)
    assert np.isnan(found.asked[0])
    assert np.isnan(found.answers[0])


def one_of(
    seconds: int, rate: Course, took_s: Course, given: float = np.nan, common: int = 10_000
) -> tuple[Capacities, list[int]]:
    """What is known in the end of one that does all that it is asked for, and when it was saturated.

    :param common: others are slow as well from then on."""
    learned, random = Capacities(["web/a"], np.array([given]), np.array([False])), np.random.default_rng(6)
    told = []
    for second in range(seconds):
        one = np.array([float(random.poisson(rate(second)))])
        took_us = one * 1e6 * took_s(second) * np.exp(0.1 * random.normal())
        none = np.zeros(1)
        work = Work(1.0, one, one, one, one, took_us, none, none, none)
        learned.take(work, np.ones(1, bool), np.array([second >= common]))
        learned.learn()
        if learned.saturated[0]:
            told.append(second)
    return learned, told


def waiting() -> tuple[Capacities, list[int]]:
    """Of 30/s that can be served 12 to 19 were asked for, and then more: clients wait for their answers."""
    usual = swinging(12.0, 19.0, 150.0)
    return one_of(
        380,
        lambda second: usual(second) if second < 300 else 30.0,
        lambda second: 0.1 if second < 300 else 0.1 + 0.1 * (second - 300),
        common=303,
    )


def test_who_is_asked_for_no_more_than_it_does_is_saturated_if_that_is_more_than_ever_and_takes_long():
    learned, told = waiting()
    assert 303 <= told[0] <= 315
    assert told[-1] == 379
    assert 25.0 < learned.used[0] < 32.0


def test_negative_control_it_looks_like_a_cause_that_others_share(monkeypatch):
    monkeypatch.setattr(saturation, "_BEYOND", 1e9)
    learned, told = waiting()
    assert told == []
    assert np.isnan(learned.used[0])


def sick(rate: float = 20.0) -> Capacities:
    """Slow for a minute at its usual rate, and well again when it is given half."""
    return one_of(
        900,
        lambda second: rate if second < 660 else rate / 2,
        lambda second: 2.0 if 600 <= second < 660 else 0.1,
        given=40.0,
    )[0]


def test_who_is_slow_at_its_usual_rate_may_be_so_by_something_else_and_what_is_given_stays():
    assert sick().used[0] == 40.0


def test_negative_control_its_relief_would_refute_what_is_given(monkeypatch):
    monkeypatch.setattr(Saturation, "is_loaded", Saturation.is_sure)
    monkeypatch.setattr(Saturation, "rate", property(lambda own: own._recent.done / own._recent.over_s))
    assert sick().used[0] < 30.0


def test_slow_answers_that_others_have_too_at_the_usual_rate_are_no_saturation():
    usual = swinging(12.0, 19.0, 150.0)
    _, told = one_of(380, usual, lambda second: 0.1 if second < 300 else 2.0, common=303)
    assert told == []


def by_use(told: Course, seconds: int = 900) -> tuple[np.ndarray, list[str]]:
    """(seconds,) what is used of one that is asked for 60/s of 100 that are given, while its use tells this;
    and what is said."""
    learned = Capacities(["web/a"], np.array([100.0]), np.array([False]))
    one, used, said = np.array([60.0]), [], []
    done = Work(1.0, one, one, one, one, one * 1e5, np.zeros(1), np.zeros(1), np.zeros(1))
    for second in range(seconds):
        learned.take(done, np.ones(1, bool), NOBODY[:1])
        learned.take_use(np.array([0]), np.array([told(second)]), np.array([], dtype=np.intp))
        said += [news.reason for news in learned.learn()]
        used.append(learned.used[0])
    return np.array(used), said


def test_what_use_refutes_is_less_at_once_and_comes_back_slowly_and_both_are_said_once():
    used, said = by_use(lambda second: np.nan if second < 60 else 70.0 if second < 120 else 120.0)
    assert set(used[:60]) == {100.0}
    assert set(used[60:120]) == {70.0}
    assert within_a_tenth_a_minute(used[60:])
    assert used[-1] == 100.0
    assert len(said) == 2
    assert "lower is used" in said[0]
    assert "any more" in said[1]


def test_negative_control_the_state_alone_would_bring_it_back_at_once(monkeypatch):
    monkeypatch.setattr(capacity, "_A_MINUTE", 10.0)
    used, _ = by_use(lambda second: 70.0 if second < 120 else 120.0)
    assert not within_a_tenth_a_minute(used[60:])


def test_what_was_no_use_of_its_own_is_taken_back_at_once():
    used, _ = by_use(lambda second: 70.0 if second < 120 else np.nan)
    assert (used[0], used[-1]) == (70.0, 100.0)
    assert 70.0 < used[125] == 100.0


def test_more_than_is_given_is_told_by_answers_not_by_what_one_was_overfed_with():
    _, said = by_use(lambda second: 140.0 if second % 20 < 10 else 150.0)
    assert said == []


def test_served_is_what_some_windows_at_that_rate_or_more_tell_together():
    curve, yes, row = response_curve.ResponseCurve(1), np.array([True]), np.array([0])
    for rate, took in ((10.0, 1.0), (20.0, 1.0), (24.0, 1.1), (29.0, 1.2), (35.0, 4.0), (40.0, 9.0)):
        curve.add(np.array([rate]), np.log([took]), yes)
    _, proven, served = curve.told(row)
    assert 18.0 < served[0] <= 20.0
    assert proven[0] == 0.0, "negative control: no rate has enough windows of its own"


def ended(rate: float, log_time: float, *, lacks: bool = False, slow: bool = False) -> Ended:
    yes, no = np.array([True]), np.array([False])
    flags = np.array([slow]), np.array([lacks])
    return Ended(np.array([rate]), np.array([log_time]), yes, yes, no, *flags)


@pytest.mark.parametrize(
    ("rate", "log_time", "given", "known"),
    [
        pytest.param(60.0, 1.0, True, True, id="it had less to do, and answered soon"),
        pytest.param(60.0, 3.0, True, False, id="it had less to do, and was as slow"),
        pytest.param(95.0, 1.0, True, False, id="it had as much to do, and answered soon"),
        pytest.param(60.0, 1.0, False, False, id="nothing is given that could be refuted"),
    ],
)
def test_a_moment_of_saturation_refutes_what_is_given_if_help_relieves_it(rate, log_time, given, known):
    ceilings = Ceilings(np.array([given]))
    ceilings.note(np.array([True]), np.array([96.0]))
    ceilings.take(ended(90.0, 3.0))
    for _ in range(3):
        ceilings.take(ended(rate, log_time))
    low, high = ceilings.interval(np.array([0]), np.array([1.0]))
    assert np.isfinite(low[0]) == known
    if known:
        assert low[0] < 96.0 < high[0]
        for _ in range(100):
            ceilings.take(ended(rate, log_time))
        assert ceilings.interval(np.array([0]), np.array([1.0])) == (low, high), "and that lasts"
        ceilings.take(ended(120.0, 1.0))
        assert np.isnan(ceilings.interval(np.array([0]), np.array([1.0]))[0]), "until more is done soon"


def test_of_few_saturated_windows_the_most_counts():
    ceilings = Ceilings(np.array([True]))
    for rate in (100.0, 85.0):
        ceilings.take(ended(rate, 3.0, lacks=True, slow=True))
    low, high = ceilings.interval(np.array([0]), np.array([1.0]))
    assert low[0] < 100.0 < high[0]
    assert low[0] > 85.0


def after_a_collapse() -> Capacities:
    """30/s can be served. What is read of an overload, whose clients have given up before they are served."""
    learned = Capacities(["web/a"], np.array([np.nan]), np.array([False]))
    windows = (
        [(10.0, 10.0, 0.1)] * 7 + [(17.0, 17.0, 0.11)] + [(30.0, 33.0, seconds) for seconds in (1, 2, 3, 4)]
    )
    windows += [(30.0, 56.0, 6.7), (11.0, 43.0, 9.0), (5.0, 41.0, 10.0), (6.0, 25.0, 10.0)]
    windows += [(25.0, 18.0, 8.3), (30.0, 21.0, 3.0), (5.3, 4.2, 0.24)] + [(3.0, 3.0, 0.1)] * 30
    for done, asked, seconds in windows:
        for _ in range(10):
            one, lost = np.array([done]), np.array([max(asked - done, 0.0)])
            work = Work(
                1.0, one, np.array([asked]), one, one, one * seconds * 1e6, np.zeros(1), lost, np.zeros(1)
            )
            learned.take(work, np.ones(1, bool), NOBODY[:1])
            learned.learn()
    return learned


def test_what_is_done_late_after_a_collapse_is_no_capacity():
    low = after_a_collapse().low[0]
    assert np.isnan(low) or low > 15.0


def test_negative_control_whoever_learns_of_it_believes_in_a_fifth(monkeypatch):
    monkeypatch.setattr(ceilings, "_PAST_WINDOWS", 0)
    monkeypatch.setattr(capacity, "_QUEUED", 1e9)
    monkeypatch.setattr(Capacities, "_catches_up", lambda self, _: np.zeros(1, bool))
    assert after_a_collapse().low[0] < 10.0
