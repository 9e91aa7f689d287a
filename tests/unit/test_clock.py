# SPDX-License-Identifier: Apache-2.0
"""Somebody sets the clock: ages go on evenly. A signal wakes the wait, however many come."""

from __future__ import annotations

import signal
import time
from dataclasses import replace

import pytest

from controlplane.adapters.clock import MachineClock
from controlplane.model import ShadowState
from tests.world import grown

HOUR_S = 3600.0


def test_ages_go_on_evenly_when_the_clock_is_set_also_over_a_restart(tmp_path, monkeypatch):
    kept = tmp_path / "run" / "web.clock"
    clock = MachineClock(kept)
    assert clock.record_s() == pytest.approx(time.time(), abs=1.0)
    before = clock.record_s()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + HOUR_S)
    assert clock.unix_s() == pytest.approx(before + HOUR_S, abs=5.0)
    for again in (clock, MachineClock(kept)):
        assert 0.0 <= again.record_s() - before < 5.0
    assert MachineClock().record_s() == pytest.approx(before + HOUR_S, abs=5.0), (
        "nothing was kept for this one"
    )


@pytest.mark.parametrize("text", ["", "no such boot 12.0", "{boot} nan", "{boot} words", "\0\0\0"])
def test_what_was_kept_by_another_boot_or_is_damaged_is_measured_anew(tmp_path, text):
    kept = tmp_path / "web.clock"
    with open("/proc/sys/kernel/random/boot_id") as file:  # noqa: PTH123
        kept.write_text(text.format(boot=file.read().strip()))
    assert MachineClock(kept).record_s() == pytest.approx(time.time(), abs=1.0)
    assert float(kept.read_text().split()[1]) > 0


def test_where_nothing_can_be_kept_it_still_tells_the_time(tmp_path):
    (tmp_path / "file").write_text("no folder")
    assert MachineClock(tmp_path / "file/web.clock").record_s() == pytest.approx(time.time(), abs=1.0)


def test_a_wake_ends_the_wait_or_the_next_one():
    clock = MachineClock()
    clock.wake()
    clock.wake()
    begun = clock.now_s()
    clock.wait_until(begun + 5.0)
    assert clock.now_s() - begun < 1.0
    clock.wait_until(clock.now_s() + 0.05)
    assert clock.now_s() - begun >= 0.05


def test_a_storm_of_signals_that_wake_never_blocks_the_wait():
    """Signals land between any two instructions of the wait, thousands of times."""
    clock = MachineClock()
    landed = 0

    def woken(_number, _frame):
        nonlocal landed
        landed += 1
        clock.wake()

    before = signal.signal(signal.SIGALRM, woken)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.0001, 0.0001)
        until = clock.now_s() + 1.5
        while clock.now_s() < until:
            clock.wait_until(clock.now_s() + 0.001)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert landed > 500


# ---- the loop, when the clock is set ------------------------------------------------------


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S], ids=["an hour on", "an hour back"])
@pytest.mark.parametrize("restarted", [False, True], ids=["running", "restarted"])
def test_the_clock_is_set_and_no_drain_life_or_pause_is_cut_or_stretched(step_s, restarted):
    world = grown(min_life_s=40.0, idle_s=10.0, drain_s=30.0)
    world.dataplane.flows["web-1-s1"] = 3
    world.ticks(3, 20.0)

    def set_clock():
        world.clock.unix += step_s
        if restarted:
            world.restart()

    set_clock()
    world.ticks(14, 20.0)
    assert world.states() == [ShadowState.READY], "half of its least life is not over"
    world.until(ShadowState.DRAINING, 20.0, 60)
    set_clock()
    world.ticks(25, 20.0)
    assert world.dataplane.members["web-1-s1"].draining
    assert world.dataplane.members["web-1-s1"].evicted == 0.0, "its flows have until the deadline"
    world.ticks(22, 20.0)
    assert world.states() == [], "and no longer"
    assert world.provisioner.exists == set()


@pytest.mark.parametrize("step_s", [HOUR_S, -HOUR_S], ids=["an hour on", "an hour back"])
def test_the_clock_is_set_and_failed_orders_are_tried_again_after_their_pause(step_s):
    world = grown(retry_after_s=20.0)
    world.store.records.clear()
    world.prober.dead.add("web-1-s1")
    world.provisioner.fail = True
    world.until(ShadowState.FAILED, 110.0, 100)
    before = len(world.provisioner.orders)
    world.clock.unix += step_s
    world.ticks(10, 110.0)
    assert len(world.provisioner.orders) == before, "the pause is not over"
    world.ticks(40, 110.0)
    assert len(world.provisioner.orders) > before


def test_records_of_a_boot_whose_clock_was_ahead_do_not_block_for_as_long():
    world = grown(min_life_s=20.0)
    ahead = world.clock.record + 100 * HOUR_S
    record = world.store.records["web-1-s1"]
    world.store.records["web-1-s1"] = replace(
        record, requested_unix_s=ahead, changed_unix_s=ahead, healthy_unix_s=ahead, ready_unix_s=ahead
    )
    world.restart()
    world.ticks(80, 20.0)
    assert world.states() == []
