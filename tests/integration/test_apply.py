"""Apply on a real Kafka and a real Postgres, fed with envelopes of the real builders."""

from __future__ import annotations

import psycopg
import pytest

from consumers import views
from consumers.apply import condition
from streamer.changes.kinds import UNAVAILABLE
from streamer.sandbox import PostgresServer
from tests.harness.feeder import Feeder, applying, config_of
from tests.harness.people import COLUMNS, IDS, filled, make


async def test_inserts_updates_deletes_and_key_changes_arrive(feeder: Feeder, target_database: str) -> None:
    table = await feeder.table("people", COLUMNS)
    for n in range(20):
        table.create({"id": n, "name": f"n{n}", "note": 'quote " back \\ tab \t, {x}'}, 100)
    table.update({"id": 3, "name": "three", "note": None}, 110)
    table.delete({"id": 4, "name": None, "note": None}, 120)
    table.delete({"id": 5, "name": None, "note": None}, 130, 0)
    table.create({"id": 50, "name": "moved", "note": ""}, 130, 1)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, "SELECT count(*) FROM mirror.people", [(19,)])
        await run.rows(
            target_database,
            "SELECT id, name, note FROM mirror.people WHERE id IN (3, 4, 5, 6, 50) ORDER BY id",
            [(3, "three", None), (6, "n6", 'quote " back \\ tab \t, {x}'), (50, "moved", "")],
        )
        table.delete({"id": 50, "name": None, "note": None}, 140)
        table.update({"id": 3, "name": "drei", "note": "x"}, 150)
        await feeder.flush()
        await run.rows(
            target_database,
            "SELECT id, name, _tailrace_epoch, _tailrace_lsn FROM mirror.people WHERE id IN (3, 50)",
            [(3, "drei", 1, 150)],
        )
        await run.settled(feeder)
        assert run.flow()["applied"] == 26
        assert run.flow()["guarded"] == 0
        await run.stop()
    async with await psycopg.AsyncConnection.connect(target_database) as connection:
        rows = await (
            await connection.execute("SELECT sum(next_offset) FROM _tailrace.checkpoints")
        ).fetchall()
    assert rows[0][0] > 26


async def test_truncate_leaves_what_came_after_it_in_every_partition(
    feeder: Feeder, target_database: str
) -> None:
    table = await feeder.table("people", COLUMNS, partitions=4)
    for n in range(40):
        table.create({"id": n, "name": "before", "note": None}, 100)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, "SELECT count(*) FROM mirror.people", [(40,)])
        table.truncate(200)
        for n in range(5):
            table.create({"id": n, "name": "after", "note": None}, 210)
        await feeder.flush()
        await run.rows(target_database, "SELECT name, count(*) FROM mirror.people GROUP BY 1", [("after", 5)])


async def test_an_older_version_never_overwrites_a_newer_row(feeder: Feeder, target_database: str) -> None:
    table = await feeder.table("people", COLUMNS)
    table.create({"id": 1, "name": "new", "note": None}, 200, 5)
    table.create({"id": 2, "name": "new", "note": None}, 200, 6)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, "SELECT count(*) FROM mirror.people", [(2,)])
        table.update({"id": 1, "name": "old", "note": None}, 200, 4)
        table.delete({"id": 2, "name": None, "note": None}, 199)
        await feeder.flush()
        await run.settled(feeder)
        await run.rows(
            target_database, "SELECT id, name FROM mirror.people ORDER BY 1", [(1, "new"), (2, "new")]
        )
        assert run.flow()["guarded"] == 2


async def test_everything_again_changes_nothing_and_is_counted(feeder: Feeder, target_database: str) -> None:
    table = await feeder.table("people", COLUMNS)
    config = config_of(feeder, target_database)
    async with applying(config) as run:
        for n in range(10):
            table.create({"id": n, "name": f"n{n}", "note": None}, 100)
        await feeder.flush()
        await run.rows(target_database, "SELECT count(*) FROM mirror.people", [(10,)])
        table.update({"id": 1, "name": "one", "note": "x"}, 110)
        table.delete({"id": 2, "name": None, "note": None}, 120)
        await feeder.flush()
        await run.rows(target_database, "SELECT count(*) FROM mirror.people", [(9,)])
        await run.stop()
    query = "SELECT array_agg(p::text ORDER BY id) FROM mirror.people p"
    async with await psycopg.AsyncConnection.connect(target_database, autocommit=True) as connection:
        before = await (await connection.execute(query)).fetchall()
        await connection.execute("DELETE FROM _tailrace.checkpoints")
    async with applying(config_of(feeder, target_database, batch="{rows: 1}")) as run:
        await run.settled(feeder)
        await run.rows(target_database, query, before)
        assert run.flow()["guarded"] == 2  # the first version of row 1, and of row 2, which a tombstone holds


async def test_placeholders_merge_with_what_went_before_in_the_batch(
    feeder: Feeder, target_database: str
) -> None:
    table = await feeder.table("docs", COLUMNS)
    table.create({"id": 1, "name": "one", "note": "big"}, 100)
    table.update({"id": 1, "name": "uno", "note": UNAVAILABLE}, 110)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        query = "SELECT id, name, note, _tailrace_lsn FROM mirror.docs"
        await run.rows(target_database, query, [(1, "uno", "big", 110)])


async def test_h27_a_table_without_a_key_is_a_multiset(feeder: Feeder, target_database: str) -> None:
    columns = [
        ("a", "integer", "number"),
        ("j", "json", "json"),
        ("p", "point", "text"),
        ("t", "text", "text"),
    ]
    table = await feeder.table("log", columns, key=(), identity="f")
    twin = {"a": 1, "j": '{"x": 1}', "p": "(1,2)", "t": None}
    for n in range(3):
        table.create(twin, 100, n)
    table.create({**twin, "a": 2}, 101)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        query = "SELECT a, j::text, p::text, t FROM mirror.log ORDER BY a, t NULLS FIRST"
        rows = [(1, '{"x": 1}', "(1,2)", None)] * 3 + [(2, '{"x": 1}', "(1,2)", None)]
        await run.rows(target_database, query, rows)
        table.delete(twin, 110)
        table.update({**twin, "t": "new"}, 120, old=twin)
        await feeder.flush()
        rows = [rows[0], (1, '{"x": 1}', "(1,2)", "new"), rows[3]]
        await run.rows(target_database, query, rows)
        table.truncate(200)
        table.create({**twin, "a": 9}, 201)
        await feeder.flush()
        await run.rows(target_database, query, [(9, '{"x": 1}', "(1,2)", None)])
        await run.stop()
    async with applying(config_of(feeder, target_database)) as run:
        await run.settled(feeder)
        await run.rows(target_database, query, [(9, '{"x": 1}', "(1,2)", None)])


async def test_odd_names(feeder: Feeder, target_database: str) -> None:
    long = "é" * 31 + "x"  # 63 bytes
    columns = [('k"ey', "integer", "number"), ("%s $1 WITH", "text", "text"), (long, "text", "text")]
    table = await feeder.table('Odd "table" %', columns, key=('k"ey',), schema="Odd Schema")
    table.create({'k"ey': 1, "%s $1 WITH": "a", long: "b"}, 100)
    table.create({'k"ey': 2, "%s $1 WITH": "a", long: "b"}, 100, 1)
    await feeder.flush()
    async with applying(config_of(feeder, target_database, flows={"mirror": "*.*"})) as run:
        query = 'SELECT * FROM mirror."Odd ""table"" %" ORDER BY 1'
        await run.rows(target_database, query, [(1, "a", "b", 1, 100, 0), (2, "a", "b", 1, 100, 1)])
        table.update({'k"ey': 1, "%s $1 WITH": "c", long: UNAVAILABLE}, 110)
        table.delete({'k"ey': 2, "%s $1 WITH": None, long: None}, 120)
        await feeder.flush()
        await run.rows(target_database, query, [(1, "c", "b", 1, 110, 0)])


async def test_rows_and_checkpoint_are_one_transaction(feeder: Feeder, target_database: str) -> None:
    await filled(feeder, 1, partitions=1)
    async with applying(config_of(feeder, target_database)) as run:
        query = """SELECT p.xmin = c.xmin FROM mirror.people p, _tailrace.checkpoints c
        WHERE c.topic LIKE '%.people'"""
        await run.rows(target_database, query, [(True,)])


async def test_two_processes_share_the_partitions_and_lose_nothing(
    feeder: Feeder, target_database: str
) -> None:
    table = await feeder.table("people", COLUMNS, partitions=4)
    config = config_of(feeder, target_database, batch="{rows: 50}")

    async def load(start: int) -> None:
        for n in range(start, start + 500):
            table.create({"id": n, "name": "a", "note": None}, 100 + n)
        await feeder.flush()

    async with applying(config) as one:
        await load(0)
        await one.rows(target_database, "SELECT count(*) > 0 FROM mirror.people", [(True,)])
        async with applying(config) as two:
            await load(500)
            await two.until(lambda: len(two.flow().get("partitions", ())) == 2, "two partitions each")
            await load(1000)
            await two.rows(target_database, "SELECT count(*) FROM mirror.people", [(1500,)])
            await two.stop()
        await load(1500)
        await one.rows(target_database, "SELECT count(*), sum(id) FROM mirror.people", [(2000, 1999000)])
        await one.until(lambda: len(one.flow()["partitions"]) == 4, "all partitions")


async def test_a_bad_row_of_a_table_without_a_key_stops_its_flow_and_no_other(
    feeder: Feeder, target_database: str
) -> None:
    """It has no key to be parked under."""
    good = await feeder.table("good", COLUMNS)
    bad = await feeder.table("bad", [("id", "integer", "number"), ("when", "date", "date")], key=())
    for n in range(10):
        bad.create({"id": n, "when": "2026-02-30" if n == 6 else "2026-02-03"}, 100, n)
    good.create({"id": 1, "name": "a", "note": None}, 100)
    await feeder.flush()
    flows = {"fine": "public.good", "broken": "public.bad"}
    async with applying(config_of(feeder, target_database, flows=flows)) as run:
        await run.rows(target_database, "SELECT id FROM mirror.good", [(1,)])
        await run.until(lambda: run.flow("broken").get("state") == "error", "the error")
        reason = run.flow("broken")["reason"]
        assert "without a key" in reason
        assert "mirror.bad" in reason
        assert "date/time field value out of range" in reason
        assert f"{bad.topic}[{bad.partition_of({})}]@" in reason
        good.create({"id": 2, "name": "a", "note": None}, 200)
        await feeder.flush()
        await run.rows(target_database, "SELECT count(*) FROM mirror.good", [(2,)])
        await run.rows(target_database, "SELECT count(*) FROM mirror.bad", [(0,)])
        assert run.status.record.state == "error"


async def test_a_flow_stopped_by_its_table_goes_on_by_itself_once_that_is_mended(
    feeder: Feeder, target_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(condition, "RETRY_STOPPED_S", 0.5)
    good = await feeder.table("good", COLUMNS)
    bad = await feeder.table("bad", COLUMNS)
    good.create({"id": 1, "name": "a", "note": None}, 100)
    for n in range(30):
        bad.create({"id": n, "name": f"n{n}", "note": None}, 100, n)
    await feeder.flush()
    flows = {"fine": "public.good", "broken": "public.bad"}
    async with await psycopg.AsyncConnection.connect(target_database, autocommit=True) as target:
        await target.execute("CREATE SCHEMA mirror")
        await target.execute("CREATE TABLE mirror.bad (id integer PRIMARY KEY, name integer, note text)")
        async with applying(config_of(feeder, target_database, flows=flows)) as run:
            await run.until(lambda: run.flow("broken").get("state") == "error", "the error")
            reason = run.flow("broken")["reason"]
            assert "ALTER TABLE" in reason
            assert "goes on by itself" in reason
            await run.until(lambda: (run.flow("broken")["lag_records"] or 0) > 0, "what waits")
            await run.until(lambda: run.flow("broken")["lag_s"] is not None, "its age")
            first_s = run.flow("broken")["lag_s"]
            await run.until(lambda: (run.flow("broken")["lag_s"] or 0) > first_s, "it grows while it waits")
            found = views.build(run.config, [run.status.record], run.status.record.at_us)
            states = {flow["name"]: flow["reason"] for flow in found.flows}
            assert "ALTER TABLE" not in states["fine"]
            bad.update({"id": 3, "name": "three", "note": "x"}, 150)
            good.create({"id": 2, "name": "a", "note": None}, 200)
            await feeder.flush()
            await run.rows(target_database, "SELECT count(*) FROM mirror.good", [(2,)])
            await target.execute("ALTER TABLE mirror.bad ALTER COLUMN name TYPE text USING name::text")
            query = "SELECT count(*), max(name) FILTER (WHERE id = 3) FROM mirror.bad"
            await run.rows(target_database, query, [(30, "three")])
            await run.until(lambda: run.flow("broken")["state"] == "streaming", "the flow well")
            await run.until(lambda: run.status.record.state == "streaming", "apply well")
            assert run.flow("broken")["reason"] == ""
            await run.settled(feeder)
            assert run.flow("broken")["applied"] == 31
            assert run.flow("fine")["applied"] == 2


async def test_columns_are_added_and_dropped(feeder: Feeder, target_database: str) -> None:
    table = await feeder.table("people", COLUMNS)
    table.create({"id": 1, "name": "a", "note": "n"}, 100)
    wide = [("id", "integer", "number"), ("name", "text", "text"), ("age", "smallint", "number")]
    later = await feeder.table("people", wide)
    later.create({"id": 2, "name": "b", "age": 7}, 200)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        query = "SELECT id, name, note, age FROM mirror.people ORDER BY id"
        await run.rows(target_database, query, [(1, "a", "n", None), (2, "b", None, 7)])
        wider = await feeder.table(
            "people", [*wide, ("x", "mood", "text"), ("y", "integer[]", "array:number")]
        )
        wider.create({"id": 3, "name": "c", "age": 1, "x": "sad", "y": [1, None, 3]}, 300)
        await feeder.flush()
        query = "SELECT id, x, y FROM mirror.people WHERE id = 3"
        await run.rows(target_database, query, [(3, "sad", [1, None, 3])])


async def test_h29_an_unknown_schema_id_is_an_error(feeder: Feeder, target_database: str) -> None:
    table = await feeder.table("people", COLUMNS)
    feeder._known.add(table.record.id)  # its schema record is never published
    make(table, 1, lsn=100)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        error = await run.fails()
    assert table.record.id in str(error)
    assert "tailrace reset" in str(error)


async def test_a_target_that_is_down_is_waited_for(
    feeder: Feeder, target_database: str, postgres_target_server: PostgresServer
) -> None:
    table = await filled(feeder, 1)
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, IDS, [(1,)])
        postgres_target_server.kill()
        table.create({"id": 2, "name": "a", "note": None}, 200)
        await feeder.flush()
        await run.until(lambda: run.status.record.state == "waiting", "waiting")
        reason = run.status.record.reason  # of the batch in hand, or of whoever looks at an idle session
        assert "does not take writes" in reason or "the session with the target has ended" in reason
        table.create({"id": 3, "name": "a", "note": None}, 300)
        await feeder.flush()
        postgres_target_server.start()
        await run.rows(target_database, "SELECT id FROM mirror.people ORDER BY 1", [(1,), (2,), (3,)])
        await run.until(lambda: run.status.record.state == "streaming", "streaming")
