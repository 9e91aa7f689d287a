# SPDX-License-Identifier: Apache-2.0
"""What else is built of the program's source: it costs the program that steers nothing."""

from __future__ import annotations

import os
import shutil
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

from controlplane.adapters import captures, layout, libbpf, notes
from controlplane.adapters.bcc import Build, Compiled, compile_program
from controlplane.model import Sizes
from controlplane.ports import DataplaneError
from tests.packet.rig import BPF_DIR, SIZES, Rig

BPF_F_NO_PREALLOC, BPF_F_RDONLY_PROG = 1 << 0, 1 << 7
PLAIN_NOTE = "#define NOTE(kind, a, b)\n"
CAPTURES = {
    "steer.c": ('#include "capture.c"', "\tcapture_came(&here);\n", "\tcapture_leaves(&here, verdict);\n"),
    "refuse.c": ("\tcapture_leaves(&here, verdict);\n",),
}
PLAIN_STORES = """
#define DRY_RUN 0
#define STORE(at, value) (at) = (value)
#define COUNT(at, by) (at) += (by)
#define COUNT_SHARED(at, by) __sync_fetch_and_add(&(at), by)
#define swap(at, from, to) __sync_val_compare_and_swap(at, from, to)
"""


@pytest.fixture
def read_only() -> Iterator[dict[str, int]]:
    """Every map, of a kind that programs may only read, but for the ring buffer, of which there is none such,
    and what a dry run notes."""
    sizes = Sizes(SIZES.services, SIZES.endpoints, SIZES.buckets * layout.BUCKET_FLOWS, SIZES.ring_lines * 16)
    fds = {"events": libbpf.map_create(libbpf.MapType.RINGBUF, "events", 0, 0, 4096 * layout.EVENT_PAGES)}
    for name, one in layout.maps(sizes, SIZES.cpus).items():
        flags = BPF_F_RDONLY_PROG * (one.kind is not libbpf.MapType.PROG_ARRAY)
        flags |= BPF_F_NO_PREALLOC * (one.kind is libbpf.MapType.LPM_TRIE)
        fds[name] = libbpf.map_create(
            one.kind, name, one.key.itemsize, one.value.itemsize, one.entries, flags
        )
    fds["traces"] = libbpf.map_create(libbpf.MapType.ARRAY, "traces", 4, notes.TRACE.itemsize, 1)
    yield fds
    for fd in fds.values():
        os.close(fd)


def test_the_verifier_finds_no_store_to_a_map_in_the_dry_run(read_only: dict[str, int]) -> None:
    compiled = compile_program(BPF_DIR, SIZES, read_only, Build.DRY_RUN)
    try:
        assert libbpf.map_info(read_only["events"]).id not in libbpf.prog_maps(compiled.program_fd)
    finally:
        compiled.close()


def test_it_finds_one_in_the_program_that_steers(read_only: dict[str, int]) -> None:
    own = {name: fd for name, fd in read_only.items() if name != "traces"}
    with pytest.raises(DataplaneError, match="write into map forbidden"):
        compile_program(BPF_DIR, SIZES, own).close()


def instructions(
    monkeypatch: pytest.MonkeyPatch, folder: Path, maps: Mapping[str, int] | None = None
) -> list[tuple[int, ...]]:
    """What is loaded, both programs, without the descriptors of maps."""
    loaded: list[bytes] = []
    load = libbpf.prog_load

    def seen(name: str, program: bytes, *rest: object) -> int:
        loaded.append(program)
        return load(name, program, *rest)

    monkeypatch.setattr(libbpf, "prog_load", seen)
    compile_program(folder, SIZES, maps).close()
    monkeypatch.undo()
    return [
        (code, registers, offset, 0 if (code, registers & 0xF0) == (0x18, 0x10) else immediate)
        for code, registers, offset, immediate in struct.iter_unpack("<BBhi", b"".join(loaded))
    ]


def test_what_other_builds_need_costs_the_program_no_instruction(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = tmp_path / "bpf"
    shutil.copytree(BPF_DIR, plain)
    (plain / "store.h").write_text(PLAIN_STORES)
    note = plain / "note.h"
    head, _, _ = note.read_text().partition("#define NOTE(kind")
    note.write_text(f"{head}{PLAIN_NOTE}#endif\n")
    for name, calls in CAPTURES.items():
        text = (plain / name).read_text()
        for call in calls:
            assert text.count(call) == 1
            text = text.replace(call, "")
        (plain / name).write_text(text)
    assert instructions(monkeypatch, plain) == instructions(monkeypatch, BPF_DIR)


@pytest.mark.parametrize("build", list(Build), ids=lambda build: build.value)
def test_each_build_hands_on_to_its_own(rig: Rig, build: Build) -> None:
    """One of another build would look for maps that are not its own, or store where it must not; and one that
    takes frames in several buffers can't call one that doesn't."""
    own = {"traces": libbpf.map_create(libbpf.MapType.ARRAY, "traces", 4, notes.TRACE.itemsize, 1)}
    other = {Build.STEERING: {}, Build.DRY_RUN: own, Build.CAPTURE: captures.make_maps()}[build]
    compiled = compile_program(BPF_DIR, SIZES, {**rig.compiled.maps, **other}, build, frags=True)
    try:
        assert refusal(compiled) != refusal(rig.compiled)
        used = libbpf.prog_maps(compiled.program_fd)
        assert libbpf.map_info(compiled.maps["refusals"]).id in used
        assert libbpf.map_info(rig.compiled.maps["refusals"]).id not in used
    finally:
        compiled.close()
        for fd in {**own, **other}.values():
            os.close(fd)


def refusal(compiled: Compiled) -> int:
    """Id of the program in its array."""
    found = libbpf.map_lookup(compiled.maps["refusals"], bytes(4), 4)
    assert found
    return int.from_bytes(found, "little")


def test_on_others_maps_it_is_the_same_program_whose_own_maps_are_small(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So an upgrade, a dry run or a capture need not have the memory of the flow cache once more."""
    own = instructions(monkeypatch, BPF_DIR)
    assert instructions(monkeypatch, BPF_DIR, rig.compiled.maps) == own
    assert "-DMAX_BUCKETS=1" in SIZES.defines(with_maps=False)
