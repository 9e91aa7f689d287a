# SPDX-License-Identifier: Apache-2.0
"""A machine under qemu that boots a kernel, runs one job on this machine's files, and ends."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.kernel.stock import Kernel

CPUS = 2
MEMORY_MIB = 4096
BOOT_MODULES = ("virtio_pci", "9p", "9pnet_virtio", "overlay")
INIT = Path(__file__).with_name("init")
EMPTY = ("bin", "dev", "guest", "layer", "lower", "modules", "proc", "sys")


def initramfs(kernel: Kernel, job: str, folder: Path) -> Path:
    """As the kernel unpacks it: busybox, the modules that reach this machine's files, ``init``, ``job``."""
    root = folder / "initramfs"
    shutil.rmtree(root, ignore_errors=True)
    for name in EMPTY:
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin" / "busybox")
    shutil.copy(INIT, root / "init")
    (root / "init").chmod(0o755)
    (root / "job").write_text(job)
    (root / "kernel").write_text(str(kernel.modules))
    for at, file in enumerate(kernel.module_files(BOOT_MODULES)):
        shutil.copy(file, root / "modules" / f"{at:02}-{file.name}")
    archive = folder / "initramfs.cpio"
    names = "\n".join(str(path.relative_to(root)) for path in sorted(root.rglob("*")))
    with archive.open("wb") as out:
        pack = ("busybox", "cpio", "-o", "-H", "newc")
        subprocess.run(
            pack, input=names.encode(), stdout=out, stderr=subprocess.DEVNULL, cwd=root, check=True
        )
    return archive


def run(kernel: Kernel, job: str, folder: Path, limit_s: float) -> int | None:
    """Runs ``job``, a shell script, as root; its output goes to ours and to ``console.log``.

    Returns its exit status, or None when the machine ended without it. Raises subprocess.TimeoutExpired.
    """
    status = folder / "status"
    status.unlink(missing_ok=True)
    console = f"stdio,id=console,signal=off,logfile={folder / 'console.log'}"
    files = "local,path=/,mount_tag=host,security_model=none,readonly=on,multidevs=remap"
    qemu = (
        *("setpriv", "--pdeathsig", "KILL"),
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-display", "none"),
        *(
            "-machine",
            "q35",
            "-accel",
            "tcg,thread=multi",
            "-cpu",
            "max",
            "-smp",
            str(CPUS),
            "-m",
            str(MEMORY_MIB),
        ),
        *("-kernel", kernel.image, "-initrd", initramfs(kernel, job, folder)),
        *("-append", "console=ttyS0 quiet panic=-1"),
        *("-chardev", console, "-serial", "chardev:console", "-serial", f"file:{status}"),
        *("-virtfs", files),
    )
    subprocess.run(qemu, stdin=subprocess.DEVNULL, timeout=limit_s, check=False)
    text = status.read_text().strip() if status.exists() else ""
    return int(text) if text.isdigit() else None
