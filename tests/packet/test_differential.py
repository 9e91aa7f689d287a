# SPDX-License-Identifier: Apache-2.0
"""Random frames between random changes: the program and the reference agree on every one (tests/fuzz).

``make fuzz`` sends many more, and others each time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from controlplane.adapters import layout
from tests.fuzz.both import SERVICES, Both, one_cpu
from tests.fuzz.episodes import FailureError, play, search
from tests.packet.faults import Faults, Place
from tests.packet.rig import Rig

FRAMES, START = 5000, 5
SMALL = 12
"""Actions, most often one to four, to which a failing episode of hundreds is brought down."""
SEEN = {
    *("forward_hop", "forward_kernel", "forward_cut", "return_hop", "return_kernel", "return_cut"),
    *("reply_echo", "pass_other", "pass_direct", "pass_not_ip", "pass_vlan", "pass_icmp", "pass_fragment"),
    *(
        "reply_ttl",
        "drop_icmp_limit",
        "reply_mtu",
        "drop_ttl",
        "drop_mtu",
        "drop_vip_port",
        "drop_broken",
        "drop_fragment",
        "drop_source",
    ),
}
LEAST = {
    "completed": 50,
    "limited": 10,
    "spilled": 50,
    "rtt_count": 50,
    "fins": 3,
    "resets": 20,
    "requests": 20,
    "answered": 5,
    "aborted": 5,
}
FAULTS = {
    "the carry of a checksum is lost": (
        "csum.h",
        "\tsum = (sum & 0xffff) + (sum >> 16);\n" * 3,
        "\tsum = (sum & 0xffff) + (sum >> 16);\n",
    ),
    "keep and reset are swapped": (
        "forward.c",
        "(service->flags & SERVICE_ON_DOWN_KEEP)",
        "!(service->flags & SERVICE_ON_DOWN_KEEP)",
    ),
    "the packet in an error may lie in the padding": (
        "parse.h",
        "(u32)(to - packet->l3) <= packet->bytes",
        "1",
    ),
    "an error goes to an endpoint that is down": (
        "follow.c",
        "!still_serves(service, state, *(volatile u64 *)&place.flow->life)",
        "0",
    ),
    "a fragment follows for ever": ("fragment.h", "> @FRAGMENT_TICKS@", "FRAGMENT_TICKS + 10000000"),
    "an inner tag is not looked at": ("steer.c", "key.vlan[1] = packet->vlan[1];", ";"),
    "a flood ends too late": ("cache.c", "own->flood_tick == here->tick", "own->flood_tick"),
    "an idle flow goes on by the short way": (
        "hit.c",
        "idle(here->settings, here->tick, life, seen->protocol)",
        "false",
    ),
}


def test_program_and_reference_agree(rig: Rig) -> None:
    reasons, counted, services = Counter[str](), Counter[str](), set[int]()

    def see(both: Both) -> None:
        reasons.update(dict(zip(layout.REASONS, rig.reasons.sum(axis=0).tolist(), strict=False)))
        for (name, _), count in both.steering.counted.items():
            counted[name] += count
        counted["flooded"] += both.steering.flooded
        services.update(service for service, _, _ in both.steering.flows)

    with one_cpu():
        search(rig, FRAMES, START, see)
    assert {reason for reason, count in reasons.items() if count} >= SEEN
    assert services == set(SERVICES)
    for name, least in (LEAST | {"flooded": 50}).items():
        assert counted[name] >= least, name


@pytest.fixture(scope="module")
def faults(loaded: Rig, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Faults]:
    named = {name: (Place(*what),) for name, what in FAULTS.items()}
    made = Faults(tmp_path_factory.mktemp("faults"), named, loaded.compiled.maps)
    yield made
    made.close()


def test_with_none_of_the_faults_it_agrees(faults: Faults) -> None:
    with faults.rig() as none, one_cpu():
        search(none, FRAMES, START)


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_found_and_told_by_a_few_actions(rig: Rig, faults: Faults, name: str) -> None:
    with faults.rig(name) as other, one_cpu():
        with pytest.raises(FailureError) as found:
            search(other, FRAMES, START)
        actions = found.value.actions
        assert len(actions) <= SMALL
        assert play(other, actions) is not None, "it fails again"
        assert play(rig, actions) is None, "and only with the fault"
