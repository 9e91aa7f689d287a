# SPDX-License-Identifier: Apache-2.0
"""Whatever is killed or cut while a shadow is made or removed: in the end there is exactly one, or none.

What there must be is written in the table; what there is, is read from outside.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from tests.netns.matrix import STOPPING, Matrix, Row, Steps, processes_of, rows, with_steps
from tests.netns.steered import steered

pytestmark = pytest.mark.slow

TABLE = """
# victim    step          in the end
controller  requested     serves
controller  draining      gone
controller  provisioning  serves
controller  removing      gone
controller  begun         serves
controller  ending        gone
controller  made          serves
controller  ended         gone
controller  warming       serves
controller  forgetting    gone
controller  ready         serves
ansible     ending        gone
ansible     begun         serves
ansible     ended         gone
ansible     made          serves
host        draining      gone
host        made          serves
host        removing      gone
host        warming       serves
host        ending        gone
host        ready         serves
network     draining      gone
network     made          serves
network     warming       serves
network     ready         serves
"""
"""Steps: a state that the store has just written; ``begun`` and ``made``, ``ending`` and ``ended``: before
and after the target's role makes or removes the shadow; ``forgetting``: just before its record goes."""


@pytest.fixture(scope="module")
def matrix(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Matrix]:
    folder = tmp_path_factory.mktemp("site")
    with steered(folder) as site:
        steps = Steps(folder / "steps")
        root = site.configuration(playbooks=str(with_steps(folder / "playbooks", steps)))
        root["services"]["web"]["shadows"] |= {"drain": "2s"}
        site.configure(root)
        made = Matrix(site, steps, lambda: processes_of(site.instance))
        site.start(made.argv)
        made.load = site.traffic(10.0, "--persistent-share", "0", most_s=900)
        yield made
        made.load.stop()


@pytest.mark.parametrize("row", rows(TABLE), ids=lambda row: row.name)
def test_one_result_whatever_fails(
    matrix: Matrix, row: Row, record_property: Callable[[str, object], None]
) -> None:
    record_property("fault", (row.name, matrix.play(row), row.final))


def test_negative_control_a_controller_that_neither_remembers_nor_looks_leaves_an_orphan(
    matrix: Matrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    blind = "from controlplane.roster import Roster\n"
    blind += "Roster.survey = lambda self, answering: None\nSqliteStore.shadows = lambda self: {}\n"
    monkeypatch.setattr(matrix, "final_s", 8.0)
    monkeypatch.setattr(matrix, "program", STOPPING.replace("main()", blind + "main()"))
    with pytest.raises(AssertionError, match="serves: "):
        matrix.play(Row("controller", "made", "serves"))
    assert matrix.serving(), "the fault hit: what was made is there, and nobody knows"
    assert not matrix.site.group()["shadows"]
    monkeypatch.undo()
    matrix.hit_controller(Row("controller", "begun", "serves"), 0, frozenset())
    matrix.go_on()
    matrix.await_final("serves")


def test_negative_control_a_removal_that_removes_nothing_is_noticed(
    matrix: Matrix, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = matrix.site.folder / "playbooks/roles/netns/tasks/deprovision.yml"
    text = tasks.read_text()
    tasks.write_text("[]\n")
    monkeypatch.setattr(matrix, "final_s", 8.0)
    with pytest.raises(AssertionError, match="gone: "):
        matrix.play(Row("ansible", "ending", "gone"))
    assert matrix.serving(), "the fault hit: the process lives on"
    monkeypatch.undo()
    tasks.write_text(text)
    for number in [*matrix.site.shadow_processes()]:
        os.kill(number, signal.SIGKILL)
