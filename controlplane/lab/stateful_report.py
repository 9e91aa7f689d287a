# SPDX-License-Identifier: Apache-2.0
"""What the demo's second scene amounts to: figures, and each promise that was broken. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from controlplane.lab.database_traffic import Read, Write

HIT_S = 0.5
"""A cut in which nothing that was read was so old did not hit."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What the controller said at one moment. Seconds are Unix times throughout."""

    at_s: float
    demand: float | None
    """New flows/s, as last read."""
    forecast: float | None
    """The high quantile, a lead time ahead."""
    spill: float
    state: str | None = None
    """The shadow's; None: there is none."""
    lag_s: float | None = None
    """So old may its data be."""
    is_open: bool = False
    """New flows may go to it, as far as its data goes."""

    @property
    def serves(self) -> bool:
        return self.is_open and self.state == "ready"


@dataclass(frozen=True, slots=True)
class Scene:
    """All that was recorded."""

    live: str
    """The original's address."""
    max_lag_s: float
    capacity: float
    crossing_s: float
    """When the load passed one server's capacity."""
    reads: Sequence[Read]
    writes: Sequence[Write]
    seen: Sequence[Sight]
    offered: Sequence[tuple[float, float]]
    """Moments a constant step apart, and reads/s then."""
    cut_s: float | None = None
    healed_s: float | None = None
    found: frozenset[int] = frozenset()
    """Numbers that the original has at the end."""
    left: Sequence[str] = ()
    """What copies and shadows left behind."""


@dataclass(frozen=True, slots=True)
class Figures:
    reads: int
    failed: int
    by_original: int
    by_shadow: int
    p50_ms: float | None
    p99_ms: float | None
    quiet_p99_ms: float | None
    """Before the load passed capacity."""
    oldest_s: float | None
    """Of what the shadow's clients saw, as of when they began; None: it had none."""
    oldest_when_looked_s: float | None
    """The same as of when the server looked it up: connecting took some time."""
    lost_after_s: float | None
    """From the cut until the last read that the shadow had before it was healed."""
    back_after_s: float | None
    """From healing until the shadow had reads again."""
    written: int
    """Writes that were acknowledged."""
    missing: int
    """Of those, what the original has not."""
    seconds_over_capacity: float
    made_s: float | None
    """From the decision until the shadow's server was there, its copy begun."""
    copied_s: float | None
    """From then until its data was new enough."""
    first_read_s: float | None
    """From the decision until the shadow's first answer."""
    before_crossing_s: float | None
    """So long before the load passed capacity it came; negative: after it."""
    left: Sequence[str] = field(default_factory=tuple)


def ages_s(
    reads: Sequence[Read], writes: Sequence[Write], at_s: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """How old what each read saw was at its moment ``at_s``: how long ago the first write that it did not
    see was acknowledged. Shape (n,)."""
    done = [one for one in writes if one.error is None]
    numbers = np.array([one.number for one in done], dtype=np.int64)
    acknowledged_s = np.append(np.array([one.acknowledged_s for one in done], dtype=np.float64), np.inf)
    unseen = np.searchsorted(numbers, [one.newest for one in reads], side="right")
    return np.asarray(np.maximum(at_s - acknowledged_s[unseen], 0.0), dtype=np.float64)


def figures(scene: Scene) -> Figures:
    good = [one for one in scene.reads if one.error is None]
    shadows = sorted((one for one in good if one.served_by != scene.live), key=lambda one: one.begun_s)
    begun_s = np.array([one.begun_s for one in shadows])
    old_s = ages_s(shadows, scene.writes, begun_s)
    looked_s = ages_s(shadows, scene.writes, np.array([one.looked_s for one in shadows]))
    latency_s = np.array([one.latency_s for one in good])
    quiet = np.array([one.due_s < scene.crossing_s for one in good], dtype=np.bool_)
    written = {one.number for one in scene.writes if one.error is None}
    ordered_s = next((one.at_s for one in scene.seen if one.state is not None), None)
    there_s = next((one.at_s for one in scene.seen if one.state in ("warming", "ready")), None)
    open_s = next((one.at_s for one in scene.seen if one.serves), None)
    first_s = min((one.ended_s for one in shadows), default=None)
    cut_s, healed_s = scene.cut_s, scene.healed_s
    in_cut = [at for at in begun_s if cut_s is not None and cut_s <= at < (healed_s or np.inf)]
    after = [at for at in begun_s if healed_s is not None and at >= healed_s]
    return Figures(
        reads=len(scene.reads),
        failed=len(scene.reads) - len(good),
        by_original=len(good) - len(shadows),
        by_shadow=len(shadows),
        p50_ms=_quantile_ms(latency_s, 0.5),
        p99_ms=_quantile_ms(latency_s, 0.99),
        quiet_p99_ms=_quantile_ms(latency_s[quiet], 0.99),
        oldest_s=float(old_s.max()) if shadows else None,
        oldest_when_looked_s=float(looked_s.max()) if shadows else None,
        lost_after_s=_between(cut_s, max(in_cut, default=cut_s)),
        back_after_s=_between(healed_s, min(after, default=None)),
        written=len(written),
        missing=len(written - scene.found),
        seconds_over_capacity=_seconds_over(scene),
        made_s=_between(ordered_s, there_s),
        copied_s=_between(there_s, open_s),
        first_read_s=_between(ordered_s, first_s),
        before_crossing_s=_between(first_s, scene.crossing_s),
        left=tuple(scene.left),
    )


def broken_promises(scene: Scene, found: Figures) -> list[str]:
    """What of the scene's promise did not come true, a sentence each."""
    said = []
    if found.failed:
        said.append(f"{found.failed} reads failed")
    early = found.before_crossing_s
    if early is None:
        said.append("no read was ever served by a shadow")
    elif early <= 0:
        said.append(f"the shadow's first read came {-early:.1f} s after the load passed capacity")
    if found.oldest_s is not None and found.oldest_s > scene.max_lag_s:
        said.append(
            f"data {found.oldest_s:.1f} s old was read at the shadow, {scene.max_lag_s:g} s are agreed"
        )
    if early is not None:
        said += _broken_in_cut(scene, found)
    if found.missing:
        said.append(f"{found.missing} writes of {found.written} that were acknowledged are lost")
    if not found.written:
        said.append("nothing was written: there was nothing to lose")
    if scene.seen and scene.seen[-1].state is not None:
        said.append(f"the shadow was still there at the end ({scene.seen[-1].state})")
    if found.left:
        said.append(f"left behind: {', '.join(found.left)}")
    return said


def _broken_in_cut(scene: Scene, found: Figures) -> list[str]:
    if scene.cut_s is None or scene.healed_s is None:
        return ["the shadow never served well enough to be cut off"]
    said = []
    if found.lost_after_s is not None and found.lost_after_s > scene.max_lag_s:
        said.append(f"{found.lost_after_s:.1f} s after it was cut off the shadow still had reads")
    if found.back_after_s is None:
        said.append("the shadow had no reads again after it was healed")
    if found.oldest_s is not None and found.oldest_s < HIT_S:
        said.append("the cut made nothing older that was read: it proves nothing")
    return said


def as_document(found: Figures, broken: Sequence[str]) -> Mapping[str, object]:
    """``stateful.json``."""
    plain = {name: getattr(found, name) for name in Figures.__slots__}
    rounded = {name: round(value, 3) if isinstance(value, float) else value for name, value in plain.items()}
    return rounded | {"broken": list(broken)}


def _between(begin_s: float | None, end_s: float | None) -> float | None:
    return None if begin_s is None or end_s is None else float(end_s - begin_s)


def _quantile_ms(latency_s: npt.NDArray[np.float64], quantile: float) -> float | None:
    return float(np.quantile(latency_s, quantile)) * 1000 if latency_s.size else None


def _seconds_over(scene: Scene) -> float:
    """Seconds in which more was offered than those who may serve can do."""
    if len(scene.offered) < 2:
        return 0.0
    at_s, rate = np.array(scene.offered).T
    seen_s = np.array([one.at_s for one in scene.seen])
    serve = np.array([1 + one.serves for one in scene.seen] or [1])
    before = np.searchsorted(seen_s, at_s, side="right") - 1
    members = np.where(before >= 0, serve[np.maximum(before, 0)], 1)
    return float(((rate > members * scene.capacity) * np.gradient(at_s)).sum())
