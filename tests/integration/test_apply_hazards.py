"""What apply must not believe: stale floors, buried keys, older patches, moved checkpoints."""

from __future__ import annotations

import psycopg

from streamer.changes.kinds import UNAVAILABLE
from tests.harness.capture import run as execute
from tests.harness.capture import until
from tests.harness.feeder import Feeder, applying, config_of
from tests.harness.people import COLUMNS, IDS, drop, filled, make

BLOCKED = """SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND cardinality(pg_blocking_pids(pid)) > 0"""
FLOOR = "SELECT lsn FROM _tailrace.floors WHERE table_name = 'people'"
NOTED = "SELECT key FROM _tailrace.needs_reread ORDER BY key"


async def blocked(url: str) -> None:
    """Wait until a session of the target waits for another one's lock."""

    async def waits() -> bool:
        async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
            row = await (await connection.execute(BLOCKED)).fetchone()
        return row is not None and row[0] > 0

    await until(waits)


async def test_h05_rows_below_the_floor_never_come_back(feeder: Feeder, target_database: str) -> None:
    """The truncate is in one partition; the others' older rows may come later."""
    table = await filled(feeder, 1, partitions=4)
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, IDS, [(1,)])
        table.truncate(200)
        await feeder.flush()
        await run.rows(target_database, "SELECT count(*) FROM mirror.people", [(0,)])
        for n in range(20):
            table.create({"id": n, "name": "late", "note": None}, 150)
        table.create({"id": 99, "name": "new", "note": None}, 300)
        await feeder.flush()
        await run.settled(feeder)
        await run.rows(target_database, "SELECT id FROM mirror.people", [(99,)])
        assert run.flow()["guarded"] == 20


async def test_h03_a_floor_of_a_reset_deletes_what_only_older_epochs_wrote(
    feeder: Feeder, target_database: str
) -> None:
    table = await feeder.table("people", COLUMNS)
    for n in range(6):
        table.create({"id": n, "name": "old", "note": None}, 1000)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, "SELECT count(*) FROM mirror.people", [(6,)])
        for n in range(3):
            table.read({"id": n, "name": "new", "note": None}, 500, epoch=2)
        table.floor(2)
        await feeder.flush()
        query = "SELECT id, name, _tailrace_epoch FROM mirror.people ORDER BY id"
        await run.rows(target_database, query, [(0, "new", 2), (1, "new", 2), (2, "new", 2)])


async def test_h06_a_create_never_takes_placeholders_from_another_row(
    feeder: Feeder, target_database: str
) -> None:
    """Two rows swap their keys; the unchanged value of each is only in its old row."""
    table = await feeder.table("docs", COLUMNS)
    table.create({"id": 1, "name": "one", "note": "big one"}, 100)
    table.create({"id": 2, "name": "two", "note": "big two"}, 100)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, "SELECT count(*) FROM mirror.docs", [(2,)])
        table.delete({"id": 1, "name": None, "note": None}, 200, 0)
        table.create({"id": 2, "name": "one", "note": UNAVAILABLE}, 200, 1)
        await feeder.flush()
        query = "SELECT id, name, note FROM mirror.docs ORDER BY id"
        await run.rows(target_database, query, [(2, "one", None)])
        noted = "SELECT key, reason FROM _tailrace.needs_reread"
        reason = "a create whose unchanged value was in the old row"
        await run.rows(target_database, noted, [('{"id":2}', reason)])
        table.update({"id": 2, "name": "one", "note": "big one"}, 300)
        await feeder.flush()
        await run.rows(target_database, query, [(2, "one", "big one")])
        await run.rows(target_database, noted, [])


async def test_h07_a_patch_without_its_row_is_noted_and_no_bad_row(
    feeder: Feeder, target_database: str
) -> None:
    table = await feeder.table("docs", COLUMNS)
    table.create({"id": 1, "name": "one", "note": "big"}, 100)
    table.update({"id": 7, "name": "seven", "note": UNAVAILABLE}, 110)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, "SELECT id FROM mirror.docs", [(1,)])
        table.update({"id": 1, "name": "uno", "note": UNAVAILABLE}, 120)
        await feeder.flush()
        await run.rows(target_database, "SELECT id, name, note FROM mirror.docs", [(1, "uno", "big")])
        await run.rows(target_database, "SELECT key FROM _tailrace.needs_reread", [('{"id":7}',)])
        await run.until(lambda: run.flow().get("rereads") == 1, "the finding")
        await run.until(lambda: bool(run.status.record.detail.get("findings")), "its text")
        [finding] = run.status.record.detail["findings"]
        assert "`tailrace backfills`" in finding
        assert f"`tailrace backfill {feeder.source} TABLE --keys FILE`" in finding


async def test_h30_a_process_that_has_lost_its_partition_writes_nothing_of_it(
    feeder: Feeder, target_database: str
) -> None:
    """Another process moves one checkpoint on: only that partition's rows are refused."""
    table = await filled(feeder, 1, partitions=2)
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, "SELECT count(*) FROM mirror.people", [(1,)])
        await run.settled(feeder)
        rows = [{"id": n, "name": "b", "note": None} for n in range(20, 40)]
        lost = [row for row in rows if table.partition_of(row) == 0]
        assert 0 < len(lost) < 20
        async with await psycopg.AsyncConnection.connect(target_database) as other:
            await other.execute(
                "UPDATE _tailrace.checkpoints SET next_offset = next_offset + %s WHERE partition = 0",
                (len(lost),),
            )
            for row in rows:
                table.create(row, 200)
            await feeder.flush()
            await other.commit()
        await run.rows(target_database, "SELECT count(*) FROM mirror.people", [(21 - len(lost),)])
        table.create({"id": lost[0]["id"], "name": "c", "note": None}, 300)
        await feeder.flush()
        await run.rows(target_database, "SELECT count(*) FROM mirror.people", [(22 - len(lost),)])


async def test_h05_a_floor_that_is_being_raised_is_waited_for(feeder: Feeder, target_database: str) -> None:
    """Another process has raised the floor and has not committed: its truncate must hold for our rows."""
    table = await filled(feeder, 1)
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, IDS, [(1,)])
        async with await psycopg.AsyncConnection.connect(target_database) as other:
            await other.execute("UPDATE _tailrace.floors SET epoch = 1, lsn = 500")
            make(table, 2, lsn=400)
            make(table, 3, lsn=600)
            await feeder.flush()
            await blocked(target_database)
            await other.commit()
        await run.settled(feeder)
        await run.rows(target_database, IDS, [(1,), (3,)])
        async with await psycopg.AsyncConnection.connect(target_database) as other:
            await other.execute("UPDATE _tailrace.floors SET epoch = 1, lsn = 2000")
            table.truncate(1000)
            await feeder.flush()
            await blocked(target_database)
            await other.commit()
        await run.settled(feeder)
        await run.rows(target_database, FLOOR, [(2000,)])


async def test_h05_a_truncate_holds_for_the_other_partitions_of_its_batch(
    feeder: Feeder, target_database: str
) -> None:
    table = await feeder.table("people", COLUMNS, partitions=4)
    make(table, *range(40), lsn=100)
    table.truncate(200)
    make(table, *range(5), lsn=300)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.settled(feeder)
        await run.rows(target_database, IDS, [(n,) for n in range(5)])


async def test_h05_a_truncate_forgets_the_keys_to_be_read_again(feeder: Feeder, target_database: str) -> None:
    table = await feeder.table("people", COLUMNS)
    table.update({"id": 7, "name": "seven", "note": UNAVAILABLE}, 100)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, NOTED, [('{"id":7}',)])
        table.truncate(200)
        table.update({"id": 8, "name": "eight", "note": UNAVAILABLE}, 300)
        await feeder.flush()
        await run.rows(target_database, NOTED, [('{"id":8}',)])


async def test_h05_the_floor_of_a_lost_partition_is_not_raised(feeder: Feeder, target_database: str) -> None:
    """Whoever has the truncate's partition now raises it, with the checkpoint."""
    table = await feeder.table("people", COLUMNS)
    one, two = (next(n for n in range(1, 50) if table.partition_of({"id": n}) == p) for p in (0, 1))
    make(table, one, two, lsn=100)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, "SELECT count(*) FROM mirror.people", [(2,)])
        await run.settled(feeder)
        async with await psycopg.AsyncConnection.connect(target_database) as other:
            await other.execute(
                "UPDATE _tailrace.checkpoints SET next_offset = next_offset + 1 WHERE partition = 0"
            )
            table.truncate(200)
            make(table, two, lsn=300, name="b")
            await feeder.flush()
            await blocked(target_database)
            await other.commit()
        await run.rows(
            target_database,
            "SELECT id, name FROM mirror.people ORDER BY name",
            [(one, "a"), (two, "b")],
        )
        await run.rows(target_database, FLOOR, [(0,)])


async def test_h06_a_key_whose_not_null_value_is_elsewhere_has_no_row(
    feeder: Feeder, target_database: str
) -> None:
    """Rather none than that of the row that had the key before."""
    await execute(
        target_database,
        "CREATE SCHEMA mirror",
        "CREATE TABLE mirror.people (id int PRIMARY KEY, name text, note text NOT NULL)",
    )
    table = await feeder.table("people", COLUMNS)
    for n in (1, 2):
        table.create({"id": n, "name": "old", "note": f"big {n}"}, 100)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, IDS, [(1,), (2,)])
        table.create({"id": 2, "name": "moved", "note": UNAVAILABLE}, 200, 1)
        await feeder.flush()
        await run.rows(target_database, IDS, [(1,)])
        await run.rows(target_database, NOTED, [('{"id":2}',)])


async def test_h06_what_was_noted_is_mended_by_the_next_process_too(
    feeder: Feeder, target_database: str
) -> None:
    table = await feeder.table("people", COLUMNS)
    table.create({"id": 2, "name": "two", "note": UNAVAILABLE}, 100)
    await feeder.flush()
    config = config_of(feeder, target_database)
    async with applying(config) as run:
        await run.rows(target_database, NOTED, [('{"id":2}',)])
        await run.stop()
    table.update({"id": 2, "name": "two", "note": "big"}, 200)
    await feeder.flush()
    async with applying(config) as run:
        await run.rows(target_database, "SELECT note FROM mirror.people", [("big",)])
        await run.rows(target_database, NOTED, [])


async def test_h07_an_older_patch_changes_nothing(feeder: Feeder, target_database: str) -> None:
    table = await feeder.table("people", COLUMNS)
    table.create({"id": 1, "name": "new", "note": "big"}, 200)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, IDS, [(1,)])
        table.update({"id": 1, "name": "old", "note": UNAVAILABLE}, 150)
        await feeder.flush()
        await run.settled(feeder)
        query = "SELECT name, note, _tailrace_lsn FROM mirror.people"
        await run.rows(target_database, query, [("new", "big", 200)])
        await run.until(lambda: run.flow().get("guarded") == 1, "the count of what was refused")
        await run.rows(target_database, NOTED, [])


async def test_h03_an_older_insert_never_brings_a_deleted_row_back(
    feeder: Feeder, target_database: str
) -> None:
    """In the session that deleted it, and in the next one; not even after an older delete."""
    table = await filled(feeder, 1, partitions=1)
    config = config_of(feeder, target_database)
    async with applying(config) as run:
        await run.rows(target_database, IDS, [(1,)])
        drop(table, 1, 300)
        await feeder.flush()
        await run.rows(target_database, IDS, [])
        make(table, 1, lsn=200)
        make(table, 10, lsn=1000)
        await feeder.flush()
        await run.rows(target_database, IDS, [(10,)])
        drop(table, 1, 150)
        await feeder.flush()
        await run.settled(feeder)
        await run.stop()
    async with applying(config) as run:
        make(table, 1, lsn=299)
        make(table, 11, lsn=1000)
        await feeder.flush()
        await run.rows(target_database, IDS, [(10,), (11,)])
        make(table, 1, lsn=301)
        await feeder.flush()
        await run.rows(target_database, IDS, [(1,), (10,), (11,)])


async def test_h03_an_older_delete_does_not_lower_what_is_remembered(
    feeder: Feeder, target_database: str
) -> None:
    """Of another key, too: the highest tombstone of a partition says whether the table of them is asked."""
    table = await filled(feeder, 1, partitions=1)
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, IDS, [(1,)])
        drop(table, 1, 300)
        await feeder.flush()
        await run.rows(target_database, IDS, [])
        drop(table, 2, 150)
        await feeder.flush()
        await run.settled(feeder)
        make(table, 1, lsn=250)
        make(table, 10, lsn=1000)
        await feeder.flush()
        await run.rows(target_database, IDS, [(10,)])


async def test_h27_a_row_added_and_removed_in_one_batch_in_two_spellings(
    feeder: Feeder, target_database: str
) -> None:
    table = await feeder.table("log", [("id", "integer", "number"), ("p", "point", "text")], key=())
    table.create({"id": 1, "p": "(1,2)"}, 100)
    table.create({"id": 2, "p": "(1,2)"}, 100, 1)
    table.delete({"id": 1, "p": "(1, 2)"}, 110)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, "SELECT id FROM mirror.log", [(2,)])


async def test_h27_rows_without_a_key_below_the_floor_never_come_back(
    feeder: Feeder, target_database: str
) -> None:
    table = await feeder.table("log", COLUMNS, key=())
    make(table, 1, lsn=100)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        query = "SELECT id FROM mirror.log"
        await run.rows(target_database, query, [(1,)])
        table.truncate(200)
        await feeder.flush()
        await run.rows(target_database, query, [])
        make(table, 2, lsn=150)
        make(table, 3, lsn=300)
        await feeder.flush()
        await run.rows(target_database, query, [(3,)])


async def test_h30_a_checkpoint_that_is_being_moved_is_waited_for(
    feeder: Feeder, target_database: str
) -> None:
    """Read without its lock, it would still look like ours; a table without a key would double its rows."""
    table = await feeder.table("log", COLUMNS, key=(), partitions=1)
    make(table, 1, lsn=100)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, "SELECT id FROM mirror.log", [(1,)])
        await run.settled(feeder)
        async with await psycopg.AsyncConnection.connect(target_database) as other:
            await other.execute("UPDATE _tailrace.checkpoints SET next_offset = next_offset + 1")
            await other.execute("INSERT INTO mirror.log VALUES (2, 'by another process', NULL, 1, 200, 0)")
            table.create({"id": 2, "name": "b", "note": None}, 200)
            await feeder.flush()
            await blocked(target_database)
            await other.commit()
        table.create({"id": 3, "name": "c", "note": None}, 300)
        await feeder.flush()
        query = "SELECT id, name FROM mirror.log ORDER BY id"
        await run.rows(target_database, query, [(1, "a"), (2, "by another process"), (3, "c")])
