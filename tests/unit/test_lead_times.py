# SPDX-License-Identifier: Apache-2.0
"""The p95 lead time: what failed counts as longer than it was tried for."""

from __future__ import annotations

import pytest

from controlplane import lead_times
from controlplane.lead_times import LeadTimes
from controlplane.model import ShadowSettings

SETTINGS = ShadowSettings(lead_time_s=10.0, warm_up_s=2.0, timeout_s=120.0)


def of(ready: list[float], failed: tuple[float, ...] = ()) -> LeadTimes:
    return LeadTimes((*((one, True) for one in ready), *((one, False) for one in failed)))


ROWS = {
    "nothing measured: the configured one": (of([]), 12.0),
    "two measured: the configured one still counts": (of([3.0, 4.0]), 12.0),
    "three measured: theirs": (of([3.0, 4.0, 5.0]), 5.0),
    "of a hundred the ninety-fifth": (of([float(k) for k in range(1, 101)]), 95.0),
    "what failed at once tells next to nothing": (of([8.0, 9.0, 10.0], (0.5, 0.5)), 10.0),
    "one of four timed out: as long as is allowed": (of([8.0, 9.0, 10.0], (120.0,)), 122.0),
    "one of thirty timed out: that is within five per cent": (of([8.0] * 29, (120.0,)), 8.0),
    "longer than is allowed by now: that": (of([300.0], (400.0,) * 3), 400.0),
    "only failures: as long as is allowed": (of([], (120.0, 120.0)), 122.0),
}


@pytest.mark.parametrize(("times", "p95_s"), ROWS.values(), ids=ROWS.keys())
def test_the_p95(times, p95_s):
    assert times.p95_s(SETTINGS) == p95_s


def test_what_is_usual_is_that_of_those_that_were_ready():
    assert of([8.0, 9.0, 10.0], (120.0,)).usual_s(SETTINGS) == 10.0


def test_the_latest_fifty_are_kept_and_read_again_also_those_of_earlier_versions():
    times = LeadTimes()
    for k in range(80):
        times = times.with_one(float(k), ready=k % 2 == 0)
    assert len(times.times) == 50
    assert times.times[-1] == (79.0, False)
    assert lead_times.parse(times.text()) == times
    assert lead_times.parse("[3.5, 4]") == of([3.5, 4.0])


@pytest.mark.parametrize("text", ["{}", "3", '["x"]', "[[1, true, 2]]", "[true]", "[NaN]", "nonsense"])
def test_what_makes_no_sense_is_an_error(text):
    with pytest.raises(ValueError):  # noqa: PT011 - of json's, too
        lead_times.parse(text)
