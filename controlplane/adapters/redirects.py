# SPDX-License-Identifier: Apache-2.0
"""Has the kernel count what becomes of redirected frames: bpf/redirects.c at two tracepoints.

It is a second program beside the packet's path, and without it all is steered as well: what is missing for it
is a sentence, not an error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from controlplane.adapters import layout, libbpf, pins
from controlplane.adapters.bcc import ProgramSizes, compile_tracers
from controlplane.adapters.kernel_types import KernelTypes
from controlplane.adapters.libbpf import BpfError
from controlplane.ports import DataplaneError

_SOURCE = "redirects.c"
_COUNTING = {layout.REDIRECT_SENT: "count_sent", layout.REDIRECT_REFUSED: "count_refused"}
"""Place in ``redirect_programs`` -> function."""
_TRACEPOINTS = {"xdp_devmap_xmit": ("at_sent", 5), "xdp_redirect_err": ("at_refused", 7)}
"""Name -> function, and how many arguments it is written for."""


def missing() -> str:
    """What this kernel lacks for it, in words; empty: nothing that is known before it is tried."""
    try:
        _defines()
    except DataplaneError as error:
        return str(error)
    return ""


def is_counting(instance: str) -> bool:
    return all(_pin(instance, name).exists() for name in _TRACEPOINTS)


@dataclass(frozen=True, slots=True)
class Counting:
    """This version's programs on the maps of an instance."""

    programs: Mapping[str, int]
    missing: str
    """Why there are none."""

    def close(self) -> None:
        for fd in self.programs.values():
            os.close(fd)


def compiled(bpf_dir: Path, maps: Mapping[str, int]) -> Counting:
    """:param maps: name -> descriptor, of all of the instance's."""
    names = [*_COUNTING.values(), *(function for function, _ in _TRACEPOINTS.values())]
    try:
        return Counting(compile_tracers(bpf_dir / _SOURCE, names, _defines(), headers=bpf_dir, maps=maps), "")
    except (DataplaneError, BpfError) as error:
        return Counting({}, str(error))


def attach(instance: str, counting: Counting, maps: Mapping[str, int]) -> str:
    """Has these programs count, from one frame to the next if others did; empty, or why not."""
    if counting.missing:
        return counting.missing
    try:
        _attach(instance, counting.programs, maps)
    except (DataplaneError, BpfError) as error:
        return str(error)
    return ""


def _attach(instance: str, programs: Mapping[str, int], maps: Mapping[str, int]) -> None:
    with ExitStack() as closing:
        for place, function in _COUNTING.items():
            value = programs[function].to_bytes(4, "little")
            libbpf.map_update(maps["redirect_programs"], place.to_bytes(4, "little"), value)
        for name, (function, _) in _TRACEPOINTS.items():
            pin = _pin(instance, name)
            if pin.exists():
                continue
            link = libbpf.raw_tracepoint_attach(programs[function], name)
            closing.callback(os.close, link)  # unpinned, its end detaches
            libbpf.obj_pin(link, pin)


def _pin(instance: str, tracepoint: str) -> Path:
    return pins.folder(instance) / f"tracing_{tracepoint}"


def _defines() -> list[str]:
    """What is compiled in; the maps are another's, whatever their sizes. DataplaneError: not this kernel."""
    with KernelTypes.opened() as types:
        for name, (_, known) in _TRACEPOINTS.items():
            if (found := types.arguments(name)) != known:
                raise DataplaneError(f"tracepoint {name} of this kernel has {found} arguments, not {known}")
        offsets = {
            "NET_DEVICE_IFINDEX": types.offset("net_device", "ifindex"),
            "NET_DEVICE_NET": types.offset("net_device", "nd_net", "net"),
            "NET_INUM": types.offset("net", "ns", "inum"),
        }
    smallest = ProgramSizes(services=1, endpoints=1, buckets=1, ring_lines=1, cpus=libbpf.possible_cpus())
    return [*smallest.defines(), *(f"-D{name}={at}" for name, at in offsets.items())]
