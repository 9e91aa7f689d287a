# SPDX-License-Identifier: Apache-2.0
"""A PostgreSQL on a lab's first host, that has clients and shadows on the second."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import psycopg

from controlplane import model
from controlplane.lab.topology import Topology
from tests.netns.engines import PASSWORD, Site, Writers
from tests.netns.steered import eventually

BIN = Path("/usr/lib/postgresql/15/bin")
PORT = 5432
SETTINGS = """
wal_level = logical
fsync = off
max_connections = 40
log_statement = all
wal_retrieve_retry_interval = 300ms
max_slot_wal_keep_size = 1GB
"""
ACCESS = "host all all 0.0.0.0/0 scram-sha-256\n"
PREPARE = """
%s/initdb --pgdata="$0" --username=penumbra --auth=scram-sha-256 --pwfile="$2" --no-sync
cp "$1"/postgresql.conf "$1"/pg_hba.conf "$0"
"""
TABLES = """
CREATE ROLE app LOGIN PASSWORD 'app';
CREATE ROLE boss LOGIN SUPERUSER PASSWORD 'boss';
CREATE ROLE reader LOGIN PASSWORD 'reader';
ALTER ROLE reader SET search_path = "$user", stock, public;
CREATE SCHEMA stock AUTHORIZATION app;
SET ROLE app;
CREATE TABLE stock.items (id bigint PRIMARY KEY, body text, serial bigserial);
CREATE TABLE stock.parts (id int, kind int, PRIMARY KEY (id, kind)) PARTITION BY LIST (kind);
CREATE TABLE stock.parts_1 PARTITION OF stock.parts FOR VALUES IN (1);
INSERT INTO stock.parts VALUES (1, 1);
CREATE UNLOGGED TABLE stock.cache (id int);
CREATE FUNCTION stock.add(n bigint) RETURNS void SECURITY DEFINER LANGUAGE sql
    AS 'INSERT INTO stock.items VALUES (n, ''by function'')';
CREATE TABLE stock.private (owner text PRIMARY KEY);
INSERT INTO stock.private VALUES ('somebody');
ALTER TABLE stock.private ENABLE ROW LEVEL SECURITY;
GRANT USAGE ON SCHEMA stock TO reader;
GRANT ALL ON ALL TABLES IN SCHEMA stock TO reader;
RESET ROLE;
CREATE PUBLICATION somebody_elses FOR TABLE stock.items;
"""


@dataclass
class Primary:
    """A PostgreSQL that runs as its own user, on the first host."""

    site: Site
    process: subprocess.Popen[bytes] | None = None
    before: list[str] = field(default_factory=list)

    @property
    def data(self) -> Path:
        return self.site.folder / "primary"

    def make(self) -> None:
        self.data.mkdir(mode=0o700)
        subprocess.run(["chown", "postgres:", self.data], check=True)
        pwfile = f"--pwfile={self.site.folder}/host-password"
        made = self.site.start(
            *(f"{BIN}/initdb", "-D", str(self.data), "-U", "penumbra", pwfile),
            *("--auth=scram-sha-256", "--no-sync", "--encoding=UTF8", "--locale=C"),
        )
        assert made.wait() == 0
        with (self.data / "postgresql.conf").open("a") as settings:
            settings.write(SETTINGS)
        with (self.data / "pg_hba.conf").open("a") as access:
            access.write(ACCESS)
        self.start()
        with self.connected(database="postgres") as connection:
            connection.execute("CREATE DATABASE shop")
        with self.connected() as connection:
            connection.execute(TABLES)
            connection.execute("SELECT pg_create_logical_replication_slot('somebody_elses', 'pgoutput')")
        self.before = self.holds()

    def start(self) -> None:
        self.process = self.site.start(
            *(f"{BIN}/postgres", "-D", str(self.data), "-k", ""),
            *(f"--listen_addresses={self.site.address}", f"--port={PORT}"),
        )

        def answers() -> bool:
            try:
                with self.connected(database="postgres"):
                    return True
            except psycopg.OperationalError:
                return False

        eventually(answers)

    def end(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """SIGQUIT: at once, as a crash."""
        if self.process is not None:
            self.process.send_signal(how)
            self.process.wait()

    def connected(self, user: str = "penumbra", database: str = "shop") -> psycopg.Connection:
        return self.connected_to(str(self.site.address), PORT, user, database)

    def connected_to(self, host: str, port: int, user: str, database: str = "shop") -> psycopg.Connection:
        with self.site.at_access_point():
            return psycopg.connect(
                host=host,
                port=port,
                user=user,
                password=PASSWORD if user == "penumbra" else user,
                dbname=database,
                autocommit=True,
                connect_timeout=5,
            )

    def holds(self) -> list[str]:
        """What a copy could leave behind."""
        with self.connected() as connection:
            return sorted(
                str(row)
                for query in (
                    "SELECT 'slot', slot_name FROM pg_replication_slots",
                    "SELECT 'sender', application_name FROM pg_stat_replication",
                    "SELECT 'publication', pubname FROM pg_publication",
                    "SELECT 'role', rolname FROM pg_roles",
                    "SELECT 'schema', nspname FROM pg_namespace",
                    "SELECT 'relation', oid::regclass::text FROM pg_class WHERE relkind IN ('r', 'v', 'S')",
                    "SELECT 'database', datname, datacl::text FROM pg_database",
                    "SELECT 'subscription', subname FROM pg_subscription",
                    "SELECT 'identity', relname FROM pg_class WHERE relreplident NOT IN ('d', 'n')",
                )
                for row in connection.execute(query)
            )

    def writers(self) -> Writers:
        sessions: list[psycopg.Connection] = []

        def write(number: int) -> None:
            if not sessions or sessions[0].closed:
                sessions[:] = [self.connected(user="app")]
            sessions[0].execute("INSERT INTO stock.items VALUES (%s, 'x')", (number,))

        return Writers(self.site, write, [psycopg.OperationalError])


@contextmanager
def made(topology: Topology) -> Iterator[Primary]:
    """One that runs. ``site.sync`` and ``site.variables`` of it are what a service would be given."""
    sync = model.Sync(model.SyncDriver.POSTGRES, max_lag_s=5.0)
    prepare = ["/bin/sh", "-ec", PREPARE % BIN, "{directory}", "{original}"]
    site = Site(topology, sync, PORT, {})
    site.sync = replace(
        sync,
        variables={"database": "shop", "user": "penumbra", "password_file": str(site.folder / "password")},
    )
    site.variables = {
        "address_options": ["--listen_addresses"],
        "port_options": ["--port"],
        "fresh_directory": {"options": ["-D"], "prepare": [*prepare, str(site.folder / "host-password")]},
    }
    primary = Primary(site)
    try:
        primary.make()
        yield primary
    finally:
        primary.end()
        site.close()
