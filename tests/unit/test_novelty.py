# SPDX-License-Identifier: Apache-2.0
"""The running controller tells of each step of a service what ``penumbra detect`` prints of it."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from typer.testing import CliRunner

from controlplane import deviation, model, novelty, requests
from controlplane.adapters import status_file
from controlplane.cli import app, explain, instance
from controlplane.cli.control import status
from controlplane.deviation import REMARKABLE, Detector
from controlplane.novelty import Novel, Novelties, Novelty
from controlplane.past import MOST, Past
from controlplane.record import redone
from tests.world import World, config

STEP_S = 5.0
"""Of ``config``'s service."""
TICKS = round(STEP_S)
MANY = 170
"""Flows/s of a step; all others have some 80."""


def calm(steps: int, seed: int = 1) -> list[int]:
    """Flows of each tick, as many for both endpoints. The first is not read: all of its step are alike."""
    flows = 2 * np.random.default_rng(seed).poisson(40.0, steps * TICKS)
    flows[:TICKS] = 80
    return flows.tolist()


def told_by(world: World, flows: list[int]) -> list[tuple[float, float | None]]:
    """When each step ended, and its score in the run."""
    told = []
    for one in flows:
        world.tick(one, noisy=False)
        if world.clock.record_s() % STEP_S == 0:
            told.append((world.clock.record_s(), of(world).score))
    assert world.controller.status().troubles == {}
    return told


def of(world: World) -> Novelty:
    found = world.controller._fleet.novelties.of("web")
    assert found is not None
    return found


def events(world: World) -> list[str]:
    return [row.reason for row in world.store.rows if row.action == "novelty"]


def detected(rates: list[tuple[float, float]], folder: Path) -> list[dict[str, object]]:
    file = folder / "series.csv"
    file.write_text("".join(f"{until_s!r},{rate!r}\n" for until_s, rate in rates))
    done = CliRunner().invoke(app, ["detect", "--trace", str(file), "--json"])
    assert done.exit_code == 0, done.output
    return [json.loads(line) for line in done.stdout.splitlines()]


# ---- the same as detect ---------------------------------------------------------------------


def tells_what_detect_prints(folder: Path) -> None:
    flows = calm(60)
    flows[45 * TICKS : 46 * TICKS] = [MANY] * TICKS
    world = World(config(endpoints=2))
    told = told_by(world, flows)
    means = np.reshape(flows, (-1, TICKS)).mean(axis=1).tolist()
    printed = detected([(until_s, mean) for (until_s, _), mean in zip(told, means, strict=True)], folder)
    assert [round(score, 6) for _, score in told if score is not None] == [one["score"] for one in printed]
    reasons = [one["reason"] for one in printed if one["reason"]]
    assert reasons
    assert [said.split("in flows/s ")[1] for said in events(world)] == reasons
    assert of(world).last.rate == MANY


def test_the_same_steps_have_the_same_scores_and_reasons_in_the_run_and_by_detect(tmp_path: Path) -> None:
    tells_what_detect_prints(tmp_path)


@pytest.mark.parametrize("broken", ["another memory", "steps that are out by one"])
def test_negative_control_another_detector_or_other_steps_tell_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    if broken == "another memory":
        monkeypatch.setattr(novelty, "Detector", lambda: Detector(memory=30))
    else:
        number = Past.number
        monkeypatch.setattr(Past, "number", lambda self, at_s: number(self, at_s + 2.0))
    with pytest.raises(AssertionError):
        tells_what_detect_prints(tmp_path)


def test_what_is_kept_of_the_past_is_what_a_detector_knows() -> None:
    assert deviation.detector.MEMORY == MOST


# ---- gaps, failures, restarts, reloads ------------------------------------------------------


def full(rates: list[float], first: int = 1000) -> Past:
    found = Past(STEP_S)
    for number, rate in enumerate(rates, first):
        found.add(number, rate)
    return found


def rates(steps: int, seed: int = 1) -> list[float]:
    return np.random.default_rng(seed).normal(100.0, 5.0, steps).round(3).tolist()


def test_a_step_without_a_reading_has_no_score_and_changes_nothing() -> None:
    series = [*rates(60), math.nan, math.nan, 160.0, math.nan]
    judged, detector, known = Novelty(STEP_S), Detector(), full(series[:1])
    for number, rate in enumerate(series, 1000):
        known.add(number, rate)
        _, found = judged.judge(known, 10)
        score = detector.after((number + 1) * STEP_S, rate)
        assert judged.score == (None if math.isnan(rate) else score.score)
        assert [one.reason for one in found] == [score.reason] * (score.score >= REMARKABLE)
    assert judged.news == 1
    assert judged.last == Novel(1063 * STEP_S, 160.0, judged.last.score, judged.last.reason)


def in_failures(world: World) -> None:
    """Many more flows, while errors say that this is a time with failures."""
    told_by(world, calm(45))
    world.dataplane.resets["web-1"] = 0.6
    told_by(world, calm(4, seed=2))
    assert world.controller.status().services[0].failing
    told_by(world, [MANY] * 3 * TICKS)
    assert events(world) == []


def test_a_time_with_failures_is_neither_judged_nor_learned() -> None:
    world = World(config(endpoints=2))
    in_failures(world)
    assert of(world).score is None


def test_negative_control_if_failures_taught_they_would_be_new(monkeypatch: pytest.MonkeyPatch) -> None:
    since = Past.since

    def all_of(self: Past, number: int, most: int | None = None) -> list[float]:
        self._untaught.clear()
        return since(self, number, most)

    monkeypatch.setattr(Past, "since", all_of)
    with pytest.raises(AssertionError, match="deviates from its past"):
        in_failures(World(config(endpoints=2)))


def knows_of_before(world: World) -> None:
    world.ticks(250, 80.0)
    world.restart()
    world.ticks(2, 80.0)
    world.ticks(2 * TICKS, float(MANY))
    assert events(world)
    assert int(events(world)[-1].split(" before")[0].split()[-1]) > 40
    assert world.controller.status().services[0].novelty.remarkable == 1


def test_after_a_crash_what_was_learned_is_learned_again() -> None:
    knows_of_before(World(config(endpoints=2)))


def test_negative_control_without_what_was_kept_nothing_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Past, "recall", lambda self, number, read: [])
    with pytest.raises(AssertionError):
        knows_of_before(World(config(endpoints=2)))


def test_what_was_remarkable_long_ago_is_no_news_when_it_is_learned_again() -> None:
    series = [*rates(100), 200.0, *rates(50, seed=2)]
    judged, known = Novelty(STEP_S), full(series)
    assert judged.judge(known, 120) == (120, [])
    assert judged.score is None
    assert judged.is_behind(known)
    assert judged.judge(known, 120) == (31, [])
    assert (judged.last.rate, judged.news) == (200.0, 0)
    assert judged.score is not None
    assert not judged.is_behind(known)


def test_a_reload_keeps_what_is_known_where_steps_are_as_long() -> None:
    world = World(config(endpoints=2))
    told_by(world, calm(40))
    before = of(world)
    world.config = config(endpoints=3, idle_s=20.0)
    requests.request_reload(world.store)
    told_by(world, calm(2, seed=2))
    assert of(world) is before
    world.config = config(endpoints=3, lead_time_s=60.0)
    requests.request_reload(world.store)
    world.ticks(TICKS, 80.0)
    assert of(world) is not before


# ---- bounded work ---------------------------------------------------------------------------


def test_a_tick_judges_so_many_steps_and_all_services_take_turns() -> None:
    pasts = {f"web-{k}": full(rates(60, seed=k)) for k in range(20)}
    waiting = Novelties(dict.fromkeys(pasts, STEP_S))
    waiting.await_turn(pasts)
    judged = []
    for _ in range(3):
        list(waiting.judge(pasts))
        judged.append([waiting.of(name)._next - 1000 for name in pasts if waiting.of(name)._next])
    assert sum(judged[0]) == novelty._JUDGED
    assert len(judged[1]) == len(pasts)  # everybody's turn before anybody is done twice
    assert sum(judged[2]) == 20 * 60
    assert list(waiting.judge(pasts)) == []


# ---- record, status, metrics, explain -------------------------------------------------------


@pytest.fixture(scope="module")
def recorded() -> World:
    world = World(config(endpoints=2), records=True)
    world.ticks(150, 80.0)
    world.ticks(2 * TICKS, float(MANY))
    world.ticks(30, 80.0)
    world.restart()
    world.ticks(30, 80.0)
    return world


def test_replay_tells_the_same(recorded: World) -> None:
    redo = list(redone(recorded.recorded, lambda number: recorded.configs[int(number)]))
    novel = [one for one in redo if one.act == "novel"]
    assert [one.reason for one in novel] == events(recorded)
    assert novel
    assert all(one.is_same for one in redo)


@pytest.mark.parametrize("change", ["what was said is another", "nothing was said"])
def test_negative_control_another_word_is_not_the_same(recorded: World, change: str) -> None:
    lines = recorded.recorded
    if change == "nothing was said":
        told = map(json.loads, lines)
        lines = [json.dumps({**one, "novel": []} if "novel" in one else one) for one in told]
    else:
        lines = [line.replace("deviates from its past (0", "deviates from its past (9") for line in lines]
    assert lines != recorded.recorded
    redo = redone(lines, lambda number: recorded.configs[int(number)])
    assert {one.act for one in redo if not one.is_same} == {"novel"}


def test_status_metrics_and_explain_tell_it(
    recorded: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = recorded.controller.status().services[0].novelty
    assert found.last_score >= REMARKABLE
    assert 60 <= found.age_s <= 70
    named = {sample.name: sample.value for sample in recorded.metrics.samples if "nov" in sample.name}
    assert named == {"service_rate_novelty": found.score, "service_novel_steps_total": found.remarkable}
    at = SimpleNamespace(
        name="test",
        config="x.yml",
        controller_pid=lambda: 1,
        store=lambda: SimpleNamespace(decisions=list_none),
    )
    monkeypatch.setattr(instance, "find", lambda name: at)
    monkeypatch.setattr(status_file, "read", lambda name: recorded.shown[-1])
    status(None, False, 0)
    said = capsys.readouterr().out
    assert "rate_novelty" in said
    assert found.reason in said
    explain.explain("web", 0, None, False)
    assert f"s ago, in flows/s {found.reason}" in capsys.readouterr().out
    long_ago = recorded.shown[-1].replace(f'"age_s": {found.age_s}', '"age_s": 3601.0')
    monkeypatch.setattr(status_file, "read", lambda name: long_ago)
    status(None, False, 0)
    assert found.reason not in capsys.readouterr().out


def list_none(most: int) -> list[model.Decision]:
    return []


def test_who_is_not_foreseen_has_no_steps() -> None:
    whole = config()
    web = replace(whole.services["web"], forecast=model.ForecastSettings(method=model.ForecastMethod.NONE))
    world = World(replace(whole, services={"web": web}))
    world.ticks(10, 80.0)
    assert world.controller.status().services[0].novelty is None


def test_the_past_gives_so_many_steps() -> None:
    known = full(rates(10))
    assert known.since(1004, 3) == known.since(0)[4:7]
    assert known.since(0, 3) == known.since(0)[:3]
    assert known.since(1008, 5) == known.since(0)[8:]
