# SPDX-License-Identifier: Apache-2.0
"""Nanoseconds per packet of an XDP program: a feeder restores the frame, picks the flow and tail-calls it.

What the feeder and the test run themselves cost is measured with an empty program in the same rounds and
taken off.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from controlplane.adapters import libbpf
from controlplane.adapters.bcc import Compiled, compile_file

SOURCE = Path(__file__).with_name("feeder.c")
BPF_DIR = Path(__file__).resolve().parents[2] / "bpf"
CORES = sorted(os.sched_getaffinity(0))
FRAME_BYTES = 128
TABLE_LINES = 1 << 19
WARM_PACKETS = 4_000_000
ROUNDS, PACKETS = 9, 2_000_000
PLAN = np.dtype(
    [(name, "<u4") for name in ("random", "flow_mask", "next", "in_turn", "address", "port", "net", "pad")]
)
ETHER_BYTES = 14
ETHERTYPE_IPV6 = b"\x86\xdd"
NOT_STEERED = (0, 1, 2)
"""XDP_ABORTED, XDP_DROP, XDP_PASS: the program under test did not do its work."""


@contextmanager
def pinned_to(core: int) -> Iterator[None]:
    """This thread."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@dataclass(frozen=True, slots=True)
class Flows:
    """Frames that differ by their client: of so many flows (a power of two), at random or one after the
    other. ``back``: the client is the destination."""

    frame: bytes
    count: int
    in_turn: bool = False
    back: bool = False

    def client(self) -> tuple[int, int]:
        """Offsets of the last four bytes of the client's address, and of its port."""
        is_v6 = self.frame[12:14] == ETHERTYPE_IPV6
        source, size, header = (8, 16, 40) if is_v6 else (12, 4, 20)
        address = ETHER_BYTES + source + size * (1 + self.back) - 4
        return address, ETHER_BYTES + header + 2 * self.back


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
        self._frame = bytes(FRAME_BYTES)
        self._plan = libbpf.map_view(self._feed.maps["plan"], PLAN, writable=True)

    def close(self) -> None:
        for compiled in self._feeders.values():
            compiled.close()

    def run(self, program_fd: int, flows: Flows, packets: int) -> int:
        """Mean nanoseconds per packet, the feeder's share included."""
        self.aim(program_fd, flows)
        return self.feed(packets)

    def aim(self, program_fd: int, flows: Flows) -> None:
        """What ``feed`` sends from now on, and to which program; the flows start anew."""
        if len(flows.frame) != FRAME_BYTES:
            raise ValueError(f"a frame of {len(flows.frame)} bytes, not {FRAME_BYTES}")
        zero = bytes(4)
        libbpf.map_update(self._feed.maps["target"], zero, program_fd.to_bytes(4, "little"))
        libbpf.map_update(self._feed.maps["template"], zero, flows.frame)
        plan = self._plan[0]
        plan["flow_mask"], plan["in_turn"], plan["next"] = flows.count - 1, flows.in_turn, 0
        plan["random"] = plan["random"] or 1
        plan["address"], plan["port"] = address, _ = flows.client()
        plan["net"] = int.from_bytes(flows.frame[address : address + 4], "big")
        self._frame = flows.frame

    def feed(self, packets: int) -> int:
        """Mean nanoseconds per packet of what was aimed."""
        run = libbpf.prog_test_run(self._feed.program_fd, self._frame, repeat=packets)
        if run.verdict in NOT_STEERED:
            raise RuntimeError(f"the program under test returned XDP verdict {run.verdict}: it did not steer")
        return run.duration_ns

    def compare(
        self, programs: Mapping[str, int], flows: Flows, before_each: Callable[[], None] | None = None
    ) -> dict[str, float]:
        """Median of each program's rounds, the programs taking turns."""
        for fd in programs.values():
            self.run(fd, flows, WARM_PACKETS)
        taken: dict[str, list[int]] = {name: [] for name in programs}
        for _ in range(ROUNDS):
            for name, fd in programs.items():
                if before_each:
                    before_each()
                taken[name].append(self.run(fd, flows, flows.count if flows.in_turn else PACKETS))
        return {name: statistics.median(values) for name, values in taken.items()}
