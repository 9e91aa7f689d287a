# SPDX-License-Identifier: Apache-2.0
"""The data plane's own events, counted and told: seldom enough to be read."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from controlplane.journal import Journal
from controlplane.model import Event, EventKind
from controlplane.ports import Sample

_TOLD_S = 60.0
"""Between two sentences of one kind about one endpoint."""

_SENTENCES = {
    EventKind.REDIRECTED: "{endpoint}: redirected to shadow, e.g. {client} to {chosen}",
    EventKind.NO_SHADOW: "{endpoint}: no shadow available, primary kept, e.g. for {client}",
    EventKind.LIMITED: "{endpoint}: limit of new flows reached, e.g. {client} goes to {chosen}",
    EventKind.ENDPOINT_DOWN: "{endpoint}: endpoint down, packets met it, e.g. from {client}",
}


class Happenings:
    """The kernel limits how many events it reports: these are counts of reports, not of packets."""

    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self._counts: dict[tuple[EventKind, str, str], int] = {}
        self._untold: dict[tuple[EventKind, str], int] = {}
        self._told_s: dict[tuple[EventKind, str], float] = {}

    def take(self, events: Sequence[Event], now_s: float) -> None:
        last: dict[tuple[EventKind, str], Event] = {}
        for event in events:
            key = event.kind, event.service, event.endpoint
            self._counts[key] = self._counts.get(key, 0) + 1
            about = event.kind, event.endpoint
            self._untold[about] = self._untold.get(about, 0) + 1
            last[about] = event
        for about, event in last.items():
            if now_s - self._told_s.get(about, float("-inf")) < _TOLD_S:
                continue
            self._told_s[about] = now_s
            said = _SENTENCES[event.kind].format(
                endpoint=event.endpoint, client=event.client, chosen=event.chosen
            )
            times = self._untold.pop(about)
            reports = "1 report" if times == 1 else f"{times} reports"
            self._journal.say(
                event.endpoint, event.kind.name.lower(), f"{said} ({reports} since the last one)"
            )

    def samples(self) -> Iterator[Sample]:
        for (kind, service, endpoint), count in self._counts.items():
            labels = {"kind": kind.name.lower(), "service": service, "endpoint": endpoint}
            yield Sample("dataplane_events_total", labels, float(count), counter=True)
