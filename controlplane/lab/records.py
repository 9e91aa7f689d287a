# SPDX-License-Identifier: Apache-2.0
"""What became of each request: one JSON line per request, in the order in which they ended."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Record:
    """One request. A retried one is one record, with the latency from its intended time to its end."""

    intended_s: float
    """When it should have been sent, in seconds since the start."""
    latency_s: float
    """From ``intended_s`` until the answer was complete, or it failed."""
    late_s: float
    """Of that, the generator's own delay."""
    connect_s: float | None
    """From the SYN until the connection stood; None on a kept connection."""
    first_byte_s: float | None
    """From sending it, on a connection that stood, until the first byte of its answer."""
    status: int | None
    error: str | None
    """None: an answer with a status below 500."""
    served_by: str | None
    """X-Served-By of the answer."""
    persistent: bool
    """Meant for connections that live on, not for one of its own."""
    connection: int
    """Number of the connection that carried it."""
    retries: int
    """1: the server had closed the kept connection, so it was sent again (RFC 9110, 9.2.2)."""

    @property
    def failed(self) -> bool:
        return self.error is not None


@dataclass(frozen=True, slots=True)
class Start:
    """First line of a record file."""

    start_monotonic_s: float
    """``intended_s`` = 0 on this machine's monotonic clock."""
    start_unix_s: float
    requests: int
    duration_s: float


class Lines:
    """Reads a file of JSON lines while it grows."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0

    def read(self) -> list[dict[str, Any]]:
        """The whole lines since the last call; none while there is no file yet."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        data = data[: data.rfind(b"\n") + 1]
        self._offset += len(data)
        return [json.loads(line) for line in data.splitlines()]


class Follower:
    """Reads a record file while it grows."""

    def __init__(self, path: Path) -> None:
        self._lines = Lines(path)
        self.start: Start | None = None
        """Known after the first ``read`` that found it."""

    def read(self) -> list[Record]:
        """The records since the last call."""
        rows = self._lines.read()
        if rows and self.start is None:
            self.start = Start(**rows.pop(0))
        return [Record(**row) for row in rows]


@dataclass(frozen=True, slots=True)
class Summary:
    """Latencies in milliseconds, from the intended time, of requests that did not fail."""

    requests: int
    failed: int
    errors: dict[str, int]
    retries: int
    persistent: int
    connections: int
    duration_s: float
    p50_ms: float | None
    p90_ms: float | None
    p99_ms: float | None
    max_ms: float | None
    late_p99_ms: float | None
    """The generator's own delay: above a few ms its machine was too slow, and latencies say that."""
    served_by: dict[str, int]


def summary(records: Sequence[Record], connections: int, duration_s: float) -> Summary:
    good = np.array([record.latency_s for record in records if not record.failed]) * 1000
    late = np.array([record.late_s for record in records]) * 1000
    errors: dict[str, int] = {}
    served_by: dict[str, int] = {}
    for record in records:
        if record.error is not None:
            errors[record.error] = errors.get(record.error, 0) + 1
        elif record.served_by is not None:
            served_by[record.served_by] = served_by.get(record.served_by, 0) + 1

    def percent(share: float) -> float | None:
        return round(float(np.percentile(good, share)), 3) if len(good) else None

    return Summary(
        requests=len(records),
        failed=sum(errors.values()),
        errors=errors,
        retries=sum(record.retries for record in records),
        persistent=sum(record.persistent for record in records),
        connections=connections,
        duration_s=duration_s,
        p50_ms=percent(50),
        p90_ms=percent(90),
        p99_ms=percent(99),
        max_ms=percent(100),
        late_p99_ms=round(float(np.percentile(late, 99)), 3) if len(late) else None,
        served_by=served_by,
    )


def line(entry: Record | Start | Summary) -> str:
    return json.dumps(asdict(entry), separators=(",", ":")) + "\n"
