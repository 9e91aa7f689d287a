# SPDX-License-Identifier: Apache-2.0
"""What was recorded is decided again, to the last word."""

from __future__ import annotations

import json
from dataclasses import fields
from pathlib import Path

import pytest

from controlplane import requests
from controlplane.cli import replay
from controlplane.observe import COUNTED
from controlplane.placement import Candidate
from controlplane.record import RecordError, Redone, redone
from tests.world import World, config

USED = [field.name for field in fields(Candidate)].index("used")


def lively() -> World:
    """Loads that come and go, a crash, a reload, a dead shadow, stale readings, a failing order, errors."""
    world = World(config(endpoints=2, idle_s=30.0), records=True)
    world.ticks(60, 80.0)
    world.ticks(40, 250.0)
    world.prober.dead.add("web-1-s1")
    world.ticks(30, 250.0)
    world.prober.dead.clear()
    world.dataplane.still = True
    world.ticks(10, 250.0)
    world.dataplane.still = False
    world.ticks(70, 200.0)
    world.restart()
    world.ticks(20, 250.0)
    world.config = config(endpoints=3, idle_s=20.0)
    requests.request_reload(world.store)
    world.provisioner.fail = True
    world.ticks(40, 420.0)
    world.provisioner.fail = False
    world.ticks(150, 60.0)
    world.dataplane.resets["web-3"] = 0.3
    world.ticks(40, 60.0)
    return world


def again(world: World, lines: list[str]) -> list[Redone]:
    return list(redone(lines, lambda number: world.configs[int(number)]))


@pytest.fixture(scope="module")
def recorded() -> World:
    return lively()


def test_the_same_is_decided_with_the_same_reasons(recorded):
    decisions = again(recorded, recorded.recorded)
    assert [one for one in decisions if not one.is_same] == []
    acts = {one.act for one in decisions}
    assert {"add", "place", "hold", "retry", "drain", "ease", "remove"} <= acts
    assert any("of flows are reset" in one.reason for one in decisions)


def test_negative_control_other_readings_are_decided_about_otherwise(recorded):
    lines = []
    for line in recorded.recorded:
        raw = json.loads(line)
        for counts in raw.get("counters", {}).values():
            counts[1 + COUNTED.index("completed")] *= 2
        lines.append(json.dumps(raw))
    assert any(not one.is_same for one in again(recorded, lines))


def test_negative_control_hosts_that_are_used_otherwise_are_chosen_otherwise(recorded):
    lines, other = [], 0
    for line in recorded.recorded:
        raw = json.loads(line)
        for candidates, *_ in raw.get("placed", ()):
            for host in candidates:
                host[USED] = 0.9 if host[0] == "host-b" else 0.1
            other += 1
        lines.append(json.dumps(raw))
    assert other, "the fault hit"
    placed = [one for one in again(recorded, lines) if one.act == "place"]
    assert any(not one.is_same for one in placed)


def _second(lines: list[str]) -> int:
    """Where the second controller begins."""
    return next(k for k, line in enumerate(lines) if k and json.loads(line).get("begins"))


def test_a_line_that_was_cut_off_ends_one_controller_and_not_the_record(recorded):
    begin = _second(recorded.recorded)
    cut = [*recorded.recorded[:begin], recorded.recorded[begin - 1][:40] + "\n", *recorded.recorded[begin:]]
    decisions = again(recorded, cut)
    assert len(decisions) == len(again(recorded, recorded.recorded))
    assert all(one.is_same for one in decisions)


@pytest.mark.parametrize(
    ("cut", "why"),
    [
        (lambda lines: lines[1:], "line 1: .*begins with a configuration"),
        (lambda lines: ["nonsense"], "line 1: no record of penumbra run --record begins so"),
        (lambda lines: [], "there is no record in it"),
        (
            lambda lines: [lines[0].replace('"penumbra_record": 7', '"penumbra_record": 6')],
            "version 7 is allowed, not 6",
        ),
        (lambda lines: [*lines[:20], lines[20][:50]], "line 21: it is cut off$"),
        (lambda lines: [*lines[:20], lines[20][:50] + "\n", *lines[20:]], "line 21: it is cut off$"),
        (
            lambda lines: [*lines[:20], "garbage\n", *lines[20:]],
            "line 21: it is no line of a record: Expecting value, column 1",
        ),
        (
            lambda lines: [*lines[:20], lines[20][:30] + "%" + lines[20][30:], *lines[21:]],
            "line 21: it is no line of a record: .*column",
        ),
        (lambda lines: [*lines[:20], "[1]\n", *lines[20:]], "line 21: it is no line of a record$"),
        (lambda lines: [*lines[:20], '{"a": 1}\n', *lines[20:]], "line 21: it is no line of a record$"),
        (lambda lines: [*lines[:20], "\n", *lines[20:]], "line 21: it is no line of a record"),
        (lambda lines: [*lines[:20], *lines[21:]], "line 21: a line is missing before it"),
        (lambda lines: [*lines[:20], *lines[23:]], "line 21: 3 lines are missing before it"),
        (lambda lines: [*lines[:1], *lines[2:]], "line 2: a line is missing before it"),
        (
            lambda lines: [*lines[:20], lines[19], *lines[20:]],
            "line 21: line 19 of a controller's record stands where its line 20 should",
        ),
        (
            lambda lines: [*lines[: _second(lines)], *lines[_second(lines) + 1 :]],
            "line 1 of a controller's record stands where",
        ),
    ],
)
def test_a_record_that_makes_no_sense_is_an_error_that_says_where(recorded, cut, why):
    with pytest.raises(RecordError, match=why):
        again(recorded, cut(recorded.recorded))


def test_a_record_that_can_not_be_written_ends_and_harms_nothing(monkeypatch):
    written = []

    def write(line: str) -> None:
        if len(written) == 10:
            raise OSError(28, "No space left on device")
        written.append(line)

    world = World(config())
    world.recorded, world.records = written, True
    monkeypatch.setattr(world, "recorder", lambda: type(World(config(), records=True).recorder())(write, str))
    world.restart()
    world.ticks(25, 40.0)
    world.ticks(40, 110.0)
    assert world.orders() != []
    assert "No space left" in world.controller.status().troubles["record"]
    assert len(written) == 10


def test_replay_prints_what_was_decided_and_fails_where_it_is_not_the_same(
    recorded, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr("controlplane.config.parse", lambda number: recorded.configs[int(number)])
    path = Path(tmp_path) / "record"
    path.write_text("".join(recorded.recorded))
    replay.replay(path, as_json=False)
    said = capsys.readouterr().out
    assert "shadow web +1" in said
    assert "all as recorded" in said
    path.write_text("".join(recorded.recorded).replace("of flows are reset", "of flows are not"))
    with pytest.raises(SystemExit):
        replay.replay(path, as_json=False)
    failed = capsys.readouterr()
    assert "(recorded: " in failed.out
    assert "are not as they were recorded" in failed.err


def test_a_line_that_is_no_text_is_named(recorded, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("controlplane.config.parse", lambda number: recorded.configs[int(number)])
    path = Path(tmp_path) / "record"
    whole = [line.encode() for line in recorded.recorded]
    for at, why in ((0, "line 1: it is no text, so no record"), (20, "line 21: it is no text (before that")):
        path.write_bytes(b"".join([*whole[:at], b"\xff\xfe\n", *whole[at:]]))
        with pytest.raises(SystemExit):
            replay.replay(path, as_json=False)
        assert why in capsys.readouterr().err


def test_a_line_is_cut_off_wherever_it_ends(recorded):
    line = recorded.recorded[20]
    begin = recorded.recorded[0]
    for end in range(1, len(line) - 1):
        with pytest.raises(RecordError, match=r"line 2: it is cut off$"):
            again(recorded, [begin, line[:end]])
