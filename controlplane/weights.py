# SPDX-License-Identifier: Apache-2.0
"""Spill, slot weights and ring weights, computed forward from demand and capacity, not by feedback."""

from __future__ import annotations

import math
import statistics
from collections.abc import Collection, Mapping

from controlplane import drains
from controlplane.model import LIMIT_WINDOW_S, Endpoint, Shadow, ShadowState

_OWN_SHARE = 0.5
"""Of its capacity a live endpoint fills so much before it shares: the primary first."""
_DEAD_BAND = 0.03
_RISE = 0.25
"""Spill rises by at most so much a tick, and falls by _FALL: late is worse than too much."""
_FALL = 0.05
_WARM_START = 0.1
_RING_PAUSE_S = 10.0
_BURST_DEVIATIONS = 3.0
"""So many standard deviations above the mean of a window at capacity are no overload. Arrivals of many
clients are a Poisson process, whose deviation is the root of the mean: past three of them lies one window in
several hundred."""
_RING_BAND = 0.1
_RING_STEP = 2.0
_GIVEN_OFF = 1.5
_MEMORY_FULL = 0.9
_FIT_LEAST = 0.1
_FIT_BAND = 0.1
_SLOWER = 1.5
"""So many times its parent's response time is slow, and no chance."""


def warmth(since_s: float | None, warm_up_s: float, now_s: float) -> float:
    """The part of its full share for who has been healthy since then: 0.1 to 1, rising through the warm-up.

    None: it has not been down.
    """
    if since_s is None or warm_up_s <= 0.0:
        return 1.0
    return round(min(max(_WARM_START, (now_s - since_s) / warm_up_s), 1.0), 1)


def shadow_part(shadow: Shadow, warm_up_s: float, now_unix_s: float) -> float:
    """The part of its full share that a shadow may take: rising through the warm-up, when it is new and when
    it was down."""
    healthy, ready = shadow.healthy_unix_s, shadow.ready_unix_s
    if shadow.state is ShadowState.WARMING:
        return warmth(now_unix_s if healthy is None else healthy, warm_up_s, now_unix_s)
    was_down = healthy is not None and ready is not None and healthy > ready
    return warmth(healthy if was_down else None, warm_up_s, now_unix_s)


def shadow_weight(shadow: Shadow, up: bool, warm_up_s: float, now_unix_s: float) -> float:
    """0..1 of its full share; 0 if it may get no new flows."""
    warming = shadow.state is ShadowState.WARMING and shadow.healthy_unix_s is not None
    if up and shadow.state is ShadowState.DRAINING:
        return drains.share(shadow)
    if shadow.standby or not up or not (warming or shadow.state is ShadowState.READY):
        return 0.0
    return shadow_part(shadow, warm_up_s, now_unix_s)


def window_limit(endpoint: Endpoint, part: float) -> int:
    """New flows in ``LIMIT_WINDOW_S`` past which this endpoint, or a shadow of it, is spared more; 0: none.

    :param part: of its full share, 0..1: who warms up is spared sooner.
    """
    if endpoint.limit is not None:
        return 0 if math.isinf(endpoint.limit) else max(math.ceil(endpoint.limit * part * LIMIT_WINDOW_S), 1)
    if endpoint.capacity is None:
        return 0
    mean = endpoint.capacity * part * LIMIT_WINDOW_S
    return max(math.ceil(mean + _BURST_DEVIATIONS * math.sqrt(mean)), 1)


def warming_spill(target: float, part: float) -> float:
    """What others keep while a live endpoint that came back takes ``part`` of what is meant for it.

    :param target: the share that they are to have in the end.
    """
    return 1.0 - part * (1.0 - target)


def wanted_spill(
    demand: float, capacity: float | None, shadows: float, live_usable: bool, own: float = 1.0
) -> float:
    """The share of a live endpoint's new flows that shadows should get.

    The live one fills half of its capacity, the rest is shared by what everyone has left, so that all are
    full at the same demand. Connections that live on stay where they are: hence shares begin at half, not
    at the limit, and ``demand`` is the forecast's high quantile.

    :param shadows: usable shadows, in units of one whole shadow (each has its parent's capacity).
    :param own: the part of its own whole share that the live one keeps, where all take their whole share.
    """
    if shadows <= 0:
        return 0.0
    if not live_usable:
        return 1.0
    if capacity is None:
        return shadows / (own + shadows)
    own = _OWN_SHARE * capacity
    if demand <= own:
        return 0.0
    left = capacity - own
    return (demand - own) / demand * (shadows * capacity) / (left + shadows * capacity)


def step_spill(installed: float, wanted: float) -> float:
    """From the installed share towards the wanted one: dead band and step limit against chatter."""
    if wanted in (0.0, 1.0) and abs(installed - wanted) <= _FALL:
        return wanted
    if abs(wanted - installed) < _DEAD_BAND:
        return installed
    return min(wanted, installed + _RISE) if wanted > installed else max(wanted, installed - _FALL)


def ring_weights(
    endpoints: Mapping[str, Endpoint],
    members: Mapping[str, float] | None = None,
    fitness: Mapping[str, float] | None = None,
) -> dict[str, float]:
    """Configured weights times capacities where all have one; the mean is 1, steps of 1/1000.

    :param members: of each one's group that serve new flows, itself included; None: they don't count.
    :param fitness: what each can serve beside that, relative to the others; None: as much as it should.
    """
    if not endpoints:
        return {}
    known = all(endpoint.capacity is not None for endpoint in endpoints.values())
    raw = {n: e.weight * (e.capacity or 1.0) if known else e.weight for n, e in endpoints.items()}
    for factors in (members, fitness):
        if factors is not None:
            raw = {name: weight * factors[name] for name, weight in raw.items()}
    mean = sum(raw.values()) / len(raw) or 1.0
    return {name: max(round(weight / mean, 3), 0.001) for name, weight in raw.items()}


def fitness(endpoints: Mapping[str, Endpoint], strengths: Mapping[str, float]) -> dict[str, float] | None:
    """How much more of its weight each live endpoint can serve than the others, by what they use; None: that
    is not known of all. Given capacities are off by a half at most, so no more than that is put right.

    :param strengths: flows/s that each can serve, as its use tells; NaN: not known.
    """
    if len(endpoints) < 2 or any(math.isnan(strengths[name]) for name in endpoints):
        return None
    given = all(endpoint.capacity is not None for endpoint in endpoints.values())
    told = {
        name: strengths[name] / ((one.capacity or 1.0) if given else 1.0) for name, one in endpoints.items()
    }
    middle = statistics.median(told.values())
    least, most = (1.0 / _GIVEN_OFF, _GIVEN_OFF) if given else (0.0, math.inf)
    return {name: min(max(one / middle, least), most) for name, one in told.items()}


def spared(memory: float | None) -> float:
    """The part of its weight for who uses so much of its memory, 0..1: who is nearly out of it is spared."""
    if memory is None or memory <= _MEMORY_FULL:
        return 1.0
    return max((1.0 - memory) / (1.0 - _MEMORY_FULL), _FIT_LEAST)


def fit_part(own: float, parents: float, own_us: float, parents_us: float) -> float:
    """The part of its parent's share that a shadow can serve, 0.1 to 1: by what both can serve, as their use
    tells, else by how soon they answer: a cold one is slow, whatever its machine. NaN: not known.

    :param own: flows/s, like ``parents``. ``own_us``: mean response time, like ``parents_us``.
    """
    part = own / parents
    if math.isnan(part) and own_us > _SLOWER * parents_us:
        part = parents_us / own_us
    return 1.0 if math.isnan(part) else min(max(part, _FIT_LEAST), 1.0)


def fit_weight(weight: float, fitness: float, installed: float | None) -> float:
    """A shadow's weight by what it can serve; what differs little stays as it is."""
    if fitness == 1.0:
        return weight
    fit = max(round(weight * fitness, 2), _FIT_LEAST)
    return installed if installed is not None and abs(fit - installed) < _FIT_BAND else fit


def step_ring(
    installed: Mapping[str, float], wanted: Mapping[str, float], helped: Collection[str] = ()
) -> dict[str, float]:
    """Towards the wanted weights, none more than doubled or halved at once.

    :param helped: those that lost weight as they are ill, and have got shadows that take it."""
    return {
        name: weight
        if name in helped
        else min(max(weight, installed[name] / _RING_STEP), installed[name] * _RING_STEP)
        for name, weight in wanted.items()
    }


def reduce_ring(
    installed: Mapping[str, float], wanted: Mapping[str, float], names: Collection[str]
) -> dict[str, float]:
    """Down to the wanted shares for those of these whose share falls past the dead band; the others keep
    theirs to each other."""
    whole, now = sum(wanted.values()), sum(installed.values())
    less = {n for n in names if wanted[n] / whole < (1.0 - _RING_BAND) * installed[n] / now}
    others = sum(weight for name, weight in installed.items() if name not in less)
    if not less or not others:
        return dict(installed)
    left = (whole - sum(wanted[name] for name in sorted(less))) / others
    return {n: wanted[n] if n in less else round(weight * left, 3) for n, weight in installed.items()}


def join_ring(installed: Mapping[str, float], wanted: Mapping[str, float]) -> dict[str, float]:
    """When members come or go: who stays keeps its weight, relative to the others that do."""
    stay = [name for name in wanted if installed.get(name)]
    if not stay:
        return dict(wanted)
    factor = sum(wanted[name] for name in stay) / sum(installed[name] for name in stay)
    return {n: round(installed[n] * factor, 3) if installed.get(n) else one for n, one in wanted.items()}


def ring_is_due(
    installed: Mapping[str, float], wanted: Mapping[str, float], changed_s: float, now_s: float
) -> bool:
    """Past a dead band and a pause.

    :param installed: of the same endpoints."""
    drifted = any(abs(wanted[name] - installed[name]) > _RING_BAND * installed[name] for name in wanted)
    return drifted and now_s - changed_s >= _RING_PAUSE_S
