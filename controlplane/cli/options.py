# SPDX-License-Identifier: Apache-2.0
"""Arguments and options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="the configuration, a YAML file")]
InstanceName = Annotated[
    str | None,
    typer.Option("--instance", "-i", metavar="NAME", help="which instance, if several are loaded"),
]
AsJson = Annotated[bool, typer.Option("--json", help="JSON for programs instead of a table")]
