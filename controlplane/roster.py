# SPDX-License-Identifier: Apache-2.0
"""The shadows' records: kept in the store first, then acted on, so that a restart finds every one."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from enum import Enum
from ipaddress import IPv4Address
from typing import NamedTuple

from controlplane import census, groups, hosts, model, placement, shadows, standbys
from controlplane.addresses import Address
from controlplane.journal import Journal
from controlplane.measured_times import MeasuredTimes
from controlplane.model import RunState, Shadow, ShadowState
from controlplane.ports import Clock, DamagedRecordsError, Provisioner, Store

_WRITTEN = "written"
_ADDED = re.compile(r"^shadow \S+ \+\d+")
_SURVEY_S = 300.0
_SURVEY_AGAIN_S = 30.0
"""When something could not be asked."""
_SURVEY_UNHEALTHY_S = 1.0
"""After a shadow stopped to answer: it may be gone, and then nobody waits for it to come back."""


class Run(Enum):
    """What a run does that this process started."""

    PROVISION = "provision"
    CLEAR = "clear"
    """Before it is tried again: what a failed try left, say one that hangs, is not taken for a new one."""
    REMOVE = "remove"
    REMOVE_STRAY = "remove stray"


class _Begun(NamedTuple):
    kind: Run
    host: str


_RUN_OF = {ShadowState.PROVISIONING: Run.PROVISION, ShadowState.REMOVING: Run.REMOVE}


def _orders_otherwise(before: model.Config, after: model.Config, service: str) -> bool:
    """What made its shadows fail may be mended."""
    was, is_now = before.services.get(service), after.services.get(service)
    return before.hosts != after.hosts or (was and was.shadows) != (is_now and is_now.shadows)


class Roster:
    def __init__(
        self,
        config: model.Config,
        provisioner: Provisioner,
        store: Store,
        clock: Clock,
        journal: Journal,
        specification_of: Callable[[str, str], str] = lambda endpoint, target: "",
    ) -> None:
        """:param specification_of: an endpoint, for a target; empty: none is kept."""
        self._config = config
        self._provisioner = provisioner
        self._store = store
        self._clock = clock
        self._journal = journal
        self._specification_of = specification_of
        self._unsaved: set[str] = set()
        self._unforgotten: set[str] = set()
        """Whose records are to go, and could not yet."""
        self._runs: dict[str, _Begun] = {}
        self._untried: set[str] = set()
        """Those that go where they failed not; nothing of them is there."""
        self.hosts = hosts.Hosts()
        self.placements: list[placement.Question] = []
        """Choices of hosts since somebody took them."""
        self.endpoints: dict[str, model.Endpoint] = {}
        self.shadows: dict[str, Shadow] = {}
        self._shadows_of: dict[str, dict[str, None]] = {}
        """Parent -> names of its shadows."""
        self._times = MeasuredTimes(store, journal)
        self._records_read = False
        """Until then nothing is written over them, and nothing is started."""
        self._damaged: frozenset[str] = frozenset()
        self._own_addresses: Collection[Address] = ()
        self._adopted: set[str] = set()
        """Their lead time was not measured."""
        self._forgotten_unix_s: dict[str, float] = {}
        self._strays: dict[str, model.Found] = {}
        self.lacking_standbys: dict[str, str] = {}
        """Live endpoints that are to have one more that stands by, and why they have not."""
        self._survey_due_s = clock.now_s()
        self._surveying: tuple[float, frozenset[tuple[str, str]]] | None = None
        self.reconfigure(config)
        self._read_records()

    def reconfigure(self, config: model.Config, *, by_inventory: bool = False) -> None:
        """:param by_inventory: only hosts changed, and not by anybody who mended something."""
        before, self._config = self._config, config
        self._provisioner.know(config.hosts)
        if by_inventory and before.hosts.keys() == config.hosts.keys():
            return
        self.endpoints = {e.name: e for service in config.services.values() for e in service.endpoints}
        self._times.know(config.services)
        for shadow in list(self.shadows.values()):
            if shadow.state is ShadowState.FAILED and _orders_otherwise(before, config, shadow.service):
                self._put(replace(shadow, attempts=1))  # what failed so often is not what is tried next

    def collisions(self, config: model.Config) -> list[str]:
        """Shadows that another configuration would want, and has something else where they serve; and those
        whose copies of data it would not know how to undo."""
        wanted = {endpoint.name for service in config.services.values() for endpoint in service.endpoints}
        copies = [
            f"services.{shadow.service}.sync: shadow {shadow.name} has a copy by it, which is undone by it: "
            f"penumbra shadow remove {shadow.name} first"
            for shadow in self.shadows.values()
            if self._copy_of(shadow, self._config) != self._copy_of(shadow, config)
        ]
        return copies + [
            f"{why} is where shadow {shadow.name} serves: penumbra shadow remove {shadow.name}"
            for shadow in self._steered_to()
            if shadow.parent in wanted
            and (why := placement.unusable(shadow, config.services, (), self._own_addresses)) is not None
        ]

    @staticmethod
    def _copy_of(shadow: Shadow, config: model.Config) -> object:
        """What makes, and undoes, its copy of data."""
        service = config.services.get(shadow.service)
        endpoints = service.endpoints if service else ()
        parent = next((one for one in endpoints if one.name == shadow.parent), None)
        if service is None or service.sync is None or parent is None:
            return None
        return service.sync.driver, service.sync.primary_of(parent), service.sync.variables

    def _read_records(self) -> None:
        """What is known already stays, unless where it is was not known."""
        damaged = ""
        try:
            stored = self._store.shadows()
        except DamagedRecordsError as error:
            stored, self._damaged, damaged = error.readable, error.damaged, str(error)
        except Exception as error:  # what the data plane has must do until then
            self._journal.trouble("records", f"shadows' records can't be read, tried again: {error}")
            return
        self._records_read = True
        self._times.read_again()
        self._recall_failing()
        for name, shadow in stored.items():
            if name not in self.shadows or not self.shadows[name].host:
                self._know(shadows.not_after(shadow, self._clock.record_s()))
                self._unsaved.discard(name)
                self._journal.say(name, "adopt", f"shadow {name} adopted: {shadow.state.value}")
        if damaged:
            self._journal.trouble("records", f"{damaged}; searched for on all hosts")
        else:
            self._journal.well("records")

    def _hold_records(self) -> None:
        """What this process knows is right. A store that was lost, damaged or put back to an earlier state
        gets it again."""
        if not self._records_read:
            return
        try:
            # One that can't be written any more is said before something depends on it.
            self._store.put(_WRITTEN, str(self._clock.unix_s()))
            stored = self._store.shadows()
        except DamagedRecordsError as error:
            stored = error.readable
        except Exception as error:  # said and tried again
            self._journal.trouble("store", str(error))
            return
        lost = {name for name, shadow in self.shadows.items() if stored.get(name) != shadow} - self._unsaved
        strange = stored.keys() - self.shadows.keys()
        gone = self._unforgotten & strange
        self._unforgotten = set()
        for name in strange:
            self._forget_record(name)
        strange -= gone
        if lost or strange:
            self._unsaved |= lost
            names = ", ".join(sorted(lost | strange))
            self._journal.say(
                "store", "restore", f"records in the store were not ours, written anew: {names}"
            )
        self._times.save(lost=bool(lost or strange))
        self._say_well()

    def _say_well(self) -> None:
        if not (self._unsaved or self._unforgotten) and self._times.are_saved:
            self._journal.well("store")

    def of(self, parent: str) -> tuple[Shadow, ...]:
        """Asked of thousands of endpoints a tick, most of which have none."""
        those = map(self.shadows.__getitem__, self._shadows_of.get(parent, ()))
        return tuple(shadow for shadow in those if not shadow.standby)

    def standbys(self, parent: str) -> tuple[Shadow, ...]:
        those = map(self.shadows.__getitem__, self._shadows_of.get(parent, ()))
        return tuple(shadow for shadow in those if shadow.standby)

    def costs_per_hour(self, *, standbys_only: bool = False) -> dict[str, float]:
        """By service."""
        held: dict[str, list[Shadow]] = {}
        for shadow in self.shadows.values():
            if shadow.standby or not standbys_only:
                held.setdefault(shadow.service, []).append(shadow)
        return {name: round(placement.cost_per_hour(self._config, its), 6) for name, its in held.items()}

    def lead_time_s(self, service: str) -> float:
        return self._times.of(service, self._config.services[service].shadows)[0]

    def usual_lead_time_s(self, service: str) -> float:
        """Of those orders that were ready in the end."""
        return self._times.of(service, self._config.services[service].shadows)[1]

    def measured(self, service: str) -> int:
        return self._times.measured(service)

    # ---- what is decided ------------------------------------------------------------------

    def order(
        self,
        parent: str,
        reason: str,
        host: str | None = None,
        by_hand: bool = False,
        inputs: Mapping[str, float | str] | None = None,
        full_for: dict[tuple[str, ...], placement.Placement] | None = None,
    ) -> bool:
        """False: there is no room for it.

        :param full_for: hosts that have no slot left, as was just seen: they are not gone through again."""
        if not by_hand and self._promote(parent, reason, inputs):
            return True
        full = self._make(parent, reason, host, by_hand=by_hand, inputs=inputs, full_for=full_for)
        if full is not None:
            if not by_hand and (gives := self._make_room(parent)):
                full += f"; {gives} makes room"
            self._journal.once(parent, "hold", f"{reason}, but {full}")
            return False
        self._journal.forget(parent, "hold")
        return True

    def _make(
        self,
        parent: str,
        reason: str,
        host: str | None = None,
        *,
        by_hand: bool = False,
        standby: bool = False,
        inputs: Mapping[str, float | str] | None = None,
        full_for: dict[tuple[str, ...], placement.Placement] | None = None,
    ) -> str | None:
        """Why there is no room for one more; None: it is ordered."""
        endpoint = self.endpoints[parent]
        settings = self._config.services[endpoint.service].shadows
        allowed = settings.hosts if host is None else (host,)
        placed = (full_for or {}).get(allowed)
        if placed is None:
            placed = self._placed(endpoint, allowed, by_hand=by_hand, named=host is not None)
        if placed.full and full_for is not None:
            full_for[allowed] = placed
        avoided = self.hosts.avoided(self._clock.record_s())
        full = None if by_hand else placement.full(self._config, self.shadows.values(), endpoint, avoided)
        chosen = placed.host
        if chosen is None:
            full = full or placed.why
        if chosen is None or full is not None:
            return full
        name = placement.name(parent, self.shadows.keys() | self.endpoints.keys() | self._damaged)
        sentence = reason.replace(f"{parent} +1", f"{parent} +1 on {chosen}")
        if sentence == reason:
            sentence = f"shadow {parent} +1 on {chosen}: {reason}"
        now = self._clock.record_s()
        asked = shadows.requested(name, endpoint, chosen, settings, now, by_hand, sentence)
        self._put(replace(asked, placed=placed.why, standby=standby))
        self._journal.say(name, "place", f"shadow {name} on {chosen}: {placed.why}")
        self._journal.say(name, "standby" if standby else "add", sentence, inputs)
        return None

    def _placed(
        self,
        parent: model.Endpoint,
        allowed: Sequence[str],
        *,
        by_hand: bool,
        named: bool = False,
        again: Shadow | None = None,
    ) -> placement.Placement:
        """:param named: the host is, by hand: it is taken whatever is known of it, if it has a slot."""
        others = [one for one in self.shadows.values() if again is None or one.name != again.name]
        now_s, now_unix_s = self._clock.now_s(), self._clock.record_s()
        found = self.hosts.candidates(self._config, others, parent, allowed, now_s, now_unix_s, again)
        if named:
            found = [replace(one, avoided_s=0.0, unread="") for one in found]
        wish = hosts.wish(self._config, parent, others, by_hand=by_hand)
        answer = placement.choose(found, wish)
        self.placements.append(placement.Question(found, wish, answer))
        return answer

    def _retry(self, shadow: Shadow, verdict: groups.Verdict, inputs: Mapping[str, float | str]) -> None:
        """On another host, if there is one, by another name: what the failed try left is removed by its own.
        Who was ordered by hand stays where it was ordered."""
        parent, settings = self.endpoints[shadow.parent], self._settings(shadow)
        allowed = (shadow.host,) if shadow.by_hand else settings.hosts
        placed = self._placed(parent, allowed, by_hand=shadow.by_hand, named=shadow.by_hand, again=shadow)
        if placed.host is None:
            self._journal.once(shadow.name, "hold", f"shadow {shadow.name}: not tried again: {placed.why}")
            return
        self._journal.forget(shadow.name, "hold")
        now = self._clock.record_s()
        if placed.host == shadow.host:
            self._put(replace(groups.obeyed(shadow, verdict, now), placed=placed.why))
            self._journal.say(shadow.name, verdict.act.value, verdict.reason, inputs)
            return
        name = placement.name(parent.name, self.shadows.keys() | self.endpoints.keys() | self._damaged)
        sentence = f"shadow {name} on {placed.host}: in the place of {shadow.name}, {verdict.reason}"
        asked = shadows.requested(name, parent, placed.host, settings, now, shadow.by_hand, sentence)
        gone = shadows.entered(shadow, ShadowState.REMOVING, now, f"it is tried on {placed.host} as {name}")
        self._moved(shadow, replace(gone, attempts=0))
        self._untried.add(name)
        self._put(replace(asked, attempts=shadow.attempts, placed=placed.why, standby=shadow.standby))
        self._journal.say(name, "place", f"shadow {name} on {placed.host}: {placed.why}")
        self._journal.say(name, verdict.act.value, sentence, inputs)

    def _promote(self, parent: str, reason: str, inputs: Mapping[str, float | str] | None) -> bool:
        """One that stands by is the member that is wanted."""
        standby = standbys.best(self.standbys(parent))
        if standby is None or standby.name in self._unsaved:
            return False
        sentence = f"{reason}; {standby.name} on {standby.host} has stood by"
        self._put(standbys.promoted(standby, self._clock.record_s(), sentence))
        if standby.state is ShadowState.READY:
            self._adopted.add(standby.name)
        self._journal.say(standby.name, "add", sentence, inputs)
        self._journal.forget(parent, "hold")
        return True

    def _make_room(self, parent: str) -> str | None:
        """Who stands by for another gives its slot to who is needed now."""
        endpoint = self.endpoints[parent]
        allowed = self._config.services[endpoint.service].shadows.hosts
        idle = [one for one in self.shadows.values() if one.standby and one.parent != parent]
        there = [one for one in idle if one.host in allowed or one.service == endpoint.service]
        if leaving := next((one for one in there if one.state is ShadowState.REMOVING), None):
            return leaving.name
        if not there:
            return None
        gives = there[0]
        why = f"shadow {gives.name}: stands by no longer, {parent} needs its place"
        self._moved(gives, shadows.entered(gives, ShadowState.REMOVING, self._clock.record_s(), why))
        return gives.name

    def keep_standbys(self, is_up: Callable[[str], bool]) -> None:
        """Has as many made, made again and removed as the configuration wants.

        :param is_up: a live endpoint."""
        kept: dict[str, list[Shadow]] = {}
        for shadow in self.shadows.values():
            if standbys.are_kept(shadow):
                kept.setdefault(shadow.parent, []).append(shadow)
        now = self._clock.record_s()
        todo = standbys.upkeep(self._config.services.values(), kept, is_up, now)
        for shadow in todo.too_many:
            why = f"shadow {shadow.name} -1: fewer are to stand by"
            self._moved(shadow, shadows.entered(shadow, ShadowState.REMOVING, now, why))
        for shadow in todo.again:
            why = f"shadow {shadow.name} again: to stand by"
            self._retry(shadow, groups.Verdict(groups.Act.RETRY, why, shadow.name), {})
        lacking = {}
        full_for: dict[tuple[str, ...], placement.Placement] = {}
        for parent in todo.missing:
            most = self._config.services[self.endpoints[parent].service].shadows.max_per_endpoint
            full: str | None = f"it has {most} shadows, max_per_endpoint"
            if len(self.of(parent)) + len(self.standbys(parent)) < most:
                why = f"shadow {parent} +1: to stand by"
                full = self._make(parent, why, standby=True, full_for=full_for)
            if full is not None:
                lacking[parent] = full
                self._journal.once(parent, "standby", f"{parent}: no shadow stands by, for {full}")
        for parent in self.lacking_standbys.keys() - lacking.keys():
            self._journal.forget(parent, "standby")
        self.lacking_standbys = lacking

    def order_fairly(
        self, wanted: Iterable[tuple[Sequence[str], groups.Verdict, Mapping[str, float | str]]]
    ) -> None:
        """One after another to those that have the fewest for each live endpoint: slots may not suffice for
        all. Of several live endpoints that may get it the one with the fewest does, or the first of them."""
        full_for: dict[tuple[str, ...], placement.Placement] = {}
        left = dict(enumerate((parents, one.count, one, inputs) for parents, one, inputs in wanted))

        def held(at: int) -> float:
            parents = left[at][0]
            return sum(len(self.of(name)) for name in parents) / len(parents)

        while left:
            at = min(left, key=held)
            parents, count, verdict, inputs = left.pop(at)
            parent = min(parents, key=lambda n: (standbys.best(self.standbys(n)) is None, len(self.of(n))))
            reason = _ADDED.sub(f"shadow {parent} +1", verdict.reason, count=1)
            if self.order(parent, reason, inputs=inputs, full_for=full_for) and count > 1:
                left[at] = parents, count - 1, verdict, inputs

    def obey(self, verdict: groups.Verdict, inputs: Mapping[str, float | str]) -> None:
        """All but an ADD."""
        now = self._clock.record_s()
        if verdict.shadow is None:
            return
        shadow = self.shadows[verdict.shadow]
        if verdict.act is groups.Act.RETRY:
            self._retry(shadow, verdict, inputs)
            return
        if verdict.act is groups.Act.REMOVE and self._retires(shadow):
            after = standbys.retired(shadow, now, verdict.reason)
            self._put(after)
            self._journal.say(shadow.name, "standby", after.reason, inputs)
            return
        self._put(groups.obeyed(shadow, verdict, now))
        goes_on = verdict.act is groups.Act.EVICT and shadow.evicted
        if verdict.act is not groups.Act.EASE and not goes_on:
            self._journal.say(shadow.name, verdict.act.value, verdict.reason, inputs)

    def _retires(self, shadow: Shadow) -> bool:
        kept = sum(map(standbys.are_kept, self.standbys(shadow.parent)))
        return kept < self._settings(shadow).standby and standbys.may_retire(shadow)

    def drain(self, name: str, reason: str) -> None:
        """By command: at once, and the policy does not end it."""
        shadow = self.shadows[name]
        ready = shadow.state in (ShadowState.READY, ShadowState.DRAINING)
        state = ShadowState.DRAINING if ready else ShadowState.REMOVING
        begun = shadow.state is ShadowState.DRAINING and shadow.by_hand
        if begun or shadow.state is ShadowState.REMOVING:
            return
        sentence = f"shadow {name}: {state.value} {reason}"
        moved = shadows.entered(shadow, state, self._clock.record_s(), sentence)
        self._put(replace(moved, by_hand=True, attempts=0, standby=False))
        self._journal.say(name, state.value, sentence)

    # ---- what happens ---------------------------------------------------------------------

    def advance(self, own_addresses: Collection[Address]) -> None:
        """Takes ended runs, drops what lost its parent or can't be steered to, and saves what could not
        be saved.

        :param own_addresses: of the access point.
        """
        self._own_addresses = own_addresses
        if not self._records_read:
            self._read_records()
        self._hold_records()
        for name in sorted(self._unsaved):
            self._save(name)
        for result in self._provisioner.results():
            begun = self._runs.pop(result.shadow, None)
            if begun is not None:
                self._take_outcome(begun, result)
            kind = begun and begun.kind
            shadow = self.shadows.get(result.shadow)
            if shadow is None or kind is not _RUN_OF.get(shadow.state) or result.state is RunState.RUNNING:
                continue  # say, a provisioning run of a shadow that is to be removed by now
            result = self._believed(shadow, result)
            after = shadows.after_run(shadow, result, self._clock.record_s())
            if after is None:
                self._forget(shadow)
            else:
                self._moved(shadow, after)
        for shadow in list(self.shadows.values()):
            if shadow.parent not in self.endpoints and shadow.state is not ShadowState.REMOVING:
                why = f"its endpoint {shadow.parent} is no longer configured"
                gone = shadows.entered(shadow, ShadowState.REMOVING, self._clock.record_s(), why)
                self._moved(shadow, gone)
        self._reject_unusable()

    def _take_outcome(self, begun: _Begun, result: model.RunResult) -> None:
        """What a run tells of its host. That something was removed there does not tell that it can be made;
        whether it can, the run tells that a CLEAR is for."""
        host = begun.host
        if result.state is RunState.DONE and begun.kind is Run.PROVISION:
            if self.hosts.succeeded(host):
                self._journal.say(host, "host", f"host {host}: runs succeed again")
                self._save_failing()
        elif result.state is RunState.FAILED and not result.refused and begun.kind is not Run.CLEAR:
            now = self._clock.record_s()
            failing = self.hosts.failed(host, result.reason, now)
            pause_s = failing.until_unix_s - now
            times = "a run" if failing.runs == 1 else f"{failing.runs} runs"
            said = f"host {host}: avoided for {pause_s:.0f} s after {times} failed: {result.reason}"
            self._journal.say(host, "host", said)
            self._save_failing()

    def _save_failing(self) -> None:
        try:
            self._store.put(hosts.KEPT, self.hosts.to_keep())
        except Exception as error:  # after a restart they are tried again, and fail again
            self._journal.trouble("store", str(error))

    def _recall_failing(self) -> None:
        try:
            self.hosts.recall(self._store.get(hosts.KEPT))
        except Exception as error:  # as if none had failed
            self._journal.say("hosts", "forget", f"which hosts failed is not known: {error}")

    def _believed(self, shadow: Shadow, result: model.RunResult) -> model.RunResult:
        """A playbook may hand back anything: what can't be steered to is a failure."""
        claimed = replace(shadow, address=result.address, port=result.port)
        why = self._unusable(claimed, self._steered_to())
        if why is None or result.state is not RunState.DONE:
            return result
        reason = f"provision.yml handed back {why}, which no shadow may have"
        return model.RunResult(shadow.name, RunState.FAILED, reason=reason)

    def _reject_unusable(self) -> None:
        """Adopted ones, and those that a new configuration collides with; of two alike the older stays."""
        kept: list[Shadow] = []
        for shadow in sorted(self._steered_to(), key=lambda s: (s.requested_unix_s, s.name)):
            why = self._unusable(shadow, kept)
            if why is None:
                kept.append(shadow)
            else:
                reason = f"it serves at {why}, which no shadow may have"
                self._moved(shadow, shadows.failed(shadow, self._clock.record_s(), reason))

    def _steered_to(self) -> list[Shadow]:
        return [shadow for shadow in self.shadows.values() if shadow.state in shadows.INSTALLED]

    def _unusable(self, shadow: Shadow, others: Iterable[Shadow]) -> str | None:
        return placement.unusable(shadow, self._config.services, others, self._own_addresses)

    def take_health(self, name: str, up: bool, copy: shadows.Copy) -> None:
        shadow = self.shadows[name]
        if shadow.parent not in self.endpoints:
            return
        settings = self._config.services[shadow.service].shadows
        after = shadows.after_probe(shadow, up, settings, self._clock.record_s(), copy)
        self._moved(shadow, after)
        if after.state is ShadowState.READY and after.healthy_unix_s is None:
            if shadow.healthy_unix_s is not None:
                soon_s = self._clock.now_s() + _SURVEY_UNHEALTHY_S
                self._survey_due_s = min(self._survey_due_s, soon_s)
        elif shadow.state is ShadowState.WARMING and after.state is ShadowState.READY:
            if not shadow.attempts and name not in self._adopted:
                self._measure(after)
            self._adopted.discard(name)

    def adopt_installed(self, installed: model.Steering) -> None:
        """Shadows that the data plane has and no record names: the store was lost. They keep serving."""
        for member in installed.members.values():
            if member.role is not model.Role.SHADOW or member.name in self.shadows:
                continue
            service = self._config.services.get(member.service)
            target = service.shadows.target if service else ""
            self._put(census.of_member(member, target, self._clock.record_s()))
            self._journal.say(
                member.name, "adopt", f"shadow {member.name} adopted: installed without a record"
            )

    def survey(self, answering: Collection[str]) -> None:
        """At the start and then every few minutes: does what exists have its record, and vice versa?"""
        survey = self._provisioner.surveyed()
        if survey is not None and self._surveying is not None:
            (asked_unix_s, places), self._surveying = self._surveying, None
            if survey.unasked:
                self._survey_due_s = self._clock.now_s() + _SURVEY_AGAIN_S
                why = ", ".join(f"{host}: {reason}" for host, reason in survey.unasked.items())
                self._journal.trouble("hosts", f"what these hosts carry is not known: {why}")
            else:
                self._journal.well("hosts")
            self._compare(survey, places, answering, asked_unix_s)
        elif self._records_read and self._surveying is None and self._clock.now_s() >= self._survey_due_s:
            self._survey_due_s = self._clock.now_s() + _SURVEY_S
            asked = {(h, s.shadows.target) for s in self._config.services.values() for h in s.shadows.hosts}
            asked |= {(s.host, s.target) for s in self.shadows.values() if s.host}
            if asked:
                self._surveying = self._clock.record_s(), frozenset(asked)
                self._provisioner.survey(asked)

    def _compare(
        self,
        survey: model.Survey,
        places: Collection[tuple[str, str]],
        answering: Collection[str],
        asked_unix_s: float,
    ) -> None:
        # What was removed while hosts were asked may have been found still.
        since = {name for name, at in self._forgotten_unix_s.items() if at >= asked_unix_s}
        self._forgotten_unix_s = {name: self._forgotten_unix_s[name] for name in since}
        fresh = replace(survey, found=tuple(one for one in survey.found if one.shadow not in since))
        result = census.compare(
            self.shadows,
            fresh,
            places,
            self.endpoints,
            answering,
            asked_unix_s=asked_unix_s,
            now_unix_s=self._clock.record_s(),
        )
        for shadow in result.changed:
            before = self.shadows.get(shadow.name)
            self._put(shadow)
            if before is None:
                self._adopted.add(shadow.name)
            if before is None or before.state is not shadow.state:
                said = f"shadow {shadow.name} {shadow.state.value}: {shadow.reason}"
                self._journal.say(shadow.name, "adopt" if before is None else "fail", said)
        self._reject_unusable()
        for name in result.gone:
            self._forget(self.shadows[name])
        for stray in result.strays:
            self._strays[stray.shadow] = stray
            said = f"shadow {stray.shadow}: a second copy on {stray.host} is removed"
            self._journal.say(stray.shadow, "stray", said)
        for name in result.doubtful:
            self._journal.once(name, "doubt", f"shadow {name} answers, but its host does not list it")
        if self._damaged and not survey.unasked:
            for name in self._damaged - self.shadows.keys():
                self._forget_record(name)
            self._damaged = frozenset()
            self._journal.well("records")

    def start_runs(self, installed: Collection[str]) -> None:
        """Starts what is due. A shadow is deprovisioned only when the data plane no longer names it."""
        running = set(self._provisioner.running()) | self._runs.keys()
        for shadow in list(self.shadows.values()):
            if shadow.name in running or shadow.name in self._unsaved:
                continue
            now = self._clock.record_s()
            if shadow.name in self._strays:
                stray = self._strays.pop(shadow.name)
                self._runs[shadow.name] = _Begun(Run.REMOVE_STRAY, stray.host)
                self._start(replace(shadow, host=stray.host, target=stray.target))
            elif shadow.state is ShadowState.REMOVING and shadow.name not in installed:
                if not shadow.host:
                    continue  # where it is, a survey will tell
                settings = self._settings(shadow)
                if shadow.attempts and now - shadow.changed_unix_s < groups.pause_s(
                    settings, shadow.attempts
                ):
                    continue
                self._runs[shadow.name] = _Begun(Run.REMOVE, shadow.host)
                self._start(shadow)
            elif shadow.state in (ShadowState.REQUESTED, ShadowState.PROVISIONING):
                # PROVISIONING without a run: cleared, or cut by a restart. The name makes it safe.
                first = shadow.state is ShadowState.REQUESTED
                begun = shadows.entered(shadow, ShadowState.PROVISIONING, now, shadow.reason)
                self._put(begun if first else replace(begun, requested_unix_s=now))
                if shadow.name not in self._unsaved:
                    again = first and shadow.attempts > 0 and shadow.name not in self._untried
                    self._untried.discard(shadow.name)
                    self._runs[shadow.name] = _Begun(Run.CLEAR if again else Run.PROVISION, shadow.host)
                    self._start(shadow)
        if trouble := self._provisioner.trouble():
            self._journal.trouble("playbooks", trouble)
        else:
            self._journal.well("playbooks")

    def _start(self, shadow: Shadow) -> None:
        kind = self._runs[shadow.name].kind
        try:
            order = self._order(shadow)
            if kind is Run.PROVISION:
                kept = self._specification_of(shadow.parent, shadow.target)
                self._provisioner.provision(replace(order, specification=kept))
            else:
                self._provisioner.deprovision(order)
        except Exception as error:
            del self._runs[shadow.name]
            if kind is Run.REMOVE_STRAY:
                return  # the next survey finds it again
            result = model.RunResult(shadow.name, RunState.FAILED, reason=f"could not start: {error}")
            current = self.shadows[shadow.name]
            after = shadows.after_run(current, result, self._clock.record_s())
            if after is not None:
                self._moved(current, after)

    def _settings(self, shadow: Shadow) -> model.ShadowSettings:
        service = self._config.services.get(shadow.service)
        return service.shadows if service else model.ShadowSettings()

    def _order(self, shadow: Shadow) -> model.Order:
        service = self._config.services.get(shadow.service)
        settings = self._settings(shadow)
        unknown = IPv4Address(0)  # the parent left the configuration: removal goes by name and labels
        parent = self.endpoints.get(shadow.parent) or model.Endpoint(
            shadow.parent, shadow.service, unknown, 0
        )
        return model.Order(
            shadow=shadow.name,
            instance=self._config.instance,
            service=shadow.service,
            parent=parent,
            protocol=service.protocol if service else model.Protocol.TCP,
            probe=service.probe if service else model.Probe(),
            host=self._config.hosts.get(shadow.host) or model.Host(shadow.host),
            target=shadow.target,
            timeout_s=settings.timeout_s,
            variables=settings.variables,
            sync=service.sync if service else None,
        )

    def _moved(self, before: Shadow, after: Shadow) -> None:
        if before == after:
            return
        self._put(after)
        if before.state is not after.state or before.attempts != after.attempts:
            action = "fail" if after.state is ShadowState.FAILED else after.state.value
            self._journal.say(after.name, action, f"shadow {after.name} {after.state.value}: {after.reason}")
        coming = before.state in (ShadowState.PROVISIONING, ShadowState.WARMING)
        if coming and after.state is ShadowState.FAILED:
            tried_s = self._clock.record_s() - before.requested_unix_s
            self._times.take(before.service, tried_s, ready=False)

    def _measure(self, shadow: Shadow) -> None:
        seconds = max((shadow.ready_unix_s or 0.0) - shadow.requested_unix_s, 0.0)
        self._journal.say(shadow.name, "measure", f"shadow {shadow.name}: lead time {seconds:.1f} s")
        self._times.take(shadow.service, seconds, ready=True)

    def _forget_record(self, name: str) -> None:
        try:
            self._store.forget_shadow(name)
        except Exception as error:  # after a restart it would be removed once more
            self._unforgotten.add(name)
            self._journal.trouble("store", str(error))

    def _forget(self, shadow: Shadow) -> None:
        self._forget_record(shadow.name)
        del self.shadows[shadow.name]
        del self._shadows_of[shadow.parent][shadow.name]
        self._unsaved.discard(shadow.name)
        self._forgotten_unix_s[shadow.name] = self._clock.record_s()
        self._journal.say(shadow.name, "gone", f"shadow {shadow.name} is gone")

    def _put(self, shadow: Shadow) -> None:
        self._know(shadow)
        self._save(shadow.name)

    def _know(self, shadow: Shadow) -> None:
        before = self.shadows.get(shadow.name)
        if before is not None and before.parent != shadow.parent:
            del self._shadows_of[before.parent][before.name]
        self.shadows[shadow.name] = shadow
        self._shadows_of.setdefault(shadow.parent, {})[shadow.name] = None

    def _save(self, name: str) -> None:
        if not self._records_read:
            self._unsaved.add(name)
            return
        try:
            self._store.put_shadow(self.shadows[name])
        except Exception as error:  # nothing is started for it until it is saved
            self._unsaved.add(name)
            self._journal.trouble("store", str(error))
        else:
            self._unsaved.discard(name)
            self._unforgotten.discard(name)
            self._say_well()
