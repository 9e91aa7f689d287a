# SPDX-License-Identifier: Apache-2.0
"""What is known of hosts: what of them was used when it was read last, and how the last runs there ended."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace

from controlplane import usage_source
from controlplane.model import Config, Endpoint, Host, Shadow, ShadowState, Usage
from controlplane.placement import Candidate, Wish, cost_per_hour

KEPT = "hosts_failing"
"""The store's key of back-offs."""
FIRST_PAUSE_S = 5.0
LONGEST_PAUSE_S = 300.0
_SETTLES_S = 30.0
"""After it was ready, until readings of its host hold what a shadow uses."""
_COMING = frozenset({ShadowState.REQUESTED, ShadowState.PROVISIONING, ShadowState.WARMING})
_RUNNING = frozenset({ShadowState.WARMING, ShadowState.READY, ShadowState.DRAINING})


@dataclass(frozen=True, slots=True)
class Failing:
    """A host on which runs failed, since the last that did not. Times are of records."""

    runs: int
    until_unix_s: float
    """It is avoided."""
    reason: str


@dataclass(frozen=True, slots=True)
class Need:
    """What a shadow is expected to use, by what its parent does. None: not known."""

    cpus: float | None = None
    memory_bytes: float | None = None
    cpu: float | None = None
    """Share of its parent's host, for hosts whose size is not known."""
    memory: float | None = None


class Hosts:
    def __init__(self) -> None:
        self._last: dict[str, Usage] = {}
        """By key: a member's name, or ``usage_source.host_key``."""
        self.failing: dict[str, Failing] = {}
        self._counted: tuple[Config, Counter[str | None]] | None = None

    # ---- use --------------------------------------------------------------------------------

    def observe(self, usages: Iterable[Usage]) -> None:
        for one in usages:
            self._last[one.member] = one

    def keep(self, keys: Collection[str]) -> None:
        """Forgets what is read no longer."""
        self._last = {key: one for key, one in self._last.items() if key in keys}

    def last(self, host: str) -> Usage | None:
        """However old."""
        return self._last.get(usage_source.host_key(host))

    def _fresh(self, key: str, now_s: float) -> Usage | None:
        one = self._last.get(key)
        return one if one is not None and now_s - one.at_s <= one.good_s else None

    def unread(self, host: str, now_s: float) -> str:
        """Why its use is not known; empty: it is."""
        one = self.last(host)
        if one is None:
            return "its use was not read yet"
        if now_s - one.at_s > one.good_s:
            return f"its use was read {now_s - one.at_s:.0f} s ago"
        return "" if one.cpu is not None else "its use of CPU is not known yet"

    # ---- back-off ---------------------------------------------------------------------------

    def failed(self, host: str, reason: str, now_unix_s: float) -> Failing:
        """A run there, and not for what was asked for. The pause doubles with each."""
        before = self.lately(host, now_unix_s)
        runs = 1 if before is None else before.runs + 1
        pause_s = min(FIRST_PAUSE_S * 2.0 ** min(runs - 1, 30), LONGEST_PAUSE_S)
        self.failing[host] = Failing(runs, now_unix_s + pause_s, reason)
        return self.failing[host]

    def lately(self, host: str, now_unix_s: float) -> Failing | None:
        """None too if nothing failed there for the longest pause after the last one was over."""
        one = self.failing.get(host)
        return one if one is not None and now_unix_s < one.until_unix_s + LONGEST_PAUSE_S else None

    def succeeded(self, host: str) -> bool:
        """True: it failed before."""
        return self.failing.pop(host, None) is not None

    def avoided_s(self, host: str, now_unix_s: float) -> float:
        """So long it is still; at most the longest pause, whatever a clock did."""
        one = self.failing.get(host)
        return 0.0 if one is None else min(max(one.until_unix_s - now_unix_s, 0.0), LONGEST_PAUSE_S)

    def avoided(self, now_unix_s: float) -> frozenset[str]:
        return frozenset(host for host in self.failing if self.avoided_s(host, now_unix_s) > 0)

    def to_keep(self) -> str:
        rows = {name: [one.runs, one.until_unix_s, one.reason] for name, one in self.failing.items()}
        return json.dumps(rows, sort_keys=True)

    def recall(self, text: str | None) -> None:
        """What ``to_keep`` made. Raises ValueError for anything else."""
        try:
            rows = json.loads(text or "{}")
            failing = {
                name: Failing(int(runs), float(until), str(why)) for name, (runs, until, why) in rows.items()
            }
        except (TypeError, AttributeError) as error:
            raise ValueError(f"what failed on hosts is damaged: {error}") from None
        self.failing = failing | self.failing

    # ---- who may carry the next one ---------------------------------------------------------

    def candidates(
        self,
        config: Config,
        shadows: Collection[Shadow],
        parent: Endpoint,
        allowed: Sequence[str],
        now_s: float,
        now_unix_s: float,
        again: Shadow | None = None,
    ) -> list[Candidate]:
        """Of ``allowed``, in their order.

        :param again: the shadow that failed, and is tried again: its slot is not counted."""
        held = [one for one in shadows if again is None or one.name != again.name]
        need = self.need(config, held, parent, now_s)
        of_host: dict[str, list[Shadow]] = {name: [] for name in allowed}
        for one in held:
            if one.host in of_host:
                of_host[one.host].append(one)
        found = []
        for name, there in of_host.items():
            host = config.hosts.get(name) or Host(name, gone=True)
            is_read = (host.usage or config.host_usage) is not None
            failing = self.lately(name, now_unix_s)
            found.append(
                Candidate(
                    name=name,
                    slots=host.slots,
                    taken=len(there),
                    siblings=sum(one.parent == parent.name for one in there),
                    used=self._used(host, there, need, now_s, now_unix_s) if is_read else None,
                    unread=self.unread(name, now_s) if is_read else "",
                    failures=failing.runs if failing else 0,
                    avoided_s=self.avoided_s(name, now_unix_s),
                    failed_here=again is not None and again.host == name,
                    region=host.region,
                    price_per_hour=host.price_per_hour,
                    gone=host.gone,
                )
            )
        return found

    def _used(
        self, host: Host, there: Sequence[Shadow], need: Need, now_s: float, now_unix_s: float
    ) -> float | None:
        """With the shadow, and with those that come or came just now, as each were like it."""
        last = self._fresh(usage_source.host_key(host.name), now_s)
        if last is None or last.cpu is None:
            return None
        more = 1 + sum(_is_to_come(one, now_unix_s) for one in there)
        cpus = last.of_cpus or host.capacity.cpus
        memory_bytes = last.of_memory_bytes or host.capacity.memory_bytes
        cpu = last.cpu + more * _share(need.cpus, cpus, need.cpu, host.slots)
        if last.memory is None:
            return max(cpu, last.network or 0.0)
        memory = last.memory + more * _share(need.memory_bytes, memory_bytes, need.memory, host.slots)
        return max(cpu, memory, last.network or 0.0)

    def need(self, config: Config, shadows: Collection[Shadow], parent: Endpoint, now_s: float) -> Need:
        """By its parent's own reading, where that is of the parent alone; what that does not tell by its
        host's, in equal parts of all members there."""
        usage = config.services[parent.service].usage
        own = self._fresh(parent.name, now_s)
        need = self._part_of_host(config, shadows, parent, now_s)
        if usage is None or usage.kind not in usage_source.OF_MEMBERS or own is None:
            return need
        cpus, memory_bytes = _product(own.cpu, own.of_cpus), _product(own.memory, own.of_memory_bytes)
        return replace(
            need,
            cpus=need.cpus if cpus is None else cpus,
            memory_bytes=need.memory_bytes if memory_bytes is None else memory_bytes,
        )

    def _part_of_host(
        self, config: Config, shadows: Collection[Shadow], parent: Endpoint, now_s: float
    ) -> Need:
        host = config.hosts.get(parent.host or "")
        last = None if host is None else self._fresh(usage_source.host_key(host.name), now_s)
        if host is None or last is None:
            return Need()
        members = self._live_on(config)[host.name] + sum(
            one.host == host.name and one.state in _RUNNING for one in shadows
        )
        cpu, memory = _product(last.cpu, 1.0 / members), _product(last.memory, 1.0 / members)
        cpus = _product(cpu, last.of_cpus or host.capacity.cpus)
        return Need(cpus, _product(memory, last.of_memory_bytes or host.capacity.memory_bytes), cpu, memory)

    def _live_on(self, config: Config) -> Counter[str | None]:
        """Host -> live endpoints there: asked for each order, and there are thousands of them."""
        if self._counted is None or self._counted[0] is not config:
            live = (one.host for service in config.services.values() for one in service.endpoints)
            self._counted = config, Counter(live)
        return self._counted[1]


def wish(config: Config, parent: Endpoint, shadows: Iterable[Shadow], *, by_hand: bool = False) -> Wish:
    """:param by_hand: the budget is no matter."""
    settings = config.services[parent.service].shadows
    its = config.hosts.get(parent.host or "")
    home = (its.region,) if its is not None and its.region else ()
    budget = None if by_hand else config.budget_per_hour
    left = None if budget is None else round(budget - cost_per_hour(config, shadows), 9)
    return Wish(parent.name, parent.host, settings.regions or home, settings.cost_weight, left)


def _is_to_come(shadow: Shadow, now_unix_s: float) -> bool:
    """Readings of its host don't hold it yet."""
    is_new = shadow.ready_unix_s is not None and now_unix_s - shadow.ready_unix_s < _SETTLES_S
    return shadow.state in _COMING or (shadow.state is ShadowState.READY and is_new)


def _share(needed: float | None, has: float | None, of_parents: float | None, slots: int) -> float:
    """What of a host a shadow will use, 0..1."""
    if needed is not None and has:
        return min(needed / has, 1.0)
    return 1.0 / slots if of_parents is None else of_parents


def _product(one: float | None, other: float | None) -> float | None:
    return None if one is None or other is None else one * other
