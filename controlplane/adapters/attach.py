# SPDX-License-Identifier: Apache-2.0
"""Attaches the program to interfaces of this network namespace by pinned links, and detaches only those.

A link can't be replaced by others (netlink gets EBUSY), and creating one fails where another program is:
so neither side displaces the other.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from controlplane.adapters import libbpf, pins
from controlplane.adapters.libbpf import BpfError, Kind, LinkInfo, XdpMode
from controlplane.ports import DataplaneError

BUFFER_MTU = 3498
"""More does not fit into one buffer, a page less headroom and skb_shared_info: drivers then want a program
that takes frames in several."""


@dataclass(frozen=True, slots=True)
class Attachment:
    """How the program is attached to one interface."""

    interface: str
    ifindex: int
    mode: XdpMode
    reason: str = ""
    """Why it is not native, or not attached, in words."""


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
    """Attaches, native if the driver can, else generic; updates the link that is there already, also one
    whose interface had another name when it was made.

    Raises DataplaneError when a foreign program is there, or when neither mode works.
    """
    pin = pins.link_path(instance, interface)
    ifindex = interface_index(interface)
    for present, info in _links(instance):
        if info.ifindex == ifindex and _is_here(info):
            _move(present, pin)
            return _updated(pin, interface, ifindex, program_fd)
    refuse_foreign(interface, None)
    if pin.exists():  # its interface is gone, or has the same name in another namespace
        detach(pin)
        pin.unlink(missing_ok=True)
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


def _move(present: Path, pin: Path) -> None:
    """Renames a pin. One that has the new name already takes the old one: over-writing it would detach it."""
    if present != pin and pin.exists():
        aside = pin.with_name(pins.LINK_ASIDE)
        pin.rename(aside)
        present.rename(pin)
        aside.rename(present)
    else:
        present.rename(pin)


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
        return " (is LRO on: ethtool -K DEV lro off; or the MTU at a veth's other end above 3498?)"
    return f" ({error.strerror})"


def _links(instance: str) -> Iterator[tuple[Path, LinkInfo]]:
    """Pins and links of the instance; what else somebody has put under such a name is passed over."""
    for pin in sorted(pins.folder(instance).glob(pins.LINK_PREFIX + "*")):
        try:
            link = libbpf.obj_get(pin, Kind.LINK)
        except BpfError:
            continue
        try:
            info = libbpf.link_info(link)
        finally:
            os.close(link)
        yield pin, info


def _is_here(info: LinkInfo) -> bool:
    """Whether the link is alive at an interface of this network namespace."""
    if not info.ifindex:
        return False
    try:
        return libbpf.xdp_query(info.ifindex).program_id == info.program_id
    except BpfError:
        return False


def _updated(pin: Path, interface: str, ifindex: int, program_fd: int) -> Attachment:
    """The link of an earlier load, made to run ``program_fd``."""
    link = libbpf.obj_get(pin, Kind.LINK)
    try:
        if libbpf.link_info(link).program_id != libbpf.prog_info(program_fd).id:
            libbpf.link_update(link, program_fd)
    finally:
        os.close(link)
    return Attachment(interface, ifindex, libbpf.xdp_query(ifindex).mode)


def exchange(instance: str, program_fd: int) -> int:
    """Has every link of the instance run ``program_fd``, from one packet to the next, in whichever network
    namespace its interface is. Returns how many do now."""
    program, count = libbpf.prog_info(program_fd).id, 0
    for pin, info in _links(instance):
        if not info.ifindex:
            continue
        if info.program_id != program:
            link = libbpf.obj_get(pin, Kind.LINK)
            try:
                libbpf.link_update(link, program_fd)
            finally:
                os.close(link)
        count += 1
    return count


def running(instance: str, program_fd: int) -> bool:
    """Whether at least one link of the instance runs ``program_fd``."""
    program = libbpf.prog_info(program_fd).id
    return any(info.ifindex and info.program_id == program for _, info in _links(instance))


def refuse_elsewhere(instance: str) -> None:
    """DataplaneError when the instance steers in another network namespace, and nowhere in this one."""
    alive = [info for _, info in _links(instance) if info.ifindex]
    if alive and not any(map(_is_here, alive)):
        raise DataplaneError(
            f"instance {instance!r} is loaded in another network namespace: take another name (instance: "
            f"NAME in the configuration), or end it there: penumbra unload --instance {instance}"
        )


def attached(instance: str) -> list[Attachment]:
    """Every link of the instance, by interface; mode NONE: it does nothing in this network namespace."""
    return [
        # Of another network namespace: the kernel tells its modes only there.
        Attachment(
            pins.linked_interface(pin),
            info.ifindex,
            libbpf.xdp_query(info.ifindex).mode if _is_here(info) else XdpMode.NONE,
        )
        for pin, info in _links(instance)
    ]


def at_interface(instance: str, interface: str) -> Attachment:
    """How the instance is attached to what has this name now; mode NONE with the reason if it is not."""
    try:
        ifindex = socket.if_nametoindex(interface)
    except OSError:
        return Attachment(interface, 0, XdpMode.NONE, "it is gone")
    if any(info.ifindex == ifindex and _is_here(info) for _, info in _links(instance)):
        return Attachment(interface, ifindex, libbpf.xdp_query(ifindex).mode)
    return Attachment(interface, ifindex, XdpMode.NONE, "it was made anew, or the program was detached")


def detach(pin: Path) -> None:
    """Ends our link and its pin; others' programs are not looked at, nor is what is no link."""
    try:
        link = libbpf.obj_get(pin, Kind.LINK)
    except BpfError:
        return
    try:
        libbpf.link_detach(link)
    finally:
        os.close(link)
        pin.unlink()
