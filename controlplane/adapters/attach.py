# SPDX-License-Identifier: Apache-2.0
"""Attaches the program to interfaces of this network namespace by pinned links, and detaches only those.

A link can't be replaced by others (netlink gets EBUSY), and creating one fails where another program is:
so neither side displaces the other.
"""

from __future__ import annotations

import errno
import os
import socket
from dataclasses import dataclass
from pathlib import Path

from controlplane.adapters import libbpf, pins
from controlplane.adapters.libbpf import BpfError, XdpMode
from controlplane.ports import DataplaneError


@dataclass(frozen=True, slots=True)
class Attachment:
    """How the program is attached to one interface."""

    interface: str
    ifindex: int
    mode: XdpMode
    reason: str = ""
    """Why it is not native, in words."""


def interface_index(interface: str) -> int:
    try:
        return socket.if_nametoindex(interface)
    except OSError:
        raise DataplaneError(
            f"interface {interface!r}: none of this name in this network namespace; see: ip link show"
        ) from None


def refuse_foreign(interface: str, ours: int | None) -> None:
    """DataplaneError when another program than ``ours`` (an id) is attached to the interface."""
    state = libbpf.xdp_query(interface_index(interface))
    if state.mode == XdpMode.NONE or state.program_id == ours:
        return
    try:
        name = libbpf.prog_info_by_id(state.program_id).name or "without a name"
    except BpfError:
        name = "of unknown name"
    raise DataplaneError(
        f"interface {interface}: XDP program {name} (id {state.program_id}) is attached and is not "
        f"displaced; look at it with: ip -d link show dev {interface}"
    )


def attach(instance: str, program_fd: int, interface: str) -> Attachment:
    """Attaches, native if the driver can, else generic; updates the link that is there already.

    Raises DataplaneError when a foreign program is there, or when neither mode works.
    """
    pin = pins.link_path(instance, interface)
    present = _present(pin, interface, program_fd)
    if present is not None:
        return present
    refuse_foreign(interface, None)
    ifindex = interface_index(interface)
    reason = ""
    try:
        link = libbpf.xdp_link_create(program_fd, ifindex, libbpf.XDP_FLAGS_DRV_MODE)
    except BpfError as native:
        if native.errno in (errno.EBUSY, errno.EEXIST):
            raise DataplaneError(
                f"interface {interface}: another XDP program was attached meanwhile and is not displaced; "
                f"look at it with: ip -d link show dev {interface}"
            ) from native
        reason = f"the driver refused native mode with {native.name}{_hint(native)}"
        link = _attach_generic(program_fd, interface, ifindex, reason)
    try:
        libbpf.obj_pin(link, pin)
    finally:
        os.close(link)  # unpinned, its end detaches
    return Attachment(interface, ifindex, libbpf.xdp_query(ifindex).mode, reason)


def _attach_generic(program_fd: int, interface: str, ifindex: int, reason: str) -> int:
    try:
        return libbpf.xdp_link_create(program_fd, ifindex, libbpf.XDP_FLAGS_SKB_MODE)
    except BpfError as generic:
        raise DataplaneError(
            f"interface {interface}: no XDP: {reason}, generic mode failed with {generic.name} "
            f"({generic.strerror}); see: dmesg | tail"
        ) from generic


def _hint(error: BpfError) -> str:
    if error.errno == errno.EOPNOTSUPP:
        return " (it has no XDP)"
    if error.errno in (errno.ERANGE, errno.EINVAL):
        return " (is the MTU above 3498 or LRO on? ip link set mtu 1500, ethtool -K DEV lro off)"
    return f" ({error.strerror})"


def _present(pin: Path, interface: str, program_fd: int) -> Attachment | None:
    """What our link of an earlier load does, made to run ``program_fd``; None when there is none alive."""
    if not pin.exists():
        return None
    link = libbpf.obj_get(pin)
    try:
        info = libbpf.link_info(link)
        ifindex = interface_index(interface)
        state = libbpf.xdp_query(ifindex)
        if info.ifindex != ifindex or state.program_id != info.program_id:
            # Its interface is gone, or has the same name in another namespace.
            libbpf.link_detach(link)
            pin.unlink()
            return None
        if info.program_id != libbpf.prog_info(program_fd).id:
            libbpf.link_update(link, program_fd)
        return Attachment(interface, ifindex, state.mode)
    finally:
        os.close(link)


def attached(instance: str) -> list[Attachment]:
    """Every link of the instance, by interface; mode NONE: its interface is gone."""
    found = []
    for pin in sorted(pins.folder(instance).glob(pins.LINK_PREFIX + "*")):
        interface = pins.linked_interface(pin)
        link = libbpf.obj_get(pin)
        try:
            info = libbpf.link_info(link)
        finally:
            os.close(link)
        mode = XdpMode.NONE
        if info.ifindex:
            try:
                state = libbpf.xdp_query(info.ifindex)
            except BpfError:
                state = libbpf.XdpState(XdpMode.NONE, 0)
            # Of another network namespace: the kernel tells its modes only there.
            mode = state.mode if state.program_id == info.program_id else XdpMode.NONE
        found.append(Attachment(interface, info.ifindex, mode))
    return found


def detach(pin: Path) -> None:
    """Ends our link and its pin; others' programs are not looked at."""
    link = libbpf.obj_get(pin)
    try:
        libbpf.link_detach(link)
    finally:
        os.close(link)
        pin.unlink()
