# SPDX-License-Identifier: Apache-2.0
"""What is known of all members now: demand, forecast, health, deviation; and the policy's verdicts on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence, Set

import numpy as np
import numpy.typing as npt

from controlplane import groups, model, policy, shadows, signs
from controlplane.capacity import WINDOW_S, Capacities, News
from controlplane.fitness import Fitness
from controlplane.health import Ejections, MemberHealth, Outages, ejections
from controlplane.keeping import PENALTIES, Keeping
from controlplane.lag import Gates
from controlplane.loads import Loads, with_capacities
from controlplane.novelty import Novel, Novelties
from controlplane.observe import Counted, Rates, Rows, growth, rates, work
from controlplane.outlook import Outlook
from controlplane.penalties import Penalties
from controlplane.pool import Unit, is_pool
from controlplane.ports import Counters
from controlplane.responses import Histograms, Responses
from controlplane.shadows import Members
from controlplane.troubles import Evidence, Troubles, least_kept
from controlplane.turnover import Turnover, earlier_s

Floats = npt.NDArray[np.float64]

_LEARNED_STEPS = 100
"""Of the past, that are learned from again in one tick: 50 ms."""
_CONCLUDED = 16
"""Services whose ended step is learned from before a tick decides: 6 ms. The steps of all end together."""
_CONCLUDED_SHARE = 1.25
"""Of the steps that end in a mean tick."""
_GAP_TICKS = 3.0
"""Readings further apart are stale."""
_ANSWERED_S = 10.0
_SERVING = frozenset({model.ShadowState.READY, model.ShadowState.DRAINING})
_UNKNOWN = MemberHealth()


class Fleet:
    def __init__(self, config: model.Config) -> None:
        self.views: dict[str, Outlook] = {}
        self._ended: dict[str, None] = {}
        """Services whose step has ended and is not learned from yet, the oldest first."""
        self._unsettled: set[str] = set()
        """Live endpoints that are not known to be up, or came back and may still warm up."""
        self.health: dict[str, MemberHealth] = {}
        self._unwell: set[str] = set()
        """Members that are down, or held down."""
        self.ejections = Ejections()
        self._clients_s: dict[str, float] = {}
        """Shadow -> when it last answered a client's SYN."""
        self.suspects: Sequence[str] = ()
        """Members most of whose new flows failed in the last tick."""
        self.use = Fitness()
        self.lag = Gates()
        """Of shadows that serve copies of data."""
        self._set_up(config)
        self._memories: dict[str, groups.Memory] = {}
        self.verdicts: dict[str, groups.Verdict] = {}
        """The last ones, in short."""
        self.shadow_rates: dict[str, tuple[float, float]] = {}
        """Shadow -> (flows per second, RTT in us) of the last reading."""
        self._troubles = Troubles()
        self._answered: dict[str, str] = {}
        """Units that are asked about until they have been normal for long: key -> one of their endpoints."""
        self.responses = Responses()
        self.fail_open: dict[str, bool] = {}
        self._unread = True
        self._keeping = Keeping()
        self._standbys: set[str] = set()
        """Shadows that stood by at the last reading."""

    def reconfigure(self, config: model.Config) -> None:
        views, loads, turnover, capacities = self.views, self.loads, self._turnover, self.capacities
        penalised = self.penalties
        novelties = self.novelties
        self._set_up(config)
        self.capacities.resume(capacities)
        self._apply_capacities()
        self.loads.resume(loads)
        self._turnover.resume(turnover)
        self.penalties.resume(penalised)
        for name in self.views.keys() & views.keys():
            self.views[name].resume(views[name])
        self.novelties.resume(novelties)

    def _set_up(self, config: model.Config) -> None:
        self._tick_s = config.tick_s
        self._set_up_views(config.services.values())
        self.novelties = Novelties({name: one.step_s for name, one in self.views.items() if one.foresight})
        self._turnover = Turnover(config.services)
        self.penalties = Penalties(self.loads.names)
        self._rows = Rows(self.loads.names)
        self.capacities = _capacities(config)
        self._applied = self.capacities.used.copy()
        self._unsettled |= {n for n in self.loads.names if self.health.get(n, _UNKNOWN).up is not True}
        self._probes = {
            endpoint.name: service.probe
            for service in config.services.values()
            for endpoint in service.endpoints
        }
        self.use.set_up(config.services.values())
        self.lag.set_up(config.services.values(), config.tick_s)
        self._ended = {name: None for name in self._ended if name in self.views}
        ending = sum(config.tick_s / view.step_s for view in self.views.values())
        self._later = max(0, math.ceil(_CONCLUDED_SHARE * ending) - _CONCLUDED)
        """Of the ended steps, that are learned from when the tick's work is done: so none waits for ever."""

    def _set_up_views(self, services: Collection[model.Service]) -> None:
        self.views = {service.name: Outlook(service, self._tick_s) for service in services}
        self.loads = Loads(services, [view.method for view in self.views.values()])
        is_tcp = [one.protocol is model.Protocol.TCP for one in services for _ in one.endpoints]
        self._is_tcp = np.array(is_tcp, np.bool_)

    def take_rings(self, rings: Mapping[str, Mapping[str, float]]) -> None:
        """Service -> the weights that new flows go by until the next reading; of those that changed."""
        self.loads.take_rings(rings)

    # ---- readings ---------------------------------------------------------------------------

    def adopt_health(self, installed: model.Steering) -> None:
        """Before the first probes, health is what the data plane was last told."""
        for member in installed.members.values():
            self.adopt(member.name, down=member.down)

    def adopt(self, name: str, *, down: bool) -> None:
        if name not in self.health:
            self.health[name] = MemberHealth(up=not down, outages=Outages(was_up=not down))
            if down:
                self._unwell.add(name)
            else:
                self._unsettled.discard(name)

    def observe_health(self, answers: Sequence[model.Health], roster: Members) -> list[tuple[str, str]]:
        """Takes probes' answers. Whose health changed, and a sentence."""
        changed = []
        for answer in answers:
            name = answer.member
            probe = self._probes.get(name) or self._shadows_probe(name, roster)
            if probe is None:
                continue
            before = self.health.get(name, _UNKNOWN)
            after = self.health[name] = before.observe(answer, probe)
            if after.up is before.up:
                continue
            self._unwell.add(name)
            if after.up and name in roster.shadows and not roster.shadows[name].standby:
                self.loads.help_came(roster.shadows[name].parent)
            if after.up and after.back_s is None:
                self._unsettled.discard(name)
            elif name in self._probes:
                self._unsettled.add(name)
            if after.up:
                said = f"{name} is healthy after {after.successes} good probes"
                if held_s := after.held_s(answer.at_s):
                    times = f"it went down {after.outages.flaps} times"
                    said += f"; {times}, and is held down for {held_s:.0f} s unless it is needed"
            else:
                said = f"{name} is unhealthy after {after.failures} failed probes: {after.reason}"
            changed.append((name, said))
        return changed

    def judge_health(self, roster: Members, now_s: float) -> bool:
        """Who is ejected. True if that has changed."""
        before = self.ejections
        health = self.health
        self._unwell = {
            n
            for n in self._unwell
            if n in health and (health[n].up is False or health[n].held_s(now_s) > 0.0)
        }
        lives = self.loads.index
        services = {self.loads.service(lives[name]).name for name in self._unwell & lives.keys()}
        services |= {roster.shadows[name].service for name in self._unwell & roster.shadows.keys()}
        found = []
        for name in services & self.views.keys():
            view = self.views[name]
            members = {one: health.get(one, _UNKNOWN) for one in view.names}
            for shadow in roster.shadows.values():
                known = health.get(shadow.name)
                if shadow.service == name and known is not None and known.outages.was_up:
                    members[shadow.name] = known
            absent = self.use.usages.down
            found.append(ejections(members, absent, view.service.probe.max_ejected, now_s))
        parts = zip(*found, strict=True) if found else ((), (), ())
        self.ejections = Ejections(*(frozenset().union(*part) for part in parts))
        return self.ejections != before

    def _shadows_probe(self, name: str, roster: Members) -> model.Probe | None:
        shadow = roster.shadows.get(name)
        view = self.views.get(shadow.service) if shadow else None
        return view.service.probe if view else None

    def observe_counters(
        self, before: Counters | None, after: Counters, roster: Members, now_unix_s: float
    ) -> bool:
        """True if there are rates to go by."""
        self.use.count(after)
        self._watch_standbys(roster)
        names = [name for name, s in roster.shadows.items() if s.state in shadows.INSTALLED]
        found = rates(before, after, Rows(names))
        self._unread = found is None
        if found is None:
            return False
        self.shadow_rates = {n: (float(found.flows[i]), float(found.rtt_us[i])) for i, n in enumerate(names)}
        self._troubles.take(names, found.counted, found.over_s)
        self._clients_s = {name: self._clients_s[name] for name in names if name in self._clients_s}
        self._clients_s |= {names[i]: after.at_s for i in np.flatnonzero(found.counted.rtt_count).tolist()}
        reading = rates(before, after, self._rows)
        self.suspects = ()
        if reading is not None:
            both = (found.counted, reading.counted)
            new = sum(float(np.nansum(one.flows) - np.nansum(one.unremembered)) for one in both)
            self._suspect(reading.counted, names, found.counted, roster, new / reading.over_s)
            demand = self.loads.take(reading, self._down(), after.at_s, now_unix_s, new / reading.over_s)
            self._turnover.take(demand, reading.over_s)
            least = least_kept(
                self.loads,
                lambda name: self.views[name].units,
                roster,
                lambda name, default: self._helps(name, default, roster, after.at_s),
                self.kept,
            )
            self.penalties.take(self.loads.conditions, least, reading.over_s, after.at_s)
            self._foresee(demand, reading.over_s, now_unix_s)
            self._learn_capacities(reading, before, after, roster)
        return True

    def _watch_standbys(self, roster: Members) -> None:
        """One that stands by no longer has come to help."""
        before, self._standbys = self._standbys, {n for n, one in roster.shadows.items() if one.standby}
        for name in before & roster.shadows.keys() - self._standbys:
            if self.is_up(name, False):
                self.loads.help_came(roster.shadows[name].parent)

    def _helps(self, name: str, default: bool, roster: Members, now_s: float) -> bool:
        return self.serves(name, roster, now_s) if name in roster.shadows else self.is_up(name, default)

    def _suspect(
        self, lives: Counted, names: Sequence[str], own: Counted, roster: Members, new_flows: float
    ) -> None:
        """:param names: of shadows, of which ``own`` tells."""
        loads, by = self.loads, {name: view.service.protocol for name, view in self.views.items()}
        them = [
            loads.names[i] for i in np.flatnonzero(signs.failing(lives, self._is_tcp, new_flows)).tolist()
        ]
        protocols = [by.get(roster.shadows[name].service) for name in names]
        is_tcp = np.array([one is model.Protocol.TCP for one in protocols], np.bool_)
        them += [names[i] for i in np.flatnonzero(signs.failing(own, is_tcp, new_flows)).tolist()]
        self.suspects = [name for name in them if name not in self._unwell]

    def _learn_capacities(
        self, reading: Rates, before: Counters | None, after: Counters, roster: Members
    ) -> None:
        told, answered = self.capacities.told, None
        by_shadows = np.zeros(len(told))
        if told.any() and before is not None and before.requests_read and after.requests_read:
            answered = growth(before, after, self._rows, ("answered",))
            index = self.loads.index
            there = [
                one
                for one in roster.shadows.values()
                if one.state in shadows.INSTALLED and one.parent in index
            ]
            theirs = growth(before, after, Rows([one.name for one in there]), ("answered",))
            if theirs is not None:
                np.add.at(by_shadows, [index[one.parent] for one in there], np.nan_to_num(theirs["answered"]))
        nothing = np.full(len(told), np.nan)
        done = work(reading, nothing if answered is None else answered["answered"], by_shadows, told)
        common = self._troubles.common(self.loads, roster)
        self.capacities.take(done, self._telling(after.at_s), common)

    def _telling(self, now_s: float) -> npt.NDArray[np.bool_]:
        """(groups,) whose work tells of capacity: healthy and warm."""
        loads, telling = self.loads, np.ones(len(self.loads.names), dtype=np.bool_)
        for name in list(self._unsettled):
            health, i = self.health.get(name, _UNKNOWN), loads.index.get(name)
            if i is None:
                self._unsettled.discard(name)
            elif health.up is not True:
                telling[i] = False
            elif health.back_s is not None:
                since_s = now_s - health.back_s
                telling[i] = since_s > loads.service(i).shadows.warm_up_s + WINDOW_S
                if telling[i]:
                    self._unsettled.discard(name)
        for name in self.use.usages.down & loads.index.keys():
            telling[loads.index[name]] = False
        return telling

    def _foresee(self, demand: Floats, over_s: float, now_unix_s: float) -> None:
        """:param demand: (services,) flows/s."""
        teaches = self.loads.conditions.teaches.tolist()
        for (name, view), one, is_told in zip(self.views.items(), demand.tolist(), teaches, strict=True):
            if view.foresight is not None and view.foresight.gather(one, over_s, now_unix_s, is_told):
                self._ended.setdefault(name)
                self.novelties.await_turn((name,))
        self._conclude(_CONCLUDED)

    def _conclude(self, services: int) -> None:
        for name in list(self._ended)[:services]:
            del self._ended[name]
            foresight = self.views[name].foresight
            if foresight is not None:
                foresight.conclude()

    def count_flows(self, established: Mapping[str, int], installed: model.Steering) -> None:
        """:param established: of each member, now."""
        flows: dict[str, int] = {}
        for name, count in established.items():
            service = installed.members[name].service
            flows[service] = flows.get(service, 0) + count
        self._turnover.count(flows)

    def lives_s(self) -> dict[str, float]:
        """Service -> mean life of its flows; absent: not known."""
        return self._turnover.lives_s()

    def learn(self) -> list[News]:
        """What can wait until what was decided is applied: ended steps of many services, the past, and
        capacities. What is new of these."""
        self._conclude(self._later)
        behind = [v.foresight for v in self.views.values() if v.foresight and v.foresight.is_learning]
        for foresight in behind[:_LEARNED_STEPS]:
            foresight.learn_again(max(1, _LEARNED_STEPS // len(behind)))
        news = self.capacities.learn()
        self._apply_capacities()
        return news

    def judge_steps(self) -> list[tuple[str, Novel]]:
        """Of ended steps, those whose rate is new to their service; also what can wait."""
        pasts = {name: view.foresight.past for name, view in self.views.items() if view.foresight}
        return list(self.novelties.judge(pasts))

    def _apply_capacities(self) -> None:
        """What is known of them now is gone by from here on."""
        used, loads, regroups = self.capacities.used, self.loads, False
        changed = ~((used == self._applied) | (np.isnan(used) & np.isnan(self._applied)))
        self._applied = used.copy()
        for configured in loads.services_of(changed):
            view = self.views[configured.name]
            service = with_capacities(configured, used[loads.groups(configured.name)])
            view.use(service)
            loads.use(service)
            if not self._are_given(configured.name):
                regroups |= is_pool(service, was_one=view.is_pool) != view.is_pool
        if regroups:
            self._regroup()

    def _regroup(self) -> None:
        """Capacities that are known now make a pool, or unmake one: all that was learned stays."""
        views, loads = self.views, self.loads
        self._set_up_views([self._pooled_by(view.service) for view in views.values()])
        self.loads.resume(loads)
        for name, view in self.views.items():
            view.use(views[name].service)
            self.loads.use(view.service)
            view.resume(views[name])

    def _pooled_by(self, service: model.Service) -> model.Service:
        """With the capacities that tell whether it is a pool: those that are given, if all are, for who is
        ill serves less and is one of it all the same."""
        if not self._are_given(service.name):
            return service
        return with_capacities(service, self.capacities.given[self.loads.groups(service.name)])

    def _are_given(self, service: str) -> bool:
        """The capacities of all its endpoints."""
        return not np.isnan(self.capacities.given[self.loads.groups(service)]).any()

    def told(self, roster: Members) -> tuple[str, ...]:
        """Members whose services have their requests told."""
        names: list[str] = []
        for service, view in self.views.items():
            if view.service.requests is model.Requests.OFF:
                continue
            names += view.names
            names += (
                name
                for name, shadow in roster.shadows.items()
                if shadow.service == service and shadow.state in shadows.INSTALLED
            )
        return tuple(names)

    def observe_requests(
        self,
        names: Sequence[str],
        before: Counters | None,
        after: Counters,
        in_flight: npt.NDArray[np.intp],
        times: Callable[[Sequence[str]], Histograms],
    ) -> None:
        """:param times: reads the histograms of these members; asked now and then."""
        if names and self.responses.due(after.at_s):
            self.responses.take_times(names, times(names), after)
        self.responses.observe(names, before, after, in_flight)

    def observe_usage(self, usages: Sequence[model.Usage], roster: Members) -> list[tuple[str, str]]:
        """Takes readings of what members use. Whose agent asks for something else now, and a sentence."""
        return self.use.observe(usages, roster, self.loads.index, self.capacities)

    def observe_lags(self, lags: Sequence[model.Lag], now_s: float) -> list[tuple[str, str]]:
        """Takes readings of how old shadows' data is. Who gets new flows again, or no longer, and a
        sentence."""
        return self.lag.take(lags, now_s)

    def fitness(self, endpoints: Mapping[str, model.Endpoint], now_s: float) -> Mapping[str, float] | None:
        return self.use.of(endpoints, now_s)

    def awaits_usage(self, endpoints: Collection[str], now_s: float) -> bool:
        return self.use.is_awaited(endpoints, now_s)

    def shadow_fitness(self, shadow: model.Shadow, now_s: float) -> float:
        return self.use.of_shadow(shadow, self.responses.mean_us, now_s)

    def asking_drain(self, now_s: float) -> frozenset[str]:
        """Members whose agents ask for no new flows."""
        return self.use.usages.drained(now_s)

    def forecast(
        self, leads_s: Mapping[str, float], lives_s: Mapping[str, float], now_s: float, fresh: bool
    ) -> None:
        """A prediction per service; without fresh readings the last one stays.

        :param lives_s: of flows. Where they live long, what is coming is looked for further ahead; what pays
            in the long run is reckoned with lead times alone, for that had to be learned anew."""
        if not fresh or self._unread:
            return
        horizons_s = [leads_s[name] + earlier_s(lives_s.get(name)) for name in self.views]
        self.loads.forecast(horizons_s, now_s)
        for name, view in self.views.items():
            view.reckon(leads_s[name])

    # ---- what was learned -------------------------------------------------------------------

    def recall(self, now_unix_s: float, get: Callable[[str], str | None]) -> list[str]:
        """Learns from what was kept of the past. What is wrong with it.

        :param get: of the store."""
        wrong = self._keeping.recall_capacities(self.views, self.capacities, get)
        wrong += self._keeping.recall_penalties(self.penalties, get)
        self._apply_capacities()
        wrong += self._keeping.recall(self.views, self.loads, now_unix_s, get)
        self.novelties.await_turn([name for name, view in self.views.items() if view.foresight is not None])
        return wrong

    def to_keep(self, now_unix_s: float) -> Iterator[tuple[str, str | None]]:
        """Keys and values for the store of what came since it was asked last; None: to be forgotten."""
        yield self.penalties_to_keep()
        yield from self._keeping.news(self.views, self.loads, self.capacities, now_unix_s)

    def penalties_to_keep(self) -> tuple[str, str | None]:
        return PENALTIES, self.penalties.text()

    # ---- verdicts ---------------------------------------------------------------------------

    def is_up(self, name: str, default: bool) -> bool:
        """It gets packets, as far as health has a say: it is well, or has to wait until it is ejected."""
        if name in self.use.usages.down or name in self.ejections.held:
            return False
        if name in self.ejections.waiting:
            return True
        health = self.health.get(name)
        return default if health is None or health.up is None else health.up

    def serves(self, name: str, roster: Members, now_s: float) -> bool:
        """A shadow that is up, and whose data is new enough."""
        shadow = roster.shadows.get(name)
        return shadow is not None and self.is_up(name, False) and self.lag.serves(shadow, now_s)

    def copy_of(self, shadow: model.Shadow, now_s: float) -> shadows.Copy:
        """Of the data that it serves."""
        sync = self.views[shadow.service].service.sync if shadow.service in self.views else None
        is_made = sync is not None and self.lag.is_copying(shadow, now_s)
        limit_s = sync.copy_timeout_s if sync and is_made else 0.0
        return shadows.Copy(self.lag.waits(shadow), limit_s, self.lag.lost(shadow))

    def fails_outright(self, name: str) -> bool:
        """A live endpoint most of whose new flows fail, while its neighbours' do not; or who fails its probes
        and is not ejected."""
        if name in self.ejections.waiting:
            return True
        i = self.loads.index.get(name)
        return i is not None and bool(self.loads.conditions.fails_outright[i])

    def answers_clients(self, shadow: str, now_s: float) -> bool:
        """It answered a SYN just now."""
        return now_s - self._clients_s.get(shadow, -math.inf) < _ANSWERED_S

    def _down(self) -> frozenset[str]:
        return frozenset(self._unwell) | self.use.usages.down

    def back_s(self, name: str) -> float | None:
        health, again_s = self.health.get(name), self.use.usages.back_s.get(name)
        back_s = None if health is None else health.back_s
        return back_s if again_s is None else max(again_s, back_s or again_s)

    def shadow_health(self, roster: Members) -> dict[str, bool]:
        """Health of the shadows that are probed; what is known of others is forgotten, what they use too: a
        shadow made again under its name starts unknown."""
        self.use.keep(roster)
        self.lag.keep(roster.shadows)
        probed = {name for name, s in roster.shadows.items() if s.state in shadows.INSTALLED}
        for name in self.health.keys() - probed - roster.endpoints.keys():
            del self.health[name]
        return {name: self.is_up(name, False) for name in probed}

    def answers_are_fresh(self, endpoint: model.Endpoint, roster: Members, now_s: float) -> bool:
        """The probes of an endpoint and of its serving shadows answer, well or badly. Stale is not down."""
        probe = self.views[endpoint.service].service.probe
        asked = [s.name for s in roster.of(endpoint.name) if s.state in _SERVING]
        return not any(
            self.health.get(name, _UNKNOWN).is_stale(probe, now_s) for name in (endpoint.name, *asked)
        )

    def answering(self) -> frozenset[str]:
        """Members whose last probe was answered well."""
        return frozenset(name for name, health in self.health.items() if health.successes > 0)

    def answered_s(self) -> dict[str, float]:
        """Members whose last probe was answered well -> when."""
        return {
            name: health.seen_s
            for name, health in self.health.items()
            if health.successes > 0 and health.seen_s is not None
        }

    def service(self, name: str) -> model.Service:
        """As it is configured, with the capacities that are known."""
        return self.views[name].service

    def capacity(self, i: int) -> float | None:
        """That is gone by."""
        capacity = float(self._applied[i])
        return None if math.isnan(capacity) else capacity

    def high(self, endpoint: model.Endpoint) -> float:
        return self.loads.high(self.loads.index[endpoint.name])

    def whole(self, service: str) -> float | None:
        """What all of a pool have to be ready for, flows/s; None: it is no pool."""
        seen = self.loads.pools.seen(service)
        return None if seen is None else seen.need

    def busy(self, roster: Members) -> list[Unit]:
        """Groups and pools about which there may be something to decide: they have shadows, somebody is
        down, or their load may want more. The others, thousands of them, hold."""
        loads, views = self.loads, self.views.values()
        sizes = [view.foresight and view.foresight.size for view in views]
        least = np.array([len(view.names) if view.is_pool else 1 for view in views])
        wanted = np.array([size.wanted if size else np.nan for size in sizes], dtype=np.float64) / least
        exact = np.array([size.exact if size else np.nan for size in sizes], dtype=np.float64) / least
        wants = loads.busy(wanted, exact) | self.capacities.saturated
        parents = {shadow.parent for shadow in roster.shadows.values() if not shadow.standby}
        known = (parents | self._down() | set(self._answered.values())) & loads.index.keys()
        wants[[loads.index[name] for name in known]] = True
        them = {loads.names[i] for i in np.flatnonzero(wants).tolist()}
        found = [
            unit
            for view in views
            if not them.isdisjoint(view.names)
            for unit in view.units
            if any(endpoint.name in them for endpoint in unit.endpoints)
        ]
        keys = {unit.key for unit in found}
        self._memories = {key: one for key, one in self._memories.items() if key in keys}
        self.verdicts = {key: one for key, one in self.verdicts.items() if key in keys}
        self._troubles.begin()
        return found

    def group(
        self,
        unit: Unit,
        roster: Members,
        flows: Mapping[str, int],
        drained: Set[str],
        lead_s: float,
        life_s: float | None,
        fresh: bool,
        now_s: float,
    ) -> groups.Group:
        """:param flows: active ones of draining shadows. ``drained``: who is to get no new flows. ``life_s``:
        mean life of the service's flows; None: not known."""
        service, view, loads = unit.service, self.views[unit.service.name], self.loads
        conditions = loads.conditions
        names = [endpoint.name for endpoint in unit.endpoints]
        them = [loads.index[name] for name in names]
        own = tuple(shadow for name in names for shadow in roster.of(name))
        out = drained | self.ejections.waiting
        well = [s for s in own if self.is_up(s.name, False) and s.name not in out]
        up = frozenset(s.name for s in well if self.lag.serves(s, now_s))
        lagging = {s.name: self.lag.why(s, now_s) for s in well if self._lags(s, now_s)}
        lives = [name for name in names if self.is_up(name, True) and name not in self.ejections.waiting]
        if unit.is_pool:
            staying = [name for name in lives if name not in drained]
            lives = staying if up or staying else lives  # who is drained serves where nobody else does
            lives = [name for name in lives if not self.fails_outright(name)]  # others make up for it
        lives_up = len(lives)
        demand = float(loads.demand[them].sum())
        sized = view.sized_together(demand) if unit.is_pool else view.sized(loads, them[0])
        seen = loads.pools.seen(service.name) or loads.seen(them[0])
        known = Evidence(loads, self.capacities, self._applied, self.use.used_up)
        trouble = self._troubles.of(unit, own, known)
        scores = conditions.together(them)
        return groups.Group(
            name=unit.name,
            capacity=unit.capacity,
            level=seen.level,
            high=seen.high,
            horizon_s=lead_s + earlier_s(life_s),
            quantile=seen.quantile,
            relieved=loads.is_relieved(them[0], now_s),
            fresh=fresh
            and math.isfinite(demand)
            and all(self.answers_are_fresh(endpoint, roster, now_s) for endpoint in unit.endpoints),
            live_up=lives_up > 0,
            neighbour_up=any(self.is_up(n, False) for n in view.names if n not in names),
            shadows=own,
            up=up,
            flows={s.name: flows[s.name] for s in own if s.name in flows},
            given={s.name: self.shadow_rates[s.name][0] for s in own if s.name in self.shadow_rates},
            rate_deviation=scores.rate,
            latency_deviation=scores.latency,
            error_deviation=self._errors_of(unit, them),
            trouble=trouble.words,
            others_too=trouble.others_too,
            shadows_too=trouble.shadows_too,
            is_helped=trouble.is_helped,
            failing=scores.failing,
            sized=sized.wanted,
            sized_reason=sized.reason,
            sized_blindly=sized.is_blind,
            usual_s=roster.usual_lead_time_s(service.name),
            life_s=life_s,
            standing=sized.standing,
            p50=sized.p50,
            p90=sized.p90,
            endpoints=len(them),
            others_up=max(lives_up - 1, 0),
            bound=self._bound(own, up) if unit.is_pool else frozenset(),
            saturated=bool(self.capacities.saturated[them].any()),
            proven=sum(self._proven(i, now_s) for i in them),
            lagging=lagging,
            copying=frozenset(s.name for s in own if self.lag.is_copying(s, now_s)),
        )

    def _lags(self, shadow: model.Shadow, now_s: float) -> bool:
        """It had its data, and that is too old now."""
        return shadow.state in _SERVING and not self.lag.serves(shadow, now_s)

    def _errors_of(self, unit: Unit, them: Sequence[int]) -> float:
        """The score of those that fail; in a pool without those that others make up for."""
        conditions = self.loads.conditions
        counted = [i for i in them if not (unit.is_pool and conditions.fails_outright[i])]
        return float(conditions.errors[counted].max(initial=0.0))

    def _proven(self, i: int, now_s: float) -> float:
        """What a live endpoint has served alone, flows/s; as far as it was not too busy for it."""
        return float(
            np.fmin(self.capacities.proven(i), self.use.balance.strength(self.loads.names[i], now_s))
        )

    def _bound(self, own: Sequence[model.Shadow], up: Set[str]) -> frozenset[str]:
        """Shadows that serve for a live endpoint that is down; one that drains, if nobody else does."""
        there = [shadow for shadow in own if shadow.name in up and not self.is_up(shadow.parent, True)]
        ready = [shadow for shadow in there if shadow.state is model.ShadowState.READY]
        helped = {shadow.parent for shadow in ready}
        return frozenset(shadow.name for shadow in there if shadow in ready or shadow.parent not in helped)

    def decide(self, unit: Unit, group: groups.Group, now_unix_s: float) -> tuple[groups.Verdict, ...]:
        memory = self._memories.get(unit.key, groups.Memory())
        verdicts, memory = policy.decide(unit.service.shadows, group, memory, now_unix_s)
        self._memories[unit.key], self.verdicts[unit.key] = memory, groups.in_short(verdicts)
        self._answered.pop(unit.key, None)
        if memory.answered:
            self._answered[unit.key] = unit.endpoints[0].name
        return verdicts

    def first_to_clone(self, unit: Unit, drained: Set[str]) -> tuple[str, ...]:
        """Live endpoints that may get a shadow: those that get new flows, if any does; those in trouble
        first."""
        names = [endpoint.name for endpoint in unit.endpoints]
        up = [name for name in names if self.is_up(name, True) and name not in drained]
        return tuple(sorted(up or names, key=lambda name: not self.is_in_trouble(name)))

    @property
    def kept(self) -> Mapping[str, float]:
        """Live endpoint -> the part of its weight that it keeps while it is slow or failing."""
        return self.penalties.kept

    @property
    def newly_penalised(self) -> Collection[str]:
        """Those that keep clearly less than a tick ago."""
        return self.penalties.deeper

    def is_in_trouble(self, name: str) -> bool:
        """A live endpoint that is slow or failing, and its shadows, if it has some, are not."""
        return self._troubles.is_alone(name)

    def common_causes(self) -> dict[str, str]:
        """Of each service, what several groups have at once, slow answers or errors; empty: nothing."""
        told = {name: self.loads.conditions.common_cause(at) for at, name in enumerate(self.views)}
        saturated = self.capacities.saturated
        return {n: "" if why and saturated[self.loads.groups(n)].any() else why for n, why in told.items()}


def _capacities(config: model.Config) -> Capacities:
    """Nothing is learned yet."""
    all_of = [(service, endpoint) for service in config.services.values() for endpoint in service.endpoints]
    given = [math.nan if endpoint.capacity is None else endpoint.capacity for _, endpoint in all_of]
    told = [service.requests is not model.Requests.OFF for service, _ in all_of]
    keys = [f"{service.name}/{endpoint.name}" for service, endpoint in all_of]
    gap_s = max(WINDOW_S, _GAP_TICKS * config.tick_s)
    return Capacities(keys, np.array(given, dtype=np.float64), np.array(told, dtype=np.bool_), gap_s)
