# SPDX-License-Identifier: Apache-2.0
"""A store that can't be opened is an error of each call, and opens when it can."""

from __future__ import annotations

import pytest

from controlplane.adapters.patient_store import PatientStore
from controlplane.adapters.sqlite import SqliteStore
from controlplane.ports import StoreError


def test_it_opens_when_what_was_in_the_way_is_gone(tmp_path):
    in_the_way = tmp_path / "state"
    in_the_way.write_text("a file where a folder should be")
    store = PatientStore(lambda: SqliteStore(in_the_way, "a"))
    with pytest.raises(StoreError):
        store.get("key")
    in_the_way.unlink()
    store.put("key", "value")
    assert store.get("key") == "value"
    store.close()
