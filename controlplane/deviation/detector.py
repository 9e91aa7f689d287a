# SPDX-License-Identifier: Apache-2.0
"""Deviation of a series from its own past: one setting for all, whatever the unit, the scale and the step.

What counts most is novelty: how far a value is from the nearest one that ever came, by rank among all such
distances (conformal anomaly detection: Laxhammar and Falkman, Ann. Math. Artif. Intell. 74, 2015). It asks
for no shape of a distribution: a peak that comes daily is not new, a value in a gap is. What is outside the
range of this time of day, and how much the last values vary and jump, adds a little.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from controlplane.deviation.history import History, Look, Novelty
from controlplane.deviation.usual import Range, Usual
from controlplane.deviation.window import Window

REMARKABLE = 0.5
"""The score from which on a deviation is one."""
_DECADES = 3.2
"""That score it: of novelty, and with less weight of all other signs."""
_OTHERS = 0.12
_REST = 150
"""Readings after a deviation, for which only what is worse is news."""
_WORSE = 1.1
_SAID = 2.0
"""Decades of a sign that is told."""
VALUE_MOST = 1e300
"""Above, differences are no numbers any more."""
MEMORY = 20_000
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Score:
    score: float
    """0..1, of news: for a while after a deviation, 0 but for what is worse."""
    reason: str
    """In words; empty below REMARKABLE."""
    decades: float
    """How rare it all is, news or not."""


class Detector:
    """Of one series. Bounded: ``memory`` readings, each of which takes some 250 bytes."""

    def __init__(self, memory: int = MEMORY, day_s: float = DAY_S) -> None:
        self._usual, self._window = Usual(day_s), Window()
        self._values, self._outside, self._spread = Novelty(memory), Novelty(memory), Novelty(memory)
        self._roughness = History(memory)
        self._told, self._since = 0.0, _REST

    def after(self, at_s: float, value: float) -> Score:
        """The deviation of a reading, which is then learned. NaN: there was none, and nothing is."""
        if not math.isfinite(value):
            return Score(0.0, "", 0.0)
        value = min(max(value, -VALUE_MOST), VALUE_MOST)
        self._window.push(value)
        usual = self._usual.at(at_s)
        new = self._values.look(value)
        signs = (
            self._by_time(usual.outside(value) if usual else 0.0),
            self._by_spread(),
            self._by_roughness(),
        )
        decades = new.decades + _OTHERS * sum(signs)
        score, reason = self._news(decades), ""
        if score >= REMARKABLE:
            reason = self._reason(value, new, usual, signs)
        self._values.push(value, new)
        self._usual.push(at_s, value)
        return Score(score, reason, decades)

    def _by_time(self, outside: float) -> float:
        look = self._outside.look(abs(outside))
        decades = look.decades + self._outside.values.above(abs(outside))
        self._outside.push(abs(outside), look)
        return decades

    def _by_spread(self) -> float:
        spread = self._window.spread
        look, before = self._spread.look(spread), self._spread.values
        decades = look.decades + before.above(spread) + before.below(spread)
        self._spread.push(spread, look)
        return decades

    def _by_roughness(self) -> float:
        roughness = self._window.roughness
        decades = self._roughness.above(roughness)
        self._roughness.push(roughness)
        return decades

    def _news(self, decades: float) -> float:
        if decades <= 0 or (self._since < _REST and decades <= _WORSE * self._told):
            self._since += 1
            return 0.0
        self._told, self._since = decades, 0
        return decades / (decades + _DECADES)

    def _reason(self, value: float, new: Look, usual: Range | None, signs: tuple[float, float, float]) -> str:
        before, (by_time, by_spread, _) = self._values.values, signs
        if before.least <= value <= before.most:
            said = [f"{value:.6g} is {new.distance:.4g} from the nearest of {len(before)} before"]
        else:
            end, how = (before.most, "above") if value > before.most else (before.least, "below")
            said = [f"{value:.6g} is {new.distance:.4g} {how} all {len(before)} before, {end:.6g} the last"]
        if usual and by_time >= _SAID:
            said.append(
                f"at this time of day {usual.least:.6g} to {usual.most:.6g} came on {usual.days} days"
            )
        if by_spread >= _SAID:
            said.append(f"the last {self._window.size} vary by {self._window.spread:.4g}")
        return "; ".join(said)
