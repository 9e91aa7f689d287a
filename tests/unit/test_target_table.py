# SPDX-License-Identifier: Apache-2.0
"""The tables in which the program looks up targets: whatever is put in is found, and nothing else."""

from __future__ import annotations

import random
from ipaddress import IPv4Address

import numpy as np
import pytest

from controlplane.adapters import layout
from controlplane.adapters.target_table import TargetTable

PORT, TCP = 80, 6


class Table:
    def __init__(self, rows: int, buckets: int) -> None:
        self.rows = np.zeros(rows, layout.ENDPOINT)
        self.entries = np.zeros((buckets, layout.TARGET_WAYS), np.uint64)
        settings = np.zeros((), layout.SETTINGS)
        settings["hash_key"] = (0x0123456789ABCDEF, 0xFEDCBA9876543210)
        self.table = TargetTable(self.entries, self.rows, "address", settings)

    def add(self, index: int, address: int) -> bytes:
        row = self.rows[index : index + 1]
        row["address"] = np.frombuffer(layout.mapped(IPv4Address(address)), np.uint8)
        row["port"], row["protocol"] = PORT, TCP
        target = layout.target(IPv4Address(address), PORT, TCP)
        self.table.put(target, index)
        return target


def test_as_many_as_it_is_made_for_are_found_and_no_other() -> None:
    rows = 4096
    made = Table(rows, layout.target_buckets(rows))
    targets = [made.add(index, 0x0A000000 + index) for index in range(rows)]
    assert [made.table.get(target) for target in targets] == list(range(rows))
    assert all(made.table.get(target[:16] + b"\0\x51\x06\0") is None for target in targets)
    assert all(made.table.get(target[:18] + b"\x11\0") is None for target in targets)


def test_others_are_moved_out_of_the_way_and_still_found() -> None:
    """Filled until it says that it is full; two-choice buckets of eight take far more than half."""
    buckets = 16
    made = Table(buckets * layout.TARGET_WAYS + 1, buckets)
    targets: list[bytes] = []
    with pytest.raises(OverflowError):
        targets.extend(made.add(index, 0x0A000000 + index) for index in range(len(made.rows)))
    assert len(targets) > 0.75 * buckets * layout.TARGET_WAYS
    assert [made.table.get(target) for target in targets] == list(range(len(targets)))


def test_one_that_is_put_again_names_its_new_row() -> None:
    made = Table(4, 4)
    made.add(1, 0x0A000001)
    target = made.add(2, 0x0A000001)
    assert made.table.get(target) == 2
    assert np.count_nonzero(made.entries) == 1


def test_what_is_deleted_is_gone_and_the_others_stay() -> None:
    rows, choice = 512, random.Random(1)
    made = Table(rows, layout.target_buckets(rows))
    there: dict[int, bytes] = {}
    for _ in range(4000):
        index = choice.randrange(rows)
        if index in there:
            made.table.delete(there.pop(index))
        else:
            there[index] = made.add(index, 0x0A000000 + index)
    assert np.count_nonzero(made.entries) == len(there)
    assert all(made.table.get(target) == index for index, target in there.items())


def test_deleting_what_is_not_there_changes_nothing() -> None:
    made = Table(4, 4)
    kept = made.add(1, 0x0A000001)
    made.table.delete(layout.target(IPv4Address("10.0.0.2"), PORT, TCP))
    assert made.table.get(kept) == 1
