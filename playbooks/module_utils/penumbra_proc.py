# SPDX-License-Identifier: Apache-2.0
"""What /proc says of processes, sockets and network namespaces (proc(5)). Read only, Linux."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

PROC = Path("/proc")
INSTANCE_LABEL = "PENUMBRA_INSTANCE"
SHADOW_LABEL = "PENUMBRA_SHADOW"
PARENT_LABEL = "PENUMBRA_PARENT"
"""A command that copies a shadow's data has the other two in its environment, and is no shadow."""

# States of a socket in /proc/net/tcp and udp: a listening one, and an unconnected datagram one.
_OPEN = {"tcp": "0A", "udp": "07"}


@dataclass(frozen=True)
class Labelled:
    """A process whose environment says that it is a shadow."""

    pid: int
    start_ticks: int
    environment: dict[str, str]


@dataclass(frozen=True)
class Identity:
    """How a process was started, as far as a clone needs to know."""

    pid: int
    executable: str
    argv: list[str]
    environment: dict[str, str]
    cwd: str
    uid: int
    gid: int
    groups: list[int]
    umask: int
    root: str


def pids() -> Iterator[int]:
    return (int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())


def _stat(pid: int) -> list[str] | None:
    """Fields of /proc/PID/stat from the state on (field 3), or None if there is no such process."""
    try:
        text = (PROC / str(pid) / "stat").read_text(errors="replace")
    except OSError:
        return None
    return text.rpartition(")")[2].split()


def start_ticks(pid: int) -> int | None:
    """When it was started, in ticks since boot. None: gone, or a zombie."""
    fields = _stat(pid)
    return None if fields is None or fields[0] in "ZX" else int(fields[19])


def parent_pid(pid: int) -> int | None:
    fields = _stat(pid)
    return None if fields is None else int(fields[1])


def environment(pid: int) -> dict[str, str]:
    """The environment it was started with; empty if it can't be read."""
    try:
        text = (PROC / str(pid) / "environ").read_bytes().decode(errors="surrogateescape")
    except OSError:
        return {}
    return dict(entry.split("=", 1) for entry in text.split("\0") if "=" in entry)


def labelled(instance: str, shadow: str | None = None) -> list[Labelled]:
    """Processes of one shadow, or of all shadows of an instance; oldest first."""
    found = []
    for pid in pids():
        env = environment(pid)
        if env.get(INSTANCE_LABEL) != instance or not {SHADOW_LABEL, PARENT_LABEL} <= env.keys():
            continue
        ticks = start_ticks(pid)
        if ticks is not None and shadow in (None, env[SHADOW_LABEL]):
            found.append(Labelled(pid, ticks, env))
    return sorted(found, key=lambda process: (process.start_ticks, process.pid))


def identity(pid: int) -> Identity:
    """Raises OSError if the process ends meanwhile."""
    folder = PROC / str(pid)
    status = dict(
        line.split(":", 1)
        for line in (folder / "status").read_text(errors="replace").splitlines()
        if ":" in line
    )
    argv = (folder / "cmdline").read_bytes().decode(errors="surrogateescape").split("\0")[:-1]
    return Identity(
        pid=pid,
        executable=str((folder / "exe").readlink()),
        argv=argv,
        environment=environment(pid),
        cwd=str((folder / "cwd").readlink()),
        uid=int(status["Uid"].split()[1]),
        gid=int(status["Gid"].split()[1]),
        groups=[int(group) for group in status["Groups"].split()],
        umask=int(status["Umask"], 8),
        root=str((folder / "root").readlink()),
    )


def network_namespaces() -> dict[int, list[int]]:
    """Inode of a network namespace -> the processes in it."""
    spaces: dict[int, list[int]] = {}
    for pid in pids():
        try:
            inode = (PROC / str(pid) / "ns/net").stat().st_ino
        except OSError:
            continue
        spaces.setdefault(inode, []).append(pid)
    return spaces


def _address(text: str) -> str:
    """An address of /proc/net/tcp{,6}: 32-bit words in host byte order. IPv4-mapped ones come as IPv4."""
    words = [int(text[i : i + 8], 16) for i in range(0, len(text), 8)]
    raw = struct.pack(f"={len(words)}I", *words)
    if len(raw) == 4:
        return str(IPv4Address(raw))
    address = IPv6Address(raw)
    return str(address.ipv4_mapped or address)


def listeners(pid: int | str, protocol: str, port: int) -> list[tuple[str, int]]:
    """(address, socket inode) of what is open on a port, in the network namespace of a process."""
    found = []
    for family in ("", "6"):
        try:
            lines = (PROC / str(pid) / "net" / (protocol + family)).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            address, _, port_hex = fields[1].partition(":")
            if fields[3] == _OPEN[protocol] and int(port_hex, 16) == port:
                found.append((_address(address), int(fields[9])))
    return found


def local_addresses(pid: int | str) -> list[str]:
    """The addresses of the network namespace of a process, IPv4 before IPv6; neither loopback nor
    link-local ones."""
    addresses: list[str] = []
    last = ""
    for line in (PROC / str(pid) / "net/fib_trie").read_text().splitlines():
        words = line.split()
        if words[:1] == ["|--"]:
            last = words[1]
        elif words[:3] == ["/32", "host", "LOCAL"] and not last.startswith("127.") and last not in addresses:
            addresses.append(last)
    return addresses + _local_ipv6(pid)


def _local_ipv6(pid: int | str) -> list[str]:
    try:
        lines = (PROC / str(pid) / "net/if_inet6").read_text().splitlines()
    except OSError:  # a kernel without IPv6
        return []
    found = [IPv6Address(bytes.fromhex(line.split()[0])) for line in lines]
    return [str(one) for one in found if not one.is_loopback and not one.is_link_local]


def _open_files(pid: int) -> Iterator[str]:
    """What a process's descriptors refer to. A busy server closes some while we look: those are left out."""
    try:
        descriptors = list((PROC / str(pid) / "fd").iterdir())
    except OSError:
        return
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            yield str(descriptor.readlink())


def holders(candidates: Iterable[int], inodes: set[int]) -> list[int]:
    """Those processes that hold one of the sockets and did not get it from a parent that holds it too."""
    wanted = {f"socket:[{inode}]" for inode in inodes}
    holding = set()
    for pid in candidates:
        if not wanted.isdisjoint(_open_files(pid)):
            holding.add(pid)
    return sorted(pid for pid in holding if parent_pid(pid) not in holding)


def descendants(pid: int) -> list[int]:
    """A process, its children and theirs."""
    children: dict[int | None, list[int]] = {}
    for one in pids():
        children.setdefault(parent_pid(one), []).append(one)
    found = [pid]
    for one in found:
        found += children.get(one, [])
    return found


def written_files(pid: int) -> set[str]:
    """Files that a process or its children can change in place: open for writing, or mapped so.

    Not what is only appended to (logs), standard streams, devices, and files that have no name any more.
    """
    found = set()
    for one in descendants(pid):
        found |= _open_for_writing(one) | _mapped_for_writing(one)
    return {path for path in found if not path.startswith(("/dev/", "/proc/", "/sys/"))}


def _open_for_writing(pid: int) -> set[str]:
    found = set()
    try:
        descriptors = list((PROC / str(pid) / "fd").iterdir())
    except OSError:
        return found
    for descriptor in descriptors:
        with contextlib.suppress(OSError):
            info = (PROC / str(pid) / "fdinfo" / descriptor.name).read_text().split()
            flags = int(info[info.index("flags:") + 1], 8)
            path, status = str(descriptor.readlink()), descriptor.stat()
            changes = flags & os.O_ACCMODE != os.O_RDONLY and not flags & os.O_APPEND
            if changes and int(descriptor.name) > 2 and stat.S_ISREG(status.st_mode) and status.st_nlink:
                found.add(path)
    return found


def _mapped_for_writing(pid: int) -> set[str]:
    try:
        lines = (PROC / str(pid) / "maps").read_text(errors="replace").splitlines()
    except OSError:
        return set()
    fields = [line.split(maxsplit=5) for line in lines]
    return {
        one[5] for one in fields if len(one) == 6 and one[1] == "rw-s" and not one[5].endswith(" (deleted)")
    }


def serving(spaces: dict[int, list[int]], protocol: str, address: str, port: int) -> dict[int, list[int]]:
    """Network namespace -> the processes that serve address:port there, on it or on all addresses."""
    found = {}
    for inode, members in spaces.items():
        # A wildcard socket serves the address only where the address is.
        sockets = {
            socket_inode
            for bound, socket_inode in listeners(members[0], protocol, port)
            if bound == address or (bound in ("0.0.0.0", "::") and address in local_addresses(members[0]))  # noqa: S104
        }
        serving_here = holders(members, sockets) if sockets else []
        if serving_here:
            found[inode] = serving_here
    return found


def is_free(protocol: str, address: str, port: int) -> bool:
    """Whether an address and port of our own network namespace can be bound."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, kind) as probe:
        if kind == socket.SOCK_STREAM:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
        except OSError:
            return False
    return True
