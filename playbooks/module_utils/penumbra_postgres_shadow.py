# SPDX-License-Identifier: Apache-2.0
"""At the shadow of a copy by logical replication: roles, database, schema, privileges, subscription.

Each step can be run again. The schema comes in one transaction, and with it penumbra.heartbeat: where that
is, the schema is complete.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
from ansible.module_utils.penumbra_postgres import Login, one, rows
from ansible.module_utils.penumbra_sync import RefusedError, password_in
from psycopg import sql

WRITERS = ("pg_write_all_data", "pg_write_server_files", "pg_execute_server_program", "pg_read_all_data")
"""Roles whose members could write past a table's privileges; and the one whose members would read tables that
are not copied, and take them for empty."""


def quiet(connection: psycopg.Connection) -> None:
    """What follows holds passwords and verifiers: the server's logs and statistics must not.

    And event triggers that came with the schema don't fire.
    """
    for name, value in (
        ("log_statement", "none"),
        ("log_min_duration_statement", "-1"),
        ("log_min_duration_sample", "-1"),
        ("log_transaction_sample_rate", "0"),
        ("log_min_error_statement", "panic"),
        ("pg_stat_statements.track", "none"),
        ("pgaudit.log", "none"),
        ("session_replication_role", "replica"),
    ):
        connection.execute("SELECT set_config(%s, %s, false)", (name, value))


# ---- roles -------------------------------------------------------------------------------

ROLES = """
    SELECT rolname, rolinherit, rolcanlogin, rolbypassrls OR rolsuper, rolconnlimit, rolpassword,
           rolvaliduntil::text
    FROM pg_authid WHERE rolname !~ '^pg_' AND rolname <> current_user ORDER BY 1
"""
MEMBERS = """
    SELECT g.rolname, m.rolname FROM pg_auth_members a
    JOIN pg_roles g ON g.oid = a.roleid JOIN pg_roles m ON m.oid = a.member ORDER BY 1, 2
"""
ALL_READERS = """
    SELECT rolname FROM pg_roles r WHERE rolname !~ '^pg_' AND rolname <> current_user
    AND (rolsuper OR pg_has_role(oid, 'pg_read_all_data', 'USAGE')) ORDER BY 1
"""


def copy_roles(primary: psycopg.Connection, shadow: psycopg.Connection) -> None:
    """Clients log in as they do on the primary; but only our own user may do more than read."""
    with shadow.transaction():
        there = {name for (name,) in rows(shadow, "SELECT rolname FROM pg_roles")}
        first = one(shadow, "SELECT rolname FROM pg_roles WHERE oid = 10 AND rolname <> current_user")
        if first:
            # The one that was made with the server can't cease to be a superuser.
            shadow.execute(sql.SQL("ALTER ROLE {} NOLOGIN").format(sql.Identifier(str(first))))
        for name, inherit, login, bypass, limit, password, until in rows(primary, ROLES):
            if name == first:
                continue
            if name not in there:
                shadow.execute(sql.SQL("CREATE ROLE {}").format(sql.Identifier(name)))
            kinds = " ".join(
                ("" if yes else "NO") + kind
                for kind, yes in (("INHERIT", inherit), ("LOGIN", login), ("BYPASSRLS", bypass))
            )
            shadow.execute(
                sql.SQL(
                    "ALTER ROLE {} NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION "
                    + kinds
                    + " CONNECTION LIMIT {} PASSWORD {} VALID UNTIL {}"
                ).format(
                    sql.Identifier(name),
                    sql.Literal(limit),
                    sql.Literal(password),
                    sql.Literal(until or "infinity"),
                )
            )
        for group, member in rows(primary, MEMBERS):
            if group not in WRITERS and first not in (group, member):
                shadow.execute(
                    sql.SQL("GRANT {} TO {}").format(sql.Identifier(group), sql.Identifier(member))
                )


SETTINGS = """
    SELECT r.rolname, d.datname, c.one FROM pg_db_role_setting s
    LEFT JOIN pg_roles r ON r.oid = s.setrole LEFT JOIN pg_database d ON d.oid = s.setdatabase,
    unnest(s.setconfig) c (one)
    WHERE s.setdatabase = 0 OR d.datname = current_database()
"""


def copy_settings(primary: psycopg.Connection, shadow: psycopg.Connection) -> list[str]:
    """What ALTER ROLE ... SET and ALTER DATABASE ... SET have set; those that the shadow lacks are said."""
    refused = []
    for role, database, text in rows(primary, SETTINGS):
        name, _, value = text.partition("=")
        if name == "default_transaction_read_only":
            continue
        whom = (
            sql.SQL("DATABASE {}").format(sql.Identifier(database))
            if role is None
            else sql.SQL("ROLE {}").format(sql.Identifier(role))
        )
        if role is not None and database is not None:
            whom += sql.SQL(" IN DATABASE {}").format(sql.Identifier(database))
        try:
            with shadow.transaction():
                shadow.execute("SELECT set_config(%s, %s, true)", (name, value))
                shadow.execute(
                    sql.SQL("ALTER {} SET {} FROM CURRENT").format(
                        whom, sql.SQL(".").join(sql.Identifier(part) for part in name.split("."))
                    )
                )
        except psycopg.Error as error:
            refused.append(f"setting {name} of {role or database} is not copied: {error}")
    return refused


# ---- database and schema -----------------------------------------------------------------


def make_database(primary: psycopg.Connection, shadow: Login) -> None:
    """One like the primary's, unless there is one."""
    wanted = "SELECT pg_encoding_to_char(encoding), datcollate, datctype FROM pg_database WHERE datname = %s"
    (like,) = rows(primary, wanted, shadow.database)
    with shadow.connected("postgres") as connection:
        found = rows(connection, wanted, shadow.database)
        if found and found[0] != like:
            raise RefusedError(
                f"the shadow's database {shadow.database} has encoding and locale {found[0]}, "
                f"the primary's {like}"
            )
        if not found:
            encoding, collate, ctype = (sql.Literal(one) for one in like)
            connection.execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE template0 ENCODING {} LC_COLLATE {} LC_CTYPE {}").format(
                    sql.Identifier(shadow.database), encoding, collate, ctype
                )
            )


@contextlib.contextmanager
def passfile(*logins: Login) -> Iterator[dict[str, str]]:
    """An environment with which PostgreSQL's programs log in: passwords are in a file that only we read."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "pass"
        path.touch(mode=0o600)
        lines = [
            f"*:{login.port}:*:*:"
            + (password_in(login.password_file) or "").replace("\\", "\\\\").replace(":", "\\:")
            for login in logins
            if login.password_file
        ]
        path.write_text("\n".join(lines))
        options = "-c default_transaction_read_only=off -c client_connection_check_interval=1s"
        yield {**os.environ, "PGPASSFILE": str(path), "PGOPTIONS": options, "PGCONNECT_TIMEOUT": "5"}


def program(name: str, version: int) -> str:
    """The one of the server's version (Debian's place), or that on the PATH."""
    own = Path(f"/usr/lib/postgresql/{version}/bin/{name}")
    found = str(own) if own.exists() else shutil.which(name)
    if found is None:
        raise RefusedError(f"{name} is missing here: install postgresql-client-{version}")
    return found


def copy_schema(primary: Login, shadow: Login, version: int) -> None:
    """By pg_dump, all or nothing. Not publications and subscriptions: they are the primary's own."""
    how = ["--format=custom", "--schema-only", "--no-publications", "--no-subscriptions", "--no-tablespaces"]
    how.append("--lock-wait-timeout=30s")
    into = ["--single-transaction", "--exit-on-error"]
    with passfile(primary) as from_primary, passfile(shadow) as to_shadow:
        dump = subprocess.Popen(
            [program("pg_dump", version), *how, *where(primary)],
            env={**from_primary, "PGSSLMODE": primary.sslmode},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        restore = subprocess.run(
            [program("pg_restore", version), *into, *where(shadow)],
            env={**to_shadow, "PGSSLMODE": shadow.sslmode},
            stdin=dump.stdout,
            capture_output=True,
            check=False,
        )
        said = dump.communicate()[1]
    if dump.returncode:
        raise RefusedError(f"pg_dump of the primary's schema: {last_words(said)}")
    if restore.returncode:
        raise RefusedError(f"the primary's schema can't be made on the shadow: {last_words(restore.stderr)}")


def where(login: Login) -> list[str]:
    target = ["--host", login.address, "--port", str(login.port), "--username", login.user, "--no-password"]
    return [*target, "--dbname", login.database]


def last_words(said: bytes) -> str:
    lines = [line for line in said.decode(errors="replace").splitlines() if "rror" in line]
    return " ".join(lines[:2])[:300] or "it said nothing"


def has_schema(shadow: psycopg.Connection) -> bool:
    """Raises RefusedError if other tables are there."""
    if one(shadow, "SELECT to_regclass('penumbra.heartbeat')") is not None:
        return True
    stray = one(
        shadow,
        "SELECT c.oid::regclass::text FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace "
        "WHERE c.relkind IN ('r', 'p') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' "
        "AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass "
        "AND d.objid = c.oid AND d.deptype = 'e')",
    )
    if stray:
        raise RefusedError(f"the shadow's database has a table {stray}: it must be empty, for a copy to come")
    return False


def copy_sequences(primary: psycopg.Connection, shadow: psycopg.Connection) -> None:
    """As they stand now: they are not replicated, and nobody draws from them on the shadow."""
    for name, value in rows(
        primary,
        "SELECT format('%%I.%%I', schemaname, sequencename), last_value FROM pg_sequences "
        "WHERE last_value IS NOT NULL",
    ):
        shadow.execute("SELECT setval(to_regclass(%s), %s)", (name, value))


# ---- what clients may do -----------------------------------------------------------------

OWNED = """
    SELECT c.oid, n.nspname, c.relname, c.relkind, r.rolname, c.relrowsecurity AND NOT c.relforcerowsecurity
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace JOIN pg_roles r ON r.oid = c.relowner
    WHERE c.relkind IN ('r', 'p', 'm', 'f', 'S') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
      AND r.rolname <> current_user
    ORDER BY c.relkind = 'S', c.oid
"""
NOT_MINE = "SELECT pg_get_userbyid(relowner) <> current_user FROM pg_class WHERE oid = to_regclass(%s)"
SCHEMAS = """
    SELECT nspname, rolname FROM pg_namespace JOIN pg_roles r ON r.oid = nspowner
    WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
"""
UNCOPIED = """
    SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'm') AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
      AND NOT EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_class'::regclass
                      AND d.objid = c.oid AND d.deptype = 'e')
"""


def only_read(
    primary: psycopg.Connection, shadow: psycopg.Connection, database: str, copied: list[tuple[str, str]]
) -> None:
    """Whatever a client sets in its session, it can't write; and what is not copied can't be read.

    A session may switch read-only transactions off, an owner may grant itself what was taken, and nothing
    stops a superuser: so all is owned by our own user, and only that is a superuser.
    """
    mine = sql.Identifier(shadow.info.user)
    with shadow.transaction():
        for _, schema, name, kind, owner, secured in rows(shadow, OWNED):
            _take_over(shadow, sql.Identifier(schema, name), kind, sql.Identifier(owner), secured, mine)
        roles = [name for (name,) in rows(shadow, "SELECT rolname FROM pg_roles WHERE rolname !~ '^pg_'")]
        everybody = sql.SQL(", ").join(
            [sql.SQL("PUBLIC"), *(sql.Identifier(name) for name in roles if name != shadow.info.user)]
        )
        all_readers = sql.SQL(", ").join(sql.Identifier(name) for (name,) in rows(primary, ALL_READERS))
        for name, owner in rows(shadow, SCHEMAS):
            _close_schema(shadow, sql.Identifier(name), sql.Identifier(owner), mine, everybody)
            if all_readers.as_string():
                given = (sql.Identifier(name), all_readers)
                shadow.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(*given))
                shadow.execute(sql.SQL("GRANT SELECT ON ALL TABLES IN SCHEMA {} TO {}").format(*given))
        for table in rows(shadow, UNCOPIED):
            if table not in copied and table[0] != "penumbra" and not _is_part(shadow, table, copied):
                its = (sql.Identifier(*table), everybody)
                shadow.execute(sql.SQL("REVOKE ALL ON TABLE {} FROM {} CASCADE").format(*its))
        its_name = sql.Identifier(database)
        shadow.execute(sql.SQL("ALTER DATABASE {} OWNER TO {}").format(its_name, mine))
        shadow.execute(sql.SQL("REVOKE CREATE ON DATABASE {} FROM {} CASCADE").format(its_name, everybody))
        # Of accidents of our own user, which nothing else stops.
        shadow.execute(sql.SQL("ALTER DATABASE {} SET default_transaction_read_only = on").format(its_name))


def _take_over(
    shadow: psycopg.Connection,
    table: sql.Identifier,
    kind: str,
    owner: sql.Identifier,
    secured: bool,
    mine: sql.Identifier,
) -> None:
    """The table is ours; who owned it may read it, and all of its rows as before."""
    # A sequence of a table's column has gone with the table.
    if kind != "S" or one(shadow, NOT_MINE, table.as_string()):
        shadow.execute(sql.SQL("ALTER TABLE {} OWNER TO {}").format(table, mine))
    shadow.execute(sql.SQL("GRANT SELECT ON {} TO {}").format(table, owner))
    if secured:
        shadow.execute(
            sql.SQL("CREATE POLICY penumbra ON {} FOR SELECT TO {} USING (true)").format(table, owner)
        )


def _close_schema(
    shadow: psycopg.Connection,
    schema: sql.Identifier,
    owner: sql.Identifier,
    mine: sql.Identifier,
    everybody: sql.Composed,
) -> None:
    if owner != mine:
        shadow.execute(sql.SQL("ALTER SCHEMA {} OWNER TO {}").format(schema, mine))
        if owner != sql.Identifier("pg_database_owner"):
            shadow.execute(sql.SQL("GRANT USAGE ON SCHEMA {} TO {}").format(schema, owner))
    for what in (
        "CREATE ON SCHEMA {}",
        "INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER ON ALL TABLES IN SCHEMA {}",
        "USAGE, UPDATE ON ALL SEQUENCES IN SCHEMA {}",
    ):
        shadow.execute(sql.SQL("REVOKE " + what + " FROM {} CASCADE").format(schema, everybody))


def _is_part(shadow: psycopg.Connection, table: tuple[str, str], copied: list[tuple[str, str]]) -> bool:
    """Whether it is a partition, or a child, of what is copied."""
    names = [sql.Identifier(*its).as_string() for its in copied]
    return bool(
        one(
            shadow,
            "WITH RECURSIVE above (oid) AS (SELECT to_regclass(%s)::oid UNION SELECT i.inhparent "
            "FROM pg_inherits i JOIN above a ON i.inhrelid = a.oid) "
            "SELECT true FROM above "
            "WHERE oid IN (SELECT to_regclass(name)::oid FROM unnest(%s::text[]) AS name)",
            sql.Identifier(*table).as_string(),
            names,
        )
    )


# ---- subscription ------------------------------------------------------------------------


def subscribed(shadow: psycopg.Connection, name: str) -> bool:
    return bool(
        one(
            shadow,
            "SELECT true FROM pg_subscription s JOIN pg_database d ON d.oid = s.subdbid "
            "WHERE subname = %s AND datname = current_database()",
            name,
        )
    )


def subscribe(shadow: psycopg.Connection, name: str, primary: Login) -> None:
    shadow.execute(
        sql.SQL(
            "CREATE SUBSCRIPTION {0} CONNECTION {1} PUBLICATION {0} "
            "WITH (create_slot = false, slot_name = {0})"
        ).format(sql.Identifier(name), sql.Literal(primary.conninfo))
    )


def unsubscribe(shadow: psycopg.Connection, name: str) -> None:
    """Without its slots, which are dropped on the primary."""
    its = sql.Identifier(name)
    if subscribed(shadow, name):
        shadow.execute(sql.SQL("ALTER SUBSCRIPTION {} DISABLE").format(its))
        shadow.execute(sql.SQL("ALTER SUBSCRIPTION {} SET (slot_name = NONE)").format(its))
        shadow.execute(sql.SQL("DROP SUBSCRIPTION {}").format(its))
