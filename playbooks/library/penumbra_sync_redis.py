#!/usr/bin/python
# SPDX-License-Identifier: Apache-2.0
"""Begins and ends a shadow's copy of its primary's data, by Redis's replication.

Runs at the access point and speaks to both servers. ``started`` only begins: the data comes after it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

import redis
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.penumbra_sync import RefusedError, UnreachableError, on_any_host, password_in

ARGUMENTS = {
    "state": {"choices": ["started", "stopped"], "required": True},
    "primary": {"type": "dict", "required": True},
    "address": {},
    "port": {"type": "int"},
    "user": {},
    "password_file": {"type": "path", "no_log": False},
}
ANSWER_S = 5.0
GONE_S = 5.0
"""For the primary to see that the shadow has left it."""
POLL_S = 0.1
NOWHERE = ("127.0.0.1", "0")
"""As somebody's replica it goes on refusing writes; nobody answers at port 0."""


@contextlib.contextmanager
def connected(p: dict, address: str, port: int) -> Iterator[redis.Redis]:
    """Raises UnreachableError, also when it is lost."""
    server = redis.Redis(
        host=address,
        port=port,
        username=p["user"],
        password=password_in(p["password_file"]),
        socket_connect_timeout=ANSWER_S,
        socket_timeout=ANSWER_S,
        decode_responses=True,
    )
    try:
        server.ping()
    except redis.RedisError as error:
        raise UnreachableError(address, port, error) from None
    try:
        with server:
            yield server
    except (redis.ConnectionError, redis.TimeoutError) as error:
        raise UnreachableError(address, port, error) from None


def version_of(server: redis.Redis) -> tuple[int, ...]:
    return tuple(int(part) for part in server.info("server")["redis_version"].split(".")[:2])


def check(primary: redis.Redis, shadow: redis.Redis) -> None:
    """Raises RefusedError."""
    state = primary.info("replication")
    if state["role"] != "master":
        raise RefusedError(
            f"the primary is a replica of {state['master_host']}:{state['master_port']} itself: "
            "name that in sync.primary"
        )
    if primary.info("server")["run_id"] == shadow.info("server")["run_id"]:
        raise RefusedError("the shadow's server is the primary: it must be another one")
    if version_of(shadow) < version_of(primary):
        raise RefusedError("the shadow's Redis is older than the primary's, and can't read what that sends")


def started(p: dict) -> dict:
    address, port = p["primary"]["address"], int(p["primary"]["port"])
    with connected(p, address, port) as primary, connected(p, p["address"], p["port"]) as shadow:
        check(primary, shadow)
        state = shadow.info("replication")
        if (state["role"], state.get("master_host"), state.get("master_port")) == ("slave", address, port):
            return {"changed": False}
        if shadow.dbsize():
            raise RefusedError("the shadow's Redis has data already: it must be empty, for a copy to come")
        only_read(shadow, p["user"])
        # In its memory alone: nothing rewrites its configuration file.
        password = password_in(p["password_file"])
        if password:
            shadow.config_set("masterauth", password)
        if password and p["user"]:
            shadow.config_set("masteruser", p["user"])
        shadow.replicaof(address, port)
    return {"changed": True}


def only_read(shadow: redis.Redis, user: str | None) -> None:
    """A replica refuses writes; where we are a user of our own, nobody else can change that it is one."""
    shadow.config_set("replica-read-only", "yes")
    for name in shadow.acl_users() if user else ():
        if name != user:
            shadow.execute_command("ACL SETUSER", name, "-@admin")


def stopped(p: dict) -> dict:
    """A shadow that is dead has left the primary: its connection has ended with it."""
    if not p["address"]:
        return {"changed": False}
    try:
        with connected(p, p["address"], p["port"]) as shadow:
            state = shadow.info("replication")
            if state["role"] != "slave":
                return {"changed": False}
            shadow.replicaof(*NOWHERE)
    except UnreachableError:
        return {"changed": False}
    try:
        with connected(p, p["primary"]["address"], int(p["primary"]["port"])) as primary:
            await_gone(primary, (p["address"], p["port"]))
    except UnreachableError:  # a primary that is down holds nothing
        pass
    return {"changed": True}


def await_gone(primary: redis.Redis, its: tuple[str, int]) -> None:
    deadline = time.monotonic() + GONE_S
    while any((one["ip"], int(one["port"])) == its for one in replicas(primary)):
        if time.monotonic() > deadline:
            raise RefusedError(f"{its[0]}:{its[1]} is still a replica of the primary")
        time.sleep(POLL_S)


def replicas(primary: redis.Redis) -> list[dict]:
    state = primary.info("replication")
    return [
        state[f"slave{number}"] for number in range(state["connected_slaves"]) if f"slave{number}" in state
    ]


def main() -> None:
    module = AnsibleModule(ARGUMENTS, required_if=[("state", "started", ["address", "port"])])
    states = {"started": started, "stopped": stopped}
    try:
        result = states[module.params["state"]](module.params)
    except RefusedError as refused:
        its = (module.params["address"], module.params["port"])
        module.fail_json(msg=str(refused), refused=on_any_host(refused, its))
    except redis.RedisError as error:
        module.fail_json(msg=f"Redis refused: {error}", refused=True)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
