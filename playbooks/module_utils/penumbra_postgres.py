# SPDX-License-Identifier: Apache-2.0
"""At the primary of a copy by logical replication (PostgreSQL from 14 on): publication, slots, heartbeat.

The publication is made first and dropped last. Its comment says whose it is; without it nothing is touched.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass

import psycopg
from ansible.module_utils.penumbra_sync import RefusedError, UnreachableError, password_in
from psycopg import sql

CONNECT_S = 5
STATEMENT_S = 60
RELEASE_S = 20.0
POLL_S = 0.1
LEAST_VERSION = 14
_LOCK = 0x70656E75
"""Of pg_advisory_xact_lock: two runs don't make or drop what shadows share at once."""


@dataclass(frozen=True)
class Login:
    """Where a server is, and as whom."""

    address: str
    port: int
    database: str
    user: str
    password_file: str | None
    sslmode: str

    @contextlib.contextmanager
    def connected(self, database: str | None = None) -> Iterator[psycopg.Connection]:
        """A session whose statements end with us, and in time. Raises UnreachableError, if lost, too."""
        try:
            connection = psycopg.connect(
                host=self.address,
                port=self.port,
                dbname=database or self.database,
                user=self.user,
                password=password_in(self.password_file),
                sslmode=self.sslmode,
                connect_timeout=CONNECT_S,
                application_name="penumbra",
                autocommit=True,
            )
        except psycopg.OperationalError as error:
            raise UnreachableError(self.address, self.port, error) from None
        with connection:
            settings = {
                "statement_timeout": f"{STATEMENT_S}s",
                "lock_timeout": "10s",
                "client_connection_check_interval": "1s",
                "default_transaction_read_only": "off",
                "search_path": "",
            }
            try:
                for name, value in settings.items():
                    connection.execute("SELECT set_config(%s, %s, false)", (name, value))
                yield connection
            except psycopg.OperationalError as error:
                if not connection.broken:  # another server's, or a statement's
                    raise
                raise UnreachableError(self.address, self.port, error) from None

    @property
    def conninfo(self) -> str:
        """For the shadow's server, which keeps it where only superusers read."""
        return psycopg.conninfo.make_conninfo(
            host=self.address,
            port=self.port,
            dbname=self.database,
            user=self.user,
            password=password_in(self.password_file),
            sslmode=self.sslmode,
            connect_timeout=CONNECT_S,
        )


@dataclass(frozen=True)
class Mark:
    """What the publication's comment says: for whom it is."""

    penumbra: str
    """The instance."""
    shadow: str
    system: str
    """The identifier of the shadow's server, with which the names of slots end that copy tables first."""
    address: str
    port: int


def rows(connection: psycopg.Connection, query: str, *arguments: object) -> list[tuple]:
    return connection.execute(query, arguments).fetchall()


def one(connection: psycopg.Connection, query: str, *arguments: object) -> object:
    """The first column of the first row; None: there is none."""
    found = connection.execute(query, arguments).fetchone()
    return found[0] if found else None


def system_identifier(connection: psycopg.Connection) -> str:
    return str(one(connection, "SELECT system_identifier FROM pg_control_system()"))


def mark_of(connection: psycopg.Connection, name: str) -> Mark | None:
    """None: there is no publication of this name that is ours."""
    comment = one(
        connection,
        "SELECT obj_description(oid, 'pg_publication') FROM pg_publication WHERE pubname = %s",
        name,
    )
    try:
        return Mark(**json.loads(str(comment)))
    except (ValueError, TypeError):
        return None


# ---- what must be so before anything is made ---------------------------------------------


def check(connection: psycopg.Connection, name: str, mark: Mark | None) -> None:
    """Raises RefusedError."""
    version = connection.info.server_version // 10000
    if version < LEAST_VERSION:
        raise RefusedError(f"the primary is PostgreSQL {version}: {LEAST_VERSION} is the oldest that will do")
    if not one(connection, "SELECT rolsuper FROM pg_roles WHERE rolname = current_user"):
        raise RefusedError(
            f"{connection.info.user} is no superuser on the primary, and can't read the roles that clients "
            "log in as"
        )
    level = one(connection, "SELECT current_setting('wal_level')")
    if level != "logical":
        raise RefusedError(
            f"the primary has wal_level = {level}: set it to logical and restart PostgreSQL, once"
        )
    if mark is None and one(connection, "SELECT true FROM pg_publication WHERE pubname = %s", name):
        raise RefusedError(f"the primary has a publication {name} that is not ours: rename or drop it")
    taken = one(connection, "SELECT true FROM pg_replication_slots WHERE slot_name = %s", name)
    if mark is None and taken:
        raise RefusedError(f"the primary has a replication slot {name} that is not ours: drop it")
    _check_room(connection, 0 if taken else 1)


def _check_room(connection: psycopg.Connection, slots: int) -> None:
    """One slot and sender stay; another one at least copies tables first."""
    for setting, used, needed in (
        ("max_replication_slots", "pg_replication_slots", slots + 1),
        ("max_wal_senders", "pg_stat_replication", 2),
    ):
        most = int(str(one(connection, "SELECT current_setting(%s)", setting)))
        there = int(str(one(connection, f"SELECT count(*) FROM {used}")))  # noqa: S608
        if most - there < needed:
            raise RefusedError(
                f"the primary has {setting} = {most}, and {there} are taken: {needed} more are needed"
            )


ORDINARY = """
    SELECT c.oid, n.nspname, c.relname
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p') AND NOT c.relispartition AND c.relpersistence = 'p'
      AND n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', 'penumbra')
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass
                      AND d.objid = c.oid AND d.deptype = 'e')
"""
WITHOUT_IDENTITY = """
    WITH RECURSIVE family (oid) AS (
        SELECT unnest(%s::oid[])
        UNION SELECT i.inhrelid FROM pg_inherits i JOIN family f ON i.inhparent = f.oid)
    SELECT c.oid::regclass::text
    FROM family JOIN pg_class c USING (oid)
    WHERE c.relkind = 'r' AND c.relreplident <> 'f' AND NOT EXISTS (
        SELECT FROM pg_index x WHERE x.indrelid = c.oid AND x.indisvalid
        AND (c.relreplident = 'd' AND x.indisprimary OR c.relreplident = 'i' AND x.indisreplident))
    ORDER BY 1
"""


def tables_of(connection: psycopg.Connection, wanted: list[str]) -> list[tuple[str, str]]:
    """(schema, name) of what is copied: those that were named, or all but extensions' own.

    Raises RefusedError for one whose UPDATE and DELETE would fail on the primary as soon as it is published.
    """
    there = {oid: (schema, name) for oid, schema, name in rows(connection, ORDINARY)}
    if wanted:
        named = {one: _table(connection, one) for one in wanted}
        for name, oid in named.items():
            if oid not in there:
                raise RefusedError(
                    f"tables: {name} is no table of the primary that can be copied (SCHEMA.TABLE; no "
                    "partition, view, temporary or unlogged table)"
                )
        there = {oid: there[oid] for oid in named.values() if oid is not None}
    bare = [name for (name,) in rows(connection, WITHOUT_IDENTITY, list(there))]
    if bare:
        more = f" and {len(bare) - 3} more" if bare[3:] else ""
        raise RefusedError(
            f"{', '.join(bare[:3])}{more}: without a primary key UPDATE and DELETE would fail on the primary "
            "while it is copied: add one, or ALTER TABLE ... REPLICA IDENTITY, or name other tables in tables"
        )
    return sorted(there.values())


def _table(connection: psycopg.Connection, name: str) -> int | None:
    schema, _, table = name.rpartition(".")
    return one(
        connection,
        "SELECT c.oid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE n.nspname = %s AND c.relname = %s",
        schema or "public",
        table,
    )


# ---- making and dropping -----------------------------------------------------------------


def publish(connection: psycopg.Connection, name: str, mark: Mark, tables: list[tuple[str, str]]) -> None:
    """The heartbeat and the publication, or neither."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        _make_heartbeat(connection, mark.penumbra)
        published = sql.SQL(", ").join(
            sql.Identifier(*table) for table in [("penumbra", "heartbeat"), *tables]
        )
        connection.execute(
            sql.SQL("CREATE PUBLICATION {} FOR TABLE {}").format(sql.Identifier(name), published)
        )
        connection.execute(
            sql.SQL("COMMENT ON PUBLICATION {} IS {}").format(
                sql.Identifier(name), sql.Literal(json.dumps(asdict(mark)))
            )
        )


def _make_heartbeat(connection: psycopg.Connection, instance: str) -> None:
    if one(connection, "SELECT to_regclass('penumbra.heartbeat')") is None:
        every = one(connection, "SELECT pubname FROM pg_publication WHERE puballtables")
        if every:
            raise RefusedError(
                f"publication {every} is for all tables, and its subscribers would fail for want of "
                "penumbra.heartbeat (instance text PRIMARY KEY, at timestamptz NOT NULL): create it on them, "
                "then on the primary"
            )
        connection.execute("CREATE SCHEMA IF NOT EXISTS penumbra")
        connection.execute(
            "CREATE TABLE penumbra.heartbeat (instance text PRIMARY KEY, at timestamptz NOT NULL)"
        )
    connection.execute(
        "INSERT INTO penumbra.heartbeat VALUES (%s, clock_timestamp()) ON CONFLICT DO NOTHING", (instance,)
    )


def make_slot(connection: psycopg.Connection, name: str) -> None:
    """Waits for all transactions that write now to end; raises RefusedError if that takes too long."""
    if one(connection, "SELECT true FROM pg_replication_slots WHERE slot_name = %s", name):
        return
    try:
        connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (name,))
    except psycopg.errors.QueryCanceled:
        raise RefusedError(
            f"no replication slot within {STATEMENT_S} s: a transaction on the primary is open so long "
            "(pg_stat_activity.xact_start)"
        ) from None


SLOT_LIVES = (
    "SELECT true FROM pg_replication_slots WHERE slot_name = %s AND wal_status IS DISTINCT FROM 'lost'"
)
SLOTS = """
    SELECT slot_name, active_pid FROM pg_replication_slots
    WHERE slot_type = 'logical' AND plugin = 'pgoutput' AND database = current_database()
      AND (slot_name = %s OR slot_name ~ ('^pg_[0-9]+_sync_[0-9]+_' || %s || '$'))
"""
SENDERS = """
    SELECT pid FROM pg_stat_replication
    WHERE application_name = %s OR application_name ~ ('^pg_[0-9]+_sync_[0-9]+_' || %s || '$')
"""


def release(connection: psycopg.Connection, name: str, system: str) -> None:
    """Drops the shadow's slots: the one that stays, and those by which tables are first copied.

    Its server may be alive and connect again, so it is over when nothing has come for a while.
    """
    deadline = time.monotonic() + RELEASE_S
    calm = 0
    while calm < 2:
        slots = rows(connection, SLOTS, name, system)
        senders = {pid for (pid,) in rows(connection, SENDERS, name, system)} | {
            pid for _, pid in slots if pid
        }
        calm = 0 if slots or senders else calm + 1
        for pid in senders:
            connection.execute("SELECT pg_terminate_backend(%s)", (pid,))
        for slot, _ in slots:
            with contextlib.suppress(psycopg.errors.ObjectInUse, psycopg.errors.UndefinedObject):
                connection.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
        if time.monotonic() > deadline:
            raise RefusedError(f"slots {[slot for slot, _ in slots]} are in use again and again")
        time.sleep(POLL_S)


def unpublish(connection: psycopg.Connection, name: str, instance: str) -> None:
    """The publication; with the instance's last one its heartbeat; with the last of all table and schema."""
    with connection.transaction():
        connection.execute("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        connection.execute(sql.SQL("DROP PUBLICATION {}").format(sql.Identifier(name)))
        others = [
            mark_of(connection, its) for (its,) in rows(connection, "SELECT pubname FROM pg_publication")
        ]
        if any(other is not None and other.penumbra == instance for other in others):
            return
        if one(connection, "SELECT to_regclass('penumbra.heartbeat')") is not None:
            connection.execute("DELETE FROM penumbra.heartbeat WHERE instance = %s", (instance,))
            if not one(connection, "SELECT true FROM penumbra.heartbeat"):
                connection.execute("DROP TABLE penumbra.heartbeat")
        schema = one(connection, "SELECT oid FROM pg_namespace WHERE nspname = 'penumbra'")
        if schema and not one(connection, "SELECT true FROM pg_class WHERE relnamespace = %s", schema):
            connection.execute("DROP SCHEMA penumbra")
