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
_DECADES = 3.3
"""That score it: of novelty, and with less weight of all other signs."""
_OTHERS = 0.12
_REST = 150
"""Readings after a deviation, for which only what is worse is news."""
_WORSE = 1.1
_SAID = 2.0
"""Decades of a lesser sign that is told."""
VALUE_MOST = 1e300
"""Above, differences are no numbers any more."""
MEMORY = 12_000
"""Readings: as many as are kept of a service's past."""
DAY_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Score:
    score: float
    """0..1, of news: for a while after a deviation, 0 but for what is worse."""
    reason: str
    """In words; empty below REMARKABLE."""
    decades: float
    """How rare it all is, news or not."""


@dataclass(frozen=True, slots=True)
class _Signs:
    new: Look
    few: float
    """Decades, as all that follow. Little has no room to be far from the rest: its rank says it."""
    hour: float
    spread: float
    roughness: float

    @property
    def decades(self) -> float:
        return self.new.decades + _OTHERS * (self.few + self.hour + self.spread + self.roughness)


class Detector:
    """Of one series. Bounded: ``memory`` readings, each of which takes some 120 bytes."""

    def __init__(self, memory: int = MEMORY, day_s: float = DAY_S) -> None:
        self._usual, self._window = Usual(day_s), Window()
        self._values, self._outside, self._spread = Novelty(memory), Novelty(memory), Novelty(memory)
        self._roughness = History(memory)
        self._told, self._since = 0.0, _REST

    def after(self, at_s: float, value: float) -> Score:
        """The deviation of a reading, which is then learned. NaN: there was none, and nothing is."""
        if not (math.isfinite(value) and math.isfinite(at_s)):
            return Score(0.0, "", 0.0)
        value = min(max(value, -VALUE_MOST), VALUE_MOST)
        self._window.push(value)
        usual = self._usual.at(at_s)
        signs = _Signs(
            self._values.look(value),
            self._values.values.below(value),
            self._by_hour(usual.outside(value) if usual else 0.0),
            self._by_spread(self._window.spread),
            self._by_roughness(self._window.roughness),
        )
        score = self._news(signs.decades)
        reason = self._reason(value, signs, usual) if score >= REMARKABLE else ""
        self._values.push(value, signs.new)
        self._usual.push(at_s, value)
        return Score(score, reason, signs.decades)

    def _by_hour(self, outside: float) -> float:
        look = self._outside.look(outside)
        decades = look.decades + self._outside.values.above(outside)
        self._outside.push(outside, look)
        return decades

    def _by_spread(self, spread: float) -> float:
        look, before = self._spread.look(spread), self._spread.values
        decades = look.decades + before.above(spread) + before.below(spread)
        self._spread.push(spread, look)
        return decades

    def _by_roughness(self, roughness: float) -> float:
        decades = self._roughness.above(roughness) + self._roughness.below(roughness)
        self._roughness.push(roughness)
        return decades

    def _news(self, decades: float) -> float:
        if decades <= 0 or (self._since < _REST and decades <= _WORSE * self._told):
            self._since += 1
            return 0.0
        self._told, self._since = decades, 0
        return decades / (decades + _DECADES)

    def _reason(self, value: float, signs: _Signs, usual: Range | None) -> str:
        before, said = self._values.values, []
        if signs.new.distance:
            where = "above all" if value > before.most else "below all"
            if before.least <= value <= before.most:
                where = "from the nearest of"
            said.append(f"{signs.new.distance:.4g} {where} {len(before)} before")
        if usual and usual.outside(value):
            said.append(f"at this time {usual.least:.6g} to {usual.most:.6g} is usual, on {usual.days} days")
        for decades, what, now, history in (
            (signs.spread, "vary by", self._window.spread, self._spread.values),
            (signs.roughness, "move from one to the next by", self._window.roughness, self._roughness),
        ):
            if decades >= _SAID:
                said.append(f"the last {self._window.size} {what} {now:.4g}, usually {history.median:.4g}")
        return f"{value:.6g}: " + ("; ".join(said) or "rarely so little")
