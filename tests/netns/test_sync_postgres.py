# SPDX-License-Identifier: Apache-2.0
"""A shadow's copy of a PostgreSQL, by the shipped playbooks, on real servers under writes, cuts and kills."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import psycopg
import pytest

from controlplane import model
from controlplane.lab.topology import Topology
from tests.netns import postgres
from tests.netns.engines import PASSWORD, SHADOW
from tests.netns.postgres import PORT, Primary
from tests.netns.steered import eventually, passes, playbooks_with
from tests.unit.test_playbooks import PLAYBOOKS, loaded

pytestmark = pytest.mark.slow

RULES = ("penumbra_sync", "penumbra_postgres")


@pytest.fixture(scope="module")
def primary(topology: Topology) -> Iterator[Primary]:
    with postgres.made(topology) as primary:
        yield primary


@pytest.fixture(autouse=True)
def clean(primary: Primary) -> Iterator[None]:
    """Each test begins with an empty table, and the next one does whatever this one left."""
    with primary.connected() as connection:
        connection.execute("TRUNCATE stock.items")
    yield
    primary.site.heal()
    if primary.site.left() or primary.holds() != primary.before:
        primary.site.deprovision()


def at_shadow(primary: Primary, made: model.RunResult, user: str = "penumbra") -> psycopg.Connection:
    assert (made.state, made.reason) == (model.RunState.DONE, "")
    return primary.connected_to(str(made.address), made.port or 0, user)


def count(connection: psycopg.Connection) -> int:
    return connection.execute("SELECT count(*) FROM stock.items").fetchone()[0]


def assert_nothing_left(primary: Primary) -> None:
    assert primary.holds() == primary.before
    assert primary.site.left() == []


def await_copy(shadow: psycopg.Connection) -> None:
    """Every table is there, and follows."""
    eventually(
        lambda: {row[0] for row in shadow.execute("SELECT srsubstate FROM pg_subscription_rel")} == {"r"},
        what=lambda: shadow.execute(
            "SELECT srrelid::regclass, srsubstate FROM pg_subscription_rel"
        ).fetchall(),
    )


def await_caught_up(primary: Primary, shadow: psycopg.Connection, within_s: float = 20.0) -> None:
    with primary.connected() as connection:
        there = count(connection)
    eventually(lambda: count(shadow) >= there, within_s)


MISROUTED = (
    "INSERT INTO stock.items VALUES (-1, 'astray')",
    "UPDATE stock.items SET body = 'astray'",
    "DELETE FROM stock.parts_1",
    "TRUNCATE stock.items",
    "SELECT stock.add(-1)",
    "SELECT nextval('stock.items_serial_seq')",
    "GRANT INSERT ON stock.items TO PUBLIC",
    "CREATE TABLE stock.astray (id int)",
    "DROP TABLE stock.items",
    "ALTER ROLE penumbra PASSWORD 'x'",
    "GRANT pg_write_all_data TO app",
)


def assert_only_read(primary: Primary, made: model.RunResult) -> None:
    """Whatever a client's session sets: the table's owner, one whom everything was granted, a superuser."""
    for user in ("app", "reader", "boss"):
        with at_shadow(primary, made, user) as session:
            assert count(session) > 0
            assert session.execute("SELECT * FROM stock.parts").fetchall() == [(1, 1)]
            with pytest.raises(psycopg.errors.ReadOnlySqlTransaction):
                session.execute(MISROUTED[0])
            session.execute("SET default_transaction_read_only = off")
            for statement in MISROUTED:
                if "GRANT INSERT" in statement:  # only a warning, to those who have nothing to grant
                    session.execute(statement)
                    continue
                with pytest.raises(psycopg.errors.InsufficientPrivilege):
                    session.execute(f"BEGIN; SET TRANSACTION READ WRITE; {statement}")
                session.execute("ROLLBACK")
            with pytest.raises(psycopg.errors.InsufficientPrivilege):
                session.execute("SELECT * FROM stock.cache")  # it is not copied: empty would be wrong
    with at_shadow(primary, made, "app") as session:
        assert session.execute("SELECT * FROM stock.private").fetchall() == [("somebody",)]
    with at_shadow(primary, made, "reader") as session:
        assert session.execute("SELECT count(*) FROM items").fetchone()[0] > 0  # by its search_path
        assert session.execute("SELECT * FROM private").fetchall() == []


def test_a_shadow_under_writes_is_a_copy_stays_one_and_goes_without_a_trace(primary: Primary) -> None:
    site = primary.site
    with primary.writers() as writers:
        eventually(lambda: len(writers.acknowledged) > 50)
        made = site.provision()
        with at_shadow(primary, made) as shadow:
            await_copy(shadow)
            await_caught_up(primary, shadow, 5.0)
            assert_only_read(primary, made)
            assert site.provision() == replace(
                made, started_s=pytest.approx(0, abs=1e12), ended_s=pytest.approx(0, abs=1e12)
            )

            site.cut()
            passes(0.5)
            here = len(writers.acknowledged)
            eventually(lambda: len(writers.acknowledged) > here + 50)
            site.heal()
            await_caught_up(primary, shadow)
            assert count(shadow) >= here + 50

            primary.end()
            primary.start()
            here = len(writers.acknowledged)
            eventually(lambda: len(writers.acknowledged) > here + 50)
            await_caught_up(primary, shadow)
        with at_shadow(primary, made, "app") as session:
            assert session.execute("SELECT last_value > 0 FROM stock.items_serial_seq").fetchone()[0]
        log = (site.run_dir / site.instance / "shadows" / f"{SHADOW}.log").read_text()
        assert "CREATE DATABASE" in log, "statements are logged there"
        assert PASSWORD not in log
        assert PASSWORD.replace("'", "''") not in log
        assert "SCRAM-SHA" not in log
        assert PASSWORD not in site.log.read_text()
        assert site.deprovision().reason == ""
        assert_nothing_left(primary)
        assert site.deprovision().reason == ""
    with primary.connected() as connection:
        kept = {number for (number,) in connection.execute("SELECT id FROM stock.items")}
    assert set(writers.acknowledged) <= kept
    assert len(kept) > 100
    assert -1 not in kept


def test_of_a_shadow_that_is_killed_in_its_first_copy_no_slot_is_left(primary: Primary) -> None:
    site = primary.site
    with primary.connected() as connection:
        connection.execute(
            "CREATE TABLE stock.bulk (id int PRIMARY KEY, body text); "
            "INSERT INTO stock.bulk SELECT n, repeat('x', 1000) FROM generate_series(1, 80000) n"
        )
        provisioner = site.provisioner()
        try:
            with site.at_access_point():
                provisioner.provision(site.order())
            slots = "SELECT slot_name FROM pg_replication_slots WHERE slot_name ~ '_sync_' AND NOT temporary"
            eventually(lambda: connection.execute(slots).fetchall())
            site.kill()
        finally:
            provisioner.close()
        assert connection.execute(slots).fetchall(), "the fault hit: slots of the first copy are left"
        assert site.deprovision().reason == ""
        connection.execute("DROP TABLE stock.bulk")
    assert_nothing_left(primary)


def test_negative_control_without_stop_the_slot_is_left_and_found(primary: Primary, tmp_path: Path) -> None:
    books = playbooks_with(tmp_path / "books", "roles/sync_postgres/tasks/stop.yml", "[]\n")
    with at_shadow(primary, primary.site.provision()):
        pass
    assert primary.site.deprovision(playbooks=books).reason == ""
    with pytest.raises(AssertionError):
        assert_nothing_left(primary)
    assert any("slot" in row for row in set(primary.holds()) - set(primary.before))
    assert primary.site.deprovision().reason == ""
    assert_nothing_left(primary)


def test_while_the_primary_is_down_the_shadow_goes_and_the_rest_when_it_is_back(primary: Primary) -> None:
    site = primary.site
    with at_shadow(primary, site.provision()):
        pass
    primary.end()
    try:
        result = site.deprovision()
    finally:
        primary.start()
    assert result.state is model.RunState.FAILED
    assert "5432 can't be reached" in result.reason
    assert site.left() == []
    assert any("slot" in row for row in set(primary.holds()) - set(primary.before))
    assert site.deprovision().reason == ""
    assert_nothing_left(primary)


BLOCKS = {
    "schema": "LOCK TABLE stock.cache IN ACCESS EXCLUSIVE MODE",
    "slot": "SELECT pg_current_xact_id()",
}
WAITING = {
    "schema": "application_name = 'pg_dump' AND wait_event_type = 'Lock'",
    "slot": "query LIKE '%pg_create_logical_replication_slot%' AND wait_event_type = 'Lock'",
}


@pytest.mark.parametrize("step", BLOCKS)
def test_a_run_that_is_killed_half_way_is_undone_or_finished(primary: Primary, step: str) -> None:
    site = primary.site
    with primary.connected() as blocker, primary.connected() as connection:
        blocker.execute("BEGIN")
        blocker.execute(BLOCKS[step])
        provisioner = site.provisioner()
        try:
            with site.at_access_point():
                provisioner.provision(site.order())
            waiting = f"SELECT true FROM pg_stat_activity WHERE {WAITING[step]}"  # noqa: S608
            eventually(lambda: connection.execute(waiting).fetchone())
        finally:
            provisioner.close()
        eventually(lambda: not connection.execute(waiting).fetchone())  # the server's part ends with the run
        blocker.execute("ROLLBACK")
    if step == "slot":
        with at_shadow(primary, site.provision()) as shadow:
            await_copy(shadow)
    assert site.deprovision().reason == ""
    assert_nothing_left(primary)


def test_somebody_elses_slot_of_the_same_name_is_not_touched(primary: Primary) -> None:
    site = primary.site
    taken = rules("penumbra_sync").sync_name(site.instance, SHADOW)
    postgres_rules = rules("penumbra_postgres")
    loaded(
        "ansible.module_utils.penumbra_postgres_shadow",
        PLAYBOOKS / "module_utils/penumbra_postgres_shadow.py",
    )
    driver = loaded("penumbra_sync_postgres", PLAYBOOKS / "library/penumbra_sync_postgres.py")
    asked = {
        "instance": site.instance,
        "shadow": SHADOW,
        "sslmode": "prefer",
        "primary": {"address": str(site.address), "port": PORT},
        **site.sync.variables,
    }
    with primary.connected() as connection:
        connection.execute("SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (taken,))
        with pytest.raises(postgres_rules.RefusedError, match=f"slot {taken} that is not ours"):
            postgres_rules.check(connection, taken, None)
        with site.at_access_point():
            assert driver.stopped(asked, None)["changed"] is False
        slots = [row[0] for row in connection.execute("SELECT slot_name FROM pg_replication_slots")]
        assert taken in slots
        connection.execute("SELECT pg_drop_replication_slot(%s)", (taken,))
        postgres_rules.check(connection, taken, None)  # the control: nothing else was in the way
    assert_nothing_left(primary)


def rules(name: str) -> ModuleType:
    """What a module is made of, in this process."""
    return {
        one: loaded(f"ansible.module_utils.{one}", PLAYBOOKS / f"module_utils/{one}.py") for one in RULES
    }[name]


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        pytest.param(
            "CREATE TABLE bare (id int)",
            "public.bare: without a primary key UPDATE and DELETE would fail on the primary",
            id="a table whose updates would fail on the primary",
        ),
        pytest.param(
            "CREATE TABLE many (id int, kind int) PARTITION BY LIST (kind); "
            "CREATE TABLE many_1 PARTITION OF many FOR VALUES IN (1)",
            "public.many_1: without a primary key",
            id="a partition of that kind",
        ),
        pytest.param(
            "CREATE PUBLICATION everything FOR ALL TABLES",
            "publication everything is for all tables, and its subscribers would fail",
            id="another's publication that would take the heartbeat",
        ),
    ],
)
def test_what_would_harm_the_primary_is_refused(primary: Primary, made: str, reason: str) -> None:
    module = rules("penumbra_postgres")
    with primary.connected() as connection:
        connection.execute("SET search_path = public")
        mark = module.Mark(primary.site.instance, SHADOW, "1", "10.0.0.1", 1)
        with connection.transaction(force_rollback=True):
            connection.execute(made)
            connection.execute("SET LOCAL search_path = ''")
            with pytest.raises(module.RefusedError, match=re.escape(reason)):
                module.publish(connection, "penumbra_t", mark, module.tables_of(connection, []))
        with connection.transaction(force_rollback=True):  # the control: without it nothing is refused
            module.publish(connection, "penumbra_t", mark, module.tables_of(connection, []))


def test_two_of_them_never_share_a_directory(primary: Primary) -> None:
    site = primary.site
    refused = site.provision(replace(site.order(fresh_directory={}), sync=None))
    assert f"{primary.data}/" in refused.reason
    assert "open for writing" in refused.reason
    assert site.left() == []
