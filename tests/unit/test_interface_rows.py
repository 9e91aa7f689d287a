# SPDX-License-Identifier: Apache-2.0
"""Rows of counters: every attached interface has its own, and keeps what it counted."""

from __future__ import annotations

from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from controlplane.adapters import interface_rows, layout

NETNS, OTHER_NETNS = 4026531840, 4026532000
INDICES = st.sets(st.integers(1, 2**28), max_size=24)
ROOMY = 48
"""With so many rows that others own, one multiplier of 600 still serves 24 interfaces; 60 000 are tried."""
CROWDED = [set(Random(at).sample(range(1, 2**28), 24)) for at in range(5)]
"""None of the multipliers tried serves all of the last."""


class Table:
    """The maps, and packets counted as the program does."""

    def __init__(self) -> None:
        self.settings = np.zeros((), layout.SETTINGS)
        self.interfaces = np.zeros(layout.INTERFACE_ROWS, layout.INTERFACE)
        self.interface_labels = np.zeros(layout.INTERFACE_ROWS, layout.LABEL)
        self.counts = np.zeros(layout.INTERFACE_ROWS, int)

    def assign(self, interfaces: dict[int, str], netns: int = NETNS) -> tuple[str, ...]:
        maps: Any = SimpleNamespace(**vars(self))
        return interface_rows.assign(maps, interfaces, netns)

    def packet(self, ifindex: int) -> None:
        row = (ifindex * int(self.settings["interface_multiplier"]) & 0xFFFFFFFF) >> layout.INTERFACE_SHIFT
        self.counts[row if self.interfaces["ifindex"][row] == ifindex else layout.OTHER_INTERFACES] += 1

    def count(self, name: str) -> int:
        return int(self.counts[self.interface_labels["name"] == name.encode()].sum())


def named(indices: set[int], prefix: str = "eth") -> dict[int, str]:
    return {index: f"{prefix}{at}" for at, index in enumerate(sorted(indices))}


@settings(max_examples=60, deadline=None)
@given(generations=st.lists(INDICES, min_size=1, max_size=5))
@example(generations=CROWDED)
def test_whoever_comes_and_goes_every_packet_is_its_own_interfaces(generations: list[set[int]]) -> None:
    """Each generation's interfaces have names of their own; nobody's count is ever given to another."""
    table, expected, others = Table(), dict[str, int](), 0
    for at, indices in enumerate(generations):
        interfaces = named({8 * index + at for index in indices}, f"g{at}-")
        owned = np.count_nonzero(table.interface_labels["name"])
        rowless = table.assign(interfaces)
        assert not rowless or owned > ROOMY, "there was room for all"
        for index, name in interfaces.items():
            table.packet(index)
            if name not in rowless:
                expected[name] = 1
        others += len(rowless)
        assert {name: table.count(name) for name in expected} == expected
        assert table.counts[layout.OTHER_INTERFACES] == others


def test_a_new_interface_that_meets_an_old_one_moves_it_and_both_keep_their_counts() -> None:
    table = Table()
    table.assign({2: "eth0"})
    before = int(table.settings["interface_multiplier"])
    table.packet(2)
    row = (2 * before & 0xFFFFFFFF) >> layout.INTERFACE_SHIFT
    meets = next(i for i in range(3, 100_000) if (i * before & 0xFFFFFFFF) >> layout.INTERFACE_SHIFT == row)
    assert table.assign({2: "eth0", meets: "eth1"}) == ()
    assert int(table.settings["interface_multiplier"]) != before
    table.packet(2)
    table.packet(meets)
    assert (table.count("eth0"), table.count("eth1")) == (2, 1)


def test_an_interface_that_was_renamed_takes_its_counts_along() -> None:
    table = Table()
    table.assign({2: "one", 3: "two"})
    table.packet(2)
    table.assign({2: "two", 3: "one"})
    table.packet(3)
    table.packet(3)
    assert (table.count("two"), table.count("one")) == (1, 2)


def test_the_same_index_in_another_namespace_is_another_interface() -> None:
    table = Table()
    table.assign({2: "eth0"})
    table.packet(2)
    table.assign({2: "lan0"}, OTHER_NETNS)
    table.packet(2)
    assert (table.count("eth0"), table.count("lan0")) == (1, 1)


def test_who_finds_no_row_of_its_own_is_told_and_counts_among_the_others() -> None:
    table = Table()
    table.assign({})
    table.interface_labels["name"] = b"long gone"
    assert table.assign({2: "eth0", 3: "eth1"}) == ("eth0", "eth1")
    table.packet(2)
    assert table.counts[layout.OTHER_INTERFACES] == 1


def test_loading_again_changes_nothing() -> None:
    table = Table()
    interfaces = named({2, 5, 900, 77})
    table.assign(interfaces)
    before = (table.interfaces.copy(), int(table.settings["interface_multiplier"]))
    table.assign(interfaces)
    assert (table.interfaces == before[0]).all()
    assert int(table.settings["interface_multiplier"]) == before[1]
