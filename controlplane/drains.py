# SPDX-License-Identifier: Apache-2.0
"""How a shadow is drained: it gets fewer and fewer new flows, then its old ones have until the deadline, then
they are given to others in slices, for all at once would come back as one storm of new ones.

Each step is kept in the shadow's record. So a drain goes on where it was after a restart, and stands still
while there are no fresh readings or automatic action is frozen. By command there is no ramp.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from controlplane.model import Shadow, ShadowSettings, ShadowState

_RAMP_S = 30.0
_RAMP_STEPS = 10
_ROUNDING_S = 0.1
_SETTLED_S = 2.0
"""A flow that was given just before the end of the ramp may not be in the reading yet."""
_SLICE_S = 0.9
"""About one slice a second."""
_SLICE, _SLICE_LEAST = 0.1, 0.01
_OF_ROOM = 0.5
"""Of the room that others have for new flows may be filled by evicted ones: clients come back at once."""


@dataclass(frozen=True, slots=True)
class Step:
    """What is next of a drain."""

    share: float
    """The part of its full share of new flows that it gets from now on."""
    evicted: float
    """The part of its old flows that others have from now on."""
    is_over: bool
    """It can be removed."""
    reason: str


def ramp_s(settings: ShadowSettings) -> float:
    """How long new flows become fewer: who gives old flows little time is in a hurry."""
    return min(_RAMP_S, settings.drain_s)


def begins_s(settings: ShadowSettings, whole_s: float) -> float:
    """A ramp can be taken back at any time, so it is a part of the idle time, or life, that it waits for."""
    return max(whole_s / 2.0, whole_s - ramp_s(settings))


def first_share(settings: ShadowSettings) -> float:
    return 1.0 if ramp_s(settings) > 0.0 else 0.0


def share(shadow: Shadow) -> float:
    """The part of its full share of new flows that a draining shadow gets."""
    return 0.0 if shadow.by_hand else shadow.share


def moves_flows(settings: ShadowSettings, shadow: Shadow, now_unix_s: float) -> bool:
    """It hands flows to others now; only while its old ones are waited for does it not."""
    if shadow.state is not ShadowState.DRAINING:
        return False
    settles = now_unix_s - shadow.changed_unix_s < _SETTLED_S
    return share(shadow) > 0.0 or settles or is_past_deadline(settings, shadow, now_unix_s)


def is_past_deadline(settings: ShadowSettings, shadow: Shadow, now_unix_s: float) -> bool:
    """Its old flows are being given to others, or should be."""
    if shadow.state is not ShadowState.DRAINING or share(shadow) > 0.0:
        return False
    return shadow.evicted > 0.0 or now_unix_s - shadow.changed_unix_s >= settings.drain_s


def next_step(
    settings: ShadowSettings,
    shadow: Shadow,
    flows: int | None,
    room: float,
    now_unix_s: float,
    *,
    is_idle: bool = False,
) -> Step | None:
    """None: not yet.

    :param flows: that it still has; None: not known.
    :param room: new flows/s that others can serve beside what is seen coming; NaN: not known.
    :param is_idle: it is given next to no new flows, so that a ramp has nothing to hand over.
    """
    since_s = now_unix_s - shadow.changed_unix_s
    if share(shadow) > 0.0 and is_idle:
        return Step(0.0, 0.0, False, "gets no new flows")
    if share(shadow) > 0.0:
        return _eased(settings, shadow, since_s)
    if flows == 0 and since_s >= _SETTLED_S and not shadow.evicted:
        return Step(0.0, 0.0, True, f"drained in {since_s:.0f} s")
    if not is_past_deadline(settings, shadow, now_unix_s) or (shadow.evicted and since_s < _SLICE_S):
        return None
    evicted = round(shadow.evicted + _slice(flows, shadow.evicted, room), 2)
    rest = "its flows are not known" if flows is None else f"{flows} flows are cut"
    if evicted >= 1.0 or flows == 0:
        return Step(0.0, 1.0, True, f"drain deadline {settings.drain_s:.0f} s, the last of {rest}")
    return Step(0.0, evicted, False, f"drain deadline {settings.drain_s:.0f} s, {evicted:.0%} of {rest}")


def _eased(settings: ShadowSettings, shadow: Shadow, since_s: float) -> Step | None:
    """One step at a time: those that could not be taken are not made up for."""
    if since_s < ramp_s(settings) / _RAMP_STEPS - _ROUNDING_S:
        return None
    left = round(max(0.0, shadow.share - 1.0 / _RAMP_STEPS), 3)
    return Step(left, 0.0, False, f"gets {left:.0%} of its share of new flows")


def _slice(flows: int | None, evicted: float, room: float) -> float:
    """The part of its flows, those included that were given away before, that may be given away now."""
    if not flows or math.isnan(room):
        return _SLICE
    in_all = flows / (1.0 - evicted)
    return min(max(_SLICE_LEAST, math.floor(100.0 * _OF_ROOM * room / in_all) / 100.0), _SLICE)
