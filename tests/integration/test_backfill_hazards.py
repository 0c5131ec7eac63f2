"""The rules of chunks on a real server: commits that do not show yet, sessions that change what is read."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from psycopg import errors

from streamer.changes.backfill import State, table_run
from streamer.config import Config
from streamer.postgres import backfill_run, chunks
from streamer.postgres.transactions import Transactions
from streamer.postgres.windows import Window, Windows
from streamer.sandbox import PostgresServer
from tests.harness.backfill import backfill, differences, over, reach, request, shown
from tests.harness.capture import Capture, capturing, confirmed_lsn, events, run, until, values

ROWS = 2_500
TABLE = (
    "CREATE TABLE t (id int PRIMARY KEY, v text)",
    f"INSERT INTO t SELECT g, 'old' FROM generate_series(1, {ROWS}) g",
)
KEYS = 600
VOID_SHARE = 0.1  # of the chunks, on top of those that are void by themselves
COMMITS_A_WINDOW = 25  # of the sessions between a chunk's rows and its close mark


@pytest.fixture
async def own_server(sandbox: Any) -> AsyncIterator[PostgresServer]:
    """A Postgres whose settings may be changed."""
    server: PostgresServer = sandbox.add_postgres().start()
    yield server
    server.kill()


@asynccontextmanager
async def held_commit(url: str, statement: str) -> AsyncIterator[None]:
    """Within it the statement's commit is in the WAL, and does not show: its standby is not there."""
    await run(url, "ALTER SYSTEM SET synchronous_standby_names = 'nobody'", "SELECT pg_reload_conf()")
    holding = asyncio.create_task(run(url, statement))

    async def waits() -> bool:
        async with await psycopg.AsyncConnection.connect(url) as connection:
            cursor = await connection.execute("SELECT FROM pg_stat_activity WHERE wait_event = 'SyncRep'")
            return await cursor.fetchone() is not None

    try:
        await until(waits)
        yield
        assert not holding.done()
    finally:
        await run(url, "ALTER SYSTEM RESET synchronous_standby_names", "SELECT pg_reload_conf()")
        await holding


async def published_update(capture: Capture) -> int:
    """The commit LSN of the update that is held, once it is in Kafka."""
    found: list[int] = []

    async def there() -> bool:
        found[:] = [
            v["source"]["commit_lsn"] for v in values(await events(capture.config, "t")) if v["op"] == "u"
        ]
        return bool(found)

    await until(there)
    return found[0]


async def test_h09_a_commit_that_does_not_show_yet_is_not_overwritten(
    own_server: PostgresServer, make_config: Callable[..., Config]
) -> None:
    """Its new rows are published; chunks read the old ones, before and after a kill -9, until it shows."""
    await run(own_server.url, *TABLE)
    config = make_config(own_server.url)
    capture = Capture(config)
    capture.start()
    await capture.state("streaming")
    await capture.caught_up()
    async with held_commit(own_server.url, "UPDATE t SET v = 'new' WHERE id IN (1, 2, 2000)"):
        commit_lsn = await published_update(capture)
        name = await request(capture, "t")
        for _ in range(2):
            await reach(
                capture,
                name,
                lambda entry: entry["reread"] >= 2 and "waits for a standby" in entry["reason"],
            )
            entry = shown(capture, name)
            assert (entry["state"], entry["rows"]) == (State.RUNNING, 0)
            assert await confirmed_lsn(config) <= commit_lsn
            await capture.kill()
            capture = Capture(config)
            capture.start()
    progress = await over(capture, name)
    await capture.caught_up()
    await until(lambda: _confirmed_past(config, commit_lsn))
    await capture.end()
    assert (progress.state, progress.rows) == (State.DONE, ROWS)
    assert await differences(config) == []


async def _confirmed_past(config: Config, lsn: int) -> bool:
    return await confirmed_lsn(config) > lsn


@pytest.mark.parametrize("rule", ["a commit before the open mark shows", "a restart shows it again"])
async def test_h09_without_the_rule_the_same_scene_loses_the_update(
    rule: str, own_server: PostgresServer, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    killed = rule == "a restart shows it again"
    if killed:
        monkeypatch.setattr(Transactions, "confirmable", lambda _, recorded_lsn: recorded_lsn)
    else:
        monkeypatch.setattr(Window, "committed", lambda *_: None)
    await run(own_server.url, *TABLE)
    config = make_config(own_server.url)
    capture = Capture(config)
    capture.start()
    await capture.state("streaming")
    await capture.caught_up()
    async with held_commit(own_server.url, "UPDATE t SET v = 'new' WHERE id IN (1, 2, 2000)"):
        commit_lsn = await published_update(capture)
        if killed:
            await until(lambda: _confirmed_past(config, commit_lsn))
            await capture.kill()
            capture = Capture(config)
            capture.start()
            await capture.state("streaming")
        progress = await backfill(capture, "t")
    await capture.caught_up()
    await capture.end()
    assert progress.rows == ROWS
    assert "lacks 3 rows" in (await differences(config))[0]


async def test_h10_a_chunk_that_is_being_read_goes_back_with_the_one_before_it(
    database: str, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The void comes while the next chunk's rows are on their way: published, it would leave a gap."""
    read, numbers = chunks.read_chunk, itertools.count(1)

    async def void_and_wait(connection: Any, walk: Any, window: Window, run: str, part: Any) -> Any:
        number = next(numbers)
        chunk = await read(connection, walk, window, run, part)
        if number == 2:
            window.void = "the test wants it so"
        if number == 3:
            table_run = window.close.__self__

            async def gone_back() -> bool:
                return table_run.progress.reread > 0

            await until(gone_back)
        return chunk

    await run(database, *TABLE)
    monkeypatch.setattr(chunks, "read_chunk", void_and_wait)
    config = make_config(database)
    async with capturing(config) as capture:
        progress = await backfill(capture, "t")
    found = [v for v in values(await events(config, "t")) if v["source"]["snapshot"] == "incremental"]
    assert sorted(v["after"]["id"] for v in found) == list(range(1, ROWS + 1))
    assert (progress.rows, progress.reread) == (ROWS, 1)


async def test_h11_a_chunk_is_not_read_on_a_standby(
    database: str, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The chunk's own transaction asks, since a primary may have become one; here a table answers for it."""
    await run(database, *TABLE, "CREATE TABLE standby ()", "INSERT INTO standby DEFAULT VALUES")
    asked = chunks._LOOK.replace("pg_is_in_recovery()", "EXISTS (SELECT FROM standby)")
    assert asked != chunks._LOOK
    monkeypatch.setattr(chunks, "_LOOK", asked)
    async with capturing(make_config(database, tables={"public.t": {}})) as capture:
        name = await request(capture, "t")
        await reach(capture, name, lambda entry: "became a standby" in entry["reason"])
        assert shown(capture, name)["rows"] == 0
        await run(database, "TRUNCATE standby")
        progress = await over(capture, name)
    assert progress.rows == ROWS


async def test_h08_a_chunk_locks_its_table_before_its_snapshot(
    database: str, make_config: Callable[..., Config]
) -> None:
    """A rewrite leaves an empty table to snapshots from before it, and sends no event."""
    await run(database, *TABLE)
    async with capturing(make_config(database)) as capture:
        async with await psycopg.AsyncConnection.connect(database) as connection:
            await connection.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
            name = await request(capture, "t")
            await until(lambda: _waits_for_lock(database))
            await connection.execute("ALTER TABLE t ALTER COLUMN v TYPE text USING v || ''")
        progress = await over(capture, name)
    assert (progress.state, progress.rows) == (State.DONE, ROWS)


async def _waits_for_lock(url: str) -> bool:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        cursor = await connection.execute(
            "SELECT FROM pg_locks WHERE NOT granted AND mode = 'AccessShareLock' AND relation = 't'::regclass"
        )
        return await cursor.fetchone() is not None


# ---- sessions that change the table while it is read ---------------------------------------------

BIG = "repeat(md5(random()::text), 90)"  # out of line, and not compressed: an update may leave it out
MAKE = (
    "CREATE TABLE {0} (id int PRIMARY KEY, v text, big text)",
    "ALTER TABLE {0} ALTER COLUMN big SET STORAGE EXTERNAL",
    f"INSERT INTO {{0}} SELECT g, 'first', {BIG} FROM generate_series(1, {KEYS}, 2) g",
)


class Clock:
    """Counts the commits of the sessions; a chunk waits for some of them before its close mark."""

    def __init__(self) -> None:
        self.commits = 0
        self.stopped = False
        self._changed = asyncio.Condition()

    async def tick(self) -> None:
        async with self._changed:
            self.commits += 1
            self._changed.notify_all()

    async def stop(self) -> None:
        async with self._changed:
            self.stopped = True
            self._changed.notify_all()

    async def wait(self, commits: int) -> None:
        until = self.commits + commits
        async with self._changed:
            await self._changed.wait_for(lambda: self.stopped or self.commits >= until)


class Session:
    """One session that changes a table at random: savepoints, key changes, truncates, deletes, rollbacks."""

    def __init__(self, url: str, table: str, seed: int, clock: Clock) -> None:
        self._clock = clock
        self._url = url
        self._table = table
        self._random = random.Random(seed)
        self.truncates = False

    async def play(self) -> None:
        async with await psycopg.AsyncConnection.connect(self._url) as connection:
            await connection.execute("SET lock_timeout = '300ms'")
            await connection.commit()
            while not self._clock.stopped:
                try:
                    for _ in range(self._random.randint(1, 5)):
                        await self._step(connection)
                    if self._random.random() < 0.85:
                        await connection.commit()
                        await self._clock.tick()
                    else:
                        await connection.rollback()
                except (errors.LockNotAvailable, errors.DeadlockDetected, errors.UniqueViolation):
                    await connection.rollback()

    async def _step(self, connection: psycopg.AsyncConnection[Any]) -> None:
        if self._random.random() < 0.3:
            await connection.execute("SAVEPOINT s")
            await connection.execute(self._change())
            if self._random.random() < 0.5:
                await connection.execute("ROLLBACK TO s")
        else:
            await connection.execute(self._change())

    def _change(self) -> str:
        key, new = self._random.randint(1, KEYS), self._random.randint(1, KEYS)
        value = f"'v{self._random.random()}'"
        if self.truncates and self._random.random() < 0.001:
            return f"TRUNCATE {self._table}"
        return self._random.choice(
            [
                f"INSERT INTO {self._table} SELECT n, {value}, {BIG} FROM generate_series({key}, {key + 9}) n"
                " ON CONFLICT DO NOTHING",
                f"UPDATE {self._table} SET v = {value}, big = {BIG} WHERE id = {key}",
                f"UPDATE {self._table} SET v = {value} WHERE id = {key}",
                f"UPDATE {self._table} SET v = {value} WHERE id BETWEEN {key} AND {key + 5}",
                f"UPDATE {self._table} SET id = {new}, big = {BIG} WHERE id = {key}",
                f"DELETE FROM {self._table} WHERE id = {key}",
            ]
        )


@asynccontextmanager
async def playing(url: str, table: str, seed: int, clock: Clock) -> AsyncIterator[list[Session]]:
    sessions = [Session(url, table, seed * 10 + n, clock) for n in range(3)]
    async with asyncio.TaskGroup() as tasks:
        for session in sessions:
            tasks.create_task(session.play())
        try:
            yield sessions
        finally:
            await clock.stop()


async def _round(config: Config, url: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A table with rows is made, and backfilled while it changes: by itself, killed once, then again.

    The sessions end with the last run, so that what a chunk has overwritten is not mended by later events.
    """
    chosen, clock = random.Random(seed), Clock()
    close = chunks.close_chunk

    async def wait_and_close(connection: Any, window: Window, run: str) -> None:
        await clock.wait(chosen.randint(0, COMMITS_A_WINDOW))
        if chosen.random() < VOID_SHARE:
            window.void = "the test wants it so"
        await close(connection, window, run)

    table = f"t{seed}"
    with monkeypatch.context() as patch:
        patch.setattr(chunks, "close_chunk", wait_and_close)
        patch.setattr(backfill_run, "CHUNK_ROWS", chosen.choice([25, 60, 150, 1000]))
        patch.setattr(backfill_run, "FIRST_ROWS", chosen.choice([1, 20, 100]))
        capture = Capture(config)
        capture.start()
        await capture.state("streaming")
        await run(url, *(statement.format(table) for statement in MAKE))
        async with playing(url, table, seed, clock) as sessions:
            name = table_run("shop", "public", table, capture.status.record.detail["epoch"])
            enough = chosen.choice([0, 1, 3])
            await reach(capture, name, lambda entry: entry["chunks"] >= enough or entry["state"].over)
            for session in sessions:
                session.truncates = True  # not before: an empty table is published without a backfill
            if chosen.random() < 0.7:
                await capture.kill()
                capture = Capture(config)
                capture.start()
            await reach(capture, name, lambda entry: entry["state"] is State.DONE)
            await _several(capture, table, chosen)
        await capture.caught_up()
        await capture.end()
    return await differences(config)


async def _several(capture: Capture, table: str, chosen: random.Random) -> None:
    """None to three runs of the table at once."""
    keys = [[n] for n in range(1, KEYS)]
    runs = [
        await request(capture, table, **more)
        for more in chosen.sample(
            [{}, {"where": "id % 3 = 0"}, {"keys": chosen.sample(keys, 200), "deletes": True}],
            chosen.randint(0, 3),
        )
    ]
    for name in runs:
        await reach(capture, name, lambda entry: entry["state"] is State.DONE)


@pytest.mark.thorough
async def test_h07_h10_sessions_that_change_what_is_read(
    database: str, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(database, tables={"public.t*": {}})
    for seed in (1, 2):
        assert await _round(config, database, seed, monkeypatch) == [], f"seed {seed}"


@pytest.mark.thorough
@pytest.mark.parametrize("first", range(100, 200, 10))
async def test_h07_h10_sessions_that_change_what_is_read_more_often(
    first: int, database: str, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = make_config(database, tables={"public.t*": {}})
    for seed in range(first, first + 10):
        assert await _round(config, database, seed, monkeypatch) == [], f"seed {seed}"


@pytest.mark.thorough
@pytest.mark.parametrize("without", ["dropped", "owed"])
async def test_h07_h10_without_the_rule_sessions_lose_rows(
    without: str, database: str, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    judge = Windows._judge
    nothing: Any = {without: frozenset()}
    monkeypatch.setattr(Windows, "_judge", lambda self, window: judge(self, window)._replace(**nothing))
    config = make_config(database, tables={"public.t*": {}})
    for seed in range(5):
        if await _round(config, database, seed, monkeypatch):
            return
    raise AssertionError(f"the sessions do not meet a chunk: nothing went wrong without {without}")
