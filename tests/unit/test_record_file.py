# SPDX-License-Identifier: Apache-2.0
"""The file that ``run --record`` adds to: a record, or a new one, and nothing else is written into."""

from __future__ import annotations

from pathlib import Path

import pytest

from controlplane.cli import wiring
from controlplane.record import VERSION, Recorder


def write(path: Path) -> None:
    with wiring.record_file(path) as file:
        Recorder(file.write, lambda: "text").configured()


def test_a_record_is_added_to_on_a_line_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "record"
    write(path)
    first = path.read_text()
    assert first.startswith(f'{{"penumbra_record": {VERSION}')
    with path.open("a") as file:
        file.write('{"at_s": 1')  # as kill -9 leaves it
    write(path)
    assert path.read_text() == first + '{"at_s": 1\n' + first


@pytest.mark.parametrize("text", ["instance: web\n", '{"a": 1}\n', "\n"])
def test_another_file_is_left_alone(text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "penumbra.yml"
    path.write_text(text)
    with pytest.raises(SystemExit, match="2"):
        wiring.record_file(path)
    assert path.read_text() == text
    assert "no record" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["", '{"penumbra'])
def test_an_empty_file_or_one_cut_off_in_its_first_words_becomes_a_record(text: str, tmp_path: Path) -> None:
    path = tmp_path / "record"
    path.write_text(text)
    write(path)
    assert path.read_text().splitlines()[-1].startswith('{"penumbra_record"')
