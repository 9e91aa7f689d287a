# SPDX-License-Identifier: Apache-2.0
"""``make bench``: runs every bench, prints its figures and writes them to build/bench.json."""

from __future__ import annotations

from pathlib import Path

<<<<<<< HEAD
from tests.bench import control, dataplane, figures

BENCHES = (dataplane.measure, control.measure)
=======
from tests.bench import dataplane, endtoend, figures

BENCHES = (dataplane.measure, endtoend.measure)
>>>>>>> 52a7265 (bench: end to end beside nftables and HAProxy)
OUTPUT = Path("build/bench.json")


def main() -> None:
    measured: dict[str, figures.Figure] = {}
    for bench in BENCHES:
        for name, figure in bench().items():
            print(f"{name:36} {figure.rounded:>12,.10g} {figure.unit}")
            measured[name] = figure
    figures.write(measured, OUTPUT)
    print(f"written to {OUTPUT}")


if __name__ == "__main__":
    main()
