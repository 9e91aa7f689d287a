# SPDX-License-Identifier: Apache-2.0
"""CONFIGURATION.md names every key that a configuration knows."""

import re
from pathlib import Path

from pydantic import BaseModel

from controlplane import config

PAGE = Path(__file__).resolve().parents[2] / "CONFIGURATION.md"


def test_every_key_is_on_the_page():
    known = {key for section in config._Section.__subclasses__() for key in section.model_fields}
    assert issubclass(config._Section, BaseModel)
    assert {"vip", "lead_time", "slots"} <= known
    named = set(re.findall(r"[a-z_]+", PAGE.read_text()))
    assert known - named == set()
