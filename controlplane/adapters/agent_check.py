# SPDX-License-Identifier: Apache-2.0
"""An agent's word, as HAProxy's agent-check has it: words in one line of ASCII over TCP.

Source: HAProxy configuration manual 2.6, section 5.2, agent-check, agent-send.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping

from controlplane import model
from controlplane.model import Admin, Operating

LINE_MOST = 1024
REASON_MOST = 120
SHOWN_MOST = 60

_END = re.compile(rb"[\r\n]")
_SPLIT = re.compile(r"[ \t,]+")
_PERCENT = re.compile(r"([0-9]{1,9})%")
_MAXCONN = re.compile(r"maxconn:[0-9]{1,9}")
_OPERATING: Mapping[str, Operating] = {
    "up": Operating.UP,
    "down": Operating.DOWN,
    "fail": Operating.DOWN,
    "stopped": Operating.DOWN,
}
_ADMIN: Mapping[str, Admin] = {admin.value: admin for admin in Admin}
_WORDS = ", ".join((*_ADMIN, *_OPERATING, "75%", "maxconn:100", "# before a reason"))
"""Those that are allowed."""


class AgentCheck:
    """One agent."""

    def __init__(self, source: model.UsageSource) -> None:
        self._source = source

    async def read(self, member: str) -> model.Usage:
        """Raises ValueError for what makes no sense, OSError for what is not to be reached."""
        reader, writer = await asyncio.open_connection(self._source.at, self._source.port, limit=LINE_MOST)
        try:
            if self._source.send:
                writer.write(self._source.send.encode())
                await writer.drain()
            line = await _line(reader)
        finally:
            writer.transport.abort()  # nobody waits for a peer that reads nothing
        return parse(line, member, asyncio.get_running_loop().time(), self._source.good_s)


async def _line(reader: asyncio.StreamReader) -> bytes:
    """Up to the first line's end, or to the peer's. A peer that resets what it has ended has answered too."""
    held = b""
    while not (end := _END.search(held)):
        if len(held) > LINE_MOST:
            raise ValueError(f"answered more than {LINE_MOST} bytes without a line's end: {_shown(held)}")
        try:
            more = await reader.read(LINE_MOST)
        except ConnectionError:
            if not held:
                raise
            return held
        if not more:
            return held
        held += more
    return held[: end.start()]


def parse(line: bytes, member: str, at_s: float, good_s: float) -> model.Usage:
    """Of words that contradict each other the last counts. Raises ValueError for a line with another word
    in it: half of a sentence is not acted on."""
    weight, admin, operating, reason = None, None, None, ""
    head, _, described = line.partition(b"#")
    try:
        words = [word for word in _SPLIT.split(head.decode("ascii")) if word]
    except UnicodeDecodeError:
        raise ValueError(f"answered {_shown(line)}: that is not ASCII") from None
    if not words:
        raise ValueError(f"answered {_shown(line)}: there is no word in it")
    for word in (word.lower() for word in words):
        if percent := _PERCENT.fullmatch(word):
            weight = min(int(percent[1]) / 100, 1.0)
        elif word in _ADMIN:
            admin = _ADMIN[word]
        elif word in _OPERATING:
            operating = _OPERATING[word]
            reason = word if operating is Operating.DOWN and word != "down" else ""
        elif not _MAXCONN.fullmatch(word):
            unknown = _shown(word.encode())
            raise ValueError(f"answered {_shown(line)}: {unknown} is no word of an agent; allowed: {_WORDS}")
    if operating is Operating.DOWN:
        told = described.decode("ascii", "replace").strip()
        reason = ": ".join(part for part in (reason, told) if part)
        reason = "".join(letter if letter.isprintable() else "?" for letter in reason)[:REASON_MOST]
    return model.Usage(
        member, at_s, weight=weight, admin=admin, operating=operating, reason=reason, good_s=good_s
    )


def _shown(line: bytes) -> str:
    text = repr(line.decode("latin-1"))
    return text if len(text) <= SHOWN_MOST else text[: SHOWN_MOST - 3] + "..."
