# SPDX-License-Identifier: Apache-2.0
"""The pinned maps of an instance, opened: arrays as numpy views on the kernel's memory, the rest as fds."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from controlplane.adapters import layout, libbpf, pins
from controlplane.adapters.bcc import PROGRAM, REFUSALS
from controlplane.adapters.libbpf import BpfError, Kind, MapInfo, MapType
from controlplane.adapters.names import Names
from controlplane.adapters.target_table import TargetTable
from controlplane.model import Sizes
from controlplane.ports import DataplaneError

Array = npt.NDArray[Any]
BESIDES = (
    "baselines",
    "request_baselines",
    "endpoint_labels",
    "service_labels",
    "interface_labels",
    "redirects",
    "redirect_programs",
    REFUSALS,
)
"""Maps that ``steer`` need not use: user space's own, those of bpf/redirects.c, and the one that is
pinned anew with each program, for a load may die between the two."""
_KERNEL_NAME = 15
"""What the kernel keeps of a map's name (BPF_OBJ_NAME_LEN, less the end)."""


@dataclass(frozen=True, slots=True)
class Maps:
    """Views stay valid after ``close``; the file descriptors do not."""

    instance: str
    sizes: Sizes
    settings: Array
    """() of layout.SETTINGS."""
    services: Array
    """(services,) of layout.SERVICE."""
    endpoints: Array
    """(endpoints,) of layout.ENDPOINT; index 0 is nobody."""
    cells: Array
    """(ring cells,) of references: all rings."""
    slots: Array
    """(endpoints, SHADOW_SLOTS) of references."""
    limits: Array
    """(endpoints,) of layout.LIMIT."""
    flows: Array
    """(flows,) of layout.FLOW; a flow's bucket is its index divided by BUCKET_FLOWS."""
    flow_keys: Array
    """(flows,) of layout.FLOW_KEY."""
    counters: Array
    """(cpus, endpoints) of layout.ENDPOINT_COUNTERS."""
    forwarded: Array
    """(cpus, endpoints) of layout.TRAFFIC, to them."""
    returned: Array
    """(cpus, endpoints) of layout.TRAFFIC, from them to clients."""
    baselines: Array
    """(endpoints,) of layout.BASELINE: what their counters were when each was installed."""
    interfaces: Array
    """(INTERFACE_ROWS,) of layout.INTERFACE."""
    reasons: Array
    """(cpus, INTERFACE_ROWS, REASON_SLOTS)."""
    redirects: Array
    """(cpus, INTERFACE_ROWS) of layout.REDIRECTS, by the interface that frames were redirected to."""
    rtt: Array
    """(endpoints, HISTOGRAM_BUCKETS)."""
    request_counters: Array
    """(cpus, endpoints) of layout.REQUEST_COUNTERS."""
    request_baselines: Array
    """(endpoints,) of layout.REQUEST_COUNTERS."""
    response: Array
    """(endpoints, HISTOGRAM_BUCKETS)."""
    gateways: Array
    """(2,) of layout.GATEWAY: IPv4's, IPv6's."""
    near: Array
    """(2, NEAR_WORDS)."""
    endpoint_labels: Array
    endpoint_names: Names
    service_labels: Array
    service_names: Names
    interface_labels: Array
    service_targets: TargetTable
    vips: int
    endpoint_targets: TargetTable
    direct: int
    route_mtus: int
    ports: int
    vlans: int
    events: int

    def close(self) -> None:
        for fd in (self.vips, self.direct, self.route_mtus, self.ports, self.vlans, self.events):
            os.close(fd)


def open_instance(instance: str) -> Maps:
    """Opens what ``load`` pinned, after comparing it with what this version expects; needs no compiler.

    Raises DataplaneError: no root, not loaded, loaded half, or by another version.
    """
    pins.require_privileges()
    folder = pins.check_folder(instance)
    cpus = libbpf.possible_cpus()
    fds = _open_all(folder, instance, layout.names())
    try:
        information = {name: libbpf.map_info(fd) for name, fd in fds.items()}
        sizes = _checked_sizes(instance, information, cpus)
        _check_program(instance, folder / PROGRAM, information)
        maps = _views(instance, sizes, cpus, fds)
        if int(maps.settings["layout"]) != layout.layout_hash():
            raise DataplaneError(_other_version(instance, "the layout of its maps differs"))
    except BaseException:
        for fd in fds.values():
            os.close(fd)
        raise
    kept = {maps.vips, maps.direct, maps.route_mtus, maps.ports, maps.vlans, maps.events}
    for fd in set(fds.values()) - kept:
        os.close(fd)
    return maps


def _other_version(instance: str, what: str) -> str:
    return (
        f"instance {instance!r} was loaded by another version of penumbra ({what}): "
        f"penumbra unload, then penumbra load CONFIG"
    )


def opened(instance: str) -> dict[str, int]:
    """Name -> descriptor of every map of the instance; the caller closes them."""
    return _open_all(pins.check_folder(instance), instance, layout.names())


def _open_all(folder: Path, instance: str, names: list[str]) -> dict[str, int]:
    fds: dict[str, int] = {}
    try:
        for name in names:
            fds[name] = libbpf.obj_get(folder / name, Kind.MAP)
    except BpfError as error:
        for fd in fds.values():
            os.close(fd)
        raise DataplaneError(
            f"instance {instance!r} is loaded only in part ({error}): "
            "penumbra unload, then penumbra load CONFIG"
        ) from error
    return fds


def _checked_sizes(instance: str, information: dict[str, MapInfo], cpus: int) -> Sizes:
    """The sizes that it was loaded with; every map must be what the layout says for them."""
    sizes = Sizes(
        services=information["services"].max_entries,
        endpoints=information["endpoints"].max_entries,
        flows=information["flows"].max_entries * layout.BUCKET_FLOWS,
        ring_cells=information["rings"].max_entries * layout.RING_LINE_CELLS,
    )
    for name, expected in layout.maps(sizes, cpus).items():
        found = information[name]
        is_there = (found.type, found.key_bytes, found.value_bytes, found.max_entries)
        should_be = (int(expected.kind), expected.key.itemsize, expected.value.itemsize, expected.entries)
        if is_there != should_be:
            raise DataplaneError(
                _other_version(
                    instance, f"map {name}: type, key, value, entries {is_there}, expected {should_be}"
                )
            )
    if information["events"].type != MapType.RINGBUF:
        raise DataplaneError(_other_version(instance, "map events is not a ring buffer"))
    return sizes


def _check_program(instance: str, pin: Path, information: dict[str, MapInfo]) -> None:
    """Whether the program works on these maps and no others; while it is being loaded there is none."""
    if not pin.exists():
        return
    try:
        program = libbpf.obj_get(pin, Kind.PROGRAM)
    except BpfError as error:
        raise DataplaneError(_replaced(instance, str(error))) from error
    try:
        used = libbpf.prog_maps(program)
    finally:
        os.close(program)
    strange = [
        name
        for name, found in information.items()
        if found.name != name[:_KERNEL_NAME] or (found.id not in used and name not in BESIDES)
    ]
    if strange:
        raise DataplaneError(
            _replaced(instance, f"the program pinned there does not use {', '.join(strange)}")
        )


def _replaced(instance: str, what: str) -> str:
    return (
        f"pins of instance {instance!r} were replaced by others' ({what}): "
        "penumbra unload, then penumbra load CONFIG"
    )


def _views(instance: str, sizes: Sizes, cpus: int, fds: dict[str, int]) -> Maps:
    expected = layout.maps(sizes, cpus)

    def view(name: str) -> Array:
        return libbpf.map_view(fds[name], expected[name].value, writable=True)

    settings, services, endpoints = view("settings").reshape(()), view("services"), view("endpoints")
    endpoint_labels, service_labels = view("endpoint_labels"), view("service_labels")
    return Maps(
        instance=instance,
        sizes=sizes,
        settings=settings,
        services=services,
        endpoints=endpoints,
        cells=view("rings")["cell"].reshape(-1),
        slots=view("shadow_table")["slot"],
        limits=view("limits"),
        flows=view("flows")["flow"].reshape(-1),
        flow_keys=view("flow_keys")["key"].reshape(-1),
        counters=view("counters").reshape(cpus, sizes.endpoints),
        forwarded=view("forwarded").reshape(cpus, sizes.endpoints),
        returned=view("returned").reshape(cpus, sizes.endpoints),
        baselines=view("baselines"),
        interfaces=view("interfaces"),
        reasons=view("reasons")["count"].reshape(cpus, layout.INTERFACE_ROWS, layout.REASON_SLOTS),
        redirects=view("redirects").reshape(cpus, layout.INTERFACE_ROWS),
        rtt=view("rtt")["bucket"],
        request_counters=view("request_counters").reshape(cpus, sizes.endpoints),
        request_baselines=view("request_baselines"),
        response=view("response")["bucket"],
        gateways=view("gateways"),
        near=view("near").reshape(2, layout.NEAR_WORDS),
        endpoint_labels=endpoint_labels,
        endpoint_names=Names(endpoints["state"], layout.ENDPOINT_PRESENT, endpoint_labels),
        service_labels=service_labels,
        service_names=Names(services["flags"], layout.SERVICE_PRESENT, service_labels),
        interface_labels=view("interface_labels"),
        service_targets=TargetTable(view("service_targets")["entry"], services, "vip", settings),
        vips=fds["vips"],
        endpoint_targets=TargetTable(view("endpoint_targets")["entry"], endpoints, "address", settings),
        direct=fds["direct"],
        route_mtus=fds["route_mtus"],
        ports=fds["ports"],
        vlans=fds["vlans"],
        events=fds["events"],
    )
