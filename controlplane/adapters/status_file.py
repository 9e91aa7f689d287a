# SPDX-License-Identifier: Apache-2.0
"""The controller's last status, in memory (/run): ``penumbra status`` has it also when the disk is full."""

from __future__ import annotations

from pathlib import Path

RUN_DIR = Path("/run/penumbra")


def path_of(instance: str) -> Path:
    return RUN_DIR / f"{instance}.status.json"


def write(instance: str, text: str) -> None:
    """Whole or not at all. Raises OSError."""
    path = path_of(instance)
    path.parent.mkdir(mode=0o700, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(text)
    fresh.replace(path)


def read(instance: str) -> str | None:
    """None: no controller has ticked since the machine booted, or it can't be read."""
    try:
        return path_of(instance).read_text(errors="replace")
    except OSError:
        return None
