# SPDX-License-Identifier: Apache-2.0
"""``--plot OUT.svg``: what a command found in a FILE, as a picture too."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from controlplane.cli.output import EXIT_USAGE, fail
from controlplane.cli.recorded import STDIN

SUFFIX = ".svg"
Plot = Annotated[
    Path | None, typer.Option(metavar=f"OUT{SUFFIX}", help="of a FILE: draw it too, over one that is there")
]


def checked(plot: Path | None, trace: str) -> None:
    """Before anything is reckoned. Ends the command if it can't be written."""
    if plot is None:
        return
    if trace == STDIN:
        fail("--plot: --trace FILE is allowed, not -", EXIT_USAGE)
    if plot.suffix.lower() != SUFFIX:
        fail(f"--plot {plot}: a name that ends in {SUFFIX} is allowed", EXIT_USAGE)
    if plot.is_dir():
        fail(f"--plot {plot}: it is a folder; a file is allowed", EXIT_USAGE)
    if not plot.parent.is_dir():
        fail(f"--plot {plot}: there is no folder {plot.parent}; one that exists is allowed", EXIT_USAGE)


def written(plot: Path, draw: Callable[[Path], None]) -> None:
    """Ends the command if there is no room."""
    try:
        draw(plot)
    except OSError as error:
        fail(f"--plot {plot}: {error.strerror or error}")
