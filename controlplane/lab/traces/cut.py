# SPDX-License-Identifier: Apache-2.0
"""Cuts the shipped traces out of the published file: ``python cut.py mongo-04.csv`` (see README.md)."""

from __future__ import annotations

import csv
import sys
from datetime import datetime
from pathlib import Path

SLICES = {
    "mongo_burst": ("2018-05-03T08:28:00Z", "2018-05-03T08:53:00Z"),
    "mongo_twin_burst": ("2018-05-03T10:20:00Z", "2018-05-03T11:20:00Z"),
}


def unix_s(stamp: str) -> int:
    return int(datetime.fromisoformat(stamp).timestamp())


def main(source: Path) -> None:
    with source.open(encoding="utf-8", newline="") as file:
        rows = [(unix_s(row["TimeStamp"]), float(row["Value"])) for row in csv.DictReader(file)]
    for name, (start, end) in SLICES.items():
        lines = [f"{when},{value:.6g}" for when, value in rows if unix_s(start) <= when < unix_s(end)]
        target = Path(__file__).with_name(f"{name}.csv")
        target.write_text("\n".join(["timestamp,value", *lines]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
