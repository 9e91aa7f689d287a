# SPDX-License-Identifier: Apache-2.0
"""Spill, slot weights and ring weights, computed forward from demand and capacity, not by feedback."""

from __future__ import annotations

import math
from collections.abc import Mapping

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
    if not up or not (warming or shadow.state is ShadowState.READY):
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


def wanted_spill(demand: float, capacity: float | None, shadows: float, live_usable: bool) -> float:
    """The share of a live endpoint's new flows that shadows should get.

    The live one fills half of its capacity, the rest is shared by what everyone has left, so that all are
    full at the same demand. Connections that live on stay where they are: hence shares begin at half, not
    at the limit, and ``demand`` is the forecast's high quantile.

    :param shadows: usable shadows, in units of one whole shadow (each has its parent's capacity).
    """
    if shadows <= 0:
        return 0.0
    if not live_usable:
        return 1.0
    if capacity is None:
        return shadows / (1.0 + shadows)
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
    endpoints: Mapping[str, Endpoint], members: Mapping[str, float] | None = None
) -> dict[str, float]:
    """Configured weights times capacities where all have one; the mean is 1, steps of 1/1000.

    :param members: of each one's group that serve new flows, itself included; None: they don't count.
    """
    if not endpoints:
        return {}
    known = all(endpoint.capacity is not None for endpoint in endpoints.values())
    raw = {n: e.weight * (e.capacity or 1.0) if known else e.weight for n, e in endpoints.items()}
    if members is not None:
        raw = {name: weight * members[name] for name, weight in raw.items()}
    mean = sum(raw.values()) / len(raw) or 1.0
    return {name: max(round(weight / mean, 3), 0.001) for name, weight in raw.items()}


def ring_is_due(
    installed: Mapping[str, float], wanted: Mapping[str, float], changed_s: float, now_s: float
) -> bool:
    """At once when members come or go, else past a dead band and a pause."""
    if installed.keys() != wanted.keys():
        return True
    drifted = any(abs(wanted[name] - installed[name]) > _RING_BAND * installed[name] for name in wanted)
    return drifted and now_s - changed_s >= _RING_PAUSE_S
