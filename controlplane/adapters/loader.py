# SPDX-License-Identifier: Apache-2.0
"""Loads an instance (compile, pin, write settings, attach) and takes it away again."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from controlplane import model
from controlplane.adapters import attach, devices, interface_rows, layout, libbpf, netlink, pins, redirects
from controlplane.adapters.attach import Attachment
from controlplane.adapters.bcc import PROGRAM, REFUSALS, Compiled, ProgramSizes, compile_program, source_hash
from controlplane.adapters.libbpf import BpfError, Kind, XdpMode
from controlplane.adapters.maps import Maps, open_instance, opened
from controlplane.ports import DataplaneError

SEEN_SHARE = 4
EVENT_GAP_S = 1.0
"""Least time between two events of a kind and endpoint."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Loaded:
    """What ``load`` did."""

    attachments: tuple[Attachment, ...]
    fresh: bool
    """False: the instance was loaded already, and its maps were kept."""
    replaced: bool = False
    """Loaded already, and now by another program than before: this version's, for these MTUs."""
    uncounted: str = ""
    """Why nobody counts what becomes of redirected frames; empty: it is counted."""
    rowless: tuple[str, ...] = ()
    """Interfaces whose packets are counted together, for no row of their own was left."""


@dataclass(frozen=True, slots=True)
class _Version:
    """What was compiled of a folder for an instance's maps."""

    program_fd: int
    refusals_fd: int
    counting: redirects.Counting
    source: int
    frags: bool
    maps: frozenset[int]
    """Their ids."""

    def close(self) -> None:
        os.close(self.program_fd)
        os.close(self.refusals_fd)
        self.counting.close()


def load(config: model.Config, bpf_dir: Path) -> Loaded:
    """Has the program of ``bpf_dir`` steer at the configured interfaces of this network namespace.

    Loaded already: its maps, services and flows stay, settings are renewed, and it is attached where it is
    not; if ``bpf_dir`` holds another program, that takes over at each interface from one packet to the next.
    Maps of another layout or size are refused. What fails raises DataplaneError and leaves nothing of this
    call behind.
    """
    pins.require_privileges()
    ahead = _compiled_ahead(config, bpf_dir)
    try:
        return _load(config, bpf_dir, ahead)
    finally:
        if ahead:
            ahead.close()


def _load(config: model.Config, bpf_dir: Path, ahead: _Version | None) -> Loaded:
    with pins.write_lock(config.instance):
        for interface in config.interfaces:
            attach.interface_index(interface)
        program = pins.folder(config.instance) / PROGRAM
        if not program.exists():  # it is pinned last, so what is there without it is of a load that died
            _unload(config.instance)
            return _load_fresh(config, bpf_dir)
        maps = open_instance(config.instance)
        try:
            if maps.sizes != _effective_sizes(config.sizes):
                raise DataplaneError(
                    f"instance {config.instance!r} is loaded with other sizes "
                    f"({_differences(maps.sizes, _effective_sizes(config.sizes))}): penumbra unload, then "
                    "penumbra load CONFIG (its flows are forgotten)"
                )
            return _load_again(config, maps, bpf_dir, ahead)
        finally:
            maps.close()


def _wants_frags(config: model.Config) -> bool:
    """Whether an interface's frames may not fit into one buffer."""
    mtus = {link.name: link.mtu for link in netlink.routing().links.values()}
    return any(mtus.get(name, 0) > attach.BUFFER_MTU for name in config.interfaces)


def _differences(loaded: model.Sizes, configured: model.Sizes) -> str:
    pairs = {
        field.name: (getattr(loaded, field.name), getattr(configured, field.name)) for field in fields(loaded)
    }
    return ", ".join(f"sizes.{name} {was}, not {now}" for name, (was, now) in pairs.items() if was != now)


def _effective_sizes(sizes: model.Sizes) -> model.Sizes:
    lines = -(-sizes.ring_cells // layout.RING_LINE_CELLS)
    return model.Sizes(sizes.services, sizes.endpoints, sizes.flows, lines * layout.RING_LINE_CELLS)


def _load_fresh(config: model.Config, bpf_dir: Path) -> Loaded:
    for interface in config.interfaces:
        attach.refuse_foreign(interface, None)
    source = source_hash(bpf_dir)
    frags = _wants_frags(config)
    compiled = compile_program(bpf_dir, ProgramSizes.of(config.sizes), frags=frags)
    libbpf.map_view(compiled.maps["settings"], layout.SETTINGS, writable=True)["frags"] = frags
    try:
        return _pin_and_attach(config, compiled, source, bpf_dir)
    except BpfError as error:
        _unload(config.instance)
        raise DataplaneError(f"instance {config.instance!r} was not loaded: {error}") from error
    except BaseException:
        _unload(config.instance)
        raise
    finally:
        compiled.close()


def _pin_and_attach(config: model.Config, compiled: Compiled, source: int, bpf_dir: Path) -> Loaded:
    folder = pins.make_folder(config.instance)
    for name, fd in compiled.maps.items():
        libbpf.obj_pin(fd, folder / name)
    settings = libbpf.map_view(compiled.maps["settings"], layout.SETTINGS, writable=True)
    settings["hash_key"][0] = np.frombuffer(os.urandom(16), "<u8")
    settings["bucket_mask"][0] = layout.buckets(config.sizes) - 1
    settings["layout"][0] = layout.layout_hash()
    settings["source"][0] = source
    maps = open_instance(config.instance)
    try:
        _write_settings(maps, config)
        uncounted = _count_redirects(config.instance, bpf_dir, compiled.maps)
        attachments, rowless = _attach_all(config, maps, compiled.program_fd)
    finally:
        maps.close()
    libbpf.obj_pin(compiled.program_fd, folder / PROGRAM)
    return Loaded(attachments, fresh=True, uncounted=uncounted, rowless=rowless)


def _write_settings(maps: Maps, config: model.Config) -> None:
    settings, idle = maps.settings, config.idle
    opening, established, udp = (
        layout.ticks(limit) for limit in (idle.opening_s, idle.established_s, idle.udp_s)
    )
    # So much later than it was a flow's last seen may be stored, which its limits make good.
    seen = min(opening, established, udp) // SEEN_SHARE
    settings["idle_opening_ticks"] = opening + seen
    settings["idle_established_ticks"] = established + seen
    settings["idle_udp_ticks"] = udp + seen
    settings["idle_closing_ticks"] = layout.ticks(idle.closing_s)
    settings["seen_ticks"] = seen
    settings["event_ticks"] = layout.ticks(EVENT_GAP_S)
    settings["insert_limit"] = min(
        math.ceil(config.insert_limit_per_s * layout.TICK_S), np.iinfo(np.uint32).max
    )
    settings["icmp_limit"] = math.ceil(config.icmp_limit_per_s * layout.TICK_S)


def _load_again(config: model.Config, maps: Maps, bpf_dir: Path, ahead: _Version | None) -> Loaded:
    attach.refuse_elsewhere(config.instance)
    source, frags = source_hash(bpf_dir), _wants_frags(config)
    present = libbpf.obj_get(pins.folder(config.instance) / PROGRAM, Kind.PROGRAM)
    made: _Version | None = None
    try:
        if int(maps.settings["source"]) == source and bool(maps.settings["frags"]) == frags:
            _write_settings(maps, config)
            attachments, rowless = _attach_again(config, maps, present, present)
            uncounted = ""
            if not redirects.is_counting(config.instance):
                with _opened(config.instance) as fds:
                    uncounted = _count_redirects(config.instance, bpf_dir, fds)
            return Loaded(attachments, fresh=False, uncounted=uncounted, rowless=rowless)
        if not ahead or (ahead.source, ahead.frags, ahead.maps) != (source, frags, _map_ids(config.instance)):
            ahead = made = _compiled_for(config, bpf_dir, source, frags)
        aside = _pin_aside(config.instance, ahead.refusals_fd, pins.REFUSALS_ASIDE)
        try:
            _write_settings(maps, config)
            attachments, rowless = _attach_again(config, maps, ahead.program_fd, present)
            with _opened(config.instance) as fds:
                uncounted = redirects.attach(config.instance, ahead.counting, fds)
            aside.rename(aside.with_name(REFUSALS))
            _pin_program(config.instance, ahead.program_fd)
        finally:
            aside.unlink(missing_ok=True)
        maps.settings["frags"] = frags
        maps.settings["source"] = source
        return Loaded(attachments, fresh=False, replaced=True, uncounted=uncounted, rowless=rowless)
    finally:
        os.close(present)
        if made:
            made.close()


def _compiled_ahead(config: model.Config, bpf_dir: Path) -> _Version | None:
    """Before the lock is taken, for compiling takes ten seconds, and while it is held no controller takes the
    dead out. None: it isn't needed, or what is in the way will be told with the lock held."""
    if not (pins.folder(config.instance) / PROGRAM).exists():
        return None
    try:
        maps = open_instance(config.instance)
        maps.close()
        source, frags = source_hash(bpf_dir), _wants_frags(config)
        if (int(maps.settings["source"]), bool(maps.settings["frags"])) == (source, frags):
            return None
        if maps.sizes != _effective_sizes(config.sizes):
            return None
        return _compiled_for(config, bpf_dir, source, frags)
    except (DataplaneError, BpfError):
        return None


def _compiled_for(config: model.Config, bpf_dir: Path, source: int, frags: bool) -> _Version:
    """This version on the maps that are there."""
    with _opened(config.instance) as fds:
        compiled = compile_program(bpf_dir, ProgramSizes.of(config.sizes), fds, frags=frags)
        counting = redirects.compiled(bpf_dir, fds)
        ids = _ids(fds)
    return _Version(*compiled.kept(), counting, source, frags, ids)


def _map_ids(instance: str) -> frozenset[int]:
    with _opened(instance) as fds:
        return _ids(fds)


def _ids(maps: Mapping[str, int]) -> frozenset[int]:
    """Of all but the one that each program has for itself."""
    return frozenset(libbpf.map_info(fd).id for name, fd in maps.items() if name != REFUSALS)


@contextmanager
def _opened(instance: str) -> Iterator[Mapping[str, int]]:
    fds = opened(instance)
    try:
        yield fds
    finally:
        for fd in fds.values():
            os.close(fd)


def _count_redirects(instance: str, bpf_dir: Path, maps: Mapping[str, int]) -> str:
    """By this version's program; empty, or why not."""
    with closing(redirects.compiled(bpf_dir, maps)) as counting:
        return redirects.attach(instance, counting, maps)


def _pin_program(instance: str, program_fd: int) -> None:
    """In the place of the one before, which is never missing: a load without it counts as dead."""
    aside = _pin_aside(instance, program_fd, pins.PROGRAM_ASIDE)
    aside.rename(pins.folder(instance) / PROGRAM)


def _pin_aside(instance: str, fd: int, name: str) -> Path:
    """In the place of one that a load which died has left there."""
    aside = pins.folder(instance) / name
    aside.unlink(missing_ok=True)
    libbpf.obj_pin(fd, aside)
    return aside


def _attach_again(
    config: model.Config, maps: Maps, program_fd: int, before_fd: int
) -> tuple[tuple[Attachment, ...], tuple[str, ...]]:
    """Where it is not attached yet, and nowhere that the configuration doesn't name; all or nothing.

    :param before_fd: the program that goes on where it steered if one of the interfaces fails.
    """
    before = {a.interface for a in attach.attached(config.instance) if a.mode != XdpMode.NONE}
    try:
        attachments, rowless = _attach_all(config, maps, program_fd)
    except BaseException:
        for interface in config.interfaces:
            pin = pins.link_path(config.instance, interface)
            if interface in before:
                attach.attach(config.instance, before_fd, interface)
            elif pin.exists():
                attach.detach(pin)
        interface_rows.assign(
            maps, {attach.interface_index(name): name for name in before}, interface_rows.namespace()
        )
        raise
    for pin in pins.folder(config.instance).glob(pins.LINK_PREFIX + "*"):
        if pins.linked_interface(pin) not in config.interfaces:
            attach.detach(pin)
    return attachments, rowless


def _attach_all(
    config: model.Config, maps: Maps, program_fd: int
) -> tuple[tuple[Attachment, ...], tuple[str, ...]]:
    """How it is attached, and who has no row of counters of his own."""
    wanted = {attach.interface_index(name): name for name in config.interfaces}
    # Before: from its first packet on, an interface counts in its own row.
    rowless = interface_rows.assign(maps, wanted, interface_rows.namespace())
    attachments = tuple(attach.attach(config.instance, program_fd, name) for name in config.interfaces)
    devices.write(maps, wanted.keys(), netlink.routing())
    for attachment in attachments:
        if attachment.mode != XdpMode.NATIVE:
            log.warning(
                "interface %s: GENERIC mode, several times slower than native: %s",
                attachment.interface,
                attachment.reason or "so since an earlier load",
            )
    return attachments, rowless


def put_in_place(instance: str, program_fd: int) -> None:
    """Has a program steer in the pinned one's place, until ``put_back`` or the next ``load``. It has to do
    the same on the same maps.

    Raises DataplaneError, with nothing changed: the instance is attached nowhere, or the kernel refuses.
    """
    with pins.write_lock(instance):
        pins.check_folder(instance)
        try:
            count = attach.exchange(instance, program_fd)
        except BpfError as error:
            _put_back(instance)
            raise DataplaneError(f"instance {instance!r}: its program was not replaced: {error}") from error
        if not count:
            raise DataplaneError(f"instance {instance!r} is attached to no interface: penumbra load CONFIG")


def put_back(instance: str) -> None:
    """Has the pinned program steer at every interface of the instance; nothing to do where it does, or where
    the instance is no more."""
    with pins.write_lock(instance):
        _put_back(instance)


def _put_back(instance: str) -> None:
    pin = pins.folder(instance) / PROGRAM
    if not pin.exists():
        return
    program = libbpf.obj_get(pin, Kind.PROGRAM)
    try:
        attach.exchange(instance, program)
    finally:
        os.close(program)


def unload(instance: str) -> None:
    """Detaches our links and removes all pins; done twice, or after a crash half-way, it does the rest."""
    pins.require_privileges()
    with pins.write_lock(instance):
        _unload(instance)


def _unload(instance: str) -> None:
    folder = pins.folder(instance)
    if folder.is_dir():
        pins.check_folder(instance)
        for pin in folder.glob(pins.LINK_PREFIX + "*"):
            attach.detach(pin)
    pins.remove_folder(instance)
