# SPDX-License-Identifier: Apache-2.0
"""The ``penumbra`` command. Exit 0: done; 1: failed; 2: wrong usage or configuration; 141: not read on."""

from __future__ import annotations

import errno

import typer

from controlplane.cli import (
    actions,
    capture,
    control,
    detect,
    explain,
    forecast,
    lab,
    maps,
    provision,
    simulate,
    trace_packet,
)
from controlplane.cli.output import EXIT_USAGE, fail
from controlplane.config import ConfigError
from controlplane.ports import DataplaneError, StoreError

_OF_OUTPUT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)
"""What a write without a file's name meets."""

app = typer.Typer(
    name="penumbra",
    help="Steers traffic at this access point and clones overloaded endpoints before they hurt.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    add_completion=False,
)
control.register(app)
explain.register(app)
actions.register(app)
provision.register(app)
trace_packet.register(app)
capture.register(app)
simulate.register(app)
forecast.register(app)
detect.register(app)
app.add_typer(maps.app, name="maps")
app.add_typer(lab.app, name="lab")


def main() -> None:
    """The entry point: what the user did wrong or can mend is a line, never a traceback."""
    try:
        app()
    except ConfigError as error:
        fail("\npenumbra: ".join(error.problems), EXIT_USAGE)
    except (DataplaneError, StoreError) as error:
        fail(str(error))
    except OSError as error:
        at = error.filename or ("output" if error.errno in _OF_OUTPUT else "")
        fail(f"{at}: {error.strerror or error}" if at else error.strerror or str(error))
