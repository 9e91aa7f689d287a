# SPDX-License-Identifier: Apache-2.0
"""What a configuration may say of data, and what playbooks are told of it."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address

import pytest

from controlplane import config, data_sync, model
from controlplane.adapters.ansible import _sync
from controlplane.cli import wiring
from tests.world import World
from tests.world import config as world_config

TEXT = """
interfaces: [eth1]
tick: {tick}
hosts: {{a: {{}}}}
services:
  db:
    vip: 198.51.100.10
    port: 5432
    {access}
    {on_down}
    endpoints: {{db-1: {{address: 10.0.1.10, port: 5432}}}}
    shadows: {{hosts: [{hosts}]}}
    {sync}
"""
POSTGRES = "sync: {driver: postgres, max_lag: 5s, variables: {database: shop, user: reader}}"


def parsed(sync: str = POSTGRES, **changed: str) -> model.Service:
    given = {"tick": "1s", "access": "access: read", "on_down": "", "hosts": "a", "sync": sync} | changed
    return config.parse(TEXT.format(**given)).services["db"]


def test_what_is_agreed_is_read():
    one = parsed(
        "sync: {driver: redis, max_lag: 16MiB, on_lag: evict, interval: 250ms, copy_timeout: 1h, "
        "primary: '[2001:db8::1]:6379'}"
    )
    assert one.access is model.Access.READ
    assert one.sync == model.Sync(
        model.SyncDriver.REDIS,
        None,
        16 << 20,
        model.OnLag.EVICT,
        0.25,
        3600.0,
        (IPv6Address("2001:db8::1"), 6379),
    )
    assert parsed().sync.max_lag_s == 5.0
    assert parsed().sync.on_lag is model.OnLag.HOLD


REFUSED = [
    ({"sync": "", "access": "access: write"}, r"db\.shadows\.hosts: .*would be lost.*a service of their own"),
    ({"access": ""}, r"services\.db\.sync: copies are only read; with access: read"),
    ({"sync": "sync: {driver: redis, max_lag: 2499ms}"}, r"sync\.max_lag: 2\.499s can't be kept.*2\.5s or"),
    ({"sync": "sync: {driver: redis, max_lag: 5s}", "tick": "4s"}, r"sync\.max_lag: 5s can't be kept"),
    ({"sync": "sync: {driver: redis, max_lag: 5}"}, r"sync\.max_lag: 5: a duration .* or an amount of data"),
    ({"sync": "sync: {driver: redis, max_lag: 0B}"}, r"sync\.max_lag: '0B'"),
    ({"sync": "sync: {driver: redis}"}, r"sync\.max_lag: is missing"),
    ({"sync": "sync: {driver: mysql, max_lag: 5s}"}, r"sync\.driver: 'mysql': 'postgres', 'redis' or"),
    ({"sync": "sync: {driver: redis, max_lag: 5s, primary: 10.0.0.1}"}, r"sync\.primary: .*ADDRESS:PORT"),
    ({"sync": "sync: {driver: redis, max_lag: 5s, primary: 127.0.0.1:6}"}, r"sync\.primary: .*ADDRESS:PORT"),
    ({"sync": "sync: {driver: postgres, max_lag: 5s}"}, r"sync\.variables\.database: is missing"),
    ({"sync": "sync: {driver: command, max_lag: 5s}"}, r"sync\.variables\.lag: is missing"),
    (
        {"sync": "sync: {driver: command, max_lag: 5s, variables: {lag: [1]}}"},
        r"sync\.variables\.lag: .*a command",
    ),
    (
        {"sync": "sync: {driver: redis, max_lag: 5s, on_lag: evict}", "on_down": "on_down: keep"},
        r"sync\.on_lag: evict moves flows that on_down: keep leaves",
    ),
]


@pytest.mark.parametrize(("given", "said"), REFUSED, ids=[said for _, said in REFUSED])
def test_what_can_not_be_kept_is_refused_with_its_path(given, said):
    with pytest.raises(config.ConfigError, match=said):
        parsed(**given)


def test_a_write_service_without_hosts_and_the_least_agreement_are_fine():
    assert parsed("", access="access: write", hosts="").access is model.Access.WRITE
    assert parsed("sync: {driver: redis, max_lag: 2500ms}").sync.max_lag_s == 2.5


def test_a_password_that_is_not_on_this_machine_is_told_before_it_runs(tmp_path):
    place = tmp_path / "password"
    given = f"database: shop, user: reader, password_file: {place}"
    sync = f"sync: {{driver: postgres, max_lag: 5s, variables: {{{given}}}}}"
    text = TEXT.format(tick="1s", access="access: read", on_down="", hosts="a", sync=sync)
    said = f"services.db.sync.variables.password_file: {place}: can't be read here; a file is allowed"
    assert said in wiring.against_machine(config.parse(text))
    place.mkdir()
    assert said in wiring.against_machine(config.parse(text)), "nor is a folder a password"
    place.rmdir()
    place.touch()
    assert said not in wiring.against_machine(config.parse(text))


def test_playbooks_are_told_who_has_the_data():
    parent = model.Endpoint("db-1", "db", IPv4Address("10.0.1.10"), 5432)
    told = _sync(parsed().sync, parent)
    assert told == {
        "driver": "postgres",
        "primary": {"address": "10.0.1.10", "port": 5432},
        "variables": {"database": "shop", "user": "reader"},
    }
    other = replace(parsed().sync, primary=(IPv4Address("10.0.1.99"), 5433))
    assert _sync(other, parent)["primary"] == {"address": "10.0.1.99", "port": 5433}


def test_lag_is_read_where_a_shadow_is_once_that_is_known():
    parent = model.Endpoint("db-1", "db", IPv4Address("10.0.1.10"), 5432)
    shadow = model.Shadow("db-1-s1", "db", "db-1", "a", "netns", model.ShadowState.WARMING, 0.0, 0.0)
    assert data_sync.target("x", parsed(), parent, shadow) is None
    there = replace(shadow, address=IPv4Address("10.0.2.1"), port=5433)
    found = data_sync.target("x", parsed(), parent, there)
    assert (str(found.address), found.port, found.primary) == ("10.0.2.1", 5433, (parent.address, 5432))
    assert data_sync.target("x", replace(parsed(), sync=None), parent, there) is None


def synced(configured: model.Config, sync: model.Sync | None) -> model.Config:
    service = replace(configured.services["web"], access=model.Access.READ, sync=sync)
    return replace(configured, services={"web": service})


def test_what_undoes_a_copy_stays_while_there_is_one():
    sync = model.Sync(model.SyncDriver.REDIS, max_lag_s=5.0)
    world = World(synced(world_config(), sync))
    world.controller._roster.order("web-1", "by test")
    for other in (
        None,
        replace(sync, variables={"user": "x"}),
        replace(sync, primary=(IPv4Address("10.0.0.9"), 1)),
    ):
        with pytest.raises(ValueError, match=r"services\.web\.sync: shadow web-1-s1 .* shadow remove"):
            world.controller.reconfigure(synced(world_config(), other))
    world.controller.reconfigure(synced(world_config(), replace(sync, max_lag_s=9.0)))
