# SPDX-License-Identifier: Apache-2.0
"""What the demo's second scene shows: its state while it goes on, a table and a verdict at the end."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from controlplane.lab.demo_view import PLAIN_EVERY_S
from controlplane.lab.stateful_report import Figures, Scene, Sight
from controlplane.lab.stateful_run import Moment
from controlplane.lab.stateful_setting import CAPACITY, CUT_S, MAX_LAG_S


class View:
    """On a terminal a table that changes, which fits into 80 x 24; else lines."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._shown_s = -math.inf
        self._before = ("", "")
        self._live: Live | None = None

    @contextmanager
    def showing(self) -> Iterator[Callable[[Moment], None]]:
        if not self._console.is_terminal or self._console.is_dumb_terminal:
            yield self._plain
            return
        with Live(console=self._console, auto_refresh=False) as self._live:
            yield self._changing

    def _changing(self, moment: Moment) -> None:
        table = Table(
            title=f"reads/s; one server does {CAPACITY:.0f}; data may be {MAX_LAG_S:g} s old: {moment.phase}",
            caption=Text(moment.said),
            title_justify="left",
            caption_justify="left",
            box=box.SIMPLE,
            show_header=False,
        )
        for name, value in cells(moment).items():
            table.add_row(name, value)
        if self._live is not None:
            self._live.update(table, refresh=True)

    def _plain(self, moment: Moment) -> None:
        state = (moment.phase, moment.said)
        news = state != self._before
        if not news and moment.at_s - self._shown_s < PLAIN_EVERY_S:
            return
        self._before, self._shown_s = state, moment.at_s
        numbers = "  ".join(f"{name} {value}" for name, value in cells(moment).items())
        told = f"  | {moment.phase}: {moment.said}" if news else ""
        self._console.print(f"  {numbers}{told}", highlight=False, soft_wrap=True)


def cells(moment: Moment) -> dict[str, str]:
    seen = moment.seen
    return {
        "time": f"{max(moment.at_s, 0.0):.0f} s",
        "offered": f"{moment.offered:.0f}",
        "forecast": "-" if seen is None or seen.forecast is None else f"{seen.forecast:.0f}",
        "spill": "-" if seen is None else f"{seen.spill:.0%}",
        "by original": f"{moment.by_original:.0f}",
        "by shadow": f"{moment.by_shadow:.0f}",
        "shadow": _shadow(seen),
        "lag": "-" if seen is None or seen.lag_s is None else f"{seen.lag_s:.1f} s",
        "oldest read": f"{moment.oldest_s:.1f} s" if moment.by_shadow else "-",
        "p99": "-" if moment.p99_ms is None else f"{moment.p99_ms:.0f} ms",
        "failed": f"{moment.failed}",
        "written": f"{moment.written}",
    }


def _shadow(seen: Sight | None) -> str:
    if seen is None or seen.state is None:
        return "none"
    return seen.state if seen.state != "ready" or seen.is_open else "ready, too old to serve"


def summary(found: Figures) -> Table:
    table = Table(title="a database's reads, and a shadow of it", title_justify="left", show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    rows = {
        "reads": f"{found.reads}",
        "failed": f"{found.failed}",
        "by the original": f"{found.by_original}",
        "by the shadow": f"{found.by_shadow}",
        "p50": _ms(found.p50_ms),
        "p99": _ms(found.p99_ms),
        "p99 before the load passed capacity": _ms(found.quiet_p99_ms),
        "seconds above capacity": f"{found.seconds_over_capacity:.1f}",
        "decision to the shadow's first read": _s(found.first_read_s),
        "  of these until its server was there": _s(found.made_s),
        "  and until its data was new enough": _s(found.copied_s),
        "first read before the load passed capacity": _s(found.before_crossing_s),
        f"oldest data read at the shadow ({MAX_LAG_S:g} s agreed)": _s(found.oldest_s),
        "  as of its look-up, connecting included": _s(found.oldest_when_looked_s),
        f"cut off for {CUT_S:g} s: last read after": _s(found.lost_after_s),
        "healed: reads again after": _s(found.back_after_s),
        "writes acknowledged": f"{found.written}",
        "of these in the original at the end": f"{found.written - found.missing}",
        "slots, publications, processes, files left": f"{len(found.left)}",
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


def verdict(scene: Scene, found: Figures, broken: Sequence[str]) -> Iterator[str]:
    """What came of it, a sentence a line."""
    if broken:
        yield from (f"Broken: {sentence}." for sentence in broken)
        return
    yield (
        f"Kept: no read failed; the shadow served {found.before_crossing_s:.1f} s before the load passed "
        f"capacity; no read began at data over {scene.max_lag_s:g} s old, through a cut of {CUT_S:g} s; "
        f"each of {found.written} acknowledged writes is in the original; nothing is left."
    )


def _ms(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f} ms"


def _s(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"
