# SPDX-License-Identifier: Apache-2.0
"""Reasons are counted by the interface that a packet came in by, if it has a row of its own."""

from __future__ import annotations

import numpy as np
import pytest

from controlplane.adapters import interface_rows, layout
from tests.packet.rig import Rig, udp

LOOPBACK = 1
MULTIPLIER = 0x9E3779B1
ROW = MULTIPLIER >> layout.INTERFACE_SHIFT


def counted(rig: Rig) -> dict[int, int]:
    """Row -> packets."""
    per_row = rig.reasons.reshape(-1, layout.INTERFACE_ROWS, layout.REASON_SLOTS).sum(axis=(0, 2))
    return {int(row): int(per_row[row]) for row in np.flatnonzero(per_row)}


@pytest.mark.parametrize("times", [1, 7])
def test_a_packet_counts_in_its_interfaces_row(rig: Rig, times: int) -> None:
    rig.settings["interface_multiplier"] = MULTIPLIER
    rig.interfaces["ifindex"][ROW] = LOOPBACK
    for _ in range(times):
        rig.send(udp("192.0.2.1", 1, "192.0.2.2", 2), ingress_ifindex=LOOPBACK)
    assert counted(rig) == {ROW: times}


def test_what_meets_anothers_row_counts_among_the_others(rig: Rig) -> None:
    rig.settings["interface_multiplier"] = MULTIPLIER
    rig.interfaces["ifindex"][ROW] = 2
    rig.send(udp("192.0.2.1", 1, "192.0.2.2", 2), ingress_ifindex=LOOPBACK)
    assert counted(rig) == {layout.OTHER_INTERFACES: 1}


@pytest.mark.parametrize("multiplier", [1 << 24 | 1, MULTIPLIER, 0xFFFFFFFF])
def test_python_names_the_row_that_the_program_does(rig: Rig, multiplier: int) -> None:
    """Wherever the program looks, the interface is found there."""
    named = interface_rows.rows_of(np.array([multiplier], np.uint32), np.array([LOOPBACK], np.uint32))
    rig.settings["interface_multiplier"] = multiplier
    rig.interfaces["ifindex"][int(named[0, 0])] = LOOPBACK
    rig.send(udp("192.0.2.1", 1, "192.0.2.2", 2), ingress_ifindex=LOOPBACK)
    assert counted(rig) == {int(named[0, 0]): 1}
