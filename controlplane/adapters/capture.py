# SPDX-License-Identifier: Apache-2.0
"""Frames of steered packets, as they come and as they leave, which nobody else sees once they are redirected.

For the time of a capture another build of the same source steers, on the same maps, and copies frames into a
ring buffer; it takes the steering program's place, and gives it back, from one packet to the next. Otherwise
there is nothing of it, so that it costs nothing. However the process ends, a guard puts back; should both be
killed, the build stops copying by itself, and the next ``load`` or capture puts back.
"""

from __future__ import annotations

import fcntl
import os
from bisect import bisect_right
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from controlplane.adapters import attach, captures, layout, libbpf, loader, pins, steering
from controlplane.adapters.bcc import Build, ProgramSizes, compile_program, source_hash
from controlplane.adapters.capture_guard import Guard
from controlplane.adapters.captures import Frame, FrameRing
from controlplane.adapters.maps import Maps, open_instance, opened
from controlplane.addresses import Network
from controlplane.ports import Clock, DataplaneError

UNSEEN_S = 2.5
"""After so long without a ``poll`` the program copies nothing more."""
SETTLED_NS = 20_000_000
"""Frames are handed out so long after they came: what is earlier than they is in the ring by then."""
CHECK_S = 0.5
REASONS = sum(1 << at for at, name in enumerate(layout.REASONS) if not name.startswith("pass_"))
"""Of packets that are steered or dropped: the others are seen by everybody."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """None: any."""

    service: str | None = None
    endpoint: str | None = None
    client: Network | None = None
    """From whom, or to whom, packets are, by their outer addresses."""
    snap: int = captures.SNAP_MAX
    """Bytes of a frame."""


class CaptureEndedError(DataplaneError):
    """Something else steers meanwhile: the instance was loaded anew, or unloaded."""


class Capture:
    """Use it in a ``with``: at its end the steering program is in its place again."""

    def __init__(self, instance: str, bpf_dir: Path, wanted: Wanted, clock: Clock) -> None:
        """Compiles (ten seconds, if new) and begins. Raises DataplaneError, with nothing changed then."""
        pins.require_privileges()
        self._instance, self._clock = instance, clock
        self._held: list[Frame] = []
        self._checked_s = clock.now_s()
        with ExitStack() as ending:
            self._maps = open_instance(instance)
            ending.callback(self._maps.close)
            lock = _lock(instance)
            ending.callback(os.close, lock)
            if int(self._maps.settings["source"]) != source_hash(bpf_dir):
                raise DataplaneError("another version's program steers: penumbra load CONFIG first")
            self._guard = Guard(instance, lock)
            self._stopped = False
            ending.callback(self.stop)
            own = captures.make_maps()
            for fd in own.values():
                ending.callback(os.close, fd)
            self._asked = libbpf.map_view(own["capture_wanted"], captures.CAPTURING, writable=True)
            self._cpus = libbpf.map_view(own["capture_cpus"], captures.CAPTURE_CPU)
            self._ring = FrameRing(own["captured"])
            self._asked[0] = captures.asked(
                wanted.client,
                wanted.snap,
                REASONS,
                _row("service", wanted.service, self._maps.service_names.rows()),
                _row("endpoint", wanted.endpoint, self._maps.endpoint_names.rows()),
            )
            self._program_fd, refusals_fd = _compiled(instance, bpf_dir, self._maps, own)
            ending.callback(os.close, self._program_fd)
            ending.callback(os.close, refusals_fd)
            if not self._guard.ready():
                raise DataplaneError("the process that is to put the steering program back did not start")
            self._renew()
            loader.put_in_place(instance, self._program_fd)
            self.interfaces: Mapping[int, str] = {
                one.ifindex: one.interface for one in attach.attached(instance) if one.ifindex
            }
            """Index -> name of those that it steers at."""
            self._ending = ending.pop_all()

    def poll(self) -> list[Frame]:
        """What was captured since, in the order of time; also says that this process is there still.

        Raises CaptureEndedError when another program has taken its place.
        """
        self._renew()
        if self._clock.now_s() - self._checked_s > CHECK_S:
            self._checked_s = self._clock.now_s()
            self._check()
        settled_ns = int(self._clock.now_s() * 1e9) - SETTLED_NS
        self._held += self._ring.read()
        self._held.sort()
        place = bisect_right(self._held, settled_ns, key=lambda frame: frame.time_ns)
        settled, self._held = self._held[:place], self._held[place:]
        return settled

    def rest(self) -> list[Frame]:
        """What is left, after the end."""
        while more := self._ring.read():
            self._held += more
        rest, self._held = sorted(self._held), []
        return rest

    def _renew(self) -> None:
        self._asked["until_tick"] = layout.tick_at(self._clock.now_s() + UNSEEN_S)

    def _check(self) -> None:
        if not attach.running(self._instance, self._program_fd):
            raise CaptureEndedError("the instance was loaded anew or unloaded meanwhile")
        if not self._guard.alive():
            raise CaptureEndedError("the process that is to put the steering program back was killed")

    @property
    def lost(self) -> int:
        """Frames that found no room in the ring."""
        return int(self._cpus["lost"].sum())

    @property
    def unseen(self) -> int:
        """Packets, steered or not, that passed while this process stood still."""
        return int(self._cpus["unseen"].sum())

    def names(self, frame: Frame) -> tuple[str, str]:
        """Of its service and its endpoint; empty: none."""
        service = "" if frame.service == captures.ANY else steering.service_name(self._maps, frame.service)
        return service, steering.endpoint_name(self._maps, frame.endpoint)

    def stop(self) -> None:
        """Puts the steering program back; ``rest`` and the counts are there still. Twice is as once."""
        if self._stopped:
            return
        self._stopped = True
        if not self._guard.end():
            loader.put_back(self._instance)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.close()


def _compiled(instance: str, bpf_dir: Path, maps: Maps, own: Mapping[str, int]) -> tuple[int, int]:
    """Descriptors of the program and of its refusals."""
    steered = opened(instance)
    try:
        compiled = compile_program(
            bpf_dir,
            ProgramSizes.of(maps.sizes),
            {**steered, **own},
            Build.CAPTURE,
            frags=bool(maps.settings["frags"]),
        )
    finally:
        for fd in steered.values():
            os.close(fd)
    return compiled.kept()


def _lock(instance: str) -> int:
    """Held by the capture and its guard: the folder of pins itself, so that nothing is left of it."""
    fd = os.open(pins.check_folder(instance), os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        raise DataplaneError(f"another capture of instance {instance!r} runs: end it first") from None
    return fd


def _row(what: str, name: str | None, rows: Mapping[str, int]) -> int:
    if name is None:
        return captures.ANY
    if name not in rows:
        raise DataplaneError(f"{what} {name!r} is not known; there are: {', '.join(rows) or 'none'}")
    return rows[name]
