# SPDX-License-Identifier: Apache-2.0
"""What overload costs to avoid: a policy led over the same load at each setting of its own knob."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from controlplane.rivals import Rival
from controlplane.simulation import run
from controlplane.simulation.lines import Sample
from controlplane.simulation.plant import Score
from controlplane.simulation.run import Terms

OVER_COSTS = (1.0, 2.0, 4.0, 6.0, 12.0, 24.0, 48.0)
"""Of Penumbra: what a second over capacity costs, in seconds of the usual group."""
TARGETS = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9)
"""Of the others: the share of its capacity of which a member is to be in use."""


@dataclass(frozen=True, slots=True)
class Point:
    setting: dict[str, float]
    """The knob's name and where it stands."""
    score: Score


def points(rival: Rival | None, terms: Terms, samples: Sequence[Sample]) -> Iterator[Point]:
    """One for each setting, and for that of ``terms``, from cheap to careful, as soon as it is known. Raises
    LineError.

    :param rival: None: Penumbra itself."""
    if rival is None:
        for cost in sorted({*OVER_COSTS, terms.shadows.over_cost}):
            at = replace(terms, shadows=replace(terms.shadows, over_cost=cost))
            yield Point({"over_cost": cost}, _score(rival, at, samples))
    else:
        for target in sorted({*TARGETS, terms.target}, reverse=True):
            yield Point({"target": target}, _score(rival, replace(terms, target=target), samples))


def _score(rival: Rival | None, terms: Terms, samples: Sequence[Sample]) -> Score:
    return run.judged(terms, [*run.led(rival, terms, samples)])
