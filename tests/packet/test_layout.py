# SPDX-License-Identifier: Apache-2.0
"""controlplane/adapters/layout.py says the same as bpf/structs.h: the C compiler compares them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from controlplane.adapters import captures, layout, notes
from controlplane.adapters.bcc import compile_file
from controlplane.model import EventKind, Role, Sizes
from controlplane.ports import DataplaneError
from tests.packet.rig import KERNEL, SIZES, Rig

BPF_DIR = Path(__file__).resolve().parents[2] / "bpf"
GROWING = ("direct", "route_mtus")
NAMED = Sizes(SIZES.services, SIZES.endpoints, SIZES.buckets * layout.BUCKET_FLOWS, SIZES.ring_lines * 16)
CONSTANTS = (
    *(
        "BUCKET_FLOWS",
        "RING_LINE_CELLS",
        "SHADOW_SLOTS",
        "HISTOGRAM_SUB",
        "HISTOGRAM_BUCKETS",
        "REASON_SLOTS",
    ),
    *("NAME_BYTES", "TICK_SHIFT", "REF_INDEX_BITS", "REF_INDEX_MASK", "REF_GENERATION_MASK", "SPILL_ALL"),
    *(
        "ENDPOINT_PRESENT",
        "ENDPOINT_DOWN",
        "ENDPOINT_DRAINING",
        "ENDPOINT_EVICTED",
        "ENDPOINT_EVICTED_SHIFT",
        "SERVICE_PRESENT",
        "SERVICE_ON_DOWN_KEEP",
    ),
    *("SERVICE_AFFINITY", "SERVICE_REQUESTS_HTTP1", "SERVICE_REQUESTS_TLS", "FLOW_REQUEST"),
    *("FLOW_SYN", "FLOW_SYNACK", "FLOW_ESTABLISHED", "FLOW_FIN_CLIENT", "FLOW_FIN_ENDPOINT", "FLOW_RST"),
    *("FLOW_MIDSTREAM", "HASH_VERSION", "WINDOW_NS", "LIMIT_WINDOW"),
    *("INTERFACE_ROWS", "INTERFACE_SHIFT", "OTHER_INTERFACES"),
    *("REDIRECT_SENT", "REDIRECT_REFUSED", "REDIRECT_PROGRAMS"),
)


def claims() -> list[str]:
    """What Python believes of the C, as C expressions. Offsets leave no gap, so no field can be missing."""
    found = [f"{name} == {getattr(layout, name)}U" for name in CONSTANTS]
    found += [f"REASON_{name} == {place}" for place, name in enumerate(layout.REASONS)]
    found.append(f"REASON_COUNT == {len(layout.REASONS)}")
    found += [f"SNAP_MAX == {captures.SNAP_MAX}U", f"CAPTURE_ANY == {captures.ANY}U"]
    found += [f"EVENT_{kind.name} == {kind.value}" for kind in EventKind]
    found += [f"ROLE_{role.name} == {role.value}" for role in Role]
    for prefix, names in (
        *(("NOTE", notes.NOTES), ("STALE", notes.STALES)),
        *(("CHOSE", notes.CHOICES), ("COUNTED", notes.COUNTS), ("ASKED", notes.ASKS)),
    ):
        found += [f"{prefix}_{name} == {place}" for place, name in enumerate(names)]
        found.append(f"{prefix}_COUNT == {len(names)}")
    found += [f"PARSED_{name.upper()} == {place}" for place, name in enumerate(notes.PARSED[1:], start=1)]
    for struct, dtype in (layout.STRUCTS | notes.STRUCTS | captures.STRUCTS).items():
        found.append(f"sizeof(struct {struct}) == {dtype.itemsize}")
        for field in dtype.names or ():
            size, offset = dtype.fields[field][0].itemsize, dtype.fields[field][1]
            found.append(f"__builtin_offsetof(struct {struct}, {field}) == {offset}")
            found.append(f"sizeof(((struct {struct} *)0)->{field}) == {size}")
    return found


def compile_claims(folder: Path, expressions: list[str]) -> None:
    lines = [f'#include "{BPF_DIR / header}"' for header in ("parse.h", "hash.h", "note.h", "capture.h")]
    lines += [f'_Static_assert({expression}, "{expression}");' for expression in expressions]
    lines += ["int probe(struct xdp_md *ctx) { return XDP_PASS; }", ""]
    source = folder / "claims.c"
    source.write_text("\n".join(["#include <linux/types.h>", *lines]))
    compile_file(source, "probe", [], headers=BPF_DIR).close()


def test_every_struct_constant_and_reason_is_what_the_c_says(tmp_path: Path) -> None:
    compile_claims(tmp_path, claims())


def test_a_field_that_is_off_by_one_byte_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(DataplaneError):
        compile_claims(tmp_path, ["__builtin_offsetof(struct endpoint, spill) == 33"])


def test_no_struct_has_a_gap_that_a_field_could_hide_in() -> None:
    for name, dtype in (layout.STRUCTS | notes.STRUCTS | captures.STRUCTS).items():
        covered = sum(dtype.fields[field][0].itemsize for field in dtype.names or ())
        assert covered == dtype.itemsize, name


def test_another_version_of_the_hash_is_another_layout(monkeypatch: pytest.MonkeyPatch) -> None:
    before = layout.layout_hash()
    monkeypatch.setattr(layout, "HASH_VERSION", layout.HASH_VERSION + 1)
    assert layout.layout_hash() != before


@pytest.mark.parametrize(("seconds", "ticks"), [(0.0, 0), (0.1, 1), (0.268435456, 1), (0.27, 2), (5.0, 19)])
def test_seconds_become_whole_ticks_rounded_up(seconds: float, ticks: int) -> None:
    assert layout.ticks(seconds) == ticks


def test_a_reference_holds_index_and_generation() -> None:
    assert layout.reference(5, 0x1003) == np.uint32(3 << 20 | 5)


@pytest.mark.skipif(KERNEL < (6, 4), reason="before Linux 6.4 it counts keys and values alone")
def test_the_memory_that_check_names_is_what_the_kernel_counts(rig: Rig) -> None:
    """proc(5): "memlock" of a map's fdinfo is its use in bytes. ``direct`` and ``route_mtus`` grow with what
    is in them."""
    counted = 0
    for name, fd in rig.compiled.maps.items():
        lines = Path(f"/proc/self/fdinfo/{fd}").read_text().splitlines()
        taken = next(int(line.split()[1]) for line in lines if line.startswith("memlock:"))
        counted += taken if name not in GROWING else layout.map_bytes(layout.maps(NAMED, SIZES.cpus)[name])
    assert abs(sum(layout.memory_bytes(NAMED, SIZES.cpus).values()) - counted) < 0.05 * counted


def test_memory_is_named_by_what_it_grows_with() -> None:
    sizes = Sizes()
    before = layout.memory_bytes(sizes, 4)
    assert before.keys() == {"services", "endpoints", "flows", "ring_cells", "cpus", "fixed"}
    assert before["flows"] == sizes.flows * (64 + 96) // 4
    assert before["ring_cells"] == sizes.ring_cells * 4
    for kind, larger in {
        "flows": layout.memory_bytes(replace(sizes, flows=2 * sizes.flows), 4),
        "ring_cells": layout.memory_bytes(replace(sizes, ring_cells=2 * sizes.ring_cells), 4),
        "cpus": layout.memory_bytes(sizes, 8),
    }.items():
        assert larger.keys() == before.keys()
        assert larger[kind] == pytest.approx(2 * before[kind], rel=0.02)
        assert {k: size for k, size in larger.items() if k != kind} == {
            k: size for k, size in before.items() if k != kind
        }
