# SPDX-License-Identifier: Apache-2.0
"""What a lab or a demo of this name has on the machine."""

from __future__ import annotations

import os
from pathlib import Path

PLACES = {
    "/run/netns": "{}-*",
    "/run/penumbra": "*{}*",
    "/sys/fs/bpf/penumbra": "{}*",
    "/sys/fs/cgroup": "*/penumbra-{}*",
}


def remains(name: str) -> list[str]:
    """Namespaces, files, pins, cgroups, mounts; processes with the name in their command or environment."""
    found = [str(path) for folder, its in PLACES.items() for path in Path(folder).glob(its.format(name))]
    found += [line for line in Path("/proc/self/mounts").read_text().splitlines() if f"/{name}" in line]
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) == os.getpid():
            continue
        try:
            command = (process / "cmdline").read_bytes()
            if name.encode() in command or name.encode() in (process / "environ").read_bytes():
                found.append(f"{process.name} {command.decode(errors='replace')}")
        except OSError:
            continue
    return found
