"""Backfills of a Postgres source on real servers: what they publish while the stream goes on."""

from __future__ import annotations

import os
import signal
import time
from collections import Counter
from collections.abc import Callable
from uuid import uuid4

import psycopg
import pytest

from streamer.changes.backfill import State, Wanted, table_run
from streamer.config import Config
from streamer.postgres import backfill_run, refused_keys
from tests.harness.backfill import backfill, differences, over, reach, request, shown, tell
from tests.harness.backfilled import ROWS, TABLE, again
from tests.harness.capture import Capture, capturing, run


async def test_a_table_is_published_again(database: str, make_config: Callable[..., Config]) -> None:
    await run(database, *TABLE)
    config = make_config(database)
    async with capturing(config) as capture:
        progress = await backfill(capture, "t")
        entry = capture.status.record.detail["backfills"][-1]
        await capture.caught_up()
    assert (progress.state, progress.rows, progress.deletes) == (State.DONE, ROWS, 0)
    assert progress.chunks >= ROWS / backfill_run.CHUNK_ROWS
    assert (entry["table"], entry["state"], entry["rows"]) == ("public.t", State.DONE, ROWS)
    found = await again(config, "t")
    assert {v["op"] for v in found} == {"r"}
    assert sorted(v["after"]["id"] for v in found) == list(range(1, ROWS + 1))
    assert await differences(config) == []


@pytest.mark.parametrize(
    ("definition", "insert"),
    [
        pytest.param(
            "CREATE TABLE t (b text, v int, a int, PRIMARY KEY (a, b))",
            "INSERT INTO t SELECT 'b' || g % 7, g, g % 400 FROM generate_series(1, 2500) g",
            id="composite, not in the columns' order",
        ),
        pytest.param(
            "CREATE TABLE t (id uuid PRIMARY KEY, v int)",
            "INSERT INTO t SELECT gen_random_uuid(), g FROM generate_series(1, 2500) g",
            id="uuid",
        ),
        pytest.param(
            'CREATE TABLE t (id text COLLATE {collation} PRIMARY KEY, "Weird ""name"" %s" text)',
            "INSERT INTO t SELECT chr(33 + g % 90) || E'\\\\\\t\\'\\n' || g, 'ä'"
            " FROM generate_series(1, 2500) g",
            id="text in the order of a language",
        ),
        pytest.param(
            "CREATE TABLE t (id int, part int, v text, PRIMARY KEY (part, id)) PARTITION BY LIST (part);"
            "CREATE TABLE t1 PARTITION OF t FOR VALUES IN (1); CREATE TABLE t2 PARTITION OF t DEFAULT",
            "INSERT INTO t SELECT g, g % 3, 'v' FROM generate_series(1, 2500) g",
            id="partitioned",
        ),
        pytest.param(
            "CREATE TABLE t (v text, id int PRIMARY KEY); ALTER TABLE t REPLICA IDENTITY FULL",
            "INSERT INTO t SELECT 'v', g FROM generate_series(1, 2500) g",
            id="identity full",
        ),
        pytest.param(
            "CREATE TABLE t (a int NOT NULL, v text, b numeric NOT NULL); CREATE UNIQUE INDEX i ON t (b, a);"
            "ALTER TABLE t REPLICA IDENTITY USING INDEX i",
            "INSERT INTO t SELECT g, 'v', g / 3.0 FROM generate_series(1, 2500) g",
            id="identity index",
        ),
        pytest.param(
            "CREATE TABLE t (at timestamptz, f float8, c char(9), v int, PRIMARY KEY (at, f, c))",
            "INSERT INTO t SELECT 'epoch'::timestamptz + g * interval '1 us', g / 7.0, 'c' || g, g"
            " FROM generate_series(-1250, 1250) g",
            id="times, floats, padded texts",
        ),
    ],
)
async def test_every_kind_of_key(
    definition: str, insert: str, database: str, make_config: Callable[..., Config]
) -> None:
    with psycopg.connect(database) as connection:
        found = connection.execute(
            "SELECT quote_ident(collname) FROM pg_collation WHERE collname ~ '^(en|de|und)' LIMIT 1"
        ).fetchone()
    language = found[0] if found is not None else '"C"'
    await run(database, definition.replace("{collation}", language), insert)
    config = make_config(database)
    async with capturing(config) as capture:
        progress = await backfill(capture, "t")
        await capture.caught_up()
    rows = await again(config, "t")
    assert progress.state is State.DONE
    with psycopg.connect(database) as connection:
        assert (progress.rows,) == connection.execute("SELECT count(*) FROM t").fetchone()
    assert len(rows) == progress.rows
    assert await differences(config) == []


async def test_only_rows_of_a_condition(database: str, make_config: Callable[..., Config]) -> None:
    """Most chunks find none of them, and go on."""
    await run(database, *TABLE)
    config = make_config(database)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("streamer.postgres.chunks.WHERE_ROWS", 300)
        async with capturing(config) as capture:
            where = "id % 1000 = 7 OR v IN ('v3001', '100%', '{x}') -- every thousandth"
            progress = await backfill(capture, "t", where=where)
            wrong = await backfill(capture, "t", where="no_such_column > 1")
            sneaky = await backfill(capture, "t", where="true)) TO STDOUT; DROP TABLE t; --")
            await capture.caught_up()
    assert (progress.state, progress.rows) == (State.DONE, 6)
    assert [v["after"]["id"] for v in await again(config, "t")] == [7, 1007, 2007, 3001, 3007, 4007]
    assert wrong.state is State.FAILED
    assert 'column "no_such_column" does not exist' in wrong.reason
    assert sneaky.state is State.FAILED
    assert await differences(config) == []


async def test_keys_that_are_there_and_keys_that_are_gone(
    database: str, make_config: Callable[..., Config]
) -> None:
    await run(
        database,
        "CREATE TABLE t (a numeric(9,2), v text, b text, PRIMARY KEY (b, a))",
        "INSERT INTO t SELECT g, 'v' || g, 'x''' FROM generate_series(1, 3000) g",
    )
    config = make_config(database)
    keys = [[f"{n}.00", "x'"] for n in range(1, 2000)] + [["77", "x'"], ["5.00", "gone"], ["9999.00", "x'"]]
    async with capturing(config) as capture:
        kept = await backfill(capture, "t", keys)
        gone = await backfill(capture, "t", keys, deletes=True)
        wrong = await backfill(capture, "t", [["1.00"]])
        odd = await backfill(capture, "t", [[1, "x'"]])
        none = await backfill(capture, "t", [])
        nul = await backfill(capture, "t", [["1.00", "x\0"]])
        await capture.caught_up()
    assert (nul.state, nul.rows) == (State.FAILED, 0)
    assert "cannot contain NUL" in nul.reason
    assert (kept.state, kept.rows, kept.deletes) == (State.DONE, 2000, 0)
    assert (gone.state, gone.rows, gone.deletes) == (State.DONE, 2000, 3)
    assert (none.state, none.rows) == (State.DONE, 0)
    assert "has 1 values, the key of public.t is (a, b)" in wrong.reason
    assert "a is numeric(9,2), and a string was expected, not int" in odd.reason
    deleted = [v["before"] for v in await again(config, "t") if v["op"] == "d"]
    assert sorted(map(str, deleted)) == [
        "{'a': '5.00', 'v': None, 'b': 'gone'}",
        "{'a': '77', 'v': None, 'b': \"x'\"}",  # spelt otherwise than the row of 77.00
        "{'a': '9999.00', 'v': None, 'b': \"x'\"}",
    ]
    assert await differences(config) == []


async def test_a_key_spelt_otherwise_than_its_row_is_deleted_and_the_row_is_newer(
    database: str, make_config: Callable[..., Config]
) -> None:
    await run(
        database,
        "CREATE EXTENSION citext",
        "CREATE TABLE t (c citext, p char(4), n numeric, v text, PRIMARY KEY (n, c, p))",
        "INSERT INTO t VALUES ('Ann', 'x', 1.50, 'kept'), ('Bob', 'y', 2, 'as it is')",
    )
    config = make_config(database)
    keys = [["ann", "x   ", "1.50"], ["Ann", "x", "1.50"], ["Ann", "x   ", "1.5"], ["Bob", "y   ", "2"]]
    async with capturing(config) as capture:
        kept = await backfill(capture, "t", keys)
        gone = await backfill(capture, "t", keys, deletes=True)
        await capture.caught_up()
    assert (kept.rows, kept.deletes) == (2, 0)
    assert (gone.rows, gone.deletes) == (2, 3)
    found = await again(config, "t")
    deleted = {tuple(v["before"].values()): v["source"] for v in found if v["op"] == "d"}
    assert set(deleted) == {(*key, None) for key in map(tuple, keys[:3])}
    (row,) = [v for v in found if v["op"] == "r" and v["source"]["ordinal"] and v["after"]["c"] == "Ann"]
    assert row["after"] == {"c": "Ann", "p": "x   ", "n": "1.50", "v": "kept"}
    for source in deleted.values():
        assert (source["commit_lsn"], source["ordinal"]) < (row["source"]["commit_lsn"], 1)
    assert await differences(config) == []


async def test_a_key_that_the_source_refuses_is_not_there(
    database: str, make_config: Callable[..., Config]
) -> None:
    """No row has a label that was renamed, or what a check forbids: its delete is published, and the others'
    rows with it. Without deletes it is a mistake, and named."""
    checked = {
        "d": ("int", "VALUE > 0"),
        "b": ("bool", "VALUE"),
        "y": ("bytea", "VALUE <> '\\x00ff'"),
        "z": ("timestamptz", "VALUE > '2000-01-01Z'"),
        "f": ("float8", "VALUE > 0"),
        "m": ("interval", "VALUE > '0'"),
    }
    good = ["open", f"{uuid4()}", 1.5, 1, True, "AAA=", "2020-01-01T00:00:00Z", 0.5, "P1D"]
    bad = ["done", "none", 1e300, -1, False, "AP8=", "1999-12-31T23:59:59.5Z", -0.5, "P-1D"]
    keys = [[*good[:at], text, *good[at + 1 :]] for at, text in enumerate(bad)]
    columns = ["s st", "u uuid", "r real", *(f"{name} {name}_" for name in checked)]
    names = [column.split()[0] for column in columns]
    await run(
        database,
        "CREATE TYPE st AS ENUM ('open', 'done')",
        *(f"CREATE DOMAIN {n}_ AS {t} CHECK ({check})" for n, (t, check) in checked.items()),
        f"CREATE TABLE t ({', '.join(columns)}, v text, PRIMARY KEY ({', '.join(reversed(names))}))",
        f"INSERT INTO t VALUES ('open', '{good[1]}', 1.5, 1, true, '\\x0000', '{good[6]}', 0.5, 'P1D', 'v')",
        "ALTER TYPE st RENAME VALUE 'done' TO 'closed'",
    )
    config = make_config(database)
    async with capturing(config) as capture:
        gone = await backfill(capture, "t", [*keys, good], deletes=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(refused_keys, "TRIES", 6)  # some keys a chunk
            few = await backfill(capture, "t", [*keys, good], deletes=True)
        wrong = await backfill(capture, "t", [good, keys[0]])
        await capture.caught_up()
    assert (gone.state, gone.rows, gone.deletes) == (State.DONE, 1, len(keys)), gone.reason
    assert (few.state, few.rows, few.deletes) == (State.DONE, 1, len(keys)), few.reason
    assert few.chunks > gone.chunks == 1
    assert wrong.state is State.FAILED
    assert "s: done" in wrong.reason
    assert 'of public.t: invalid input value for enum st: "done"' in wrong.reason
    deleted = [v["before"] for v in await again(config, "t") if v["op"] == "d"]
    assert sorted(map(repr, (list(before.values()) for before in deleted))) == sorted(
        repr([*key, None]) for key in keys * 2
    )
    assert await differences(config) == []


async def test_h10_killed_in_the_middle_it_goes_on_at_its_cursor(
    database: str, make_config: Callable[..., Config]
) -> None:
    """A chunk and its progress are one Kafka transaction: every row is published once over all sessions."""
    await run(database, *TABLE)
    config = make_config(database)
    async with capturing(config):
        pass
    capture = Capture(config)
    capture.start()
    await capture.state("streaming")
    name = await request(capture, "t", rate=4_000)
    for rows in (600, 1_800):
        await reach(capture, name, lambda entry, rows=rows: entry["rows"] >= rows)
        await capture.kill()
        capture = Capture(config)
        capture.start()
        await capture.state("streaming")
    progress = await over(capture, name)
    await capture.end()
    counts = Counter(v["after"]["id"] for v in await again(config, "t"))
    assert (progress.state, progress.rows) == (State.DONE, ROWS)
    assert counts == Counter(range(1, ROWS + 1))
    assert await differences(config) == []


@pytest.mark.thorough
async def test_h10_several_at_once_killed_in_the_middle_go_on_at_their_cursors(
    database: str, make_config: Callable[..., Config]
) -> None:
    """Their chunks' marks lie between each other's, and the table of one is written meanwhile."""
    tables = ("t1", "t2", "t3")
    for table in tables:
        await run(
            database,
            f"CREATE TABLE {table} (id int PRIMARY KEY, v text)",
            f"INSERT INTO {table} SELECT g, 'v' || g FROM generate_series(1, {ROWS}) g",
        )
    config = make_config(database)
    async with capturing(config):
        pass
    capture = Capture(config)
    capture.start()
    await capture.state("streaming")
    names = [await request(capture, table, rate=2_500) for table in tables]
    for rows in (400, 1_500):
        for name in names:
            await reach(capture, name, lambda entry, rows=rows: entry["rows"] >= rows)
        await run(
            database, f"UPDATE t2 SET v = 'at {rows}' WHERE id % 3 = 0", "DELETE FROM t2 WHERE id > 4900"
        )
        await capture.kill()
        capture = Capture(config)
        capture.start()
        await capture.state("streaming")
    progress = {table: await over(capture, name) for table, name in zip(tables, names, strict=True)}
    await capture.caught_up()
    await capture.end()
    assert {each.state for each in progress.values()} == {State.DONE}
    for table in ("t1", "t3"):
        counts = Counter(value["after"]["id"] for value in await again(config, table))
        assert (progress[table].rows, counts) == (ROWS, Counter(range(1, ROWS + 1)))
    counts = Counter(value["after"]["id"] for value in await again(config, "t2"))
    assert set(counts.values()) == {1}
    assert await differences(config) == []


async def test_the_rate_holds(database: str, make_config: Callable[..., Config]) -> None:
    await run(database, *TABLE)
    config = make_config(database)
    async with capturing(config) as capture:
        name = await request(capture, "t", rate=ROWS)
        progress = await over(capture, name)
    assert progress.rows == ROWS
    assert progress.ended_us is not None
    seconds = (progress.ended_us - progress.began_us) / 1e6
    assert 0.7 < seconds < 30, "it is in rows a second; a slow machine has another limit"


async def test_the_stream_comes_first(
    database: str, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    await run(database, *TABLE)
    config = make_config(database)
    async with capturing(config) as capture:
        with monkeypatch.context() as patch:
            patch.setattr(backfill_run, "LAG_LIMIT_BYTES", 0)  # the stream is always behind
            name = await request(capture, "t")
            reason = "waits for the stream, which is behind"
            await reach(capture, name, lambda entry: entry["reason"] == reason)
            await run(database, f"INSERT INTO t VALUES ({ROWS + 1}, 'of the stream')")
            await capture.caught_up()
            assert (shown(capture, name)["rows"], await again(config, "t")) == (0, [])
        progress = await over(capture, name)
    assert (progress.state, progress.rows, progress.reason) == (State.DONE, ROWS + 1, "")
    assert await differences(config) == []


async def test_a_run_gives_way_to_a_stream_that_is_behind_until_it_is_not(
    database: str, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, look_often: None
) -> None:
    """The process that sends the stream stands still; what a backfill reads by goes on."""
    limit = 256 * 1024
    monkeypatch.setattr(backfill_run, "LAG_LIMIT_BYTES", limit)

    def lag(capture: Capture) -> int:
        known: int | None = capture.status.record.detail["lag_bytes"]
        return limit if known is None else known

    senders = "SELECT active_pid FROM pg_replication_slots WHERE database = current_database()"
    await run(database, *TABLE, "CREATE TABLE other (id int PRIMARY KEY, v text)")
    async with capturing(make_config(database)) as capture:
        await capture.caught_up()
        async with await psycopg.AsyncConnection.connect(database, autocommit=True) as connection:
            ((sender,),) = await (await connection.execute(senders)).fetchall()
            os.kill(sender, signal.SIGSTOP)
            try:
                values_of = "INSERT INTO other SELECT g, repeat('x', 500) FROM generate_series(1, 1000) g"
                await connection.execute(values_of)
                await capture.until(lambda: lag(capture) > limit)
                name = await request(capture, "t")
                reason = "waits for the stream, which is behind"
                waiting = await reach(capture, name, lambda entry: entry["reason"] == reason)
                assert (waiting["state"], waiting["rows"]) == (State.RUNNING, 0)
                looks = capture.looks
                await capture.until(lambda: capture.looks > looks + 3)
                assert (shown(capture, name)["rows"], await again(capture.config, "t")) == (0, [])
            finally:
                os.kill(sender, signal.SIGCONT)
        progress = await over(capture, name)
        assert (progress.state, progress.rows, progress.reason) == (State.DONE, ROWS, "")
        await capture.until(lambda: lag(capture) < limit)


@pytest.mark.thorough
async def test_several_at_once_and_keyed_ones_beside_them(
    database: str, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("streamer.postgres.backfill.RUNS_LIMIT", 2)
    tables = [f"t{n}" for n in range(3)]
    for table in tables:
        await run(
            database,
            f"CREATE TABLE {table} (id int PRIMARY KEY)",
            f"INSERT INTO {table} SELECT generate_series(1, 3000)",
        )
    config = make_config(database)
    async with capturing(config) as capture:
        runs = [await request(capture, table, rate=1_000) for table in tables]
        await reach(capture, runs[1], lambda entry: entry["rows"] > 0)
        await reach(capture, runs[2], lambda entry: entry["state"] is State.WAITING)
        keyed = await backfill(capture, "t2", [[1]])
        assert (keyed.state, shown(capture, runs[2])["rows"]) == (State.DONE, 0)
        await tell(capture, runs[0], Wanted.CANCEL)
        await reach(capture, runs[2], lambda entry: entry["rows"] > 0)
        assert (await over(capture, runs[1])).rows == 3000
        assert (await over(capture, runs[2])).rows == 3000


async def test_a_table_made_later_with_rows_is_published_and_copied(
    database: str, make_config: Callable[..., Config]
) -> None:
    """Rows written before, meanwhile and after it: all of them are in its topic."""
    await run(database, "CREATE TABLE first (id int PRIMARY KEY)")
    config = make_config(database)
    async with capturing(config) as capture:
        await run(
            database,
            *TABLE,
            "CREATE TABLE keyless (v int)",
            "INSERT INTO keyless VALUES (1)",
        )
        epoch = capture.status.record.detail["epoch"]
        name = table_run("shop", "public", "t", epoch)
        await reach(capture, name, lambda entry: entry["state"] is not State.WAITING)
        await run(database, "INSERT INTO t VALUES (-1, 'x')", "UPDATE t SET v = 'y' WHERE id % 100 = 0")
        progress = await over(capture, name)
        await run(database, "DELETE FROM t WHERE id < 3")
        await capture.until(lambda: any("keyless fits" in finding for finding in capture.findings))
        await capture.caught_up()
        assert not [finding for finding in capture.findings if "public.t " in finding]
    assert progress.state is State.DONE
    assert await differences(config) == []


@pytest.mark.thorough
async def test_an_alter_table_waits_for_one_chunk_at_most_and_the_stream_for_none(
    database: str, make_config: Callable[..., Config]
) -> None:
    await run(database, *TABLE, "CREATE TABLE other (id int PRIMARY KEY)")
    config = make_config(database)
    async with capturing(config) as capture:
        name = await request(capture, "t", rate=1_000)
        await reach(capture, name, lambda entry: entry["rows"] > 0)
        began_s = time.monotonic()
        async with await psycopg.AsyncConnection.connect(database) as connection:
            await connection.execute("LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
            assert time.monotonic() - began_s < 1.5
            await reach(capture, name, lambda entry: "lock timeout" in entry["reason"])
            await run(database, "INSERT INTO other VALUES (1)")
            await capture.until(
                lambda: capture.status.record.detail["tables"].get("public.other") is not None
            )
            await connection.execute("ALTER TABLE t ALTER COLUMN v TYPE varchar(90)")
        progress = await over(capture, name)
        await capture.caught_up()
    assert (progress.state, progress.rows) == (State.DONE, ROWS)
    assert await differences(config) == []


@pytest.mark.thorough
async def test_tables_published_by_hand_are_copied_whether_a_capture_runs_or_not(
    database: str, make_config: Callable[..., Config]
) -> None:
    """Without a key there is no backfill: its rows are missing, and that is said until a reset."""
    await run(database, "CREATE TABLE first (id int PRIMARY KEY)")
    await run(database, f"CREATE PUBLICATION {(config := make_config(database)).name} FOR TABLE first")
    config = make_config(database, publication={"name": config.name, "manage": False})
    made = [statement.replace(" t ", " {} ") for statement in TABLE]
    add = f"ALTER PUBLICATION {config.name} ADD TABLE"
    async with capturing(config) as capture:
        epoch = capture.status.record.detail["epoch"]
        await run(
            database, *(part.format("one") for part in made), f"{add} one", "INSERT INTO one VALUES (0, 'x')"
        )
        await over(capture, table_run("shop", "public", "one", epoch))
    await run(database, *(part.format("two") for part in made), f"{add} two")
    await run(database, "CREATE TABLE bare (v int)", "INSERT INTO bare VALUES (1)", f"{add} bare")
    for _ in range(2):
        async with capturing(config) as capture:
            progress = await over(capture, table_run("shop", "public", "two", epoch))
            await capture.until(
                lambda: any("public.bare has no key and was published later" in f for f in capture.findings)
            )
            await capture.caught_up()
            assert (progress.state, progress.rows) == (State.DONE, ROWS)
    assert [d for d in await differences(config) if "bare" not in d] == []


@pytest.mark.thorough
async def test_rows_written_before_the_table_was_published_by_hand(
    database: str, make_config: Callable[..., Config]
) -> None:
    """Their transaction is open meanwhile: the stream will not show them, so the chunks wait for it."""
    await run(database, "CREATE TABLE first (id int PRIMARY KEY)")
    await run(database, f"CREATE PUBLICATION {(config := make_config(database)).name} FOR TABLE first")
    config = make_config(database, publication={"name": config.name, "manage": False})
    async with capturing(config) as capture:
        await run(database, *TABLE)
        await capture.until(lambda: any("then copied by themselves" in f for f in capture.findings))
        early = await backfill(capture, "t")
        async with await psycopg.AsyncConnection.connect(database) as connection:
            await connection.execute("UPDATE t SET v = 'late' WHERE id < 10")
            await run(database, f"ALTER PUBLICATION {config.name} ADD TABLE t")
            name = table_run("shop", "public", "t", capture.status.record.detail["epoch"])
            await reach(capture, name, lambda entry: "before it was published" in entry["reason"])
        progress = await over(capture, name)
        await capture.caught_up()
    assert early.state is State.FAILED
    assert "is not in publication" in early.reason
    assert (progress.state, progress.rows) == (State.DONE, ROWS)
    assert await differences(config) == []
