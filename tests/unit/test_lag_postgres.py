# SPDX-License-Identifier: Apache-2.0
"""Why a copy by logical replication goes no further is told, and whether it ever can."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address
from types import SimpleNamespace

import pytest

from controlplane import model
from controlplane.adapters import lag_postgres
from controlplane.adapters.lag_postgres import PostgresPrimary, PostgresReplica

SLOT = "penumbra_x_db_1_s1"
SYNC = model.Sync(model.SyncDriver.POSTGRES, max_lag_s=5.0)
TARGET = model.LagTarget(
    "db-1-s1", "x", "db", SYNC, IPv4Address("10.0.2.1"), 5433, (IPv4Address("10.0.1.1"), 5432)
)
FAILING = "its subscription fails, and its server's log tells why"


@dataclass
class Servers:
    """Both, as far as they are asked; ``comes``: what is written arrives."""

    slots: dict[str, str] = field(default_factory=lambda: {SLOT: "reserved"})
    done: int = 1
    enabled: bool = True
    runs: bool = True
    errors: int = 0
    comes: bool = True
    version: int = 15_00_05
    beat: datetime | None = None

    @property
    def info(self) -> SimpleNamespace:
        return SimpleNamespace(server_version=self.version)

    async def take(self) -> Servers:
        return self

    async def give_back(self, _: Servers) -> None: ...

    async def close(self) -> None: ...

    async def execute(self, query: str, given: tuple[object, ...] = ()) -> SimpleNamespace:
        rows: list[tuple[object, ...]] = []
        if query == lag_postgres._BEAT and self.comes:
            self.beat = given[1]
        elif query == lag_postgres._POSITIONS:
            rows = [(None, 900, None), *((name, 800, status) for name, status in self.slots.items())]
        elif query == lag_postgres._COPIES:
            rows = [(self.done, 1, SLOT, True, self.enabled, self.runs)]
        elif query == lag_postgres._ERRORS:
            assert self.version >= 15_00_00, "there is no such view"
            rows = [(self.errors,)]
        elif query == lag_postgres._SEEN and self.beat:
            rows = [(self.beat,)]

        async def fetchone() -> tuple[object, ...] | None:
            return rows[0] if rows else None

        async def fetchall() -> list[tuple[object, ...]]:
            return rows

        return SimpleNamespace(fetchone=fetchone, fetchall=fetchall)


async def _after(servers: Servers, *changes: dict[str, object]) -> list[model.Lag]:
    primary = PostgresPrimary(TARGET)
    replica = PostgresReplica(TARGET, primary)
    primary._session = replica._session = servers
    read = []
    for change in ({}, *changes):
        for name, value in change.items():
            setattr(servers, name, value)
        await primary.look()
        read.append(await replica.read())
    return read


def after(*changes: dict[str, object], servers: Servers | None = None) -> list[model.Lag]:
    """What is read at first, and after each change."""
    return asyncio.run(_after(servers or Servers(), *changes))


STOPS = {
    "the slot lost WAL": (
        {"slots": {SLOT: "lost"}},
        "its slot on the primary has lost WAL that it needs (max_slot_wal_keep_size): its copy can't go on",
        True,
    ),
    "there is no slot": ({"slots": {}}, "its slot on the primary is gone: its copy can't go on", True),
    "disabled": ({"enabled": False, "runs": False}, "its subscription is disabled", False),
    "no worker": ({"runs": False}, "the apply worker of its subscription does not run", False),
    "errors": ({"errors": 3, "comes": False}, FAILING, False),
}


@pytest.mark.parametrize(("change", "why", "is_lost"), STOPS.values(), ids=STOPS)
def test_why_a_copy_goes_no_further_is_told(change, why, is_lost):
    well, stopped = after(change)
    assert (well.copied, well.reason, well.is_lost) == (True, "", False)
    assert (stopped.copied, stopped.reason, stopped.is_lost) == (True, why, is_lost)
    _, early = after({**change, "done": 0})
    assert (early.copied, early.reason, early.is_lost) == (
        False,
        f"0 of 1 tables are copied: {why}",
        is_lost,
    )


def test_a_slot_is_not_missed_before_the_primary_was_asked_after_it_was_known():
    async def read() -> list[model.Lag]:
        servers = Servers(slots={})
        primary = PostgresPrimary(TARGET)
        replica = PostgresReplica(TARGET, primary)
        primary._session = replica._session = servers
        await primary.look()
        first = await replica.read()
        servers.slots = {SLOT: "reserved"}
        await primary.look()
        return [first, await replica.read()]

    assert [(one.reason, one.is_lost) for one in asyncio.run(read())] == [("", False)] * 2


def test_it_fails_until_something_comes_even_if_its_worker_runs_for_a_moment():
    changes = [{"errors": 1, "comes": False}, {"runs": False}, {"runs": True}, {"comes": True}]
    assert [one.reason for one in after(*changes)] == ["", FAILING, FAILING, FAILING, ""]


def test_a_server_that_counts_no_errors_is_not_asked_for_them():
    assert after({"errors": 3}, servers=Servers(version=14_00_09))[-1].reason == ""


def test_a_beat_that_came_after_a_reading_began_is_no_lag_below_nought():
    primary = PostgresPrimary(TARGET)
    beat = primary._new_beat(10.0)
    assert primary.age_s(beat, 9.99) == 0.0
    assert primary.age_s(beat, 12.0) == 2.0
    assert primary.age_s(datetime.now(UTC) - timedelta(seconds=60), 12.0) > 59.0
