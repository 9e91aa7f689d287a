# SPDX-License-Identifier: Apache-2.0
"""The verdict on the demo's second scene, on scenes whose figures are known beforehand."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from controlplane.lab import database, stateful_report, stateful_view
from controlplane.lab.database_traffic import Read, Stage, Write, of_row
from controlplane.lab.network import LabError
from controlplane.lab.stateful_report import Scene, Sight
from controlplane.lab.stateful_run import Moment, sight_of

LIVE, SHADOW = "10.0.0.1", "10.0.0.2"
CUT_S, HEALED_S = 140.0, 146.0
WRITES = [Write(number, 100.0 + 0.1 * number) for number in range(1, 801)]


def newest_at(at_s, behind_s=0.0):
    return max(min(int((at_s - behind_s - 100.0) * 10 + 1e-6), 800), 0)


def reads(behind_s=0.0, first_s=120.0, lost_s=2.0):
    """Two a second; from ``first_s`` on every other one is the shadow's, but for the cut."""
    for at_s in (100.5 + 0.5 * n for n in range(140)):
        is_cut = CUT_S + lost_s < at_s < HEALED_S + 2.0
        if at_s < first_s or at_s % 1.0 or is_cut:
            yield Read(at_s, at_s, at_s + 0.1, None, LIVE, newest_at(at_s), at_s + 0.05)
        else:
            old_s = behind_s or (at_s - CUT_S if CUT_S < at_s < HEALED_S else 0.0)
            yield Read(at_s, at_s, at_s + 0.1, None, SHADOW, newest_at(at_s, old_s), at_s + 0.05)


def sight(at_s):
    state = None
    if 110.0 <= at_s < 165.0:
        state = "provisioning" if at_s < 115.0 else "warming" if at_s < 118.0 else "ready"
    return Sight(at_s, 20.0, 30.0, 0.5, state, 0.1, is_open=state == "ready")


KEPT = Scene(
    live=LIVE,
    max_lag_s=3.0,
    capacity=40.0,
    crossing_s=130.0,
    reads=list(reads()),
    writes=WRITES,
    seen=[sight(100.0 + n) for n in range(70)],
    offered=[(100.0 + 0.5 * n, 50.0 if n >= 60 else 20.0) for n in range(140)],
    cut_s=CUT_S,
    healed_s=HEALED_S,
    found=frozenset(range(1, 801)),
)


def test_what_was_kept_is_no_broken_promise_and_its_figures_are_those_of_the_scene():
    found = stateful_report.figures(KEPT)
    assert stateful_report.broken_promises(KEPT, found) == []
    assert found.oldest_s == pytest.approx(1.9, abs=0.01)
    assert found.oldest_when_looked_s == pytest.approx(1.95, abs=0.01)
    assert (found.lost_after_s, found.back_after_s) == (2.0, 2.0)
    assert (found.made_s, found.copied_s, found.before_crossing_s) == (5.0, 3.0, pytest.approx(9.9))
    assert (found.written, found.missing, found.failed) == (800, 0, 0)
    assert found.by_original + found.by_shadow == found.reads == 140
    assert found.seconds_over_capacity == pytest.approx(5.0, abs=1.0)  # 165 to 170, the shadow gone


BROKEN = {
    "a read failed": ({"reads": [*KEPT.reads, Read(150.0, 150.0, 160.0, "timeout")]}, "1 reads failed"),
    "data older than agreed": ({"reads": list(reads(behind_s=3.5))}, "data 3.4 s old was read"),
    "the shadow kept its reads": ({"reads": list(reads(lost_s=9.0))}, "5.0 s after it was cut off"),
    "it never got them back": (
        {"reads": [one for one in reads() if one.begun_s < HEALED_S]},
        "no reads again after it was healed",
    ),
    "the cut did not hit": ({"reads": list(reads(lost_s=0.0))}, "it proves nothing"),
    "it came late": ({"reads": list(reads(first_s=135.0))}, "5.1 s after the load passed capacity"),
    "it never came": ({"reads": list(reads(first_s=999.0))}, "no read was ever served by a shadow"),
    "a write is lost": ({"found": KEPT.found - {77}}, "1 writes of 800 that were acknowledged are lost"),
    "nothing was written": ({"writes": [replace(one, error="no") for one in WRITES]}, "nothing was written"),
    "it stayed": ({"seen": [sight(100.0 + n) for n in range(60)]}, "still there at the end (ready)"),
    "something was left": ({"left": ["slot penumbra_x"]}, "left behind: slot penumbra_x"),
    "there was no cut": ({"cut_s": None, "healed_s": None}, "never served well enough"),
}


@pytest.mark.parametrize(("changed", "said"), BROKEN.values(), ids=BROKEN.keys())
def test_each_promise_can_be_broken(changed, said):
    scene = replace(KEPT, **changed)
    broken = stateful_report.broken_promises(scene, stateful_report.figures(scene))
    assert any(said in sentence for sentence in broken), broken
    text = "\n".join(stateful_view.verdict(scene, stateful_report.figures(scene), broken))
    assert "Broken: " in text
    assert "Kept:" not in text


def test_a_write_that_nobody_acknowledged_is_not_lost_and_makes_nothing_older():
    writes = [*WRITES[:400], Write(401, 140.1, "gone"), *WRITES[401:]]
    scene = replace(KEPT, writes=writes, found=KEPT.found - {401})
    assert stateful_report.figures(scene).missing == 0
    read = Read(150.0, 150.0, 150.1, None, SHADOW, 400, 150.0)
    assert stateful_report.ages_s([read], writes, [150.0]) == pytest.approx(150.0 - 140.2)


def test_lines_are_told_apart():
    rows = [{"stage": 1, "began_s": 2.0}, {"number": 3, "acknowledged_s": 4.0, "error": None}]
    assert [of_row(row) for row in rows] == [Stage(1, 2.0), Write(3, 4.0)]
    assert of_row({"due_s": 1.0, "begun_s": 1.0, "ended_s": 2.0, "error": "x"}).latency_s == 1.0


def test_lag_and_gate_are_shown():
    shadow = {"state": "ready", "lag": {"seconds": 2.5, "is_open": False}}
    group = {"demand": 20.0, "high": 30.0, "spill": 0.0, "shadows": [shadow]}
    seen = sight_of({"at_unix_s": 5.0, "services": [{"groups": [group]}]})
    assert not seen.serves
    written = io.StringIO()
    with stateful_view.View(Console(file=written, width=80)).showing() as show:
        show(Moment(5.0, "shadow is cut off", 32.0, 32.0, 0.0, seen, 0.0, 140.0, 0, 77, "said"))
    for part in ("too old to serve", "lag 2.5 s", "written 77", "shadow is cut off: said"):
        assert part in written.getvalue()


def test_without_postgresql_it_is_said_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(database, "BIN", tmp_path)
    with pytest.raises(LabError, match="apt-get install postgresql-15"):
        database.require()
