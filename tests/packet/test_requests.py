# SPDX-License-Identifier: Apache-2.0
"""Requests: what starts, answers and ends one, to whom it is counted, and how long it took."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest

from controlplane.adapters import layout
from tests import reference
from tests.packet.rig import KEY, Rig, tcp

VIP, CLIENT, PORT = "198.51.100.10", "192.0.2.7", 4000
A, SHADOW = "203.0.113.1", "203.0.113.3"
HELLO, DATA = b"\x16\x03\x03 hello", b"\x17\x03\x03 data"
CLOSE_13 = b"\x17\x03\x03\x00\x13" + bytes(19)
FINISHED_12 = b"\x14\x03\x03\x00\x01\x01\x16\x03\x03\x00\x28" + bytes(40)
FINISHED_13 = b"\x14\x03\x03\x00\x01\x01\x17\x03\x03\x00\x35" + bytes(53)
TICKET = b"\x17\x03\x03\x00\xea" + bytes(234)
GO_ON = b"HTTP/1.1 100 Continue\r\n\r\n"
STARTED, ANSWERED, ABORTED = (1, 0, 0), (1, 1, 0), (1, 0, 1)
STAMP, LAST_BUCKET = 0xFFFFFF, layout.HISTOGRAM_BUCKETS - 1


@dataclass
class Talk:
    """A connection whose sequence numbers go on as TCP's do."""

    rig: Rig
    port: int = PORT
    endpoint: str = A
    sent: int = 1000
    """Next sequence number of the client's."""
    answered: int = 5000
    """And of the endpoint's."""
    octets: bytes = DATA

    def client(self, flags: str = "A", payload: bytes = b"", *, at: int | None = None) -> None:
        """``at``: its sequence number, if it is not the next."""
        numbers = {"sequence": self.sent if at is None else at, "acknowledged": self.answered}
        self.rig.send(tcp(CLIENT, self.port, VIP, 80, flags, payload, **numbers))
        if at is None:
            self.sent += len(payload) + ("S" in flags) + ("F" in flags)

    def server(self, flags: str = "A", payload: bytes = b"", *, acknowledged: int | None = None) -> None:
        numbers = {
            "sequence": self.answered,
            "acknowledged": self.sent if acknowledged is None else acknowledged,
        }
        self.rig.send(tcp(self.endpoint, 8080, CLIENT, self.port, flags, payload, **numbers))
        self.answered += len(payload) + ("S" in flags) + ("F" in flags)

    def open(self) -> Talk:
        self.client("S")
        self.server("SA")
        self.client("A")
        return self

    def ask(self) -> None:
        self.client("PA", self.octets)

    def answer(self) -> None:
        self.server("PA", self.octets)


def install(rig: Rig, requests: str = "http1", shift: int = 0) -> Rig:
    """Endpoint 1 (A), whose shadow is 3. What is seen is noted late, as the loader has it."""
    rig.settings["seen_ticks"] = 9
    rig.service(1, VIP, 80, requests=requests, request_shift=shift)
    rig.ring(1, [rig.endpoint(1, 1, A, 8080)] * 7)
    rig.endpoint(3, 1, SHADOW, 8080, parent=1)
    return rig


@pytest.fixture
def http(rig: Rig) -> Rig:
    return install(rig)


@pytest.fixture
def tls(rig: Rig) -> Rig:
    return install(rig, "tls")


def counts(rig: Rig, index: int = 1) -> tuple[int, ...]:
    """Started, answered, aborted."""
    return tuple(rig.counts(index, "requests", "answered", "aborted").values())


Step = tuple[str, str, bytes]
C, S = "client", "server"


def play(talk: Talk, steps: Sequence[Step]) -> None:
    for who, flags, payload in steps:
        getattr(talk, who)(flags, payload)


ASK, ANSWER, CONTINUE = (C, "PA", b"GET /"), (S, "PA", b"200"), (S, "PA", GO_ON)
TALKS: dict[str, tuple[list[Step], tuple[int, int, int]]] = {
    "a handshake alone is no request": ([], (0, 0, 0)),
    "the client's payload starts one": ([ASK], STARTED),
    "the endpoint's payload answers it": ([ASK, ANSWER], ANSWERED),
    "an acknowledgement answers nothing": ([ASK, (S, "A", b"")], STARTED),
    "a request of many segments is one": ([ASK, (C, "A", b"x" * 99), (C, "PA", b"y")], STARTED),
    "an answer of many segments is one": ([ASK, ANSWER, (S, "A", b"x" * 99), (S, "PA", b"y")], ANSWERED),
    "acknowledgements of an answer start nothing": ([ASK, ANSWER, (C, "A", b"")], ANSWERED),
    "a kept connection has one after the other": ([ASK, ANSWER] * 5, (5, 5, 0)),
    "a second one while one is open is part of it": ([ASK, ASK, ANSWER, ANSWER], ANSWERED),
    "an endpoint that speaks first answers nothing": ([(S, "PA", b"220 ready")], (0, 0, 0)),
    "what is asked after a greeting is a request": ([(S, "PA", b"220"), ASK, ANSWER], ANSWERED),
    "the client's FIN gives up nothing": ([ASK, (C, "FA", b"")], STARTED),
    "an answer after the client's FIN is one": ([ASK, (C, "FA", b""), ANSWER], ANSWERED),
    "a FIN may carry the request": ([(C, "FA", b"GET /"), ANSWER], ANSWERED),
    "a FIN may carry the answer": ([ASK, (S, "FA", b"200")], ANSWERED),
    "the endpoint's FIN instead of an answer aborts": ([ASK, (S, "FA", b"")], ABORTED),
    "the endpoint's RST aborts": ([ASK, (S, "RA", b"")], ABORTED),
    "the client's RST aborts": ([ASK, (C, "RA", b"")], ABORTED),
    "a RST that carries bytes answers nothing": ([ASK, (S, "R", b"why")], ABORTED),
    "a RST that carries bytes asks nothing": ([(C, "R", b"why")], (0, 0, 0)),
    "what ended ends once": ([ASK, (S, "FA", b""), (C, "R", b""), (S, "R", b"")], ABORTED),
    "FIN and RST after the answer abort nothing": ([ASK, ANSWER, (S, "FA", b""), (C, "R", b"")], ANSWERED),
    "an aborted one gets no answer any more": ([ASK, (C, "R", b""), ANSWER], ABORTED),
    "100 Continue is no answer yet": ([ASK, CONTINUE], STARTED),
    "what is sent after 100 Continue is the same request's": ([ASK, CONTINUE, ASK, ANSWER], ANSWERED),
    "100 Continue with an answer behind it is one": (
        [ASK, (S, "PA", GO_ON + b"HTTP/1.1 200 \r\n\r\n")],
        ANSWERED,
    ),
    "any other status is an answer": ([ASK, (S, "PA", GO_ON.replace(b"100", b"101"))], ANSWERED),
    "a FIN with 100 Continue aborts": ([ASK, (S, "FA", GO_ON)], ABORTED),
    "100 Continue that a client sends is a request": ([(C, "PA", GO_ON)], STARTED),
}


class TestTransitions:
    @pytest.mark.parametrize(("steps", "expected"), TALKS.values(), ids=TALKS.keys())
    def test_of_a_connection(self, http: Rig, steps: list[Step], expected: tuple[int, ...]) -> None:
        play(Talk(http).open(), steps)
        assert counts(http) == expected

    @pytest.mark.parametrize(("steps", "expected"), TALKS.values(), ids=TALKS.keys())
    def test_none_is_counted_when_the_service_has_them_off(
        self, rig: Rig, steps: list[Step], expected: tuple[int, ...]
    ) -> None:
        install(rig, "off")
        play(Talk(rig).open(), steps)
        assert counts(rig) == (0, 0, 0)
        assert not rig.response.any()

    def test_bytes_with_the_acknowledgement_that_ends_the_handshake_are_a_request(self, http: Rig) -> None:
        talk = Talk(http)
        talk.client("S")
        talk.server("SA")
        talk.ask()
        talk.answer()
        assert counts(http) == ANSWERED
        assert http.count(1, "completed") == 1

    def test_bytes_before_the_handshake_is_done_are_none(self, http: Rig) -> None:
        talk = Talk(http)
        talk.client("S")
        talk.ask()
        assert counts(http) == (0, 0, 0)

    def test_ethernets_padding_is_not_payload(self, http: Rig) -> None:
        talk = Talk(http).open()
        talk.rig.send(bytes(tcp(CLIENT, PORT, VIP, 80, sequence=talk.sent, acknowledged=5001)) + bytes(6))
        assert counts(http) == (0, 0, 0)

    def test_tcp_options_are_not_payload(self, http: Rig) -> None:
        talk = Talk(http).open()
        packet = tcp(CLIENT, PORT, VIP, 80, sequence=talk.sent, acknowledged=5001)
        packet["TCP"].options = [("NOP", None), ("NOP", None), ("Timestamp", (1, 2))]
        http.send(packet)
        assert counts(http) == (0, 0, 0)

    def test_ip_options_are_not_payload(self, http: Rig) -> None:
        talk = Talk(http).open()
        packet = tcp(CLIENT, PORT, VIP, 80, sequence=talk.sent, acknowledged=5001)
        packet["IP"].options = b"\x01" * 8
        http.send(packet)
        assert counts(http) == (0, 0, 0)

    def test_it_is_counted_to_the_shadow_that_serves_it(self, http: Rig) -> None:
        http.shadows(1, [layout.reference(3, 1)], 1)
        talk = Talk(http, endpoint=SHADOW).open()
        talk.ask()
        talk.answer()
        talk.ask()
        talk.client("R")
        assert (counts(http, 3), counts(http, 1)) == ((2, 1, 1), (0, 0, 0))

    def test_over_ipv6_it_is_the_same(self, rig: Rig) -> None:
        rig.service(1, "2001:db8:1::1", 80, requests="http1")
        rig.ring(1, [rig.endpoint(1, 1, "2001:db8:2::1", 8080)] * 7)
        one, other = ("2001:db8::7", PORT, "2001:db8:1::1", 80), ("2001:db8:2::1", 8080, "2001:db8::7", PORT)
        for way, flags, payload in (
            *((one, "S", b""), (other, "SA", b""), (one, "A", b"")),
            *((one, "PA", b"q"), (other, "PA", b"a"), (one, "A", b"")),
        ):
            rig.send(tcp(*way, flags, payload))
        assert counts(rig) == ANSWERED


class TestSentAgain:
    """The client has not heard that the endpoint had it already."""

    @pytest.mark.parametrize("begin", [1000, STAMP - 8, 2**32 - 8, 2**23 - 8])
    def test_an_answered_request_is_no_other(self, http: Rig, begin: int) -> None:
        talk = Talk(http, sent=begin).open()
        first = talk.sent
        talk.ask()
        talk.sent %= 2**32
        talk.answer()
        talk.client("PA", DATA, at=first)
        talk.client("PA", DATA, at=first)
        assert counts(http) == ANSWERED
        talk.ask()
        assert counts(http) == (2, 1, 0)

    def test_its_last_segment_is_none_either(self, http: Rig) -> None:
        talk = Talk(http).open()
        talk.ask()
        last = talk.sent
        talk.client("PA", b"more")
        talk.answer()
        talk.client("PA", b"more", at=last)
        assert counts(http) == ANSWERED

    def test_nor_are_all_of_its_segments_in_order(self, http: Rig) -> None:
        talk = Talk(http).open()
        first = talk.sent
        talk.ask()
        last = talk.sent
        talk.client("PA", b"more")
        talk.answer()
        talk.client("PA", DATA, at=first)
        talk.client("PA", b"more", at=last)
        assert counts(http) == ANSWERED
        talk.ask()
        assert counts(http) == (2, 1, 0)

    def test_with_new_bytes_behind_old_ones_it_is_another(self, http: Rig) -> None:
        talk = Talk(http).open()
        first = talk.sent
        talk.ask()
        talk.answer()
        talk.client("PA", DATA + b"more", at=first)
        assert counts(http) == (2, 1, 0)

    def test_an_open_request_is_no_other(self, http: Rig) -> None:
        talk = Talk(http).open()
        first = talk.sent
        talk.ask()
        talk.client("PA", DATA, at=first)
        talk.answer()
        assert counts(http) == ANSWERED

    def test_a_probe_of_a_kept_connection_is_none(self, http: Rig) -> None:
        """One byte that was acknowledged (RFC 9293 section 3.8.4)."""
        talk = Talk(http).open()
        for _ in range(3):
            talk.client("A", b"x", at=talk.sent - 1)
        talk.ask()
        talk.answer()
        talk.client("A", b"x", at=talk.sent - 1)
        assert counts(http) == ANSWERED

    def test_an_answer_is_no_second_one(self, http: Rig) -> None:
        talk = Talk(http).open()
        talk.ask()
        talk.answer()
        talk.answer()
        assert counts(http) == ANSWERED

    def test_a_wrong_mark_costs_one_request_and_no_more(self, http: Rig) -> None:
        """Requests were off when the connection began: its stamp is another number."""
        talk = Talk(http).open()
        place = http.only_flow()
        mark = np.uint64((talk.sent + 100_000) & STAMP)
        http.flows["life"][place] = http.flows["life"][place] & ~np.uint64(STAMP) | mark
        for _ in range(4):
            talk.ask()
            talk.answer()
        assert counts(http) == (3, 3, 0)


class TestMidstream:
    """A flow whose beginning was not seen: what its first packet carries may be the middle of anything."""

    def test_requests_are_counted_from_its_second_packet_on(self, http: Rig) -> None:
        talk = Talk(http)
        for _ in range(3):
            talk.ask()
            talk.answer()
        assert counts(http) == (2, 2, 0)

    def test_what_its_first_packet_carried_is_not_counted_when_sent_again(self, http: Rig) -> None:
        talk = Talk(http)
        talk.client("A")
        talk.answer()
        talk.client("PA", DATA, at=talk.sent - len(DATA))
        assert counts(http) == (0, 0, 0)

    def test_nor_is_that_packet_itself(self, http: Rig) -> None:
        talk = Talk(http)
        talk.client("PA", DATA)
        talk.client("PA", DATA, at=talk.sent - len(DATA))
        assert counts(http) == (0, 0, 0)
        talk.ask()
        assert counts(http) == STARTED

    def test_a_stray_syn_leaves_the_request_its_time(self, http: Rig) -> None:
        talk = Talk(http)
        talk.client("A")
        talk.ask()
        talk.client("S")
        talk.answer()
        assert http.count(1, "response_count") == 1


class TestTls:
    def test_the_handshake_is_none_and_application_data_is_one(self, tls: Rig) -> None:
        talk = Talk(tls).open()
        talk.client("PA", HELLO)
        talk.server("PA", HELLO)
        talk.server("A", b"\xaa certificate")
        talk.client("PA", b"\x14\x03\x03 change cipher, finished")
        assert counts(tls) == (0, 0, 0)
        talk.ask()
        talk.server("PA", HELLO)
        assert counts(tls) == STARTED
        talk.answer()
        assert counts(tls) == ANSWERED

    def test_an_alert_and_a_fin_abort(self, tls: Rig) -> None:
        talk = Talk(tls).open()
        talk.ask()
        talk.server("FA", b"\x15\x03\x03 close")
        assert counts(tls) == ABORTED

    def test_an_alert_of_tls_1_3_is_neither_request_nor_answer(self, tls: Rig) -> None:
        """From without it is application data, of 19 bytes."""
        talk = Talk(tls).open()
        talk.client("PA", CLOSE_13)
        assert counts(tls) == (0, 0, 0)
        talk.ask()
        talk.server("PA", CLOSE_13)
        assert counts(tls) == STARTED
        talk.server("FA", CLOSE_13)
        assert counts(tls) == ABORTED

    def test_a_part_of_a_records_header_is_none(self, tls: Rig) -> None:
        talk = Talk(tls).open()
        for length in range(5):
            talk.client("PA", DATA[:length])
        assert counts(tls) == (0, 0, 0)

    def test_what_follows_tls_1_3s_handshake_at_once_is_counted_and_not_timed(self, tls: Rig) -> None:
        """Its answer may be a session ticket; those after it are timed."""
        talk = Talk(tls).open()
        talk.client("PA", HELLO)
        talk.server("PA", HELLO)
        talk.client("PA", FINISHED_13)
        assert counts(tls) == (0, 0, 0)
        for timed in range(3):
            talk.ask()
            talk.server("PA", TICKET)
            talk.answer()
            assert counts(tls) == (timed + 1, timed + 1, 0)
            assert tls.count(1, "response_count") == timed

    def test_of_tls_1_2_the_first_one_is_timed(self, tls: Rig) -> None:
        talk = Talk(tls).open()
        talk.client("PA", HELLO)
        talk.server("PA", HELLO)
        talk.client("PA", FINISHED_12)
        talk.server("PA", FINISHED_12)
        talk.ask()
        talk.answer()
        assert counts(tls) == ANSWERED
        assert tls.count(1, "response_count") == 1

    def test_with_http1_a_handshake_counts(self, http: Rig) -> None:
        talk = Talk(http).open()
        talk.client("PA", HELLO)
        talk.server("PA", HELLO)
        assert counts(http) == ANSWERED


class TestForgotten:
    """Nobody will see the answer of a flow whose place another has."""

    def test_a_new_connection_of_the_same_ports_aborts_what_the_old_one_asked(self, http: Rig) -> None:
        talk = Talk(http).open()
        talk.ask()
        talk.client("FA")
        talk.open()
        assert counts(http) == ABORTED

    def test_so_does_one_after_the_idle_limit(self, http: Rig) -> None:
        talk = Talk(http).open()
        talk.ask()
        http.age(int(http.settings["idle_established_ticks"][0]) + 1)
        talk.open()
        assert counts(http) == ABORTED

    def test_so_does_another_flow_that_gets_an_idle_ones_place(self, http: Rig) -> None:
        http.settings["bucket_mask"] = 0
        talk = Talk(http).open()
        talk.ask()
        http.age(int(http.settings["idle_established_ticks"][0]) + 1)
        for port in range(5001, 5005):
            Talk(http, port).open()
        assert counts(http) == ABORTED

    def test_a_flow_that_leaves_a_dead_endpoint_aborts_what_it_asked_there(self, http: Rig) -> None:
        http.shadows(1, [layout.reference(3, 1)], 0)
        talk = Talk(http).open()
        talk.ask()
        http.state(1, down=True)
        talk.client("A")
        assert (counts(http), counts(http, 3)) == (ABORTED, (0, 0, 0))

    def test_what_was_asked_of_an_endpoint_that_is_gone_is_nobodys(self, http: Rig) -> None:
        talk = Talk(http).open()
        talk.ask()
        http.state(1, generation=2)
        talk.open()
        assert counts(http) == STARTED


def buckets(rig: Rig) -> list[int]:
    return [int(at) for at in np.flatnonzero(rig.response[1])]


def bucket_of(us: int) -> int:
    if us < 16:
        return us
    octave = us.bit_length() - 1
    return 16 * (octave - 3) + (us >> (octave - 4) & 15)


TICK_US = 2**28 / 1000
TOLD_TICKS = 59
"""So long the stamp of a request can tell for certain: 15.8 s."""


def passes(rig: Rig, ticks: int) -> None:
    """Makes every flow, and the requests that are timed, so much older than they are."""
    for place in zip(*np.nonzero(rig.flows["id"]), strict=True):
        life = int(rig.flows["life"][place])
        stamp = life & STAMP
        if life & layout.FLOW_REQUEST << 24 and stamp >= 2:
            stamp = max(2, stamp - (ticks << 18) & STAMP)
        rig.flows["life"][place] = life - (ticks << 32) & ~STAMP & 2**64 - 1 | stamp


def passes_with_probes(talk: Talk, ticks: int, every: int, who: str) -> None:
    while ticks > every:
        passes(talk.rig, every)
        getattr(talk, who)("A")
        ticks -= every
    passes(talk.rig, ticks)


@pytest.mark.parametrize("who", [C, S], ids=["the client", "the endpoint"])
@pytest.mark.parametrize("every", [1, 7, 30, 58, 10_000], ids="a packet every {} ticks".format)
class TestTime:
    """With packets in between, which move the time that the flow was last seen."""

    @pytest.mark.parametrize("ticks", [0, 1, 2, 12, 40, TOLD_TICKS - 3], ids="after {} ticks".format)
    def test_from_the_request_to_the_first_byte_of_its_answer(
        self, http: Rig, ticks: int, every: int, who: str
    ) -> None:
        talk = Talk(http).open()
        began_s = time.monotonic()
        talk.ask()
        passes_with_probes(talk, ticks, every, who)
        talk.answer()
        most_us = ticks * TICK_US + 1e6 * (time.monotonic() - began_s)
        talk.answer()
        assert counts(http) == ANSWERED
        assert http.count(1, "response_count") == 1
        took_us = http.count(1, "response_sum_us")
        assert int(ticks * TICK_US) - 1 <= took_us <= most_us
        assert buckets(http) == [bucket_of(took_us)]

    @pytest.mark.parametrize("ticks", [61, 64, 65, 100, 127, 300], ids="after {} ticks".format)
    def test_longer_than_the_stamp_can_tell_is_slow_and_never_short(
        self, http: Rig, ticks: int, every: int, who: str
    ) -> None:
        talk = Talk(http).open()
        talk.ask()
        passes_with_probes(talk, ticks, every, who)
        talk.answer()
        assert counts(http) == ANSWERED
        assert buckets(http) == [LAST_BUCKET]
        assert http.count(1, "response_sum_us") == STAMP


class TestClocks:
    def test_it_is_told_in_microseconds(self, http: Rig) -> None:
        talk = Talk(http).open()
        talk.ask()
        place = http.only_flow()
        began_ns = time.monotonic_ns() - 250_000_000
        life = int(http.flows["life"][place]) & 0xFF << 24
        http.flows["life"][place] = began_ns >> 28 << 32 | life | max(2, began_ns >> 10 & STAMP)
        talk.answer()
        most_us = (time.monotonic_ns() - began_ns) // 1000
        assert 249_990 <= http.count(1, "response_sum_us") <= most_us + 10

    @pytest.mark.parametrize("ticks", [-3, 1], ids=["behind", "ahead"])
    def test_a_last_seen_of_another_cpus_clock_makes_no_short_one_long(self, http: Rig, ticks: int) -> None:
        talk = Talk(http).open()
        talk.ask()
        place = http.only_flow()
        http.flows["life"][place] = int(http.flows["life"][place]) + (ticks << 32)
        talk.answer()
        assert http.count(1, "response_sum_us") < 200_000


class TestSampling:
    def test_all_are_counted_and_one_in_so_many_is_timed(self, rig: Rig) -> None:
        """Which ones depends on the flow and on the place in it, so a kept connection is no exception."""
        install(rig, shift=2)
        timed, flow = 0, reference.flow_hash(KEY, CLIENT, VIP, PORT, 80, 6)
        talk = Talk(rig).open()
        for _ in range(100):
            timed += reference.is_timed(flow, talk.sent, 2)
            talk.ask()
            talk.answer()
            assert rig.count(1, "response_count") == timed
        assert counts(rig) == (100, 100, 0)
        assert 10 <= timed <= 45
        assert int(rig.response[1].sum()) == timed

    def test_connections_are_drawn_as_often(self, rig: Rig) -> None:
        install(rig, shift=2)
        timed = 0
        for port in range(5000, 5100):
            flow = reference.flow_hash(KEY, CLIENT, VIP, port, 80, 6)
            talk = Talk(rig, port).open()
            timed += reference.is_timed(flow, talk.sent, 2)
            talk.ask()
            talk.answer()
        assert rig.count(1, "response_count") == timed
        assert 10 <= timed <= 45

    def test_one_that_is_not_timed_is_never_late(self, rig: Rig) -> None:
        install(rig, shift=31)
        talk = Talk(rig).open()
        talk.ask()
        rig.age(100)
        talk.client("A")
        talk.answer()
        assert counts(rig) == ANSWERED
        assert rig.counts(1, "response_count", "response_sum_us") == {
            "response_count": 0,
            "response_sum_us": 0,
        }
