"""Rows: what each kind of change does, in any order of arrival, once and again."""

from __future__ import annotations

from random import Random

import orjson
import pytest

from consumers.testing import Log
from streamer.changes.envelope import SWEEP_HEADER
from streamer.changes.kinds import UNAVAILABLE
from tests.conformance.adapters.base import SOURCE, Adapter
from tests.conformance.sessions import PEOPLE, people, person, session

MIB = 2**20


async def test_insert_update_delete(adapter: Adapter) -> None:
    async with session(adapter) as s:
        table = people(s.log)
        table.read(person(1, "first copy"))
        table.create(person(2, "q\" ' \\ é 🐟 {}\n\t", "n"))
        table.create(person(3))
        outcome = await s.apply()
        assert await s.rows() == [
            person(1, "first copy"),
            person(2, "q\" ' \\ é 🐟 {}\n\t", "n"),
            person(3),
        ]
        assert outcome.applied == {"mirror": 3}
        table.update(person(1, "b", ""))
        table.delete(person(3))
        table.delete(person(9))
        await s.apply()
        assert await s.rows() == [person(1, "b", ""), person(2, "q\" ' \\ é 🐟 {}\n\t", "n")]
        table.create(person(3, "again"))
        table.delete(person(1))
        table.create(person(1, "in one batch"))
        await s.apply()
        assert [row["name"] for row in await s.rows()] == ["in one batch", "q\" ' \\ é 🐟 {}\n\t", "again"]


async def test_a_prepared_batch_writes_the_same(adapter: Adapter) -> None:
    async with session(adapter) as s:
        table = people(s.log)
        table.create(person(1))
        await s.apply()
        for number in range(2, 50):
            table.create(person(number))
        table.delete(person(1))
        batch = await s.batch()
        await s.target.prepare(batch)
        await s.target.apply(batch)
        assert await s.rows() == [person(number) for number in range(2, 50)]


async def test_key_change(adapter: Adapter) -> None:
    """A delete and a create under two keys, which lie in two partitions."""
    async with session(adapter) as s:
        table = people(s.log)
        at = {table.create(person(number)).partition for number in range(1, 5)}
        assert at == {0, 1}
        await s.apply()
        lsn = s.log.commit_lsn + 8
        for ordinal, number in enumerate(range(4, 0, -1)):  # each moves to where the one before has gone from
            table.delete(person(number), lsn, 2 * ordinal)
            table.create(person(number + 1, f"was {number}"), lsn, 2 * ordinal + 1)
        await s.apply()
        assert await s.rows() == [person(n + 1, f"was {n}") for n in range(1, 5)]


async def test_h05_truncate(adapter: Adapter) -> None:
    """It takes what is older with it, also what comes later from another partition; what is newer stays."""
    async with session(adapter) as s:
        table = people(s.log)
        for number in range(1, 9):
            table.create(person(number))
        await s.apply()
        floor = s.log.commit_lsn + 8
        table.truncate(floor)
        await s.apply()
        assert await s.rows() == []
        for number in range(1, 9):
            table.update(person(number, "late"), floor - 8, number)
            table.create(person(number + 10, "newer"), floor + 8, number)
        outcome = await s.apply()
        assert await s.rows() == [person(number, "newer") for number in range(11, 19)]
        assert outcome.guarded == {"mirror": 8}
        table.create(person(20), floor + 16)
        table.truncate(floor + 24)
        table.create(person(21), floor + 32)
        await s.apply()
        assert await s.rows() == [person(21)]


async def test_a_reset_ends_with_what_only_older_epochs_wrote(adapter: Adapter) -> None:
    async with session(adapter) as s:
        table = people(s.log)
        table.create(person(1), 900)
        table.create(person(2), 900, 1)
        await s.apply()
        table.read(person(1, "of the second epoch"), 100, epoch=2)
        table.floor(2)
        await s.apply()
        assert await s.rows() == [person(1, "of the second epoch")]


async def test_h03_replay_of_everything(adapter: Adapter) -> None:
    """Any part of the log again, from any place: nothing goes back in time."""
    random = Random(7)
    async with session(adapter) as s:
        table = people(s.log)
        for step in range(200):
            number = random.randrange(12)
            if random.random() < 0.3:
                table.delete(person(number))
            else:
                table.update(person(number, f"at {step}"))
            if step == 90:
                table.truncate()
        await s.apply()
        expected = await s.rows()
        assert 4 < len(expected) < 12
        ends = await s.stands()
        await s.adapter.rewind(list(ends))
        await s.apply()
        assert await s.rows() == expected
        for _ in range(10):
            await s.adapter.rewind(list(ends))
            starts = dict.fromkeys(ends, 0)
            while starts != ends:
                steps = {place: min(ends[place], at + random.randrange(40)) for place, at in starts.items()}
                until = {(place.topic, place.partition): at for place, at in steps.items()}
                batch = await s.log.batch(s.flows, starts, until)  # type: ignore[arg-type]
                if batch.moves:
                    assert (await s.target.apply(batch)).lost == []
                starts = steps
            assert await s.rows() == expected


async def test_replay_of_a_part(adapter: Adapter) -> None:
    async with session(adapter) as s:
        table = people(s.log)
        table.create(person(1, "kept"))
        table.create(person(2))
        table.update(person(2, "newest"))
        table.create(person(3))
        table.delete(person(3))
        await s.apply()
        ends = await s.stands()
        parts = {place: 1 for place, end in ends.items() if end > 1}
        await s.adapter.rewind(list(parts), 1)
        await s.apply()
        assert await s.rows() == [person(1, "kept"), person(2, "newest")]
        assert await s.stands() == ends


async def test_out_of_order_versions(adapter: Adapter) -> None:
    """A row of a later backfill with the version of an earlier moment, an older delete, an older epoch."""
    async with session(adapter) as s:
        table = people(s.log)
        table.update(person(1, "at 200"), 200)
        table.update(person(2, "at 200"), 200, 1)
        table.delete(person(3), 200, 2)
        table.create(person(4, "epoch 2"), 10, epoch=2)
        await s.apply()
        table.read(person(1, "at 100"), 100)
        table.delete(person(2), 199)
        table.read(person(3, "at 100"), 100)
        table.update(person(4, "epoch 1"), 900)
        outcome = await s.apply()
        assert await s.rows() == [person(1, "at 200"), person(2, "at 200"), person(4, "epoch 2")]
        assert outcome.guarded == {"mirror": 4}
        table.update(person(1, "the same version wins"), 200)
        table.create(person(3, "newer"), 200, 3)
        await s.apply()
        names = {row["id"]: row["name"] for row in await s.rows()}
        assert names == {1: "the same version wins", 2: "at 200", 3: "newer", 4: "epoch 2"}


async def test_schema_change(adapter: Adapter) -> None:
    """A column comes and another goes, with rows of both versions in one batch."""
    async with session(adapter) as s:
        table = people(s.log)
        table.create(person(1))
        await s.apply()
        table.create(person(2))
        wider = s.log.table("people", {**PEOPLE, "more": "text"})
        wider.create({**person(3), "more": "m"})
        wider.update({**person(1, "b"), "more": "n"})
        await s.apply()
        more = {row["id"]: (row["name"], row.get("more")) for row in await s.rows()}
        assert more == {1: ("b", "n"), 2: ("a", None), 3: ("a", "m")}
        narrower = s.log.table("people", {"id": "integer", "more": "text"})
        narrower.create({"id": 4, "more": "o"})
        await s.apply()
        last = (await s.rows())[-1]
        assert (last["id"], last.get("name"), last["more"]) == (4, None, "o")


async def test_a_value_of_10_mib(adapter: Adapter) -> None:
    async with session(adapter) as s:
        table = people(s.log)
        big = Random(1).randbytes(5 * MIB).hex()
        table.create(person(1, "big", big))
        table.create(person(2))
        await s.apply()
        rows = await s.rows()
        assert [row["id"] for row in rows] == [1, 2]
        assert rows[0]["note"] == big


async def test_h07_a_patch_leaves_the_other_values(adapter: Adapter) -> None:
    """TOAST placeholders: over a row that is there, and over one that is not, until a whole row comes."""
    async with session(adapter) as s:
        table = people(s.log)
        table.create(person(1, "a", "large"))
        await s.apply()
        table.update(person(1, "b", UNAVAILABLE))
        await s.apply()
        assert await s.rows() == [person(1, "b", "large")]
        table.update(person(2, "b", UNAVAILABLE))
        outcome = await s.apply()
        assert await s.rows() == [person(1, "b", "large")]
        assert outcome.rereads == {"mirror": 1}
        (finding,) = await s.target.findings()
        assert "mirror" in finding
        assert "people" in finding
        table.update(person(2, "c", "whole"))
        await s.apply()
        assert await s.rows() == [person(1, "b", "large"), person(2, "c", "whole")]
        assert await s.target.findings() == []


async def test_h07_rows_that_are_not_whole_are_named_and_a_row_read_again_mends_them(
    adapter: Adapter,
) -> None:
    async with session(adapter) as s:
        table = people(s.log)
        topic = table.update(person(2, "b", UNAVAILABLE)).topic
        patched = table.update(person(3, "b", UNAVAILABLE), lsn=5_000_000)
        await s.apply()
        found = sorted(await s.target.rereads([topic], 10), key=lambda row: row.version)
        assert [(row.flow, row.table.rpartition(".")[2], orjson.loads(row.key)) for row in found] == [
            ("mirror", "people", {"id": 2}),
            ("mirror", "people", {"id": 3}),
        ]
        assert {row.topic for row in found} <= {topic, ""}
        assert found[1].version[1] == 5_000_000
        assert len(await s.target.rereads([topic], 1)) in (1, 2)  # about: some stores give what a step finds
        table.read(person(2, "c", "whole"), lsn=6_000_000)
        table.read(person(3, "old", "whole"), lsn=4_000_000)  # read before what left it so
        assert patched.topic == topic
        await s.apply()
        assert [orjson.loads(row.key) for row in await s.target.rereads([topic], 10)] == [{"id": 3}]
        table.delete(person(3), lsn=7_000_000)
        await s.apply()
        assert await s.target.rereads([topic], 10) == []
        assert await s.target.findings() == []


async def test_h06_a_create_never_takes_a_value_from_the_row_before_it(adapter: Adapter) -> None:
    async with session(adapter) as s:
        table = people(s.log)
        table.create(person(1, "a", "of another row"))
        await s.apply()
        table.create(person(1, "b", UNAVAILABLE))
        outcome = await s.apply()
        assert await s.rows() == [person(1, "b", None)]
        assert outcome.rereads == {"mirror": 1}
        assert len(await s.target.findings()) == 1


@pytest.mark.needs("keyless")
async def test_h27_a_table_without_a_key_is_a_multiset(adapter: Adapter) -> None:
    async with session(adapter) as s:
        table = people(s.log, key=())
        twin = person(1, "twin")
        for row in (twin, twin, twin, person(2, "b", "n")):
            table.create(row)
        await s.apply()
        assert await s.rows() == [twin, twin, twin, person(2, "b", "n")]
        table.delete(twin)
        table.update(person(2, "c"), old=person(2, "b", "n"))
        await s.apply()
        assert await s.rows() == [twin, twin, person(2, "c")]
        table.truncate()
        table.create(person(3))
        await s.apply()
        assert await s.rows() == [person(3)]


@pytest.mark.needs("schemas")
async def test_several_tables_and_flows(adapter: Adapter) -> None:
    """Each flow has its own checkpoints, also of one topic."""
    flows = {
        "one": {"from": f"{SOURCE}.public.people"},
        "all": {"from": f"{SOURCE}.public.*", "to": "copy.other"},
    }
    async with session(adapter, flows) as s:
        people(s.log).create(person(1))
        s.log.table("things", {"id": "integer", "name": "text"}).create({"id": 7, "name": "t"})
        outcome = await s.apply()
        assert outcome.applied == {"one": 1, "all": 2}
        assert await s.rows() == [person(1)]
        assert await s.adapter.read_rows("people", "other") == [person(1)]
        assert await s.adapter.read_rows("things", "other") == [{"id": 7, "name": "t"}]
        assert {place.flow for place in await s.stands()} == {"one", "all"}


async def test_a_delete_of_a_sweep_is_a_delete(adapter: Adapter) -> None:
    async with session(adapter, log=Log(SOURCE, partitions=1)) as s:
        table = people(s.log)
        table.create(person(1))
        at = table.delete(person(1), sweep=1)
        assert s.log.records[at][1].headers == ((SWEEP_HEADER, b"1"),)
        await s.apply()
        assert await s.rows() == []
