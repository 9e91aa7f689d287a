# SPDX-License-Identifier: Apache-2.0
"""Packets per second of an access point's core: Penumbra, nftables, and one that only hands frames on.

One core makes the frames, is the access point, and counts at the endpoint: a batch goes all its way before
the next is made, so nothing is lost and nobody waits. What making them costs is measured without sending
and taken off.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from contextlib import ExitStack

from controlplane.lab.lab import Lab
from tests.bench import contenders
from tests.bench.figures import Figure
from tests.bench.frames import Arrived, Frames, framed
from tests.bench.harness import CORES, pinned_to
from tests.bench.sessions import cpu_ns

FLOWS = 1 << 16
ROUNDS, FRAMES = 7, 500_000
PROTOCOLS = ("tcp", "udp")


def measure() -> Mapping[str, Figure]:
    """``endtoend.packets_*`` and ``frame_*``; about 30 s on one core."""
    figures: dict[str, Figure] = {}
    with pinned_to(CORES[-1]), ExitStack() as stack:
        frames = Frames()
        stack.callback(frames.close)
        labs = _labs(stack, frames)
        for protocol in PROTOCOLS:
            for name in ("penumbra", "nftables"):
                frames.open(labs[name], protocol, FLOWS)
            figures |= _compare(frames, labs, protocol)
    return figures


def _labs(stack: ExitStack, frames: Frames) -> Mapping[str, Lab]:
    labs = {
        "penumbra": stack.enter_context(contenders.penumbra()).lab,
        "nftables": stack.enter_context(contenders.nftables()).lab,
        "relay": stack.enter_context(contenders.bare()).lab,
    }
    frames.let_pass(labs["nftables"])
    frames.relay(labs["relay"])
    for lab in labs.values():
        frames.catch(lab)
    return labs


def _compare(frames: Frames, labs: Mapping[str, Lab], protocol: str) -> Mapping[str, Figure]:
    taken: dict[str, list[float]] = {name: [] for name in ("make", *labs)}
    for _ in range(ROUNDS):
        for name, lab in labs.items():
            frame = framed(lab, protocol, direct=name == "relay")  # nobody translates there
            taken["make"].append(_cost_ns(frames, lab, frame, send=False))
            taken[name].append(_cost_ns(frames, lab, frame))
    median = {name: statistics.median(costs) for name, costs in taken.items()}
    make = median.pop("make")
    rates = {name: 1e9 / (cost - make) for name, cost in median.items()}
    ratio = Figure(rates["penumbra"] / rates["nftables"], "x")
    return {
        f"endtoend.frame_made_{protocol}": Figure(make, "ns"),
        **{f"endtoend.packets_{name}_{protocol}": Figure(rate, "packets/s") for name, rate in rates.items()},
        f"endtoend.packets_vs_nftables_{protocol}": ratio,
    }


def _cost_ns(frames: Frames, lab: Lab, frame: bytes, *, send: bool = True) -> float:
    """Of this thread's time, per frame. RuntimeError when not all arrived."""
    frames.aim(frame, FLOWS, send=send)
    before, began_ns = frames.arrived(), cpu_ns()
    frames.send(lab, frame, FRAMES)
    took_ns, arrived = cpu_ns() - began_ns, frames.arrived() - before
    if arrived != Arrived(FRAMES if send else 0, 0, 0, 0):
        raise RuntimeError(f"{lab.topology.lab}: of {FRAMES} frames: {arrived}")
    return took_ns / FRAMES
