# SPDX-License-Identifier: Apache-2.0
"""The nouns. Frozen values without behaviour that touches the world.

Times are seconds of a monotonic clock unless a name says otherwise; rates are per second;
shares are 0..1; ``capacity`` and demand are completed new flows per second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from controlplane.addresses import Address, Network


class Protocol(Enum):
    """Transport protocols that are steered; the value is the IP protocol number."""

    TCP = 6
    UDP = 17


class Role(Enum):
    """What an endpoint is; the value is the one in ``bpf/structs.h``."""

    LIVE = 1
    SHADOW = 2


class Mode(Enum):
    """How far the controller may go."""

    FORECAST_ONLY = "forecast-only"
    """Forecasts and health only: spill, weights and shadows stay as they are."""
    ADVISE = "advise"
    """Says what it would do and does none of it."""
    ACT = "act"


class OnDown(Enum):
    """What becomes of established flows when their endpoint goes down."""

    RESET = "reset"
    KEEP = "keep"


class Affinity(Enum):
    """What of a new flow decides who is given it."""

    NONE = "none"
    """Addresses and ports: a client's flows are spread."""
    SOURCE = "source"
    """The client's address: all its flows go alike."""


LIMIT_WINDOW_S = 0.1
"""What an endpoint's limit is counted in, by the program."""


class Requests(Enum):
    """How requests are told on a service's connections: by which bytes."""

    OFF = "off"
    HTTP1 = "http1"
    """Any payload."""
    TLS = "tls"
    """Application data."""


class ProbeKind(Enum):
    TCP = "tcp"
    HTTP = "http"
    HTTPS = "https"


class UsageKind(Enum):
    """Who tells what a member uses."""

    NODE_EXPORTER = "node-exporter"
    """Its host, as Prometheus scrapes it."""
    AGENT_CHECK = "agent-check"
    """An agent beside it, as HAProxy asks it."""
    CGROUP = "cgroup"
    """The kernel of this host."""
    DOCKER = "docker"
    """A container engine, of its containers."""
    CADVISOR = "cadvisor"
    """cAdvisor, of containers, as Prometheus scrapes it."""


class Admin(Enum):
    """An agent's word on whether its member takes new flows."""

    READY = "ready"
    DRAIN = "drain"
    MAINT = "maint"


class Operating(Enum):
    """An agent's word on whether its member works."""

    UP = "up"
    DOWN = "down"


class Access(Enum):
    """What clients of a stateful service do with its data."""

    READ = "read"
    """Shadows may serve it, from copies."""
    WRITE = "write"
    """Only the live endpoints serve it."""


class SyncDriver(Enum):
    """What keeps a shadow's copy of the data up to date, and tells how far behind it is."""

    POSTGRES = "postgres"
    """Logical replication."""
    REDIS = "redis"
    """REPLICAOF."""
    COMMAND = "command"
    """The user's own commands."""


class OnLag(Enum):
    """What becomes of established flows when a shadow's data is older than agreed."""

    HOLD = "hold"
    EVICT = "evict"
    """They go to others, as new ones do."""


class ForecastMethod(Enum):
    AUTO = "auto"
    """All that there are, weighed by what came."""
    NONE = "none"
    """No forecast: the present demand is all that is known (reactive)."""


class ShadowState(Enum):
    """A shadow's life, in order; FAILED may follow any of the first three."""

    REQUESTED = "requested"
    PROVISIONING = "provisioning"
    WARMING = "warming"
    READY = "ready"
    DRAINING = "draining"
    REMOVING = "removing"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Probe:
    """A health check of every endpoint of a service, and what follows from its answers."""

    kind: ProbeKind = ProbeKind.TCP
    port: int | None = None
    """None: the member's own."""
    path: str = "/"
    """HTTP and HTTPS only, as the four that follow: what to GET."""
    status: tuple[tuple[int, int], ...] = ((200, 399),)
    """Ranges, ends included, of what is healthy."""
    body: str = ""
    """Regular expression that is found in the first 64 KiB of a healthy answer."""
    host: str = ""
    """Of the Host header, and the name that an HTTPS certificate must be for; empty: the member's address."""
    ca: str = ""
    """PEM file of the authorities that HTTPS certificates must be signed by; empty: the system's."""
    source: str = ""
    """Own address that checks come from; empty: as it is routed."""
    interval_s: float = 1.0
    timeout_s: float = 0.5
    jitter: float = 0.0
    """A check may come earlier by up to so much of the interval."""
    rise: int = 2
    """Consecutive successes until healthy."""
    fall: int = 3
    """Consecutive failures until unhealthy."""
    max_ejected: float = 1.0
    """At most this share of a service's members that were healthy is ejected at once."""


@dataclass(frozen=True, slots=True)
class UsageSource:
    """Where it is read what members use. A service's holds ``{name}`` and the like for what differs between
    them (``controlplane/usage_source.py``)."""

    kind: UsageKind
    at: str
    """URL of node-exporter, cAdvisor or the engine, address of the agent, folder of the cgroup."""
    port: int = 0
    """Of the agent."""
    send: str = ""
    """What the agent is sent first."""
    interval_s: float = 5.0
    timeout_s: float = 1.0
    selector: str = ""
    """The container: its name, or ``label=value,...``; empty: the whole host."""

    @property
    def good_s(self) -> float:
        """How long a reading may be acted on."""
        return max(3.0 * self.interval_s, 10.0)


@dataclass(frozen=True, slots=True)
class Sync:
    """How the shadows of a service that is read get its data, and how old clients may see it."""

    driver: SyncDriver
    max_lag_s: float | None = None
    """How old; one of this and the next is given."""
    max_lag_bytes: int | None = None
    """How much of what was written since it may lack, as of the last reading."""
    on_lag: OnLag = OnLag.HOLD
    interval_s: float = 0.5
    """How often lag is read."""
    copy_timeout_s: float = 600.0
    """Time limit of the first copy."""
    primary: tuple[Address, int] | None = None
    """Who has the original data; None: the live endpoint that is cloned."""
    variables: Mapping[str, object] = field(default_factory=dict)
    """The driver's."""

    def primary_of(self, parent: Endpoint) -> tuple[Address, int]:
        return self.primary or (parent.address, parent.port)


@dataclass(frozen=True, slots=True)
class ForecastSettings:
    method: ForecastMethod = ForecastMethod.AUTO


@dataclass(frozen=True, slots=True)
class ShadowSettings:
    """When a live endpoint gets shadows, how many, where, and until when."""

    target: str = "netns"
    """The Ansible role that makes them: ``netns``, ``docker`` or the user's own."""
    hosts: tuple[str, ...] = ()
    """Hosts that may carry them, best first; empty: none may be made."""
    regions: tuple[str, ...] = ()
    """Regions of hosts that are preferred, best first; empty: that of the parent's host."""
    cost_weight: float = 0.0
    """What the dearest of ``hosts`` counts against it, in shares of use; 0: prices don't."""
    max_per_endpoint: int = 4
    max_per_service: int | None = None
    """Of all its endpoints together; None: no more limit than theirs."""
    standby: int = 0
    """Of each live endpoint so many are kept made and healthy without new flows."""
    standing: bool = True
    """Whether members may stand by for what is not forecast, if that pays."""
    over_cost: float = 6.0
    """What a second over capacity costs, in seconds of the usual group."""
    headroom: float = 0.0
    """The share of capacity that is never counted on."""
    lead_time_s: float = 10.0
    """Assumed until provisioning was measured."""
    warm_up_s: float = 2.0
    """From healthy until it may take its full share."""
    min_life_s: float = 60.0
    idle_s: float = 60.0
    """How long it must be unwanted until it gets no new flows any more."""
    drain_s: float = 30.0
    """Deadline for its old flows, from when it gets no new ones; then they are given to others."""
    timeout_s: float = 120.0
    """Time limit of one provisioning run."""
    retries: int = 3
    retry_after_s: float = 5.0
    """First pause after a failure; doubles with each further one, up to 5 min."""
    variables: Mapping[str, object] = field(default_factory=dict)
    """Extra variables for the playbooks of this service."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """An address and port that serves a service, as configured (live)."""

    name: str
    service: str
    address: Address
    port: int
    weight: float = 1.0
    capacity: float | None = None
    """New flows per second it can serve; None: it is not known, and learned."""
    host: str | None = None
    limit: float | None = None
    """New flows per second past which the program spills at once; None: by capacity, infinite: none."""


@dataclass(frozen=True, slots=True)
class Service:
    name: str
    vip: Address
    port: int
    protocol: Protocol
    endpoints: tuple[Endpoint, ...]
    on_down: OnDown = OnDown.RESET
    affinity: Affinity = Affinity.NONE
    ring_size: int = 16381
    probe: Probe = Probe()
    usage: UsageSource | None = None
    """None: it is not read."""
    forecast: ForecastSettings = ForecastSettings()
    shadows: ShadowSettings = ShadowSettings()
    requests: Requests = Requests.OFF
    request_sample: int = 16
    """One in so many requests is timed, a power of two; all are counted."""
    access: Access | None = None
    """None: it keeps no data, or none that differs between members."""
    sync: Sync | None = None
    """None: shadows need no copy of any data."""


@dataclass(frozen=True, slots=True)
class HostCapacity:
    """What a host has, where that is not read. None: not known."""

    cpus: float | None = None
    memory_bytes: float | None = None


@dataclass(frozen=True, slots=True)
class Host:
    """Hardware that may carry shadows."""

    name: str
    slots: int = 1
    """How many shadows it may carry at once."""
    variables: Mapping[str, object] = field(default_factory=dict)
    """Ansible host variables, e.g. ``ansible_connection`` or ``netns``."""
    region: str = ""
    price_per_hour: float = 0.0
    """Of one shadow there, in whichever currency."""
    capacity: HostCapacity = HostCapacity()
    usage: UsageSource | None = None
    """Where its use is read; None: nowhere, its slots are its use."""
    given: frozenset[str] = frozenset()
    """Settings that the configuration names, not the inventory alone: they win."""
    gone: bool = False
    """It is neither configured nor in the inventory any more: what it carries is removed, nothing comes."""


@dataclass(frozen=True, slots=True)
class Inventory:
    """What Ansible's inventory tells."""

    hosts: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Name -> its variables, those of its groups included."""
    groups: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Name -> hosts, those of groups in it included."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """Compiled-in sizes of the maps."""

    services: int = 64
    endpoints: int = 1024
    flows: int = 262_144
    """Entries of the flow cache, a power of two."""
    ring_cells: int = 4_194_304
    """Cells of all rings, two copies each."""


@dataclass(frozen=True, slots=True)
class Idle:
    """Idle limits of flows."""

    opening_s: float = 10.0
    established_s: float = 900.0
    closing_s: float = 5.0
    udp_s: float = 60.0


@dataclass(frozen=True, slots=True)
class Config:
    instance: str
    interfaces: tuple[str, ...]
    services: Mapping[str, Service]
    hosts: Mapping[str, Host] = field(default_factory=dict)
    mode: Mode = Mode.ACT
    tick_s: float = 1.0
    max_shadows: int | None = None
    """Of all services together; None: as many as hosts have slots."""
    budget_per_hour: float | None = None
    """What all shadows together may cost, by the prices of their hosts; None: whatever they do."""
    inventory: Path | None = None
    """A file, folder or script that Ansible takes for an inventory: hosts beside ``hosts``."""
    host_usage: UsageSource | None = None
    """Of hosts that have no ``usage`` of their own."""
    direct: tuple[Network, ...] = ()
    """More destinations that endpoints answer as themselves."""
    sizes: Sizes = Sizes()
    idle: Idle = Idle()
    insert_limit_per_s: float = 200_000.0
    """New flows that one CPU remembers; what comes beyond that goes by hash alone."""
    icmp_limit_per_s: float = 1000.0
    """ICMP errors that one CPU sends of its own; 0: none."""
    playbooks: Path | None = None
    """Folder with provision.yml and deprovision.yml; None: the shipped ones."""
    state_dir: Path = Path("/var/lib/penumbra")
    metrics_address: str = "127.0.0.1"
    metrics_port: int = 9464


# ---- what the data plane has, or should have ------------------------------------------


@dataclass(frozen=True, slots=True)
class Member:
    """An endpoint, live or shadow, as installed in the data plane."""

    name: str
    service: str
    address: Address
    port: int
    role: Role
    parent: str | None = None
    """A shadow's live endpoint; None for a live one."""
    down: bool = False
    draining: bool = False
    spill: float = 0.0
    """Live only: share of its new flows that go to ``slots``; resolution 2**-32."""
    slots: Mapping[str, float] = field(default_factory=dict)
    """Live only: name of a shadow (or of a neighbour with room) -> weight."""
    limit: int = 0
    """New flows in ``LIMIT_WINDOW_S`` past which they go elsewhere at once; 0: none."""
    evicted: float = 0.0
    """Draining only: share of its cached flows that are misses; resolution 1/100, below 1."""


@dataclass(frozen=True, slots=True)
class VirtualService:
    """A service as installed in the data plane."""

    name: str
    vip: Address
    port: int
    protocol: Protocol
    on_down: OnDown
    ring_size: int
    ring: Mapping[str, float] = field(default_factory=dict)
    """Name of a live endpoint -> weight in the ring, resolution 1/1000."""
    affinity: Affinity = Affinity.NONE
    requests: Requests = Requests.OFF
    request_sample: int = 16


@dataclass(frozen=True, slots=True)
class Steering:
    """All that steers packets: installed, or wanted."""

    services: Mapping[str, VirtualService] = field(default_factory=dict)
    members: Mapping[str, Member] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class InstallService:
    service: VirtualService
    """Installed without a ring. One that is there keeps its ring, and takes what else may change: how its
    packets are treated, not its VIP, port, protocol or ring size."""


@dataclass(frozen=True, slots=True)
class RemoveService:
    name: str


@dataclass(frozen=True, slots=True)
class InstallMember:
    member: Member
    """Installed with its down flag, without spill, slots or limit; it doesn't drain."""


@dataclass(frozen=True, slots=True)
class RemoveMember:
    name: str
    """From here on its cached flows are misses."""


@dataclass(frozen=True, slots=True)
class SetRing:
    service: str
    weights: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class SetSlots:
    member: str
    slots: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class SetSpill:
    member: str
    share: float


@dataclass(frozen=True, slots=True)
class SetLimit:
    member: str
    limit: int


@dataclass(frozen=True, slots=True)
class SetDown:
    member: str
    down: bool


@dataclass(frozen=True, slots=True)
class SetDraining:
    member: str
    draining: bool
    evicted: float = 0.0
    """Share of its cached flows that are misses from here on."""


Step = (
    InstallService
    | RemoveService
    | InstallMember
    | RemoveMember
    | SetRing
    | SetSlots
    | SetSpill
    | SetLimit
    | SetDown
    | SetDraining
)


# ---- shadows and what is known of the world --------------------------------------------


@dataclass(frozen=True, slots=True)
class Shadow:
    """One shadow's record, as the store keeps it. Times are Unix seconds that no setting of the clock moves
    (``ports.Clock.record_s``): they survive a restart."""

    name: str
    service: str
    parent: str
    host: str
    target: str
    state: ShadowState
    requested_unix_s: float
    changed_unix_s: float
    """When ``state`` was entered."""
    address: Address | None = None
    port: int | None = None
    healthy_unix_s: float | None = None
    ready_unix_s: float | None = None
    attempts: int = 0
    reason: str = ""
    """Why it is in this state, in words."""
    by_hand: bool = False
    """Ordered by ``penumbra shadow add``: the policy does not remove it."""
    share: float = 1.0
    """Draining: the part of its full share of new flows that it gets; by hand it gets none."""
    evicted: float = 0.0
    """Draining: the part of its old flows that others have, past the deadline."""
    placed: str = ""
    """Why it is on its host, in words and numbers."""
    id: str = ""
    """As its label has it; empty: its target gives none."""
    standby: bool = False
    """It is kept for when one more member is wanted, and is none until then."""


@dataclass(frozen=True, slots=True)
class Order:
    """What a provisioner is asked for: everything a playbook run needs to know."""

    shadow: str
    instance: str
    service: str
    parent: Endpoint
    protocol: Protocol
    probe: Probe
    host: Host
    target: str
    timeout_s: float
    variables: Mapping[str, object] = field(default_factory=dict)
    sync: Sync | None = None
    """None: it needs no copy of any data."""
    specification: str = ""
    """What its target's role read of the original, opaque to all but the role; empty: it is read then."""


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a target's role read of one original while it was healthy."""

    endpoint: str
    target: str
    host: str
    text: str = ""
    """Its specification; empty, without a reason: the target can't read any."""
    reason: str = ""
    """Why it could not be read, one line."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a target would make of each field of an original."""

    rows: Sequence[Mapping[str, str]] = ()
    """Each with field, verdict, original, clone and reason, in the target's words."""
    made_from: str = ""
    """``live`` or ``kept``: which original was read."""
    reason: str = ""
    """Why there is none, one line."""


class RunState(Enum):
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class RunResult:
    """Where a provisioning or deprovisioning run is."""

    shadow: str
    state: RunState
    address: Address | None = None
    port: int | None = None
    id: str = ""
    reason: str = ""
    """Why it failed, one line."""
    refused: bool = False
    """It failed, and would on any host: the host did what it could."""
    started_s: float = 0.0
    ended_s: float | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A shadow that is there, by its labels, whether anybody remembers it or not."""

    shadow: str
    host: str
    target: str
    service: str
    parent: str
    address: Address | None
    port: int | None
    id: str = ""
    """Of this one shadow: another that is made under its name has another."""
    created: str = ""
    """RFC 3339."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What all hosts carry. A host that could not be asked is in ``unasked``, with the reason: what it
    carries is not known."""

    found: Sequence[Found]
    unasked: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Health:
    """One probe's answer."""

    member: str
    ok: bool
    at_s: float
    latency_s: float
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a member uses of what it may use, 0..1 each, and what its agent asks for. None: not told."""

    member: str
    at_s: float
    cpu: float | None = None
    memory: float | None = None
    network: float | None = None
    weight: float | None = None
    """Share of its usual weight."""
    admin: Admin | None = None
    operating: Operating | None = None
    reason: str = ""
    """Why it is down, as the agent has it."""
    good_s: float = 10.0
    """How long after ``at_s`` it may be acted on."""
    of_cpus: float | None = None
    """CPUs that it may keep busy, of which ``cpu`` is the share."""
    of_memory_bytes: float | None = None


@dataclass(frozen=True, slots=True)
class LagTarget:
    """A shadow whose lag is read, and where."""

    shadow: str
    instance: str
    service: str
    sync: Sync
    address: Address
    port: int
    primary: tuple[Address, int]


@dataclass(frozen=True, slots=True)
class Lag:
    """How far a shadow's data is behind its primary's, read at ``at_s``: never later than it was so."""

    shadow: str
    service: str
    at_s: float
    lag_s: float | None = None
    """Its data was the primary's so long before; None: not known, as the next one."""
    lag_bytes: int | None = None
    written_bytes_per_s: float = 0.0
    """By so much the primary moves on."""
    copied: bool = True
    """The first copy is complete, and what comes after it is being taken."""
    reason: str = ""
    """Why it is not, or why nothing comes after it, in words."""
    is_lost: bool = False
    """It can never go on."""


@dataclass(frozen=True, slots=True)
class Interface:
    """Where the program should be attached, and whether it is."""

    name: str
    steered: bool
    native: bool
    reason: str = ""
    """Why it is not steered."""


class EventKind(Enum):
    """Kinds of events from the data plane; the value is the one in ``bpf/structs.h``."""

    REDIRECTED = 0
    NO_SHADOW = 1
    ENDPOINT_DOWN = 2
    LIMITED = 3


@dataclass(frozen=True, slots=True)
class Event:
    kind: EventKind
    at_s: float
    service: str
    endpoint: str
    chosen: str
    client: str


@dataclass(frozen=True, slots=True)
class Decision:
    """One sentence of the decision log, with what it was made of."""

    at_unix_s: float
    subject: str
    """Endpoint or shadow it is about."""
    action: str
    """add, hold, drain, remove, spill, ring, health, adopt, fail, retry, ..."""
    reason: str
    inputs: Mapping[str, float | str] = field(default_factory=dict)
