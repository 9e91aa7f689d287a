# SPDX-License-Identifier: Apache-2.0
"""Traffic that follows a trace, e.g. ``--target 203.0.113.10:80 --trace mongo_burst --duration 90``.

Writes a line per request (``records.py``) and at the end a summary. SIGTERM or Ctrl-C ends it early.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import signal
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from controlplane.lab import records, trace
from controlplane.lab.generator import Client, Generator

LONGEST_S = 86_400.0
REQUESTS_MOST = 5_000_000
"""All of them and what became of each are kept in memory."""
HEAD_START_S = 0.1
FLUSH_S = 0.2


@dataclass(slots=True)
class Sink:
    """Keeps records for the summary, and writes them as they come, if anybody wants them."""

    path: Path | None
    kept: list[records.Record] = field(default_factory=list)
    _waiting: list[str] = field(default_factory=list)

    def take(self, record: records.Record) -> None:
        self.kept.append(record)
        if self.path is not None:
            self._waiting.append(records.line(record))

    def begin(self, start: records.Start) -> None:
        if self.path is not None:
            self.path.write_text(records.line(start), encoding="utf-8")

    def flush(self) -> None:
        if self.path is not None and self._waiting:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(self._waiting)
            self._waiting.clear()

    async def flush_often(self) -> None:
        while True:
            await asyncio.sleep(FLUSH_S)
            self.flush()


async def drive(client: Client, course: trace.Trace, kind: trace.Arrivals, sink: Sink) -> records.Summary:
    """Plays ``course`` (its level: requests per second) and returns when the last request has ended."""
    loop = asyncio.get_running_loop()
    arrivals_s = course.arrivals_s(client.seed, kind)
    generator = Generator(client, arrivals_s.tolist(), sink.take)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, generator.stop)
    start_s = loop.time() + HEAD_START_S
    unix_s = datetime.now(UTC).timestamp() + HEAD_START_S
    sink.begin(records.Start(start_s, unix_s, len(arrivals_s), course.duration_s))

    writing = asyncio.create_task(sink.flush_often())
    try:
        await generator.run(start_s)
    finally:
        writing.cancel()
        sink.flush()
    return records.summary(sink.kept, generator.opened, round(loop.time() - start_s, 3))


def course_of(arguments: argparse.Namespace) -> trace.Trace:
    """The trace that the arguments describe. Raises ``TraceError``."""
    named = arguments.trace
    course = trace.named(named)
    if arguments.duration is not None:
        course = course.lasting(arguments.duration)
    elif arguments.speed is not None:
        course = course.compressed(arguments.speed)
    if arguments.peak is not None:
        course = course.with_peak(arguments.peak)
    elif arguments.mean is not None:
        course = course.with_mean(arguments.mean)
    if course.duration_s > LONGEST_S:
        raise trace.TraceError(
            f"{course.name}: lasts {course.duration_s:.4g} s; at most {LONGEST_S:.0f} s are allowed: "
            "squeeze it with --duration"
        )
    if (requests := course.mean * course.duration_s) > REQUESTS_MOST:
        raise trace.TraceError(
            f"{course.name}: {requests:.4g} requests; at most {REQUESTS_MOST} are allowed: "
            "lower --peak or --duration"
        )
    return course


def target(text: str) -> tuple[str, int]:
    address, colon, port = text.rpartition(":")
    if not colon or not port.isdigit():
        allowed = "ADDRESS:PORT is allowed, e.g. 203.0.113.10:80 or [2001:db8:f::10]:80"
        raise argparse.ArgumentTypeError(f"{text}: {allowed}")
    return address.removeprefix("[").removesuffix("]"), int(port)


def share(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text}: 0 to 1 is allowed")
    return value


def seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text}: a whole number from 0 on is allowed")
    return int(text)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="python -m controlplane.lab.traffic", description=__doc__)
    made.add_argument("--target", type=target, required=True, metavar="ADDRESS:PORT")
    made.add_argument("--trace", required=True, help="a CSV file, or the name of a shipped trace")
    pace = made.add_mutually_exclusive_group()
    pace.add_argument("--duration", type=float, metavar="SECONDS", help="squeeze the trace into this time")
    pace.add_argument("--speed", type=float, help="play it so many times as fast")
    scale = made.add_mutually_exclusive_group()
    scale.add_argument("--peak", type=float, help="requests/s at the trace's highest point")
    scale.add_argument("--mean", type=float, help="requests/s on average")
    made.add_argument("--arrivals", type=trace.Arrivals, choices=list(trace.Arrivals), default="poisson")
    made.add_argument("--seed", type=seed, default=1)
    made.add_argument("--persistent-share", type=share, default=0.5)
    made.add_argument("--timeout", type=float, default=10.0, metavar="SECONDS")
    made.add_argument("--path", default="/")
    made.add_argument("--records", type=Path, metavar="FILE", help="a JSON line per request")
    made.add_argument("--summary", type=Path, metavar="FILE", help="default: standard output")
    return made


def main() -> None:
    arguments = parser().parse_args()
    try:
        course = course_of(arguments)
    except trace.TraceError as error:
        sys.stderr.write(f"traffic: {error}\n")
        sys.exit(2)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, hard), hard))
    address, port = arguments.target
    client = Client(
        address,
        port,
        path=arguments.path,
        persistent_share=arguments.persistent_share,
        timeout_s=arguments.timeout,
        seed=arguments.seed,
    )
    result = asyncio.run(drive(client, course, arguments.arrivals, Sink(arguments.records)))
    if arguments.summary is None:
        sys.stdout.write(records.line(result))
    else:
        fresh = arguments.summary.with_name(f"{arguments.summary.name}.{os.getpid()}")
        fresh.write_text(records.line(result), encoding="utf-8")
        fresh.replace(arguments.summary)


if __name__ == "__main__":
    main()
