"""A column of a target's table that is gone: named and waited for, never added for the later rows only."""

from __future__ import annotations

import pytest

from consumers.targets.base import ColumnLost, FlowError
from streamer.resetting import reset_steps
from tests.harness.feeder import Feeder, applying, config_of
from tests.harness.given import PEOPLE, execute, given, people, person
from tests.harness.people import IDS, filled, make

NAMES = """SELECT attname::text FROM pg_attribute WHERE attrelid = 'own.people'::regclass AND attnum > 0
AND NOT attisdropped AND attname NOT LIKE '\\_tailrace%' ORDER BY attname"""
GIVEN = "CREATE TABLE own.people (id int PRIMARY KEY, full_name text, seen text, extra varchar)"
ROWS = "SELECT id, extra FROM own.people ORDER BY id"


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
        places = at.log.places(at.flows)
        starts = {place: c.next_offset for place, c in (await at.target.checkpoints(places)).items()}
        batch = await at.log.batch(at.flows, starts)
        with pytest.raises(FlowError) as caught:
            await at.target.apply(batch)
        assert isinstance(caught.value.cause, ColumnLost)
        batch.remakes.add(("mirror", caught.value.cause.topic))
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
