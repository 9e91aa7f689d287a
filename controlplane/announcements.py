# SPDX-License-Identifier: Apache-2.0
"""What is news of services and live endpoints, each said once: when it begins, and when it ends."""

from __future__ import annotations

from collections.abc import Mapping

from controlplane import model
from controlplane.fleet import Fleet
from controlplane.fleet_status import Steered
from controlplane.journal import Journal
from controlplane.requests import SERVES_ON


class Announcements:
    def __init__(self, journal: Journal) -> None:
        self._journal = journal
        self.opened: frozenset[str] = frozenset()
        """Services that fail open."""
        self.penalised: frozenset[str] = frozenset()
        self._serve_on: frozenset[str] = frozenset()
        """Live endpoints that are drained and serve on."""
        self._waiting: frozenset[str] = frozenset()
        """Who fails and is not ejected."""
        self._held: frozenset[str] = frozenset()

    def common_causes(self, fleet: Fleet) -> None:
        for service, cause in fleet.common_causes().items():
            if cause:
                said = f"{service}: {cause}: a common cause, no shadows for it"
                self._journal.once(service, "common-cause", said)
            else:
                self._journal.forget(service, "common-cause")

    def penalties(self, fleet: Fleet) -> None:
        """Who got one, and who has lost it."""
        now = fleet.kept
        for name, kept in now.items():
            if name not in self.penalised:
                trouble = fleet.loads.conditions.trouble(fleet.loads.index[name])
                said = (
                    f"{name}: {trouble}: it loses {1 - kept:.0%} of its share of new flows to its neighbours"
                )
                self._journal.say(name, "penalty", said)
        for name in self.penalised - now.keys():
            self._journal.say(name, "penalty", f"{name}: it has its usual share of new flows again")
        self.penalised = frozenset(now)

    def ejections(self, fleet: Fleet) -> None:
        """Who fails and is not ejected, and who no longer has to wait."""
        now = fleet.ejections.waiting
        for name in sorted(now - self._waiting):
            said = "it fails, and is not ejected: as many as max_ejected allows are already"
            self._journal.say(name, "not-ejected", f"{name}: {said}; it still gets packets")
        for name in sorted(self._waiting - now):
            done = "no longer fails"
            if name in fleet.ejections.failing:
                done = "is ejected now, unless nobody is well"
            self._journal.say(name, "not-ejected", f"{name}: {done}")
        for name in sorted(self._held - fleet.ejections.held):
            if fleet.is_up(name, False):
                self._journal.say(name, "hold-down", f"{name}: no longer held down")
        self._waiting, self._held = now, fleet.ejections.held

    def drains(self, steered: Steered) -> None:
        """Who is drained and serves on, or no longer does."""
        now = frozenset(name for name in steered.drained if steered.serves_on(name))
        for name in sorted(now - self._serve_on):
            self._journal.say(name, "serve-on", f"{name}: drained, but {SERVES_ON}")
        for name in sorted((self._serve_on - now) & steered.drained):
            self._journal.say(name, "serve-on", f"{name}: drained, and gets no new flows any more")
        self._serve_on = now

    def fail_open(
        self,
        fleet: Fleet,
        services: Mapping[str, model.Service],
        shadows: Mapping[str, model.Shadow],
        now_s: float,
    ) -> None:
        opened = frozenset(name for name in services if fleet.fail_open.get(name))
        for name in sorted((opened ^ self.opened) & services.keys()):
            names = [endpoint.name for endpoint in services[name].endpoints]
            theirs = [s for s in shadows.values() if s.service == name]
            own = [s.name for s in theirs if fleet.lag.serves(s, now_s)]
            ready = [s.name for s in theirs if s.state is model.ShadowState.READY and not s.standby]
            too_old = [one for one in ready if one not in own]
            if name in opened:
                names += [one for one in ready if one in own]
            else:
                up = [one for one in names if fleet.is_up(one, True)]
                names = up + [one for one in own if fleet.is_up(one, False)]
            self._journal.fail_open(name, names, is_open=name in opened, too_old=too_old)
        self.opened = opened
