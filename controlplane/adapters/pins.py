# SPDX-License-Identifier: Apache-2.0
"""Where an instance lives: its folder under the bpf file system, and the lock of those who write to it."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import stat
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote, unquote

from controlplane.ports import DataplaneError

BPF_FILE_SYSTEM = Path("/sys/fs/bpf")
PENUMBRA = BPF_FILE_SYSTEM / "penumbra"
LOCKS = Path("/run/penumbra")
PROGRAM_ASIDE = "steer_next"
"""A program that is about to take the place of the pinned one."""
REFUSALS_ASIDE = "refusals_next"
"""Its refusals, which nobody else keeps."""
LINK_PREFIX = "link_"
LINK_ASIDE = f"{LINK_PREFIX}%00"
"""No interface's: where a link is while two change names."""

_INSTANCE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,63}")
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_PERFMON": 38, "CAP_BPF": 39}
_CAP_SYS_ADMIN = 21


def folder(instance: str) -> Path:
    if not _INSTANCE.fullmatch(instance):
        raise DataplaneError(f"instance {instance!r}: letters, digits, - and _ only, at most 64")
    return PENUMBRA / instance


def link_path(instance: str, interface: str) -> Path:
    """Pin of the link to an interface. The bpf file system keeps dots in names for itself."""
    return folder(instance) / (LINK_PREFIX + quote(interface, safe="@+:").replace(".", "%2E"))


def linked_interface(pin: Path) -> str:
    """The interface that ``link_path`` was made from."""
    return unquote(pin.name.removeprefix(LINK_PREFIX))


def require_privileges(*, mounted: bool = True) -> None:
    """Root, with what BPF needs, and unless told otherwise a bpf file system; or DataplaneError."""
    if os.geteuid() != 0:
        raise DataplaneError("only root can load BPF programs and read their maps: run it with sudo")
    status = Path("/proc/self/status").read_text()
    effective = int(status.partition("CapEff:")[2].split()[0], 16)
    if not effective >> _CAP_SYS_ADMIN & 1:
        missing = [name for name, bit in _CAPABILITIES.items() if not effective >> bit & 1]
        if missing:
            raise DataplaneError(
                f"this process lacks {', '.join(missing)}: run it as root outside of containers, or "
                f"with docker run {' '.join('--cap-add ' + name[4:] for name in missing)}"
            )
    if mounted and not is_mounted():
        raise DataplaneError(
            f"no bpf file system at {BPF_FILE_SYSTEM}: mount -t bpf -o mode=0700 bpf {BPF_FILE_SYSTEM} "
            "(`ip netns exec` hides it: use nsenter --net=/run/netns/NAME instead)"
        )


def is_mounted() -> bool:
    """Whether the topmost file system at /sys/fs/bpf is a bpf file system."""
    kinds = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kinds[before.split()[4]] = after.split()[0]
    return kinds.get(str(BPF_FILE_SYSTEM)) == "bpf"


def _is_netns_exec() -> bool:
    """``ip netns exec NAME`` mounts a sysfs with NAME as its source (iproute2, lib/namespace.c)."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, source = after.split()[:2]
        if before.split()[4] == "/sys" and kind == "sysfs" and (Path("/run/netns") / source).exists():
            return True
    return False


def mount_bpf_filesystem() -> None:
    """Mounts it where it is missing (systems without systemd); nothing to do where it is there.

    Not under ``ip netns exec``, whose /sys is its own: pins there would be gone when the command ends.
    """
    if is_mounted() or _is_netns_exec():
        return
    command = ["mount", "-t", "bpf", "-o", "mode=0700", "bpf", str(BPF_FILE_SYSTEM)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode and not is_mounted():
        raise DataplaneError(f"{' '.join(command)}: {done.stderr.strip()}")


def make_folder(instance: str) -> Path:
    """Makes the instance's folder, 0700 and root's; refuses a path that others own or may write."""
    path = folder(instance)
    for directory in (PENUMBRA, path):
        try:
            directory.mkdir(mode=0o700)
        except FileExistsError:
            pass
        except OSError as error:
            raise DataplaneError(f"mkdir {directory}: {error.strerror}") from error
    check_folder(instance)
    return path


def check_folder(instance: str) -> Path:
    """The instance's folder, which exists and which nobody but root could have filled."""
    path = folder(instance)
    for directory in (BPF_FILE_SYSTEM, PENUMBRA, path):
        try:
            found = directory.lstat()
        except FileNotFoundError:
            raise DataplaneError(
                f"instance {instance!r} is not loaded ({directory} does not exist): penumbra load CONFIG"
            ) from None
        writable = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
        sticky_root = directory == BPF_FILE_SYSTEM and found.st_mode & stat.S_ISVTX
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != 0 or (writable and not sticky_root):
            raise DataplaneError(
                f"{directory} is owned or writable by others than root (uid {found.st_uid}, mode "
                f"{stat.S_IMODE(found.st_mode):04o}): look at who made it, then chown root and chmod 0700 it"
            )
    return path


def remove_folder(instance: str) -> None:
    """Removes every pin of the instance, and the folder; nothing to do where there is none."""
    path = folder(instance)
    if path.is_dir():
        shutil.rmtree(path)  # folders too: somebody may have made one there
    try:
        PENUMBRA.rmdir()
    except OSError:
        return  # other instances live there, or it is gone


@contextmanager
def write_lock(instance: str) -> Iterator[None]:
    """Held by whoever writes to the instance's maps; waits for the present holder.

    A file in /run and not the pins' folder, because the folder comes and goes while others wait.
    """
    pinned, path = folder(instance), LOCKS / f"{instance}.lock"
    while True:
        fd = _open_lock(path)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            if _is_file(fd, path):
                try:
                    yield
                finally:
                    if not pinned.exists():
                        path.unlink()  # nothing is left to write to
                return
        finally:
            os.close(fd)


def _open_lock(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return os.open(path, flags, 0o600)
    except FileNotFoundError:
        LOCKS.mkdir(mode=0o700, exist_ok=True)
        return os.open(path, flags, 0o600)


def _is_file(fd: int, path: Path) -> bool:
    """False when the file was removed (with the instance) while we waited for it."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False
