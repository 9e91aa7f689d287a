# SPDX-License-Identifier: Apache-2.0
"""Where fields lie in the running kernel's structures, by the types that it describes itself with (BTF).

Documentation/bpf/btf.rst has the encoding; libbpf reads it.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from controlplane.adapters.libbpf_abi import BpfError, call, pointer, text
from controlplane.ports import DataplaneError

_BTF = Path("/sys/kernel/btf/vmlinux")
_POINTER, _STRUCT, _UNION, _TYPEDEF, _PROTOTYPE = 2, 4, 5, 8, 13
_MODIFIERS = frozenset({_TYPEDEF, 9, 10, 11, 18})
"""Typedef, volatile, const, restrict, type tag: what they stand for is another type."""
_HEAD_BYTES = _MEMBER_BYTES = 12
"""Of struct btf_type and of struct btf_member, three 32-bit words each."""


class KernelTypes:
    """Valid until the end of ``opened``."""

    def __init__(self, handle: int) -> None:
        self._handle = handle

    @classmethod
    @contextmanager
    def opened(cls) -> Iterator[KernelTypes]:
        """DataplaneError where the kernel does not describe itself."""
        if not _BTF.exists():
            raise DataplaneError(f"the kernel does not describe its types: {_BTF} is missing")
        handle = pointer("btf__load_vmlinux_btf")
        if not handle:
            raise DataplaneError(f"{_BTF} can't be read")
        try:
            yield cls(handle)
        finally:
            pointer("btf__free", handle)

    def offset(self, struct: str, *path: str) -> int:
        """Bytes from the struct's begin to the field that the path leads to; pointers are not followed."""
        number, at = self._named(struct, _STRUCT), 0
        for name in path:
            found = self._member(number, name)
            if found is None:
                raise DataplaneError(f"struct {struct} of this kernel has no {'.'.join(path)}")
            number, at = found[0], at + found[1]
        return at

    def arguments(self, tracepoint: str) -> int:
        """How many a raw tracepoint hands over."""
        number = self._named(f"btf_trace_{tracepoint}", _TYPEDEF)
        kind, count, of = self._head(number)
        while kind in _MODIFIERS or kind == _POINTER:
            kind, count, of = self._head(of)
        return count - 1 if kind == _PROTOTYPE else 0  # the first one is the tracepoint's own

    def _named(self, name: str, kind: int) -> int:
        try:
            return call(name, "btf__find_by_name_kind", self._handle, name.encode(), kind)
        except BpfError as error:
            raise DataplaneError(f"this kernel has no {name}") from error

    def _words(self, number: int, at: int = 0) -> tuple[int, int, int]:
        base = pointer("btf__type_by_id", self._handle, number)
        first, second, third = (ctypes.c_uint32 * 3).from_address(base + at)
        return first, second, third

    def _head(self, number: int) -> tuple[int, int, int]:
        """Kind, number of members, and its size or the type that it refers to."""
        _, info, of = self._words(number)
        return info >> 24 & 0x1F, info & 0xFFFF, of

    def _member(self, number: int, wanted: str) -> tuple[int, int] | None:
        """Type and offset in bytes, in what has no name too."""
        kind, count, of = self._head(number)
        while kind in _MODIFIERS:
            number = of
            kind, count, of = self._head(number)
        if kind not in (_STRUCT, _UNION):
            return None
        bits = 0xFFFFFF if self._words(number)[1] >> 31 else 0xFFFFFFFF  # else offset and size share a word
        for place in range(count):
            name, its, offset = self._words(number, _HEAD_BYTES + place * _MEMBER_BYTES)
            at = (offset & bits) // 8
            named = text("btf__name_by_offset", self._handle, name)
            if named == wanted:
                return its, at
            inner = None if named else self._member(its, wanted)
            if inner is not None:
                return inner[0], at + inner[1]
        return None
