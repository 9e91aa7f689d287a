# SPDX-License-Identifier: Apache-2.0
"""Why what was asked over the network is no answer: in one line, for parsers tell it in several."""

from __future__ import annotations

import os

import aiohttp

REASON_MOST = 240


def why(error: Exception) -> str:
    """At most ``REASON_MOST`` characters; the member, or who asked, is named elsewhere."""
    if isinstance(error, aiohttp.ServerDisconnectedError):
        said = "closed the connection without an answer"
    elif isinstance(error, aiohttp.ClientPayloadError):
        said = "its answer broke off"
    elif isinstance(error, aiohttp.ClientResponseError):
        said = f"answered no HTTP: {_gist(error.message)}"
    elif isinstance(error, KeyError):
        said = f"it does not tell {error.args[0]}"
    elif isinstance(error, OSError) and error.errno:
        said = f"{error.filename}: " if error.filename else ""
        said += os.strerror(error.errno)
    else:
        said = str(error) or type(error).__name__
    line = " ".join(said.split())
    return "".join(letter if letter.isprintable() else "?" for letter in line)[:REASON_MOST]


def _gist(message: str) -> str:
    """Of what a parser says: what is wrong, and the bytes; not what it would rather have, nor an arrow."""
    lines = [line.strip() for line in message.splitlines()]
    quoted = [line for line in lines[1:] if line.startswith(("b'", 'b"'))]
    return " ".join([lines[0] if lines else "", *quoted[:1]])
