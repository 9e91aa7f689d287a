# SPDX-License-Identifier: Apache-2.0
"""A store that can't be opened is an error of each call, and works again when it can, whatever was done."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from controlplane import requests
from controlplane.adapters.patient_store import REST_S, VERIFY_S, PatientStore
from controlplane.adapters.sqlite import PARTS, SqliteStore
from controlplane.ports import StoreError
from tests.fakes import FakeClock
from tests.world import World, config, grown


def test_it_opens_when_what_was_in_the_way_is_gone(tmp_path):
    in_the_way = tmp_path / "state"
    in_the_way.write_text("a file where a folder should be")
    store = PatientStore(in_the_way, "a", FakeClock())
    with pytest.raises(StoreError):
        store.get("key")
    in_the_way.unlink()
    store.put("key", "value")
    assert store.get("key") == "value"
    store.close()


def _remove(path: Path) -> None:
    for part in PARTS:
        path.with_name(path.name + part).unlink()


def _overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(os.urandom(9000))


HARM: dict[str, Callable[[Path], object]] = {
    "deleted": _remove,
    "deleted alone": lambda path: path.unlink(),
    "its log deleted": lambda path: path.with_name("a.db-wal").unlink(),
    "its index deleted": lambda path: path.with_name("a.db-shm").unlink(),
    "cut to nothing": lambda path: os.truncate(path, 0),
    "cut in the middle": lambda path: os.truncate(path, 5000),
    "filled with garbage": _overwrite,
    "its log filled with garbage": lambda path: _overwrite(path.with_name("a.db-wal")),
}


@pytest.mark.parametrize("checkpointed", [False, True], ids=["in the log", "in the file"])
@pytest.mark.parametrize("harm", list(HARM))
def test_a_store_that_is_harmed_while_it_is_open_is_there_for_others_again(tmp_path, harm, checkpointed):
    clock = FakeClock()
    store = PatientStore(tmp_path, "a", clock)
    for k in range(50):
        store.put(f"k{k}", "v" * 200)
    if checkpointed:
        with closing(sqlite3.connect(tmp_path / "a.db")) as other:
            other.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    HARM[harm](tmp_path / "a.db")
    clock.advance(VERIFY_S)
    store.put("key", "value")
    assert store.get("key") == "value"
    assert SqliteStore(tmp_path, "a").get("key") == "value", "what is written is seen by nobody else"
    store.close()
    assert SqliteStore(tmp_path, "a").get("key") == "value"


def test_garbage_that_was_there_before_is_set_aside_whole(tmp_path, caplog):
    garbage = os.urandom(20_000)
    (tmp_path / "a.db").write_bytes(garbage)
    store = PatientStore(tmp_path, "a", FakeClock())
    store.put("key", "value")
    assert store.get("key") == "value"
    assert (tmp_path / "a.db.damaged").read_bytes() == garbage
    assert "a.db.damaged" in caplog.text
    store.close()


def test_a_locked_store_makes_nobody_wait_and_is_asked_again(tmp_path):
    clock = FakeClock()
    store = PatientStore(tmp_path, "a", clock)
    store.put("key", "before")
    other = sqlite3.connect(tmp_path / "a.db", isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    begun_s = time.monotonic()
    for _ in range(20):
        with pytest.raises(StoreError, match="locked"):
            store.put("key", "after")
    assert time.monotonic() - begun_s < 1.0
    other.execute("ROLLBACK")
    clock.advance(REST_S)
    store.put("key", "after")
    assert store.get("key") == "after"
    store.close()


def test_a_newer_schema_is_not_set_aside(tmp_path):
    with sqlite3.connect(tmp_path / "a.db") as db:
        db.execute("PRAGMA user_version=99")
    store = PatientStore(tmp_path, "a", FakeClock())
    with pytest.raises(StoreError, match="newer Penumbra"):
        store.get("key")
    assert [path.name for path in tmp_path.glob("*.damaged")] == []


# ---- the controller writes again what it knows --------------------------------------------


def test_records_that_are_lost_or_changed_while_it_runs_are_written_again():
    world = grown()
    mine = dict(world.store.records)
    assert mine
    for harm in (
        world.store.records.clear,
        lambda: world.store.records.update({"web-1-s9": mine["web-1-s1"]}),
        lambda: world.store.records.update({"web-1-s1": replace(mine["web-1-s1"], port=1)}),
    ):
        harm()
        world.ticks(2, 110.0)
        assert world.store.records == mine
    assert sum(row.action == "restore" for row in world.store.rows) == 3
    assert world.controller.status().troubles == {}


def test_what_was_frozen_and_drained_stays_so_when_the_store_is_lost():
    world = World(config(endpoints=2))
    world.ticks(3, 20.0)
    requests.request_freeze(world.store, True)
    requests.request_drain(world.store, "web-1", True)
    world.ticks(2, 20.0)
    world.store.values.clear()
    world.ticks(2, 20.0)
    assert world.controller.status().frozen
    assert set(world.dataplane.services["web"].ring) == {"web-2"}
    world.restart()
    world.ticks(2, 20.0)
    assert world.controller.status().frozen
    assert set(world.dataplane.services["web"].ring) == {"web-2"}
