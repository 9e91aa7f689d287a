# SPDX-License-Identifier: Apache-2.0
"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[
    Path,
    # Whether it can be read is config.load's to say, in a line as for all that is wrong with it.
    typer.Argument(metavar="CONFIG", readable=False, help="the configuration, a YAML file"),
]
InstanceName = Annotated[
    str | None,
    typer.Option("--instance", "-i", metavar="NAME", help="which instance, if several are loaded"),
]
AsJsonLines = Annotated[bool, typer.Option("--json", help="JSON for programs: an object per line")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON for programs instead of a table")]
