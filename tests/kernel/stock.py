# SPDX-License-Identifier: Apache-2.0
"""Debian's stock kernel: its package, unpacked and not installed."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

SERIES = "6.1"
META = "linux-image-amd64"
"""It depends on the package of the kernel that is now the stock one."""
APT = ("apt-get", "-qq", "-o", "APT::Sandbox::User=root")


@dataclass(frozen=True, slots=True)
class Kernel:
    release: str
    image: Path
    modules: Path
    """What is to be the guest's /lib/modules."""
    root: Path

    def module_files(self, names: tuple[str, ...]) -> list[Path]:
        """Their files and those of what they depend on, each after what it needs."""
        shown = ("modprobe", "--show-depends", "-d", self.root, "-S", self.release)
        lines = [line for name in names for line in output(*shown, name).splitlines()]
        return list(dict.fromkeys(Path(line.split()[1]) for line in lines if line.startswith("insmod")))


def unpacked(folder: Path) -> Kernel:
    """The kernel in ``folder``; the first time it is fetched from Debian's archive."""
    if not (folder / "complete").exists():
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        fetch(folder)
        (folder / "complete").touch()
    modules = folder / "lib" / "modules"
    (release,) = (place.name for place in modules.iterdir())
    return Kernel(release, folder / "boot" / f"vmlinuz-{release}", modules, folder)


def fetch(folder: Path) -> None:
    output(*APT, "update")
    shown = output("apt-cache", "show", "--no-all-versions", META)
    name = re.search(r"^Depends: (linux-image-\S+)", shown, re.MULTILINE)
    if not name or not name[1].startswith(f"linux-image-{SERIES}."):
        sys.exit(f"test-kernel: {META} is not of the {SERIES} series here: it takes Debian 12's archive")
    print(f"test-kernel: fetching {name[1]}", flush=True)
    output(*APT, "download", name[1], cwd=folder)
    (package,) = folder.glob("*.deb")
    output("dpkg-deb", "-x", package, folder)
    package.unlink()
    output("depmod", "-b", folder, name[1].removeprefix("linux-image-"))


def output(*command: str | Path, cwd: Path | None = None) -> str:
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"test-kernel: {command[0]} failed: {done.stderr.strip()}")
    return done.stdout
