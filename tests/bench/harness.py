# SPDX-License-Identifier: Apache-2.0
"""Nanoseconds per packet of an XDP program: a feeder restores the frame, picks the flow and tail-calls it.

What the feeder and the test run themselves cost is measured with an empty program in the same rounds and
taken off.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from controlplane.adapters import libbpf
from controlplane.adapters.bcc import Compiled, compile_file

SOURCE = Path(__file__).with_name("feeder.c")
BPF_DIR = Path(__file__).resolve().parents[2] / "bpf"
FRAME_BYTES = 128
TABLE_LINES = 1 << 19
WARM_PACKETS = 4_000_000
PLAN = np.dtype([("random", "<u4"), ("flow_mask", "<u4"), ("next", "<u4"), ("in_turn", "<u4")])
NOT_STEERED = (0, 1, 2)
"""XDP_ABORTED, XDP_DROP, XDP_PASS: the program under test did not do its work."""


@contextmanager
def pinned_to_last_core() -> Iterator[None]:
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class Harness:
    """Feeder and yardsticks, loaded; programs under test are given by descriptor."""

    def __init__(self) -> None:
        defines = [f"-DFRAME_BYTES={FRAME_BYTES}", f"-DTABLE_LINES={TABLE_LINES}"]
        self._feeders: Mapping[str, Compiled] = {
            name: compile_file(SOURCE, name, defines, headers=BPF_DIR) for name in ("feed", "empty", "cold")
        }
        self._feed = self._feeders["feed"]
        self.empty = self._feeders["empty"].program_fd
        self.cold = self._feeders["cold"].program_fd
        self._plan = libbpf.map_view(self._feed.maps["plan"], PLAN, writable=True)

    def close(self) -> None:
        for compiled in self._feeders.values():
            compiled.close()

    def run(self, program_fd: int, frame: bytes, flows: int, packets: int, *, in_turn: bool = False) -> int:
        """Mean nanoseconds per packet, the feeder's share included."""
        self.aim(program_fd, frame, flows, in_turn=in_turn)
        return self.feed(frame, packets)

    def aim(self, program_fd: int, frame: bytes, flows: int, *, in_turn: bool) -> None:
        """What ``feed`` sends from now on, and to which program; the flows start anew."""
        if len(frame) != FRAME_BYTES:
            raise ValueError(f"a frame of {len(frame)} bytes, not {FRAME_BYTES}")
        zero = bytes(4)
        libbpf.map_update(self._feed.maps["target"], zero, program_fd.to_bytes(4, "little"))
        libbpf.map_update(self._feed.maps["template"], zero, frame)
        plan = self._plan[0]
        plan["flow_mask"], plan["in_turn"], plan["next"] = flows - 1, in_turn, 0
        plan["random"] = plan["random"] or 1

    def feed(self, frame: bytes, packets: int) -> int:
        """Mean nanoseconds per packet of what was aimed."""
        run = libbpf.prog_test_run(self._feed.program_fd, frame, repeat=packets)
        if run.verdict in NOT_STEERED:
            raise RuntimeError(f"the program under test returned XDP verdict {run.verdict}: it did not steer")
        return run.duration_ns

    def compare(
        self, programs: Mapping[str, int], frame: bytes, flows: int, *, rounds: int, packets: int
    ) -> dict[str, float]:
        """Median of each program's rounds, the programs taking turns. Flows are picked at random."""
        for fd in programs.values():
            self.run(fd, frame, flows, WARM_PACKETS)
        taken: dict[str, list[int]] = {name: [] for name in programs}
        for _ in range(rounds):
            for name, fd in programs.items():
                taken[name].append(self.run(fd, frame, flows, packets))
        return {name: statistics.median(values) for name, values in taken.items()}
