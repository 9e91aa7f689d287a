# SPDX-License-Identifier: Apache-2.0
"""What commands print: a table for people, JSON for programs."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from enum import Enum
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.table import Table

from controlplane.addresses import Address, Network

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNREAD = 128 + signal.SIGPIPE
"""As shells tell of who was ended by that signal: nobody reads on."""


def fail(message: str, code: int = EXIT_FAILED) -> NoReturn:
    """Ends the command: the message on standard error, nothing else."""
    print(f"penumbra: {message}", file=sys.stderr)  # noqa: T201 - this is the output
    raise SystemExit(code)


def needed() -> None:
    """Ends a command that has only its output to show, if standard output is closed."""
    if sys.stdout is None:
        fail("standard output is closed")


@contextmanager
def _read_on() -> Iterator[None]:
    """Ends the command when nobody does, as ``| head`` has it."""
    try:
        yield
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left is flushed at the end
        raise SystemExit(EXIT_UNREAD) from None


def say(line: str) -> None:
    with _read_on():
        print(line, flush=True)  # noqa: T201 - this is the output


def warn(line: str) -> None:
    print(f"penumbra: {line}", file=sys.stderr, flush=True)  # noqa: T201 - this is the output


def rows(columns: Sequence[str], found: Iterable[Mapping[str, object]], as_json: bool) -> None:
    """One JSON object per line, or one table. Rows are mappings with (at least) the columns as keys."""
    if as_json:
        for row in found:
            say(json.dumps(row, default=plain))
        return
    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in found:
        table.add_row(*(_cell(row[column]) for column in columns))
    console = _Console()
    if not console.is_terminal:
        console = _Console(width=250)  # piped: grep and awk want whole rows
    console.print(table)


class _Console(Console):
    def on_broken_pipe(self) -> None:
        with _read_on():
            raise BrokenPipeError


def write(parts: Iterable[memoryview]) -> int:
    """Text as bytes, as it is; returns how many lines."""
    lines = 0
    with _read_on():
        sys.stdout.flush()
        for part in parts:
            sys.stdout.buffer.write(part)
            lines += bytes(part).count(b"\n")
        sys.stdout.flush()
    return lines


def document(value: object) -> None:
    say(json.dumps(plain(value), indent=2, default=plain))


def counted(number: int, what: str) -> str:
    return f"{number} {what}" if number == 1 else f"{number} {what}s"


def clock_time(unix_s: float) -> str:
    return datetime.fromtimestamp(unix_s).astimezone().strftime("%H:%M:%S")


def plain(value: object) -> object:
    """A value of ours as JSON knows it."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Address | Network | Path):
        return str(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, set | frozenset | tuple):
        return list(value)
    if hasattr(value, "item"):  # a number of numpy's
        return value.item()
    if isinstance(value, str | int | float | bool | list) or value is None:
        return value
    raise TypeError(f"{type(value).__name__} has no JSON form")


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_cell(part)}" for key, part in value.items()) or "-"
    return str(plain(value))
