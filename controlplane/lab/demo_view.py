# SPDX-License-Identifier: Apache-2.0
"""What the demo shows: a line of state while a run goes on, tables and sentences at the end."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

from rich import box
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from controlplane.lab.demo_run import Moment
from controlplane.lab.demo_setting import FLOWS_PER_REQUEST, TITLES, Kind, Setting
from controlplane.lab.report import P99_FACTOR, RISE_FACTOR, Figures, Plan

PLAIN_EVERY_S = 5.0


class View:
    """On a terminal one table that changes, with a column per run: it fits into 80 x 24. Else lines."""

    def __init__(self, console: Console, setting: Setting) -> None:
        self._console = console
        self._plan = setting.plan
        self._moments: dict[Kind, Moment] = {}
        self._said: dict[Kind, str] = {}
        self._shown_s = -math.inf
        self._live: Live | None = None

    @contextmanager
    def showing(self) -> Iterator[Callable[[Moment], None]]:
        if not self._console.is_terminal or self._console.is_dumb_terminal:
            yield self._plain
            return
        with Live(console=self._console, auto_refresh=False) as self._live:
            yield self._changing

    def _changing(self, moment: Moment) -> None:
        self._moments[moment.kind] = moment
        if self._live is not None:
            self._live.update(self._table(), refresh=True)

    def _plain(self, moment: Moment) -> None:
        news = moment.said != self._said.get(moment.kind, "")
        if moment.kind not in self._moments:
            self._console.print(f"run: {TITLES[moment.kind]}", highlight=False)
            self._shown_s = -math.inf
        self._moments[moment.kind] = moment
        if news or moment.at_s - self._shown_s >= PLAIN_EVERY_S:
            self._shown_s = moment.at_s
            self._said[moment.kind] = moment.said
            numbers = "  ".join(f"{name} {value}" for name, value in self._cells(moment).items())
            said = f"  | {moment.said}" if news else ""
            self._console.print(f"  {numbers}{said}", highlight=False, soft_wrap=True)

    def _table(self) -> Table:
        table = Table(
            title=f"requests/s; one endpoint serves {self._plan.capacity:.0f}",
            caption=self._caption(),
            title_justify="left",
            caption_justify="left",
            expand=True,
            box=box.SIMPLE,
        )
        table.add_column("")
        cells = [self._cells(moment) for moment in self._moments.values()]
        for kind in self._moments:
            table.add_column(TITLES[kind], justify="right", ratio=1)
        for name in cells[0]:
            table.add_row(name, *(of_run[name] for of_run in cells))
        return table

    def _caption(self) -> Text:
        return Text("\n".join(f"{TITLES[kind]}: {moment.said}" for kind, moment in self._moments.items()))

    def _cells(self, moment: Moment) -> dict[str, str]:
        seen = moment.seen
        ready = sum(state == "ready" for state in seen.shadows.values()) if seen else 0
        states = Counter(seen.shadows.values()) if seen else Counter[str]()
        return {
            "time": f"{max(moment.at_s, 0.0):.0f} s",
            "offered": f"{moment.offered:.0f}",
            "demand": f"{seen.demand / FLOWS_PER_REQUEST:.0f}" if seen else "-",
            "forecast": f"{seen.forecast / FLOWS_PER_REQUEST:.0f}" if seen else "-",
            "capacity": f"{(1 + ready) * self._plan.capacity:.0f}",
            "spill": f"{seen.spill:.0%}" if seen else "-",
            "p99": "-" if math.isnan(moment.p99_ms) else f"{moment.p99_ms:.0f} ms",
            "failed": f"{moment.failed}",
            "shadows": ", ".join(f"{count} {state}" for state, count in states.items()) or "none",
        }


def summary(runs: Mapping[Kind, Figures]) -> Table:
    """The runs side by side."""
    table = Table(title="the same trace", title_justify="left")
    table.add_column("")
    for kind in runs:
        table.add_column(TITLES[kind], justify="right")
    found = list(runs.values())
    table.add_row("requests", *(f"{one.requests}" for one in found))
    table.add_row("failed", *(f"{one.failed}" for one in found))
    table.add_row("p50", *(f"{one.p50_ms:.0f} ms" for one in found))
    table.add_row("p99", *(f"{one.p99_ms:.0f} ms" for one in found))
    table.add_row("p99 while quiet", *(f"{one.quiet_p99_ms:.0f} ms" for one in found))
    table.add_row("seconds above capacity", *(f"{one.seconds_over_capacity:.1f}" for one in found))
    table.add_row("shadows used", *(f"{one.shadows}" for one in found))
    table.add_row("endpoint-seconds", *(f"{one.endpoint_seconds:.0f}" for one in found))
    table.add_row("decision to first byte", *(_seconds(one.decision_to_first_byte_s) for one in found))
    table.add_row("ready before crossing", *(_seconds(one.shadow_serving_before_crossing_s) for one in found))
    return table


def verdict(plan: Plan, penumbra: Figures | None, broken: Sequence[str]) -> Iterator[str]:
    """What came of it, a sentence a line."""
    if penumbra is None:
        yield "Without the run with Penumbra there is nothing to judge."
        return
    rise, crossing = plan.rise_s(), plan.crossing_s()
    if rise is None or crossing is None:
        yield "The load never crosses one endpoint's capacity: no shadow should be started."
    else:
        lead = penumbra.lead_time_s
        measured = "not measured: no shadow was ready" if lead is None else f"{lead:.1f} s, measured"
        yield (
            f"Lead time: {measured}. Rise from quiet to crossing: {rise:.1f} s "
            f"(at most {RISE_FACTOR:g} x that), crossing at {crossing:.1f} s."
        )
    if broken:
        yield from (f"Broken: {sentence}." for sentence in broken)
    elif crossing is None:
        yield "Kept: no request failed, and no shadow was started."
    else:
        yield (
            f"Kept: with Penumbra no request failed; no shadow in the quiet quarter; one ready and serving "
            f"{penumbra.shadow_serving_before_crossing_s:.1f} s before the load crossed capacity; p99 within "
            f"{P99_FACTOR:g} x its quiet value, and not so without it; all shadows gone at the end."
        )


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f} s"
