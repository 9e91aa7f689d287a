# SPDX-License-Identifier: Apache-2.0
"""``penumbra capture``: steered packets into a pcapng file, as they come and as they leave."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from controlplane.adapters import layout, pcapng
from controlplane.adapters.capture import Capture, CaptureEndedError, Wanted
from controlplane.adapters.captures import SNAP_MAX, Frame
from controlplane.adapters.clock import MachineClock
from controlplane.addresses import Network
from controlplane.cli import instance as instances
from controlplane.cli import output, wiring
from controlplane.cli.options import InstanceName
from controlplane.cli.output import EXIT_USAGE, fail, warn
from controlplane.ports import Clock

STDOUT = "-"
POLL_S = 0.02
SNAP_MIN = 96
"""Up to the addresses of a frame with two tags, which filters look at."""


@dataclass(slots=True)
class _File:
    """Frames -> blocks of a pcapng file; a packet is one or two frames."""

    out: BinaryIO
    capture: Capture
    snap: int
    unix_ns: int
    """Of CLOCK_MONOTONIC 0."""
    most: int | None
    """Packets, after which no more are begun; None: any number."""
    packets: int = 0
    frames: int = 0
    _interfaces: dict[tuple[int, int], int] = field(default_factory=dict)
    _options: dict[tuple[int, ...], bytes] = field(default_factory=dict)
    _begun: set[tuple[int, int]] = field(default_factory=set)
    """CPU and number of the packets that are taken, if not all are."""

    def begin(self) -> None:
        self.out.write(pcapng.section("penumbra capture"))
        for ifindex in sorted(self.capture.interfaces):
            for leaves in (0, 1):
                self.out.write(self._declared(ifindex, leaves))
        self.out.flush()

    def write(self, frames: Iterable[Frame]) -> None:
        blocks: list[bytes] = []
        for frame in frames:
            if not self._is_taken(frame):
                continue
            if (frame.ifindex, frame.leaves) not in self._interfaces:
                blocks.append(self._declared(frame.ifindex, frame.leaves))
            blocks.append(
                pcapng.packet(
                    self._interfaces[frame.ifindex, frame.leaves],
                    self.unix_ns + frame.time_ns,
                    frame.length,
                    frame.data,
                    self._said_of(frame),
                )
            )
            self.frames += 1
        if blocks:
            self.out.write(b"".join(blocks))
            self.out.flush()

    @property
    def full(self) -> bool:
        return self.most is not None and self.packets >= self.most

    def _is_taken(self, frame: Frame) -> bool:
        packet = frame.cpu, frame.number
        if frame.leaves:
            return self.most is None or packet in self._begun
        if self.full:
            return False
        if self.most is not None:
            self._begun.add(packet)
        self.packets += 1
        return True

    def _declared(self, ifindex: int, leaves: int) -> bytes:
        self._interfaces[ifindex, leaves] = len(self._interfaces)
        name = self.capture.interfaces.get(ifindex, f"interface {ifindex}")
        what = "as it leaves the program" if leaves else "as it comes in"
        return pcapng.interface(
            f"{name} {'out' if leaves else 'in'}", f"came in by {name}, {what}", self.snap
        )

    def _said_of(self, frame: Frame) -> bytes:
        key = (frame.reason, frame.verdict, frame.leaves, frame.service, frame.endpoint)
        said = self._options.get(key)
        if said is None:
            direction = pcapng.OUTBOUND if frame.leaves else pcapng.INBOUND
            said = pcapng.packet_options(
                _comment(frame, *self.capture.names(frame)), direction, frame.verdict
            )
            self._options[key] = said
        return said


def _comment(frame: Frame, service: str, endpoint: str) -> str:
    reason = layout.REASONS[frame.reason]
    words = [reason]
    if endpoint:
        words += ["from" if reason.startswith("return") else "to", endpoint]
    if service:
        words += ["of", service]
    return " ".join(words)


def capture(
    write: Annotated[str, typer.Option("--write", "-w", metavar="FILE", help="a pcapng file; -: stdout")],
    count: Annotated[
        int | None, typer.Option("--count", "-c", min=1, help="end after so many packets")
    ] = None,
    seconds: Annotated[float | None, typer.Option(min=0.1, help="end after so long")] = None,
    snaplen: Annotated[int, typer.Option(min=SNAP_MIN, max=SNAP_MAX, help="bytes of each frame")] = SNAP_MAX,
    service: Annotated[str | None, typer.Option(help="of this service only")] = None,
    endpoint: Annotated[str | None, typer.Option(help="to and from this endpoint only")] = None,
    client: Annotated[
        str | None, typer.Option(metavar="ADDRESS[/BITS]", help="to and from these addresses only")
    ] = None,
    instance: InstanceName = None,
) -> None:
    """Write steered packets to a file, each as it comes and as it leaves, with its verdict and endpoint.

    tcpdump doesn't see them, for they are redirected before it looks. Dropped ones are written too; what is
    left to the kernel as it came is not. Ctrl-C ends it. Traffic goes on, a little slower while it runs.

    Example: penumbra capture -w - --service web | tcpdump -n -r -
    """
    wanted = Wanted(service, endpoint, None if client is None else _network(client), snaplen)
    name = instances.only(instance)
    wiring.require_bpf()
    with _opened(write) as out, _ending() as ended:
        clock = MachineClock()
        with Capture(name, wiring.bpf_dir(), wanted, clock) as captures:
            unix_ns = int((clock.unix_s() - clock.now_s()) * 1e9)
            file = _File(out, captures, snaplen, unix_ns, count)
            try:
                _run(file, captures, clock, seconds, ended)
            except BrokenPipeError:
                _forget_stdout()
            captures.stop()
            _say(file, captures)


def _run(file: _File, captures: Capture, clock: Clock, seconds: float | None, ended: list[int]) -> None:
    until_s = None if seconds is None else clock.now_s() + seconds
    warn(f"capturing at {', '.join(sorted(captures.interfaces.values()))}; Ctrl-C ends it")
    file.begin()
    why = ""
    while not ended and not file.full and (until_s is None or clock.now_s() < until_s):
        try:
            frames = captures.poll()
        except CaptureEndedError as error:
            why = str(error)
            break
        file.write(frames)
        if len(frames) < 1000:
            clock.wait_until(clock.now_s() + POLL_S)
    captures.stop()
    file.write(captures.rest())
    if why:
        warn(f"the capture ends: {why}")


def _say(file: _File, captures: Capture) -> None:
    lost = (
        f"; {output.counted(captures.lost, 'frame')} LOST: the reader was too slow" if captures.lost else ""
    )
    unseen = f"; {captures.unseen} packets passed while the capture stood still" if captures.unseen else ""
    warn(f"{output.counted(file.packets, 'packet')} in {output.counted(file.frames, 'frame')}{lost}{unseen}")


@contextmanager
def _opened(write: str) -> Iterator[BinaryIO]:
    if write == STDOUT:
        if sys.stdout.isatty():
            fail("standard output is a terminal: redirect it, or pipe it into tcpdump -r -", EXIT_USAGE)
        yield sys.stdout.buffer
        return
    with Path(write).open("wb") as out:
        yield out


@contextmanager
def _ending() -> Iterator[list[int]]:
    """A list that gets the number of the signal that ends it; a second one ends what hangs."""
    ended: list[int] = []

    def end(number: int, _frame: object) -> None:
        if ended:
            raise KeyboardInterrupt
        ended.append(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, end) for number in numbers}
    try:
        yield ended
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _forget_stdout() -> None:
    """The reader has gone: what Python would still flush at its end goes nowhere."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def _network(text: str) -> Network:
    try:
        return ip_network(text, strict=False)
    except ValueError:
        fail(f"--client {text!r}: ADDRESS or ADDRESS/BITS is allowed", EXIT_USAGE)


def register(app: typer.Typer) -> None:
    app.command()(capture)
