# SPDX-License-Identifier: Apache-2.0
"""How pictures look, and how they get to the disk."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from pathlib import Path

import matplotlib as mpl
from matplotlib.figure import Figure

LOAD, FORECAST, CAPACITY, SHADOW, LATENCY, FAILED, FAINT = (
    "#2f5d8c", "#d9822b", "#4a4f57", "#6b4f9a", "#2f7d6b", "#b3372f", "#9aa0a8",
)  # fmt: skip


def style() -> AbstractContextManager[None]:
    """To be entered before a figure is made, and left after it is written."""
    context: AbstractContextManager[None] = mpl.rc_context(
        {
            "svg.fonttype": "none",
            "font.family": "sans-serif",
            "font.size": 9,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": FAINT,
            "xtick.color": CAPACITY,
            "ytick.color": CAPACITY,
            "legend.fontsize": 8.5,
        }
    )
    return context


def write(figure: Figure, path: Path) -> None:
    """The SVG, whole or not at all. Raises OSError, which names ``path``."""
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    try:
        figure.savefig(fresh, format="svg", metadata={"Date": None})
        fresh.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        fresh.unlink(missing_ok=True)
