# SPDX-License-Identifier: Apache-2.0
"""A shadow's life: requested, provisioning, warming, ready, draining, removing, gone; or failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from controlplane.model import Endpoint, RunResult, RunState, Shadow, ShadowSettings, ShadowState

INSTALLED = frozenset({ShadowState.WARMING, ShadowState.READY, ShadowState.DRAINING})
"""States in which a shadow is known to the data plane and probed."""
_COPIES = frozenset({ShadowState.WARMING, ShadowState.READY})
"""... and in which its data is to go on; who drains goes anyway."""

_UNHEALTHY = "unhealthy"
_UNHEALTHY_S = 60.0
"""A ready shadow that stays unhealthy for so long has failed."""


class Members(Protocol):
    """Who there is; the roster, in the loop."""

    @property
    def endpoints(self) -> Mapping[str, Endpoint]: ...

    @property
    def shadows(self) -> Mapping[str, Shadow]: ...

    def of(self, parent: str) -> tuple[Shadow, ...]:
        """Without those that stand by."""

    def usual_lead_time_s(self, service: str) -> float: ...


@dataclass(frozen=True, slots=True)
class Copy:
    """Of the data that a shadow serves."""

    waits: str = ""
    """Why it is not there yet; empty: it is, or none is needed."""
    limit_s: float = 0.0
    """So long it may take, as it is being made; 0: it is not seen to be."""
    lost: str = ""
    """Why it can never go on; empty: it may."""


_NO_COPY = Copy()


def entered(shadow: Shadow, state: ShadowState, now_unix_s: float, reason: str = "") -> Shadow:
    return replace(shadow, state=state, changed_unix_s=now_unix_s, reason=reason, share=1.0, evicted=0.0)


def drained(shadow: Shadow, share: float, evicted: float, now_unix_s: float, reason: str) -> Shadow:
    """Further: so much of its share of new flows it gets, and so much of its old flows others have."""
    draining = entered(shadow, ShadowState.DRAINING, now_unix_s, reason)
    return replace(draining, share=share, evicted=evicted)


def not_after(shadow: Shadow, now_unix_s: float) -> Shadow:
    """Its times, none of them in the future: the clock was ahead in an earlier boot."""
    healthy, ready = shadow.healthy_unix_s, shadow.ready_unix_s
    return replace(
        shadow,
        requested_unix_s=min(shadow.requested_unix_s, now_unix_s),
        changed_unix_s=min(shadow.changed_unix_s, now_unix_s),
        healthy_unix_s=None if healthy is None else min(healthy, now_unix_s),
        ready_unix_s=None if ready is None else min(ready, now_unix_s),
    )


def requested(
    name: str,
    parent: Endpoint,
    host: str,
    settings: ShadowSettings,
    now_unix_s: float,
    by_hand: bool,
    reason: str,
) -> Shadow:
    return Shadow(
        name=name,
        service=parent.service,
        parent=parent.name,
        host=host,
        target=settings.target,
        state=ShadowState.REQUESTED,
        requested_unix_s=now_unix_s,
        changed_unix_s=now_unix_s,
        by_hand=by_hand,
        reason=reason,
    )


def retried(shadow: Shadow, now_unix_s: float, reason: str) -> Shadow:
    """The same shadow, ordered again: its name makes that idempotent."""
    again = entered(shadow, ShadowState.REQUESTED, now_unix_s, reason)
    return replace(
        again, requested_unix_s=now_unix_s, address=None, port=None, healthy_unix_s=None, ready_unix_s=None
    )


def failed(shadow: Shadow, now_unix_s: float, reason: str) -> Shadow:
    return replace(
        entered(shadow, ShadowState.FAILED, now_unix_s, reason),
        attempts=shadow.attempts + 1,
        healthy_unix_s=None,
    )


def after_run(shadow: Shadow, result: RunResult, now_unix_s: float) -> Shadow | None:
    """What becomes of a shadow when its run has ended; None: it is gone."""
    done = result.state is RunState.DONE
    if shadow.state is ShadowState.REMOVING:
        if done:
            return None
        why = f"removal failed: {result.reason}"
        return replace(entered(shadow, shadow.state, now_unix_s, why), attempts=shadow.attempts + 1)
    if shadow.state is not ShadowState.PROVISIONING:
        return shadow
    if not done:
        return failed(shadow, now_unix_s, result.reason or "the provisioning run failed without a reason")
    if result.address is None or result.port is None:
        return failed(shadow, now_unix_s, "provision.yml ended without the shadow's address and port")
    warming = entered(shadow, ShadowState.WARMING, now_unix_s, "waits for its first healthy probes")
    return replace(warming, address=result.address, port=result.port, id=result.id)


def after_probe(
    shadow: Shadow, up: bool, settings: ShadowSettings, now_unix_s: float, copy: Copy = _NO_COPY
) -> Shadow:
    """Health moves a shadow on: warming to ready after the warm-up, to failed when it is not healthy.

    :param copy: of data: until it is there, it is not healthy either, and has more time while it is made.
        Who serves one that can never go on has failed: it is made again, or goes if nobody needs it."""
    if copy.lost and shadow.state in _COPIES:
        return failed(shadow, now_unix_s, copy.lost)
    if shadow.state is ShadowState.WARMING:
        if copy.waits:
            return _waiting(shadow, settings, now_unix_s, copy)
        if not up:
            if now_unix_s - shadow.changed_unix_s > settings.timeout_s:
                return failed(shadow, now_unix_s, f"not healthy within {settings.timeout_s:.0f} s")
            return shadow if shadow.healthy_unix_s is None else replace(shadow, healthy_unix_s=None)
        if shadow.healthy_unix_s is None:
            shadow = replace(shadow, healthy_unix_s=now_unix_s, reason="healthy, warming up")
        if now_unix_s - (shadow.healthy_unix_s or now_unix_s) >= settings.warm_up_s:
            ready = entered(shadow, ShadowState.READY, now_unix_s, "healthy and warm")
            return replace(ready, ready_unix_s=now_unix_s, attempts=0)
        return shadow
    if shadow.state is ShadowState.READY:
        if up:
            if shadow.healthy_unix_s is not None:
                return shadow
            reason = "healthy again" if shadow.reason == _UNHEALTHY else shadow.reason
            return replace(shadow, healthy_unix_s=now_unix_s, reason=reason)
        # changed_unix_s is when it went down: healthy_unix_s is None from then on.
        if shadow.healthy_unix_s is not None:
            return replace(shadow, healthy_unix_s=None, changed_unix_s=now_unix_s, reason=_UNHEALTHY)
        if now_unix_s - shadow.changed_unix_s > _UNHEALTHY_S:
            return failed(shadow, now_unix_s, f"unhealthy for {_UNHEALTHY_S:.0f} s")
    return shadow


def _waiting(shadow: Shadow, settings: ShadowSettings, now_unix_s: float, copy: Copy) -> Shadow:
    limit_s = max(copy.limit_s, settings.timeout_s)
    if now_unix_s - shadow.changed_unix_s > limit_s:
        return failed(shadow, now_unix_s, f"its data was not there within {limit_s:.0f} s: {copy.waits}")
    return replace(shadow, healthy_unix_s=None, reason=f"waits for its data: {copy.waits}")
