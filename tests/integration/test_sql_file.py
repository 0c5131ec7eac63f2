"""The sql target's file: its faults, locks, a full disk, copies, and processes that share it."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from sqlalchemy import Engine, event

from consumers.testing import Log
from streamer.errors import ConfigError, FatalError, TargetUnavailable
from tests.harness.sql_file import SOURCE, lite, people, person, target_of


async def test_faults_of_the_file_are_named_with_their_mends(tmp_path: Path) -> None:
    async def opened(file: Path) -> None:
        target = target_of(file, {"f": {}})
        try:
            await target.open()
        finally:
            await target.close()

    with pytest.raises(
        ConfigError, match=r"there is no folder .*/none for the database's file\n  -> mkdir -p"
    ):
        await opened(tmp_path / "none" / "copy.db")
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=r"is a folder\n  -> name a file"):
        await opened(tmp_path / "folder")
    (tmp_path / "words").write_text("this is not a database, but it is long enough to look into " * 100)
    with pytest.raises(FatalError, match="is no SQLite database"):
        await opened(tmp_path / "words")


async def test_a_locked_file_is_an_outage(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("consumers.targets.sql_sqlite.BUSY_TIMEOUT_S", 0.05)
    async with lite(file) as at:
        table = people(at)
        table.create(person(1))
        await at.apply()
        table.create(person(2))
        with closing(sqlite3.connect(file, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(TargetUnavailable, match=r"locked.*\n  -> another program holds"):
                await at.apply()
            other.execute("ROLLBACK")
        await at.apply()
        assert at.rows("SELECT id FROM people ORDER BY id") == [(1,), (2,)]


@contextmanager
def pages_at_most(count: int) -> Iterator[None]:
    """Every session from now on finds its disk full above so many pages."""

    def limit(connection: sqlite3.Connection, _: object) -> None:
        connection.execute(f"PRAGMA max_page_count = {count}")

    event.listen(Engine, "connect", limit)
    try:
        yield
    finally:
        event.remove(Engine, "connect", limit)


async def test_a_full_disk_is_an_outage_and_no_row_is_blamed(file: Path) -> None:
    log = Log(SOURCE)
    with pages_at_most(80):
        async with lite(file, log=log) as at:
            table = people(at)
            for n in range(500):
                table.create(person(n, "x" * 2000))
            with pytest.raises(TargetUnavailable, match=r"full \(SQLITE_FULL\)\n  -> make room"):
                await at.apply()
            assert at.rows("SELECT count(*) FROM people") == [(0,)]
    async with lite(file, log=log) as at:
        await at.apply()
        assert at.rows("SELECT count(*) FROM people") == [(500,)]


async def test_two_processes_on_one_file_take_turns(file: Path) -> None:
    async with lite(file) as at, lite(file, log=at.log) as other:
        table = people(at)
        for round_ in range(10):
            for n in range(200):
                table.update(person(n, f"r{round_}"))
            await asyncio.gather(at.part(0), other.part(1))
        assert at.rows("SELECT name, count(*) FROM people GROUP BY 1") == [("r9", 200)]
        ends = {place: len(at.log.records[place[1:]]) for place in at.log.places(at.flows)}  # type: ignore[index]
        found = await at.target.checkpoints(ends)
        assert {place: c.next_offset for place, c in found.items()} == ends


async def test_h30_a_copy_of_the_file_is_refused_and_one_that_was_moved_is_not(file: Path) -> None:
    async with lite(file) as at:
        people(at).create(person(1))
        await at.apply()
        id_ = at.target.id
    copied, moved = file.with_name("copied.db"), file.with_name("moved.db")
    shutil.copy(file, copied)
    target = target_of(copied, {"flow0": {}})
    with pytest.raises(FatalError, match="this file is a copy of"):
        await target.open()
    await target.close()
    copied.unlink()
    shutil.move(file, moved)
    async with lite(moved) as at:
        assert at.target.id == id_
    async with lite(moved) as at:
        assert at.target.id == id_


async def test_a_session_that_was_given_up_ends_its_batch_first(file: Path) -> None:
    """A cancelled apply is as good as a process that died after its commit."""
    async with lite(file) as at:
        table = people(at)
        for n in range(3000):
            table.create(person(n))
        checkpoints = await at.target.checkpoints(at.log.places(at.flows))
        starts = {place: checkpoint.next_offset for place, checkpoint in checkpoints.items()}
        batch = await at.log.batch(at.flows, starts)
        task = asyncio.create_task(at.target.apply(batch))
        await asyncio.sleep(0)  # it is in the target's thread now
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await at.target.open()
        outcome = await at.apply()
        assert outcome.lost == []
        assert at.rows("SELECT count(*) FROM people") == [(3000,)]
