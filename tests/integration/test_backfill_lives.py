"""The life of a backfill's run: refused, paused, failed, resumed, given up, forgotten."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace

import psycopg
import pytest

from streamer.backfills import ask, read_runs
from streamer.changes.backfill import Request, State, Wanted
from streamer.config import Config
from streamer.postgres import backfill_run, chunks
from streamer.runner import reset_source
from tests.harness.backfill import backfill, differences, over, reach, recorded, request, shown, tell
from tests.harness.backfilled import ROWS, TABLE, again
from tests.harness.capture import capturing, run, until


async def test_paused_resumed_cancelled(database: str, make_config: Callable[..., Config]) -> None:
    await run(database, *TABLE)
    config = make_config(database)
    async with capturing(config) as capture:
        name = await request(capture, "t", rate=400)
        await reach(capture, name, lambda entry: entry["rows"] > 0)
        await tell(capture, name, Wanted.PAUSE)
        paused = await reach(capture, name, lambda entry: entry["state"] is State.PAUSED)
        assert (paused["reason"], paused["rows"] < ROWS) == ("by test", True)
    async with capturing(config) as capture:
        await reach(capture, name, lambda entry: entry["state"] is State.PAUSED)
        assert shown(capture, name)["rows"] == paused["rows"]
        await tell(capture, name, Wanted.RUN)
        await reach(capture, name, lambda entry: entry["rows"] > paused["rows"])
        await tell(capture, name, Wanted.CANCEL)
        progress = await over(capture, name)
    assert progress.state is State.CANCELLED
    assert paused["rows"] < progress.rows < ROWS
    assert len(await again(config, "t")) == progress.rows
    assert await differences(config) == []


async def test_h27_tables_that_cannot_be_backfilled_are_refused_by_name(
    database: str, make_config: Callable[..., Config]
) -> None:
    await run(
        database,
        "CREATE TABLE keyless (v int)",
        "CREATE TABLE full_identity (v int)",
        "ALTER TABLE full_identity REPLICA IDENTITY FULL",
        "CREATE TABLE left_out (id int PRIMARY KEY)",
        "CREATE TABLE filtered (id int PRIMARY KEY)",
        "CREATE TABLE p (id int PRIMARY KEY) PARTITION BY LIST (id)",
        "CREATE TABLE p1 PARTITION OF p DEFAULT",
    )
    tables = {"public.left_out": "exclude", "public.filtered": {"where": "id > 1"}, "public.*": {}}
    config = make_config(database, tables=tables)
    async with capturing(config) as capture:
        reasons = {}
        for table in ("keyless", "full_identity", "left_out", "filtered", "p1", "missing"):
            progress = await backfill(capture, table)
            assert progress.state is State.FAILED
            reasons[table] = progress.reason
    assert "public.keyless has no key" in reasons["keyless"]
    assert "public.full_identity has no key" in reasons["full_identity"]
    assert "public.left_out is not captured: name it in `tables:`" in reasons["left_out"]
    assert "public.filtered is not captured, because a row filter" in reasons["filtered"]
    assert "of a partitioned table its root" in reasons["p1"]
    assert "public.missing is not there" in reasons["missing"]


@pytest.mark.thorough
async def test_dropped_or_altered_in_the_middle(
    database: str, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    await run(
        database,
        *TABLE,
        "CREATE TABLE gone (id int PRIMARY KEY)",
        "INSERT INTO gone SELECT generate_series(1, 5000)",
    )
    config = make_config(database)
    async with capturing(config) as capture:
        altered = await request(capture, "t", rate=2_500)
        dropped = await request(capture, "gone", rate=2_500)
        with monkeypatch.context() as patch:
            for name in (altered, dropped):
                await reach(capture, name, lambda entry: entry["rows"] > 0)
            patch.setattr(backfill_run, "LAG_LIMIT_BYTES", 0)  # they wait until all of it is done
            await run(
                database,
                "ALTER TABLE t ADD COLUMN w int",
                "UPDATE t SET w = id WHERE id > 4000",
                "DROP TABLE gone",
            )
        progress = await over(capture, altered)
        failed = await over(capture, dropped)
        await capture.caught_up()
    assert (progress.state, failed.state) == (State.DONE, State.FAILED)
    assert progress.reread > 0
    assert "public.gone is not there (it was dropped or renamed" in failed.reason
    found = await again(config, "t")
    assert [v["after"].get("w", "none") for v in found if v["after"]["id"] == 1] == ["none"]
    assert [v["after"]["w"] for v in found if v["after"]["id"] == ROWS] == [ROWS]


async def test_a_reset_in_the_middle(database: str, make_config: Callable[..., Config]) -> None:
    """The run goes on in the next epoch, whose first copy has the changes that no capture has seen."""
    await run(database, "CREATE TABLE t (id int PRIMARY KEY, v int)")
    await run(database, "INSERT INTO t SELECT g, g FROM generate_series(1, 1500) g")
    config = make_config(database)
    async with capturing(config) as capture:
        name = await request(capture, "t", rate=1_000)
        await reach(capture, name, lambda entry: entry["rows"] > 0)
    await run(database, "UPDATE t SET v = 0 WHERE id % 2 = 0", "DELETE FROM t WHERE id % 10 = 1")
    epoch = await reset_source(config, "shop", brokers=config.kafka.brokers)
    async with capturing(config) as capture:
        progress = await over(capture, name)
        await capture.caught_up()
    assert (progress.state, progress.reason) == (State.DONE, "")
    epochs = [v["source"]["epoch"] for v in await again(config, "t")]
    assert {epoch - 1, epoch} == set(epochs)
    assert len(epochs) == progress.rows < 1500
    assert await differences(config) == []


async def test_a_row_above_the_message_limit_fails_the_run_and_not_the_capture(
    database: str, make_config: Callable[..., Config]
) -> None:
    await run(database, "CREATE TABLE t (id int PRIMARY KEY, v text)")
    config = make_config(database, snapshot={"mode": "never"})
    await run(
        database, "INSERT INTO t SELECT g, repeat('x', 9000000 * (g / 10)) FROM generate_series(1, 10) g"
    )
    async with capturing(config) as capture:
        progress = await backfill(capture, "t")
        assert progress.state is State.FAILED
        await run(database, "INSERT INTO t VALUES (11, 'after')")
        await capture.caught_up()
    assert 'bytes is above the message limit; its key is {"id":10}' in progress.reason


async def test_a_failed_run_goes_on_when_it_is_resumed(
    database: str, make_config: Callable[..., Config]
) -> None:
    await run(database, *TABLE)
    config = make_config(database, tables={"public.*": {}})
    async with capturing(config) as capture:
        name = await request(capture, "t", where="v < f()")
        progress = await over(capture, name)
        assert "function f() does not exist" in progress.reason
        await run(database, "CREATE FUNCTION f() RETURNS text IMMUTABLE LANGUAGE sql RETURN 'v2'")
        await tell(capture, name, Wanted.RUN)
        await reach(capture, name, lambda entry: entry["state"] is State.DONE)
        async with asyncio.timeout(60):
            while (progress := await recorded(config, name)).state is not State.DONE:
                pass
    with psycopg.connect(database) as connection:
        assert (progress.rows,) == connection.execute("SELECT count(*) FROM t WHERE v < 'v2'").fetchone()


async def test_a_failed_run_is_given_up_by_a_person_or_by_a_later_one_of_the_whole_table(
    database: str, make_config: Callable[..., Config]
) -> None:
    await run(database, *TABLE)
    async with capturing(make_config(database)) as capture:
        names = [await request(capture, "t", where="v < f()") for _ in range(2)]
        for name in names:
            await over(capture, name)
        await tell(capture, names[0], Wanted.CANCEL)
        await reach(capture, names[0], lambda entry: entry["state"] is State.CANCELLED)
        assert shown(capture, names[1])["state"] is State.FAILED
        await backfill(capture, "t")
        await reach(capture, names[1], lambda entry: entry["state"] is State.CANCELLED)


@pytest.mark.thorough
async def test_a_chunk_that_the_server_cancels_fails_the_run(
    database: str, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    await run(database, *TABLE)
    session = chunks._SESSION.replace("'60s'", "'300ms'")
    assert session != chunks._SESSION
    monkeypatch.setattr(chunks, "_SESSION", session)
    async with capturing(make_config(database)) as capture:
        progress = await backfill(capture, "t", where="id < 10 AND pg_sleep(0.1) IS NOT NULL")
    assert progress.state is State.FAILED
    assert "canceling statement due to statement timeout" in progress.reason


@pytest.mark.thorough
async def test_what_is_asked_for_twice_is_one_run_and_what_is_long_over_is_forgotten(
    database: str, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    await run(database, *TABLE)
    config = make_config(database)
    brokers, name = config.kafka.brokers, config.name
    assert await read_runs(brokers, None, name) == {}
    keys = [[n % ROWS + 1] for n in range(100_000)]
    asked = Request("twice", "shop", schema="public", table="t", rate=5_000, asked_us=1)
    first = await ask(brokers, None, name, asked, keys)
    second = await ask(brokers, None, name, replace(asked, by="another", asked_us=2), keys)
    assert first.request == second.request
    found = (await read_runs(brokers, None, name, source="shop"))["twice"]
    assert (found.keys(), found.state) == ([tuple(key) for key in keys], State.WAITING)
    assert len(found.parts) > 1
    async with capturing(config) as capture:
        await reach(capture, "twice", lambda entry: entry["rows"] > 0)
        await tell(capture, "twice", Wanted.CANCEL)
        progress = await over(capture, "twice")
        assert 0 < progress.rows < len(keys)
        monkeypatch.setattr("streamer.backfill_ledger.KEEP_DONE_US", 0)

        async def forgotten() -> bool:
            return await read_runs(brokers, None, name) == {}

        await until(forgotten)
