# SPDX-License-Identifier: Apache-2.0
"""The flow cache: who stays where, what is forgotten first, and what is counted of a flow's life."""

from __future__ import annotations

import time
from ipaddress import IPv4Address

import numpy as np
import pytest

from controlplane.adapters import layout
from controlplane.adapters.event_ring import EventRing
from controlplane.model import EventKind
from tests import reference
from tests.packet.rig import DROP, KEY, PASS, UDP_NUMBER, Rig, rewritten, tcp, udp

VIP, CLIENT = "198.51.100.10", "192.0.2.7"
A, B, SHADOW = "203.0.113.1", "203.0.113.2", "203.0.113.3"
SYN = tcp(CLIENT, 4000, VIP, 80, "S")
ACK = tcp(CLIENT, 4000, VIP, 80, "A")
FIN = tcp(CLIENT, 4000, VIP, 80, "FA")
SYNACK = tcp(A, 8080, CLIENT, 4000, "SA")
ANSWER = tcp(A, 8080, CLIENT, 4000, "A")


def install_pair(rig: Rig) -> Rig:
    """Endpoints 1 (A) and 2 (B); the ring names A alone. 3 is A's shadow, without spill."""
    rig.service(1, VIP, 80)
    rig.ring(1, [rig.endpoint(1, 1, A, 8080)] * 7)
    rig.endpoint(2, 1, B, 8080)
    rig.endpoint(3, 1, SHADOW, 8080, parent=1)
    return rig


@pytest.fixture
def pair(rig: Rig) -> Rig:
    return install_pair(rig)


def to(rig: Rig, packet: object) -> str:
    return str(rig.send(packet).packet.payload.dst)


def name_b(rig: Rig) -> None:
    base = int(rig.services[1]["ring_base"])
    rig.cells[base : base + 14] = layout.reference(2, 1)


def establish(rig: Rig) -> None:
    for packet in (SYN, SYNACK, ACK):
        rig.send(packet)


class TestAffinity:
    @pytest.mark.parametrize("packet", [SYN, ACK, FIN], ids=["a SYN sent again", "an ACK", "a FIN"])
    def test_a_flow_stays_when_the_ring_changes(self, pair: Rig, packet: object) -> None:
        pair.send(SYN)
        name_b(pair)
        assert to(pair, packet) == A

    def test_a_flow_without_its_syn_stays_too(self, pair: Rig) -> None:
        pair.send(ACK)
        name_b(pair)
        assert to(pair, ACK) == A
        assert pair.counts(1, "midstream", "offered", "flows") == {"midstream": 1, "offered": 0, "flows": 0}

    def test_another_flow_follows_the_new_ring(self, pair: Rig) -> None:
        pair.send(SYN)
        name_b(pair)
        assert to(pair, tcp(CLIENT, 4001, VIP, 80, "S")) == B

    @pytest.mark.parametrize("end", [FIN, tcp(CLIENT, 4000, VIP, 80, "R")], ids=["FIN", "RST"])
    def test_a_syn_after_the_end_is_a_new_flow(self, pair: Rig, end: object) -> None:
        establish(pair)
        pair.send(end)
        name_b(pair)
        assert to(pair, SYN) == B

    def test_a_syn_past_the_idle_limit_is_a_new_flow(self, pair: Rig) -> None:
        pair.send(SYN)
        name_b(pair)
        pair.age(int(pair.settings["idle_opening_ticks"][0]) + 1)
        assert to(pair, SYN) == B

    def test_a_rst_alone_leaves_the_flow_where_it_is(self, pair: Rig) -> None:
        establish(pair)
        pair.send(tcp(CLIENT, 4000, VIP, 80, "R"))
        name_b(pair)
        assert to(pair, ACK) == A

    def test_a_draining_endpoint_keeps_its_flows_and_gets_no_new_one(self, pair: Rig) -> None:
        establish(pair)
        pair.shadows(1, [layout.reference(3, 1)], 0)
        pair.state(1, draining=True)
        assert to(pair, ACK) == A
        assert to(pair, tcp(CLIENT, 4001, VIP, 80, "S")) == SHADOW

    def test_past_the_deadline_a_draining_endpoint_gives_up_its_flows_slice_by_slice(self, pair: Rig) -> None:
        ports = range(4000, 4200)
        tags = {p: max(reference.flow_hash(KEY, CLIENT, VIP, p, 80, 6) >> 32, 1) % 256 for p in ports}

        def kept() -> set[int]:
            went = {port: to(pair, tcp(CLIENT, port, VIP, 80, "A")) for port in ports}
            assert set(went.values()) <= {A, SHADOW}
            return {port for port, whom in went.items() if whom == A}

        assert kept() == set(ports)
        pair.shadows(1, [layout.reference(3, 1)], 0)
        for evicted in (0, 26, 128, 255):
            pair.state(1, draining=True, evicted=evicted)
            assert kept() == {port for port, tag in tags.items() if tag >= evicted}
        pair.state(1)
        assert kept() == {port for port, tag in tags.items() if tag >= 255}, "they stay where they went"

    def test_what_it_gave_up_is_answered_by_it_no_more_but_nothing_is_lost_on_the_way(
        self, pair: Rig
    ) -> None:
        establish(pair)
        pair.shadows(1, [layout.reference(3, 1)], 0)
        pair.state(1, draining=True, evicted=255)
        assert pair.send(ANSWER).raw == rewritten(ANSWER, source=(VIP, 80), hop=None)

    def test_a_stale_generation_is_a_miss(self, pair: Rig) -> None:
        establish(pair)
        name_b(pair)
        pair.state(1, generation=2)
        assert to(pair, ACK) == B

    def test_a_removed_endpoint_is_a_miss(self, pair: Rig) -> None:
        establish(pair)
        name_b(pair)
        pair.state(1, present=False)
        assert to(pair, ACK) == B

    def test_a_syn_of_another_tuple_with_the_same_tag_is_not_this_flow(self, pair: Rig) -> None:
        establish(pair)
        bucket, way = pair.only_flow()
        pair.flow_keys[bucket, way]["client_port"] = 1
        before = int(pair.flows[bucket, way]["life"])
        assert to(pair, SYN) == A
        assert int(pair.flows[bucket, way]["life"]) == before
        assert pair.counts(1, "offered", "unremembered") == {"offered": 2, "unremembered": 1}

    @pytest.mark.parametrize("bit", [0, 15, 16, 31])
    def test_an_entry_whose_tag_differs_in_one_bit_is_another_flow(self, pair: Rig, bit: int) -> None:
        establish(pair)
        pair.flows["id"][pair.only_flow()] ^= np.uint64(1 << (32 + bit))
        name_b(pair)
        assert to(pair, ACK) == B

    def test_a_flow_in_its_second_bucket_stays_and_is_new_but_once(self, pair: Rig) -> None:
        value = reference.flow_hash(KEY, CLIENT, VIP, 4000, 80, 6)
        first = value & int(pair.settings["bucket_mask"][0])
        now = np.uint64((int(time.monotonic() * 1e9) >> layout.TICK_SHIFT) << 32)
        pair.flows["life"][first] = now | np.uint64(layout.FLOW_ESTABLISHED << 24)
        pair.flows["id"][first] = [way << 32 | layout.reference(2, 1) for way in range(1, 5)]
        establish(pair)
        assert pair.flow_count() == 5
        name_b(pair)
        assert to(pair, ACK) == A
        assert pair.counts(1, "offered", "completed") == {"offered": 1, "completed": 1}


class TestStraySyn:
    """One with the tuple of a connection that goes on, from whoever knows the tuple."""

    def test_a_drained_connection_outlives_it(self, pair: Rig) -> None:
        establish(pair)
        pair.shadows(1, [layout.reference(3, 1)], 0)
        pair.state(1, draining=True)
        assert (to(pair, SYN), to(pair, ACK)) == (A, A)
        assert pair.counts(1, "offered", "flows") == {"offered": 1, "flows": 1}

    def test_what_was_not_established_leaves_the_draining_endpoint(self, pair: Rig) -> None:
        pair.send(SYN)
        pair.shadows(1, [layout.reference(3, 1)], 0)
        pair.state(1, draining=True)
        assert to(pair, SYN) == SHADOW

    def test_a_new_connection_after_the_end_leaves_the_draining_endpoint(self, pair: Rig) -> None:
        establish(pair)
        pair.send(FIN)
        pair.shadows(1, [layout.reference(3, 1)], 0)
        pair.state(1, draining=True)
        assert to(pair, SYN) == SHADOW


class TestSpill:
    def test_a_flow_spills_when_its_bits_are_below_the_spill_and_not_at_it(self, pair: Rig) -> None:
        pick = reference.pick_hash(reference.flow_hash(KEY, CLIENT, VIP, 4000, 80, 6))
        pair.shadows(1, [layout.reference(3, 1)], 0)
        pair.endpoints[1:2]["spill"] = reference.spill_bits(pick)
        assert to(pair, SYN) == A
        pair.flows["id"] = 0
        pair.endpoints[1:2]["spill"] = reference.spill_bits(pick) + 1
        assert to(pair, SYN) == SHADOW


class TestDown:
    def test_reset_moves_an_established_flow(self, pair: Rig) -> None:
        establish(pair)
        pair.shadows(1, [layout.reference(3, 1)], 0)
        pair.state(1, down=True)
        assert to(pair, ACK) == SHADOW

    def test_keep_leaves_an_established_flow(self, pair: Rig) -> None:
        establish(pair)
        pair.shadows(1, [layout.reference(3, 1)], 0)
        pair.services[1:2]["flags"] |= layout.SERVICE_ON_DOWN_KEEP
        pair.state(1, down=True)
        assert to(pair, ACK) == A

    def test_keep_moves_a_flow_that_is_not_established(self, pair: Rig) -> None:
        pair.send(SYN)
        pair.shadows(1, [layout.reference(3, 1)], 0)
        pair.services[1:2]["flags"] |= layout.SERVICE_ON_DOWN_KEEP
        pair.state(1, down=True)
        assert to(pair, SYN) == SHADOW

    def test_the_last_endpoint_is_never_ejected(self, pair: Rig) -> None:
        pair.state(1, down=True)
        assert to(pair, SYN) == A

    def test_a_down_shadow_is_passed_over(self, pair: Rig) -> None:
        pair.shadows(1, [layout.reference(3, 1), layout.reference(2, 1)], 1)
        pair.state(3, down=True)
        assert to(pair, SYN) == B

    def test_no_usable_shadow_keeps_the_primary(self, pair: Rig) -> None:
        pair.shadows(1, [layout.reference(3, 1)], 1)
        pair.state(3, down=True)
        assert to(pair, SYN) == A


class TestReturns:
    def test_a_cached_flows_answer_comes_from_the_vip(self, pair: Rig) -> None:
        pair.send(SYN)
        result = pair.send(SYNACK)
        assert (result.verdict, result.reason) == (PASS, "return_kernel")
        assert result.raw == rewritten(SYNACK, source=(VIP, 80), hop=None)

    def test_without_a_cached_flow_it_is_rewritten_all_the_same(self, pair: Rig) -> None:
        assert pair.send(ANSWER).raw == rewritten(ANSWER, source=(VIP, 80), hop=None)

    def test_to_a_direct_destination_it_passes_untouched(self, pair: Rig) -> None:
        pair.direct("192.0.2.0/24")
        result = pair.send(ANSWER)
        assert (result.reason, result.raw) == ("pass_direct", bytes(ANSWER))

    def test_a_cached_flow_goes_before_a_direct_destination(self, pair: Rig) -> None:
        pair.direct("192.0.2.0/24")
        pair.send(SYN)
        assert pair.send(SYNACK).reason == "return_kernel"

    @pytest.mark.parametrize("over", ["closed", "idle"])
    def test_a_flow_that_is_over_does_not_claim_the_next_direct_one(self, pair: Rig, over: str) -> None:
        """The access point's own connection from a port that a client used before."""
        pair.direct("192.0.2.0/24")
        establish(pair)
        if over == "closed":
            pair.send(FIN)
            pair.send(tcp(A, 8080, CLIENT, 4000, "FA"))
        assert pair.send(ANSWER).reason == "return_kernel", "it is not over yet"
        limit = "idle_closing_ticks" if over == "closed" else "idle_established_ticks"
        pair.age(int(pair.settings[limit][0]) + 1)
        result = pair.send(SYNACK)
        assert (result.reason, result.raw) == ("pass_direct", bytes(SYNACK))

    @pytest.mark.parametrize("state", [{"down": True}, {"draining": True}, {"present": False}], ids=str)
    def test_an_endpoint_on_its_way_out_still_answers_as_the_vip(self, pair: Rig, state: dict) -> None:
        establish(pair)
        pair.state(1, **state)
        assert pair.send(ANSWER).raw == rewritten(ANSWER, source=(VIP, 80), hop=None)

    def test_another_port_of_the_endpoint_passes(self, pair: Rig) -> None:
        assert pair.send(tcp(A, 22, CLIENT, 4000, "A")).reason == "pass_other"

    def test_an_answer_to_a_vip_without_a_flow_is_dropped(self, pair: Rig) -> None:
        result = pair.send(tcp(A, 8080, VIP, 4000, "A"))
        assert (result.verdict, result.reason) == (DROP, "drop_vip_port")


class TestCounters:
    def test_a_handshake_is_offered_and_completed_once(self, pair: Rig) -> None:
        for packet in (SYN, SYN, SYNACK, SYNACK, ACK, ACK):
            pair.send(packet)
        assert pair.counts(1, "offered", "completed", "flows") == {"offered": 1, "completed": 1, "flows": 1}

    def test_a_syn_without_an_answer_is_not_completed(self, pair: Rig) -> None:
        pair.send(SYN)
        pair.send(ACK)
        assert pair.counts(1, "offered", "completed") == {"offered": 1, "completed": 0}

    @pytest.mark.parametrize(
        ("flags", "number"),
        [("A", 1000), ("A", 1001 + 65536), ("", 1001), ("P", 1001)],
        ids=["acknowledges less", "acknowledges what was not sent", "no flag", "no ACK"],
    )
    def test_a_packet_that_does_not_acknowledge_the_synack_completes_nothing(
        self, pair: Rig, flags: str, number: int
    ) -> None:
        """SYNACK's sequence number is 1000, so that the client has to acknowledge 1001."""
        pair.send(SYN)
        pair.send(SYNACK)
        forged = tcp(CLIENT, 4000, VIP, 80, flags)
        forged.payload.payload.ack = number
        pair.send(forged)
        assert pair.count(1, "completed") == 0
        true = ACK.copy()
        true.payload.payload.ack = 1001
        pair.send(true)
        pair.send(ANSWER)
        assert pair.count(1, "completed") == 1

    def test_the_acknowledgement_may_wrap_around(self, pair: Rig) -> None:
        answer, ack = SYNACK.copy(), ACK.copy()
        answer.payload.payload.seq, ack.payload.payload.ack = 0xFFFFFFFF, 0
        for packet in (SYN, answer, ack):
            pair.send(packet)
        assert pair.count(1, "completed") == 1

    def test_a_spilled_flow_is_its_live_endpoints_demand(self, pair: Rig) -> None:
        pair.shadows(1, [layout.reference(3, 1)], 1)
        for packet in (SYN, tcp(SHADOW, 8080, CLIENT, 4000, "SA"), ACK):
            pair.send(packet)
        assert pair.counts(1, "offered", "completed", "spilled", "flows") == {
            "offered": 1,
            "completed": 1,
            "spilled": 1,
            "flows": 0,
        }
        assert pair.counts(3, "offered", "completed", "flows") == {"offered": 0, "completed": 0, "flows": 1}

    def test_udp_is_completed_by_its_first_answer(self, rig: Rig) -> None:
        rig.service(2, VIP, 53, UDP_NUMBER)
        rig.ring(2, [rig.endpoint(4, 2, A, 5353)] * 7)
        for _ in range(2):
            rig.send(udp(CLIENT, 4000, VIP, 53, b"q"))
            rig.send(udp(A, 5353, CLIENT, 4000, b"a"))
        assert rig.counts(4, "offered", "completed") == {"offered": 1, "completed": 1}

    def test_fins_of_both_sides_close_a_flow_once(self, pair: Rig) -> None:
        establish(pair)
        for packet in (FIN, tcp(A, 8080, CLIENT, 4000, "FA"), FIN):
            pair.send(packet)
        assert pair.count(1, "fins") == 1

    def test_a_rst_of_the_endpoint_is_counted(self, pair: Rig) -> None:
        pair.send(SYN)
        pair.send(tcp(A, 8080, CLIENT, 4000, "RA"))
        assert pair.count(1, "resets") == 1


class TestRtt:
    def test_syn_to_synack_is_a_sample(self, pair: Rig) -> None:
        pair.send(SYN)
        bucket, way = pair.only_flow()
        life = int(pair.flows[bucket, way]["life"])
        earlier = ((life & 0xFFFFFF) - 5000) & 0xFFFFFF  # as if the SYN came 5 ms sooner
        pair.flows["life"][bucket, way] = life & ~0xFFFFFF | earlier
        pair.send(SYNACK)
        assert pair.count(1, "rtt_count") == 1
        took = pair.count(1, "rtt_sum_us")
        assert 5000 <= took < 1_000_000
        octave = took.bit_length() - 1
        assert pair.rtt[1][16 * (octave - 3) + (took >> (octave - 4) & 15)] == 1

    def test_a_syn_sent_again_gives_no_sample(self, pair: Rig) -> None:
        for packet in (SYN, SYN, SYNACK):
            pair.send(packet)
        assert pair.count(1, "rtt_count") == 0

    def test_a_synack_sent_again_gives_no_second_sample(self, pair: Rig) -> None:
        for packet in (SYN, SYNACK, SYNACK):
            pair.send(packet)
        assert pair.count(1, "rtt_count") == 1


def one_bucket(rig: Rig) -> Rig:
    rig.settings["bucket_mask"] = 0
    return rig


class TestVictims:
    """A cache of one bucket, four flows."""

    @pytest.fixture
    def small(self, pair: Rig) -> Rig:
        return one_bucket(pair)

    def fill(self, rig: Rig, *, answered: bool) -> None:
        for port in range(5000, 5004):
            rig.send(tcp(CLIENT, port, VIP, 80, "S"))
            if answered:
                rig.send(tcp(A, 8080, CLIENT, port, "SA"))
                rig.send(tcp(CLIENT, port, VIP, 80, "A"))

    def ports(self, rig: Rig) -> set[int]:
        return {int(rig.flow_keys[0, way]["client_port"]) for way in range(4) if rig.flows[0, way]["id"]}

    def test_an_established_flow_is_never_a_victim(self, small: Rig) -> None:
        self.fill(small, answered=True)
        assert to(small, SYN) == A
        assert self.ports(small) == {5000, 5001, 5002, 5003}
        assert small.count(1, "unremembered") == 1

    def test_a_udp_flow_without_a_place_is_no_demand(self, rig: Rig) -> None:
        rig.settings["bucket_mask"] = 0
        rig.service(2, VIP, 53, UDP_NUMBER)
        rig.ring(2, [rig.endpoint(4, 2, A, 5353)] * 7)
        for port in range(5000, 5004):
            rig.send(udp(CLIENT, port, VIP, 53, b"q"))
            rig.send(udp(A, 5353, CLIENT, port, b"a"))
        for _ in range(10):
            assert to(rig, udp(CLIENT, 4000, VIP, 53, b"q")) == A
        assert rig.counts(4, "offered", "completed", "flows", "unremembered", "packets") == {
            "offered": 4,
            "completed": 4,
            "flows": 4,
            "unremembered": 10,
            "packets": 14,
        }

    def idle(self, small: Rig, way: int) -> None:
        ticks = int(small.settings["idle_established_ticks"][0]) + 1
        small.flows["life"][0, way : way + 1] -= np.uint64(ticks << 32)  # wraps on a machine just booted

    def test_the_oldest_unanswered_goes(self, small: Rig) -> None:
        self.fill(small, answered=False)
        oldest = next(way for way in range(4) if small.flow_keys[0, way]["client_port"] == 5002)
        small.flows["life"][0, oldest] -= 5 << 32
        small.send(SYN)
        assert self.ports(small) == {5000, 5001, 5003, 4000}

    def test_an_idle_one_goes_before_an_unanswered_one(self, small: Rig) -> None:
        self.fill(small, answered=True)
        small.flows["life"][0, 1] ^= layout.FLOW_ESTABLISHED << 24
        gone = int(small.flow_keys[0, 3]["client_port"])
        self.idle(small, way=3)
        small.send(SYN)
        assert self.ports(small) == {5000, 5001, 5002, 5003, 4000} - {gone}

    def test_one_of_a_stale_generation_goes_before_an_idle_one(self, small: Rig) -> None:
        self.fill(small, answered=True)
        gone = int(small.flow_keys[0, 0]["client_port"])
        small.flows["id"][0, 0] ^= 1 << layout.REF_INDEX_BITS
        self.idle(small, way=3)
        small.send(SYN)
        assert self.ports(small) == {5000, 5001, 5002, 5003, 4000} - {gone}


def test_last_seen_is_stored_only_when_the_tick_changes(pair: Rig) -> None:
    establish(pair)
    bucket, way = pair.only_flow()
    pair.age(3)
    aged = int(pair.flows[bucket, way]["life"]) >> 32
    pair.send(ACK)
    assert int(pair.flows[bucket, way]["life"]) >> 32 >= aged + 3


def test_the_entry_lies_where_its_hash_says(pair: Rig) -> None:
    pair.send(SYN)
    value = reference.flow_hash(KEY, CLIENT, VIP, 4000, 80, 6)
    bucket, way = pair.only_flow()
    assert bucket == value & int(pair.settings["bucket_mask"][0])
    assert int(pair.flows[bucket, way]["id"]) >> 32 == value >> 32


class TestEvents:
    def said(self, rig: Rig) -> list[tuple[EventKind, int, int, int, str, int]]:
        """What stands in the ring buffer since it was last read, as user space reads it."""
        return [
            (
                EventKind(int(event["kind"])),
                int(event["service"]),
                int(event["endpoint"]),
                int(event["chosen"]),
                str(IPv4Address(event["client"].tobytes()[12:])),
                int(event["client_port"]),
            )
            for event in EventRing(rig.compiled.maps["events"]).read()
        ]

    def test_a_redirected_flow_is_told_with_its_client(self, pair: Rig) -> None:
        self.said(pair)
        pair.shadows(1, [layout.reference(3, 1)], 1)
        before = time.monotonic_ns()
        pair.send(SYN)
        told = EventRing(pair.compiled.maps["events"]).read(keep=True)
        assert before <= int(told["time_ns"][0]) <= time.monotonic_ns()
        assert self.said(pair) == [(EventKind.REDIRECTED, 1, 1, 3, CLIENT, 4000)]

    def test_a_primary_without_a_usable_shadow_is_told(self, pair: Rig) -> None:
        self.said(pair)
        pair.shadows(1, [layout.reference(3, 1)], 1)
        pair.state(3, down=True)
        pair.send(SYN)
        assert self.said(pair) == [(EventKind.NO_SHADOW, 1, 1, 1, CLIENT, 4000)]

    def test_a_cached_flow_that_leaves_a_down_endpoint_is_told_twice(self, pair: Rig) -> None:
        """First whom it left, when nobody is chosen yet, then where it went."""
        establish(pair)
        pair.shadows(1, [layout.reference(3, 1)], 0)
        pair.state(1, down=True)
        self.said(pair)
        pair.send(ACK)
        assert self.said(pair) == [
            (EventKind.ENDPOINT_DOWN, 1, 1, 0, CLIENT, 4000),
            (EventKind.REDIRECTED, 1, 1, 3, CLIENT, 4000),
        ]

    def test_a_second_event_of_a_kind_waits_for_its_time(self, pair: Rig) -> None:
        pair.shadows(1, [layout.reference(3, 1)], 1)
        pair.send(SYN)
        said = int(pair.gates[1]["tick"][0])
        pair.gates["tick"][1, 0] = said - 1
        pair.send(tcp(CLIENT, 4001, VIP, 80, "S"))
        assert int(pair.gates[1]["tick"][0]) == said - 1
        pair.gates["tick"][1, 0] = said - int(pair.settings["event_ticks"][0])
        pair.send(tcp(CLIENT, 4002, VIP, 80, "S"))
        assert int(pair.gates[1]["tick"][0]) >= said

    def test_redirected_no_shadow_and_down_each_open_their_gate(self, pair: Rig) -> None:
        pair.shadows(1, [layout.reference(3, 1)], 1)
        pair.send(SYN)
        assert [int(tick != 0) for tick in pair.gates[1]["tick"]] == [1, 0, 0, 0]
        pair.state(3, down=True)
        pair.send(tcp(CLIENT, 4001, VIP, 80, "S"))
        assert [int(tick != 0) for tick in pair.gates[1]["tick"]] == [1, 1, 0, 0]
        pair.state(1, down=True)
        pair.send(tcp(CLIENT, 4002, VIP, 80, "S"))
        assert [int(tick != 0) for tick in pair.gates[1]["tick"]] == [1, 1, 1, 0]
