# SPDX-License-Identifier: Apache-2.0
"""A shadow's copy of a Redis, by the shipped playbooks, on real servers under writes, a cut and kills."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pytest
import redis

from controlplane import model
from controlplane.lab.topology import Topology
from tests.netns.engines import PASSWORD, SHADOW, Site, Writers
from tests.netns.steered import eventually, passes, playbooks_with

pytestmark = pytest.mark.slow

PORT = 6379
# redis-tools has the server, too: what it is it knows by the name it is called by.
SERVER = ("bash", "-c", 'exec -a redis-server redis-check-rdb "$@"', "redis-server")
SETTINGS = """
save ""
set-proc-title no
protected-mode no
loglevel debug
repl-diskless-sync-delay 0
repl-timeout 5
appendonly yes
appendfsync always
user default on nopass ~* &* +@all
"""


@dataclass
class Primary:
    site: Site
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        data = self.site.folder / "primary"
        settings = self.site.folder / "redis.conf"
        if not data.exists():
            data.mkdir(mode=0o700)
            settings.touch(mode=0o600)
            escaped = PASSWORD.replace("\\", "\\\\").replace('"', '\\"')
            settings.write_text(SETTINGS + f'user penumbra on ">{escaped}" ~* &* +@all\n')
            subprocess.run(["chown", "postgres:", data, settings], check=True)
        where = ("--bind", str(self.site.address), "--port", str(PORT))
        self.process = self.site.start(*SERVER, str(settings), "--dir", str(data), *where)
        eventually(self.answers)

    def answers(self) -> bool:
        try:
            return bool(self.at(str(self.site.address), PORT).ping())
        except redis.RedisError:
            return False

    def end(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def at(self, address: str, port: int, user: str | None = None) -> redis.Redis:
        password = PASSWORD if user else None
        return redis.Redis(host=address, port=port, username=user, password=password, socket_timeout=5)

    @property
    def own(self) -> redis.Redis:
        return self.at(str(self.site.address), PORT)

    def replicas(self) -> int:
        return self.own.info("replication")["connected_slaves"]

    def writers(self) -> Writers:
        sessions: list[redis.Redis] = []

        def write(number: int) -> None:
            if not sessions:
                sessions.append(self.own)
            try:
                sessions[0].set(f"n{number}", number)
            except redis.RedisError:
                sessions.clear()
                raise

        return Writers(self.site, write, [redis.RedisError])


@pytest.fixture(scope="module")
def primary(topology: Topology) -> Iterator[Primary]:
    sync = model.Sync(model.SyncDriver.REDIS, max_lag_s=5.0)
    site = Site(topology, sync, PORT, {})
    site.sync = replace(sync, variables={"user": "penumbra", "password_file": str(site.folder / "password")})
    site.variables = {
        "address_options": ["--bind"],
        "port_options": ["--port"],
        "fresh_directory": {"options": ["--dir"]},
    }
    made = Primary(site)
    try:
        with site.at_access_point():  # whoever connects, does so from there
            made.start()
            yield made
    finally:
        made.end()
        site.close()


@pytest.fixture(autouse=True)
def clean(primary: Primary) -> Iterator[None]:
    yield
    primary.site.heal()
    if primary.site.left():
        primary.site.deprovision()


def linked(shadow: redis.Redis) -> bool:
    return shadow.info("replication").get("master_link_status") == "up"


def at_shadow(primary: Primary, made: model.RunResult) -> redis.Redis:
    assert (made.state, made.reason) == (model.RunState.DONE, "")
    shadow = primary.at(str(made.address), made.port or 0, "penumbra")
    eventually(lambda: linked(shadow))
    return shadow


def await_caught_up(primary: Primary, shadow: redis.Redis) -> None:
    there = primary.own.dbsize()
    eventually(lambda: shadow.dbsize() >= there)


def assert_nothing_left(primary: Primary) -> None:
    assert primary.replicas() == 0
    assert primary.site.left() == []


def assert_only_read(primary: Primary, made: model.RunResult) -> None:
    client = primary.at(str(made.address), made.port or 0)
    assert client.get("n1") == b"1"
    for command in (("SET", "n1", "astray"), ("FLUSHALL",), ("EVAL", "redis.call('set', 'n1', 'astray')", 0)):
        with pytest.raises(redis.ResponseError, match="read only replica"):
            client.execute_command(*command)
    for command in (
        ("CONFIG", "SET", "replica-read-only", "no"),
        ("REPLICAOF", "NO", "ONE"),
        ("ACL", "SETUSER", "x"),
    ):
        with pytest.raises(redis.exceptions.NoPermissionError):
            client.execute_command(*command)


def test_a_shadow_under_writes_is_a_copy_stays_one_and_goes_without_a_trace(primary: Primary) -> None:
    site = primary.site
    with primary.writers() as writers:
        eventually(lambda: len(writers.acknowledged) > 50)
        made = site.provision()
        shadow = at_shadow(primary, made)
        await_caught_up(primary, shadow)
        assert_only_read(primary, made)
        assert site.provision().port == made.port
        assert linked(shadow)

        site.cut()
        passes(0.5)
        here = len(writers.acknowledged)
        eventually(lambda: len(writers.acknowledged) > here + 50)
        site.heal()
        await_caught_up(primary, primary.at(str(made.address), made.port or 0, "penumbra"))

        primary.end()
        primary.start()
        here = len(writers.acknowledged)
        eventually(lambda: len(writers.acknowledged) > here + 50)
        shadow = at_shadow(primary, made)
        await_caught_up(primary, shadow)
        log = (site.run_dir / site.instance / "shadows" / f"{SHADOW}.log").read_bytes()
        assert b"MASTER <-> REPLICA sync started" in log
        assert PASSWORD.encode() not in log
        assert site.deprovision().reason == ""
        assert_nothing_left(primary)
        assert site.deprovision().reason == ""
    kept = {int(key[1:]) for key in primary.own.keys("n*")}
    assert set(writers.acknowledged) <= kept
    assert len(kept) > 150


def test_of_a_shadow_that_was_killed_nothing_is_left(primary: Primary) -> None:
    site = primary.site
    at_shadow(primary, site.provision())
    site.kill()
    assert site.deprovision().reason == ""
    assert_nothing_left(primary)


def test_negative_control_a_shadow_that_is_not_removed_stays_a_replica(primary: Primary, tmp_path) -> None:
    books = playbooks_with(tmp_path / "books", "roles/sync_redis/tasks/stop.yml", "[]\n")
    (books / "roles/netns/tasks/deprovision.yml").write_text("[]\n")
    at_shadow(primary, primary.site.provision())
    assert primary.site.deprovision(playbooks=books).reason == ""
    with pytest.raises(AssertionError):
        assert_nothing_left(primary)
    assert primary.replicas() == 1
    # And stop alone ends it, though the shadow lives on and stays read-only.
    again = playbooks_with(tmp_path / "again", "roles/netns/tasks/deprovision.yml", "[]\n")
    assert primary.site.deprovision(playbooks=again).reason == ""
    assert primary.replicas() == 0
    assert primary.site.processes() != []
    assert primary.site.deprovision().reason == ""
    assert_nothing_left(primary)
