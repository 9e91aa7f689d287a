# SPDX-License-Identifier: Apache-2.0
"""Several processes have an instance's maps open and write in turn: each reads back what is there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from controlplane import model
from controlplane.adapters.clock import MachineClock
from controlplane.adapters.dataplane import MapDataplane
from controlplane.adapters.names import Names
from controlplane.ports import DataplaneError

LIVE, SHADOWS, SERVICES = ("a", "b", "c"), ("a-s1", "a-s2", "b-s1"), ("web", "api")
SLOT_WEIGHTS = {"a-s1": 1.0, "a-s2": 0.5, "b-s1": 1.0}
SHARES = st.sampled_from([0.0, 0.25, 0.5, 1.0])


def service(name: str) -> model.VirtualService:
    vip = IPv4Address("203.0.113.10") + SERVICES.index(name)
    return model.VirtualService(name, vip, 80, model.Protocol.TCP, model.OnDown.RESET, ring_size=251)


def member(name: str, of: str, last: int, down: bool) -> model.Member:
    role = model.Role.LIVE if name in LIVE else model.Role.SHADOW
    parent = None if name in LIVE else name.partition("-")[0]
    return model.Member(name, of, IPv4Address(f"10.201.0.{last}"), 8080, role, parent, down)


NAMES, FLAGS = st.sampled_from((*LIVE, *SHADOWS)), st.booleans()
STEPS = st.one_of(
    st.builds(
        lambda name, of, last, down: model.InstallMember(member(name, of, last, down)),
        NAMES,
        st.sampled_from(SERVICES),
        st.integers(1, 12),
        FLAGS,
    ),
    st.builds(lambda name: model.InstallService(service(name)), st.sampled_from(SERVICES)),
    st.builds(model.RemoveMember, NAMES),
    st.builds(model.RemoveService, st.sampled_from(SERVICES)),
    st.builds(
        model.SetRing,
        st.sampled_from(SERVICES),
        st.dictionaries(st.sampled_from(LIVE), st.sampled_from([1.0, 2.0]), min_size=1),
    ),
    st.builds(
        lambda name, slots: model.SetSlots(
            name, {n: SLOT_WEIGHTS[n] for n in sorted(slots) if n.startswith(name)}
        ),
        st.sampled_from(LIVE),
        st.sets(st.sampled_from(SHADOWS)),
    ),
    st.builds(model.SetSpill, st.sampled_from(LIVE), SHARES),
    st.builds(model.SetDown, NAMES, FLAGS),
    st.builds(
        lambda name, percent: model.SetDraining(name, percent is not None, (percent or 0) / 100.0),
        NAMES,
        st.none() | st.integers(0, 99),
    ),
)


@contextmanager
def opened(instance: str) -> Iterator[MapDataplane]:
    dataplane = MapDataplane.open(instance, MachineClock())
    try:
        yield dataplane
    finally:
        dataplane.close()


def apply(dataplane: MapDataplane, step: model.Step) -> str | None:
    """What it refuses, and everything may be at a loss here, it refuses with a sentence."""
    try:
        dataplane.apply(step)
    except DataplaneError as error:
        return str(error)
    return None


def empty(dataplane: MapDataplane) -> None:
    found = dataplane.installed()
    for name in found.services:
        dataplane.apply(model.RemoveService(name))
    for name in found.members:
        dataplane.apply(model.RemoveMember(name))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=st.lists(st.tuples(FLAGS, STEPS), min_size=5, max_size=40))
def test_whoever_wrote_everybody_reads_back_what_one_who_opens_the_maps_now_does(
    loaded: MapDataplane, config: model.Config, turns: list[tuple[bool, model.Step]]
) -> None:
    empty(loaded)
    start: list[model.Step] = [model.InstallService(service(name)) for name in SERVICES]
    start += [
        model.InstallMember(member(name, "web", at, False)) for at, name in enumerate((*LIVE, *SHADOWS), 1)
    ]
    with opened(config.instance) as other:
        for mine, step in [*((True, step) for step in start), *turns]:
            apply(loaded if mine else other, step)
            with opened(config.instance) as fresh:
                now = fresh.installed()
            assert loaded.installed() == now
            assert other.installed() == now
            assert list(loaded.installed().members) == list(now.members), "in the order of their rows"
            assert dict(loaded.counters().rows).keys() == now.members.keys()


def test_a_step_acts_on_who_has_the_name_now_not_on_who_had_it(
    loaded: MapDataplane, config: model.Config
) -> None:
    swap_names(loaded, config)
    assert loaded.installed().members["a"].spill == 0.5
    assert loaded.installed().members["b"].spill == 0.0


def test_without_a_second_look_it_acts_on_who_had_the_name(
    loaded: MapDataplane, config: model.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control of the test above."""
    monkeypatch.setattr(Names, "get", lambda self, name: self._rows.get(name) or self.rows().get(name))
    swap_names(loaded, config)
    assert loaded.installed().members["b"].spill == 0.5


def swap_names(loaded: MapDataplane, config: model.Config) -> None:
    """Another process gives the place of ``a`` to ``b`` and back; then this one has ``a`` spill."""
    loaded.apply(model.InstallService(service("web")))
    loaded.apply(model.InstallMember(member("a", "web", 1, False)))
    loaded.apply(model.SetSpill("a", 0.25))
    with opened(config.instance) as other:
        other.apply(model.RemoveMember("a"))
        other.apply(model.InstallMember(member("b", "web", 1, False)))
        other.apply(model.InstallMember(member("a", "web", 2, False)))
    loaded.apply(model.SetSpill("a", 0.5))


def test_what_was_read_back_does_not_change_when_somebody_writes(loaded: MapDataplane) -> None:
    loaded.apply(model.InstallService(service("web")))
    loaded.apply(model.InstallMember(member("a", "web", 1, False)))
    before, counters = loaded.installed(), loaded.counters()
    loaded.apply(model.InstallMember(member("b", "web", 2, False)))
    loaded.apply(model.RemoveMember("a"))
    assert loaded.installed().members.keys() == {"b"}
    assert loaded.counters().rows.keys() == {"b"}
    assert before.members.keys() == {"a"} == counters.rows.keys()
    assert loaded.installed() is loaded.installed(), "nothing changed: nothing is made anew"
