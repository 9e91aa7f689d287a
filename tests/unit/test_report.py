# SPDX-License-Identifier: Apache-2.0
"""The demo's figures and its verdict, on runs whose figures are known beforehand."""

from dataclasses import replace

import numpy as np
import pytest

from controlplane.lab import picture, report

TIMES_S = np.arange(0.0, 80.0, 0.5)
RATE = np.interp(TIMES_S, [0, 25, 35, 50, 60, 80], [40, 40, 140, 140, 40, 40])
PLAN = report.Plan(80.0, TIMES_S, RATE, capacity=80.0, live="web-1")


def requests(slow_from_s=80.0, slow_until_s=80.0, shadow_from_s=28.0, failed=0):
    intended_s = np.arange(0.0, 80.0, 0.01)
    slow = (intended_s >= slow_from_s) & (intended_s < slow_until_s)
    by_shadow = (intended_s >= shadow_from_s) & (intended_s % 0.02 < 0.01)
    ok = np.ones(intended_s.size, dtype=bool)
    ok[:failed] = False
    served_by = np.where(by_shadow, "web-1-s1", "web-1")
    return report.Requests(intended_s, np.where(slow, 2.0, 0.1), ok, served_by)


def seen(ordered_s=24.0, ready_s=28.0, gone_s=78.0):
    def shadows(at_s):
        if at_s < ordered_s or at_s >= gone_s:
            return {}
        return {"web-1-s1": "ready" if at_s >= ready_s else "provisioning"}

    return [
        report.Observation(at_s, 20.0, 20.0, 25.0, 0.0, shadows(at_s)) for at_s in np.arange(0.0, 80.0, 1.0)
    ]


def good_runs():
    bad = report.figures(PLAN, requests(slow_from_s=30, slow_until_s=50, shadow_from_s=99), [])
    return {"none": bad, "reactive": bad, "penumbra": report.figures(PLAN, requests(), seen())}


def test_the_rise_lasts_from_the_last_quiet_moment_to_the_crossing():
    assert PLAN.crossing_s() == pytest.approx(29.5, abs=0.5)
    assert PLAN.rise_s() == pytest.approx(4.0, abs=1.0)


def test_figures_are_those_of_the_run():
    found = report.figures(PLAN, requests(failed=3), seen())
    assert found.requests == 8000
    assert found.failed == 3
    assert found.p50_ms == pytest.approx(100)
    assert found.shadows == 1
    assert found.endpoint_seconds == pytest.approx(80 + 54, abs=1)
    assert found.decision_to_first_byte_s == pytest.approx(4.1, abs=0.1)
    assert found.shadow_serving_before_crossing_s == pytest.approx(1.4, abs=0.6)
    assert found.seconds_over_capacity == 0
    assert found.lead_time_s == 4
    assert found.forecast_ahead_s == 79


def test_without_a_shadow_every_second_above_capacity_counts():
    found = report.figures(PLAN, requests(shadow_from_s=99), [])
    assert found.seconds_over_capacity == pytest.approx((RATE > 80).sum() / 2)
    assert found.shadow_serving_before_crossing_s is None


def test_a_run_that_keeps_the_promise_is_told_nothing():
    assert report.broken_promises(PLAN, good_runs(), seen()) == []


def late():
    runs = good_runs()
    runs["penumbra"] = report.figures(PLAN, requests(shadow_from_s=31), seen())
    return runs, seen()


def slow():
    runs = good_runs()
    runs["penumbra"] = report.figures(PLAN, requests(slow_from_s=30, slow_until_s=32), seen())
    return runs, seen()


BROKEN = {
    "a failed request": (
        lambda: ({**good_runs(), "penumbra": replace(good_runs()["penumbra"], failed=1)}, seen()),
        "1 requests failed",
    ),
    "a shadow in the quiet quarter": (lambda: (good_runs(), seen(ordered_s=10)), "quiet first quarter"),
    "a shadow that came late": (late, "after the load crossed capacity"),
    "a p99 that rose": (slow, "is over 2 x its quiet value"),
    "a shadow left behind": (lambda: (good_runs(), seen(gone_s=99)), "were left at the end: web-1-s1"),
    "others that did as well": (
        lambda: ({**good_runs(), "reactive": good_runs()["penumbra"]}, seen()),
        "the run 'reactive' too",
    ),
}


@pytest.mark.parametrize(("run", "said"), BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_promise_is_told(run, said):
    runs, observed = run()
    told = report.broken_promises(PLAN, runs, observed)
    assert len(told) == 1
    assert said in told[0]


def test_too_slow_a_rise_is_told():
    runs = good_runs()
    runs["penumbra"] = replace(runs["penumbra"], lead_time_s=1.0)
    (told,) = report.broken_promises(PLAN, runs, seen())
    assert "is over 3 x the lead time of 1.0 s" in told


def test_a_flat_trace_asks_only_that_nothing_is_started():
    flat = replace(PLAN, requests_per_s=np.full(TIMES_S.size, 40.0))
    idle = report.figures(flat, requests(shadow_from_s=99), seen(ordered_s=99))
    runs = {"none": idle, "reactive": idle, "penumbra": idle}
    assert report.broken_promises(flat, runs, seen(ordered_s=99)) == []
    busy = {**runs, "penumbra": replace(idle, shadows=1)}
    assert "never crosses capacity" in report.broken_promises(flat, busy, seen())[0]


def test_the_picture_is_an_svg_with_a_column_per_run(tmp_path):
    run = picture.Run(requests(failed=2), seen())
    picture.draw(PLAN, {"none": run, "reactive": run, "penumbra": run}, 0.53, tmp_path / "new" / "demo.svg")
    text = (tmp_path / "new" / "demo.svg").read_text()
    assert text.count("seconds since the start of traffic") == 3
    for said in ("No shadows", "Penumbra", "capacity online", "p99 of each second, ms"):
        assert said in text


def test_the_picture_has_room_for_every_run_and_names_what_only_one_of_them_shows(tmp_path):
    calm, failing = picture.Run(requests(), seen()), picture.Run(requests(failed=2), [])
    picture.draw(PLAN, {"none": failing, "penumbra": calm}, 0.53, tmp_path / "demo.svg")
    text = (tmp_path / "demo.svg").read_text()
    assert ">failed<" in text
    assert ">160<" in text, "two endpoints' capacity is above all that the first run shows"
