# SPDX-License-Identifier: Apache-2.0
"""Asks the program of an instance what it would do with a packet: the same source, built without its stores,
on the instance's own maps. Traffic goes on meanwhile, and what it changes between two questions is seen.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path

from controlplane.adapters import layout, libbpf, notes, pins
from controlplane.adapters.bcc import Build, ProgramSizes, compile_program, source_hash
from controlplane.adapters.libbpf import BpfError, MapType
from controlplane.adapters.maps import Maps, open_instance, opened
from controlplane.adapters.notes import Note
from controlplane.ports import DataplaneError

TRACES = "traces"


class Verdict(IntEnum):
    """enum xdp_action of linux/bpf.h."""

    ABORTED = 0
    DROP = 1
    PASS = 2
    TX = 3
    REDIRECT = 4


@dataclass(frozen=True, slots=True)
class Answer:
    verdict: Verdict
    frame: bytes
    """As it would leave."""
    notes: tuple[Note, ...]
    """What the program noted on its way, in order."""
    short_way: bool
    """The program's way for known flows that tell nothing new (bpf/hit.c)."""


class DryRun:
    """Close it when done."""

    def __init__(self, program_fd: int, refusals_fd: int, traces_fd: int) -> None:
        self._program_fd, self._refusals_fd = program_fd, refusals_fd
        self._trace = libbpf.map_view(traces_fd, notes.TRACE, writable=True)
        os.close(traces_fd)

    @classmethod
    def compiled(
        cls, bpf_dir: Path, sizes: ProgramSizes, maps: Mapping[str, int], *, frags: bool = False
    ) -> DryRun:
        """On these maps, name -> descriptor, which stay the caller's. Takes about a second."""
        traces_fd = libbpf.map_create(
            MapType.ARRAY, TRACES, layout.INDEX.itemsize, notes.TRACE.itemsize, 1, libbpf.BPF_F_MMAPABLE
        )
        try:
            compiled = compile_program(
                bpf_dir, sizes, {**maps, TRACES: traces_fd}, Build.DRY_RUN, frags=frags
            )
        except BaseException:
            os.close(traces_fd)
            raise
        return cls(*compiled.kept(), traces_fd)

    def close(self) -> None:
        os.close(self._program_fd)
        os.close(self._refusals_fd)

    def ask(self, frame: bytes, ifindex: int) -> Answer:
        """What would become of a frame that came in by this interface of the caller's network namespace.

        Raises DataplaneError: it is no frame that the kernel's test run takes.
        """
        self._trace["count"] = 0
        try:
            run = libbpf.prog_test_run(self._program_fd, frame, ingress_ifindex=ifindex)
        except BpfError as error:
            if error.errno not in (errno.EINVAL, errno.E2BIG, errno.ENOMEM):
                raise DataplaneError(f"the kernel ran nothing: {error}") from error
            raise DataplaneError(
                f"the kernel takes no frame of {len(frame)} bytes for a test run, but of 14 to some 3500 "
                "(more where the instance takes jumbo frames)"
            ) from error
        noted = notes.read(self._trace[0])
        ways = [at for at, one in enumerate(noted) if one.kind == "long_way"]
        return Answer(Verdict(run.verdict), run.packet, tuple(noted[ways[-1] + 1 if ways else 0 :]), not ways)


@dataclass(frozen=True, slots=True)
class Questioned:
    """A loaded instance that can be asked."""

    maps: Maps
    run: DryRun
    same_version: bool
    """False: another version's program steers there, and ``run`` is this version's."""

    def close(self) -> None:
        self.maps.close()
        self.run.close()


def question(instance: str, bpf_dir: Path) -> Questioned:
    """Opens a loaded instance for questions; needs the compiler. DataplaneError says what is in the way."""
    pins.require_privileges()
    maps = open_instance(instance)
    try:
        fds = opened(instance)
        try:
            frags = bool(maps.settings["frags"])
            run = DryRun.compiled(bpf_dir, ProgramSizes.of(maps.sizes), fds, frags=frags)
        finally:
            for fd in fds.values():
                os.close(fd)
    except BaseException:
        maps.close()
        raise
    return Questioned(maps, run, int(maps.settings["source"]) == source_hash(bpf_dir))
