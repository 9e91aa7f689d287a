# SPDX-License-Identifier: Apache-2.0
"""A group under Penumbra's control, on a simulated clock: foresight and policy are those that
``penumbra run`` asks; only provisioning, which takes the lead time, and flows, which end at once, are not
real.

Of several live endpoints the policy is shown one, and the others as shadows that somebody ordered by hand:
members that serve and count like all, and that it never drains.
"""

from __future__ import annotations

import math
from dataclasses import replace

from controlplane import groups, policy, shadows
from controlplane.bounds import Bounds
from controlplane.foresight import Foresight
from controlplane.groups import Act, Group, Memory, Verdict
from controlplane.model import Shadow, ShadowSettings, ShadowState
from controlplane.sizing import Size

_TICK_S = 1.0
_NAME = "live"
_LONG_S = 1e6
"""The age of who was there at first."""


class Controlled:
    def __init__(
        self,
        settings: ShadowSettings,
        capacity: float,
        lead_time_s: float,
        interval_s: float,
        initial: int,
        bounds: Bounds,
    ) -> None:
        """:param settings: costs and headroom. ``capacity``: requests/s of a member. ``interval_s``: of a
        step. ``initial`` members are ready at first, the least of ``bounds`` of them are live."""
        self._settings = replace(settings, max_per_endpoint=bounds.most - 1)
        self._capacity = capacity
        self._lead_time_s, self._interval_s = lead_time_s, interval_s
        usable = capacity * (1.0 - settings.headroom)
        self._foresight = Foresight(interval_s, lead_time_s, usable, settings, initial)
        self._memory = Memory()
        self._now_s = 0.0
        self._named = 0
        self._shadows: dict[str, Shadow] = {}
        for member in range(1, initial):
            self._add(ShadowState.READY, -_LONG_S, is_live=member < bounds.least)

    @property
    def wanted(self) -> int:
        return 1 + len(self._shadows)

    def after(self, rate: float, ready: int) -> Size:
        """Members from now on, those that drain included.

        :param rate: requests/s, the mean of the last step; NaN: no reading. ``ready``: not asked for."""
        self._now_s += self._interval_s
        self._foresight.observe(rate, self._interval_s, self._now_s)
        size = self._foresight.size or Size(self.wanted, "")
        said = ""
        tick_s = min(_TICK_S, self._interval_s)
        for tick in range(math.ceil(self._interval_s / tick_s)):
            verdicts = self._decided(rate, size, self._now_s + tick * tick_s)
            holds = all(verdict.act is Act.HOLD for verdict in verdicts)
            if holds and not any(one.state is ShadowState.DRAINING for one in self._shadows.values()):
                break
            said = said if holds else verdicts[0].reason
        return Size(self.wanted, said or size.reason, size.exact, size.p50, size.p90)

    def _decided(self, rate: float, size: Size, now_s: float) -> tuple[Verdict, ...]:
        for shadow in list(self._shadows.values()):
            if (
                shadow.state is ShadowState.PROVISIONING
                and now_s - shadow.requested_unix_s >= self._lead_time_s
            ):
                ready = shadows.entered(shadow, ShadowState.READY, now_s)
                self._shadows[shadow.name] = replace(ready, ready_unix_s=now_s)
        own = tuple(self._shadows.values())
        group = Group(
            name=_NAME,
            capacity=self._capacity,
            level=rate,
            high=rate,
            horizon_s=self._lead_time_s,
            quantile=1.0,
            fresh=not math.isnan(rate),
            live_up=True,
            shadows=own,
            up=frozenset(one.name for one in own if one.ready_unix_s is not None),
            flows={one.name: 0 for one in own if one.state is ShadowState.DRAINING},
            sized=size.wanted,
            sized_reason=size.reason,
        )
        verdicts, self._memory = policy.decide(self._settings, group, self._memory, now_s)
        for verdict in verdicts:
            self._obey(verdict, now_s)
        return verdicts

    def _obey(self, verdict: Verdict, now_s: float) -> None:
        if verdict.act is Act.ADD:
            for _ in range(verdict.count):
                self._add(ShadowState.PROVISIONING, now_s)
        elif verdict.act is Act.REMOVE and verdict.shadow is not None:
            del self._shadows[verdict.shadow]
        elif verdict.shadow is not None:
            after = groups.obeyed(self._shadows[verdict.shadow], verdict, now_s)
            self._shadows[verdict.shadow] = after

    def _add(self, state: ShadowState, now_s: float, is_live: bool = False) -> None:
        self._named += 1
        name = f"{_NAME}-s{self._named}"
        ready_s = now_s if state is ShadowState.READY else None
        self._shadows[name] = Shadow(
            name=name,
            service="",
            parent=_NAME,
            host="",
            target="",
            state=state,
            requested_unix_s=now_s,
            changed_unix_s=now_s,
            healthy_unix_s=ready_s,
            ready_unix_s=ready_s,
            by_hand=is_live,
        )
