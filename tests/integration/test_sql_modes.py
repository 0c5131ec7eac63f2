"""The sql target: truncates, versions and ways to write, on SQLite."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamer.changes.kinds import UNAVAILABLE
from tests.harness.sql_file import PEOPLE, lite, people, person


@pytest.mark.parametrize("version", ["columns", "side", "none"])
@pytest.mark.parametrize("delete", ["apply", "soft(gone)"])
async def test_a_truncate_spares_what_came_after_it(file: Path, version: str, delete: str) -> None:
    partitions = 1 if version == "none" else 2
    async with lite(file, {"version": version, "delete": delete}, partitions=partitions) as at:
        table = at.log.table("t", {"id": "integer", "kind": "text", "v": "bytea"}, ("kind", "v", "id"))
        for n in range(10):
            table.create({"id": n, "kind": "k", "v": "AP8="})
        await at.apply()
        floor = at.log.commit_lsn + 8
        if version != "none":
            table.update({"id": 3, "kind": "k", "v": "AP8="}, floor + 8)
            await at.apply()
        table.truncate(floor)
        table.create({"id": 11, "kind": "k", "v": "AP8="}, floor + 9)
        await at.apply()
        left = [(11,)] if version == "none" else [(3,), (11,)]
        where = "" if delete == "apply" else "WHERE gone IS NULL"
        assert at.rows(f"SELECT id FROM t {where} ORDER BY id") == left
        if delete != "apply":
            assert at.rows("SELECT count(*) FROM t") == [(11,)]


async def test_without_versions_a_truncate_of_several_partitions_stops_the_flow(file: Path) -> None:
    async with lite(file, {"version": "none"}) as at:
        table = people(at)
        for n in range(4):
            table.create(person(n))
        await at.apply()
        table.truncate()
        assert "version: none: its topic has 2 partitions" in await at.refused()
        assert at.rows("SELECT count(*) FROM people") == [(4,)]


@pytest.mark.parametrize("version", ["columns", "side"])
async def test_an_older_event_never_wins(file: Path, version: str) -> None:
    async with lite(file, {"version": version}) as at:
        table = people(at)
        table.update(person(1, "at 200"), 200)
        table.update(person(2, "at 200"), 200, 1)
        table.delete(person(3), 200, 2)
        await at.apply()
        table.update(person(1, "at 100"), 100)
        table.delete(person(2), 150)
        table.create(person(3, "at 100"), 100)
        outcome = await at.apply()
        assert outcome.guarded == {"flow0": 3}
        assert at.rows("SELECT id, name FROM people ORDER BY id") == [(1, "at 200"), (2, "at 200")]
        table.update(person(2, "b", UNAVAILABLE), 150)
        assert (await at.apply()).guarded == {"flow0": 1}
        table.update(person(2, "b", UNAVAILABLE), 300)
        await at.apply()
        assert at.rows("SELECT name FROM people WHERE id = 2") == [("b",)]


@pytest.mark.parametrize("version", ["columns", "none"])
@pytest.mark.parametrize("key", [("id",), ()])
async def test_a_history(file: Path, version: str, key: tuple[str, ...]) -> None:
    delete = "soft(gone)" if key else "apply"
    async with lite(file, {"write": "append", "version": version, "delete": delete}) as at:
        table = at.log.table("people", PEOPLE, key, identity="d" if key else "f")
        table.create(person(1, "a"))
        table.update(person(1, "b"), old=None if key else person(1, "a"))
        table.delete(person(1, "b"))
        await at.apply()
        names = [("a",), ("b",), ("b",)]
        assert at.rows("SELECT name FROM people ORDER BY name") == names
        at.rewind()
        await at.apply()
        twice = names if version == "columns" else sorted(names * 2)
        assert at.rows("SELECT name FROM people ORDER BY name") == twice
        if key:
            gone = at.rows("SELECT count(*), count(gone) FROM people WHERE name = 'b'")
            assert gone == [(2, 1) if version == "columns" else (4, 2)]
        if version == "columns":
            ops = at.rows("SELECT _tailrace_op FROM people ORDER BY _tailrace_lsn, _tailrace_ordinal")
            assert ops == [("c",), ("u",), ("d",)]


async def test_a_reset_keeps_rows_of_insert_only_that_are_there_still(file: Path) -> None:
    async with lite(file, {"write": "insert_only"}) as at:
        table = people(at)
        table.create(person(1, "first"), 900)
        table.create(person(2, "gone"), 900, 1)
        await at.apply()
        table.read(person(1, "later"), 100, epoch=2)
        await at.apply()
        table.floor(2)
        await at.apply()
        assert at.rows("SELECT id, name FROM people") == [(1, "first")]
