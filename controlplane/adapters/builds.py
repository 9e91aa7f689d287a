# SPDX-License-Identifier: Apache-2.0
"""What clang made of the same source before: that takes ten seconds of a core, to load it half of one.

A file for each in ``FOLDER``, the last so many. Whatever is wrong with one, it is as good as none.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from controlplane.adapters import libbpf

FOLDER = Path("/var/cache/penumbra")
_KEPT = 16
_DIGEST_BYTES = 32
_INSTRUCTION = struct.Struct("<BBhi")
"""struct bpf_insn of linux/bpf.h: code, registers (destination low, source high), offset, immediate."""
_LOAD_MAP = (0x18, 0x10)
"""BPF_LD | BPF_IMM | BPF_DW with BPF_PSEUDO_MAP_FD as its source: the immediate is a map's descriptor."""


def key(*parts: bytes) -> str:
    """Of all that has a say in what is made."""
    return hashlib.blake2b(b"".join(len(part).to_bytes(8, "little") + part for part in parts)).hexdigest()[
        :32
    ]


def with_maps(instructions: bytes, others: Callable[[int], int]) -> bytes:
    """The same program with another number for each map."""
    made = bytearray(instructions)
    for at, (code, registers, offset, number) in enumerate(_INSTRUCTION.iter_unpack(instructions)):
        if (code, registers & 0xF0) == _LOAD_MAP:
            _INSTRUCTION.pack_into(made, at * _INSTRUCTION.size, code, registers, offset, others(number))
    return bytes(made)


def count(instructions: bytes) -> int:
    return len(instructions) // _INSTRUCTION.size


@dataclass(frozen=True, slots=True)
class _Map:
    name: str
    kind: int
    kernel_name: str
    key_bytes: int
    value_bytes: int
    max_entries: int
    flags: int
    key_type: int
    """Of the types below; 0: of none."""
    value_type: int


@dataclass(frozen=True, slots=True)
class Built:
    programs: Mapping[str, bytes]
    """Name -> instructions; a map is its place in ``maps``."""
    maps: tuple[_Map, ...]
    types: bytes
    """BTF, by which bpftool shows what is in the maps; empty: none."""

    @classmethod
    def of(cls, programs: Mapping[str, bytes], maps: Mapping[str, int]) -> Built:
        """:param programs: with the descriptors of ``maps``, name -> descriptor, in them."""
        specs, types_id = [], 0
        for name, fd in maps.items():
            found = libbpf.map_info(fd)
            types_id = types_id or found.btf_id
            sizes = (found.key_bytes, found.value_bytes, found.max_entries, found.flags)
            specs.append(_Map(name, found.type, found.name, *sizes, found.btf_key_id, found.btf_value_id))
        places = {fd: place for place, fd in enumerate(maps.values())}
        return cls(
            {name: with_maps(code, places.__getitem__) for name, code in programs.items()},
            tuple(specs),
            libbpf.btf_by_id(types_id) if types_id else b"",
        )

    @contextmanager
    def opened(self) -> Iterator[tuple[Mapping[str, bytes], Mapping[str, int]]]:
        """Programs and maps as they were given to ``of``; the maps are new, and closed at the end.

        BpfError: the kernel refuses one.
        """
        fds: list[int] = []
        types = libbpf.btf_load(self.types) if self.types else None
        try:
            for one in self.maps:
                kind = libbpf.MapType(one.kind)
                sizes = (one.key_bytes, one.value_bytes, one.max_entries, one.flags)
                of = (types, one.key_type, one.value_type) if types and one.value_type else None
                fds.append(libbpf.map_create(kind, one.kernel_name, *sizes, types=of))
            programs = {name: with_maps(code, fds.__getitem__) for name, code in self.programs.items()}
            yield programs, dict(zip((one.name for one in self.maps), fds, strict=True))
        finally:
            for fd in (*fds, *([types] if types else [])):
                os.close(fd)


def found(of: str) -> Built | None:
    """None: it has to be made."""
    try:
        if not _is_ours(FOLDER):
            return None
        content = (FOLDER / of).read_bytes()
        os.utime(FOLDER / of)
        digest, text = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        if hashlib.blake2b(text, digest_size=_DIGEST_BYTES).digest() != digest:
            return None
        told = json.loads(text)
        return Built(
            {name: base64.b64decode(code) for name, code in told["programs"].items()},
            tuple(_Map(**one) for one in told["maps"]),
            base64.b64decode(told["types"]),
        )
    except (OSError, ValueError, TypeError, KeyError):
        return None


def keep(of: str, built: Built) -> None:
    """Raises OSError where there is no room for it."""
    told = {
        "programs": {name: base64.b64encode(code).decode() for name, code in built.programs.items()},
        "maps": [asdict(one) for one in built.maps],
        "types": base64.b64encode(built.types).decode(),
    }
    text = json.dumps(told).encode()
    FOLDER.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not _is_ours(FOLDER):
        return
    _make_room(FOLDER.iterdir())
    fd, name = tempfile.mkstemp(dir=FOLDER)
    written = Path(name)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(hashlib.blake2b(text, digest_size=_DIGEST_BYTES).digest() + text)
        written.replace(FOLDER / of)
    finally:
        written.unlink(missing_ok=True)


def _make_room(files: Iterable[Path]) -> None:
    """The oldest go, what a killed process has left of one too."""
    for path in sorted(files, key=lambda path: -path.stat().st_mtime)[_KEPT - 1 :]:
        path.unlink(missing_ok=True)


def _is_ours(folder: Path) -> bool:
    """Nobody else can put there what the kernel is then given in root's name."""
    status = folder.lstat()
    return folder.is_dir() and not folder.is_symlink() and status.st_uid == 0 and not status.st_mode & 0o022
