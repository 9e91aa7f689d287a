# SPDX-License-Identifier: Apache-2.0
"""Compiles the packet's path with BCC; the only module that imports ``bcc``.

No kernel headers are needed: ``bpf/include`` stands where BCC looks for them.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import struct
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from controlplane.adapters import layout, libbpf
from controlplane.model import Sizes
from controlplane.ports import DataplaneError

PROGRAM = "steer"
REFUSAL = "refuse"
"""Of the same source: what ``PROGRAM`` hands packets to that can't go on (bpf/refuse.c)."""
REFUSALS = "refusals"
"""The map by which it does. Each ``PROGRAM`` has its own: theirs may not go together (capturing or not)."""
LICENCE = "GPL"
_KERNEL_SOURCE = "BCC_KERNEL_SOURCE"
_LOG_LINES = 12
_PART = re.compile(r'#include "(\w+\.c)"')
_INSTRUCTION = struct.Struct("<BBhi")
"""struct bpf_insn of linux/bpf.h: code, registers (destination low, source high), offset, immediate."""
_LOAD_MAP = (0x18, 0x10)
"""BPF_LD | BPF_IMM | BPF_DW with BPF_PSEUDO_MAP_FD as its source: the immediate is a map's descriptor."""
_MISSING = (
    "python3-bpfcc is not installed for this Python: apt-get install python3-bpfcc, and run the venv made by "
    '/usr/bin/python3 with --system-site-packages (never pip install "bcc": on PyPI that is an unrelated '
    "crystal-lattice library)"
)


class Build(Enum):
    """What is made of the same source: the definition that makes it so."""

    STEERING = "STEERING"
    DRY_RUN = "DRY_RUN"
    """Without its stores, noting its decisions (bpf/store.h, bpf/note.h)."""
    CAPTURE = "CAPTURE"
    """Steers, and copies frames as they come and leave (bpf/capture.c)."""


@dataclass(frozen=True, slots=True)
class ProgramSizes:
    """What is compiled in: entries of the maps."""

    services: int
    endpoints: int
    buckets: int
    """Buckets of four flows, a power of two."""
    ring_lines: int
    """Lines of 16 ring cells, over all rings, two copies each."""
    cpus: int

    @classmethod
    def of(cls, sizes: Sizes) -> ProgramSizes:
        return cls(
            services=sizes.services,
            endpoints=sizes.endpoints,
            buckets=layout.buckets(sizes),
            ring_lines=-(-sizes.ring_cells // layout.RING_LINE_CELLS),
            cpus=libbpf.possible_cpus(),
        )

    def defines(self, *, with_maps: bool = True) -> list[str]:
        """:param with_maps: False: the program gets others' maps, so BCC's own need not have their memory.
        What the program itself reckons with stays."""
        of_maps = {
            "MAX_SERVICES": self.services,
            "MAX_BUCKETS": self.buckets,
            "MAX_RING_LINES": self.ring_lines,
            "MAX_CPUS": self.cpus,
            "MAX_DIRECT": layout.direct_prefixes(self.endpoints),
            "MAX_FRAGMENTS": layout.FRAGMENTS,
        }
        of_program = {
            "MAX_ENDPOINTS": self.endpoints,
            "SERVICE_BUCKETS": layout.target_buckets(self.services),
            "ENDPOINT_BUCKETS": layout.target_buckets(self.endpoints),
        }
        made = of_program | (of_maps if with_maps else dict.fromkeys(of_maps, 1))
        return [f"-D{name}={value}" for name, value in made.items()]


@dataclass(frozen=True, slots=True)
class Compiled:
    """A loaded program. The descriptors are valid until ``close``; pin what is to outlive it."""

    program_fd: int
    maps: Mapping[str, int]
    """Name -> file descriptor."""
    instructions: int

    def close(self) -> None:
        for fd in (self.program_fd, *self.maps.values()):
            os.close(fd)

    def kept(self) -> tuple[int, int]:
        """Closes all but what the program needs beside others' maps: itself, and its ``REFUSALS``."""
        for name, fd in self.maps.items():
            if name != REFUSALS:
                os.close(fd)
        return self.program_fd, self.maps[REFUSALS]


def source_hash(source_dir: Path) -> int:
    """64 bits of all C files in the folder: what ``settings.source`` is after they were compiled."""
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(path for path in source_dir.rglob("*") if path.suffix in (".c", ".h")):
        digest.update(f"{path.relative_to(source_dir)}\0".encode())
        digest.update(hashlib.blake2b(path.read_bytes()).digest())
    return int.from_bytes(digest.digest(), "little")


def compile_program(
    source_dir: Path,
    sizes: ProgramSizes,
    maps: Mapping[str, int] | None = None,
    build: Build = Build.STEERING,
    *,
    frags: bool = False,
) -> Compiled:
    """Compiles ``steer.c`` and has the verifier load it; takes some seconds.

    :param maps: name -> descriptor, for the program to work on these and not on maps of its own. Its
        ``REFUSALS`` are its own all the same, and filled: as long as somebody has them open or pinned.
        Types, which bpftool shows maps by, are left out then: a third of the time.
    :param frags: takes frames in several buffers, too. Programs that do and that don't can't call each other.
    Raises DataplaneError with the compiler's or verifier's last lines.
    """
    source = source_dir / f"{PROGRAM}.c"
    defines = [*sizes.defines(with_maps=maps is None), f"-D{build.value}=1", f"-DFRAGS={frags:d}"]
    if maps is not None:
        defines.append("-g0")
    flags = libbpf.BPF_F_XDP_HAS_FRAGS * frags
    with _module(source, defines, source_dir) as (bcc, module):
        own = {name: module[name.encode()].map_fd for name in _map_names(bcc, module)}
        used = {**(own if maps is None else maps), REFUSALS: own[REFUSALS]}
        instead = _instead(source, own, used)
        refusal_fd = _loaded(module, REFUSAL, instead, flags)[0]
        try:
            libbpf.map_update(used[REFUSALS], bytes(4), refusal_fd.to_bytes(4, "little"))
        finally:
            os.close(refusal_fd)  # the array keeps it
        return _compiled(*_loaded(module, PROGRAM, instead, flags), used)


def compile_file(source: Path, program: str, defines: list[str], *, headers: Path) -> Compiled:
    """Compiles one C file and loads ``program`` of it as XDP.

    ``headers`` is the folder that holds our headers and, in ``include``, what stands for the kernel's.
    """
    with _module(source, defines, headers) as (bcc, module):
        own = {name: module[name.encode()].map_fd for name in _map_names(bcc, module)}
        return _compiled(*_loaded(module, program, _instead(source, own, own)), own)


def _loaded(module: Any, program: str, instead: Mapping[int, int], flags: int = 0) -> tuple[int, int]:
    """Its descriptor, and how many instructions it has.

    BCC would load it without its attach type, and then it could not share a PROG_ARRAY with others.
    """
    instructions = _with_maps(module.dump_func(program.encode()), instead)
    return libbpf.prog_load(program, instructions, LICENCE, flags), len(instructions) // _INSTRUCTION.size


def _compiled(program_fd: int, instructions: int, maps: Mapping[str, int]) -> Compiled:
    """BCC closes its descriptors with the module, and the caller keeps his: so these are copies."""
    return Compiled(program_fd, {name: os.dup(fd) for name, fd in maps.items()}, instructions)


def compile_tracers(
    source: Path, programs: Iterable[str], defines: list[str], *, headers: Path, maps: Mapping[str, int]
) -> dict[str, int]:
    """Compiles one C file and loads these of its programs for raw tracepoints, on the maps given.

    Returns name -> descriptor; the caller closes them.
    """
    fds: dict[str, int] = {}
    try:
        with _module(source, defines, headers) as (bcc, module):
            own = {name: module[name.encode()].map_fd for name in _map_names(bcc, module)}
            instead = _instead(source, own, maps)
            for name in programs:
                instructions = _with_maps(module.dump_func(name.encode()), instead)
                kind = libbpf.ProgramType.RAW_TRACEPOINT
                fds[name] = libbpf.prog_load(name, instructions, LICENCE, kind=kind)
    except BaseException:
        for fd in fds.values():
            os.close(fd)
        raise
    return fds


@contextmanager
def _module(source: Path, defines: list[str], headers: Path) -> Iterator[tuple[ModuleType, Any]]:
    """BCC and what it made of the file."""
    bcc = _import_bcc()
    source, headers = (
        source.resolve(),
        headers.resolve(),
    )  # BCC changes the working directory while it compiles
    if not source.is_file():
        raise DataplaneError(f"{source}: no such file; the installation is incomplete")
    with _captured_stderr() as log, _stub_headers(headers):
        try:
            module = bcc.BPF(text=_with_parts(source), cflags=[*_flags(headers), *defines])
        except Exception as error:  # BCC raises bare Exception for everything
            raise DataplaneError(f"{source}: not compiled: {_tail(log) or error}") from error
    try:
        yield bcc, module
    except libbpf.BpfError as error:
        raise DataplaneError(f"{source}: refused by the kernel: {error}") from error
    finally:
        module.cleanup()


def _instead(source: Path, own: Mapping[str, int], maps: Mapping[str, int]) -> dict[int, int]:
    """Descriptor of each map of BCC's -> the one of its name to use instead."""
    if strange := sorted(own.keys() ^ maps.keys()):
        raise DataplaneError(f"{source}: the maps given are not its own: {', '.join(strange)}")
    return {fd: maps[name] for name, fd in own.items()}


def _with_parts(source: Path) -> bytes:
    """The file with its parts, ``#include "PART.c"``, in it: BCC sees to the map calls of one file only."""
    text = [f'#line 1 "{source.name}"']
    for number, line in enumerate(source.read_text(encoding="utf-8").splitlines(), start=1):
        if part := _PART.fullmatch(line):
            path = source.with_name(part[1])
            text += [f'#line 1 "{path.name}"', path.read_text(encoding="utf-8")]
            line = f'#line {number + 1} "{source.name}"'
        text.append(line)
    return "\n".join([*text, ""]).encode()


def _with_maps(instructions: bytes, others: Mapping[int, int]) -> bytes:
    """The same program on other maps: descriptor -> descriptor."""
    made = bytearray(instructions)
    for at, (code, registers, offset, fd) in enumerate(_INSTRUCTION.iter_unpack(instructions)):
        if (code, registers & 0xF0) == _LOAD_MAP:
            _INSTRUCTION.pack_into(made, at * _INSTRUCTION.size, code, registers, offset, others[fd])
    return bytes(made)


def _import_bcc() -> ModuleType:
    try:
        import bcc
    except ImportError as error:
        raise DataplaneError(_MISSING) from error
    if not hasattr(bcc, "BPF"):
        raise DataplaneError(f"{bcc.__file__} is PyPI's bcc, which has nothing to do with BPF; {_MISSING}")
    module: ModuleType = bcc
    return module


def _flags(include_dir: Path) -> list[str]:
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    return [
        f"-I{include_dir}",
        "-isystem",
        "/usr/include",
        "-isystem",
        f"/usr/include/{multiarch}",
        "-Wall",
        "-Werror",
        "-Wno-unused-function",  # BCC's own headers and ours offer more than one program uses
    ]


def _map_names(bcc: ModuleType, module: Any) -> list[str]:
    handle = ctypes.c_void_p(module.module)
    bcc.lib.bpf_num_tables.restype = ctypes.c_size_t
    bcc.lib.bpf_table_name.restype = ctypes.c_char_p
    return [
        bcc.lib.bpf_table_name(handle, ctypes.c_size_t(index)).decode()
        for index in range(bcc.lib.bpf_num_tables(handle))
    ]


@contextmanager
def _stub_headers(source_tree: Path) -> Iterator[None]:
    """BCC looks for kernel headers where BCC_KERNEL_SOURCE says, while compiling only."""
    before = os.environ.get(_KERNEL_SOURCE)
    os.environ[_KERNEL_SOURCE] = str(source_tree)
    try:
        yield
    finally:
        if before is None:
            del os.environ[_KERNEL_SOURCE]
        else:
            os.environ[_KERNEL_SOURCE] = before


@contextmanager
def _captured_stderr() -> Iterator[IO[bytes]]:
    """clang and the verifier write to descriptor 2, not to sys.stderr."""
    with tempfile.TemporaryFile() as log:
        sys.stderr.flush()
        before = os.dup(2)
        os.dup2(log.fileno(), 2)
        try:
            yield log
        finally:
            os.dup2(before, 2)
            os.close(before)


def _tail(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return " | ".join(line.strip() for line in lines[-_LOG_LINES:])
