# SPDX-License-Identifier: Apache-2.0
"""A PostgreSQL on a lab's host, with a table that is written to and a read that takes its time."""

from __future__ import annotations

import secrets
import shutil
import signal
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import psycopg

from controlplane.lab.lab import Lab
from controlplane.lab.network import LabError
from controlplane.lab.topology import AP

BIN = Path("/usr/lib/postgresql/15/bin")
PORT = 5432
DATABASE = "shop"
SYNC_USER, READER, WRITER = "penumbra", "reader", "writer"
ROWS = 50_000
"""There before the first write, of some 120 bytes each: a copy takes its time."""
PLACES = 4
"""So many reads are worked on at once; the others wait."""
WORK_S = 0.1
"""Of one read."""

_NOBODYS = ["env", "--chdir=/", "setpriv", "--reuid", "postgres", "--regid", "postgres", "--clear-groups"]
# Cleared by the change of user above, if it was set before.
_AS_POSTGRES = [*_NOBODYS, "--pdeathsig", "KILL"]
# A copy that was cut off is missed, and begun again, within seconds. Shared memory that a killed server
# leaves is in its folder.
_SETTINGS = """
wal_level = logical
fsync = off
max_connections = 300
max_slot_wal_keep_size = 1GB
wal_retrieve_retry_interval = 300ms
dynamic_shared_memory_type = mmap
"""
_ACCESS = f"""
host all {SYNC_USER} 0.0.0.0/0 scram-sha-256
host all {READER},{WRITER} 0.0.0.0/0 trust
"""
# The shadow's empty directory becomes a server's, with the original's settings.
_PREPARE = """
%s/initdb --pgdata="$0" --username=%s --auth=scram-sha-256 --pwfile="$2" --no-sync
cp "$1"/postgresql.conf "$1"/pg_hba.conf "$0"
"""
# A read's work is simulated: it waits for one of few places, and holds it for a while, as with a disk.
# A machine that is shared by all hosts of the lab could not show what one of them can do.
_TABLES = f"""
CREATE ROLE {READER} LOGIN;
CREATE ROLE {WRITER} LOGIN;
CREATE TABLE sales (number bigint PRIMARY KEY, body text NOT NULL);
INSERT INTO sales SELECT -n, repeat('x', 80) FROM generate_series(1, {ROWS}) AS n;
GRANT SELECT ON sales TO {READER};
GRANT SELECT, INSERT ON sales TO {WRITER};
CREATE FUNCTION work() RETURNS void LANGUAGE plpgsql AS $$
DECLARE is_free boolean := false;
BEGIN
    FOR place IN 1..{PLACES} LOOP
        is_free := pg_try_advisory_xact_lock(place);
        EXIT WHEN is_free;
    END LOOP;
    IF NOT is_free THEN
        PERFORM pg_advisory_xact_lock(1 + floor(random() * {PLACES})::int);
    END IF;
    PERFORM pg_sleep({WORK_S});
END $$;
"""  # noqa: S608 - numbers of ours
READ = """
SELECT (SELECT max(number) FROM sales), extract(epoch FROM clock_timestamp())::float8,
    host(inet_server_addr()), work()::text
"""
"""The newest number, when it was looked up, by whom; all as of the statement's begin."""
WRITE = "INSERT INTO sales (number, body) VALUES (%s, repeat('x', 80))"
_LEFT = """
SELECT 'slot ' || slot_name FROM pg_replication_slots WHERE starts_with(slot_name::text, 'penumbra_')
UNION ALL SELECT 'publication ' || pubname FROM pg_publication WHERE starts_with(pubname::text, 'penumbra_')
UNION ALL SELECT 'subscription ' || subname FROM pg_subscription
UNION ALL SELECT 'sender ' || application_name FROM pg_stat_replication
UNION ALL SELECT 'schema ' || nspname FROM pg_namespace WHERE nspname = 'penumbra'
UNION ALL SELECT 'role ' || rolname FROM pg_roles
    WHERE NOT starts_with(rolname::text, 'pg_') AND rolname NOT IN ({})
"""


def require() -> None:
    """Raises ``LabError`` with the command that gets what is missing."""
    missing = [name for name in ("initdb", "postgres", "pg_dump") if not (BIN / name).exists()]
    if missing:
        raise LabError(f"PostgreSQL 15 is missing ({BIN / missing[0]}): apt-get install postgresql-15")


class Database:
    """The original; ``Lab.down`` ends it, too."""

    def __init__(self, lab: Lab, host: str) -> None:
        self._lab, self._host = lab, host
        self._folder = lab.folder / "original"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def data_dir(self) -> Path:
        """Where shadows have their data."""
        return self._lab.folder / "shadows"

    @property
    def _password(self) -> Path:
        return self._lab.folder / "password"

    @property
    def _password_of_hosts(self) -> Path:
        return self._lab.folder / "host-password"

    @property
    def sync_variables(self) -> Mapping[str, object]:
        return {"database": DATABASE, "user": SYNC_USER, "password_file": str(self._password)}

    @property
    def target_variables(self) -> Mapping[str, object]:
        """How a shadow's process differs from the original's."""
        prepare = ["/bin/sh", "-ec", _PREPARE % (BIN, SYNC_USER), "{directory}", "{original}"]
        return {
            "address_options": ["--listen_addresses"],
            "port_options": ["--port"],
            "fresh_directory": {"options": ["-D"], "prepare": [*prepare, str(self._password_of_hosts)]},
        }

    def make(self) -> None:
        """An empty server, not answering yet. Raises ``LabError``."""
        password = secrets.token_hex(16)
        for path, owner in ((self._password, "root"), (self._password_of_hosts, "postgres")):
            path.touch(mode=0o600)
            path.write_text(f"{password}\n", encoding="utf-8")
            shutil.chown(path, owner)
        self._folder.mkdir(mode=0o700)
        shutil.chown(self._folder, "postgres", "postgres")
        made = [str(BIN / "initdb"), f"--pgdata={self._folder}", f"--username={SYNC_USER}", "--no-sync"]
        made += ["--auth=scram-sha-256", f"--pwfile={self._password_of_hosts}", "--encoding=UTF8"]
        self._lab.run(self._host, [*_AS_POSTGRES, *made, "--locale=C"])
        for name, text in (("postgresql.conf", _SETTINGS), ("pg_hba.conf", _ACCESS)):
            with (self._folder / name).open("a", encoding="utf-8") as file:
                file.write(text)
        address = self._lab.topology.node(self._host).address
        server = [str(BIN / "postgres"), "-D", str(self._folder), "-k", ""]
        server += [f"--listen_addresses={address}", f"--port={PORT}"]
        self._process = self._lab.popen(self._host, [*_AS_POSTGRES, *server], label="database")

    def answers(self) -> bool:
        """Raises ``LabError``: it ended."""
        if self._process is None or self._process.poll() is not None:
            raise LabError(f"PostgreSQL ended: {self._lab.tail('database')}")
        try:
            self._connected("postgres").close()
        except psycopg.OperationalError:
            return False
        return True

    def fill(self) -> None:
        with self._connected("postgres") as connection:
            connection.execute(f"CREATE DATABASE {DATABASE}")
        with self._connected() as connection:
            connection.execute(_TABLES)

    def numbers(self) -> frozenset[int]:
        """Of all that was written."""
        with self._connected() as connection:
            rows = connection.execute("SELECT number FROM sales WHERE number > 0").fetchall()
        return frozenset(row[0] for row in rows)

    def left(self) -> list[str]:
        """What copies left here: at the end nothing."""
        own = ", ".join(f"'{name}'" for name in (SYNC_USER, READER, WRITER))
        with self._connected() as connection:
            return [row[0] for row in connection.execute(_LEFT.format(own)).fetchall()]

    def stop(self) -> None:
        """At once, as in a crash: nobody needs its files any more."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGQUIT)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5)

    def _connected(self, database: str = DATABASE) -> psycopg.Connection:
        with self._lab.entered(AP):
            return psycopg.connect(
                host=str(self._lab.topology.node(self._host).address),
                port=PORT,
                user=SYNC_USER,
                password=self._password.read_text(encoding="utf-8").strip(),
                dbname=database,
                autocommit=True,
                connect_timeout=5,
            )
