# SPDX-License-Identifier: Apache-2.0
"""Rules of the roles that copy a shadow's data."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import ansible.module_utils
import psycopg
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.netns.steered import eventually
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


# ---- command ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def commands() -> ModuleType:
    return loaded("penumbra_sync_command", PLAYBOOKS / "library/penumbra_sync_command.py")


ASKED = {
    "instance": "i",
    "shadow": "db-1-s1",
    "service": "db",
    "primary": {"address": "10.0.0.1", "port": 1},
    "address": "10.0.0.2",
    "port": 2,
}
TELLS = (
    'echo "$PENUMBRA_INSTANCE $PENUMBRA_SERVICE $PENUMBRA_SHADOW '
    "$PENUMBRA_PRIMARY_ADDRESS:$PENUMBRA_PRIMARY_PORT "
    '$PENUMBRA_SHADOW_ADDRESS:$PENUMBRA_SHADOW_PORT" >{}'
)


@pytest.mark.parametrize("listed", [True, False], ids=["a list", "a text for the shell"])
def test_a_command_is_told_whose_copy_it_is(commands: ModuleType, tmp_path: Path, listed: bool) -> None:
    text = TELLS.format(tmp_path / "told")
    commands.run(ASKED | {"command": ["sh", "-c", text] if listed else text})
    assert (tmp_path / "told").read_text() == "i db db-1-s1 10.0.0.1:1 10.0.0.2:2\n"
    commands.run(ASKED | {"command": text, "address": "", "port": None})
    assert (tmp_path / "told").read_text() == "i db db-1-s1 10.0.0.1:1 :\n"


@pytest.mark.parametrize(
    ("command", "said"),
    [
        pytest.param(
            "echo first >&2; echo no room >&2; exit 3", "/bin/sh ended with 3: no room", id="failing"
        ),
        pytest.param(["/nowhere"], "/nowhere can't be run: ", id="missing"),
        pytest.param(["sh", 1], "a list of texts", id="no list of texts"),
        pytest.param(" ", "a list of texts", id="empty"),
    ],
)
def test_a_command_that_fails_is_told_with_its_last_words(
    commands: ModuleType, command: object, said: str
) -> None:
    with pytest.raises(commands.RefusedError, match=re.escape(said)):
        commands.run(ASKED | {"command": command})


def test_what_a_command_leaves_in_the_background_lives_on_and_a_killed_module_takes_it_along(
    commands: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proc = loaded("penumbra_proc_copier", PLAYBOOKS / "module_utils/penumbra_proc.py")
    monkeypatch.setenv("PENUMBRA_RUN", "1-2-i-3")
    commands.run(ASKED | {"command": f"sleep 9876 & echo $! >{tmp_path}/copier"})
    copier = int((tmp_path / "copier").read_text())
    try:
        eventually(lambda: Path(f"/proc/{copier}/cmdline").read_bytes() == b"sleep\x009876\x00")
        entries = Path(f"/proc/{copier}/environ").read_bytes().split(b"\0")
        assert b"PENUMBRA_SHADOW=db-1-s1" in entries
        assert not any(entry.startswith(b"PENUMBRA_RUN=") for entry in entries)
        assert proc.labelled("i", "db-1-s1") == [], "it is not taken for the shadow"
    finally:
        os.kill(copier, signal.SIGKILL)

    hanging = f"echo $$ >{tmp_path}/new; mv {tmp_path}/new {tmp_path}/command; exec sleep 9876"
    module = os.fork()
    if module == 0:
        commands.run(ASKED | {"command": hanging})
        os._exit(0)
    eventually(lambda: (tmp_path / "command").exists())
    command = int((tmp_path / "command").read_text())
    os.kill(module, signal.SIGKILL)
    os.waitpid(module, 0)
    eventually(lambda: not Path(f"/proc/{command}").exists() or "Z" in stat_of(command))


def stat_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "Z"


# ---- whose fault it is --------------------------------------------------------------------

ITS = {"state": "started", "address": "10.0.0.2", "port": 2}


@pytest.mark.parametrize("driver", ["postgres", "redis"])
def test_only_a_shadow_that_can_not_be_reached_may_be_its_hosts_fault(
    driver: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("penumbra_sync", "penumbra_postgres", "penumbra_postgres_shadow"):
        shared = loaded(f"ansible.module_utils.{name}", PLAYBOOKS / f"module_utils/{name}.py")
        monkeypatch.setattr(ansible.module_utils, name, shared, raising=False)
    module = loaded(f"penumbra_sync_{driver}", PLAYBOOKS / f"library/penumbra_sync_{driver}.py")
    theirs = {"postgres": psycopg.Error, "redis": redis.RedisError}[driver]
    rules = sys.modules["ansible.module_utils.penumbra_sync"]

    def refused(error: Exception) -> object:
        def fails(*_: object) -> dict[str, object]:
            raise error

        monkeypatch.setattr(module, "started", fails)
        answered: dict[str, object] = {}
        its = SimpleNamespace(
            params=ITS, fail_json=lambda **said: answered.update(said), exit_json=lambda **said: None
        )
        monkeypatch.setattr(module, "AnsibleModule", lambda *_, **__: its)
        with contextlib.suppress(UnboundLocalError):  # fail_json would have ended it
            module.main()
        return answered["refused"]

    assert refused(rules.RefusedError("wal_level = replica")) is True
    assert refused(theirs("no such function")) is True
    assert refused(rules.UnreachableError("10.0.0.1", 1, "refused")) is True, "the primary"
    assert refused(rules.UnreachableError("10.0.0.2", 2, "refused")) is False, "the shadow"


class _Session:
    def __init__(self, *, broken: bool) -> None:
        self.broken = broken

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        pass

    def execute(self, *_: object) -> None:
        pass


@pytest.mark.parametrize("broken", [True, False], ids=["lost", "a statement that fails"])
def test_a_session_that_is_lost_tells_whose_it_was(broken: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rules = loaded("ansible.module_utils.penumbra_sync", PLAYBOOKS / "module_utils/penumbra_sync.py")
    module = loaded("ansible.module_utils.penumbra_postgres", PLAYBOOKS / "module_utils/penumbra_postgres.py")
    monkeypatch.setattr(module.psycopg, "connect", lambda **_: _Session(broken=broken))
    login = module.Login("10.0.0.2", 2, "shop", "penumbra", None, "prefer")
    with (
        pytest.raises(rules.UnreachableError if broken else psycopg.OperationalError) as raised,
        login.connected(),
    ):
        raise psycopg.OperationalError("it ended")
    assert getattr(raised.value, "place", None) == (("10.0.0.2", 2) if broken else None)
