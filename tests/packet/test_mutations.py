# SPDX-License-Identifier: Apache-2.0
"""The packet tests' negative control: small faults in a copy of bpf/, each of which they must notice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.fuzz.both import one_cpu
from tests.fuzz.episodes import search
from tests.packet import (
    test_differential,
    test_flows,
    test_forward,
    test_icmp,
    test_interfaces,
    test_refuse,
    test_requests,
    test_selection,
)
from tests.packet.faults import Faults, Place, without_faults
from tests.packet.rig import BPF_DIR, Rig
from tests.packet.test_builds import instructions

Check = Callable[[Rig], object]


def differential(rig: Rig) -> None:
    with one_cpu():
        search(rig, test_differential.FRAMES, test_differential.START)


def spill_limit(rig: Rig) -> None:
    pair = test_flows.install_pair(rig)
    test_flows.TestSpill().test_a_flow_spills_when_its_bits_are_below_the_spill_and_not_at_it(pair)


def one_bit_of_the_tag(rig: Rig) -> None:
    pair = test_flows.install_pair(rig)
    test_flows.TestAffinity().test_an_entry_whose_tag_differs_in_one_bit_is_another_flow(pair, 16)


def second_bucket(rig: Rig) -> None:
    pair = test_flows.install_pair(rig)
    test_flows.TestAffinity().test_a_flow_in_its_second_bucket_stays_and_is_new_but_once(pair)


def syn_sent_again(rig: Rig) -> None:
    test_flows.TestRtt().test_a_syn_sent_again_gives_no_sample(test_flows.install_pair(rig))


def tuple_on_syn(rig: Rig) -> None:
    pair = test_flows.install_pair(rig)
    test_flows.TestAffinity().test_a_syn_of_another_tuple_with_the_same_tag_is_not_this_flow(pair)


def error_to_endpoint(rig: Rig) -> None:
    steered = test_icmp.install(rig)
    test_icmp.test_an_error_about_an_answer_goes_to_the_endpoint(steered, 6, "TCP", (2, 0))


def error_to_another(rig: Rig) -> None:
    steered = test_icmp.install(rig)
    test_icmp.TestNotOurs().test_an_error_to_another_than_who_sent_what_it_is_about_is_not_believed(
        steered, 4
    )


def unacknowledged(rig: Rig) -> None:
    pair = test_flows.install_pair(rig)
    test_flows.TestCounters().test_a_packet_that_does_not_acknowledge_the_synack_completes_nothing(
        pair, "A", 1000
    )


def stray_syn(rig: Rig) -> None:
    test_flows.TestStraySyn().test_a_drained_connection_outlives_it(test_flows.install_pair(rig))


def idle_answer(rig: Rig) -> None:
    pair = test_flows.install_pair(rig)
    test_flows.TestReturns().test_a_flow_that_is_over_does_not_claim_the_next_direct_one(pair, "closed")


def own_source(rig: Rig) -> None:
    steered = test_forward.install_two_services(rig)
    test_forward.test_what_no_client_can_send_starts_no_flow(steered, test_forward.OWN)


def established_victim(rig: Rig) -> None:
    pair = test_flows.one_bucket(test_flows.install_pair(rig))
    test_flows.TestVictims().test_an_established_flow_is_never_a_victim(pair)


def udp_without_a_place(rig: Rig) -> None:
    test_flows.TestVictims().test_a_udp_flow_without_a_place_is_no_demand(rig)


def cut_and_rewritten(rig: Rig) -> None:
    steered = test_forward.install_two_services(rig)
    test_forward.TestMtu().test_a_larger_one_is_the_kernels_to_cut_and_rewritten(steered)


def not_to_be_cut(rig: Rig) -> None:
    steered = test_forward.install_two_services(rig)
    test_forward.TestMtu().test_of_one_that_may_not_be_cut_its_sender_is_told(steered)


def told_of_its_mtu(rig: Rig) -> None:
    steered = test_refuse.install(rig)
    test_refuse.TestMtu().test_a_larger_packet_is_answered_with_the_next_hop_s(steered, 6)


def told_of_its_ttl_after_another(rig: Rig) -> None:
    test_refuse.TestMtu().test_the_one_before_says_nothing_of_the_next(test_refuse.install(rig), 4)


def told_of_an_odd_length(rig: Rig) -> None:
    steered = test_refuse.install(rig)
    test_refuse.TestTtl().test_it_ends_here_and_its_sender_is_told(steered, 4, 1, 3)


def told_to_nobody(rig: Rig) -> None:
    test_refuse.TestTtl().test_who_is_no_client_gets_no_error(test_refuse.install(rig), 4)


def told_of_a_later_fragment(rig: Rig) -> None:
    test_refuse.TestMtu().test_a_later_fragment_gets_none(test_refuse.install(rig), 4)


def told_without_end(rig: Rig) -> None:
    test_refuse.TestTtl().test_past_the_limit_of_a_tick_it_is_dropped(test_refuse.install(rig), 4)


def udp_sum_of_zero(rig: Rig) -> None:
    steered = test_forward.install_two_services(rig)
    test_forward.TestUdpChecksum().test_a_sum_of_zero_is_written_as_all_ones(steered)


def limits(rig: Rig) -> None:
    group = test_selection.install(rig)
    test_selection.TestLimit().test_the_flows_slot_then_a_second_one_then_the_live_one_again(group)


def limit_of_what_opens_nothing(rig: Rig) -> None:
    group = test_selection.install(rig)
    test_selection.TestLimit().test_what_opens_no_flow_neither_counts_nor_spills(group, "PA")


def limit_without_a_place(rig: Rig) -> None:
    test_selection.TestLimit().test_a_flow_without_a_place_goes_by_hash(test_selection.install(rig))


def windows(rig: Rig) -> None:
    test_selection.TestWindow().test_the_next_one_begins_anew(test_selection.install(rig))


def late_cpu(rig: Rig) -> None:
    group = test_selection.install(rig)
    test_selection.TestWindow().test_a_cpu_that_is_late_counts_in_the_window_of_the_others(group)


def interface_row(rig: Rig) -> None:
    test_interfaces.test_what_meets_anothers_row_counts_among_the_others(rig)


def talk_of(rig: Rig, name: str) -> None:
    steps, expected = test_requests.TALKS[name]
    http = test_requests.install(rig)
    test_requests.TestTransitions().test_of_a_connection(http, steps, expected)


def acknowledged_only(rig: Rig) -> None:
    talk_of(rig, "an acknowledgement answers nothing")


def half_closed(rig: Rig) -> None:
    talk_of(rig, "an answer after the client's FIN is one")


def request_sent_again(rig: Rig) -> None:
    http = test_requests.install(rig)
    test_requests.TestSentAgain().test_an_answered_request_is_no_other(http, 1000)


def tls_handshake(rig: Rig) -> None:
    tls = test_requests.install(rig, "tls")
    test_requests.TestTls().test_the_handshake_is_none_and_application_data_is_one(tls)


def tls_alert(rig: Rig) -> None:
    tls = test_requests.install(rig, "tls")
    test_requests.TestTls().test_an_alert_of_tls_1_3_is_neither_request_nor_answer(tls)


def session_ticket(rig: Rig) -> None:
    tls = test_requests.install(rig, "tls")
    test_requests.TestTls().test_what_follows_tls_1_3s_handshake_at_once_is_counted_and_not_timed(tls)


def to_be_continued(rig: Rig) -> None:
    talk_of(rig, "100 Continue is no answer yet")


def sent_again_in_parts(rig: Rig) -> None:
    http = test_requests.install(rig)
    test_requests.TestSentAgain().test_nor_are_all_of_its_segments_in_order(http)


def slow_with_packets(rig: Rig) -> None:
    slow = test_requests.TestTime().test_longer_than_the_stamp_can_tell_is_slow_and_never_short
    slow(test_requests.install(rig), 100, 30, "client")


def slow_without_packets(rig: Rig) -> None:
    slow = test_requests.TestTime().test_longer_than_the_stamp_can_tell_is_slow_and_never_short
    slow(test_requests.install(rig), 65, 10_000, "client")


def other_clock(rig: Rig) -> None:
    """More than once: where a tick ends between last seen and the stamp, one time in a hundred, the fault is
    one tick too small to show."""
    for _ in range(4):
        rig.reset()
        http = test_requests.install(rig)
        test_requests.TestClocks().test_a_last_seen_of_another_cpus_clock_makes_no_short_one_long(http, -3)


def drawn_one_by_one(rig: Rig) -> None:
    test_requests.TestSampling().test_all_are_counted_and_one_in_so_many_is_timed(rig)


def place_of_another(rig: Rig) -> None:
    http = test_requests.install(rig)
    test_requests.TestForgotten().test_a_new_connection_of_the_same_ports_aborts_what_the_old_one_asked(http)


CHECKS: tuple[Check, ...] = (
    *(differential, spill_limit, one_bit_of_the_tag, tuple_on_syn, established_victim),
    *(udp_without_a_place, udp_sum_of_zero, second_bucket, syn_sent_again),
    *(acknowledged_only, half_closed, request_sent_again, tls_handshake, slow_with_packets),
    *(tls_alert, session_ticket, to_be_continued, sent_again_in_parts),
    *(slow_without_packets, other_clock, drawn_one_by_one, place_of_another),
    *(unacknowledged, stray_syn, idle_answer, own_source, error_to_endpoint, error_to_another),
    *(limits, limit_of_what_opens_nothing, limit_without_a_place, windows, late_cpu),
    interface_row,
    *(cut_and_rewritten, not_to_be_cut),
    *(told_of_its_mtu, told_of_its_ttl_after_another, told_of_an_odd_length, told_to_nobody),
    *(told_of_a_later_fragment, told_without_end),
)


@dataclass(frozen=True, slots=True)
class Mutation:
    file: str
    right: str
    wrong: str
    check: Check = differential


FOLD = "\tsum = (sum & 0xffff) + (sum >> 16);\n"
MUTATIONS = {
    "the share that spills is the other one": Mutation(
        "pick.c", "hash_spill_bits(pick) < spill", "hash_spill_bits(pick) >= spill"
    ),
    "a flow at the limit spills too": Mutation(
        "pick.c", "hash_spill_bits(pick) < spill", "hash_spill_bits(pick) <= spill", spill_limit
    ),
    "spill takes the ring's bits": Mutation("hash.h", "return (u32)pick;", "return pick >> 32;"),
    "the slot takes the ring's bits": Mutation(
        "hash.h", "hash_mix(pick ^ HASH_AGAIN) % SHADOW_SLOTS", "(pick >> 32) * SHADOW_SLOTS >> 32"
    ),
    "the generation's last bits are not looked at": Mutation(
        "endpoint.h",
        "((state >> 32) & REF_GENERATION_MASK) == ref >> REF_INDEX_BITS",
        "((state >> 36) & 0xff) == ref >> (REF_INDEX_BITS + 4)",
    ),
    "new flows go to an endpoint that is down": Mutation(
        "endpoint.h", "(@ENDPOINT_DOWN@ | ENDPOINT_DRAINING |", "0"
    ),
    "new flows go to an endpoint that drains": Mutation(
        "endpoint.h", "(ENDPOINT_DOWN | @ENDPOINT_DRAINING@ |", "0"
    ),
    "cached flows stay on an endpoint that is down": Mutation(
        "forward.c", "if (@!(state & ENDPOINT_DOWN)@)\n\t\treturn true;", "true"
    ),
    "evicted flows stay": Mutation("forward.c", "is_evicted(state, place->id)", "0"),
    "all flows of who evicts some go": Mutation("forward.c", "(u8)(id >> ID_TAG)", "0"),
    "keep and reset are swapped": Mutation(
        "forward.c", "(service->flags & SERVICE_ON_DOWN_KEEP)", "!(service->flags & SERVICE_ON_DOWN_KEEP)"
    ),
    "tags are compared by half": Mutation(
        "cache.c", "id >> ID_TAG == tag", "(u16)(id >> ID_TAG) == (u16)tag", one_bit_of_the_tag
    ),
    "a SYN takes any entry of its tag for its own": Mutation(
        "forward.c", "key && same_key(key, index, packet)", "key != NULL", tuple_on_syn
    ),
    "any acknowledgement completes a handshake": Mutation("flow.h", "< @ACK_WINDOW@;", "~0U", unacknowledged),
    "a stray SYN ends what is drained": Mutation(
        "forward.c", "(same && (life & LIFE(FLOW_ESTABLISHED)))", "(same && 0)", stray_syn
    ),
    "a flow that is over claims answers": Mutation(
        "giveback.c",
        "\t\t @*(volatile u64 *)&place.flow->life@, packet->protocol)) {",
        "(u64)here->tick << LIFE_TICK",
        idle_answer,
    ),
    "this host's own address is a client's": Mutation(
        "steer.c", "direct_kind(address) == DIRECT_OWN", "0", own_source
    ),
    "the second bucket is never looked at": Mutation(
        "cache.c",
        "\tif (@place.way == NOWHERE@)\n\t\tfind_in_bucket(",
        "place.way == NOWHERE && !mask",
        second_bucket,
    ),
    "an established flow gives way": Mutation(
        "flow.h", "return RANK_NEVER;", "return RANK_UNANSWERED;", established_victim
    ),
    "the checksum's carry is lost": Mutation("csum.h", FOLD * 3, FOLD),
    "a UDP sum of zero is written as it is": Mutation("rewrite.h", "check = 0xffff;", ";", udp_sum_of_zero),
    "an ICMPv6 sum does not see the addresses": Mutation(
        "icmp.h", "change += outer;", "(void)outer;", error_to_endpoint
    ),
    "an error shows the endpoint's port": Mutation("icmp.h", "*old_port = port;", ";", error_to_endpoint),
    "an error is believed whoever sent what it is about": Mutation(
        "follow.c", "!same_address(packet->destination, about.source)", "0", error_to_another
    ),
    "what may be cut passes as it came": Mutation(
        "parse.h", "!(ip->frag_off & bpf_htons(IP_NO_FRAGMENTS))", "0", cut_and_rewritten
    ),
    "what may not be cut is": Mutation(
        "parse.h", "!(ip->frag_off & bpf_htons(IP_NO_FRAGMENTS))", "1", not_to_be_cut
    ),
    "a sender is told another MTU": Mutation(
        "refuse.h", "error->rest = bpf_htonl(mtu);", "error->rest = bpf_htonl(mtu - 1);", told_of_its_mtu
    ),
    "a sender is told by himself": Mutation(
        "refuse.c",
        "__builtin_memcpy(teller, service->vip, sizeof(service->vip));",
        "__builtin_memcpy(teller, packet->source, sizeof(service->vip));",
        told_of_its_mtu,
    ),
    "more is quoted than the error has room for": Mutation(
        "refuse.h", "@most - room@)", "most", told_of_its_mtu
    ),
    "an ICMPv6 error's sum does not see its length": Mutation(
        "refuse.h", "@bpf_htonl(payload)@ +", "0", told_of_its_mtu
    ),
    "an MTU outlives its packet": Mutation(
        "steer.c", "*refused_mtu = 0;", ";", told_of_its_ttl_after_another
    ),
    "an odd last byte is not summed": Mutation("refuse.h", "(bytes & 1)", "0", told_of_an_odd_length),
    "who is no client is told": Mutation(
        "refuse.c", "is_no_client(here, packet->source)", "0", told_to_nobody
    ),
    "a later fragment's sender is told": Mutation(
        "refuse.c",
        "found != PARSED",
        "found != PARSED && found != PARSED_FRAGMENT",
        told_of_a_later_fragment,
    ),
    "errors have no limit": Mutation("refuse.c", "own->icmp_sent++;", ";", told_without_end),
    "TTL stays": Mutation("rewrite.h", "packet->ttl - 1", "packet->ttl"),
    "a completed flow is its shadow's": Mutation(
        "forward.c",
        "if (gained & LIFE(FLOW_ESTABLISHED))\n"
        "\t\tcount_completed(here, service, packet->v6, packet->source, hash);",
        "counted = lookup_counters(here->cpu, ref_index(place->id));\n"
        "\tif (counted)\n\t\tcounted->completed += !!(gained & LIFE(FLOW_ESTABLISHED));",
    ),
    "a packet without SYN is offered": Mutation(
        "forward.c",
        "count_midstream(here, choice.live);",
        "count_new(here, choice.live, ref_index(choice.ref), choice.spilled, kept);",
    ),
    "UDP without a place is offered with each packet": Mutation(
        "forward.c",
        "packet->protocol == IPPROTO_UDP && !kept",
        "!kept && !packet->protocol",
        udp_without_a_place,
    ),
    "a limit is passed by one": Mutation(
        "limit.h",
        "(u32)seen < most &&\n\t       (u32)__sync_fetch_and_add(&limit->used, 1) < most",
        "(u32)seen <= most &&\n\t       (u32)__sync_fetch_and_add(&limit->used, 1) <= most",
        limits,
    ),
    "a shadow's limit is not asked for": Mutation(
        "pick.c", "!limited || !ref || @admit(here, ref_index(ref))@", "1", limits
    ),
    "the second slot may be the first again": Mutation("pick.c", "service) | @same@)", "same & 0", limits),
    "what opens no flow is limited": Mutation(
        "forward.c",
        "return packet->protocol == IPPROTO_UDP || opens(packet);",
        "return true;",
        limit_of_what_opens_nothing,
    ),
    "a flow without a place goes where a limit sent it": Mutation(
        "forward.c", "choice.ref = choice.hashed;", ";", limit_without_a_place
    ),
    "a window never ends": Mutation(
        "limit.h",
        "if (@(s32)(window - (u32)(seen >> LIMIT_WINDOW)) > 0@) {",
        "(s32)(window - (u32)(seen >> LIMIT_WINDOW)) > 0 && !seen",
        windows,
    ),
    "a CPU that is late begins a window": Mutation(
        "limit.h",
        "if (@(s32)(window - (u32)(seen >> LIMIT_WINDOW)) > 0@) {",
        "window != seen >> LIMIT_WINDOW",
        late_cpu,
    ),
    "a client's flows go apart": Mutation("pick.c", "client, service->vip, @0@, service->port);", "hash"),
    "a client's flows are parted by a limit": Mutation(
        "forward.c", "if (service->flags & SERVICE_AFFINITY)\n\t\treturn false;", ";"
    ),
    "a client's completed flow is credited by its own hash": Mutation(
        "cache.c",
        "pick_bits(here, service, v6, client, hash)",
        "hash_pick(hash)",
    ),
    "a SYN sent again gives a sample": Mutation(
        "forward.c", "life & ~(u64)LIFE_STAMP", "life", syn_sent_again
    ),
    "not every reason is counted": Mutation(
        "steer.c",
        "COUNT(counted->count[reason % REASON_SLOTS], 1);",
        "if (reason != REASON_drop_source)\n\t\tCOUNT(counted->count[reason % REASON_SLOTS], 1);",
        own_source,
    ),
    "an interface counts in whatever row it meets": Mutation(
        "steer.c", "!interface || interface->ifindex != ifindex", "!interface", interface_row
    ),
    "an acknowledgement answers a request": Mutation(
        "request.h",
        "return @packet->payload@ &&\n\t       (flags",
        "packet->bytes",
        acknowledged_only,
    ),
    "the client's FIN gives up its request": Mutation(
        "forward.c",
        "if (@(packet->tcp_flags & TCP_RST)@ &&\n\t\t    end_request(",
        "packet->tcp_flags & (TCP_RST | TCP_FIN)",
        half_closed,
    ),
    "a request sent again is another one": Mutation(
        "request.h",
        "return before <= LIFE_STAMP / 2;",
        "return false;",
        request_sent_again,
    ),
    "a TLS handshake is a request": Mutation(
        "request.h", "record[0] == TLS_APPLICATION_DATA", "record[0] != 0", tls_handshake
    ),
    "an alert of TLS 1.3 is a request": Mutation(
        "request.h", "(record[3] << 8 | record[4]) > TLS_ALERT_BYTES", "1", tls_alert
    ),
    "a session ticket's time is a response's": Mutation(
        "request.h", "((sequence - due) & LIFE_STAMP) == 1", "0", session_ticket
    ),
    "100 Continue is an answer": Mutation("request.h", "!is_continue(ctx, packet)", "true", to_be_continued),
    "bytes that were sent before move the mark": Mutation(
        "forward.c", "if (@far@)", "true", sent_again_in_parts
    ),
    "packets in between make a slow request short": Mutation(
        "request.h", "request_ticks(*life, tick) < LATE_TICKS", "*life != 0", slow_with_packets
    ),
    "the short way makes a slow request short": Mutation("hit.c", "!(@asked@ ||", "false", slow_with_packets),
    "a slow request is told by what is left of its time": Mutation(
        "request.h", "return tick - seen + until_seen;", "return until_seen;", slow_without_packets
    ),
    "clocks that differ make a request slow": Mutation(
        "request.h", "#define SKEW_TICKS @4@", "0", other_clock
    ),
    "all requests of a connection are drawn as one": Mutation(
        "request.h", "hash_mix(hash ^ sequence)", "hash_mix(hash)", drawn_one_by_one
    ),
    "what a forgotten flow asked is in flight for ever": Mutation(
        "cache.c", "abandon(here, &place);", ";", place_of_another
    ),
    "an endpoint's requests are its parent's": Mutation(
        "forward.c",
        "counted = lookup_requests(here->cpu, @ref_index(place->id)@);",
        "ref_index(lookup_ring(here, service, hash_pick(hash), 0))",
    ),
    "answers to direct destinations are rewritten": Mutation(
        "giveback.c",
        "if (@direct_kind(packet->destination)@)",
        "0",
    ),
}


def places(mutation: Mutation) -> tuple[Place, ...]:
    return (Place(mutation.file, mutation.right, mutation.wrong),)


@pytest.fixture(scope="module")
def faults(loaded: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faults]:
    named = {name: places(mutation) for name, mutation in MUTATIONS.items()}
    made = Faults(tmp_path_factory.mktemp("faults"), named, loaded.compiled.maps)
    yield made
    made.close()


def test_without_them_it_is_the_program_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is put into the source for their sake changes nothing else."""
    none = without_faults(tmp_path, [places(mutation) for mutation in MUTATIONS.values()])
    assert instructions(monkeypatch, none) == instructions(monkeypatch, BPF_DIR)


def test_with_none_of_them_it_passes_every_check(faults: Faults) -> None:
    with faults.rig() as none:
        for check in CHECKS:
            none.reset()
            check(none)


@pytest.mark.parametrize("name", MUTATIONS)
def test_noticed(faults: Faults, name: str) -> None:
    with faults.rig(name) as rig, pytest.raises(AssertionError):
        MUTATIONS[name].check(rig)
