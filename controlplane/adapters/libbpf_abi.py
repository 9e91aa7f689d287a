# SPDX-License-Identifier: Apache-2.0
"""libbpf's structures and signatures as ctypes has them, and the one place that calls it.

Structures are those of bpf/bpf.h, bpf/libbpf.h (1.1) and linux/bpf.h, cut after the last field in use:
the ``sz`` of an options structure tells libbpf where it ends.
"""

from __future__ import annotations

import ctypes
import errno
import os
from ctypes import POINTER, c_char, c_char_p, c_int, c_size_t, c_uint8, c_uint32, c_uint64, c_void_p
from functools import cache
from typing import Any


class BpfError(OSError):
    """A call into libbpf failed; ``errno`` is its code and the text names it."""

    def __init__(self, code: int, operation: str) -> None:
        super().__init__(code, os.strerror(code), operation)
        self.operation = operation

    @property
    def name(self) -> str:
        """The code's symbol, e.g. EBUSY."""
        return errno.errorcode.get(self.errno or 0, str(self.errno))

    def __str__(self) -> str:
        return f"{self.operation}: {self.name} ({self.strerror})"


class MapCreateOpts(ctypes.Structure):
    _fields_ = (
        ("sz", c_size_t),
        ("btf_fd", c_uint32),
        ("btf_key_type_id", c_uint32),
        ("btf_value_type_id", c_uint32),
        ("btf_vmlinux_value_type_id", c_uint32),
        ("inner_map_fd", c_uint32),
        ("map_flags", c_uint32),
        ("map_extra", c_uint64),
        ("numa_node", c_uint32),
        ("map_ifindex", c_uint32),
    )


class ProgLoadOpts(ctypes.Structure):
    _fields_ = (
        ("sz", c_size_t),
        ("attempts", c_int),
        ("expected_attach_type", c_uint32),
        ("prog_btf_fd", c_uint32),
        ("prog_flags", c_uint32),
        ("prog_ifindex", c_uint32),
        ("kern_version", c_uint32),
        ("attach_btf_id", c_uint32),
        ("attach_prog_fd", c_uint32),
        ("attach_btf_obj_fd", c_uint32),
        ("fd_array", c_void_p),
        ("func_info", c_void_p),
        ("func_info_cnt", c_uint32),
        ("func_info_rec_size", c_uint32),
        ("line_info", c_void_p),
        ("line_info_cnt", c_uint32),
        ("line_info_rec_size", c_uint32),
        ("log_level", c_uint32),
        ("log_size", c_uint32),
        ("log_buf", c_void_p),
    )


class BatchOpts(ctypes.Structure):
    _fields_ = (("sz", c_size_t), ("elem_flags", c_uint64), ("flags", c_uint64))


class LinkCreateOpts(ctypes.Structure):
    _fields_ = (
        ("sz", c_size_t),
        ("flags", c_uint32),
        ("iter_info", c_void_p),
        ("iter_info_len", c_uint32),
        ("target_btf_id", c_uint32),
    )


class LinkUpdateOpts(ctypes.Structure):
    _fields_ = (("sz", c_size_t), ("flags", c_uint32), ("old_prog_fd", c_uint32))


class XdpQueryOpts(ctypes.Structure):
    _fields_ = (
        ("sz", c_size_t),
        ("prog_id", c_uint32),
        ("drv_prog_id", c_uint32),
        ("hw_prog_id", c_uint32),
        ("skb_prog_id", c_uint32),
        ("attach_mode", c_uint8),
    )


class TestRunOpts(ctypes.Structure):
    _fields_ = (
        ("sz", c_size_t),
        ("data_in", c_void_p),
        ("data_out", c_void_p),
        ("data_size_in", c_uint32),
        ("data_size_out", c_uint32),
        ("ctx_in", c_void_p),
        ("ctx_out", c_void_p),
        ("ctx_size_in", c_uint32),
        ("ctx_size_out", c_uint32),
        ("retval", c_uint32),
        ("repeat", c_int),
        ("duration", c_uint32),
        ("flags", c_uint32),
        ("cpu", c_uint32),
        ("batch_size", c_uint32),
    )


class XdpMd(ctypes.Structure):
    """struct xdp_md."""

    _fields_ = (
        ("data", c_uint32),
        ("data_end", c_uint32),
        ("data_meta", c_uint32),
        ("ingress_ifindex", c_uint32),
        ("rx_queue_index", c_uint32),
        ("egress_ifindex", c_uint32),
    )


class RawMapInfo(ctypes.Structure):
    """struct bpf_map_info, up to what is read here."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("key_size", c_uint32),
        ("value_size", c_uint32),
        ("max_entries", c_uint32),
        ("map_flags", c_uint32),
        ("name", c_char * 16),
        ("ifindex", c_uint32),
        ("btf_vmlinux_value_type_id", c_uint32),
        ("netns_dev", c_uint64),
        ("netns_ino", c_uint64),
        ("btf_id", c_uint32),
        ("btf_key_type_id", c_uint32),
        ("btf_value_type_id", c_uint32),
    )


class RawBtfInfo(ctypes.Structure):
    """struct bpf_btf_info, up to what is read here."""

    _fields_ = (("btf", c_uint64), ("btf_size", c_uint32), ("id", c_uint32))


class RawProgInfo(ctypes.Structure):
    """struct bpf_prog_info, up to what is read here."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("tag", c_uint8 * 8),
        ("jited_prog_len", c_uint32),
        ("xlated_prog_len", c_uint32),
        ("jited_prog_insns", c_uint64),
        ("xlated_prog_insns", c_uint64),
        ("load_time", c_uint64),
        ("created_by_uid", c_uint32),
        ("nr_map_ids", c_uint32),
        ("map_ids", c_uint64),
        ("name", c_char * 16),
        ("unread", c_uint8 * 136),
        ("verified_insns", c_uint32),  # at byte 216; Linux 5.16, 0 before
        ("unread_more", c_uint32),
    )


class RawLinkInfo(ctypes.Structure):
    """struct bpf_link_info of an XDP link; the union starts at byte 16."""

    _fields_ = (
        ("type", c_uint32),
        ("id", c_uint32),
        ("prog_id", c_uint32),
        ("pad", c_uint32),
        ("xdp_ifindex", c_uint32),
    )


SIGNATURES: dict[str, tuple[Any, ...]] = {
    "bpf_obj_get": (c_char_p,),
    "bpf_obj_pin": (c_int, c_char_p),
    "bpf_map_create": (c_int, c_char_p, c_uint32, c_uint32, c_uint32, POINTER(MapCreateOpts)),
    "bpf_map_lookup_elem": (c_int, c_void_p, c_void_p),
    "bpf_map_update_elem": (c_int, c_void_p, c_void_p, c_uint64),
    "bpf_map_delete_elem": (c_int, c_void_p),
    "bpf_map_get_next_key": (c_int, c_void_p, c_void_p),
    "bpf_map_lookup_batch": (
        *(c_int, c_void_p, c_void_p, c_void_p, c_void_p),
        *(POINTER(c_uint32), POINTER(BatchOpts)),
    ),
    "bpf_map_update_batch": (c_int, c_void_p, c_void_p, POINTER(c_uint32), POINTER(BatchOpts)),
    "bpf_map_delete_batch": (c_int, c_void_p, POINTER(c_uint32), POINTER(BatchOpts)),
    "bpf_prog_load": (c_int, c_char_p, c_char_p, c_void_p, c_size_t, POINTER(ProgLoadOpts)),
    "bpf_prog_test_run_opts": (c_int, POINTER(TestRunOpts)),
    "bpf_prog_get_fd_by_id": (c_uint32,),
    "bpf_link_create": (c_int, c_int, c_uint32, POINTER(LinkCreateOpts)),
    "bpf_link_update": (c_int, c_int, POINTER(LinkUpdateOpts)),
    "bpf_link_detach": (c_int,),
    "bpf_obj_get_info_by_fd": (c_int, c_void_p, POINTER(c_uint32)),
    "bpf_btf_get_fd_by_id": (c_uint32,),
    "bpf_btf_load": (c_void_p, c_size_t, c_void_p),
    "bpf_xdp_query": (c_int, c_int, POINTER(XdpQueryOpts)),
    "bpf_raw_tracepoint_open": (c_char_p, c_int),
    "btf__find_by_name_kind": (c_void_p, c_char_p, c_uint32),
    "libbpf_num_possible_cpus": (),
}
"""Of those that return a number; negative: what failed."""
POINTERS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "btf__load_vmlinux_btf": (c_void_p, ()),
    "btf__type_by_id": (c_void_p, (c_void_p, c_uint32)),
    "btf__name_by_offset": (c_char_p, (c_void_p, c_uint32)),
    "btf__free": (None, (c_void_p,)),
}
"""What others return, then what they take."""


@cache
def _library() -> ctypes.CDLL:
    try:
        library = ctypes.CDLL("libbpf.so.1", use_errno=True)
    except OSError as error:
        raise BpfError(errno.ENOENT, "libbpf.so.1 is missing: apt-get install libbpf1") from error
    for name, arguments in SIGNATURES.items():
        function = getattr(library, name)
        function.argtypes = arguments
        function.restype = c_int
    for name, (result, arguments) in POINTERS.items():
        function = getattr(library, name)
        function.argtypes = arguments
        function.restype = result
    return library


def call(operation: str, function: str, *arguments: object) -> int:
    """libbpf 1.x returns the negative errno of what failed."""
    result = int(getattr(_library(), function)(*arguments))
    if result < 0:
        raise BpfError(-result, operation)
    return result


def pointer(function: str, *arguments: object) -> int:
    """What a function of ``POINTERS`` returns; 0: NULL."""
    return int(getattr(_library(), function)(*arguments) or 0)


def text(function: str, *arguments: object) -> str:
    """What one that returns a string does; empty where there is none."""
    found: bytes | None = getattr(_library(), function)(*arguments)
    return (found or b"").decode()
