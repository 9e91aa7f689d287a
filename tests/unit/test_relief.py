# SPDX-License-Identifier: Apache-2.0
"""Help tells of a step only where less was completed than offered."""

from __future__ import annotations

import numpy as np
import pytest

from controlplane.relief import Relief


@pytest.mark.parametrize(
    ("completed", "helped", "relieved"),
    [(70.0, True, True), (70.0, False, False), (96.0, True, False), (100.0, True, False)],
    ids=["a third is lost", "nobody came", "a few fail", "all is completed"],
)
def test_who_could_not_complete_what_was_offered_is_relieved_by_help(completed, helped, relieved):
    relief = Relief(1)
    for second in range(-30, 10):
        relief.take(np.array([100.0]), np.array([completed]), np.array([False]), 1.0, float(second))
    got = relief.take(np.array([100.0]), np.array([100.0]), np.array([helped]), 1.0, 10.0)
    assert got.tolist() == [relieved]
    assert relief.is_recent(0, 15.0) is relieved
    assert not relief.is_recent(0, 25.0)
