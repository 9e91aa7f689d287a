# SPDX-License-Identifier: Apache-2.0
"""Sums over CPUs are the same whoever adds, in whichever order."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from controlplane.adapters import layout, readings

CPUS = 6


def table(rows: int) -> np.ndarray:
    made = np.zeros((CPUS, rows), layout.ENDPOINT_COUNTERS)
    words = made.view("<u8")
    words[...] = np.random.default_rng(rows).integers(0, 1 << 63, words.shape, np.uint64)
    return made


@settings(deadline=None)
@given(st.sets(st.integers(0, CPUS - 1)), st.integers(1, 5), st.integers(1, 4))
def test_totals_are_of_the_cpus_asked_for_and_of_no_others(cpus: set[int], rows: int, top: int) -> None:
    tables = [table(rows)[:, :top], table(7)]
    found = readings.totals(tables, np.array(sorted(cpus), np.intp))
    for total, one in zip(found, tables, strict=True):
        assert (total == sum((one[cpu].view("<u8") for cpu in cpus), np.zeros_like(total))).all()


@pytest.mark.parametrize("cpus", [range(CPUS), (0, 1, 3, 5), (2,)], ids=["all CPUs", "some", "one"])
def test_large_tables_are_summed_by_several_threads_to_the_same(cpus: range | tuple[int, ...]) -> None:
    large = table(50_000)
    assert large[0].nbytes * len(cpus) >= readings._WORTH_THREADS_BYTES or len(cpus) < 4
    (found,) = readings.totals([large], np.array(cpus))
    assert (found == large.view("<u8")[list(cpus)].sum(axis=0, dtype=np.uint64)).all()
