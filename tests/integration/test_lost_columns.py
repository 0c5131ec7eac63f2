"""A column of a target's table that is gone: named and waited for, never added for the later rows only."""

from __future__ import annotations

from pathlib import Path

import pytest

from consumers.apply.checkpoint import Place
from consumers.targets.base import Batch, ColumnLost, FlowError, Target
from consumers.testing import Log
from streamer.config import Flow
from streamer.resetting import reset_steps
from tests.harness import sql_file
from tests.harness.feeder import Feeder, applying, config_of
from tests.harness.given import PEOPLE, execute, given, people, person
from tests.harness.people import IDS, filled, make
from tests.harness.recorder import Recorder
from tests.harness.vectors import note, opened

NAMES = """SELECT attname::text FROM pg_attribute WHERE attrelid = 'own.people'::regclass AND attnum > 0
AND NOT attisdropped AND attname NOT LIKE '\\_tailrace%' ORDER BY attname"""
GIVEN = "CREATE TABLE own.people (id int PRIMARY KEY, full_name text, seen text, extra varchar)"
ROWS = "SELECT id, extra FROM own.people ORDER BY id"


async def refused(target: Target, log: Log, flows: list[Flow]) -> tuple[Batch, ColumnLost]:
    """What the log has and the target does not have yet, and why it stays so."""
    starts: dict[Place, int] = {
        place: c.next_offset for place, c in (await target.checkpoints(log.places(flows))).items()
    }
    batch = await log.batch(flows, starts)
    with pytest.raises(FlowError) as caught:
        await target.apply(batch)
    assert isinstance(caught.value.cause, ColumnLost)
    return batch, caught.value.cause


@pytest.mark.parametrize("made", [(GIVEN,), ()], ids=["given", "made"])
async def test_a_column_that_is_gone_stops_its_flow_until_it_is_back(
    target_database: str, made: tuple[str, ...]
) -> None:
    """While the session runs, after a restart, and for a version of the table that has got one more."""
    await execute(target_database, "CREATE SCHEMA own", *made)
    async with given(target_database) as at:
        people(at).create(person(1))
        await at.apply()
        await execute(target_database, "ALTER TABLE own.people DROP COLUMN extra")
        people(at).create(person(2))
        error = await at.refused()
        for words in (
            "column 'extra' of own.people is missing",
            "flow 'mirror' has written rows of shop.public.people with it",
            "restore it",
            'ALTER TABLE "own"."people" ADD COLUMN "extra" text;',
            "`tailrace backfill shop public.people`",
            reset_steps("shop"),
        ):
            assert words in error
        await at.target.close()
        await at.target.open()
        assert await at.refused() == error
        wide = at.log.table("people", {**PEOPLE, "more": "integer"})
        wide.create(person(3) | {"more": 7})
        assert "column 'extra' of own.people is missing" in await at.refused()
        assert await at.rows(NAMES) == [("full_name",), ("id",), ("seen",)]
        await execute(target_database, "ALTER TABLE own.people ADD COLUMN extra text DEFAULT 'back'")
        await at.apply()
        assert await at.rows(ROWS) == [(1, "back"), (2, "x"), (3, "x")]
        assert await at.rows("SELECT id, more FROM own.people ORDER BY id") == [(1, None), (2, None), (3, 7)]


async def test_a_column_that_the_source_drops_and_has_again_is_added(target_database: str) -> None:
    narrow = {name: kind for name, kind in PEOPLE.items() if name != "extra"}
    async with given(target_database) as at:
        people(at).create(person(1))
        await at.apply()
        row = person(2)
        del row["extra"]
        at.log.table("people", narrow).create(row)
        await at.apply()
        await execute(target_database, "ALTER TABLE own.people DROP COLUMN extra")
        await at.target.close()
        await at.target.open()
        at.log.table("people", narrow).update(row)
        await at.apply()
        people(at).create(person(3, extra="again"))
        await at.apply()
        assert await at.rows(ROWS) == [(1, None), (2, None), (3, "again")]


async def test_a_copy_adds_it_and_a_checkpoint_set_back_by_hand_does(target_database: str) -> None:
    async with given(target_database) as at:
        people(at).create(person(1))
        await at.apply()
        await execute(target_database, "ALTER TABLE own.people DROP COLUMN extra")
        people(at).create(person(2))
        batch, lost = await refused(at.target, at.log, at.flows)
        batch.remakes.add(("mirror", lost.topic))
        await at.target.apply(batch)
        assert await at.rows(ROWS) == [(1, None), (2, "x")]
        await execute(target_database, "ALTER TABLE own.people DROP COLUMN extra")
        people(at).create(person(3))
        assert "is missing" in await at.refused()
        await at.rewind()
        await at.apply()
        assert await at.rows(ROWS) == [(1, "x"), (2, "x"), (3, "x")]


async def test_a_history_is_not_filled_again(target_database: str) -> None:
    async with given(target_database, {"write": "append"}) as at:
        people(at).create(person(1))
        await at.apply()
        await execute(target_database, "ALTER TABLE own.people DROP COLUMN seen, DROP COLUMN extra")
        people(at).create(person(2))
        error = await at.refused()
        assert "column 'seen', 'extra' of own.people is missing" in error
        assert "leaves them null in rows that are there, as write: append does" in error
        assert "backfill" not in error


@pytest.mark.parametrize("made", [("CREATE TABLE people (id integer PRIMARY KEY, name, Email)",), ()])
async def test_a_column_that_is_gone_from_sqlite_stops_its_flow_until_it_is_back(
    file: Path, made: tuple[str, ...]
) -> None:
    """As above, and in a table that was there, with its own spelling of the name; a copy adds it."""
    sql_file.run(file, *made, "SELECT 1")
    async with sql_file.lite(file) as at:
        sql_file.people(at).create(sql_file.person(1, email="a@b"))
        await at.apply()
        at.rows("ALTER TABLE people DROP COLUMN email")
        sql_file.people(at).create(sql_file.person(2, email="c@d"))
        _, lost = await refused(at.target, at.log, at.flows)
        for words in (
            "column 'email' of people is missing",
            "flow 'flow0' has written rows of shop.public.people with it",
            "ALTER TABLE people ADD COLUMN email TEXT; and `tailrace backfill shop public.people`",
            reset_steps("shop"),
        ):
            assert words in str(lost)
        await at.target.close()
        await at.target.open()
        at.log.table("people", {**sql_file.PEOPLE, "more": "integer"}).create(
            sql_file.person(3, email="e@f") | {"more": 7}
        )
        assert str((await refused(at.target, at.log, at.flows))[1]) == str(lost)
        assert [name for _, name, *_ in at.rows("PRAGMA table_info(people)")][:2] == ["id", "name"]
        assert at.rows(
            "SELECT count(*) FROM pragma_table_info('people') WHERE name IN ('email', 'more')"
        ) == [(0,)]
        at.rows("ALTER TABLE people ADD COLUMN email TEXT")
        await at.apply()
        query = "SELECT id, email, more FROM people ORDER BY id"
        assert at.rows(query) == [(1, None, None), (2, "c@d", None), (3, "e@f", 7)]
        at.rows("ALTER TABLE people DROP COLUMN email")
        sql_file.people(at).create(sql_file.person(4, email="g@h"))
        batch, lost = await refused(at.target, at.log, at.flows)
        batch.remakes.add(("flow0", lost.topic))
        await at.target.apply(batch)
        assert at.rows("SELECT id, email FROM people WHERE id > 2") == [(3, None), (4, "g@h")]


async def test_a_column_that_the_source_drops_and_has_again_is_added_to_sqlite(file: Path) -> None:
    narrow = {name: kind for name, kind in sql_file.PEOPLE.items() if name != "email"}
    async with sql_file.lite(file) as at:
        sql_file.people(at).create(sql_file.person(1, email="a@b"))
        await at.apply()
        at.log.table("people", narrow).create({"id": 2, "name": "b"})
        await at.apply()
        at.rows("ALTER TABLE people DROP COLUMN email")
        await at.target.close()
        await at.target.open()
        at.log.table("people", narrow).create({"id": 3, "name": "c"})
        await at.apply()
        sql_file.people(at).create(sql_file.person(4, email="g@h"))
        await at.apply()
        assert at.rows("SELECT id, email FROM people WHERE id > 2") == [(3, None), (4, "g@h")]


@pytest.mark.parametrize("name", [pytest.param("tag", marks=pytest.mark.thorough), "embedding"])
async def test_a_column_of_chunks_that_is_gone_stops_its_flow_until_it_is_back(
    recorder: Recorder, target_database: str, name: str
) -> None:
    """Metadata, and what search finds rows by; a row that comes again fills both."""
    async with opened(target_database) as s:
        s.table.create(note(1, "one"))
        await s.apply()
        await execute(target_database, f"ALTER TABLE search.notes DROP COLUMN {name}")
        s.table.create(note(2, "two"))
        _, lost = await refused(s.target, s.log, s.flows)
        assert f"column {name!r} of search.notes is missing" in str(lost)
        add, _, rest = lost.fix.partition("or ")[2].partition(" and `tailrace backfill shop public.notes`")
        assert rest
        await execute(target_database, add)
        s.table.update(note(1, "one"))
        await s.apply()
        rows = await s.chunks("id, text, embedding::text, tag")
        assert rows == [(1, "one\n\nb", "[6,6,6]", "x"), (2, "two\n\nb", "[6,6,6]", "x")]


@pytest.mark.thorough
async def test_a_flow_that_misses_a_column_is_stalled_and_goes_on_by_itself(
    kafka: str, kafka_name: str, target_database: str
) -> None:
    async with Feeder(kafka, kafka_name) as feeder:
        table = await filled(feeder, 1, 2)
        async with applying(config_of(feeder, target_database)) as run:
            await run.settled(feeder)
            await execute(target_database, "ALTER TABLE mirror.people DROP COLUMN note")
            make(table, 3, lsn=200)
            await feeder.flush()
            await run.until(lambda: run.flow().get("state") == "stalled", "stalled")
            assert "column 'note' of mirror.people is missing" in run.status.record.reason
            await execute(target_database, "ALTER TABLE mirror.people ADD COLUMN note text")
            await run.rows(target_database, IDS, [(1,), (2,), (3,)])
            await run.until(lambda: run.status.record.state == "streaming", "streaming")
            assert run.flow()["parked"] == 0
