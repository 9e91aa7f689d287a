# SPDX-License-Identifier: Apache-2.0
"""A policy and a plant, led step by step: for each sample what is wanted from then on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

import numpy as np
import numpy.typing as npt

from controlplane.bounds import MEMBERS_MOST, UNBOUNDED, Bounds
from controlplane.model import ShadowSettings
from controlplane.rivals import TARGET, Rival, scaler
from controlplane.simulation import plant
from controlplane.simulation.controlled import Controlled
from controlplane.simulation.lines import LineError, Sample
from controlplane.simulation.plant import Plant, Score
from controlplane.sizing import Size

_USUAL = ShadowSettings()
_APART = 1.5
"""Who is so many steps later is not the next one."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What all policies are given alike."""

    capacity: float
    """Requests/s of a member."""
    lead_time_s: float
    interval_s: float
    """Of a step."""
    initial: int | None = None
    """Members that are ready at first; None: as many as the first sample needs at 70 % use."""
    shadows: ShadowSettings = _USUAL
    """Penumbra's: what a second over capacity costs, how long a member stays."""
    bounds: Bounds = UNBOUNDED
    target: float = TARGET
    """The others': the share of its capacity of which a member is to be in use."""

    def checked(self, sample: Sample) -> Sample:
        """LineError: it would need more members than anybody has."""
        if sample.rate > MEMBERS_MOST * self.capacity:
            raise LineError(
                f"at {sample.at_s:.15g} s: {sample.rate:g}/s are more than {MEMBERS_MOST} times the capacity "
                f"of {self.capacity:g}/s; as much is allowed"
            )
        return sample

    def steps(self, since_s: float) -> float:
        """Of two samples that are so far apart: the next one of a step that comes early or late is one step
        later; nearer and further ones are as they say."""
        steps = since_s / self.interval_s
        return 1.0 if 1.0 / _APART <= steps <= _APART else steps

    def plant(self, initial: int) -> Plant:
        return Plant(self.capacity, self.lead_time_s, self.interval_s, initial)

    def first(self, rate: float) -> int:
        if self.initial is not None:
            return self.initial
        return int(plant.needed(np.nan_to_num(np.array(rate)), self.capacity * TARGET, self.bounds))


@dataclass(frozen=True, slots=True)
class Answer:
    sample: Sample
    in_force: int
    """Members that were wanted while its demand came."""
    wanted: int
    """Members from now on, those that are on order included."""
    ready: int
    """The least that was wanted in the last lead time."""
    over: bool
    """Whether the sample's demand exceeded what was ready when it came."""
    reason: str
    p50: float | None = None
    """Quantiles of demand a lead time from now, requests/s, of who foresees it."""
    p90: float | None = None


class Policy(Protocol):
    def after(self, rate: float, ready: int) -> Size:
        """Members from now on. ``rate``: requests/s, the mean of the last step; NaN: no reading."""
        ...


def led(rival: Rival | None, terms: Terms, samples: Iterable[Sample]) -> Iterator[Answer]:
    """An answer for each sample, before the next one is asked for. Raises LineError.

    :param rival: None: Penumbra itself."""
    coming = map(terms.checked, samples)
    first = next(coming, None)
    if first is None:
        return
    wanted = terms.first(first.rate)
    policy: Policy = _Reactive(rival, terms, wanted) if rival else _controlled(terms, wanted)
    there = terms.plant(wanted)
    for sample, steps in _timed(terms, chain((first,), coming)):
        there.wait(max(steps - 1.0, 0.0))  # the demand is that of the last one
        in_force, over = wanted, there.is_over(sample.rate)
        size = policy.after(sample.rate, there.ready)
        wanted = size.wanted
        there.take(wanted, min(steps, 1.0))
        yield Answer(sample, in_force, wanted, there.ready, over, size.reason, size.p50, size.p90)


def _timed(terms: Terms, samples: Iterable[Sample]) -> Iterator[tuple[Sample, float]]:
    """With the steps since the one before."""
    before_s = None
    for sample in samples:
        yield sample, 1.0 if before_s is None else terms.steps(sample.at_s - before_s)
        before_s = sample.at_s


class _Reactive:
    def __init__(self, rival: Rival, terms: Terms, initial: int) -> None:
        self._scaler = scaler(
            rival, terms.capacity, terms.lead_time_s, terms.interval_s, initial, terms.target, terms.bounds
        )
        self._terms, self._wanted = terms, initial

    def after(self, rate: float, ready: int) -> Size:
        if math.isnan(rate):
            return Size(self._wanted, f"no reading: {self._wanted} as before")
        self._wanted = self._scaler.wanted(rate, ready)
        return Size(self._wanted, f"{rate:.6g}/s, {self._terms.target:g} x {self._terms.capacity:.6g}/s each")


def _controlled(terms: Terms, initial: int) -> Controlled:
    return Controlled(
        terms.shadows, terms.capacity, terms.lead_time_s, terms.interval_s, initial, terms.bounds
    )


def foreseen(terms: Terms, samples: Sequence[Sample], *, static: bool) -> Iterator[Answer]:
    """By who knows the future: the least that loses nothing that could be served, or its highest always."""
    if not samples:
        return
    need = plant.needed(rates([*map(terms.checked, samples)]), terms.capacity, terms.bounds)
    lead = plant.lead_steps(terms.lead_time_s, terms.interval_s)
    wanted = np.full(len(need), need.max()) if static else plant.oracle(need, lead)
    reason = "the highest need of all" if static else f"the highest need within {terms.lead_time_s:g} s"
    there = terms.plant(int(wanted[0]))
    following = np.append(wanted[1:], wanted[-1])
    timed = _timed(terms, samples)
    for (sample, steps), now, then in zip(timed, wanted.tolist(), following.tolist(), strict=True):
        there.wait(max(steps - 1.0, 0.0))
        over = there.is_over(sample.rate)
        there.take(then, min(steps, 1.0))
        yield Answer(sample, now, then, there.ready, over, reason)


def rates(samples: Sequence[Sample]) -> npt.NDArray[np.float64]:
    """(samples,) requests/s; where there is no reading, none."""
    return np.nan_to_num(np.array([sample.rate for sample in samples], dtype=np.float64))


def judged(terms: Terms, answers: Sequence[Answer]) -> Score:
    """What became of a whole run."""
    wanted = np.array([answer.in_force for answer in answers])
    demand = rates([answer.sample for answer in answers])
    return plant.score(wanted, demand, terms.capacity, terms.lead_time_s, terms.interval_s, terms.bounds)
