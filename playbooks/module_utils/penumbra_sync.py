# SPDX-License-Identifier: Apache-2.0
"""What the drivers of data synchronisation share."""

from __future__ import annotations

import re
import zlib
from pathlib import Path

NAME_MOST = 63
"""Bytes of an identifier of PostgreSQL, and of a replication slot's name."""


class RefusedError(Exception):
    """It can't be done; the message says why and what to do."""


class UnreachableError(RefusedError):
    """Nobody answers, or not any more."""

    def __init__(self, address: str, port: int, why: object) -> None:
        super().__init__(f"{address}:{port} can't be reached: {why}")
        self.place = (str(address), int(port))


def on_any_host(error: Exception, shadow: tuple[str | None, int | None]) -> bool:
    """Whether it would fail on any host: all but a shadow that can't be reached."""
    return not (isinstance(error, UnreachableError) and error.place == shadow)


def sync_name(instance: str, shadow: str) -> str:
    """The name of all that is made for a shadow's copy: of a-z, 0-9 and _, at most 63 long.

    With a checksum where it does not tell which instance and shadow it was made of.
    """
    plain = f"penumbra_{instance}_{shadow}"
    telling = re.fullmatch("[a-z0-9]+", instance) and re.fullmatch("[a-z0-9_]+", shadow)
    if telling and len(plain) <= NAME_MOST:
        return plain
    checksum = f"{zlib.crc32(f'{instance}/{shadow}'.encode()):08x}"
    return f"{re.sub('[^a-z0-9_]', '_', plain.lower())[: NAME_MOST - 9]}_{checksum}"


def password_in(path: str | None) -> str | None:
    """The first line of a file, as it stands."""
    if not path:
        return None
    try:
        return Path(path).read_text().split("\n")[0]
    except (OSError, UnicodeDecodeError) as error:
        raise RefusedError(f"password_file {path} can't be read: {error}") from None
