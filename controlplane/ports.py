# SPDX-License-Identifier: Apache-2.0
"""The ports: what the loop needs of the world. Each has a real adapter and a fake (tests/fakes.py)."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from controlplane import model
from controlplane.addresses import Address, Network


@dataclass(frozen=True, slots=True)
class Counters:
    """One reading of all counters, summed over CPUs. They only grow, until the maps are made anew."""

    at_s: float
    rows: Mapping[str, int]
    """Member's name -> row in the arrays."""
    packets: npt.NDArray[np.uint64]
    bytes: npt.NDArray[np.uint64]
    return_packets: npt.NDArray[np.uint64]
    return_bytes: npt.NDArray[np.uint64]
    flows: npt.NDArray[np.uint64]
    offered: npt.NDArray[np.uint64]
    completed: npt.NDArray[np.uint64]
    spilled: npt.NDArray[np.uint64]
    midstream: npt.NDArray[np.uint64]
    unremembered: npt.NDArray[np.uint64]
    resets: npt.NDArray[np.uint64]
    fins: npt.NDArray[np.uint64]
    rtt_count: npt.NDArray[np.uint64]
    rtt_sum_us: npt.NDArray[np.uint64]
    limited: npt.NDArray[np.uint64]
    requests: npt.NDArray[np.uint64]
    """Started; like all that follow, of services that have them told."""
    answered: npt.NDArray[np.uint64]
    aborted: npt.NDArray[np.uint64]
    """By a RST, by the endpoint's FIN, or forgotten before their answer."""
    response_count: npt.NDArray[np.uint64]
    """Answered ones that were timed."""
    response_sum_us: npt.NDArray[np.uint64]
    requests_read: bool = True
    """False: no service has requests told now, and their counters were not read; they are 0 here, whatever
    was counted before."""


@dataclass(frozen=True, slots=True)
class Redirects:
    """What became of the frames that were redirected to one interface. They only grow."""

    sent: int
    """Taken by its driver. In generic mode nobody counts these."""
    lost: int
    """Not taken by it: no room, or nobody at the other end."""
    refused: int
    """Not given to it: it is down, or the frame is larger than its MTU."""
    error: str
    """Of the last loss: its symbol, e.g. ENETDOWN; empty: there was none, or the driver named none."""


@dataclass(frozen=True, slots=True)
class InterfaceCounts:
    """What came in by one interface, and what became of what was redirected to it. They only grow."""

    name: str
    """``other``: all that have no row of their own."""
    reasons: Mapping[str, int]
    """Packets that came in, by why they left as they did."""
    redirects: Redirects | None
    """None: this kernel does not tell."""

    @property
    def received(self) -> int:
        return sum(self.reasons.values())

    @property
    def forwarded(self) -> int:
        """To endpoints, to clients, answered: left by a redirect, or rewritten for the kernel to forward."""
        return self._of("forward", "return", "reply")

    @property
    def passed(self) -> int:
        """Left to the kernel as they came."""
        return self._of("pass")

    @property
    def dropped(self) -> int:
        return self._of("drop", "abort")

    def _of(self, *kinds: str) -> int:
        return sum(count for reason, count in self.reasons.items() if reason.partition("_")[0] in kinds)


class Dataplane(Protocol):
    """What steers packets. Raises ``DataplaneError`` with what is wrong and what to do."""

    def installed(self) -> model.Steering:
        """What is installed now, read back from the maps."""

    def apply(self, step: model.Step) -> None:
        """Takes one step. Doing it twice is the same as once."""

    def counters(self) -> Counters: ...

    def active_flows(self, members: Collection[str]) -> Mapping[str, int]:
        """Flows in the cache, within their idle limit and not closed, per member."""

    def established_flows(self, members: Collection[str]) -> Mapping[str, int]:
        """Of the active ones those whose handshake is done, or that were answered."""

    def in_flight(self, members: Sequence[str]) -> npt.NDArray[np.intp]:
        """(members,) requests without an answer yet, on flows within their idle limit."""

    def response_times(self, members: Sequence[str]) -> npt.NDArray[np.uint32]:
        """(members, histogram.BUCKETS) timed requests by how long their first byte took; they only grow."""

    def interfaces(self, names: Collection[str]) -> Sequence[model.Interface]:
        """Whether the program is attached to what has these names now."""

    def interface_counts(self) -> Sequence[InterfaceCounts]: ...

    def own_addresses(self) -> Collection[Address]:
        """This host's own: nobody that is steered to can be there."""

    def set_direct(self, prefixes: Collection[Network]) -> None:
        """Replaces the destinations that endpoints answer as themselves, beside this host's addresses."""

    def renew_hops(self) -> None:
        """Renews every member's next hop from the kernel's routes and neighbours."""

    def events(self) -> Sequence[model.Event]:
        """Events since the last call, at most some thousands."""


class Prober(Protocol):
    """Health checks in the background, never blocking the loop."""

    def watch(self, targets: Mapping[str, tuple[str, int, model.Probe]]) -> None:
        """Member's name -> (address, port, probe): from now on exactly these are probed."""

    def check(self, members: Collection[str]) -> None:
        """These show signs of trouble: they are checked at once, each once a second at most, and as long as
        they do not answer well in quick succession, until they are known to be down."""

    def troubles(self) -> Mapping[str, str]:
        """Who can't be checked at present, and why."""

    def results(self) -> Sequence[model.Health]:
        """Answers since the last call, oldest first."""

    def close(self) -> None: ...


class LoadSource(Protocol):
    """Reads in the background what members use, never blocking the loop."""

    def watch(self, targets: Mapping[str, model.UsageSource]) -> None:
        """Member's name -> where it is read, nothing in braces: from now on exactly these are."""

    def usages(self) -> Sequence[model.Usage]:
        """Readings since the last call, oldest first."""

    def troubles(self) -> Mapping[str, str]:
        """Members that could not be read when they were last tried, and why."""

    def close(self) -> None: ...


class LagSource(Protocol):
    """Reads in the background how old shadows' data is, never blocking the loop."""

    def watch(self, targets: Mapping[str, model.LagTarget]) -> None:
        """Shadow's name -> where it is read: from now on exactly these are."""

    def lags(self) -> Sequence[model.Lag]:
        """Readings since the last call, oldest first."""

    def troubles(self) -> Mapping[str, str]:
        """Shadows, and addresses of primaries, that could not be read when they were last tried, and why."""

    def close(self) -> None: ...


class Provisioner(Protocol):
    """Makes and removes shadows in the background. One run per shadow at a time."""

    def know(self, hosts: Mapping[str, model.Host]) -> None:
        """Replaces what is known of hosts, for surveys and of parents."""

    def provision(self, order: model.Order) -> None: ...

    def deprovision(self, order: model.Order) -> None: ...

    def results(self) -> Sequence[model.RunResult]:
        """Runs that ended since the last call."""

    def running(self) -> Collection[str]:
        """Shadows with a run under way."""

    def survey(self, places: Collection[tuple[str, str]]) -> None:
        """Starts to ask (host, target) pairs for this instance's shadows, found by their labels. Nothing
        happens while a survey is under way."""

    def surveyed(self) -> model.Survey | None:
        """The survey that ended since the last call."""

    def trouble(self) -> str:
        """What makes runs slower than they need be; empty: nothing."""

    def inspect(self, orders: Sequence[model.Order]) -> None:
        """Starts to read the originals of orders of one service and target: each names its parent, and as
        its host the parent's. Nothing happens while an inspection is under way."""

    def inspected(self) -> Sequence[model.Inspection] | None:
        """Of the inspection that ended since the last call, one for each order."""

    def close(self) -> None:
        """Ends what is running, and everything it started."""


class InventorySource(Protocol):
    """Reads Ansible's inventory in the background, now and then, never blocking the loop."""

    def watch(self, path: Path | None) -> None:
        """From now on it is this one; None: there is none."""

    def read_again(self) -> None:
        """At once, not when it is due."""

    def inventory(self) -> model.Inventory | None:
        """As it was read last without trouble; None: it never was."""

    def trouble(self) -> str:
        """Why the last attempt came to nothing; empty: it did not."""

    def close(self) -> None: ...


class Store(Protocol):
    """What survives a restart."""

    def shadows(self) -> Mapping[str, model.Shadow]:
        """All records. Raises ``DamagedRecordsError``, with those that can be read, when some can't."""

    def put_shadow(self, shadow: model.Shadow) -> None: ...

    def forget_shadow(self, name: str) -> None: ...

    def log(self, decision: model.Decision) -> None: ...

    def decisions(self, limit: int) -> Sequence[model.Decision]:
        """Newest first."""

    def get(self, key: str) -> str | None:
        """A small value by name: frozen, drained endpoints, measured lead times, ..."""

    def put(self, key: str, value: str | None) -> None: ...


class Clock(Protocol):
    def now_s(self) -> float:
        """Monotonic seconds."""

    def unix_s(self) -> float:
        """As people read it: jumps when somebody sets the clock."""

    def record_s(self) -> float:
        """Unix seconds for the ages of records: the clock being set does not move them, nor does a restart
        of the process."""

    def wait_until(self, at_s: float) -> None:
        """Returns at ``at_s``, or early when the process is asked to stop or wake."""


class Metrics(Protocol):
    """Where numbers go for others to read (Prometheus)."""

    def publish(self, values: Callable[[], Sequence[Sample]]) -> None:
        """Replaces all samples of the last tick. Called when somebody reads them, in whichever thread."""


@dataclass(frozen=True, slots=True)
class Sample:
    name: str
    """Without the prefix ``penumbra_``; with its unit as Prometheus' conventions have it."""
    labels: Mapping[str, str]
    value: float
    counter: bool = False


class DataplaneError(RuntimeError):
    """The data plane can't do what was asked; the message says why and what to do."""


class UsageError(RuntimeError):
    """What some members use can't be read; the message says whose, and why."""


class LagError(RuntimeError):
    """How old some shadows' data is can't be read; the message says whose, and why."""


class InventoryError(RuntimeError):
    """The inventory can't be read, or something in it can't be used; the message says what."""


class ProbeError(RuntimeError):
    """Some members can't be checked; the message says who, and why."""


class StoreError(RuntimeError):
    """The store can't be read or written; the message says why and what to do."""


class DamagedRecordsError(StoreError):
    """Some shadows' records are damaged; ``readable`` has the others."""

    def __init__(self, message: str, readable: Mapping[str, model.Shadow], damaged: Collection[str]) -> None:
        super().__init__(message)
        self.readable = readable
        self.damaged = frozenset(damaged)
