# SPDX-License-Identifier: Apache-2.0
"""observe -> forecast -> decide -> plan -> apply -> one sentence, every tick. The only place that waits."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_network
from typing import TypeVar

import numpy as np

from controlplane import (
    data_sync,
    fleet_status,
    groups,
    host_status,
    inventory,
    model,
    novelty,
    requests,
    shadows,
    usage_source,
)
from controlplane.addresses import Address, Network
from controlplane.announcements import Announcements
from controlplane.fleet import Fleet
from controlplane.happenings import Happenings
from controlplane.journal import Journal
from controlplane.ledger import Ledger
from controlplane.plan import plan
from controlplane.ports import (
    Clock,
    Counters,
    Dataplane,
    DataplaneError,
    InventoryError,
    InventorySource,
    LagError,
    LagSource,
    LoadSource,
    Metrics,
    ProbeError,
    Prober,
    Provisioner,
    Store,
    StoreError,
    UsageError,
)
from controlplane.record import Recorder
from controlplane.roster import Roster
from controlplane.specifications import Specifications
from controlplane.status import Status, samples
from controlplane.wanted import wanted_steering

_log = logging.getLogger("penumbra")
_T = TypeVar("_T")

_OURS = (DataplaneError, InventoryError, LagError, ProbeError, StoreError, UsageError)
"""Whose messages are made for people."""
_STALE_TICKS = 3.0
_DIRECT_S = 30.0
_KEEP_S = 60.0
_COUNT_S = 30.0
"""The flow cache is gone through so often, to tell how long flows live."""
_BY_COMMAND = frozenset({groups.Act.EVICT, groups.Act.REMOVE, groups.Act.RETRY})
"""What goes on of commands when automatic action is frozen."""


class Controller:
    """One instance's controller. All state that must survive is in the store and the data plane."""

    def __init__(
        self,
        config: model.Config,
        dataplane: Dataplane,
        prober: Prober,
        provisioner: Provisioner,
        store: Store,
        clock: Clock,
        metrics: Metrics,
        show: Callable[[str], None],
        load_config: Callable[[], model.Config] | None = None,
        recorder: Recorder | None = None,
        load_source: LoadSource | None = None,
        lag_source: LagSource | None = None,
        inventory_source: InventorySource | None = None,
    ) -> None:
        """:param show: takes every tick's status, as JSON; may raise ``OSError``.
        :param load_config: reads the configuration again; raises ``ValueError`` with every fault.
        :param recorder: takes what is read and decided.
        :param load_source: reads what members and hosts use.
        :param lag_source: reads how old the data of shadows is that serve copies.
        :param inventory_source: reads which hosts there are, beside the configuration's."""
        self._config = self._file = config
        """As it is gone by, with the inventory's hosts; and as its file has it."""
        self._dataplane = dataplane
        self._prober = prober
        self._store = store
        self._clock = clock
        self._metrics = metrics
        self._show = show
        self._load_config = load_config
        self._load_source = load_source
        self._lag_source = lag_source
        self._inventory_source = inventory_source
        self._inventory: model.Inventory | None = None
        self._inventory_problems: tuple[str, ...] = ()
        self._hosts_kept: str | None = None
        """As the store has them; None: it was not read yet."""
        self._hosts_to_keep: str | None = None
        self._used = usage_source.of_endpoints(config)
        self._hosts_used = usage_source.of_hosts(config)
        self._journal = Journal(store, clock)
        self._specifications = Specifications(config, provisioner, store, clock, self._journal)
        self._roster = Roster(config, provisioner, store, clock, self._journal, self._specifications.of)
        self._fleet = Fleet(config)
        self._news = Announcements(self._journal)
        self._happenings = Happenings(self._journal)
        self._ledger = Ledger(self._journal)
        self._requests = requests.Requests(serial="")
        self._installed = model.Steering()
        self._read_back = False
        self._counters: Counters | None = None
        self._fresh_s: float | None = None
        self._started_s = clock.now_s()
        self._seen_fresh_s: dict[str, float] = {}
        self._ring_changed_s: dict[str, float] = {}
        self._direct: frozenset[Network | Address] = frozenset()
        self._direct_due_s = 0.0
        self._interfaces: Sequence[model.Interface] = ()
        self._own_addresses: Collection[Address] = ()
        self._own_due_s = 0.0
        self._penalised_kept: frozenset[str] = frozenset()
        self._drains: frozenset[str] = frozenset()
        """Members that were drained in the last tick."""
        self._drains_s: dict[str, float] = {}
        """Service -> when another one of its was, or one no longer."""
        self._stopping = False
        self._overruns = 0
        self._steps = 0
        self._status: Status | None = None
        self._keep_due_s = clock.now_s() + _KEEP_S
        self._count_due_s = clock.now_s() + _COUNT_S
        self._recorder = recorder
        self._guarded("inventory", self._take_inventory)
        self._record(lambda recorder: recorder.configured())
        self._guarded("learned", self._recall)

    def run(self) -> None:
        """Ticks until ``stop``. Keeps the cadence; after an overrun it goes on from now.

        Woken before a tick is due, it acts on health and on ended runs: the dead, and shadows that are
        up, don't wait for the tick.
        """
        due_s = self._clock.now_s()
        while not self._stopping:
            started_s = self._clock.now_s()
            if started_s < due_s:
                self.react()
            else:
                self.tick()
                took_s = self._clock.now_s() - started_s
                due_s += self._config.tick_s
                if due_s < started_s:  # it was stopped for long: ticks are not made up for
                    due_s = started_s + self._config.tick_s
                if took_s > self._config.tick_s:
                    self._overruns += 1
                    _log.warning("tick took %.2f s of %.2f s", took_s, self._config.tick_s)
                    due_s = self._clock.now_s()
            self._clock.wait_until(due_s)

    def _record(self, take: Callable[[Recorder], None]) -> None:
        """A record that can't be written ends: with a gap it would tell nothing."""
        if self._recorder is not None:
            try:
                take(self._recorder)
            except OSError as error:
                self._recorder = None
                self._journal.trouble("record", f"it ends here: {error.strerror or error}")

    def stop(self) -> None:
        """The program goes on steering."""
        self._stopping = True

    def reconfigure(self, config: model.Config) -> None:
        """Takes another configuration from the next tick on. The instance must be the same, and nothing in
        it where a shadow serves; else ``ValueError``."""
        if config.instance != self._config.instance:
            raise ValueError(
                f"instance: {config.instance!r} is not {self._config.instance!r}, restart for that"
            )
        if collisions := self._roster.collisions(config):
            raise ValueError("; ".join(collisions))
        self._file = config
        if self._inventory_source is not None:
            self._inventory_source.read_again()
        self._take_hosts(by_inventory=False)
        self._fleet.reconfigure(config)
        self._record(lambda recorder: recorder.configured())
        self._requests = replace(self._requests, serial="")  # what is asked for holds on, and is read anew
        self._journal.say("config", "reload", "configuration reloaded")

    # ---- hosts ---------------------------------------------------------------------------

    def _take_inventory(self) -> None:
        """Hosts may come and go, or change, between ticks. Until it was read, it is as it was known last."""
        self._guarded("hosts kept", self._keep_hosts)
        if self._inventory_source is None:
            return
        self._inventory_source.watch(self._file.inventory)
        read = self._inventory_source.inventory()
        if read is not None and read != self._inventory and self._file.inventory is not None:
            self._inventory = read
            self._take_hosts(by_inventory=True)
        if why := self._inventory_source.trouble():
            known = "the last good one stays" if self._inventory else "no host of it is known"
            raise InventoryError(f"{self._file.inventory}: {why}; {known}")
        if self._inventory_problems:
            raise InventoryError("; ".join(self._inventory_problems))

    def _take_hosts(self, *, by_inventory: bool, lost: Mapping[str, model.Host] | None = None) -> None:
        """What shadows are on stays known, so that it can be removed there; and what their parents are on."""
        before = self._config.hosts
        parents = {endpoint.host for endpoint in self._roster.endpoints.values()}
        carrying = {shadow.host for shadow in self._roster.shadows.values()} | parents
        gone = {name: host for name, host in {**(lost or {}), **before}.items() if name in carrying}
        told = self._inventory if self._file.inventory is not None else None
        self._config, self._inventory_problems = inventory.resolved(self._file, told, gone)
        self._used = usage_source.of_endpoints(self._config)
        self._hosts_used = usage_source.of_hosts(self._config)
        self._roster.reconfigure(self._config, by_inventory=by_inventory)
        if not by_inventory or any(before.get(n or "") != self._config.hosts.get(n or "") for n in parents):
            self._specifications.reconfigure(self._config)
        here = {name for name, host in self._config.hosts.items() if not host.gone}
        if by_inventory and (changed := inventory.changes(before, here)):
            self._journal.say("inventory", "inventory", f"inventory: {changed}")
        left = [host for host in self._config.hosts.values() if host.gone]
        self._hosts_to_keep = inventory.to_keep(told, left) if told is not None or left else ""

    def _keep_hosts(self) -> None:
        """For the next start, and of the last one: not over what was not read yet."""
        if self._hosts_kept is None:
            text = self._store.get(inventory.KEPT)
            self._hosts_kept = text or ""
            kept, gone = inventory.parsed(text)
            self._inventory = self._inventory or kept
            if kept is not None or gone:
                self._take_hosts(by_inventory=True, lost=gone)
        if self._hosts_to_keep is not None and self._hosts_to_keep != self._hosts_kept:
            self._store.put(inventory.KEPT, self._hosts_to_keep or None)
            self._hosts_kept = self._hosts_to_keep

    def status(self) -> Status | None:
        """After the last tick; None before the first."""
        return self._status

    def tick(self) -> None:
        started_s = self._clock.now_s()
        self._guarded("requests", self._take_requests)
        self._guarded("inventory", self._take_inventory)
        self._guarded("observe", self._observe)
        self._guarded("usage", self._observe_usage)
        self._guarded("lag", self._observe_lags)
        self._guarded("counters", self._reconcile)
        self._guarded("steering", self._look_at_interfaces)
        self._guarded("events", self._take_events)
        self._guarded("shadows", lambda: self._roster.advance(self._own_addresses))
        self._guarded("survey", lambda: self._roster.survey(self._fleet.answering()))
        self._guarded("inspection", self._inspect)
        self._guarded("decide", self._decide)
        self._guarded("standbys", self._keep_standbys)
        self._guarded("apply", self._apply)
        self._guarded("provisioning", lambda: self._roster.start_runs(self._installed.members))
        self._guarded("probes", self._watch)
        self._guarded("usage sources", self._watch_usage)
        self._guarded("lag sources", self._watch_lags)
        self._guarded("learned", self._keep)
        self._journal.catch_up()
        self._guarded("say", lambda: self._publish(self._clock.now_s() - started_s))

    def react(self) -> None:
        """Takes the probes' answers and the runs that ended, and applies what they change."""
        before = dict(self._roster.shadows)
        self._guarded("events", self._take_events)
        self._guarded("shadows", lambda: self._roster.advance(self._own_addresses))
        self._guarded("survey", lambda: self._roster.survey(self._fleet.answering()))
        # Parts of their own: that these work says nothing of a tick's.
        changed = self._guarded("answers", self._take_answers)
        moved = self._guarded("lag readings", self._take_lags)
        self._guarded("shadows' health", self._take_shadow_health)
        if changed or moved or before != self._roster.shadows:
            self._guarded("apply", self._apply)
            self._guarded("probes", self._watch)

    def _guarded(self, part: str, action: Callable[[], _T]) -> _T | None:
        """One part's trouble must not stop the others: packets and health come first."""
        try:
            result = action()
        except Exception as error:  # whatever an adapter raises
            why = str(error) if isinstance(error, _OURS) else f"{type(error).__name__}: {error}"
            self._journal.trouble(part, why, with_traceback=not isinstance(error, RuntimeError))
            return None
        self._journal.well(part)
        return result

    # ---- what was learned ---------------------------------------------------------------

    def _recall(self) -> None:
        now_unix_s = self._clock.record_s()
        self._record(lambda recorder: recorder.begun(now_unix_s))
        wrong = self._fleet.recall(now_unix_s, self._learned)
        self._news.penalised = self._penalised_kept = frozenset(self._fleet.kept)
        if wrong:
            raise StoreError(f"what was learned can't be read, it is learned anew: {'; '.join(wrong)}")

    def _learned(self, key: str) -> str | None:
        text = self._store.get(key)
        if text is not None:
            self._record(lambda recorder: recorder.learned(key, text))
        return text

    def _keep(self) -> None:
        """Learns on, and keeps what came since the last time, so that a crash costs little of it."""
        for news in self._fleet.learn():
            self._journal.say(news.name, "capacity", news.reason)
        self._say_novelties()
        if self._clock.now_s() >= self._count_due_s and self._read_back:
            self._count_due_s = self._clock.now_s() + _COUNT_S
            established = self._dataplane.established_flows(self._installed.members)
            self._fleet.count_flows(established, self._installed)
        if self._news.penalised != self._penalised_kept:
            self._store.put(*self._fleet.penalties_to_keep())
            self._penalised_kept = self._news.penalised
        if self._clock.now_s() >= self._keep_due_s:
            for key, value in self._fleet.to_keep(self._clock.record_s()):
                self._store.put(key, value)
            self._keep_due_s = self._clock.now_s() + _KEEP_S

    def _say_novelties(self) -> None:
        found = self._fleet.judge_steps()
        for service, one in found:
            inputs = {"rate": one.rate, "rate_novelty": one.score, "until_unix_s": one.until_unix_s}
            self._journal.say(service, "novelty", novelty.sentence(service, one), inputs)
        self._record(lambda recorder: recorder.judged(found))

    # ---- observe ------------------------------------------------------------------------

    def _take_requests(self) -> None:
        serial = requests.serial(self._store)
        if serial == self._requests.serial:
            return
        if serial is None and self._requests.serial:
            requests.restore(self._store, self._requests)
        taken = requests.take(self._store, self._roster.endpoints, self._roster.shadows)
        for name in taken.drained ^ self._requests.drained:
            done = "drain" if name in taken.drained else "undrain"
            self._journal.say(name, done, f"{name}: {done} by command")
        if taken.frozen != self._requests.frozen:
            word = "freeze" if taken.frozen else "thaw"
            self._journal.say(self._config.instance, word, f"automatic action: {word} by command")
        self._requests = taken
        for parent, host in taken.add:
            but = f"; no new flows go to it: {self._held}" if self._held else ""
            self._roster.order(parent, f"by command{but}", host, by_hand=True)
        for name in taken.remove:
            self._roster.drain(name, "by command")
        if taken.reload and self._load_config is not None:
            try:
                self.reconfigure(self._load_config())
            except (ValueError, OSError) as error:
                self._journal.say("config", "refuse", f"reload refused, the running one stays: {error}")

    def _observe(self) -> None:
        self._installed = self._dataplane.installed()
        self._read_back = True
        self._roster.adopt_installed(self._installed)
        self._fleet.adopt_health(self._installed)
        self._fleet.take_rings({name: one.ring for name, one in self._installed.services.items()})
        self._record(lambda recorder: recorder.installed(self._installed))
        self._take_answers()
        self._guarded("hops", self._dataplane.renew_hops)
        self._guarded("addresses", self._read_own_addresses)
        before, self._counters = self._counters, self._dataplane.counters()
        after, now_unix_s = self._counters, self._clock.record_s()
        self._record(lambda recorder: recorder.observed(after, self._roster.shadows, now_unix_s))
        if self._fleet.observe_counters(before, after, self._roster, now_unix_s):
            self._fresh_s = self._clock.now_s()
            self._prober.check(self._fleet.suspects)
        self._guarded("requests told", lambda: self._observe_requests(before, after))

    def _observe_requests(self, before: Counters | None, after: Counters) -> None:
        names = self._fleet.told(self._roster)
        in_flight = self._dataplane.in_flight(names) if names else np.zeros(0, np.intp)
        self._fleet.observe_requests(names, before, after, in_flight, self._dataplane.response_times)

    def _reconcile(self) -> None:
        if self._counters is not None:
            passed = self._dataplane.interface_counts()
            self._ledger.take(self._counters, passed, self._installed, self._fleet.answered_s)

    def _read_own_addresses(self) -> None:
        if self._clock.now_s() >= self._own_due_s:
            self._own_addresses = self._dataplane.own_addresses()
            self._own_due_s = self._clock.now_s() + _DIRECT_S

    def _look_at_interfaces(self) -> None:
        self._interfaces = self._dataplane.interfaces(self._config.interfaces)
        lost = ", ".join(f"{one.name} ({one.reason})" for one in self._interfaces if not one.steered)
        if lost:
            raise DataplaneError(f"packets of {lost} are not steered: when it is there, penumbra load CONFIG")

    def _take_events(self) -> None:
        self._happenings.take(self._dataplane.events(), self._clock.now_s())

    def _take_answers(self) -> bool:
        """True if somebody's health changed, or who is ejected."""
        answers, now_s = self._prober.results(), self._clock.now_s()
        self._record(lambda recorder: recorder.answered(answers, now_s))
        changed = self._fleet.observe_health(answers, self._roster)
        self._specifications.healthy_again(name for name, _ in changed if self._is_healthy(name))
        for name, said in changed:
            self._journal.say(name, "health", said)
        is_other = self._fleet.judge_health(self._roster, now_s)
        self._news.ejections(self._fleet)
        return bool(changed) or is_other

    def _is_healthy(self, name: str) -> bool:
        health = self._fleet.health.get(name)
        return health is not None and health.up is True

    def _inspect(self) -> None:
        """Reads what may be cloned, while it is healthy."""
        if self._config.mode is not model.Mode.FORECAST_ONLY:
            self._specifications.advance(self._is_healthy)

    def _observe_usage(self) -> None:
        if self._load_source is None:
            return
        told = self._load_source.usages()
        self._roster.hosts.observe(told)
        usages = [one for one in told if usage_source.host_of(one.member) is None]
        self._record(lambda recorder: recorder.used(usages))
        for name, said in self._fleet.observe_usage(usages, self._roster):
            self._journal.say(name, "agent", said)
        if troubles := self._load_source.troubles():
            raise UsageError(_first_of(troubles))

    def _observe_lags(self) -> None:
        if self._lag_source is None or not self._fleet.lag.applies:
            return
        now_s = self._clock.now_s()
        self._fleet.lag.look(self._roster.shadows, now_s)
        self._record(lambda recorder: recorder.looked(now_s))
        self._take_lags()
        if troubles := self._lag_source.troubles():
            raise LagError(_first_of(troubles))

    def _take_lags(self) -> bool:
        """True if somebody gets new flows again, or no longer."""
        if self._lag_source is None or not self._fleet.lag.applies:
            return False
        lags, now_s = self._lag_source.lags(), self._clock.now_s()
        self._record(lambda recorder: recorder.lagged(lags, now_s))
        changed = self._fleet.observe_lags(lags, now_s)
        for name, said in changed:
            self._journal.say(name, "lag", said)
        return bool(changed)

    # ---- decide -------------------------------------------------------------------------

    @property
    def _fresh(self) -> bool:
        limit_s = _STALE_TICKS * self._config.tick_s
        return self._fresh_s is not None and self._clock.now_s() - self._fresh_s <= limit_s

    def _stale_s(self) -> dict[str, float]:
        """Live endpoints whose group's readings are too old to act on, and since when. Readings are
        counters and probes."""
        now_s = self._clock.now_s()
        for name, endpoint in self._roster.endpoints.items():
            if self._fresh and self._fleet.answers_are_fresh(endpoint, self._roster, now_s):
                self._seen_fresh_s[name] = now_s
        return {
            name: now_s - self._seen_fresh_s.setdefault(name, self._started_s)
            for name in self._roster.endpoints
            if self._seen_fresh_s.get(name) != now_s
        }

    @property
    def _held(self) -> str:
        return requests.held(self._config.mode, self._requests.frozen)

    @property
    def _automatic(self) -> bool:
        return not self._held

    def _take_shadow_health(self) -> None:
        for name, up in self._fleet.shadow_health(self._roster).items():
            if up or not self._serves_open(self._roster.shadows[name]):
                copy = self._fleet.copy_of(self._roster.shadows[name], self._clock.now_s())
                self._roster.take_health(name, up, copy)

    def _serves_open(self, shadow: model.Shadow) -> bool:
        """Where all fail and it answers clients all the same, it is the probes that fail."""
        is_open = self._fleet.fail_open.get(shadow.service, False)
        return is_open and self._fleet.answers_clients(shadow.name, self._clock.now_s())

    def _decide(self) -> None:
        self._record(lambda recorder: recorder.probed(self._roster.shadows))
        self._take_shadow_health()
        now_s, now_unix_s, fresh = self._clock.now_s(), self._clock.record_s(), self._fresh
        there, drained = dict(self._roster.shadows), self._drained
        for name in (drained ^ self._drains) & self._roster.endpoints.keys():
            self._drains_s[self._roster.endpoints[name].service] = now_s
        self._drains = drained
        lives_s = self._fleet.lives_s()
        leads_s = {service: self._roster.lead_time_s(service) for service in self._config.services}
        self._fleet.forecast(leads_s, lives_s, now_s, fresh)
        draining = [s.name for s in self._roster.shadows.values() if s.state is model.ShadowState.DRAINING]
        flows = self._dataplane.active_flows(draining) if draining else {}
        more: list[tuple[Sequence[str], groups.Verdict, dict[str, float]]] = []
        decided: list[tuple[str, tuple[groups.Verdict, ...]]] = []
        for unit in self._fleet.busy(self._roster):
            lead_s, life_s = leads_s[unit.service.name], lives_s.get(unit.service.name)
            group = self._fleet.group(unit, self._roster, flows, drained, lead_s, life_s, fresh, now_s)
            verdicts = self._fleet.decide(unit, group, now_unix_s)
            decided.append((unit.key, verdicts))
            for verdict in verdicts:
                if self._is_to_act(unit.service, group, verdict):
                    inputs = self._inputs(unit.service, group)
                    if verdict.act is groups.Act.ADD:
                        more.append((self._fleet.first_to_clone(unit, drained), verdict, inputs))
                    else:
                        self._roster.obey(verdict, inputs)
        self._roster.order_fairly(more)
        placed, self._roster.placements = self._roster.placements, []
        self._record(lambda recorder: recorder.placed(placed))
        self._news.common_causes(self._fleet)
        if self._automatic:
            self._news.penalties(self._fleet)
        lead_times = {
            name: (lead_s, self._roster.usual_lead_time_s(name), lives_s.get(name))
            for name, lead_s in leads_s.items()
        }
        self._record(
            lambda recorder: recorder.decided(
                now_s, now_unix_s, lead_times, flows, drained, fresh, there, decided
            )
        )

    def _keep_standbys(self) -> None:
        if self._automatic:
            self._roster.keep_standbys(lambda name: self._fleet.is_up(name, False))

    def _inputs(self, service: model.Service, group: groups.Group) -> dict[str, float]:
        return group.inputs(service.shadows, self._clock.record_s())

    def _is_to_act(self, service: model.Service, group: groups.Group, verdict: groups.Verdict) -> bool:
        """Else it is said, if that is news."""
        by_command = verdict.act in _BY_COMMAND and any(
            shadow.name == verdict.shadow and shadow.by_hand for shadow in group.shadows
        )
        now_unix_s = self._clock.record_s()
        if verdict.act is groups.Act.HOLD:
            if group.trouble and group.shadows_too and not group.others_too:
                self._journal.once(group.name, "common-cause", verdict.reason, self._inputs(service, group))
            elif not group.trouble:
                self._journal.forget(group.name, "common-cause")
            if verdict.wanted > len(groups.counted(group, now_unix_s)) + group.endpoints:
                self._journal.once(group.name, "hold", verdict.reason, self._inputs(service, group))
            return False
        if self._config.mode is model.Mode.FORECAST_ONLY and not by_command:
            return False
        settles_s = self._clock.now_s() - self._drains_s.get(service.name, -math.inf)
        if verdict.act is groups.Act.ADD and settles_s < groups.CONFIRM_S:
            return False  # they are drained, or no longer, one after another: this tells nothing of the last
        if not self._automatic and not by_command:
            would = f"would do: {verdict.reason}"
            self._journal.once(verdict.shadow or group.name, "advise", would, self._inputs(service, group))
            return False
        return True

    @property
    def _drained(self) -> frozenset[str]:
        """By command, or because their agents ask for it."""
        return self._requests.drained | self._fleet.asking_drain(self._clock.now_s())

    @property
    def _steered(self) -> fleet_status.Steered:
        return fleet_status.Steered(self._installed, self._drained, self._held)

    # ---- plan, apply, say ----------------------------------------------------------------

    def _apply(self) -> None:
        if not self._read_back:
            return  # what is installed is not known: nothing is built over it
        now_s = self._clock.now_s()
        steering = wanted_steering(
            self._config,
            self._installed,
            self._fleet,
            self._roster.shadows,
            self._drained,
            frozen=not self._automatic,
            stale_s=self._stale_s(),
            ring_changed_s=self._ring_changed_s,
            now_s=now_s,
            now_unix_s=self._clock.record_s(),
        )
        self._news.fail_open(self._fleet, self._config.services, self._roster.shadows, now_s)
        self._set_direct(steering, now_s)
        for step in plan(self._installed, steering):
            self._dataplane.apply(step)
            self._steps += 1
            if isinstance(step, model.SetRing):
                self._ring_changed_s[step.service] = now_s
            self._journal.step(step, self._installed, steering, self._news.opened)
        self._installed = steering
        self._news.drains(self._steered)

    def _set_direct(self, steering: model.Steering, now_s: float) -> None:
        """Before members are there: what they send to each other and to probes is theirs, not a VIP's.
        Renewed now and then, since the access point's own addresses may change."""
        members = (member.address for member in steering.members.values())
        direct = frozenset((*self._config.direct, *members))
        if direct != self._direct or now_s >= self._direct_due_s:
            self._dataplane.set_direct(set(map(ip_network, direct)))
            self._direct = direct
            self._direct_due_s = now_s + _DIRECT_S

    def _watch(self) -> None:
        targets = {}
        for service in self._config.services.values():
            for endpoint in service.endpoints:
                targets[endpoint.name] = (
                    str(endpoint.address),
                    service.probe.port or endpoint.port,
                    service.probe,
                )
        for shadow in self._roster.shadows.values():
            service_of = self._config.services.get(shadow.service)
            if shadow.state in shadows.INSTALLED and shadow.address and shadow.port and service_of:
                port = service_of.probe.port or shadow.port
                targets[shadow.name] = (str(shadow.address), port, service_of.probe)
        self._prober.watch(targets)
        if troubles := self._prober.troubles():
            raise ProbeError(_first_of(troubles))

    def _watch_usage(self) -> None:
        if self._load_source is None:
            return
        targets = {**self._used, **self._hosts_used}
        for shadow in self._roster.shadows.values():
            service = self._config.services.get(shadow.service)
            if shadow.state in shadows.INSTALLED and service is not None and service.usage is not None:
                hosts, instance = self._config.hosts, self._config.instance
                source = usage_source.of_shadow(service.usage, shadow, hosts, instance)
                if source is not None:
                    targets[shadow.name] = source
        self._load_source.watch(targets)
        self._roster.hosts.keep(targets.keys())

    def _watch_lags(self) -> None:
        if self._lag_source is None:
            return
        targets = {}
        for shadow in self._roster.shadows.values():
            service = self._config.services.get(shadow.service)
            parent = self._roster.endpoints.get(shadow.parent)
            if shadow.state in shadows.INSTALLED and service is not None and parent is not None:
                target = data_sync.target(self._config.instance, service, parent, shadow)
                if target is not None:
                    targets[shadow.name] = target
        self._lag_source.watch(targets)

    def _publish(self, took_s: float) -> None:
        self._status = Status(
            instance=self._config.instance,
            at_unix_s=self._clock.unix_s(),
            mode=self._config.mode.value,
            frozen=self._requests.frozen,
            fresh=self._fresh,
            tick_s=round(took_s, 4),
            overruns=self._overruns,
            steps=self._steps,
            troubles=self._journal.troubles(),
            interfaces=tuple(self._interfaces),
            traffic=self._ledger.traffic(),
            bypassed=self._ledger.bypassed,
            services=fleet_status.services(
                self._fleet,
                self._roster,
                self._steered,
                self._clock.now_s(),
                self._clock.record_s(),
            ),
            hosts=host_status.hosts(self._config, self._roster, self._clock.now_s(), self._clock.record_s()),
            cost_per_hour=host_status.cost_per_hour(self._config, self._roster.shadows.values()),
            budget_per_hour=self._config.budget_per_hour,
        )
        status, happened = self._status, list(self._happenings.samples())
        ledger, installed = self._ledger, self._installed
        self._metrics.publish(
            lambda: [*samples(status), *host_status.samples(status), *happened, *ledger.samples(installed)]
        )
        try:
            self._show(self._status.to_json())
            self._journal.well("status")
        except OSError as error:
            self._journal.trouble("status", f"can't be written for others to read: {error.strerror}")


def _first_of(troubles: Mapping[str, str]) -> str:
    name, why = min(troubles.items())
    return f"{name}: {why}" + (f" (and {len(troubles) - 1} more)" if len(troubles) > 1 else "")
