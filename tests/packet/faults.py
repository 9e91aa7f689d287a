# SPDX-License-Identifier: Apache-2.0
"""Faults in the program's source that are compiled once, all of them, and chosen as it is loaded.

To compile takes fifteen times as long as to load. So in a copy of bpf/ each place that has a fault is written
``FAULT(number) ? wrong : right``. FAULT is a constant that the compiler does not know: it is written into the
instructions before the verifier sees them, which then leaves out what it decides against.
"""

from __future__ import annotations

import os
import re
import shutil
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from controlplane.adapters import builds, libbpf
from controlplane.adapters.bcc import LICENCE, PROGRAM, REFUSAL, REFUSALS, Compiled, compile_program
from tests.packet.rig import BPF_DIR, SIZES, Rig

_LOAD = struct.Struct("<BBhiBBhi")
"""BPF_LD | BPF_IMM | BPF_DW: two instructions, the lower half of their number and the upper one."""
_LOAD_CODE, _LOAD_BYTES = 0x18, 8
_MARK = 0x0FA017ED
"""The upper half of the numbers that stand for faults."""
_HEADER = f"""
#define FAULT(number) ({{ unsigned long long on; \\
	asm volatile("%0 = %1 ll" : "=r"(on) : "i"({_MARK:#x}ULL << 32 | (number))); on; }})
"""
_NONE_HEADER = "\n#define FAULT(number) 0\n"
_PART = re.compile("@(.*?)@", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Place:
    """What stands once in a file, and what a fault puts there instead.

    ``right`` is an expression, or statements, which end in ``;``. Where more of the text is needed for it to
    stand once, it is put between ``@``, and ``wrong`` is instead of what is between them.
    """

    file: str
    right: str
    wrong: str

    def span(self, text: str) -> tuple[int, int]:
        part = _PART.search(self.right)
        whole = self.right.replace("@", "")
        assert text.count(whole) == 1, f"{self.file} has changed: name the fault anew: {whole!r}"
        at = text.index(whole)
        return (at + part.start(), at + part.end() - 2) if part else (at, at + len(whole))


@dataclass(frozen=True, slots=True)
class _Choice:
    start: int
    end: int
    number: int
    wrong: str


def _chosen(text: str, start: int, end: int, choices: Sequence[_Choice]) -> str:
    """``text[start:end]`` with the choices in it, of which one may lie in another's right side."""
    made, at = "", start
    for one in sorted(choices, key=lambda one: (one.start, -one.end)):
        if one.start < at:
            continue  # it is in the one before
        inner = [other for other in choices if other is not one and one.start <= other.start < one.end]
        assert all(other.end <= one.end for other in inner), f"faults overlap: {text[one.start : one.end]!r}"
        right = _chosen(text, one.start, one.end, inner)
        is_statement = text[one.start : one.end].rstrip().endswith(";")
        form = (
            "{{ if (FAULT({0})) {{ {1} }} else {{ {2} }} }}"
            if is_statement
            else "(FAULT({0}) ? ({1}) : ({2}))"
        )
        made += text[at : one.start] + form.format(one.number, one.wrong, right)
        at = one.end
    return made + text[at:end]


def with_faults(folder: Path, faults: Sequence[Sequence[Place]], *, header: str = _HEADER) -> Path:
    """A copy of bpf/ in which each is a choice; its number is its place here."""
    copy = folder / "bpf"
    shutil.copytree(BPF_DIR, copy)
    choices: dict[str, list[_Choice]] = {}
    for number, places in enumerate(faults):
        for place in places:
            span = place.span((BPF_DIR / place.file).read_text())
            choices.setdefault(place.file, []).append(_Choice(*span, number, place.wrong))
    for file, its in choices.items():
        text = (BPF_DIR / file).read_text()
        (copy / file).write_text(_chosen(text, 0, len(text), its))
    main = copy / f"{PROGRAM}.c"
    main.write_text(header + main.read_text())
    return copy


def without_faults(folder: Path, faults: Sequence[Sequence[Place]]) -> Path:
    """The same source, in which the compiler knows that none is chosen."""
    return with_faults(folder, faults, header=_NONE_HEADER)


def _choose(instructions: bytes, numbers: Sequence[int]) -> tuple[bytes, int]:
    """With these faults and no others; in how many places they are."""
    made, hits = bytearray(instructions), 0
    for at in range(0, len(instructions) - _LOAD_BYTES, _LOAD_BYTES):
        if instructions[at] != _LOAD_CODE:
            continue
        first, registers, offset, number, *rest, upper = _LOAD.unpack_from(instructions, at)
        if upper == _MARK and not registers & 0xF0:
            on = number in numbers
            hits += on
            _LOAD.pack_into(made, at, first, registers, offset, int(on), *rest, 0)
    return bytes(made), hits


class Faults:
    """The program with its faults, on others' maps."""

    def __init__(self, folder: Path, faults: Mapping[str, Sequence[Place]], maps: Mapping[str, int]) -> None:
        self._numbers = {name: number for number, name in enumerate(faults)}
        self._instructions: dict[str, bytes] = {}
        load: Callable[..., int] = libbpf.prog_load

        def without(name: str, instructions: bytes, *rest: object) -> int:
            self._instructions[name] = instructions
            return load(name, _choose(instructions, ())[0], *rest)

        # Not kept for others: nobody compiles the same again.
        with patch.object(libbpf, "prog_load", without), patch.object(builds, "keep"):
            self.none = compile_program(with_faults(folder, list(faults.values())), SIZES, maps)
        """Without any."""
        others, own = set(maps.values()), self.none.maps[REFUSALS]
        for name, instructions in self._instructions.items():
            self._instructions[name] = builds.with_maps(instructions, lambda fd: fd if fd in others else own)

    @contextmanager
    def compiled(self, *names: str) -> Iterator[Compiled]:
        """The program with these faults; what it refuses, it hands to the one that has them too."""
        numbers, fds, hits = [self._numbers[name] for name in names], {}, 0
        try:
            for program in (REFUSAL, PROGRAM):
                instructions, its = _choose(self._instructions[program], numbers)
                fds[program] = libbpf.prog_load(program, instructions, LICENCE)
                hits += its
            assert hits or not names, f"of {', '.join(names)} nothing was compiled"
            libbpf.map_update(self.none.maps[REFUSALS], bytes(4), fds[REFUSAL].to_bytes(4, "little"))
            yield Compiled(fds[PROGRAM], self.none.maps, len(self._instructions[PROGRAM]) // _LOAD_BYTES)
        finally:
            for fd in fds.values():
                os.close(fd)

    @contextmanager
    def rig(self, *names: str) -> Iterator[Rig]:
        with self.compiled(*names) as compiled:
            made = Rig(compiled)
            made.reset()
            yield made

    def close(self) -> None:
        self.none.close()
