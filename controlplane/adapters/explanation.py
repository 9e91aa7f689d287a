# SPDX-License-Identifier: Apache-2.0
"""What a program's notes say, with names for numbers: which endpoint a packet gets, and why, step by step.

Nothing is decided here again: every field and sentence is one of the program's own notes.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field

from controlplane.adapters import layout, steering
from controlplane.adapters.dry_run import Answer
from controlplane.adapters.maps import Maps
from controlplane.adapters.notes import ASKS, CHOICES, COUNTS, PARSED, STALES, Note
from controlplane.addresses import with_port
from controlplane.model import Protocol, Role

WHY: Mapping[str, str] = {
    "forward_hop": "to an endpoint, by its cached next hop",
    "forward_fib": "to an endpoint, by a lookup in the kernel's routes",
    "forward_kernel": "rewritten to an endpoint, then left to the kernel to forward",
    "forward_cut": "rewritten to an endpoint; too large for the way there, so the kernel cuts it",
    "return_hop": "to a client, by the cached gateway",
    "return_fib": "to a client, by a lookup in the kernel's routes",
    "return_kernel": "rewritten to a client, then left to the kernel to forward",
    "return_cut": "rewritten to a client; too large for the way there, so the kernel cuts it",
    "reply_echo": "a VIP answers an echo request",
    "reply_ttl": "its TTL ends here: its sender is told so by ICMP",
    "reply_mtu": "larger than the next hop takes: its sender is told so by ICMP",
    "pass_other": "neither to a VIP nor from an endpoint: the kernel's",
    "pass_direct": "from an endpoint to a destination that it answers as itself: the kernel's",
    "pass_not_ip": "neither IP nor a protocol that is steered: the kernel's",
    "pass_vlan": "of a VLAN that this host has no device for: the kernel's",
    "pass_icmp": "ICMP, and not about a steered flow: the kernel's",
    "pass_fragment": "a later fragment, neither to a VIP nor of a return: the kernel's",
    "drop_fragment": "a later fragment to a VIP, and its first one is not known",
    "pass_ttl": "its TTL ends here: the kernel answers, for the part of the program that would is missing",
    "pass_mtu": "larger than the next hop takes: the kernel answers, for the part that would is missing",
    "drop_vip_port": "to a VIP, but to no service there: passing it would loop",
    "drop_no_endpoint": "its service has no endpoint that could take it",
    "drop_broken": "to a VIP, and malformed",
    "drop_source": "to a service, from where no client can be",
    "drop_ttl": "its TTL ends here; of a later fragment or an ICMP error nobody is told",
    "drop_mtu": "larger than the next hop takes; of a later fragment or an ICMP error nobody is told",
    "drop_icmp_limit": "its sender would be told by ICMP, but this CPU has told as many as it may just now",
    "abort_impossible": "a map lacks an entry that must exist: a bug",
}
"""Reason -> in words."""
_STALE = {
    "gone": "its endpoint is no more, or serves another service",
    "down": "its endpoint is down",
    "idle": "it was silent for longer than its idle limit",
    "closed": "it has ended, and this SYN opens another",
    "draining": "its endpoint takes no new flows, and this is a SYN",
    "evicted": "its endpoint is drained past the deadline, and gives up flow after flow",
}
_CHOICE = {
    "live": "the ring's live endpoint takes it",
    "spilled": "a slot of the live endpoint takes it",
    "other": "the ring's can't, another live endpoint takes it",
    "last": "nobody can: the ring's live endpoint gets it all the same",
    "nobody": "there is nobody to take it",
}
_COUNT = {
    "new": "a new flow, demand of the group of {}",
    "midstream": "a TCP packet of an unknown flow without SYN, no demand, at {}",
    "unremembered": "a UDP packet of a flow that is not remembered, at {}",
}
_REQUEST = {
    "started": "a request to {} begins with it",
    "answered": "it answers a request to {}",
    "aborted": "a request to {} that is in flight gets no answer any more",
    "sent_again": "{} has its bytes already: no other request",
}
_ROUTES = ("found", "blackhole", "unreachable", "prohibited", "not forwarded (local, or none)",
           "forwarding is off (sysctl net.ipv4.ip_forward)", "a tunnel that only the kernel does",
           "the neighbour is not resolved yet", "larger than its MTU", "no source address")  # fmt: skip
"""BPF_FIB_LKUP_RET_* of linux/bpf.h."""
_FLAGS = ("SYN", "SYN-ACK", "established", "client's FIN", "endpoint's FIN", "RST", "mid-stream", "request")


@dataclass(frozen=True, slots=True)
class Explanation:
    """Shares are 0..1, times seconds. None: the program did not come to that."""

    verdict: str
    reason: str
    why: str
    short_way: bool
    service: str | None = None
    flow: str | None = None
    """known; new: an endpoint was chosen for it; none: neither."""
    flow_state: str | None = None
    """Of the entry that was found: opening, established, closing, udp."""
    flow_idle_s: float | None = None
    flow_stale: str | None = None
    """Why the entry that was found is as good as none."""
    ring_cell: int | None = None
    """Of the service's ring."""
    ring_endpoint: str | None = None
    """The live endpoint that the cell names; empty: nobody."""
    spill: float | None = None
    spill_hash: float | None = None
    """Spills when it is less than ``spill``, or that is 1."""
    slots: list[Mapping[str, object]] = field(default_factory=list)
    """Slots of the shadow table that were looked at, in order: slot, endpoint, usable."""
    others: list[Mapping[str, object]] = field(default_factory=list)
    """Other cells of the ring that were tried: cell, endpoint, usable."""
    limits: list[Mapping[str, object]] = field(default_factory=list)
    """Limits on new flows that were asked: endpoint, within."""
    chosen_by: str | None = None
    """live, spilled, other, last, nobody."""
    remembered: bool | None = None
    """Whether a new flow gets a place in the cache."""
    endpoint: str | None = None
    """Who gets the packet, or sent it."""
    role: str | None = None
    address: str | None = None
    """With its port."""
    next_hop: str | None = None
    """cached, fib, kernel."""
    next_hop_interface: str | None = None
    next_hop_left_s: float | None = None
    """How long a cached one is still good."""
    steps: list[str] = field(default_factory=list)
    frame: str = ""
    """As it would leave, hexadecimal."""


def explain(maps: Maps, answer: Answer) -> Explanation:
    """Interfaces have the names of the caller's network namespace."""
    return _Teller(maps, answer).told()


class _Teller:
    """One method per kind of note, which fills fields and returns a sentence; None: nothing to say."""

    def __init__(self, maps: Maps, answer: Answer) -> None:
        self._maps = maps
        self._answer = answer
        self._found: dict[str, object] = {}
        self._slots: list[Mapping[str, object]] = []
        self._others: list[Mapping[str, object]] = []
        self._limits: list[Mapping[str, object]] = []
        self._of = 0
        self._now_tick = next((n.b for n in reversed(answer.notes) if n.kind == "reason"), 0)

    def told(self) -> Explanation:
        steps = ["the short way of known flows"] if self._answer.short_way else []
        for note in self._answer.notes:
            said = getattr(self, f"_{note.kind}")(note)
            if said is not None:
                steps.append(said)
        reason = str(self._found.pop("reason", ""))
        if reason.endswith(("_kernel", "_cut")):
            self._found["next_hop"] = "kernel"
        return Explanation(
            verdict=self._answer.verdict.name.lower(),
            reason=reason,
            why=WHY.get(reason, "not even counted: the program is not set up"),
            short_way=self._answer.short_way,
            slots=self._slots,
            others=self._others,
            limits=self._limits,
            steps=steps,
            frame=self._answer.frame.hex(),
            **self._found,  # type: ignore[arg-type]
        )

    # ---- names ----

    def _name(self, ref: int) -> str:
        index = ref & layout.REF_INDEX_MASK
        return steering.endpoint_name(self._maps, index) or (f"endpoint {index}" if index else "")

    def _set_endpoint(self, ref: int) -> str:
        index = ref & layout.REF_INDEX_MASK
        row = self._maps.endpoints[index]
        address = with_port(layout.unmapped(row["address"].tobytes()), int(row["port"]))
        self._found |= {
            "endpoint": self._name(ref),
            "role": Role(int(row["role"])).name.lower(),
            "address": address,
        }
        return f"{self._name(ref)} ({self._found['role']}, {address})"

    def _cell(self, cell: int) -> int:
        row = self._maps.services[self._of]
        size = int(row["ring_size"])
        return (cell - int(row["ring_base"])) % size if size else cell

    # ---- arrival ----

    def _parsed(self, note: Note) -> str:
        tags = f", {note.b} VLAN tag{'s' if note.b > 1 else ''}" if note.b else ""
        return f"parsed: {PARSED[note.a].replace('_', ' ')}{tags}"

    def _device(self, note: Note) -> str:
        return f"came in by VLAN device {_interface(note.a)}" if note.a else "no device here is of its VLAN"

    def _service(self, note: Note) -> str:
        self._of = note.a
        name = steering.service_name(self._maps, note.a) or str(note.a)
        self._found["service"] = name
        return f"service {name}"

    def _sender(self, note: Note) -> str:
        return f"from endpoint {self._set_endpoint(note.a)}"

    def _error_about(self, note: Note) -> str:
        return f"an ICMP error about {'what a client sent' if note.a else 'an answer'}: it follows its flow"

    def _fragment(self, note: Note) -> str:
        known = "it goes where its first one went" if note.a else "where its first one went is not known"
        return f"a later fragment: {known}"

    def _no_client(self, note: Note) -> str:
        return "its source is a martian, a VIP or this host's own: no client is there"

    # ---- the flow cache ----

    def _hash(self, note: Note) -> None:
        return None

    def _flow(self, note: Note) -> str:
        self._found["flow"] = "known"
        return f"the flow is in the cache (entry {note.a}): {self._name(note.b)}"

    def _no_flow(self, note: Note) -> str:
        self._found["flow"] = "none"
        return "the flow is not in the cache"

    def _life(self, note: Note) -> str | None:
        if not note.b:
            return None
        last_seen, low = note.halves
        idle = (self._now_tick - last_seen) & 0xFFFFFFFF
        idle_s = 0.0 if idle >> 31 else idle * layout.TICK_S
        self._found |= {"flow_state": self._state(low >> 24), "flow_idle_s": idle_s}
        return f"it is {self._found['flow_state']}, last seen {idle_s:.1f} s ago"

    def _state(self, flags: int) -> str:
        if flags & (layout.FLOW_FIN_CLIENT | layout.FLOW_FIN_ENDPOINT | layout.FLOW_RST):
            return "closing"
        if int(self._maps.services["protocol"][self._of]) == Protocol.UDP.value:
            return "udp"
        return "established" if flags & layout.FLOW_ESTABLISHED else "opening"

    def _stale(self, note: Note) -> str | None:
        known, self._found["flow"] = self._found.get("flow") == "known", "none"
        if not known:
            return None
        self._found["flow_stale"] = STALES[note.a]
        return f"as good as unknown: {_STALE[STALES[note.a]]}"

    def _other_tuple(self, note: Note) -> str:
        return "that is another flow of the same tag, whose endpoint this one gets too"

    def _gained(self, note: Note) -> str | None:
        names = [name for bit, name in enumerate(_FLAGS) if note.a >> bit & 1]
        return f"the flow's state gains: {', '.join(names)}" if names else None

    def _request(self, note: Note) -> str:
        return _REQUEST[ASKS[note.a]].format(self._name(note.b))

    def _completed(self, note: Note) -> str:
        return f"its handshake is done: a completed flow of the group of {self._name(note.a)}"

    # ---- who gets a new flow ----

    def _affinity(self, note: Note) -> str:
        return "by the client's address alone: its flows go alike"

    def _ring(self, note: Note) -> str | None:
        attempt, ref = note.halves
        if attempt or "ring_cell" in self._found or self._found.get("flow") == "known":
            return None
        self._found |= {"ring_cell": self._cell(note.a), "ring_endpoint": self._name(ref)}
        return f"ring cell {self._cell(note.a)} names {self._name(ref) or 'nobody'}"

    def _live(self, note: Note) -> str | None:
        states = [
            text
            for bit, text in ((layout.ENDPOINT_DOWN, "down"), (layout.ENDPOINT_DRAINING, "draining"))
            if note.b & bit
        ]
        return f"{self._name(note.a)} is {' and '.join(states)}: all of it spills" if states else None

    def _spill(self, note: Note) -> str:
        share, drawn = steering.spill_share(note.a), note.b / 2**32
        self._found |= {"spill": share, "spill_hash": drawn}
        spills = note.a == layout.SPILL_ALL or note.b < note.a
        return f"spill {share:.4g}, the flow's hash {drawn:.4f}: {'it spills' if spills else 'it stays'}"

    def _limit(self, note: Note) -> str:
        self._limits.append({"endpoint": self._name(note.a), "within": bool(note.b)})
        return f"{self._name(note.a)} is {'within' if note.b else 'past'} its limit on new flows"

    def _slot(self, note: Note) -> str:
        usable, ref = note.halves
        self._slots.append({"slot": note.a, "endpoint": self._name(ref), "usable": bool(usable)})
        return (
            f"shadow slot {note.a}: {self._name(ref) or 'empty'}{'' if usable or not ref else ', not usable'}"
        )

    def _other_live(self, note: Note) -> str:
        usable, ref = note.halves
        self._others.append({"try": note.a, "endpoint": self._name(ref), "usable": bool(usable)})
        return (
            f"another ring cell: {self._name(ref) or 'nobody'}{'' if usable or not ref else ', not usable'}"
        )

    def _choice(self, note: Note) -> str:
        self._found |= {"chosen_by": CHOICES[note.b], "flow": "new"}
        return f"{_CHOICE[CHOICES[note.b]]}{': ' + self._name(note.a) if note.a else ''}"

    def _flooded(self, note: Note) -> str:
        self._found["remembered"] = False
        return "too many new flows on this CPU just now: by hash alone, nothing is remembered"

    def _moved(self, note: Note) -> str:
        return f"a flow of {self._name(note.b)} makes room: it moves to its other bucket, entry {note.a}"

    def _place(self, note: Note) -> str:
        self._found["remembered"] = True
        gives_way = f", in the place of a flow of {self._name(note.b)}" if note.b & 0xFFFFFFFF else ""
        return f"remembered in entry {note.a}{gives_way}"

    def _no_place(self, note: Note) -> str:
        self._found["remembered"] = False
        return "not remembered: both its buckets are full of established flows, and none can move"

    def _taken(self, note: Note) -> str:
        return f"another CPU has just given the flow to {self._name(note.a)}"

    def _not_kept(self, note: Note) -> str:
        return f"not remembered, so by hash alone: {self._name(note.a)}"

    def _counted(self, note: Note) -> str:
        return f"counts as {_COUNT[COUNTS[note.b]].format(self._name(note.a) or 'nobody')}"

    # ---- leaving ----

    def _endpoint(self, note: Note) -> str | None:
        return f"to {self._set_endpoint(note.a)}" if note.a else None

    def _direct(self, note: Note) -> str:
        return "its destination is one that endpoints answer as themselves" if note.a else "not a direct one"

    def _hop(self, note: Note) -> str:
        left_s = note.b * layout.TICK_S
        self._found |= {
            "next_hop": "cached",
            "next_hop_interface": _interface(note.a),
            "next_hop_left_s": left_s,
        }
        return f"next hop cached: by {_interface(note.a)}, good for {left_s:.1f} s"

    def _no_hop(self, note: Note) -> str:
        return "the cached next hop has expired" if note.a else "no next hop is cached"

    def _route(self, note: Note) -> str:
        code = note.b - (1 << 64) if note.b >> 63 else note.b
        if code < 0:
            return f"the kernel's routes: {os.strerror(-code)}"
        self._found |= {"next_hop": "fib", "next_hop_interface": _interface(note.a)}
        by = f", by {_interface(note.a)}" if code == 0 else ""
        return f"the kernel's routes: {_ROUTES[code] if code < len(_ROUTES) else code}{by}"

    def _route_mtu(self, note: Note) -> str:
        return f"its route takes no more than {note.a} bytes"

    def _no_port(self, note: Note) -> str:
        return f"{_interface(note.a)} takes no redirected frames"

    def _too_big(self, note: Note) -> str:
        return f"larger than the {note.a} bytes that fit through {_interface(note.b)}, its cached next hop"

    def _refused(self, note: Note) -> str:
        what = f"no more than {note.a} bytes fit" if note.a else "its TTL has ended"
        return f"its sender is told that {what}, by {'this host' if note.b else 'its VIP'}"

    def _reason(self, note: Note) -> None:
        self._found["reason"] = layout.REASONS[note.a]


def _interface(ifindex: int) -> str:
    try:
        return socket.if_indextoname(ifindex)
    except OSError:
        return f"interface {ifindex}"
