# SPDX-License-Identifier: Apache-2.0
"""What was compiled once is not compiled again, unless something has changed or what is kept is damaged."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from controlplane.adapters import bcc, builds, libbpf
from controlplane.adapters.bcc import compile_file, compile_program
from controlplane.lab import network
from controlplane.ports import DataplaneError
from tests.packet.rig import BPF_DIR, SIZES

SMALL = """\
#include "small.h"
struct row { u32 first; u32 second; };
BPF_F_TABLE("array", u32, struct row, rows, ROWS, BPF_F_MMAPABLE);
BPF_TABLE("hash", u64, u32, others, 16);
int small(struct xdp_md *ctx)
{
	u32 zero = 0;
	u64 key = NUMBER;
	struct row *row = rows.lookup(&zero);

	if (row)
		row->first = others.lookup(&key) ? 1 : NUMBER;
	return XDP_PASS;
}
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(builds, "FOLDER", tmp_path / "cache")
    monkeypatch.setattr(builds, "_KEPT", 16)
    return tmp_path / "cache"


@pytest.fixture
def source(tmp_path: Path) -> Path:
    headers = tmp_path / "source"
    headers.mkdir()
    (headers / "include").symlink_to(BPF_DIR / "include")
    (headers / "small.h").write_text("#define NUMBER 7\n")
    (headers / "small.c").write_text(SMALL)
    return headers / "small.c"


@pytest.fixture
def compiled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One more for each time that clang is asked."""
    asked: list[int] = []
    import_bcc = bcc._import_bcc
    monkeypatch.setattr(bcc, "_import_bcc", lambda: asked.append(1) or import_bcc())
    return asked


def made(source: Path, rows: int = 8) -> tuple[str, dict[str, libbpf.MapInfo]]:
    """The program's tag, which is of its instructions, and its maps."""
    one = compile_file(source, "small", [f"-DROWS={rows}"], headers=source.parent)
    try:
        maps = {name: replace(libbpf.map_info(fd), id=0, btf_id=0) for name, fd in one.maps.items()}
        assert libbpf.prog_test_run(one.program_fd, bytes(64)).verdict == 2
        return libbpf.prog_info(one.program_fd).tag, maps
    finally:
        one.close()


def test_the_second_time_it_is_the_same_without_clang(source: Path, compiled: list[int]) -> None:
    first = made(source)
    assert made(source) == first
    assert len(compiled) == 1
    assert first[1]["rows"].btf_value_id, "bpftool knows its fields"


def test_so_it_is_with_the_programs_that_steer(compiled: list[int]) -> None:
    found = []
    for _ in range(2):
        one = compile_program(BPF_DIR, SIZES)
        refusal = libbpf.map_lookup(one.maps["refusals"], bytes(4), 4)
        programs = (
            libbpf.prog_info(one.program_fd),
            libbpf.prog_info_by_id(int.from_bytes(refusal or b"", "little")),
        )
        maps = {name: replace(libbpf.map_info(fd), id=0, btf_id=0) for name, fd in one.maps.items()}
        found.append(([program.tag for program in programs], maps))
        one.close()
    assert found[0] == found[1]
    assert len(compiled) == 1


CHANGES: dict[str, Callable[[Path], object]] = {
    "the source": lambda source: source.write_text(SMALL.replace("? 1", "? 2")),
    "a header": lambda source: (source.parent / "small.h").write_text("#define NUMBER 8\n"),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_what_has_changed_is_made_anew(
    source: Path, compiled: list[int], change: Callable[[Path], object]
) -> None:
    before = made(source)
    change(source)
    assert made(source)[0] != before[0]
    assert len(compiled) == 2


def test_so_is_what_other_sizes_ask_for(source: Path, compiled: list[int]) -> None:
    assert made(source, 8)[1]["rows"].max_entries == 8
    assert made(source, 9)[1]["rows"].max_entries == 9
    assert len(compiled) == 2


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path], object]] = {
    "a bit is flipped": flipped,
    "it is cut": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "it is empty": lambda path: path.write_bytes(b""),
    "it is a folder": a_folder,
    "the folder is everybody's": lambda path: path.parent.chmod(0o777),
    "the folder is another's": lambda path: os.chown(path.parent, 1, 1),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_what_is_damaged_is_made_anew(
    source: Path, folder: Path, compiled: list[int], damage: Callable[[Path], object]
) -> None:
    before = made(source)
    (kept,) = folder.iterdir()
    damage(kept)
    assert made(source) == before
    assert len(compiled) == 2


def test_where_nothing_can_be_kept_it_is_made_each_time(
    source: Path, folder: Path, compiled: list[int]
) -> None:
    folder.mkdir()
    network.run(["mount", "-t", "tmpfs", "-o", "size=8k,mode=0700", "tmpfs", str(folder)])
    (folder / "full").write_bytes(bytes(8192))
    try:
        assert made(source) == made(source)
        assert len(compiled) == 2
        assert [path.name for path in folder.iterdir()] == ["full"], "nothing is left of what did not fit"
    finally:
        network.run(["umount", str(folder)])


def test_only_the_last_so_many_are_kept(source: Path, folder: Path) -> None:
    made(source)
    (kept,) = folder.iterdir()
    for number in range(30):
        builds.keep(f"{number:032x}", builds.found(kept.name) or pytest.fail("it is the last one used"))
    assert len(list(folder.iterdir())) == builds._KEPT
    assert builds.found(kept.name)


def test_what_the_verifier_refuses_is_told_as_ever(source: Path) -> None:
    source.write_text(SMALL.replace("if (row)", "").replace("zero = 0", "zero = 99"))
    told = set()
    for _ in range(2):
        with pytest.raises(DataplaneError, match="refused by the kernel") as error:
            made(source)
        told.add(str(error.value))
    assert len(told) == 1
