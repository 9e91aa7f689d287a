# SPDX-License-Identifier: Apache-2.0
"""What benches measure, and the file they share."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

DIGITS = 4


@dataclass(frozen=True, slots=True)
class Figure:
    value: float
    unit: str

    @property
    def rounded(self) -> float:
        """To as many digits as a measurement deserves."""
        return float(f"{self.value:.{DIGITS}g}")


def write(figures: Mapping[str, Figure], path: Path) -> None:
    """``{"figures": {NAME: {"value": ..., "unit": ...}}}``"""
    rows = {name: {"value": figure.rounded, "unit": figure.unit} for name, figure in figures.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"figures": rows}, indent=2) + "\n", encoding="utf-8")
