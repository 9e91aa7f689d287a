# SPDX-License-Identifier: Apache-2.0
"""The ports, in memory: a data plane that counts what it steers, a provisioner that takes its time, ..."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import numpy as np

from controlplane import model
from controlplane.addresses import Network
from controlplane.histogram import BUCKETS
from controlplane.model import Role, RunResult, RunState, Shadow
from controlplane.ports import Counters, DataplaneError, InterfaceCounts, Redirects, Sample, StoreError

FIELDS = [
    "packets",
    "bytes",
    "return_packets",
    "return_bytes",
    "flows",
    "offered",
    "completed",
    "spilled",
    "midstream",
    "unremembered",
    "resets",
    "fins",
    "rtt_count",
    "rtt_sum_us",
    "limited",
    "requests",
    "answered",
    "aborted",
    "response_count",
    "response_sum_us",
]


class FakeClock:
    def __init__(self) -> None:
        self.now = 1000.0
        self.unix = 1_700_000_000.0
        self.record = self.unix
        self.on_wait: Callable[[], None] = lambda: None

    def now_s(self) -> float:
        return self.now

    def unix_s(self) -> float:
        return self.unix

    def record_s(self) -> float:
        return self.record

    def wait_until(self, at_s: float) -> None:
        self.advance(max(at_s - self.now, 0.0))
        self.on_wait()

    def advance(self, seconds: float) -> None:
        self.now += seconds
        self.unix += seconds
        self.record += seconds


class FakeDataplane:
    """Executes steps, refuses what the real one would, and steers offered flows by ring, spill and slots."""

    def __init__(self, clock: FakeClock, rows: int = 64) -> None:
        self.clock = clock
        self.services: dict[str, model.VirtualService] = {}
        self.members: dict[str, model.Member] = {}
        self.steps: list[model.Step] = []
        self.refuse: Callable[[model.Step], bool] = lambda step: False
        self.broken = False
        self.still = False
        """Counters do not advance."""
        self.rows: dict[str, int] = {}
        self.count = {field: np.zeros(rows, dtype=np.uint64) for field in FIELDS}
        self.read_at = clock.now
        self.times = np.zeros((rows, BUCKETS), np.uint32)
        self.waiting: dict[str, int] = {}
        self.flows: dict[str, int] = {}
        self.served: dict[str, float] = {}
        """Flows given to each member in the last second."""
        self.lost = 0.0
        """Flows that found nobody, or somebody down or removed."""
        self.rtt_us: dict[str, float] = {}
        self.response_us: dict[str, float] = {}
        """Of who is here each flow is a request, and timed."""
        self.resets: dict[str, float] = {}
        """The share of its flows that a member resets, as of those not answered and of requests aborted."""
        self.unanswered: dict[str, float] = {}
        self.aborts: dict[str, float] = {}
        self.noise: np.random.Generator | None = None
        """Of times and errors; None: there is none."""
        self.own_address = IPv4Address("10.0.0.254")
        self.detached: set[str] = set()
        """Interfaces that are gone."""
        self.reasons = {"forward_hop": 0, "pass_other": 0, "drop_broken": 0}
        self.sent = self.frames_lost = 0
        self.happened: list[model.Event] = []
        """Events that nobody has taken yet."""

    def installed(self) -> model.Steering:
        self._alive()
        return model.Steering(dict(self.services), dict(self.members))

    def _alive(self) -> None:
        if self.broken:
            raise DataplaneError("the pins are gone: run penumbra load")

    def apply(self, step: model.Step) -> None:
        self._alive()
        if self.refuse(step):
            raise DataplaneError(f"refused {step}")
        if isinstance(step, model.InstallMember):
            self._require_free(step.member)
        self.steps.append(step)
        match step:
            case model.InstallService(service):
                assert not service.ring
                there = self.services.get(service.name, service)
                assert (there.vip, there.port, there.ring_size) == (
                    service.vip,
                    service.port,
                    service.ring_size,
                ), "these can't change while it is installed"
                self.services[service.name] = replace(service, ring=there.ring)
            case model.RemoveService(name):
                self.services.pop(name, None)
            case model.InstallMember(member):
                assert not member.slots
                assert member.spill == 0.0
                assert member.limit == 0
                assert member.service in self.services
                self.members[member.name] = member
                self.rows.setdefault(member.name, len(self.rows))
                self.flows.setdefault(member.name, 0)
            case model.RemoveMember(name):
                for service in self.services.values():
                    assert name not in service.ring, f"{name} is removed but in the ring"
                for member in self.members.values():
                    assert name not in member.slots, f"{name} is removed but in slots"
                self.members.pop(name, None)
                self.flows.pop(name, None)
            case model.SetRing(name, weights):
                assert weights
                assert all(n in self.members for n in weights)
                self.services[name] = replace(self.services[name], ring=dict(weights))
            case model.SetSlots(name, slots):
                assert all(n in self.members for n in slots)
                self.members[name] = replace(self.members[name], slots=dict(slots))
            case model.SetSpill(name, share):
                assert 0.0 <= share <= 1.0
                self.members[name] = replace(self.members[name], spill=share)
            case model.SetLimit(name, limit):
                assert limit >= 0
                self.members[name] = replace(self.members[name], limit=limit)
            case model.SetDown(name, down):
                self.members[name] = replace(self.members[name], down=down)
            case model.SetDraining(name, draining, evicted):
                assert draining or not evicted
                self.members[name] = replace(self.members[name], draining=draining, evicted=evicted)

    def _require_free(self, member: model.Member) -> None:
        for name, other in self.members.items():
            if name != member.name and (other.address, other.port) == (member.address, member.port):
                raise DataplaneError(f"{member.address}:{member.port} is {name!r}: remove that first")

    def offer(self, service: str, flows: float, dead: Collection[str] = ()) -> None:
        """New flows of the last second. Each is counted for its group before spill."""
        self.served = dict.fromkeys(self.members, 0.0)
        ring = self.services[service].ring if service in self.services else {}
        if not ring:
            self.lost += flows
            return
        for name, weight in ring.items():
            share = flows * weight / sum(ring.values())
            member = self.members[name]
            self._count(name, "offered", share)
            slots = {n: w for n, w in member.slots.items() if n in self.members and not self.members[n].down}
            spilled = share * member.spill if slots else 0.0
            self._count(name, "spilled", spilled)
            failed = 0.0
            for shadow, slot in slots.items():
                failed += self._give(shadow, spilled * slot / sum(slots.values()), dead)
            failed += self._give(name, share - spilled, dead)
            self._count(name, "completed", share - failed)

    def _give(self, name: str, flows: float, dead: Collection[str]) -> float:
        """How many are not answered."""
        if name in dead:
            self.lost += flows
        self.served[name] = self.served.get(name, 0.0) + flows
        self._count(name, "flows", flows)
        unanswered = self._part(flows, self.unanswered.get(name, 0.0))
        if flows > unanswered:
            answered = round(flows) - unanswered
            self._count(name, "rtt_count", answered)
            self._count(name, "rtt_sum_us", self._times(answered, self.rtt_us.get(name, 500.0)))
        self._count(name, "resets", self._part(flows, self.resets.get(name, 0.0)))
        if name in self.response_us:
            self._count(name, "requests", flows)
            self._count(name, "aborted", self._part(flows, self.aborts.get(name, 0.0)))
            self._count(name, "response_count", flows)
            self._count(name, "response_sum_us", self._times(flows, self.response_us[name]))
        return unanswered

    def _part(self, flows: float, share: float) -> float:
        if self.noise is None or not share:
            return flows * share
        return float(self.noise.binomial(round(flows), share))

    def _times(self, count: float, median_us: float) -> float:
        """So many of them, together."""
        if self.noise is None:
            return count * median_us
        return float(np.exp(0.5 * self.noise.standard_normal(round(count))).sum()) * median_us

    def flood(self, name: str, syns: int, answers: float) -> None:
        """Of forged SYNs in the last second, all by one CPU: of the handshakes past 2048 in a tick of 268 ms
        it times one in eight."""
        for field in ("offered", "flows"):
            self._count(name, field, syns)
        timed = min(answers * syns, 7629 + (answers * syns - 7629) / 8)
        self._count(name, "rtt_count", timed)
        self._count(name, "rtt_sum_us", timed * self.rtt_us.get(name, 500.0))

    def _count(self, name: str, field: str, amount: float) -> None:
        self.count[field][self.rows[name]] += np.uint64(round(amount))

    def counters(self) -> Counters:
        self._alive()
        if not self.still:
            self.read_at = self.clock.now
        rows = {name: self.rows[name] for name in self.members}
        counts: dict[str, Any] = {field: values.copy() for field, values in self.count.items()}
        return Counters(at_s=self.read_at, rows=rows, **counts)

    def interface_counts(self) -> Sequence[InterfaceCounts]:
        return [
            InterfaceCounts("eth9", dict(self.reasons), Redirects(self.sent, self.frames_lost, 0, "ENXIO"))
        ]

    def active_flows(self, members: Collection[str]) -> Mapping[str, int]:
        return {name: self.flows[name] for name in members if name in self.flows}

    def established_flows(self, members: Collection[str]) -> Mapping[str, int]:
        return self.active_flows(members)

    def in_flight(self, members: Sequence[str]) -> np.ndarray:
        return np.array([self.waiting.get(name, 0) for name in members], np.intp)

    def response_times(self, members: Sequence[str]) -> np.ndarray:
        return np.array([self.times[self.rows[name]] for name in members], np.uint32).reshape(-1, BUCKETS)

    def interfaces(self, names: Collection[str]) -> Sequence[model.Interface]:
        return [
            model.Interface(name, name not in self.detached, False, "it is gone" * (name in self.detached))
            for name in names
        ]

    def own_addresses(self) -> Collection[IPv4Address]:
        return {IPv4Address("127.0.0.1"), self.own_address}

    def set_direct(self, prefixes: Collection[Network]) -> None:
        self.direct = set(prefixes)

    def renew_hops(self) -> None:
        self._alive()

    def events(self) -> Sequence[model.Event]:
        happened, self.happened = self.happened, []
        return happened


class FakeProber:
    """Answers for what it is told to watch, once a call."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.dead: set[str] = set()
        self.silent = False
        self.targets: dict[str, tuple[str, int, model.Probe]] = {}
        self.checked: list[str] = []
        """Who was to be checked at once."""
        self.unable: dict[str, str] = {}

    def check(self, members: Collection[str]) -> None:
        self.checked += members

    def troubles(self) -> Mapping[str, str]:
        return self.unable

    def watch(self, targets: Mapping[str, tuple[str, int, model.Probe]]) -> None:
        self.targets = dict(targets)

    def results(self) -> Sequence[model.Health]:
        if self.silent:
            return []
        return [
            model.Health(
                name, name not in self.dead, self.clock.now, 0.001, "refused" if name in self.dead else ""
            )
            for name in self.targets
        ]

    def close(self) -> None:
        pass


class FakeLoadSource:
    """Tells of what it is told to watch what ``tells`` has of it, once a call; of others nothing."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.targets: dict[str, model.UsageSource] = {}
        self.tells: dict[str, model.Usage] = {}
        """Member -> what it uses; the time is the clock's."""
        self.failing: dict[str, str] = {}
        self.good_s = 15.0

    def watch(self, targets: Mapping[str, model.UsageSource]) -> None:
        self.targets = dict(targets)

    def usages(self) -> Sequence[model.Usage]:
        return [
            replace(self.tells[name], member=name, at_s=self.clock.now, good_s=self.good_s)
            for name in self.targets
            if name in self.tells and name not in self.failing
        ]

    def troubles(self) -> Mapping[str, str]:
        return {name: why for name, why in self.failing.items() if name in self.targets}

    def tell(self, member: str, **usage: object) -> None:
        self.tells[member] = model.Usage(member, 0.0, **usage)

    def close(self) -> None:
        pass


class FakeLagSource:
    """Shadows whose data is ``behind`` the primary's by so many seconds; those that are ``cut`` get no
    more of it, and those that are ``unread`` tell nothing."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock = clock
        self.targets: dict[str, model.LagTarget] = {}
        self.behind: dict[str, float] = {}
        self.cut: set[str] = set()
        self.unread: set[str] = set()
        self.copying: set[str] = set()
        self.stopped: dict[str, str] = {}
        self.lost: set[str] = set()
        self.has_s: dict[str, float] = {}
        """So new is a shadow's data."""
        self.bytes: dict[str, int] = {}

    def watch(self, targets: Mapping[str, model.LagTarget]) -> None:
        self.targets = dict(targets)

    def lags(self) -> Sequence[model.Lag]:
        now = self.clock.now
        found = []
        for name, target in self.targets.items():
            if name not in self.cut:
                self.has_s[name] = max(now - self.behind.get(name, 0.2), self.has_s.get(name, 0.0))
            if name in self.unread:
                continue
            is_copied = name not in self.copying
            lag_s = now - self.has_s[name] if is_copied and name in self.has_s else None
            reason = self.stopped.get(name, "") if is_copied else "1 of 2 tables are copied"
            lacks = self.bytes.get(name)
            lost = name in self.lost
            found.append(model.Lag(name, target.service, now, lag_s, lacks, 0.0, is_copied, reason, lost))
        return found

    def troubles(self) -> Mapping[str, str]:
        return {name: "no answer within 1 s" for name in self.unread if name in self.targets}

    def close(self) -> None:
        pass


class FakeProvisioner:
    """Runs take ``lead_s``; fails or hangs when told so. ``exists`` is what outlives a controller."""

    def __init__(self, clock: FakeClock, exists: set[str] | None = None) -> None:
        self.clock = clock
        self.lead_s = 3.0
        self.fail: set[str] | bool = set()
        self.hang = False
        self.slow = ""
        """Why its runs are slower than they need be."""
        self.dead_hosts: set[str] = set()
        """Every run there fails, and leaves what it was to make half made."""
        self.refuses = ""
        """Why what is asked for can't be made anywhere."""
        self.answer: tuple[IPv4Address, int] | None = None
        """Where everything is said to serve; None: at places of their own."""
        self.exists: set[str] = exists if exists is not None else set()
        self.runs: dict[str, tuple[str, float]] = {}
        self.orders: list[tuple[str, str]] = []
        self.found: dict[tuple[str, str], model.Found] = {}
        """(shadow, host) -> what a survey lists; kept by provision and deprovision."""
        self.unasked: dict[str, str] = {}
        self._asked: dict[str, model.Order] = {}
        self.surveys = 0
        self._survey_due_s: float | None = None
        self.originals: dict[str, str] = {}
        """Endpoint -> what an inspection reads; others can't be read by their target."""
        self.unreadable: dict[str, str] = {}
        self.inspections: list[list[str]] = []
        self.specifications: dict[str, str] = {}
        """Shadow -> what it was made from."""
        self._inspected: tuple[float, list[model.Inspection]] | None = None

    def inspect(self, orders: Sequence[model.Order]) -> None:
        assert self._inspected is None, "one inspection at a time"
        self.inspections.append([order.parent.name for order in orders])
        told = [
            model.Inspection(
                order.parent.name,
                order.target,
                order.host.name,
                self.originals.get(order.parent.name, ""),
                self.unreadable.get(order.parent.name, ""),
            )
            for order in orders
        ]
        self._inspected = self.clock.now + 1.0, told

    def inspected(self) -> Sequence[model.Inspection] | None:
        if self._inspected is None or self.clock.now < self._inspected[0]:
            return None
        (_, told), self._inspected = self._inspected, None
        return told

    def know(self, hosts: Mapping[str, model.Host]) -> None:
        self.hosts = dict(hosts)

    def survey(self, places: Collection[tuple[str, str]]) -> None:
        if self._survey_due_s is None:
            self.surveys += 1
            self._survey_due_s = self.clock.now + 1.5

    def surveyed(self) -> model.Survey | None:
        if self._survey_due_s is None or self.clock.now < self._survey_due_s:
            return None
        self._survey_due_s = None
        there = tuple(one for one in self.found.values() if one.host not in self.unasked)
        return model.Survey(there, dict(self.unasked))

    def provision(self, order: model.Order) -> None:
        assert order.shadow not in self.runs, "one run per shadow at a time"
        self.orders.append(("provision", order.shadow))
        self.specifications[order.shadow] = order.specification
        self._asked[order.shadow] = order
        self.runs[order.shadow] = ("provision", self.clock.now + self.lead_s)

    def deprovision(self, order: model.Order) -> None:
        assert order.shadow not in self.runs, "one run per shadow at a time"
        self.orders.append(("deprovision", order.shadow))
        self._asked[order.shadow] = order
        self.runs[order.shadow] = ("deprovision", self.clock.now + 1.0)

    def results(self) -> Sequence[RunResult]:
        ended = []
        for name, (kind, due_s) in list(self.runs.items()):
            if self.hang or self.clock.now < due_s:
                continue
            del self.runs[name]
            if self.fail is True or (self.fail and name in self.fail):
                ended.append(RunResult(name, RunState.FAILED, reason="rc 2: no such image"))
            elif self.refuses and kind == "provision":
                ended.append(RunResult(name, RunState.FAILED, reason=self.refuses, refused=True))
            elif (host := self._asked[name].host.name) in self.dead_hosts:
                if kind == "provision":
                    self.exists.add(name)
                ended.append(RunResult(name, RunState.FAILED, reason=f"{host} is unreachable"))
            elif kind == "deprovision":
                self.exists.discard(name)
                self.found.pop((name, self._asked[name].host.name), None)
                ended.append(RunResult(name, RunState.DONE))
            else:
                self.exists.add(name)
                order = self._asked[name]
                parent = 256 * (int(order.parent.address) % 256 - 1)
                its_own = IPv4Address("10.9.0.1") + parent + int(name.rsplit("s", 1)[1])
                address, port = self.answer or (its_own, 8080)
                self.found[name, order.host.name] = model.Found(
                    name, order.host.name, order.target, order.service, order.parent.name, address, port
                )
                ended.append(RunResult(name, RunState.DONE, address=address, port=port))
        return ended

    def running(self) -> Collection[str]:
        return set(self.runs)

    def trouble(self) -> str:
        return self.slow

    def close(self) -> None:
        self.runs.clear()


class FakeInventory:
    """Tells what it is told to, once it watches something."""

    def __init__(self) -> None:
        self.path: Path | None = None
        self.tells: model.Inventory | None = None
        self.why = ""
        self.reads = 0

    def watch(self, path: Path | None) -> None:
        self.path = path

    def read_again(self) -> None:
        self.reads += 1

    def inventory(self) -> model.Inventory | None:
        return None if self.path is None else self.tells

    def trouble(self) -> str:
        return self.why if self.path is not None else ""

    def close(self) -> None:
        pass


class FakeStore:
    def __init__(self) -> None:
        self.records: dict[str, Shadow] = {}
        self.rows: list[model.Decision] = []
        self.values: dict[str, str] = {}
        self.broken = False
        self.full = False
        """It can be read, as on a full disk."""

    def _alive(self) -> None:
        if self.broken:
            raise StoreError("the store is gone")

    def _roomy(self) -> None:
        self._alive()
        if self.full:
            raise StoreError("disk full: free space under /var/lib/penumbra")

    def shadows(self) -> Mapping[str, Shadow]:
        self._alive()
        return dict(self.records)

    def put_shadow(self, shadow: Shadow) -> None:
        self._roomy()
        self.records[shadow.name] = shadow

    def forget_shadow(self, name: str) -> None:
        self._roomy()
        self.records.pop(name, None)

    def log(self, decision: model.Decision) -> None:
        self._roomy()
        self.rows.append(decision)

    def decisions(self, limit: int) -> Sequence[model.Decision]:
        return self.rows[::-1][:limit]

    def get(self, key: str) -> str | None:
        self._alive()
        return self.values.get(key)

    def put(self, key: str, value: str | None) -> None:
        self._roomy()
        if value is None:
            self.values.pop(key, None)
        else:
            self.values[key] = value


class FakeMetrics:
    def __init__(self) -> None:
        self.samples: list[Sample] = []

    def publish(self, values: Callable[[], Sequence[Sample]]) -> None:
        self.samples = list(values())


def role(dataplane: FakeDataplane, wanted: Role) -> list[str]:
    return [name for name, member in dataplane.members.items() if member.role is wanted]
