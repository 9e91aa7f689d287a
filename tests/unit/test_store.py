# SPDX-License-Identifier: Apache-2.0
"""What the store was told survives closing, crashing and other processes; what it can't do it says."""

import os
import signal
import stat
import subprocess
import sys
from ipaddress import IPv4Address
from pathlib import Path

import pytest

from controlplane import model
from controlplane.adapters.sqlite import SqliteStore
from controlplane.ports import StoreError

SHADOW = model.Shadow(
    name="web-1-s1",
    service="web",
    parent="web-1",
    host="host-b",
    target="netns",
    state=model.ShadowState.WARMING,
    requested_unix_s=1000.5,
    changed_unix_s=1003.0,
    address=IPv4Address("10.0.0.9"),
    port=8081,
    attempts=1,
    reason="p90 demand 33 flows/s > 0.8 x 40 flows/s",
)


def test_a_shadow_comes_back_equal_from_another_connection(tmp_path):
    SqliteStore(tmp_path, "a").put_shadow(SHADOW)
    other = SqliteStore(tmp_path, "a")
    assert other.shadows() == {"web-1-s1": SHADOW}
    other.forget_shadow("web-1-s1")
    assert other.shadows() == {}


def test_instances_share_nothing(tmp_path):
    SqliteStore(tmp_path, "a").put_shadow(SHADOW)
    assert SqliteStore(tmp_path, "b").shadows() == {}


def test_values_are_replaced_and_removed(tmp_path):
    store = SqliteStore(tmp_path, "a")
    store.put("frozen", "yes")
    store.put("frozen", "no")
    assert store.get("frozen") == "no"
    store.put("frozen", None)
    assert store.get("frozen") is None


def test_decisions_come_newest_first_with_their_inputs(tmp_path):
    store = SqliteStore(tmp_path, "a")
    logged = [
        model.Decision(float(at), "web-1", "add", f"reason {at}", {"p90": 33.5, "at": "x"}) for at in range(5)
    ]
    for decision in logged:
        store.log(decision)
    assert store.decisions(3) == logged[:1:-1]


def test_what_was_put_survives_kill_9_of_the_writer(tmp_path):
    program = (
        "import sys, pathlib\n"
        "from controlplane.adapters.sqlite import SqliteStore\n"
        "store = SqliteStore(pathlib.Path(sys.argv[1]), 'a')\n"
        "store.put('key', 'value'); print('put', flush=True); sys.stdin.read()\n"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert writer.stdout.readline() == b"put\n"
    os.kill(writer.pid, signal.SIGKILL)
    writer.wait()
    assert SqliteStore(tmp_path, "a").get("key") == "value"


def test_only_root_may_read_it(tmp_path):
    store = SqliteStore(tmp_path / "new", "a")
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700


def test_a_store_that_others_could_read_is_theirs_no_more(tmp_path: Path) -> None:
    SqliteStore(tmp_path, "lab").close()
    path = tmp_path / "lab.db"
    path.chmod(0o644)
    SqliteStore(tmp_path, "lab").close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_is_no_database_is_named(tmp_path):
    (tmp_path / "a.db").write_bytes(b"not a database, but long enough to be looked at" * 100)
    with pytest.raises(StoreError, match=r"a\.db: file is not a database"):
        SqliteStore(tmp_path, "a")


def test_a_newer_schema_is_refused_and_left_alone(tmp_path):
    store = SqliteStore(tmp_path, "a")
    store._db.execute("PRAGMA user_version=99")
    store.close()
    before = store.path.read_bytes()
    with pytest.raises(StoreError, match="newer Penumbra"):
        SqliteStore(tmp_path, "a")
    assert store.path.read_bytes() == before


def test_a_damaged_record_names_the_shadow(tmp_path):
    store = SqliteStore(tmp_path, "a")
    store._db.execute("INSERT INTO shadow VALUES ('web-1-s1', '{\"name\": 5}')")
    with pytest.raises(StoreError, match="'web-1-s1' is damaged"):
        store.shadows()


def test_a_place_that_can_not_be_made_is_an_error_in_words():
    with pytest.raises(
        StoreError, match=r"/proc/none/a\.db: No such file or directory; check the disk's space"
    ):
        SqliteStore(Path("/proc/none"), "a").shadows()


def test_a_full_disk_is_an_error_that_says_so(tmp_path):
    mount = tmp_path / "small"
    mount.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(mount)], check=True)
    try:
        store = SqliteStore(mount, "a")
        store.put_shadow(SHADOW)
        with pytest.raises(StoreError, match="check the disk's space"):
            store.put("big", "x" * 1_000_000)
        assert store.shadows() == {"web-1-s1": SHADOW}
        store.close()
    finally:
        subprocess.run(["umount", str(mount)], check=True)
