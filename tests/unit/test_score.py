# SPDX-License-Identifier: Apache-2.0
"""The shipped traces, and what Penumbra's sizing makes of them beside HPA."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from controlplane.rivals import Rival
from controlplane.starts import Allowance
from tests.score.__main__ import SHIPPED
from tests.score.jumps import jumps
from tests.score.replay import TICKS, Trace, replayed, traces
from tests.score.scores import PENUMBRA, Outcome, outcome

LEAD_S = 60.0


STEPS = 4000
"""That are replayed of the longest."""


@pytest.fixture(scope="module")
def shipped() -> list[Trace]:
    return [
        replace(one, demand=one.demand[: STEPS * TICKS], seen=one.seen[:STEPS]) for one in traces(SHIPPED)
    ]


@pytest.fixture(scope="module")
def hpa(shipped: list[Trace]) -> list[Outcome]:
    return [outcome(trace, LEAD_S, Rival.HPA.value) for trace in shipped]


def losses(outcomes: list[Outcome]) -> tuple[float, float]:
    """Means of time over capacity and of demand lost."""
    return float(np.mean([one.over for one in outcomes])), float(np.mean([one.lost for one in outcomes]))


def test_hpa_does_as_well_as_it_is_known_to() -> None:
    """What an independent replay of the same model gave: over, lost, cost."""
    hpa = [outcome(trace, LEAD_S, Rival.HPA.value) for trace in traces(SHIPPED)]
    known = [(2.86, 0.81, 1.22), (7.86, 18.73, 1.26), (6.55, 3.78, 1.97)]
    assert [(one.over, one.lost, one.cost) for one in hpa] == [pytest.approx(row, abs=0.01) for row in known]


def test_half_of_what_hpa_is_over_and_loses_is_not(shipped: list[Trace], hpa: list[Outcome]) -> None:
    ours = [outcome(trace, LEAD_S, PENUMBRA) for trace in shipped]
    assert all(one.over < its.over and one.lost < its.lost for one, its in zip(ours, hpa, strict=True))
    assert losses(ours)[0] < losses(hpa)[0] / 2
    assert losses(ours)[1] < losses(hpa)[1] / 2
    assert all(one.starts <= its.starts for one, its in zip(ours, hpa, strict=True))


def test_without_an_allowance_an_hour_of_noise_has_more_starts_than_hpa(
    shipped: list[Trace], hpa: list[Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The negative control of the last line above."""
    monkeypatch.setattr(Allowance, "left", 1000)
    assert outcome(shipped[0], LEAD_S, PENUMBRA).starts > hpa[0].starts


def test_whom_overload_costs_nothing_does_no_better(shipped: list[Trace], hpa: list[Outcome]) -> None:
    """The negative control of the test above."""
    careful = outcome(shipped[-1], LEAD_S, PENUMBRA)
    careless = outcome(shipped[-1], LEAD_S, PENUMBRA, over_cost=0.001)
    assert careless.over > hpa[-1].over / 2
    assert careless.over > 2 * careful.over


def test_a_trace_keeps_its_samples_and_gives_none_away() -> None:
    values = np.array([10.0, 40.0, 20.0, 80.0, 80.0])
    trace = replayed("t", values, 300.0)
    assert len(trace.demand) == 5 * 60 / 5 // TICKS * TICKS
    middle = trace.demand[6:54].reshape(4, 12)  # from the middle of a sample to the next one's
    assert np.all(np.diff(middle * np.sign(np.diff(values))[:, None], axis=1) >= 0)
    assert middle[0].min() >= 10.0
    assert middle[0].max() <= 40.0
    assert not np.allclose(np.diff(middle[0]), np.diff(middle[0])[0])
    assert np.all(trace.demand[-6:] == 80.0)
    seconds = replayed("t", np.arange(30.0), 1.0)
    assert seconds.seen.tolist() == [7.0, 22.0]
    assert seconds.demand.tolist() == [2.0, 7.0, 12.0, 17.0, 22.0, 27.0]


def test_a_jump_is_a_rise_by_two_that_the_day_before_did_not_know() -> None:
    calm, often = np.full(2001, 5.5), np.tile(np.repeat([5.5, 8.5], 20), 48)
    demand = np.concatenate([calm, np.full(30, 8.5), calm, often, calm])
    found = np.flatnonzero(jumps(Trace("t", demand, demand.reshape(-1, TICKS).mean(axis=1), 1.0), LEAD_S))
    # until what was ordered at its first tick serves
    assert found[found < 4032].tolist() == list(range(2001, 2013))
    # the same again is one until the day knows it
    assert 4032 <= found[12] < 4032 + 40
    assert found[-1] < 4032 + 400
