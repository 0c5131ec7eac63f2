"""A hot standby as a target: nothing is written and no row is blamed, until it is promoted (H24)."""

from __future__ import annotations

import os
from collections.abc import Iterator

import psycopg
import pytest

from streamer.doctor.check import Findings, Level
from streamer.doctor.target import check_target
from streamer.sandbox import PostgresServer, Sandbox
from tests.harness.capture import run as execute
from tests.harness.capture import until
from tests.harness.feeder import Feeder, applying, config_of
from tests.harness.parked import COLUMNS, MADE, NAMES, QUEUES, letters, row


class Standby(PostgresServer):
    """It follows the primary by streaming replication, and answers queries."""

    def __init__(self, primary: PostgresServer) -> None:
        folder = primary.folder.with_name(f"{primary.folder.name}-standby")
        binaries = primary.program("postgres").parents[1]
        super().__init__(folder, guardian=primary.guardian, fast=True, binaries=binaries)
        self._primary = primary

    def _make_data(self) -> None:
        (self.folder / "password").write_text(self._primary.password, encoding="utf-8")
        backup = str(self._primary.program("pg_basebackup"))
        copy = ("-d", self._primary.url, "-D", str(self.data), "-R", "-X", "stream")
        if self._user is not None:
            os.chown(self.folder, *self._user)
        self._run_to_end([backup, *copy, "-c", "fast", "--no-sync"], "pg_basebackup")


@pytest.fixture
def pair(sandbox: Sandbox) -> Iterator[tuple[PostgresServer, PostgresServer]]:
    """A primary of the test's own, and its standby."""
    with sandbox.add_postgres() as primary, Standby(primary) as standby:
        yield primary, standby


async def caught_up(primary: str, standby: str) -> None:
    async with (
        await psycopg.AsyncConnection.connect(primary, autocommit=True) as one,
        await psycopg.AsyncConnection.connect(standby, autocommit=True) as two,
    ):
        row = await (await one.execute("SELECT pg_current_wal_lsn()::text")).fetchone()
        assert row is not None

        async def replayed() -> bool:
            query = "SELECT pg_last_wal_replay_lsn() >= %s::pg_lsn"
            return await (await two.execute(query, row)).fetchall() == [(True,)]

        await until(replayed)


@pytest.mark.thorough
async def test_h24_a_standby_is_waited_for_until_it_is_promoted(
    feeder: Feeder, pair: tuple[PostgresServer, PostgresServer]
) -> None:
    """A promoted standby has the original's ids: it is the same target, and goes on from its checkpoint."""
    primary, standby = pair
    await execute(primary.url, *MADE)
    table = await feeder.table("people", COLUMNS, partitions=1)
    table.create(row(1), 100)
    table.create(row(2, "bad"), 110)
    await feeder.flush()
    async with applying(config_of(feeder, primary.url)) as run:
        await run.rows(primary.url, NAMES, [(1, "good")])
        await run.rows(primary.url, QUEUES, [('{"id":2}', 1, 110, "23514")])
        await run.settled(feeder)
    await caught_up(primary.url, standby.url)
    table.create(row(3), 200)
    table.create(row(4, "bad"), 210)
    await feeder.flush()
    config = config_of(feeder, standby.url)
    async with applying(config) as run:
        await run.until(lambda: run.status.record.state == "waiting", "waiting")
        record = run.status.record
        assert "[25006]" in record.reason
        assert "point the url at the primary" in record.reason
        assert record.since_us > record.started_us
        findings = Findings("target copy")
        await check_target(findings, config, config.targets["copy"], {})
        assert {check.check for check in findings.checks if check.level is Level.FAIL} == {"primary"}
        await run.rows(standby.url, NAMES, [(1, "good")])
        assert (run.status.record.state, run.status.record.since_us) == ("waiting", record.since_us)
        assert len(await letters(feeder)) == 1
        primary.kill()
        await execute(standby.url, "SELECT pg_promote()")
        await run.rows(standby.url, NAMES, [(1, "good"), (3, "good")])
        parked = [('{"id":2}', 1, 110, "23514"), ('{"id":4}', 1, 210, "23514")]
        await run.rows(standby.url, QUEUES, parked)
        await run.until(lambda: run.status.record.state == "streaming", "going on")
    assert [letter["version"][1] for letter in await letters(feeder)] == [110, 210]


@pytest.mark.thorough
async def test_h24_a_standby_that_was_never_applied_to_is_waited_for(
    feeder: Feeder, pair: tuple[PostgresServer, PostgresServer]
) -> None:
    """Not even the schema of ours can be made there."""
    standby = pair[1]
    table = await feeder.table("people", COLUMNS, partitions=1)
    table.create(row(1), 100)
    await feeder.flush()
    async with applying(config_of(feeder, standby.url)) as run:
        await run.until(lambda: run.status.record.state == "waiting", "waiting")
        assert "[25006]" in run.status.record.reason
        await execute(standby.url, "SELECT pg_promote()")
        await run.rows(standby.url, NAMES, [(1, "good")])
    assert await letters(feeder) == []
