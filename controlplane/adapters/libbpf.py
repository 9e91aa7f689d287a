# SPDX-License-Identifier: Apache-2.0
"""The one binding to libbpf.so.1: maps, pins, links, test runs and what the kernel says of them.

Signatures are those of bpf/bpf.h and bpf/libbpf.h (libbpf 1.1); structures those of linux/bpf.h.
File descriptors are plain integers that the caller closes. Every call that fails raises BpfError.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from collections.abc import Iterator, Mapping
from ctypes import byref, c_uint32
from dataclasses import dataclass
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from controlplane.adapters.libbpf_abi import (
    BatchOpts,
    LinkCreateOpts,
    LinkUpdateOpts,
    MapCreateOpts,
    ProgLoadOpts,
    RawBtfInfo,
    RawLinkInfo,
    RawMapInfo,
    RawProgInfo,
    TestRunOpts,
    XdpMd,
    XdpQueryOpts,
    call,
)
from controlplane.adapters.libbpf_abi import (
    BpfError as BpfError,
)

BPF_ANY, BPF_NOEXIST, BPF_EXIST = 0, 1, 2
BPF_XDP = 37
"""enum bpf_attach_type."""
BPF_F_MMAPABLE = 1 << 10
BPF_F_REPLACE = 1 << 2
BPF_F_XDP_HAS_FRAGS = 1 << 5
BPF_F_TEST_XDP_LIVE_FRAMES = 1 << 1
XDP_FLAGS_SKB_MODE = 1 << 1
XDP_FLAGS_DRV_MODE = 1 << 2


class MapType(IntEnum):
    """enum bpf_map_type, those that are in use here."""

    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    LRU_HASH = 9
    LPM_TRIE = 11
    RINGBUF = 27


class ProgramType(IntEnum):
    """enum bpf_prog_type, those that are in use here."""

    XDP = 6
    RAW_TRACEPOINT = 17


class XdpMode(IntEnum):
    """How a program is attached to an interface (linux/if_link.h, XDP_ATTACHED_*)."""

    NONE = 0
    NATIVE = 1
    GENERIC = 2
    OFFLOADED = 3
    MULTIPLE = 4


# ---- pins ----------------------------------------------------------------------------


class Kind(Enum):
    """What may be pinned: the end of its name in /proc/self/fd."""

    MAP = "map"
    PROGRAM = "prog"
    LINK = "link"


def obj_get(path: Path, kind: Kind) -> int:
    """Opens what is pinned at ``path``; EINVAL when it is of another kind.

    The kernel hands out any kind, and tells of a map what would be true of a program.
    """
    fd = call(f"open {path}", "bpf_obj_get", os.fsencode(path))
    found = Path(f"/proc/self/fd/{fd}").readlink().name
    if not found.endswith(kind.value):
        os.close(fd)
        raise BpfError(errno.EINVAL, f"open {path} as bpf {kind.value}, which is {found}")
    return fd


def obj_pin(fd: int, path: Path) -> None:
    call(f"pin {path}", "bpf_obj_pin", fd, os.fsencode(path))


# ---- maps ----------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class MapInfo:
    type: int
    id: int
    key_bytes: int
    value_bytes: int
    max_entries: int
    flags: int
    name: str
    """Cut by the kernel to 15 characters."""
    btf_id: int
    """The types that it was made with, and which of them are its keys' and values'; 0: none."""
    btf_key_id: int
    btf_value_id: int


def map_create(
    kind: MapType,
    name: str,
    key_bytes: int,
    value_bytes: int,
    max_entries: int,
    flags: int = 0,
    types: tuple[int, int, int] | None = None,
) -> int:
    """Makes a map and returns its file descriptor; the kernel keeps 15 characters of ``name``.

    :param types: a descriptor of ``btf_load``, and which of its types keys and values have.
    """
    options = MapCreateOpts(sz=ctypes.sizeof(MapCreateOpts), map_flags=flags)
    if types:
        options.btf_fd, options.btf_key_type_id, options.btf_value_type_id = types
    arguments = (int(kind), name[:15].encode(), key_bytes, value_bytes, max_entries, byref(options))
    return call(f"create map {name}", "bpf_map_create", *arguments)


def map_info(fd: int) -> MapInfo:
    info = RawMapInfo()
    length = c_uint32(ctypes.sizeof(info))
    call("map info", "bpf_obj_get_info_by_fd", fd, byref(info), byref(length))
    return MapInfo(
        type=info.type,
        id=info.id,
        key_bytes=info.key_size,
        value_bytes=info.value_size,
        max_entries=info.max_entries,
        flags=info.map_flags,
        name=info.name.decode(),
        btf_id=info.btf_id,
        btf_key_id=info.btf_key_type_id,
        btf_value_id=info.btf_value_type_id,
    )


def btf_load(types: bytes) -> int:
    """Hands types to the kernel; returns their descriptor."""
    return call("load types", "bpf_btf_load", types, len(types), None)


def btf_by_id(types_id: int) -> bytes:
    """Types that the kernel has."""
    fd = call(f"open types id {types_id}", "bpf_btf_get_fd_by_id", types_id)
    try:
        info = RawBtfInfo()
        length = c_uint32(ctypes.sizeof(info))
        call("size of types", "bpf_obj_get_info_by_fd", fd, byref(info), byref(length))
        types = ctypes.create_string_buffer(info.btf_size)
        info = RawBtfInfo(btf=ctypes.addressof(types), btf_size=len(types))
        call("types", "bpf_obj_get_info_by_fd", fd, byref(info), byref(length))
        return types.raw
    finally:
        os.close(fd)


def map_lookup(fd: int, key: bytes, value_bytes: int) -> bytes | None:
    """The value of ``key``, or None when there is none. Not for per-CPU maps."""
    value = ctypes.create_string_buffer(value_bytes)
    try:
        call("map lookup", "bpf_map_lookup_elem", fd, key, value)
    except BpfError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    return value.raw


def map_update(fd: int, key: bytes, value: bytes, flags: int = BPF_ANY) -> None:
    call("map update", "bpf_map_update_elem", fd, key, value, flags)


def map_delete(fd: int, key: bytes) -> bool:
    """False when there was no such key."""
    try:
        call("map delete", "bpf_map_delete_elem", fd, key)
    except BpfError as error:
        if error.errno == errno.ENOENT:
            return False
        raise
    return True


def map_keys(fd: int, key_bytes: int) -> Iterator[bytes]:
    """All keys, one system call each; deleting the yielded key meanwhile may start it anew."""
    following = ctypes.create_string_buffer(key_bytes)
    key: bytes | None = None
    while True:
        try:
            call("map next key", "bpf_map_get_next_key", fd, key, following)
        except BpfError as error:
            if error.errno == errno.ENOENT:
                return
            raise
        key = following.raw
        yield key


def map_lookup_batch(
    fd: int, key_type: npt.DTypeLike, value_type: npt.DTypeLike
) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """All keys and values of a hash or LPM map, as arrays of the given types, in one system call."""
    entries = map_info(fd).max_entries
    keys, values = np.zeros(entries, key_type), np.zeros(entries, value_type)
    position = ctypes.create_string_buffer(max(keys.itemsize, 8))
    count = c_uint32(entries)
    options = BatchOpts(sz=ctypes.sizeof(BatchOpts))
    arguments = (fd, None, position, keys.ctypes.data, values.ctypes.data, byref(count), byref(options))
    try:
        call("map batch lookup", "bpf_map_lookup_batch", *arguments)
    except BpfError as error:
        if error.errno != errno.ENOENT:  # ENOENT: the end was reached, count is right
            raise
    return keys[: count.value], values[: count.value]


def map_update_batch(fd: int, keys: npt.NDArray[Any], values: npt.NDArray[Any]) -> None:
    """Writes all pairs; both arrays of one length, laid out as the map's keys and values."""
    keys, values = np.ascontiguousarray(keys), np.ascontiguousarray(values)
    count = c_uint32(len(keys))
    options = BatchOpts(sz=ctypes.sizeof(BatchOpts))
    arguments = (fd, keys.ctypes.data, values.ctypes.data, byref(count), byref(options))
    call("map batch update", "bpf_map_update_batch", *arguments)


def map_delete_batch(fd: int, keys: npt.NDArray[Any]) -> None:
    keys = np.ascontiguousarray(keys)
    count = c_uint32(len(keys))
    options = BatchOpts(sz=ctypes.sizeof(BatchOpts))
    call("map batch delete", "bpf_map_delete_batch", fd, keys.ctypes.data, byref(count), byref(options))


def map_hold(
    fd: int, key_type: npt.DTypeLike, value_type: npt.DTypeLike, wanted: Mapping[bytes, bytes]
) -> None:
    """Changes a hash or LPM map until it has these entries and no others."""
    keys, values = map_lookup_batch(fd, key_type, value_type)
    there = {key.tobytes(): value.tobytes() for key, value in zip(keys, values, strict=True)}
    for gone in there.keys() - wanted.keys():
        map_delete(fd, gone)
    for key, value in wanted.items():
        if there.get(key) != value:
            map_update(fd, key, value)


def map_view(fd: int, dtype: npt.DTypeLike, *, writable: bool = False) -> npt.NDArray[Any]:
    """An mmapable array map as a numpy array on the kernel's memory; ``fd`` may be closed after.

    Values are laid out every 8 bytes at least (kernel: array_map_alloc), hence the check.
    """
    info, item = map_info(fd), np.dtype(dtype)
    if info.value_bytes != item.itemsize or item.itemsize % 8:
        raise ValueError(f"map {info.name}: values of {info.value_bytes} bytes, expected {item.itemsize}")
    length = -(-info.max_entries * item.itemsize // mmap.PAGESIZE) * mmap.PAGESIZE
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    try:
        memory = mmap.mmap(fd, length, mmap.MAP_SHARED, protection)
    except OSError as error:
        raise BpfError(error.errno or errno.EIO, f"mmap of map {info.name}") from error
    return np.frombuffer(memory, item, info.max_entries)


# ---- programs ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    id: int
    name: str
    """Cut by the kernel to 15 characters."""
    tag: str
    """Hash of the instructions, hexadecimal."""
    type: int
    verified: int
    """Instructions that the verifier looked at, of at most a million."""


@dataclass(frozen=True, slots=True)
class ProgramRun:
    """What one test run left: the verdict, the packet, and mean nanoseconds per repetition."""

    verdict: int
    packet: bytes
    duration_ns: int


def prog_load(
    name: str,
    instructions: bytes,
    licence: str,
    flags: int = 0,
    kind: ProgramType = ProgramType.XDP,
) -> int:
    """Loads instructions (struct bpf_insn, map file descriptors filled in); returns the program's fd.

    On refusal it is tried again with the verifier's log, whose end is in the error.
    """
    log = ctypes.create_string_buffer(1)
    options = ProgLoadOpts(sz=ctypes.sizeof(ProgLoadOpts), prog_flags=flags)
    if kind is ProgramType.XDP:
        options.expected_attach_type = BPF_XDP
    arguments = (name[:15].encode(), licence.encode(), instructions, len(instructions) // 8, byref(options))
    try:
        return call(f"load program {name}", "bpf_prog_load", int(kind), *arguments)
    except BpfError as error:
        if error.errno == errno.EPERM:
            raise
    log = ctypes.create_string_buffer(1 << 24)
    options.log_level, options.log_size, options.log_buf = 1, len(log), ctypes.addressof(log)
    try:
        return call(f"load program {name}", "bpf_prog_load", int(kind), *arguments)
    except BpfError as error:
        tail = " | ".join(log.value.decode(errors="replace").strip().splitlines()[-4:])
        raise BpfError(error.errno or errno.EINVAL, f"load program {name}: {tail}") from None


def prog_info(fd: int) -> ProgramInfo:
    info = RawProgInfo()
    length = c_uint32(ctypes.sizeof(info))
    call("program info", "bpf_obj_get_info_by_fd", fd, byref(info), byref(length))
    return ProgramInfo(
        id=info.id,
        name=info.name.decode(),
        tag=bytes(info.tag).hex(),
        type=info.type,
        verified=info.verified_insns,
    )


def prog_maps(fd: int) -> frozenset[int]:
    """Ids of the maps that a program works on."""
    info = RawProgInfo()
    length = c_uint32(ctypes.sizeof(info))
    call("program info", "bpf_obj_get_info_by_fd", fd, byref(info), byref(length))
    ids = (c_uint32 * info.nr_map_ids)()
    info = RawProgInfo(nr_map_ids=len(ids), map_ids=ctypes.addressof(ids))
    call("program info", "bpf_obj_get_info_by_fd", fd, byref(info), byref(length))
    return frozenset(ids)


def prog_by_id(program_id: int) -> int:
    """Opens it; also what user space reads in a PROG_ARRAY is such an id."""
    return call(f"open program id {program_id}", "bpf_prog_get_fd_by_id", program_id)


def prog_info_by_id(program_id: int) -> ProgramInfo:
    fd = prog_by_id(program_id)
    try:
        return prog_info(fd)
    finally:
        os.close(fd)


def prog_test_run(
    fd: int,
    packet: bytes,
    *,
    ingress_ifindex: int = 0,
    first_bytes: int = 0,
    repeat: int = 1,
    flags: int = 0,
    batch: int = 0,
) -> ProgramRun:
    """Runs an XDP program on a packet (BPF_PROG_TEST_RUN, Documentation/bpf/bpf_prog_run.rst).

    ``ingress_ifindex`` 0 means the loopback of this namespace. ``first_bytes``: so many are in the first of
    several buffers (EINVAL before Linux 6.18); 0: as many as it takes. With ``repeat`` > 1 the frame is not
    restored between runs. With BPF_F_TEST_XDP_LIVE_FRAMES in ``flags`` packets really leave (``batch``
    at a time) and nothing comes back.
    """
    live = bool(flags & BPF_F_TEST_XDP_LIVE_FRAMES)
    data = ctypes.create_string_buffer(packet, len(packet))
    out = ctypes.create_string_buffer(len(packet) + 512)
    context = XdpMd(data_end=first_bytes or len(packet), ingress_ifindex=ingress_ifindex)
    has_context = bool(ingress_ifindex or first_bytes)
    options = TestRunOpts(
        sz=ctypes.sizeof(TestRunOpts),
        data_in=ctypes.addressof(data),
        data_size_in=len(packet),
        ctx_in=ctypes.addressof(context) if has_context else None,
        ctx_size_in=ctypes.sizeof(context) if has_context else 0,
        repeat=repeat,
        flags=flags,
        batch_size=batch,
    )
    if not live:
        options.data_out, options.data_size_out = ctypes.addressof(out), len(out)
    call("test run", "bpf_prog_test_run_opts", fd, byref(options))
    return ProgramRun(options.retval, out.raw[: 0 if live else options.data_size_out], options.duration)


# ---- tracepoints ---------------------------------------------------------------------


def raw_tracepoint_attach(program_fd: int, name: str) -> int:
    """A link that ends with its last fd and pin; ENOENT: the kernel has no such tracepoint."""
    return call(f"attach to tracepoint {name}", "bpf_raw_tracepoint_open", name.encode(), program_fd)


# ---- XDP links -----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class LinkInfo:
    id: int
    program_id: int
    ifindex: int
    """0: the interface is gone or the link was detached."""


@dataclass(frozen=True, slots=True)
class XdpState:
    """What is attached to an interface; program id 0: nothing."""

    mode: XdpMode
    program_id: int


def xdp_link_create(program_fd: int, ifindex: int, flags: int) -> int:
    """Attaches by a link; EBUSY or EEXIST when something else is there. Ends with its last fd and pin."""
    options = LinkCreateOpts(sz=ctypes.sizeof(LinkCreateOpts), flags=flags)
    arguments = (program_fd, ifindex, BPF_XDP, byref(options))
    return call(f"attach to interface {ifindex}", "bpf_link_create", *arguments)


def link_update(link_fd: int, program_fd: int, old_program_fd: int | None = None) -> None:
    """Replaces a link's program in one step; EPERM when the present one is not ``old_program_fd``."""
    options = LinkUpdateOpts(sz=ctypes.sizeof(LinkUpdateOpts))
    if old_program_fd is not None:
        options.flags, options.old_prog_fd = BPF_F_REPLACE, old_program_fd
    call("update link", "bpf_link_update", link_fd, program_fd, byref(options))


def link_detach(link_fd: int) -> None:
    call("detach link", "bpf_link_detach", link_fd)


def link_info(link_fd: int) -> LinkInfo:
    info = RawLinkInfo()
    length = c_uint32(ctypes.sizeof(info))
    call("link info", "bpf_obj_get_info_by_fd", link_fd, byref(info), byref(length))
    return LinkInfo(id=info.id, program_id=info.prog_id, ifindex=info.xdp_ifindex)


def xdp_query(ifindex: int) -> XdpState:
    """What is attached to the interface of this network namespace."""
    options = XdpQueryOpts(sz=ctypes.sizeof(XdpQueryOpts))
    call(f"query interface {ifindex}", "bpf_xdp_query", ifindex, 0, byref(options))
    program = options.prog_id or options.drv_prog_id or options.skb_prog_id or options.hw_prog_id
    return XdpState(XdpMode(options.attach_mode), program)


def possible_cpus() -> int:
    """How many CPUs the kernel could ever have: the first dimension of per-CPU counters."""
    return call("possible CPUs", "libbpf_num_possible_cpus")
