# SPDX-License-Identifier: Apache-2.0
"""Episodes: drawn by hypothesis, played, and one that fails made small and told, to be played again."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable, Sequence

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from scapy.layers.l2 import Ether

from tests.fuzz.both import Action, Both
from tests.fuzz.steps import actions_of
from tests.packet.rig import Rig

STEPS = 400
EPISODES = st.lists(st.integers(0, 99), min_size=10, max_size=10)
"""What one's dice are seeded with: small numbers, for large ones hypothesis likes to take from sources."""


class FailureError(AssertionError):
    """A small list of actions after which program and reference differ."""

    def __init__(self, actions: Sequence[Action], error: Exception) -> None:
        self.actions = actions
        lines = [json.dumps(action) for action in actions]
        last = actions[-1]
        packet = f"\n{Ether(bytes.fromhex(str(last[1])))!r}" if last[0] == "send" else ""
        super().__init__("\n".join([f"{type(error).__name__} {error}{packet}", "after", *lines]))


def play(rig: Rig, actions: Iterable[Action]) -> Exception | None:
    """Of what kind the difference is; None: none."""
    both = Both(rig)
    try:
        for action in actions:
            both.take(action)
        both.compare_state()
    except Exception as error:  # the reference's own ones too
        return error
    return None


def small(rig: Rig, actions: list[Action], error: Exception) -> FailureError:
    """Leaves out what is not needed for it to fail in the same way (halves first, ones last)."""
    size = len(actions) // 2
    while size:
        at = 0
        while at < len(actions):
            fewer = actions[:at] + actions[at + size :]
            other = play(rig, fewer)
            if type(other) is type(error):
                actions, error = fewer, other
            else:
                at += size
        size //= 2
    return FailureError(actions, error)


def run(rig: Rig, episode: Sequence[int]) -> Both:
    """One from nothing."""
    both, taken, dice = Both(rig), list[Action](), random.Random(bytes(episode))
    try:
        for _ in range(STEPS):
            for action in actions_of(both, dice):
                taken.append(action)
                both.take(action)
        both.compare_state()
    except Exception as error:
        raise small(rig, taken, error) from None
    return both


def search(rig: Rig, frames: int, start: int, see: Callable[[Both], None] = lambda both: None) -> None:
    """Plays episodes with at least so many frames; raises a FailureError, the first one made small.

    :param start: the same number, the same episodes.
    :param see: is shown each episode that was played to its end.
    """
    sent, failure = 0, None

    @seed(start)
    @settings(
        max_examples=2 * frames // STEPS + 2,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(EPISODES)
    def agree(episode: list[int]) -> None:
        nonlocal sent, failure
        if sent >= frames or failure:
            return
        try:
            both = run(rig, episode)
        except FailureError as found:  # made small already; hypothesis would try it again
            failure = found
            return
        sent += both.frames
        see(both)

    agree()
    if failure:
        raise failure
    assert sent >= frames, f"{sent} of {frames} frames"
