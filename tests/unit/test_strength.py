# SPDX-License-Identifier: Apache-2.0
"""What a member can serve is told by as much as tells one and the same."""

from __future__ import annotations

import math

import numpy as np
import pytest

from controlplane import strength
from controlplane.strength import Strength


def readings(
    known: Strength, rate: float, given: float, count: int, since_s: float = 0.0, seed: int = 1
) -> np.ndarray:
    """Every two seconds; what was done of it is by chance, and so is what that used. What is believed."""
    random = np.random.default_rng(seed)
    told = []
    for k in range(count):
        work, asked = random.poisson(2 * given) + 1e-9, random.poisson(2 * given) + 1e-9
        known.take(work, asked / rate, 2.0, since_s + 2.0 * (k + 1))
        told.append(known.rate(since_s + 2.0 * (k + 1)))
    return np.array(told)


def test_few_readings_tell_nothing_and_many_tell_it_well():
    told = readings(Strength(), 80.0, 10.0, 150)
    assert np.isnan(told[:4]).all()
    assert np.isfinite(told[30:]).all()
    assert np.abs(told[60:] / 80.0 - 1.0).max() < 0.12


def test_its_error_is_as_large_as_what_it_is_off():
    off, errors = [], []
    for seed in range(40):
        known = Strength()
        off.append(readings(known, 80.0, 10.0, 40, seed=seed)[-1] / 80.0 - 1.0)
        errors.append(known.error(80.0))
    assert 0.7 < np.mean(errors) / np.std(off) < 2.0


def test_who_can_serve_less_than_before_is_known_soon():
    known = Strength()
    readings(known, 80.0, 20.0, 100)
    assert readings(known, 40.0, 20.0, 20, 200.0)[-1] == pytest.approx(40.0, rel=0.15)


def test_negative_control_the_long_memory_alone_does_not_follow_so_soon(monkeypatch):
    monkeypatch.setattr(strength, "_CLEARLY", 10.0)
    known = Strength()
    readings(known, 80.0, 20.0, 100)
    assert readings(known, 40.0, 20.0, 20, 200.0)[-1] > 50.0


def test_who_was_as_busy_as_can_be_is_soon_believed_to_be_what_it_was():
    known = Strength()
    readings(known, 80.0, 20.0, 50)
    known.bound(80.0, 2.0, 102.0)
    assert known.rate(102.0) < 30.0
    assert readings(known, 80.0, 20.0, 5, 102.0)[-1] == pytest.approx(80.0, rel=0.15)


def test_who_is_as_busy_as_can_be_bounds_it_and_nothing_new_ends_it():
    known = Strength()
    readings(known, 80.0, 20.0, 50)
    error = known.error(100.0)
    known.bound(160.0, 2.0, 102.0)
    assert known.rate(102.0) == pytest.approx(80.0, rel=0.1), "that much made it so"
    known.bound(100.0, 2.0, 104.0)
    assert known.rate(104.0) == pytest.approx(35.0)
    assert known.error(104.0) == error
    known.bound(200.0, 2.0, 106.0)
    assert known.rate(106.0) == pytest.approx(35.0)
    other = Strength()
    other.bound(100.0, 2.0, 104.0)
    assert other.rate(104.0) == pytest.approx(35.0), "nothing else is known"
    known.keep(200.0)
    assert known.rate(200.0 + strength.GOOD_S) == pytest.approx(35.0)
    assert math.isnan(known.rate(201.0 + strength.GOOD_S))
    known.keep(600.0)
    assert math.isnan(known.rate(600.0)), "what has ended does not come back"
