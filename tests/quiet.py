# SPDX-License-Identifier: Apache-2.0
"""Quiet days of many endpoints, and what may happen to them: Poisson arrivals on a daily curve, lognormal
times, few errors. ``python -m tests.quiet --weeks 20`` counts what is found though nothing is the matter."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field

import numpy as np

from controlplane import signs
from controlplane.baseline import REMARKABLE, Baseline
from controlplane.observe import Counted
from controlplane.signs import Count, Signs

DAY_S, WEEK_S = 86_400, 7 * 86_400
LEARNING_S = 600
JUDGED = [one.name.lower() for one in Count] + ["rtt", "response"]
EACH = 4
"""Endpoints of a service."""


@dataclass
class Shift:
    """What befalls all endpoints."""

    rtt: float = 1.0
    response: float = 1.0
    resets: float = 0.0
    unanswered: float = 0.0
    aborted: float = 0.0
    rate: float = 1.0


@dataclass
class Endpoints:
    """(endpoints,) each; they know what is true of them."""

    count: int
    random: np.random.Generator
    rates: tuple[float, float] = (0.5, 200.0)
    """Least and most of mean flows/s, evenly on a logarithmic scale."""
    now_s: float = 0.0
    wander: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        random, n = self.random, self.count
        self.rate = np.exp(random.uniform(*np.log(self.rates), n))
        self.phase, self.swing = random.uniform(0.0, 1.0, n), random.uniform(0.2, 0.8, n)
        self.rtt_us, self.rtt_sd = (
            np.exp(random.uniform(np.log(200), np.log(50_000), n)),
            random.uniform(0.2, 1.0, n),
        )
        self.response_us, self.response_sd = 20 * self.rtt_us, random.uniform(0.3, 1.2, n)
        self.resets = random.choice([0.0, 0.001, 0.01, 0.05], n)
        self.unanswered = random.choice([0.0, 0.0005, 0.005], n)
        self.wander = np.zeros((2, n))
        self.waiting = np.zeros(n, dtype=np.int64)

    def tick(self, shift: Shift) -> Counted:
        """A second of them."""
        random = self.random
        self.now_s += 1.0
        self.wander = 0.98 * self.wander + 0.02 * random.normal(size=self.wander.shape)  # 10 %, a minute long
        daily = 1.0 + self.swing * np.sin(2 * np.pi * (self.now_s / DAY_S + self.phase))
        flows = random.poisson(shift.rate * self.rate * daily * np.exp(self.wander[0]))
        slow = np.exp(self.wander[1]) * daily**0.3
        given = random.binomial(flows, 1.0 - np.minimum(self.unanswered + shift.unanswered, 1.0))
        late = random.binomial(given, np.minimum(self.rtt_us * shift.rtt / 1e6, 1.0))
        answered, self.waiting = given - late + self.waiting, late
        asked = random.poisson(2.0 * flows)
        timed = random.binomial(asked, 1 / 16)
        return Counted(
            offered=flows.astype(float),
            completed=answered.astype(float),
            spilled=np.zeros(self.count),
            flows=flows.astype(float),
            unremembered=np.zeros(self.count),
            resets=random.binomial(flows, np.minimum(self.resets + shift.resets, 1.0)).astype(float),
            rtt_count=answered.astype(float),
            rtt_sum_us=self._sums(answered, shift.rtt * slow * self.rtt_us, self.rtt_sd),
            requests=asked.astype(float),
            aborted=random.binomial(asked, 0.002 + shift.aborted).astype(float),
            response_count=timed.astype(float),
            response_sum_us=self._sums(timed, shift.response * slow * self.response_us, self.response_sd),
        )

    def _sums(self, counts: np.ndarray, median_us: np.ndarray, sd: np.ndarray) -> np.ndarray:
        """Of so many lognormal times each."""
        of = np.repeat(np.arange(self.count), counts)
        times = np.exp(sd[of] * self.random.standard_normal(of.size)) * median_us[of]
        return np.bincount(of, times, self.count)


class Watched:
    """A baseline of endpoints and their services, which learns all that it is told."""

    def __init__(self, endpoints: Endpoints) -> None:
        n = endpoints.count
        self.endpoints, services = endpoints, n // EACH
        self._service = np.repeat(np.arange(services), EACH)
        self.baseline = Baseline([str(k) for k in range(n + services)])
        self.groups = n
        self.found = np.zeros((len(JUDGED), n + services), bool)

    def tick(self, shift: Shift = Shift()) -> np.ndarray:  # noqa: B008 - not changed
        """(signs, rows) who deviates since now."""
        now, rows = self.read(shift), self.found.shape[1]
        self.baseline.judge(now, np.ones(rows), np.zeros((2, rows)))
        self.baseline.learn(now, np.ones(rows, bool), np.ones(rows, bool))
        before, self.found = self.found, self.baseline.scores >= REMARKABLE
        return self.found & ~before

    def read(self, shift: Shift) -> Signs:
        counted = signs.with_services(
            self.endpoints.tick(shift), self._service, self.found.shape[1] - self.groups
        )
        return signs.read(counted, 1.0, np.ones(self.found.shape[1], bool), 0.0)


def false_finds(endpoints: int, seconds: int, seed: int) -> np.ndarray:
    """(signs, rows) how often each deviated although nothing was the matter."""
    watched = Watched(Endpoints(endpoints, np.random.default_rng(seed)))
    for _ in range(LEARNING_S):
        watched.tick()
    counts = np.zeros(watched.found.shape, dtype=np.int64)
    for _ in range(seconds):
        counts += watched.tick()
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weeks", type=float, default=20.0)
    parser.add_argument("--endpoints", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    seconds = round(asked.weeks * WEEK_S / asked.endpoints)
    counts = false_finds(asked.endpoints, seconds, asked.seed)[:, : asked.endpoints]
    for name, count in zip(JUDGED, counts.sum(axis=1).tolist(), strict=True):
        print(f"{name:12} {count} in {asked.weeks:g} weeks")


if __name__ == "__main__":
    main()
