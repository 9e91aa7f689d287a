# SPDX-License-Identifier: Apache-2.0
"""Lag as real servers tell it: it grows when replication stands still, falls after, and who hangs delays
nobody."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import psycopg
import pytest
from redis import Redis

from controlplane.adapters import lag_postgres
from controlplane.adapters.lag_command import parsed
from controlplane.adapters.lag_source import LIMIT_S, BackgroundLagSource
from controlplane.model import Lag, LagTarget, Sync, SyncDriver

BIN = Path("/usr/lib/postgresql/15/bin")
HERE = IPv4Address("127.0.0.1")
REDIS_SERVER = "/usr/bin/redis-check-rdb"
"""By the name that it is called by it is the server: redis-tools has it without a service."""
NOBODYS = ("setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups")
POSTGRES = Sync(
    SyncDriver.POSTGRES,
    max_lag_s=5.0,
    interval_s=0.1,
    variables={"database": "postgres", "user": "penumbra", "sslmode": "disable"},
)
REDIS = Sync(SyncDriver.REDIS, max_lag_s=5.0, interval_s=0.1)


def free_port() -> int:
    with closing(socket.socket()) as one:
        one.bind((str(HERE), 0))
        return int(one.getsockname()[1])


def target(sync: Sync, port: int, primary: int, shadow: str = "db-1-s1") -> LagTarget:
    return LagTarget(shadow, "t", "db", sync, HERE, port, (HERE, primary))


class Reader:
    """What a source tells of its targets."""

    def __init__(self, *targets: LagTarget) -> None:
        self.source = BackgroundLagSource()
        self.last: dict[str, Lag] = {}
        self.count: dict[str, int] = {}
        self.source.watch({one.shadow: one for one in targets})

    def take(self) -> None:
        for one in self.source.lags():
            self.last[one.shadow] = one
            self.count[one.shadow] = self.count.get(one.shadow, 0) + 1

    def until(self, holds, shadow: str = "db-1-s1", limit_s: float = 10.0) -> Lag:
        """The first reading from now on of which it holds."""
        began = time.monotonic()
        while time.monotonic() < began + limit_s:
            self.take()
            one = self.last.get(shadow)
            if one is not None and one.at_s >= began and holds(one):
                return one
            time.sleep(0.02)
        raise AssertionError(f"not within {limit_s} s: {self.last}, {self.source.troubles()}")


@pytest.fixture
def read() -> Iterator[type[Reader]]:
    made: list[Reader] = []

    def reader(*targets: LagTarget) -> Reader:
        made.append(Reader(*targets))
        return made[-1]

    yield reader
    for one in made:
        one.source.close()


def is_close(one: Lag) -> bool:
    return one.copied and one.lag_s is not None and one.lag_s < 1.0


# ---- PostgreSQL -------------------------------------------------------------------------------


class Server:
    def __init__(self, folder: Path) -> None:
        self.folder, self.port = folder, free_port()
        options = {
            "port": self.port,
            "listen_addresses": str(HERE),
            "unix_socket_directories": "",
            "wal_level": "logical",
            "fsync": "off",
            "wal_retrieve_retry_interval": "200ms",
        }
        flags = [part for key, value in options.items() for part in ("-c", f"{key}={value}")]
        with (folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [*NOBODYS, str(BIN / "postgres"), "-D", str(folder / "data"), *flags],
                cwd="/",
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def run(self, *statements: str) -> None:
        until = time.monotonic() + 10.0
        while True:
            try:
                with psycopg.connect(
                    host=str(HERE), port=self.port, user="penumbra", dbname="postgres", autocommit=True
                ) as one:
                    for statement in statements:
                        one.execute(statement)
                return
            except psycopg.OperationalError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.05)

    def signal(self, number: int) -> None:
        """To all its processes; each is a session of its own."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        for pid in (self.process.pid, *map(int, children)):
            os.kill(pid, number)

    def end(self) -> None:
        self.process.send_signal(signal.SIGQUIT)
        self.process.wait(10.0)


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[Server, Server]]:
    """A primary, and a shadow that subscribes to it."""
    folder = Path(tempfile.mkdtemp(prefix="penumbra-lag-"))
    folder.chmod(0o755)
    made: list[Server] = []
    try:
        for name in ("primary", "shadow"):
            place = folder / name
            place.mkdir()
            subprocess.run(["chown", "postgres:", place], check=True)
            if made:  # a copy is made sooner than another
                subprocess.run(["cp", "-a", folder / "new", place / "data"], check=True)
            else:
                command = [str(BIN / "initdb"), "-D", str(place / "data"), "-U", "penumbra", "--no-sync"]
                subprocess.run(
                    [*NOBODYS, *command], cwd="/", check=True, stdout=subprocess.DEVNULL, timeout=60
                )
                subprocess.run(["cp", "-a", place / "data", folder / "new"], check=True)
            made.append(Server(place))
        primary, shadow = made
        tables = (
            "CREATE SCHEMA penumbra",
            "CREATE TABLE penumbra.heartbeat (instance text PRIMARY KEY, at timestamptz NOT NULL)",
            "CREATE TABLE items (id bigint PRIMARY KEY, body text)",
        )
        primary.run(*tables, "CREATE PUBLICATION penumbra_t FOR TABLE penumbra.heartbeat, items")
        to = f"host={HERE} port={primary.port} user=penumbra dbname=postgres"
        shadow.run(
            *tables, f"CREATE SUBSCRIPTION penumbra_t_db_1_s1 CONNECTION '{to}' PUBLICATION penumbra_t"
        )
        yield primary, shadow
    finally:
        for one in made:
            one.end()
        shutil.rmtree(folder)


def test_postgres_lag_grows_while_replication_stands_still_and_falls_after(servers, read):
    primary, shadow = servers
    reader = read(target(POSTGRES, shadow.port, primary.port))
    first = reader.until(is_close)
    assert first.lag_bytes is not None
    shadow.run("ALTER SUBSCRIPTION penumbra_t_db_1_s1 DISABLE")
    began = time.monotonic()
    primary.run("INSERT INTO items SELECT n, repeat('x', 100) FROM generate_series(1, 10000) AS n")
    late = reader.until(lambda one: one.lag_s > 1.5)
    assert late.lag_s == pytest.approx(late.at_s - began, abs=0.7)
    assert late.lag_bytes > 1_000_000
    assert late.copied, "what was copied stays so"
    shadow.run("ALTER SUBSCRIPTION penumbra_t_db_1_s1 ENABLE")
    reader.until(lambda one: is_close(one) and one.lag_bytes < 1_000_000)
    assert not reader.source.troubles()


def test_a_beat_that_a_shadow_shows_before_the_primary_has_answered_is_known(servers, read, monkeypatch):
    primary, shadow = servers
    slow = "SELECT NULL, 0::bigint, NULL FROM pg_sleep(0.3)"
    monkeypatch.setattr(lag_postgres, "_POSITIONS", slow)
    reader = read(target(POSTGRES, shadow.port, primary.port))
    reader.until(is_close)
    until = time.monotonic() + 2.0
    while time.monotonic() < until:
        assert reader.until(lambda one: True).lag_s < 1.2


def test_services_that_copy_one_primary_share_its_beats(servers, read):
    primary, shadow = servers
    other = replace(POSTGRES, interval_s=0.3, variables={**POSTGRES.variables, "tables": ["items"]})
    ports = (shadow.port, primary.port)
    reader = read(target(POSTGRES, *ports), target(other, *ports, "other-1-s1"))
    for name in ("db-1-s1", "other-1-s1"):
        reader.until(is_close, name)
    until = time.monotonic() + 1.5
    while time.monotonic() < until:
        reader.take()
        assert max(one.lag_s for one in reader.last.values()) < 1.0
        time.sleep(0.02)


def test_who_has_no_subscription_has_no_copy(servers, read):
    port = servers[0].port
    reader = read(target(POSTGRES, port, port))
    assert reader.until(lambda one: not one.copied).reason == "there is no subscription yet"


def test_a_beat_of_before_is_as_old_as_the_primary_says(servers, read):
    """After a restart of the reader, while replication stands still."""
    primary, shadow = servers
    shadow.run("ALTER SUBSCRIPTION penumbra_t_db_1_s1 DISABLE")
    try:
        time.sleep(0.5)
        again = read(target(POSTGRES, shadow.port, primary.port))
        assert again.until(lambda one: one.lag_s is not None).lag_s >= 0.5
    finally:
        shadow.run("ALTER SUBSCRIPTION penumbra_t_db_1_s1 ENABLE")


def test_who_hangs_delays_no_other_reading_and_nobody_who_asks(servers, read):
    primary, shadow = servers
    with closing(socket.create_server((str(HERE), 0))) as silent:  # takes connections, and says nothing
        mute = int(silent.getsockname()[1])
        reader = read(
            target(POSTGRES, shadow.port, primary.port),
            target(POSTGRES, mute, primary.port, "db-1-s2"),
            target(REDIS, mute, mute, "db-1-s3"),
        )
        reader.until(is_close)
        before, began = reader.count["db-1-s1"], time.monotonic()
        while time.monotonic() < began + LIMIT_S + 0.5:
            asked = time.monotonic()
            reader.take()
            assert time.monotonic() - asked < 0.1
            time.sleep(0.05)
        assert reader.count["db-1-s1"] - before >= 15
        troubles = reader.source.troubles()
        assert {"db-1-s2", "db-1-s3", f"{HERE}:{mute}"} <= troubles.keys()
        assert "db-1-s1" not in troubles


def test_a_hung_primary_is_no_lag_of_nought(servers, read):
    primary, shadow = servers
    reader = read(target(POSTGRES, shadow.port, primary.port))
    reader.until(is_close)
    primary.signal(signal.SIGSTOP)
    try:
        assert reader.until(lambda one: one.lag_s > 3.0).copied
        assert reader.source.troubles()[f"{HERE}:{primary.port}"].startswith("no answer within")
    finally:
        primary.signal(signal.SIGCONT)
    reader.until(is_close, limit_s=20.0)


# ---- Redis ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def redises(tmp_path_factory) -> Iterator[tuple[Redis, Redis]]:
    folder, made = tmp_path_factory.mktemp("redis"), []
    clients = []
    try:
        for _ in range(2):
            port = free_port()
            command = ["redis-server", "--port", str(port), "--bind", str(HERE), "--save", ""]
            command += ["--repl-diskless-sync-delay", "0", "--dir", str(folder)]
            made.append(subprocess.Popen(command, executable=REDIS_SERVER, stdout=subprocess.DEVNULL))
            clients.append(Redis(host=str(HERE), port=port))
        until = time.monotonic() + 10.0
        while True:
            try:
                assert all(one.ping() for one in clients)
                break
            except ConnectionError:
                raise
            except Exception:
                assert time.monotonic() < until
                time.sleep(0.05)
        yield clients[0], clients[1]
    finally:
        for one in clients:
            one.close()
        for process in made:
            process.kill()
            process.wait()


def port_of(client: Redis) -> int:
    return int(client.connection_pool.connection_kwargs["port"])


def test_redis_lag_grows_while_the_shadow_stands_still_and_falls_after(redises, read):
    primary, shadow = redises
    reader = read(target(REDIS, port_of(shadow), port_of(primary)))
    assert reader.until(lambda one: not one.copied).reason == "it is no replica"
    shadow.replicaof(str(HERE), port_of(primary))
    reader.until(is_close)
    shadow.config_set("masterauth", "wrong")  # it can't come back by itself
    primary.config_set("requirepass", "secret")
    primary.auth("secret")
    primary.client_kill_filter(_type="replica")
    primary.set("key", "x" * 200_000)
    late = reader.until(lambda one: one.lag_s is not None and one.lag_s > 1.0)
    assert late.copied
    shadow.config_set("masterauth", "")
    primary.config_set("requirepass", "")
    reader.until(is_close, limit_s=20.0)


# ---- commands ---------------------------------------------------------------------------------


def command(lag: object) -> LagTarget:
    return target(Sync(SyncDriver.COMMAND, max_lag_s=5.0, interval_s=0.1, variables={"lag": lag}), 5, 6)


def test_a_command_tells_seconds_or_bytes_and_knows_whom_it_is_asked_about(read):
    asks = 'echo "$PENUMBRA_SHADOW_PORT.$PENUMBRA_PRIMARY_PORT"'
    assert read(command(asks)).until(lambda one: True).lag_s == 5.6
    assert read(command(["/bin/echo", "512B"])).until(lambda one: True).lag_bytes == 512


def test_until_it_first_succeeds_there_is_no_copy_and_after_that_a_failure_tells_nothing(read, tmp_path):
    done = tmp_path / "done"
    reader = read(command(f"test -e {done} || {{ echo 3 of 5 >&2; exit 4; }}; echo 0.5"))
    assert reader.until(lambda one: not one.copied).reason == "the lag command ended with 4: 3 of 5"
    done.touch()
    reader.until(lambda one: one.copied)
    done.unlink()
    until = time.monotonic() + 5.0
    while "db-1-s1" not in reader.source.troubles():
        assert time.monotonic() < until
        time.sleep(0.05)
    reader.take()
    assert reader.last["db-1-s1"].copied


def test_a_command_that_hangs_is_ended_with_all_that_it_started(read, tmp_path):
    started = tmp_path / "started"
    reader = read(command(f"sleep 77 & echo $! >> {started}; wait"))
    until = time.monotonic() + LIMIT_S + 5.0
    while "db-1-s1" not in reader.source.troubles():
        assert time.monotonic() < until
        time.sleep(0.05)
    pid = started.read_text().split()[0]
    while Path(f"/proc/{pid}").exists() and "Z" not in Path(f"/proc/{pid}/stat").read_text().split()[2]:
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.mark.parametrize("told", ["", "soon", "-1", "nan", "inf", "5 B x", "1e999"])
def test_nonsense_is_no_reading(told):
    with pytest.raises(ValueError, match="seconds, or bytes with a B, are allowed"):
        parsed(told)


def test_another_primary_is_another_reading(read):
    one = command("echo 1")
    reader = read(one)
    reader.until(lambda lag: lag.lag_s == 1.0)
    reader.source.watch({one.shadow: replace(one, sync=replace(one.sync, variables={"lag": "echo 2"}))})
    reader.until(lambda lag: lag.lag_s == 2.0)
    reader.source.watch({})
