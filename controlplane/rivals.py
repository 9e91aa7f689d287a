# SPDX-License-Identifier: Apache-2.0
"""The reactive scalers that operators have today, each told the rate of every step and what is ready.

Sources: Kubernetes HPA v2 (kubernetes.io, "Horizontal Pod Autoscaling": algorithm details, default scaling
behaviour), KEDA ("ScaledObject specification": pollingInterval), AWS ("Target tracking scaling policies for
Amazon EC2 Auto Scaling": alarms of 3 and of 15 minutes). The last one is HPA on a linear extrapolation.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from enum import Enum
from typing import Protocol

from controlplane.bounds import UNBOUNDED, Bounds

TARGET = 0.7
"""Of its capacity, so much of an endpoint is to be in use."""
_TOLERANCE = 0.1
_SYNC_S = 15.0
"""How often HPA looks."""
_STABLE_S = 300.0
"""HPA goes down to the most that it recommended in so long."""
_ALARM_MINUTES = {"out": 3, "in": 15}
_IN_BELOW = 0.9
_ROUNDING = 1e-9


class Rival(Enum):
    HPA = "hpa"
    KEDA = "keda"
    TARGET_TRACKING = "target-tracking"
    TREND = "trend"


class Scaler(Protocol):
    def wanted(self, rate: float, ready: int) -> int:
        """Members from now on. ``rate``: requests/s, the mean of the last step."""
        ...


def scaler(
    rival: Rival,
    capacity: float,
    lead_time_s: float,
    interval_s: float,
    initial: int,
    target: float = TARGET,
    bounds: Bounds = UNBOUNDED,
) -> Scaler:
    """:param capacity: requests/s of a member. ``interval_s``: of a step. ``initial``: members at first.
    ``target``: the share of its capacity of which each is to be in use."""
    rate = capacity * target
    if rival is Rival.TARGET_TRACKING:
        return _TargetTracking(rate, interval_s, initial, bounds)
    metric: _Metric
    if rival is Rival.KEDA:
        metric = _Polled(interval_s)
    elif rival is Rival.TREND:
        metric = _Extrapolated(interval_s, lead_time_s)
    else:
        metric = _Mean(steps(30.0, interval_s))
    return _Hpa(metric, rate, interval_s, initial, bounds)


def steps(seconds: float, interval_s: float) -> int:
    return max(1, round(seconds / interval_s))


class _Metric(Protocol):
    def of(self, rate: float) -> float: ...


class _Mean:
    def __init__(self, count: int) -> None:
        self._last: deque[float] = deque(maxlen=count)

    def of(self, rate: float) -> float:
        self._last.append(rate)
        return sum(self._last) / len(self._last)


class _Polled:
    """Prometheus' rate over a minute, asked for every 30 s."""

    def __init__(self, interval_s: float) -> None:
        self._mean, self._every = _Mean(steps(60.0, interval_s)), steps(30.0, interval_s)
        self._step, self._polled = 0, math.nan

    def of(self, rate: float) -> float:
        mean = self._mean.of(rate)
        self._step += 1
        if self._step % self._every == 0 or math.isnan(self._polled):
            self._polled = mean
        return self._polled


class _Extrapolated:
    """The level of 30 s and, where it rises, the least-squares slope of two minutes, led by the lead time."""

    def __init__(self, interval_s: float, lead_time_s: float) -> None:
        self._level = _Mean(steps(30.0, interval_s))
        self._last: deque[float] = deque(maxlen=max(2, steps(120.0, interval_s)))
        self._interval_s, self._ahead_s = interval_s, lead_time_s + interval_s

    def of(self, rate: float) -> float:
        self._last.append(rate)
        level = self._level.of(rate)
        if len(self._last) < (self._last.maxlen or 0):
            return level
        return level + max(0.0, _slope(self._last) / self._interval_s) * self._ahead_s


def _slope(values: Sequence[float]) -> float:
    """Per step, of the least-squares line."""
    middle = (len(values) - 1) / 2
    times = [at - middle for at in range(len(values))]
    return sum(t * value for t, value in zip(times, values, strict=True)) / sum(t * t for t in times)


class _Hpa:
    """Up by the double or by four at each look; down after five minutes; unmoved within its tolerance."""

    def __init__(
        self, metric: _Metric, target: float, interval_s: float, initial: int, bounds: Bounds
    ) -> None:
        """:param target: requests/s of a member."""
        self._metric, self._target, self._members, self._bounds = metric, target, initial, bounds
        self._recommended: deque[int] = deque(maxlen=steps(_STABLE_S, max(interval_s, _SYNC_S)) + 1)
        self._every, self._syncs = steps(_SYNC_S, interval_s), steps(interval_s, _SYNC_S)
        self._step = 0

    def wanted(self, rate: float, ready: int) -> int:
        needed, now = self._metric.of(rate) / self._target, self._members
        self._step += 1
        if self._step % self._every:
            return now
        asked = now if abs(needed / now - 1.0) <= _TOLERANCE else math.ceil(needed - _ROUNDING)
        most, left = now, self._syncs
        while most < asked and left:
            most, left = max(2 * most, most + 4), left - 1
        asked = self._bounds.of(min(asked, most))
        self._recommended.append(asked)
        self._members = asked if asked >= now else min(now, max(self._recommended))
        return self._members


class _TargetTracking:
    """A metric a minute, per ready member; out when three are high, in when fifteen are low."""

    def __init__(self, target: float, interval_s: float, initial: int, bounds: Bounds) -> None:
        """:param target: requests/s of a member."""
        self._target, self._members, self._bounds = target, initial, bounds
        self._minute, self._minutes = steps(60.0, interval_s), steps(interval_s, 60.0)
        self._mean = _Mean(self._minute)
        self._needed: deque[float] = deque(maxlen=math.ceil(_ALARM_MINUTES["in"] / self._minutes))
        self._step = self._high = self._low = 0

    def wanted(self, rate: float, ready: int) -> int:
        needed = self._mean.of(rate) / self._target
        self._step += 1
        if self._step % self._minute:
            return self._members
        self._needed.append(needed)
        self._high = self._high + self._minutes if needed > ready else 0
        self._low = self._low + self._minutes if needed < _IN_BELOW * ready else 0
        if self._high >= _ALARM_MINUTES["out"]:
            self._members = max(self._members, self._bounds.of(math.ceil(needed - _ROUNDING)))
        elif self._low >= _ALARM_MINUTES["in"] and ready >= self._members:
            most = math.ceil(max(self._needed) - _ROUNDING)
            self._members = min(self._members, self._bounds.of(most))
        return self._members
