# SPDX-License-Identifier: Apache-2.0
"""The records that commands of different processes share, when somebody has damaged them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from controlplane.cli import instance as instances
from controlplane.lab import lab
from tests.world import World, config


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of a machine on which the instance ``web`` is loaded."""
    (tmp_path / "pins/web").mkdir(parents=True)
    monkeypatch.setattr(instances, "PIN_ROOT", tmp_path / "pins")
    monkeypatch.setattr(instances, "RUN_DIR", tmp_path)
    monkeypatch.setattr(instances.status_file, "RUN_DIR", tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "record",
    [b"", b'{"config": "/etc/pe', b'{"config": 5, "state_dir": null}', b"[1]", b"\xff\xfe\x00", b"{}"],
)
def test_a_damaged_record_is_told_with_the_way_out(
    run_dir: Path, record: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_dir / "web.instance.json").write_bytes(record)
    with pytest.raises(SystemExit):
        instances.find(None)
    assert "missing or damaged: run penumbra load CONFIG again" in capsys.readouterr().err


def test_garbage_in_the_controller_s_lock_lets_no_second_controller_in(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run_dir / "web.controller").write_bytes(b"\xff\xfe\x00")
    with instances.hold_controller_lock("web"):
        (run_dir / "web.controller").write_bytes(b"\xff\xfe\x00")
        assert instances.running_controller("web") == os.getpid()
        with pytest.raises(SystemExit):
            instances.hold_controller_lock("web")
    assert f"runs already (pid {os.getpid()})" in capsys.readouterr().err
    assert instances.running_controller("web") is None


def test_what_a_killed_writer_left_goes_with_the_instance(run_dir: Path) -> None:
    for kept in ("web.instance", "web.status"):
        (run_dir / f"{kept}.json").write_text("{}")
        (run_dir / f"{kept}.new").write_text('{"conf')
    instances.forget("web")
    assert [path.name for path in run_dir.iterdir() if path.is_file()] == []


def test_no_folder_of_playbooks_runs_is_left_of_an_instance(run_dir: Path) -> None:
    for folder in ("runs", "servers/1-1-dead", "shadows"):
        (run_dir / "web" / folder).mkdir(parents=True)
    instances.forget("web")
    assert not (run_dir / "web").exists()


def test_no_folder_is_left_of_shadows_that_ended_with_their_lab(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lab.state, "RUN", run_dir)
    for folder in ("runs", "servers", "shadows"):
        (run_dir / "lab" / folder).mkdir(parents=True)
    (run_dir / "lab/shadows/web-1-s1.json").write_text('{"netns": "lab-host-1"}')
    lab._forget_shadows({"lab-host-2"})
    assert (run_dir / "lab/shadows/web-1-s1.json").exists(), "another lab's"
    lab._forget_shadows({"lab-host-1"})
    assert not (run_dir / "lab").exists()


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[:100],
        lambda text: "[1]",
        lambda text: '{"services": 5}',
        lambda text: text.replace('"frozen":', '"cold":'),
        lambda text: text.replace('"reason":', '"why":'),
    ],
    ids=["cut off", "a list", "no services", "another status", "another group"],
)
def test_a_status_that_is_damaged_or_anothers_is_told_and_nothing_is_made_of_it(
    run_dir: Path, damage: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(config())
    world.ticks(2, 10.0)
    whole = world.shown[-1]
    (run_dir / "web.status.json").write_text(whole)
    assert instances.told("web") == json.loads(whole)
    (run_dir / "web.status.json").write_text(damage(whole))
    assert instances.told("web") == {}
    assert "web.status.json is damaged, or another version's" in capsys.readouterr().err
