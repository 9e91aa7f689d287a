#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Begins and ends a shadow's copy of its primary's data, by PostgreSQL's logical replication.

Runs at the access point and speaks to both servers. ``started`` only begins: the tables are copied after it.
"""

from __future__ import annotations

import time

import psycopg
from ansible.module_utils import penumbra_postgres as at_primary
from ansible.module_utils import penumbra_postgres_shadow as at_shadow
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.penumbra_postgres import Login, Mark
from ansible.module_utils.penumbra_sync import RefusedError, on_any_host, sync_name

ARGUMENTS = {
    "state": {"choices": ["started", "stopped"], "required": True},
    "instance": {"required": True},
    "shadow": {"required": True},
    "primary": {"type": "dict", "required": True},
    "address": {},
    "port": {"type": "int"},
    "database": {"required": True},
    "user": {"required": True},
    "password_file": {"type": "path", "no_log": False},
    "sslmode": {"default": "prefer"},
    "tables": {"type": "list", "elements": "str", "default": []},
}
READY_S = 30.0
"""For the shadow's server to take connections."""
POLL_S = 0.1


def login(p: dict, address: str, port: int) -> Login:
    return Login(address, port, p["database"], p["user"], p["password_file"], p["sslmode"])


def await_system(shadow: Login) -> str:
    """The identifier of the shadow's server, as soon as it takes connections."""
    deadline = time.monotonic() + READY_S
    while True:
        try:
            with shadow.connected("postgres") as connection:
                return at_primary.system_identifier(connection)
        except RefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(POLL_S)


def started(p: dict, module: AnsibleModule) -> dict:
    name = sync_name(p["instance"], p["shadow"])
    shadow = login(p, p["address"], p["port"])
    primary = login(p, p["primary"]["address"], p["primary"]["port"])
    with primary.connected():
        pass  # a wrong password is told as what it is, not as a shadow that can't be reached
    system = await_system(shadow)
    mark = Mark(p["instance"], p["shadow"], system, shadow.address, shadow.port)
    with primary.connected() as connection:
        if at_primary.system_identifier(connection) == system:
            raise RefusedError(
                "the shadow's server is the primary, or a copy of its files: it must be a new one"
            )
        there = at_primary.mark_of(connection, name)
        if there is not None and there.system != system:
            # Of a shadow of this name that was lost.
            undo(connection, name, there)
            there = None
        at_primary.check(connection, name, there)
        if there is not None and is_under_way(connection, shadow, name):
            return {"changed": False, "name": name}
        tables = at_primary.tables_of(connection, p["tables"])
        if there is None:
            at_primary.publish(connection, name, mark, tables)
        begin(connection, primary, shadow, name, tables, module)
    return {"changed": True, "name": name}


def is_under_way(primary: psycopg.Connection, shadow: Login, name: str) -> bool:
    """Raises RefusedError if it has broken off."""
    with shadow.connected("postgres") as connection:
        if not at_primary.one(connection, "SELECT true FROM pg_database WHERE datname = %s", shadow.database):
            return False
    with shadow.connected() as connection:
        if not at_shadow.subscribed(connection, name):
            return False
    if not at_primary.one(primary, at_primary.SLOT_LIVES, name):
        raise RefusedError(
            f"slot {name} is gone from the primary, and changes with it: the shadow must be made anew"
        )
    return True


def begin(
    connection: psycopg.Connection,
    primary: Login,
    shadow: Login,
    name: str,
    tables: list[tuple[str, str]],
    module: AnsibleModule,
) -> None:
    """The shadow's side, and the slot in time for it."""
    at_shadow.make_database(connection, shadow)
    with shadow.connected() as its:
        at_shadow.quiet(its)
        at_shadow.copy_roles(connection, its)
        for refused in at_shadow.copy_settings(connection, its):
            module.warn(refused)
        if not at_shadow.has_schema(its):
            at_shadow.copy_schema(primary, shadow, connection.info.server_version // 10000)
        at_shadow.copy_sequences(connection, its)
        at_shadow.only_read(connection, its, shadow.database, tables)
        at_primary.make_slot(connection, name)
        at_shadow.subscribe(its, name, primary)


def stopped(p: dict, module: AnsibleModule) -> dict:
    name = sync_name(p["instance"], p["shadow"])
    primary = login(p, p["primary"]["address"], p["primary"]["port"])
    with primary.connected() as connection:
        mark = at_primary.mark_of(connection, name)
        if mark is None:
            return {"changed": False, "name": name}
        try:
            with login(p, mark.address, mark.port).connected() as shadow:
                if at_primary.system_identifier(shadow) == mark.system:
                    at_shadow.unsubscribe(shadow, name)
        except (RefusedError, psycopg.Error) as error:
            module.warn(f"the shadow's side ends with it: {error}")
        undo(connection, name, mark)
    return {"changed": True, "name": name}


def undo(primary: psycopg.Connection, name: str, mark: Mark) -> None:
    at_primary.release(primary, name, mark.system)
    at_primary.unpublish(primary, name, mark.penumbra)


def main() -> None:
    module = AnsibleModule(ARGUMENTS, required_if=[("state", "started", ["address", "port"])])
    states = {"started": started, "stopped": stopped}
    try:
        result = states[module.params["state"]](module.params, module)
    except RefusedError as refused:
        its = (module.params["address"], module.params["port"])
        module.fail_json(msg=str(refused), refused=on_any_host(refused, its))
    except psycopg.Error as error:
        module.fail_json(msg=f"PostgreSQL refused: {error}", refused=True)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
