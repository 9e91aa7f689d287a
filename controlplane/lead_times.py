# SPDX-License-Identifier: Apache-2.0
"""How long it takes from an order until the shadow may take its full share.

What failed took longer than it was tried for, who knows how much: such times are censored, and the estimate
is Kaplan and Meier's ("Nonparametric estimation from incomplete observations", 1958). Where it never gets to
its quantile, the bound is what is allowed at all.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from controlplane.model import ShadowSettings

_KEPT = 50
_TRUSTED = 3
"""From so many measured ones on the configured lead time no longer counts."""
_QUANTILE = 0.95
_ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class LeadTimes:
    """Of one service, the latest last."""

    times: tuple[tuple[float, bool], ...] = ()
    """Seconds, and whether it was ready then; else it had failed."""

    @property
    def measured(self) -> int:
        """Those that were ready."""
        return sum(ready for _, ready in self.times)

    def with_one(self, seconds: float, ready: bool) -> LeadTimes:
        return replace(self, times=(*self.times, (round(max(seconds, 0.0), 3), ready))[-_KEPT:])

    def p95_s(self, settings: ShadowSettings) -> float:
        """Warm-up included. The configured one counts as one that was measured, until there are some."""
        times = list(self.times)
        if self.measured < _TRUSTED:
            times.append((settings.lead_time_s + settings.warm_up_s, True))
        bound_s = max(settings.timeout_s + settings.warm_up_s, max(seconds for seconds, _ in times))
        not_yet, left = 1.0, len(times)
        # At one time those that were ready come first: what failed then was still waited for.
        for seconds, ready in sorted(times, key=lambda one: (one[0], not one[1])):
            if ready:
                not_yet *= (left - 1) / left
                if not_yet <= 1.0 - _QUANTILE + _ROUNDING:
                    return seconds
            left -= 1
        return max(seconds for seconds, _ in times) if all(r for _, r in times) else bound_s

    def usual_s(self, settings: ShadowSettings) -> float:
        """The same of those that were ready: an order that takes longer is in trouble."""
        return replace(self, times=tuple(one for one in self.times if one[1])).p95_s(settings)

    def text(self) -> str:
        """For the store."""
        return json.dumps([[seconds, ready] for seconds, ready in self.times])


def parse(text: str) -> LeadTimes:
    """What ``text`` gave. Raises ``ValueError``."""
    return LeadTimes(tuple(_times(json.loads(text))))


def _times(raw: object) -> Iterable[tuple[float, bool]]:
    if not isinstance(raw, list):
        raise ValueError("lead times are a list")
    for one in raw:
        # Earlier versions kept those that were ready only.
        seconds, ready = one if isinstance(one, list) and len(one) == 2 else (one, True)
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not math.isfinite(seconds):
            raise ValueError(f"{seconds!r} is no lead time")
        yield float(seconds), bool(ready)
