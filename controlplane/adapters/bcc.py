# SPDX-License-Identifier: Apache-2.0
"""Compiles the packet's path with BCC; the only module that imports ``bcc``.

No kernel headers are needed: ``bpf/include`` stands where BCC looks for them.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
import os
import re
import sys
import sysconfig
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from types import ModuleType
from typing import IO, Any

from controlplane.adapters import builds, layout, libbpf
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
_OPTIONS = ("-Wall", "-Werror", "-Wno-unused-function")
"""BCC's own headers and ours offer more than one program uses."""
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
            "MAX_ROUTE_MTUS": layout.ROUTE_MTUS,
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
    return int.from_bytes(hashlib.blake2b(_all_of(source_dir), digest_size=8).digest(), "little")


def _all_of(folder: Path) -> bytes:
    """Names and contents of its C files, or rather what is as unlike for others."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".c", ".h"))
    return b"".join(
        f"{path.relative_to(folder)}\0".encode() + hashlib.blake2b(path.read_bytes()).digest()
        for path in files
    )


def compile_program(
    source_dir: Path,
    sizes: ProgramSizes,
    maps: Mapping[str, int] | None = None,
    build: Build = Build.STEERING,
    *,
    frags: bool = False,
) -> Compiled:
    """Compiles ``steer.c`` and has the verifier load it; takes ten seconds the first time, then one.

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
    with _made(source, (REFUSAL, PROGRAM), defines, source_dir) as (programs, own):
        used = {**(own if maps is None else maps), REFUSALS: own[REFUSALS]}
        on = _on(source, programs, own, used)
        refusal_fd = libbpf.prog_load(REFUSAL, on[REFUSAL], LICENCE, flags)
        try:
            libbpf.map_update(used[REFUSALS], bytes(4), refusal_fd.to_bytes(4, "little"))
        finally:
            os.close(refusal_fd)  # the array keeps it
        return _loaded(PROGRAM, on[PROGRAM], used, flags)


def compile_file(source: Path, program: str, defines: list[str], *, headers: Path) -> Compiled:
    """Compiles one C file and loads ``program`` of it as XDP.

    ``headers`` is the folder that holds our headers and, in ``include``, what stands for the kernel's.
    """
    with _made(source, (program,), defines, headers) as (programs, own):
        return _loaded(program, programs[program], own)


def _loaded(program: str, instructions: bytes, maps: Mapping[str, int], flags: int = 0) -> Compiled:
    """BCC would load it without its attach type, and then it could not share a PROG_ARRAY with others.

    The maps are closed by who made them, and the caller keeps his: so these are copies.
    """
    fd = libbpf.prog_load(program, instructions, LICENCE, flags)
    return Compiled(fd, {name: os.dup(one) for name, one in maps.items()}, builds.count(instructions))


def compile_tracers(
    source: Path, programs: Iterable[str], defines: list[str], *, headers: Path, maps: Mapping[str, int]
) -> dict[str, int]:
    """Compiles one C file and loads these of its programs for raw tracepoints, on the maps given.

    Returns name -> descriptor; the caller closes them.
    """
    fds: dict[str, int] = {}
    try:
        with _made(source, programs, defines, headers) as (made, own):
            for name, instructions in _on(source, made, own, maps).items():
                kind = libbpf.ProgramType.RAW_TRACEPOINT
                fds[name] = libbpf.prog_load(name, instructions, LICENCE, kind=kind)
    except BaseException:
        for fd in fds.values():
            os.close(fd)
        raise
    return fds


def _on(
    source: Path, programs: Mapping[str, bytes], own: Mapping[str, int], maps: Mapping[str, int]
) -> dict[str, bytes]:
    """The programs on these maps instead of their own."""
    if strange := sorted(own.keys() ^ maps.keys()):
        raise DataplaneError(f"{source}: the maps given are not its own: {', '.join(strange)}")
    others = {fd: maps[name] for name, fd in own.items()}
    return {name: builds.with_maps(code, others.__getitem__) for name, code in programs.items()}


@contextmanager
def _made(
    source: Path, programs: Iterable[str], defines: list[str], headers: Path
) -> Iterator[tuple[Mapping[str, bytes], Mapping[str, int]]]:
    """Instructions of each program, and by name the descriptors of the maps in them, which end with it.

    What was made of the same before is not made again. Of /usr/include only numbers are used that no version
    of it can change, so it has no part in the key.
    """
    if not source.is_file():
        raise DataplaneError(f"{source}: no such file; the installation is incomplete")
    names, text = tuple(programs), _with_parts(source)
    key = builds.key(
        text, _all_of(headers), json.dumps([*_OPTIONS, *defines, *names]).encode(), _bcc_version()
    )
    try:
        if before := builds.found(key):
            with before.opened() as made:
                yield made
            return
        with _module(source, text, defines, headers) as (bcc, module):
            own = {name: module[name.encode()].map_fd for name in _map_names(bcc, module)}
            instructions = {name: module.dump_func(name.encode()) for name in names}
            with suppress(OSError):
                builds.keep(key, builds.Built.of(instructions, own))
            yield instructions, own
    except libbpf.BpfError as error:
        raise DataplaneError(f"{source}: refused by the kernel: {error}") from error


@contextmanager
def _module(source: Path, text: bytes, defines: list[str], headers: Path) -> Iterator[tuple[ModuleType, Any]]:
    """BCC and what it made of the text."""
    bcc = _import_bcc()
    headers = headers.resolve()  # BCC changes the working directory while it compiles
    with _captured_stderr() as log, _stub_headers(headers):
        try:
            module = bcc.BPF(text=text, cflags=[*_includes(headers), *_OPTIONS, *defines])
        except Exception as error:  # BCC raises bare Exception for everything
            raise DataplaneError(f"{source}: not compiled: {_tail(log) or error}") from error
    try:
        yield bcc, module
    finally:
        module.cleanup()


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


def _bcc_version() -> bytes:
    """Without importing it, which takes as long as to load what it made."""
    found = importlib.util.find_spec("bcc")
    package = Path(found.origin).parent if found and found.origin else None
    told = package / "version.py" if package else None
    return told.read_bytes() if told and told.is_file() else b""


def _import_bcc() -> ModuleType:
    try:
        import bcc
    except ImportError as error:
        raise DataplaneError(_MISSING) from error
    if not hasattr(bcc, "BPF"):
        raise DataplaneError(f"{bcc.__file__} is PyPI's bcc, which has nothing to do with BPF; {_MISSING}")
    module: ModuleType = bcc
    return module


def _includes(headers: Path) -> list[str]:
    multiarch = sysconfig.get_config_var("MULTIARCH") or ""
    return [f"-I{headers}", "-isystem", "/usr/include", "-isystem", f"/usr/include/{multiarch}"]


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
