# SPDX-License-Identifier: Apache-2.0
"""The shadows' records: kept in the store first, then acted on, so that a restart finds every one."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import replace
from ipaddress import IPv4Address

from controlplane import model, placement, policy, shadows
from controlplane.journal import Journal
from controlplane.model import RunState, Shadow, ShadowState
from controlplane.ports import Clock, Provisioner, Store

_LEAD_TIMES = "lead_times:"
_MEASURED = 50
"""Lead times kept per service."""


class Roster:
    def __init__(
        self, config: model.Config, provisioner: Provisioner, store: Store, clock: Clock, journal: Journal
    ) -> None:
        self._provisioner = provisioner
        self._store = store
        self._clock = clock
        self._journal = journal
        self._unsaved: set[str] = set()
        self._runs: dict[str, ShadowState] = {}
        """Runs that this process started, by what they do: PROVISIONING or REMOVING."""
        self.endpoints: dict[str, model.Endpoint] = {}
        self.shadows: dict[str, Shadow] = dict(store.shadows())
        self._measured: dict[str, list[float]] = {}
        self.reconfigure(config)
        for shadow in self.shadows.values():
            journal.say(shadow.name, "adopt", f"shadow {shadow.name} adopted: {shadow.state.value}")

    def reconfigure(self, config: model.Config) -> None:
        self._config = config
        self.endpoints = {e.name: e for service in config.services.values() for e in service.endpoints}
        for service in config.services:
            if service not in self._measured:
                text = self._store.get(_LEAD_TIMES + service)
                self._measured[service] = [float(v) for v in json.loads(text)] if text else []

    def of(self, parent: str) -> tuple[Shadow, ...]:
        return tuple(shadow for shadow in self.shadows.values() if shadow.parent == parent)

    def lead_time_s(self, service: str) -> float:
        return shadows.lead_time_s(self._measured[service], self._config.services[service].shadows)

    def measured(self, service: str) -> int:
        return len(self._measured[service])

    # ---- what is decided ------------------------------------------------------------------

    def order(
        self,
        parent: str,
        reason: str,
        host: str | None = None,
        by_hand: bool = False,
        inputs: Mapping[str, float | str] | None = None,
    ) -> None:
        endpoint = self.endpoints[parent]
        settings = self._config.services[endpoint.service].shadows
        allowed = settings.hosts if host is None else (host,)
        chosen = placement.choose(self._config.hosts, allowed, self.shadows.values(), endpoint)
        if chosen is None:
            among = ", ".join(allowed) or "none is configured"
            self._journal.once(parent, "hold", f"{reason}, but no host has a free slot ({among})")
            return
        name = placement.name(parent, self.shadows.keys() | self.endpoints.keys())
        sentence = reason.replace(f"{parent} +1", f"{parent} +1 on {chosen}")
        if sentence == reason:
            sentence = f"shadow {parent} +1 on {chosen}: {reason}"
        now = self._clock.unix_s()
        self._put(shadows.requested(name, endpoint, chosen, settings, now, by_hand, sentence))
        self._journal.say(name, "add", sentence, inputs)
        self._journal.forget(parent, "hold")

    def obey(
        self, endpoint: model.Endpoint, verdict: policy.Verdict, inputs: Mapping[str, float | str]
    ) -> None:
        now = self._clock.unix_s()
        if verdict.act is policy.Act.ADD:
            self.order(endpoint.name, verdict.reason, inputs=inputs)
            return
        if verdict.shadow is None:
            return
        shadow = self.shadows[verdict.shadow]
        if verdict.act is policy.Act.RETRY:
            self._put(shadows.retried(shadow, now, verdict.reason))
        else:
            state = {
                policy.Act.KEEP: ShadowState.READY,
                policy.Act.DRAIN: ShadowState.DRAINING,
                policy.Act.REMOVE: ShadowState.REMOVING,
            }[verdict.act]
            self._put(replace(shadows.entered(shadow, state, now, verdict.reason), attempts=0))
        self._journal.say(shadow.name, verdict.act.value, verdict.reason, inputs)

    def drain(self, name: str, reason: str) -> None:
        """By command: at once, and the policy does not end it."""
        shadow = self.shadows[name]
        ready = shadow.state in (ShadowState.READY, ShadowState.DRAINING)
        state = ShadowState.DRAINING if ready else ShadowState.REMOVING
        if shadow.state in (state, ShadowState.REMOVING):
            return
        sentence = f"shadow {name}: {state.value} {reason}"
        moved = shadows.entered(shadow, state, self._clock.unix_s(), sentence)
        self._put(replace(moved, by_hand=True, attempts=0))
        self._journal.say(name, state.value, sentence)

    # ---- what happens ---------------------------------------------------------------------

    def advance(self) -> None:
        """Takes ended runs, drops what lost its parent, and saves what could not be saved."""
        for name in sorted(self._unsaved):
            self._save(name)
        for result in self._provisioner.results():
            kind = self._runs.pop(result.shadow, None)
            shadow = self.shadows.get(result.shadow)
            if shadow is None or kind is not shadow.state or result.state is RunState.RUNNING:
                continue  # say, a provisioning run of a shadow that is to be removed by now
            after = shadows.after_run(shadow, result, self._clock.unix_s())
            if after is None:
                self._forget(shadow)
            else:
                self._moved(shadow, after)
        for shadow in list(self.shadows.values()):
            if shadow.parent not in self.endpoints and shadow.state is not ShadowState.REMOVING:
                why = f"its endpoint {shadow.parent} is no longer configured"
                self._moved(shadow, shadows.entered(shadow, ShadowState.REMOVING, self._clock.unix_s(), why))

    def take_health(self, name: str, up: bool) -> None:
        shadow = self.shadows[name]
        if shadow.parent not in self.endpoints:
            return
        settings = self._config.services[shadow.service].shadows
        after = shadows.after_probe(shadow, up, settings, self._clock.unix_s())
        self._moved(shadow, after)
        if shadow.state is ShadowState.WARMING and after.state is ShadowState.READY and not shadow.attempts:
            self._measure(after)

    def start_runs(self, installed: Collection[str]) -> None:
        """Starts what is due. A shadow is deprovisioned only when the data plane no longer names it."""
        running = set(self._provisioner.running()) | self._runs.keys()
        for shadow in list(self.shadows.values()):
            if shadow.name in running or shadow.name in self._unsaved:
                continue
            now = self._clock.unix_s()
            if shadow.state is ShadowState.REMOVING and shadow.name not in installed:
                settings = self._settings(shadow)
                if shadow.attempts and now - shadow.changed_unix_s < policy.pause_s(
                    settings, shadow.attempts
                ):
                    continue
                self._runs[shadow.name] = ShadowState.REMOVING
                self._start(shadow)
            elif shadow.state in (ShadowState.REQUESTED, ShadowState.PROVISIONING):
                # PROVISIONING without a run: cut by a restart. The name makes running it again safe.
                self._put(shadows.entered(shadow, ShadowState.PROVISIONING, now, shadow.reason))
                if shadow.name not in self._unsaved:
                    self._runs[shadow.name] = ShadowState.PROVISIONING
                    self._start(shadow)

    def _start(self, shadow: Shadow) -> None:
        kind = self._runs[shadow.name]
        try:
            order = self._order(shadow)
            if kind is ShadowState.REMOVING:
                self._provisioner.deprovision(order)
            else:
                self._provisioner.provision(order)
        except Exception as error:
            del self._runs[shadow.name]
            result = model.RunResult(shadow.name, RunState.FAILED, reason=f"could not start: {error}")
            current = self.shadows[shadow.name]
            after = shadows.after_run(current, result, self._clock.unix_s())
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
        )

    def _moved(self, before: Shadow, after: Shadow) -> None:
        if before == after:
            return
        self._put(after)
        if before.state is not after.state or before.attempts != after.attempts:
            action = "fail" if after.state is ShadowState.FAILED else after.state.value
            self._journal.say(after.name, action, f"shadow {after.name} {after.state.value}: {after.reason}")

    def _measure(self, shadow: Shadow) -> None:
        times = self._measured[shadow.service]
        times.append(round(max((shadow.ready_unix_s or 0.0) - shadow.requested_unix_s, 0.0), 3))
        del times[:-_MEASURED]
        self._journal.say(shadow.name, "measure", f"shadow {shadow.name}: lead time {times[-1]:.1f} s")
        self._store.put(_LEAD_TIMES + shadow.service, json.dumps(times))

    def _forget(self, shadow: Shadow) -> None:
        self._store.forget_shadow(shadow.name)
        del self.shadows[shadow.name]
        self._unsaved.discard(shadow.name)
        self._journal.say(shadow.name, "gone", f"shadow {shadow.name} is gone")

    def _put(self, shadow: Shadow) -> None:
        self.shadows[shadow.name] = shadow
        self._save(shadow.name)

    def _save(self, name: str) -> None:
        try:
            self._store.put_shadow(self.shadows[name])
        except Exception as error:  # nothing is started for it until it is saved
            self._unsaved.add(name)
            self._journal.trouble("store", str(error))
        else:
            self._unsaved.discard(name)
            if not self._unsaved:
                self._journal.well("store")
