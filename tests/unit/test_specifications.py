# SPDX-License-Identifier: Apache-2.0
"""Originals are read while they are healthy, a few at once, and what was read outlives them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from controlplane import model
from controlplane.journal import Journal
from controlplane.model import ShadowState
from controlplane.specifications import MOST_AT_ONCE, RENEW_S, Specifications, kept, key
from tests.fakes import FakeClock, FakeProvisioner, FakeStore
from tests.world import World, config


class Desk:
    """Specifications with their fakes; all endpoints are healthy but those in ``down``."""

    def __init__(self, configuration: model.Config) -> None:
        self.clock, self.store = FakeClock(), FakeStore()
        self.provisioner = FakeProvisioner(self.clock)
        self.down: set[str] = set()
        self.journal = Journal(self.store, self.clock)
        self.specifications = Specifications(
            configuration, self.provisioner, self.store, self.clock, self.journal
        )

    def ticks(self, count: int) -> None:
        for _ in range(count):
            self.clock.advance(1.0)
            self.specifications.advance(lambda name: name not in self.down)

    @property
    def read(self) -> list[str]:
        return [name for names in self.provisioner.inspections for name in names]


def test_what_is_read_is_kept_with_where_and_when_and_given_for_that_target_only() -> None:
    desk = Desk(config())
    desk.provisioner.originals = {"web-1": "b25l"}
    desk.ticks(3)
    found = kept(desk.store, "web-1", "netns")
    assert found is not None
    assert (found.text, found.host, found.target) == ("b25l", "host-a", "netns")
    assert found.at_unix_s == pytest.approx(desk.clock.unix, abs=5)
    assert desk.specifications.of("web-1", "netns") == "b25l"
    assert desk.specifications.of("web-1", "docker") == ""


def test_it_is_renewed_now_and_then_and_at_once_when_the_endpoint_is_healthy_again() -> None:
    desk = Desk(config())
    desk.provisioner.originals = {"web-1": "b25l"}
    desk.ticks(3)
    desk.ticks(30)
    assert desk.read == ["web-1"], "not each tick"
    desk.provisioner.originals = {"web-1": "dHdv"}
    desk.specifications.healthy_again(["web-1"])
    desk.ticks(3)
    assert desk.specifications.of("web-1", "netns") == "dHdv"
    desk.ticks(int(RENEW_S) + 3)
    assert desk.read == ["web-1"] * 3


def test_who_is_not_healthy_is_not_read() -> None:
    desk = Desk(config(2))
    desk.down = {"web-1"}
    desk.ticks(30)
    assert desk.read == ["web-2"]
    desk.down = set()
    desk.ticks(5)
    assert sorted(desk.read) == ["web-1", "web-2"]


def test_of_thousands_few_are_read_at_once_and_reading_rests_between() -> None:
    many = config(100)
    desk = Desk(many)
    desk.provisioner.originals = {e.name: "b25l" for e in many.services["web"].endpoints}
    desk.ticks(200)
    assert {len(names) for names in desk.provisioner.inspections} == {MOST_AT_ONCE, 100 % MOST_AT_ONCE}
    assert sorted(desk.read) == sorted(desk.provisioner.originals), "each once"
    desk = Desk(many)
    desk.ticks(9)
    assert len(desk.provisioner.inspections) == 1, "one took a second: nine are rest"


def test_what_can_not_be_read_is_a_trouble_until_it_can_and_is_tried_again() -> None:
    desk = Desk(config())
    desk.provisioner.unreadable = {"web-1": "no engine answers"}
    desk.ticks(3)
    assert (
        "web-1 can be cloned only while it is there: no engine" in desk.journal.troubles()["specifications"]
    )
    desk.provisioner.unreadable, desk.provisioner.originals = {}, {"web-1": "b25l"}
    desk.ticks(60)
    assert desk.journal.troubles() == {}
    assert desk.specifications.of("web-1", "netns") == "b25l"


def test_a_target_that_can_not_read_is_not_asked_again() -> None:
    desk = Desk(config())
    desk.ticks(1000)
    assert desk.read == ["web-1"]
    assert desk.journal.troubles() == {}


def test_a_store_that_lost_it_gets_it_again_and_one_that_fails_is_a_trouble() -> None:
    desk = Desk(config())
    desk.provisioner.originals = {"web-1": "b25l"}
    desk.ticks(3)
    desk.store.values.clear()
    assert desk.specifications.of("web-1", "netns") == ""
    desk.ticks(int(RENEW_S) + 3)
    assert desk.specifications.of("web-1", "netns") == "b25l"
    desk.store.broken = True
    desk.ticks(int(RENEW_S) + 3)
    assert "store" in desk.journal.troubles()
    assert desk.specifications.of("web-1", "netns") == ""


def test_a_reload_reads_all_anew_and_forgets_who_is_gone() -> None:
    desk = Desk(config(2))
    desk.provisioner.originals = {"web-1": "b25l", "web-2": "b25l"}
    desk.ticks(3)
    desk.specifications.reconfigure(config(1))
    desk.ticks(1)
    assert key("web-2") not in desk.store.values
    desk.ticks(20)
    assert desk.read == ["web-1", "web-2", "web-1"]


def test_who_left_the_configuration_while_nobody_ran_is_forgotten_too_even_if_the_store_is_late() -> None:
    desk = Desk(config(2))
    desk.provisioner.originals = {"web-1": "b25l", "web-2": "b25l"}
    desk.ticks(3)
    again = Desk(config(1))
    again.store.values = desk.store.values
    again.store.broken = True
    again.ticks(2)
    again.store.broken = False
    again.ticks(2)
    assert key("web-2") not in again.store.values
    assert again.specifications.of("web-1", "netns") == "b25l"


def test_who_is_on_a_host_that_an_inventory_has_is_not_forgotten_before_it_was_read() -> None:
    desk = Desk(config())
    desk.provisioner.originals = {"web-1": "b25l"}
    desk.ticks(3)
    again = Desk(replace(config(), hosts={}))
    again.store.values = desk.store.values
    again.ticks(3)
    assert again.specifications.of("web-1", "netns") == "b25l"


@pytest.mark.parametrize("without", ["hosts", "host"])
def test_who_gets_no_shadows_or_is_on_no_known_host_is_not_read(without: str) -> None:
    its = config()
    service = its.services["web"]
    if without == "hosts":
        service = replace(service, shadows=replace(service.shadows, hosts=()))
    else:
        service = replace(service, endpoints=tuple(replace(e, host=None) for e in service.endpoints))
    desk = Desk(replace(its, services={"web": service}))
    desk.ticks(30)
    assert desk.read == []


def test_a_shadow_is_made_from_what_was_kept_after_a_restart_and_a_retry_too() -> None:
    world = World(config())
    world.provisioner.originals = {"web-1": "c2VjcmV0"}
    world.ticks(25, 40.0)
    world.restart()
    world.until(ShadowState.READY, 110.0)
    assert world.provisioner.specifications == {"web-1-s1": "c2VjcmV0"}
    everything = [*world.shown, *(str(row) for row in world.store.rows), str(world.store.records)]
    assert not [text for text in everything if "c2VjcmV0" in text], "shown and logged nowhere"


def test_negative_control_without_the_reading_it_is_made_from_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("controlplane.loop.Controller._inspect", lambda self: None)
    world = World(config())
    world.provisioner.originals = {"web-1": "c2VjcmV0"}
    world.ticks(25, 40.0)
    world.until(ShadowState.READY, 110.0)
    assert world.provisioner.specifications == {"web-1-s1": ""}


def test_who_only_forecasts_reads_nobody() -> None:
    world = World(config(mode=model.Mode.FORECAST_ONLY))
    world.ticks(5, 40.0)
    assert world.provisioner.inspections == []
