# SPDX-License-Identifier: Apache-2.0
"""Limits on new flows in a window of 100 ms, and clients whose flows go alike."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np
import pytest

from controlplane.adapters import layout
from controlplane.adapters.event_ring import EventRing
from controlplane.model import EventKind
from tests import reference
from tests.packet.rig import FAR_WINDOW, KEY, UDP_NUMBER, Rig, tcp, udp

VIP, VIP6, CLIENT, CLIENT6 = "198.51.100.10", "2001:db8:1::10", "192.0.2.7", "2001:db8::7"
LIVE, FIRST, SECOND = 1, 2, 3
"""Indices; the endpoint of index n is 203.0.113.n. The ring names the live one alone."""
NAMES = {1: "live", 2: "first", 3: "second", 4: "neighbour"}


def install(rig: Rig, protocol: int = 6) -> Rig:
    """A live endpoint and two shadows, the first in three of four slots; nothing spills or is limited."""
    rig.service(1, VIP, 80, protocol)
    rig.ring(1, [rig.endpoint(LIVE, 1, "203.0.113.1", 8080)] * 7)
    shadows = [rig.endpoint(index, 1, f"203.0.113.{index}", 8080, parent=LIVE) for index in (FIRST, SECOND)]
    rig.shadows(LIVE, [shadows[0], shadows[0], shadows[0], shadows[1]], 0)
    return rig


@pytest.fixture
def group(rig: Rig) -> Rig:
    return install(rig)


def to(rig: Rig, packet: object) -> str:
    """The member that was given it."""
    return NAMES[int(str(rig.send(packet).packet.payload.dst).rpartition(".")[2])]


def syn(port: int, client: str = CLIENT) -> object:
    return tcp(client, port, VIP, 80, "S")


def ports_of(member: int) -> list[int]:
    """Ports of flows whose slot names that shadow."""
    third = {FIRST: (0, 1, 2), SECOND: (3,)}[member]
    found = []
    for port in range(2000, 9000):
        pick = reference.pick_hash(reference.flow_hash(KEY, CLIENT, VIP, port, 80, 6))
        if reference.shadow_slot(pick) % 4 in third:
            found.append(port)
    return found


OF_FIRST, OF_SECOND = ports_of(FIRST), ports_of(SECOND)


class TestLimit:
    def test_past_it_new_flows_spill_at_once(self, group: Rig) -> None:
        group.limit(LIVE, 3)
        given = Counter(to(group, syn(port)) for port in range(5000, 5010))
        assert given["live"] == 3
        assert given["first"] + given["second"] == 7
        assert group.counts(LIVE, "offered", "spilled", "limited", "flows") == {
            "offered": 10,
            "spilled": 7,
            "limited": 7,
            "flows": 3,
        }

    def test_without_one_nothing_does(self, group: Rig) -> None:
        group.limit(LIVE, 0)
        assert {to(group, syn(port)) for port in range(5000, 5010)} == {"live"}
        assert group.count(LIVE, "limited") == 0

    def test_a_flow_that_spilled_stays_where_it_is(self, group: Rig) -> None:
        group.limit(LIVE, 1)
        to(group, syn(5000))
        spilled = to(group, syn(5001))
        assert spilled != "live"
        group.limit(LIVE, 0)
        assert to(group, tcp(CLIENT, 5001, VIP, 80, "A")) == spilled
        assert to(group, syn(5001)) == spilled

    def test_the_flows_slot_then_a_second_one_then_the_live_one_again(self, group: Rig) -> None:
        for member in (LIVE, FIRST, SECOND):
            group.limit(member, 1)
        assert [to(group, syn(port)) for port in OF_FIRST[:4]] == ["live", "first", "second", "live"]
        # Who would have been given it by hash is the one whose limit sent it elsewhere.
        assert {NAMES[i]: group.count(i, "limited") for i in (LIVE, FIRST, SECOND)} == {
            "live": 2,
            "first": 0,
            "second": 0,
        }
        assert group.counts(LIVE, "offered", "spilled", "flows") == {"offered": 4, "spilled": 2, "flows": 2}

    def test_the_share_that_spills_goes_to_the_second_slot_and_then_to_the_live_one(self, group: Rig) -> None:
        group.endpoints[LIVE : LIVE + 1]["spill"] = layout.SPILL_ALL
        for member in (LIVE, FIRST, SECOND):
            group.limit(member, 1)
        given = [to(group, syn(port)) for port in OF_FIRST[:5]]
        assert given == ["first", "second", "live", "live", "live"], "the primary never refuses"
        assert {NAMES[i]: group.count(i, "limited") for i in (LIVE, FIRST, SECOND)} == {
            "live": 0,
            "first": 4,
            "second": 0,
        }
        assert group.counts(LIVE, "offered", "spilled") == {"offered": 5, "spilled": 2}

    def test_the_slot_decides_who_comes_first(self, group: Rig) -> None:
        group.limit(LIVE, 1)
        to(group, syn(OF_FIRST[0]))
        assert {to(group, syn(port)) for port in OF_FIRST[1:20]} == {"first"}
        assert {to(group, syn(port)) for port in OF_SECOND[:20]} == {"second"}

    def test_without_a_shadow_the_live_one_keeps_all(self, group: Rig) -> None:
        group.shadows(LIVE, [], 0)
        group.limit(LIVE, 2)
        assert {to(group, syn(port)) for port in range(5000, 5005)} == {"live"}
        assert group.counts(LIVE, "flows", "limited") == {"flows": 5, "limited": 0}

    def test_a_shadow_that_is_down_is_passed_over(self, group: Rig) -> None:
        group.limit(LIVE, 1)
        group.state(FIRST, down=True)
        to(group, syn(OF_FIRST[0]))
        assert to(group, syn(OF_FIRST[1])) == "second"

    @pytest.mark.parametrize("state", ["down", "draining"])
    def test_when_the_live_one_takes_none_its_shadows_have_to(self, group: Rig, state: str) -> None:
        group.state(LIVE, **{state: True})
        for member in (FIRST, SECOND):
            group.limit(member, 1)
        given = [to(group, syn(port)) for port in OF_FIRST[:4]]
        assert given == ["first", "second", "first", "first"]

    def test_a_neighbour_in_the_slots_has_its_own_limit(self, group: Rig) -> None:
        group.shadows(LIVE, [group.endpoint(4, 1, "203.0.113.4", 8080)], 0)
        group.limit(LIVE, 1)
        group.limit(4, 1)
        assert [to(group, syn(port)) for port in (5000, 5001, 5002)] == ["live", "neighbour", "live"]

    def test_a_syn_sent_again_counts_once(self, group: Rig) -> None:
        group.limit(LIVE, 2)
        assert [to(group, syn(port)) for port in (5000, 5000, 5000, 5001)] == ["live"] * 4

    @pytest.mark.parametrize("flags", ["A", "PA", "FA", "R", "SR"])
    def test_what_opens_no_flow_neither_counts_nor_spills(self, group: Rig, flags: str) -> None:
        group.limit(LIVE, 1)
        given = {to(group, tcp(CLIENT, port, VIP, 80, flags)) for port in range(5000, 5004)}
        assert given == {"live"}
        assert int(group.limits[LIVE]["used"]) == FAR_WINDOW << layout.LIMIT_WINDOW
        assert to(group, syn(6000)) == "live"

    def test_a_udp_flow_counts_with_its_first_packet(self, rig: Rig) -> None:
        install(rig, UDP_NUMBER)
        rig.limit(LIVE, 1)
        first, second = (udp(CLIENT, port, VIP, 80) for port in (5000, 5001))
        assert [to(rig, first), to(rig, first)] == ["live", "live"]
        shadow = to(rig, second)
        assert shadow != "live"
        assert [to(rig, second), to(rig, first)] == [shadow, "live"]

    def test_a_flow_without_a_place_goes_by_hash(self, group: Rig) -> None:
        """Its later packets would not follow where a limit sent the first."""
        group.settings["bucket_mask"] = 0
        for port in range(4000, 4004):
            for packet in (syn(port), tcp("203.0.113.1", 8080, CLIENT, port, "SA")):
                group.send(packet)
            group.send(tcp(CLIENT, port, VIP, 80, "A"))
        assert group.flow_count() == 4, "the only bucket is full of established flows"
        group.limit(LIVE, 1)
        assert {to(group, syn(port)) for port in range(5000, 5004)} == {"live"}
        assert group.counts(LIVE, "unremembered", "spilled", "limited") == {
            "unremembered": 4,
            "spilled": 0,
            "limited": 0,
        }

    def test_a_flood_uses_up_no_limit(self, group: Rig) -> None:
        """What it keeps from being remembered goes by hash."""
        group.settings["insert_limit"] = 0
        group.limit(LIVE, 1)
        assert {to(group, syn(port)) for port in range(5000, 5004)} == {"live"}
        assert int(group.limits[LIVE]["used"]) == FAR_WINDOW << layout.LIMIT_WINDOW
        assert group.count(LIVE, "unremembered") == 4

    def test_it_is_told_with_who_was_given_the_flow(self, group: Rig) -> None:
        events = EventRing(group.compiled.maps["events"])
        group.limit(LIVE, 1)
        to(group, syn(OF_FIRST[0]))
        events.read()
        for port in OF_FIRST[1:4]:
            to(group, syn(port))
        told = [(e["kind"], e["endpoint"], e["chosen"]) for e in events.read()]
        assert told == [(EventKind.LIMITED.value, LIVE, FIRST), (EventKind.REDIRECTED.value, LIVE, FIRST)]


class TestWindow:
    def test_the_next_one_begins_anew(self, group: Rig) -> None:
        group.limit(LIVE, 2, still=False)
        deadline = time.monotonic() + 5
        port, windows = 10_000, set()
        while len(windows) < 4:
            assert time.monotonic() < deadline
            to(group, syn(port))
            port += 1
            used = int(group.limits[LIVE]["used"])
            windows.add(used >> 32)
            assert used & 0xFFFFFFFF <= 2
        given = group.count(LIVE, "flows")
        assert 4 <= given <= 2 * 4, "at most two in each window"
        assert group.count(LIVE, "limited") == port - 10_000 - given > 0
        assert max(windows) == pytest.approx(time.monotonic() * 1e9 / layout.WINDOW_NS, abs=2)

    def test_a_cpu_that_is_late_counts_in_the_window_of_the_others(self, group: Rig) -> None:
        group.limit(LIVE, 2)
        for port in (5000, 5001, 5002):
            to(group, syn(port))
        assert int(group.limits[LIVE]["used"]) == FAR_WINDOW << 32 | 2
        assert group.count(LIVE, "flows") == 2


class TestAffinity:
    """``affinity: source``."""

    @pytest.fixture(params=["IPv4", "IPv6"])
    def alike(self, rig: Rig, request: pytest.FixtureRequest) -> Rig:
        """Four live endpoints, 11 to 14; each has shadows 100 and 200 on, and spills half."""
        v6 = request.param == "IPv6"
        self.vip, self.place = (VIP6, "2001:db8:2::{:x}") if v6 else (VIP, "203.0.113.{}")
        rig.service(1, self.vip, 80, affinity=True)
        live = [rig.endpoint(index, 1, self.place.format(index), 8080) for index in range(11, 15)]
        for index in range(11, 15):
            shadows = [
                rig.endpoint(index + far, 1, self.place.format(index + far), 8080, parent=index)
                for far in (100, 200)
            ]
            rig.shadows(index, shadows, 0.5)
        rig.ring(1, [live[i % 4] for i in range(61)])
        return rig

    def clients(self, count: int) -> list[str]:
        return [f"2001:db8:0:{i:x}::7" if ":" in self.vip else f"192.0.2.{i}" for i in range(1, count + 1)]

    def given(self, rig: Rig, client: str, ports: range) -> set[int]:
        before = rig.counters["flows"].sum(axis=0)
        for port in ports:
            rig.send(tcp(client, port, self.vip, 80, "S"))
        return set(np.flatnonzero(rig.counters["flows"].sum(axis=0) - before).tolist())

    def test_all_flows_of_a_client_go_alike_and_clients_apart(self, alike: Rig) -> None:
        whom = {client: self.given(alike, client, range(4000, 4012)) for client in self.clients(40)}
        assert all(len(members) == 1 for members in whom.values())
        members = Counter(min(given) for given in whom.values())
        assert len(members) > 6, "ring, spill and slot all differ between clients"
        for client, given in whom.items():
            pick = reference.pick_hash(reference.flow_hash(KEY, client, self.vip, 0, 80, 6))
            live = 11 + reference.ring_slot(pick, 0, 61) % 4
            shadow = live + 100 * (1 + reference.shadow_slot(pick) % 2)
            assert given == {shadow if reference.spill_bits(pick) < 1 << 31 else live}

    def test_without_it_they_go_apart(self, alike: Rig) -> None:
        alike.service(1, self.vip, 80)
        assert len(self.given(alike, self.clients(1)[0], range(4000, 4040))) > 6

    def test_the_group_that_the_ring_chose_is_credited(self, alike: Rig) -> None:
        for client in self.clients(12):
            pick = reference.pick_hash(reference.flow_hash(KEY, client, self.vip, 0, 80, 6))
            group = 11 + reference.ring_slot(pick, 0, 61) % 4
            before = alike.counts(group, "offered", "completed")
            for port in (4000, 4001):
                (member,) = self.given(alike, client, range(port, port + 1))
                alike.send(tcp(self.place.format(member), 8080, client, port, "SA"))
                alike.send(tcp(client, port, self.vip, 80, "A"))
            after = alike.counts(group, "offered", "completed")
            assert {name: after[name] - before[name] for name in after} == {"offered": 2, "completed": 2}

    def test_its_flows_are_not_parted_by_a_limit(self, alike: Rig) -> None:
        for index in range(11, 15):
            for member in (index, index + 100, index + 200):
                alike.limit(member, 1)
        for client in self.clients(12):
            assert len(self.given(alike, client, range(4000, 4006))) == 1
        assert alike.counters["limited"].sum() == 0

    def test_each_flow_is_remembered_by_itself(self, alike: Rig) -> None:
        (client,) = self.clients(1)
        self.given(alike, client, range(4000, 4006))
        assert alike.flow_count() == 6
