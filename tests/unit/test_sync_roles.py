# SPDX-License-Identifier: Apache-2.0
"""Rules of the roles that copy a shadow's data."""

from __future__ import annotations

import re
from types import ModuleType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.test_playbooks import PLAYBOOKS, loaded


@pytest.fixture(scope="module")
def sync_rules() -> ModuleType:
    return loaded("penumbra_sync", PLAYBOOKS / "module_utils/penumbra_sync.py")


@pytest.mark.parametrize(
    ("instance", "shadow", "name"),
    [
        pytest.param("lab", "db_1_s1", "penumbra_lab_db_1_s1", id="as it is"),
        pytest.param("lab", "db-1-s1", "penumbra_lab_db_1_s1_73f54eef", id="changed: with a checksum"),
        pytest.param(
            "a_b", "c", "penumbra_a_b_c_7ceaa1d5", id="of two parts that don't tell where they meet"
        ),
    ],
)
def test_all_of_a_copy_has_one_name(sync_rules: ModuleType, instance: str, shadow: str, name: str) -> None:
    assert sync_rules.sync_name(instance, shadow) == name


@given(st.text(min_size=1, max_size=60), st.text(min_size=1, max_size=60))
@settings(max_examples=50)
def test_a_copys_name_is_one_that_slots_may_have(instance: str, shadow: str) -> None:
    rules = loaded("penumbra_sync", PLAYBOOKS / "module_utils/penumbra_sync.py")
    assert re.fullmatch("penumbra_[a-z0-9_]{1,54}", rules.sync_name(instance, shadow))
    assert rules.sync_name(instance, shadow) != rules.sync_name(instance + "x", shadow)
