"""Rows that the target refuses, and the queue that waits behind them (H24)."""

from __future__ import annotations

from dataclasses import replace

import pytest
from aiokafka import TopicPartition

from consumers.apply.checkpoint import Move, Place
from consumers.apply.modes import fold_for
from consumers.apply.queues import event_of
from consumers.targets.base import AskedAnew, Batch, Parked, Refused, RowsRefused, TableChanges
from consumers.testing import CLUSTER_ID, LogTable
from tests.conformance.adapters.base import SCHEMA, Adapter
from tests.conformance.sessions import Session, below, people, person, session

BAD = "bad"


def parked(refused: Refused, payload: bytes, sequence: int = 1) -> Parked:
    assert refused.key is not None
    return Parked(
        refused.place,
        refused.key,
        sequence,
        refused.write.offset,
        refused.write.change.version,
        payload,
        True,
        "public",
        "people",
        False,
        refused.code,
        refused.message,
        1,
        1_700_000_000_000_000,
    )


def without(batch: Batch, refused: Refused) -> None:
    """Take a key out of the batch's folds, as the parking does."""
    assert refused.key is not None
    for changes in batch.tables:
        for fold in changes.folds:
            if Place(changes.flow, changes.topic, fold.partition) == refused.place:
                for part in (fold.rows, fold.creates, fold.patches, fold.deletes):
                    part.pop(refused.key, None)
                fold.rereads.pop(refused.key, None)


async def refused_of(s: Session, batch: Batch) -> list[Refused]:
    with pytest.raises(RowsRefused) as caught:
        await s.target.apply(batch)
    return caught.value.rows


async def test_a_refused_row_is_named_and_nothing_is_written(adapter: Adapter) -> None:
    await adapter.refuse("people", ["id", "name", "note"], BAD)
    async with session(adapter) as s:
        table = people(s.log)
        for number in range(1, 100):
            place = table.create(person(number, BAD if number == 37 else "good"))
            if number == 37:
                at, offset = place, len(s.log.records[place]) - 1
        (refused,) = await refused_of(s, await s.batch())
        assert refused.place == Place("mirror", at.topic, at.partition)
        assert refused.key == table.key_of(person(37))
        assert refused.write.offset == offset
        assert refused.write.row["name"] == BAD
        assert refused.code
        assert refused.message
        assert not refused.transient
        assert person(37, BAD) not in await s.rows()
        assert not adapter.writes_whole or await s.rows() == []
        assert set((await s.stands()).values()) == {0}


async def test_every_refused_row_is_found_in_the_end(adapter: Adapter) -> None:
    await adapter.refuse("people", ["id", "name", "note"], BAD)
    async with session(adapter) as s:
        table = people(s.log)
        for number in range(1, 60):
            table.create(person(number, "good" if number % 10 else BAD))
        batch = await s.batch()
        found: set[bytes | None] = set()
        while len(found) < 5:
            for refused in await refused_of(s, batch):
                found.add(refused.key)
                without(batch, refused)
        await s.target.apply(batch)
        assert found == {table.key_of(person(number)) for number in range(10, 60, 10)}
        assert [row["id"] for row in await s.rows()] == [n for n in range(1, 60) if n % 10]


async def test_h24_a_parked_key_waits_and_the_rest_flows(adapter: Adapter) -> None:
    """Park in the rows' transaction; later changes join; an operator asks; the owner un-parks and writes."""
    await adapter.refuse("people", ["id", "name", "note"], BAD)
    async with session(adapter) as s:
        table = people(s.log)
        at = table.create(person(1, BAD))
        table.create(person(2))
        batch = await s.batch()
        (refused,) = await refused_of(s, batch)
        without(batch, refused)
        value = s.log.records[at][0].value
        assert value is not None
        assert refused.key is not None
        entry = parked(refused, value)
        batch.parks.append(entry)
        await s.target.apply(batch)
        assert await s.rows() == [person(2)]

        table.update(person(1, "later"))
        batch = await s.batch()
        without(batch, refused)
        later = replace(entry, sequence=2, offset=1, payload=b"{}", decodes=False, waiting=True)
        batch.parks.append(later)
        await s.target.apply(batch)
        async with s.another() as other:
            assert await other.target.parked() == [entry, later]
            assert await other.target.parked([refused.place]) == [entry, later]
            assert await other.target.parked([Place("mirror", at.topic, 99)]) == []
            assert await other.target.parked(asked=True) == []
            assert await other.target.ask([(refused.place, b"no such key")], "retry", "eve@host") == 0
            assert await other.target.ask([(refused.place, refused.key)], "retry", "ann@host") == 1
        wishes = await s.target.parked([refused.place], asked=True)
        assert {(p.asked, p.asked_by) for p in wishes} == {("retry", "ann@host")}
        assert [p.sequence for p in wishes] == [1, 2]

        await adapter.accept("people")
        table.update(person(1, "good"))
        batch = await s.batch()
        batch.unparks.append((refused.place, refused.key))
        await s.target.apply(batch)
        assert await s.rows() == [person(1, "good"), person(2)]
        assert await s.target.parked() == []


async def test_h24_what_joins_a_marked_key_is_marked_with_it(adapter: Adapter) -> None:
    """The owner un-parks the key as a whole: a change that came after the mark must not be left out."""
    async with session(adapter) as s:
        table = people(s.log)
        entries: list[Parked] = []
        for number in (1, 2):
            at = table.create(person(number))
            place, key = Place("mirror", at.topic, at.partition), table.key_of(person(number))
            assert key is not None
            batch = await s.batch()
            write = next(f.rows[key] for c in batch.tables for f in c.folds if key in f.rows)
            entries.append(parked(Refused(place, key, write, "1", "m", transient=False), b"one"))
            batch.parks.append(entries[-1])
            await s.target.apply(batch)
        first, second = entries
        assert await s.target.ask([(first.place, first.key)], "retry", "ann@host") == 1
        table.update(person(1, "later"))
        batch = await s.batch()
        batch.parks += [replace(entry, sequence=2, payload=b"two") for entry in entries]
        await s.target.apply(batch)
        places = {first.place, second.place}
        for wishes in (await s.target.parked(places, asked=True), await s.target.parked(asked=True)):
            assert [(p.key, p.sequence, p.payload) for p in wishes] == [
                (first.key, 1, b"one"),
                (first.key, 2, b"two"),
            ]
            assert (wishes[0].asked, wishes[0].asked_by) == ("retry", "ann@host")


async def test_a_queue_is_replaced_in_one_batch(adapter: Adapter) -> None:
    async with session(adapter) as s:
        table = people(s.log)
        at = table.create(person(1))
        place, key = Place("mirror", at.topic, at.partition), table.key_of(person(1))
        assert key is not None
        batch = await s.batch()
        write = batch.tables[0].folds[0].rows[key]
        old = parked(Refused(place, key, write, "1", "old", transient=False), b"\x00\xff")
        batch.parks.append(old)
        await s.target.apply(batch)
        table.update(person(1, "b"))
        batch = await s.batch()
        batch.unparks.append((place, key))
        new = replace(old, message="new", payload=b"new")
        batch.parks.append(new)
        await s.target.apply(batch)
        assert await s.target.parked() == [new]


async def test_parks_of_a_lost_partition_are_not_written(adapter: Adapter) -> None:
    async with session(adapter) as s, s.another() as other:
        table = people(s.log)
        at = table.create(person(1))
        place, key = Place("mirror", at.topic, at.partition), table.key_of(person(1))
        assert key is not None
        stale = await s.batch()
        write = stale.tables[0].folds[0].rows[key]
        entry = parked(Refused(place, key, write, "1", "m", transient=False), b"p")
        mine = await s.batch()
        mine.parks.append(entry)
        await other.target.apply(mine)
        stale.parks.append(replace(entry, sequence=2))
        stale.unparks.append((place, key))
        stale.deleted[place] = 5
        outcome = await s.target.apply(stale)
        assert outcome.lost == [place]
        assert await s.target.parked() == [entry]
        assert await s.target.recent_deletes("mirror", table.topic, 600) == 0


async def test_h24_a_mark_that_comes_before_the_commit_is_no_batchs_to_drop(adapter: Adapter) -> None:
    """Between what was read of a queue and what takes its place: nothing is written, and it is read again."""
    async with session(adapter) as s, s.another() as other:
        table = people(s.log)
        at = table.create(person(1))
        place, key = Place("mirror", at.topic, at.partition), table.key_of(person(1))
        assert key is not None
        (old,) = await park_next(s, table, 1)
        table.update(person(1, "b"))
        table.create(person(2))

        async def replacing(wish: str) -> Batch:
            batch = await s.batch()
            for changes in batch.tables:
                for fold in changes.folds:
                    fold.rows.pop(key, None)
            batch.unparks, batch.wishes = [(place, key)], {(place, key): wish}
            batch.parks = [replace(old, payload=b"new", asked=wish, asked_by="ann@host" if wish else "")]
            return batch

        batch, before = await replacing(""), await s.stands()
        assert await other.target.ask([(place, key)], "retry", "ann@host") == 1
        with pytest.raises(AskedAnew) as caught:
            await s.target.apply(batch)
        assert list(caught.value.keys) == [(place, key)]
        assert await s.stands() == before
        assert not adapter.writes_whole or await s.rows() == []
        assert await s.target.parked() == [replace(old, asked="retry", asked_by="ann@host")]

        assert (await s.target.apply(await replacing("retry"))).lost == []
        assert await s.rows() == [person(2)]
        (left,) = await s.target.parked()
        assert (left.payload, left.asked) == (b"new", "retry")


# Floors


async def park_next(s: Session, table: LogTable, *keys: int) -> list[Parked]:
    """Apply what is new, with the changes of these keys parked, as if the target had refused them."""
    batch = await s.batch()
    entries = []
    for changes in batch.tables:
        for fold in changes.folds:
            place = Place(changes.flow, changes.topic, fold.partition)
            for key in [table.key_of(person(number)) for number in keys]:
                for part in (fold.rows, fold.creates, fold.patches, fold.deletes):
                    if key is not None and (write := part.pop(key, None)) is not None:
                        at = s.log.records[TopicPartition(place.topic, place.partition)]
                        refused = Refused(place, key, write, "1", "m", transient=False)
                        entries.append(parked(refused, at[write.offset].value or b""))
    batch.parks += entries
    await s.target.apply(batch)
    return entries


async def retry(s: Session, table: LogTable, entry: Parked) -> None:
    """As the owner of the partition does it."""
    at = (await s.stands())[entry.place]
    fold = fold_for(s.flows[0], [event_of(entry)], entry.place.partition)
    record = table.record
    changes = TableChanges("mirror", table.topic, record, SCHEMA, "people", [fold], {record.id})
    moves = [Move(entry.place, at, at, None)]
    batch = Batch([changes], moves, {record.id: record}, CLUSTER_ID, unparks=[(entry.place, entry.key)])
    await s.target.apply(batch)


async def spare(adapter: Adapter, keys: dict[str, str]) -> None:
    """A reset of four rows: one is refused before the floor's batch, one in it, one is gone, one is fine."""
    async with session(adapter, {"mirror": keys}) as s:
        table = people(s.log)
        for number in (1, 2, 3, 4):
            table.create(person(number))
        await s.apply()
        table.read(person(1, "copy"), epoch=2)
        table.read(person(4, "copy"), epoch=2)
        (first,) = await park_next(s, table, 1)
        assert await below(s, table, (2, 0, 0)) == 2
        table.read(person(2, "copy"), epoch=2)
        table.floor(2)
        (second,) = await park_next(s, table, 2)
        left = [row for row in await s.rows() if row.get("gone_at") is None]
        assert [(row["id"], row["name"]) for row in left] == [(1, "a"), (2, "a"), (4, "copy")]
        for entry in (first, second):
            await retry(s, table, entry)
        left = [row for row in await s.rows() if row.get("gone_at") is None]
        assert [(row["id"], row["name"]) for row in left] == [(n, "copy") for n in (1, 2, 4)]
        assert await s.target.parked() == []


async def test_h24_a_floor_leaves_the_row_of_a_parked_key(adapter: Adapter) -> None:
    await spare(adapter, {})


async def test_h24_a_floor_marks_no_row_of_a_parked_key(adapter: Adapter) -> None:
    await spare(adapter, {"delete": "soft(gone_at)"})


@pytest.mark.needs("ddl", "keyless")
async def test_h24_a_floor_leaves_a_parked_row_whose_version_is_beside_it(adapter: Adapter) -> None:
    await spare(adapter, {"version": "side"})


async def test_h24_what_is_parked_below_a_floor_has_no_effect(adapter: Adapter) -> None:
    """It is over with its row, whoever raises the floor; a row that comes after it is the key's next one."""
    async with session(adapter) as s:
        table = people(s.log)
        for number in (1, 2):
            table.create(person(number))
        await s.apply()
        for number in (1, 2):
            table.update(person(number, "refused"))
        old = {entry.key: entry for entry in await park_next(s, table, 1, 2)}
        table.truncate()
        await s.apply()
        assert await s.rows() == []
        for entry in old.values():
            await retry(s, table, entry)
        assert await s.rows() == []
        table.create(person(2, "next"))
        await s.apply()
        assert await s.rows() == [person(2, "next")]


async def test_h24_a_parked_key_that_no_row_can_have_holds_up_no_floor(adapter: Adapter) -> None:
    """Its key was what the target refused."""
    async with session(adapter) as s:
        table = people(s.log)
        at = table.create(person(1))
        table.create(person(2))
        await s.apply()
        place = Place("mirror", at.topic, at.partition)
        table.update(person(1, "b"))
        (entry,) = await park_next(s, table, 1)
        here = (await s.stands())[place]
        odd = [b'{"id":"no number"}', b'{"id":null}', b'{"name":"x"}', b"[1]", b"\xff"]
        parks = [replace(entry, key=key, version=(2, 5, 0)) for key in odd]
        await s.target.apply(Batch([], [Move(place, here, here, None)], {}, CLUSTER_ID, parks=parks))
        assert await below(s, table, (2, 0, 0)) == 2
        table.floor(2)
        await s.apply()
        assert await s.rows() == []
