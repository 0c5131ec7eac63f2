"""Rows that a target refuses, on a real Kafka and a real Postgres: parked alone, everything else flows."""

from __future__ import annotations

from base64 import b64encode
from pathlib import Path

import psycopg

from streamer.changes.kinds import UNAVAILABLE
from tests.harness.capture import run as execute
from tests.harness.feeder import Feeder, applying, config_of, config_text
from tests.harness.parked import (
    COLUMNS,
    END_APPLY,
    MADE,
    MEND,
    NAMES,
    QUEUES,
    ask,
    blocked,
    letters,
    present,
    row,
    tailrace,
)


async def test_h24_a_bad_row_is_parked_alone(feeder: Feeder, target_database: str) -> None:
    await execute(target_database, *MADE)
    table = await feeder.table("people", COLUMNS)
    for n in range(1, 100):
        table.create(row(n, "bad" if n == 37 else "good"), 100, n)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, "SELECT count(*) FROM mirror.people", [(98,)])
        await run.rows(target_database, QUEUES, [('{"id":37}', 1, 100, "23514")])
        table.create(row(100), 200)
        table.update(row(37, "later"), 210)
        await feeder.flush()
        await run.rows(target_database, "SELECT count(*) FROM mirror.people", [(99,)])
        await run.rows(target_database, QUEUES, [('{"id":37}', 2, 210, "23514")])
        await run.until(lambda: run.flow().get("parked") == 1, "the count in the heartbeat")
        assert run.status.record.state == "streaming"
        aside = run.status.record.detail["set_aside"]
        assert "dead-letters list copy" in aside["mirror"]
        (letter,) = await letters(feeder)
        assert letter["payload"]["after"] == row(37, "bad")
        assert letter["key"] == '{"id":37}'
        assert letter["table"] == "public.people"
        assert letter["reason"]["code"] == "23514"
        assert "fits" in letter["reason"]["message"]
        assert letter["version"] == [1, 100, 37]
        assert letter["action"] == "parked"
        assert (letter["flow"], letter["topic"]) == ("mirror", table.topic)
        assert letter["partition"] == table.partition_of(row(37))
        await ask(target_database, "retry")
        await run.rows(target_database, "SELECT name FROM mirror.people WHERE id = 37", [("later",)])
        await run.rows(target_database, QUEUES, [])
        await run.until(lambda: run.flow().get("parked") == 0, "the count in the heartbeat")


async def test_h24_a_name_of_an_object_that_the_target_lacks_is_a_bad_row(
    feeder: Feeder, target_database: str
) -> None:
    """Its errors are those of a table that is not there, for which apply would wait."""
    names = {"regclass": "pg_class", "regprocedure": "now()", "regproc": "now", "regtype": "integer"}
    names |= {"regrole": "-", "regnamespace": "pg_catalog", "regconfig": "simple"}
    columns = ", ".join(f"{kind}_ {kind}" for kind in names)
    await execute(
        target_database,
        "CREATE SCHEMA mirror",
        f"CREATE TABLE mirror.objects (id int PRIMARY KEY, {columns})",
    )
    described = [("id", "integer", "number"), *((f"{kind}_", kind, "text") for kind in names)]
    table = await feeder.table("objects", described)
    good = {f"{kind}_": name for kind, name in names.items()}
    for n, kind in enumerate(names):
        missing = "missing(integer)" if kind == "regprocedure" else "missing"
        table.create({"id": n, **good, f"{kind}_": missing}, 100, n)
    table.create({"id": 9, **good}, 100, 9)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, "SELECT id FROM mirror.objects", [(9,)])
        codes = ["42P01", "42883", "42883", "42704", "42704", "3F000", "42704"]
        queues = [(f'{{"id":{n}}}', 1, 100, code) for n, code in enumerate(codes)]
        await run.rows(target_database, QUEUES, queues)
        await execute(target_database, "CREATE TABLE missing ()")
        await ask(target_database, "retry")
        await run.rows(target_database, "SELECT id FROM mirror.objects ORDER BY 1", [(0,), (3,), (9,)])
        assert run.status.record.state == "streaming"


async def test_h24_later_changes_wait_in_order_and_a_retry_applies_them_in_order(
    feeder: Feeder, target_database: str
) -> None:
    """A change that needs what went before (an unchanged TOAST value) joins; a whole row takes its place."""
    await execute(target_database, *MADE)
    table = await feeder.table("people", COLUMNS, partitions=1)
    table.create(row(1, "bad", "big"), 100)
    table.create(row(2, "bad", "big"), 100, 1)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        first = [('{"id":1}', 1, 100, "23514"), ('{"id":2}', 1, 100, "23514")]
        await run.rows(target_database, QUEUES, first)
        table.update(row(1, "patched", UNAVAILABLE), 200)
        await feeder.flush()
        await run.rows(target_database, QUEUES, [first[0], ('{"id":1}', 2, 200, "23514"), first[1]])
        table.delete(row(2), 210)
        await feeder.flush()
        joined = [first[0], ('{"id":1}', 2, 200, "23514"), ('{"id":2}', 2, 210, "23514")]
        await run.rows(target_database, QUEUES, joined)
        table.create(row(2, "again", "other"), 220)
        await feeder.flush()
        joined[2] = ('{"id":2}', 3, 220, "23514")
        await run.rows(target_database, QUEUES, joined)
        await run.rows(target_database, NAMES, [])
        await execute(target_database, MEND)
        await ask(target_database, "retry")
        query = "SELECT id, name, note, _tailrace_lsn FROM mirror.people ORDER BY id"
        await run.rows(target_database, query, [(1, "patched", "big", 200), (2, "again", "other", 220)])
        await run.rows(target_database, QUEUES, [])
        table.update(row(1, "free", "x"), 300)
        await feeder.flush()
        await run.rows(target_database, query, [(1, "free", "x", 300), (2, "again", "other", 220)])
    assert len(await letters(feeder)) == 2


async def test_h24_a_retry_that_is_refused_again_stays_and_a_discard_keeps_a_record(
    feeder: Feeder, target_database: str
) -> None:
    await execute(target_database, *MADE)
    table = await feeder.table("people", COLUMNS, partitions=1)
    table.create(row(1, "bad"), 100)
    table.create(row(2), 110)
    await feeder.flush()
    state = "SELECT attempts, asked, message LIKE '%fits%' FROM _tailrace.parked"
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, state, [(1, "", True)])
        await ask(target_database, "retry")
        await run.rows(target_database, state, [(2, "", True)])
        assert len(await letters(feeder)) == 1
        await ask(target_database, "discard")
        await run.rows(target_database, state, [])
        table.update(row(1, "fresh"), 200)
        await feeder.flush()
        await run.rows(target_database, NAMES, [(1, "fresh"), (2, "good")])
    parked, discarded = await letters(feeder)
    assert (parked["action"], discarded["action"]) == ("parked", "discarded")
    assert discarded["payload"]["after"] == row(1, "bad")
    assert "ann@host" in discarded["reason"]["message"]


async def test_h24_a_truncate_ends_what_waits_below_it(feeder: Feeder, target_database: str) -> None:
    await execute(target_database, *MADE)
    table = await feeder.table("people", COLUMNS, partitions=1)
    table.create(row(1, "bad"), 100)
    table.create(row(2), 110)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, QUEUES, [('{"id":1}', 1, 100, "23514")])
        table.truncate(200)
        table.create(row(1), 210)  # whether it comes in the truncate's batch or behind it
        await feeder.flush()
        await run.rows(target_database, NAMES, [(1, "good")])
        await run.rows(target_database, QUEUES, [])
        table.update(row(1, "bad"), 220)
        await feeder.flush()
        await run.rows(target_database, QUEUES, [('{"id":1}', 1, 220, "23514")])
        table.truncate(300)
        await feeder.flush()
        await run.rows(target_database, QUEUES, [])
        table.create(row(1, "last"), 310)
        await feeder.flush()
        await run.rows(target_database, NAMES, [(1, "last")])


async def test_h24_a_record_that_does_not_decode_stops_nothing(feeder: Feeder, target_database: str) -> None:
    table = await feeder.table("people", COLUMNS, partitions=1)
    table.create(row(1, "one"), 100)
    table.create(row(2, "two"), 100, 1)
    table.raw(table.key_of(row(1)), b"\xff{")
    table.raw(None, b'{"op":"c"}')
    table.update(row(1, "behind"), 200)
    table.update(row(2, "deux"), 200, 1)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, NAMES, [(1, "one"), (2, "deux")])
        waiting = [("", 1, 0, "undecodable"), ('{"id":1}', 2, 200, "undecodable")]
        await run.rows(target_database, QUEUES, waiting)
        await ask(target_database, "retry")
        await run.rows(target_database, NAMES, [(1, "behind"), (2, "deux")])
        await run.rows(target_database, QUEUES, waiting[:1])
        await run.rows(target_database, "SELECT attempts, asked FROM _tailrace.parked", [(2, "")])
        await ask(target_database, "discard")
        await run.rows(target_database, QUEUES, [])
        assert run.status.record.state == "streaming"
    found = await letters(feeder)
    assert [letter["action"] for letter in found] == ["parked", "parked", "discarded"]
    raw = next(letter for letter in found if letter["key"] == '{"id":1}')
    assert (raw["payload"], raw["payload_encoding"]) == (b64encode(b"\xff{").decode(), "base64")
    assert raw["reason"]["code"] == "undecodable"
    assert raw["table"] == "public.people"


async def test_h24_every_refused_row_of_a_batch_is_found(feeder: Feeder, target_database: str) -> None:
    """Also of two tables and schemas, deletes and patches, and more of them than one search names."""
    await execute(target_database, *MADE)
    table = await feeder.table("people", COLUMNS, partitions=2)
    for n in range(2200):
        table.create(row(n, "bad" if n % 20 == 0 else "good", "n"), 100, n)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, "SELECT count(*) FROM mirror.people", [(2090,)])
        await run.rows(target_database, "SELECT count(*) FROM _tailrace.parked", [(110,)])
        await execute(
            target_database,
            "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN IF OLD.id = 7 THEN RAISE 'never 7'; END IF; RETURN OLD; END $$",
            "CREATE TRIGGER keep BEFORE DELETE ON mirror.people FOR EACH ROW EXECUTE FUNCTION keep()",
            "ALTER TABLE mirror.people ENABLE ALWAYS TRIGGER keep",
        )
        for n in (6, 7, 8):
            table.delete(row(n), 200, n)
        table.update(row(9, "bad", UNAVAILABLE), 200, 9)
        table.update(row(11, "fine", UNAVAILABLE), 200, 10)
        await feeder.flush()
        query = "SELECT id, name, note FROM mirror.people WHERE id BETWEEN 6 AND 11 ORDER BY id"
        left = [(7, "good", "n"), (9, "good", "n"), (10, "good", "n"), (11, "fine", "n")]
        await run.rows(target_database, query, left)
        late = "SELECT convert_from(key, 'UTF8'), code FROM _tailrace.parked WHERE lsn = 200 ORDER BY 1"
        await run.rows(target_database, late, [('{"id":7}', "P0001"), ('{"id":9}', "23514")])
    assert len(await letters(feeder)) == 112


async def test_h24_parked_keys_follow_their_partition(feeder: Feeder, target_database: str) -> None:
    await execute(target_database, *MADE)
    table = await feeder.table("people", COLUMNS, partitions=2)
    keys = [next(n for n in range(1, 50) if table.partition_of(row(n)) == p) for p in (0, 1)]
    config = config_of(feeder, target_database)
    for n in keys:
        table.create(row(n, "bad"), 100)
    await feeder.flush()
    count = "SELECT count(*), min(lsn) FROM _tailrace.parked"
    async with applying(config) as one:
        await one.rows(target_database, count, [(2, 100)])
        async with applying(config) as two:
            await two.until(lambda: len(two.flow().get("partitions", ())) == 1, "a partition each")
            await two.until(lambda: two.flow().get("parked") == 1, "a key each")
            await one.until(lambda: one.flow().get("parked") == 1, "a key each")
            for n in keys:
                table.update(row(n, "later"), 200)
            await feeder.flush()
            await one.rows(target_database, count, [(2, 200)])
            await one.rows(target_database, NAMES, [])
            await ask(target_database, "retry")
            await one.rows(target_database, NAMES, sorted((n, "later") for n in keys))
            for n in keys:
                table.update(row(n, "bad"), 300)
            await feeder.flush()
            await two.rows(target_database, count, [(2, 300)])
            await two.stop()
        await one.until(lambda: one.flow().get("parked") == 2, "both keys")
        for n in keys:
            table.update(row(n, "last"), 400)
        await feeder.flush()
        await one.rows(target_database, count, [(2, 400)])
        await ask(target_database, "retry")
        await one.rows(target_database, NAMES, sorted((n, "last") for n in keys))
    assert len(await letters(feeder)) == 4


async def test_h24_a_kill_between_the_letter_and_the_commit_loses_nothing(
    feeder: Feeder, target_database: str, tmp_path: Path
) -> None:
    await execute(target_database, *MADE)
    table = await feeder.table("people", COLUMNS, partitions=1)
    table.create(row(1), 100)
    await feeder.flush()
    file = tmp_path / "tailrace.yaml"
    file.write_text(config_text(feeder, target_database))
    process = await tailrace("apply", "copy", "-c", str(file))
    try:
        await present(target_database, NAMES, [(1, "good")])
        async with await psycopg.AsyncConnection.connect(target_database) as other:
            await other.execute("LOCK TABLE _tailrace.parked IN SHARE MODE")
            table.create(row(2, "bad"), 200)
            table.create(row(3), 200, 1)
            await feeder.flush()
            await blocked(target_database, 1)
            assert len(await letters(feeder)) == 1
            process.kill()
            await process.communicate()
            await execute(target_database, END_APPLY)  # all up to the COMMIT had been sent
            await other.rollback()
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, NAMES, [(1, "good"), (3, "good")])
        await run.rows(target_database, QUEUES, [('{"id":2}', 1, 200, "23514")])
        await execute(target_database, MEND)
        await ask(target_database, "retry")
        await run.rows(target_database, NAMES, [(1, "good"), (2, "bad"), (3, "good")])
    assert [letter["key"] for letter in await letters(feeder)] == ['{"id":2}'] * 2
