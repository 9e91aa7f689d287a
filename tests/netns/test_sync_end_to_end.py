# SPDX-License-Identifier: Apache-2.0
"""Reads of a PostgreSQL spill to a shadow under writes; what keeps its data up to date is cut and heals: no
client ever reads older data than agreed."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field

import psycopg
import pytest

from tests.netns import postgres
from tests.netns.engines import PASSWORD, Site, Writers
from tests.netns.steered import Steered, eventually, passes, steered

pytestmark = pytest.mark.slow

MAX_LAG_S = 2.0
ROUND_S = 0.25
"""From what was read to who read it, and from a write to its acknowledgement, on a busy machine."""
CREATE = "CREATE TABLE stock.times (id int PRIMARY KEY, at double precision)"
WRITE = "INSERT INTO stock.times VALUES (1, %s) ON CONFLICT (id) DO UPDATE SET at = excluded.at"
READ = "SELECT at, host(inet_server_addr()) FROM stock.times"


@dataclass(frozen=True)
class Read:
    at_s: float
    """Begun then."""
    age_s: float
    """Of the newest row that it saw."""
    server: str
    kept: bool
    """On a session that was there before."""


@dataclass
class Readers:
    """Clients that connect anew for each read, and one that keeps its session; all by the VIP."""

    site: Steered
    seen: list[Read] = field(default_factory=list)
    failures: list[tuple[float, str]] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    def connect(self) -> psycopg.Connection:
        topology = self.site.lab.topology
        return psycopg.connect(
            host=str(topology.vip),
            port=topology.vip_port,
            user="reader",
            password="reader",  # noqa: S106 - of a server that lives for a test
            dbname="shop",
            autocommit=True,
            connect_timeout=3,
        )

    def read(self, session: psycopg.Connection, *, kept: bool) -> None:
        began = time.monotonic()
        at, server = session.execute(READ).fetchone()
        self.seen.append(Read(began, began - at, server, kept))

    def anew(self) -> None:
        with self.site.lab.entered("clients"):
            while not self._stop.wait(0.03):
                try:
                    with self.connect() as session:
                        self.read(session, kept=False)
                except psycopg.Error as error:
                    self.failures.append((time.monotonic(), str(error)))

    def keep(self) -> None:
        """Sessions that go on until they are reset."""
        sessions: list[psycopg.Connection] = []
        with self.site.lab.entered("clients"):
            while not self._stop.wait(0.05):
                try:
                    if len(sessions) < 8:
                        sessions.append(self.connect())
                    for session in list(sessions):
                        sessions.remove(session)
                        self.read(session, kept=True)
                        sessions.append(session)
                except psycopg.Error:
                    continue
        for session in sessions:
            with suppress(psycopg.Error):
                session.close()

    def __enter__(self) -> Readers:
        self.threads = [threading.Thread(target=one) for one in (self.anew, self.keep)]
        for thread in self.threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self.threads:
            thread.join()

    def since(self, at_s: float) -> list[Read]:
        return [one for one in self.seen if one.at_s >= at_s]

    def servers(self, last_s: float = 1.0, *, kept: bool = False) -> set[str]:
        return {one.server for one in self.since(time.monotonic() - last_s) if one.kept is kept}


@pytest.fixture(scope="module")
def primary(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Steered, postgres.Primary]]:
    folder = tmp_path_factory.mktemp("site")
    with steered(folder, start=False) as made, postgres.made(made.lab.topology) as original:
        with original.connected() as connection:
            connection.execute("SET ROLE app")
            connection.execute(CREATE)
            connection.execute("GRANT SELECT ON stock.times TO reader")
        configure(made, original.site, MAX_LAG_S)
        yield made, original


def configure(made: Steered, site: Site, max_lag_s: float) -> None:
    root = made.configuration()
    service = root["services"].pop("web")
    service["endpoints"] = {"db-1": {"address": str(site.address), "port": postgres.PORT, "host": "host1"}}
    service["probe"] = {"kind": "tcp", "interval": "300ms", "timeout": "250ms"}
    service["shadows"] |= {"variables": dict(site.variables), "hosts": ["host2"], "timeout": "60s"}
    service["access"] = "read"
    service["sync"] = {
        "driver": "postgres",
        "max_lag": f"{max_lag_s:g}s",
        "on_lag": "evict",
        "interval": "200ms",
        "variables": dict(site.sync.variables),
    }
    root["services"]["db"] = service
    root["idle"] = {"closing": "1s"}
    for host in root["hosts"].values():
        host["variables"]["data_dir"] = str(site.data_dir)
    made.configure(root)


def writers(original: postgres.Primary) -> Writers:
    sessions: list[psycopg.Connection] = []

    def write(number: int) -> None:
        if not sessions or sessions[0].closed:
            sessions[:] = [original.connected(user="app")]
        sessions[0].execute(WRITE, (time.monotonic(),))
        sessions[0].execute("INSERT INTO stock.items VALUES (%s, 'x')", (number,))

    return Writers(original.site, write, [psycopg.OperationalError])


def cut(made: Steered, original: postgres.Primary, *, on: bool = True) -> None:
    """Whatever the primary sends to the shadow's host is lost; clients reach the shadow as before."""
    rule = ["iptables", "-A" if on else "-D", "INPUT", "-s", str(original.site.address), "-j", "DROP"]
    made.lab.run("host2", rule)


def test_no_client_reads_older_data_than_agreed(primary: tuple[Steered, postgres.Primary]) -> None:
    made, original = primary
    live = str(original.site.address)
    made.start()
    with writers(original) as writing:
        made.asked("shadow", "add", "db-1")
        eventually(lambda: made.shadow().get("state") == "ready", 60, made.said)
        shadow = str(made.shadow()["address"])
        with Readers(made) as readers:
            eventually(lambda: readers.servers() == {live, shadow}, 20, made.said)
            eventually(lambda: shadow in readers.servers(kept=True), 20, made.said)
            assert made.shadow()["lag"]["is_open"]

            cut_s = time.monotonic()
            cut(made, original)
            eventually(lambda: not made.shadow()["lag"]["is_open"], 2 * MAX_LAG_S, made.said)
            lost_s = time.monotonic()
            assert lost_s - cut_s > 0.5, "it serves while its data is new enough"
            passes(1.5)
            late = readers.since(lost_s + 0.5)
            assert {one.server for one in late if not one.kept} == {live}
            assert {one.server for one in late if one.kept} == {live}, "sessions are evicted"
            assert made.shadow()["state"] == "ready"
            assert "penumbra_shadow_lag_ok{" in made.metrics()

            cut(made, original, on=False)
            healed_s = time.monotonic()
            eventually(lambda: shadow in readers.servers(), 30, made.said)
            assert made.shadow()["lag"]["is_open"]
            passes(1.0)
            oldest = max(readers.seen, key=lambda one: one.age_s)
            assert oldest.age_s <= MAX_LAG_S + ROUND_S, oldest
            at_shadow = [one for one in readers.seen if one.server == shadow and one.at_s < healed_s]
            assert max(one.age_s for one in at_shadow if one.at_s > cut_s) > 0.5, "the cut did not hit"

            assert made.said().count("it gets no new flows") == 1

            # Negative control: with another agreement the same cut lets clients read older data.
            configure(made, original.site, 60.0)
            made.asked("reload")
            begun_s = time.monotonic()
            cut(made, original)
            passes(MAX_LAG_S + 1.0)
            cut(made, original, on=False)
            assert max(one.age_s for one in readers.since(begun_s)) > MAX_LAG_S + ROUND_S
        made.asked("shadow", "remove", "db-1-s1")
        eventually(lambda: not made.shadow(), 60, made.said)
    with original.connected() as connection:
        rows = connection.execute("SELECT count(*) FROM stock.items").fetchone()[0]
        connection.execute("TRUNCATE stock.items")
    assert rows >= len(writing.acknowledged), "a write that was acknowledged is lost"
    assert [one for one in original.holds() if "penumbra_" in one or "heartbeat" in one] == []
    assert PASSWORD not in made.said()
