# SPDX-License-Identifier: Apache-2.0
"""A store that can be read and not written, as on a full disk: told once, until it is well again."""

from __future__ import annotations

from collections import Counter

import pytest

from controlplane.lead_times import parse
from controlplane.model import ShadowState
from tests.world import World, config, grown


def said(caplog: pytest.LogCaptureFixture, what: str) -> Counter[str]:
    """Part -> how often the log has it."""
    found = [one.getMessage() for one in caplog.records if what in one.getMessage()]
    caplog.clear()
    return Counter(one.split(f" {what}")[0] for one in found)


def goes_on(world: World, ticks: int, demand: float) -> None:
    """Woken between ticks, too."""
    for _ in range(ticks):
        world.tick(demand)
        world.controller.react()


@pytest.mark.parametrize(
    ("state", "demand"),
    [(ShadowState.PROVISIONING, 110.0), (ShadowState.WARMING, 110.0), (ShadowState.REMOVING, 20.0)],
    ids=lambda one: getattr(one, "value", ""),
)
def test_a_full_disk_is_told_once_until_it_is_well(
    state: ShadowState, demand: float, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "penumbra")
    if state is ShadowState.REMOVING:
        world = grown()
    else:
        world = World(config(max_per_endpoint=1))
        world.ticks(25, 40.0)
    world.until(state, demand, 200)
    caplog.clear()
    world.store.full = True
    goes_on(world, 130, demand)  # past two times of keeping what was learned
    troubles = world.controller.status().troubles
    assert {"store", "decision log", "learned"} == troubles.keys()
    assert not [one for one in caplog.records if "works again" in one.getMessage()]
    assert said(caplog, "does not work") == Counter(troubles.keys())
    goes_on(world, 2, demand)
    assert said(caplog, "works again") == Counter()
    world.store.full = False
    goes_on(world, 5, demand)
    assert said(caplog, "works again") == Counter(troubles.keys())
    assert world.controller.status().troubles == {}
    goes_on(world, 60, demand)
    if state is ShadowState.REMOVING:
        assert world.states() == []
        assert world.orders("deprovision") == ["web-1-s1"], "it is removed once"
        assert not [row for row in world.store.rows if row.action == "restore"], "what it knows is not news"
    else:
        assert world.states() == [ShadowState.READY]
        assert len(parse(world.store.values["lead_times:web"]).times) == 1


def test_what_a_wake_up_can_do_says_nothing_of_what_a_tick_can_not(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "penumbra")
    world = grown()
    world.dataplane.broken = True
    caplog.clear()
    goes_on(world, 10, 110.0)
    assert said(caplog, "does not work")["observe"] == 1
    world.dataplane.broken = False
    goes_on(world, 2, 110.0)
    assert said(caplog, "works again")["observe"] == 1
