# SPDX-License-Identifier: Apache-2.0
"""``make bench``: runs every bench, prints its figures and writes them to build/bench.json."""

from __future__ import annotations

from pathlib import Path

from tests.bench import control, dataplane, endtoend, figures, probes, provisioning

BENCHES = (dataplane.measure, control.measure, probes.measure, endtoend.measure, provisioning.measure)
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
