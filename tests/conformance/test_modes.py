"""The keys of a flow that change what is written: mapping, write, delete, truncate."""

from __future__ import annotations

import pytest

from consumers.targets.base import FlowError
from streamer.errors import ConfigError
from tests.conformance.adapters.base import Adapter
from tests.conformance.sessions import people, person, session


async def test_columns_are_renamed_and_constants_added(adapter: Adapter) -> None:
    keys = {"columns": {"name": "full_name", "tenant": {"value": "acme"}}, "unmapped": "add"}
    async with session(adapter, {"mirror": keys}) as s:
        table = people(s.log)
        table.create(person(1, "a", "n"))
        table.create(person(2))
        await s.apply()
        table.update(person(1, "b", "n"))
        table.delete(person(2))
        await s.apply()
        assert await s.rows() == [{"id": 1, "full_name": "b", "note": "n", "tenant": "acme"}]


@pytest.mark.needs("tables")
async def test_a_table_of_somebody_elses_keeps_its_columns(adapter: Adapter) -> None:
    await adapter.make_table("people", ["id", "name", "own"])
    async with session(adapter, {"mirror": {"unmapped": "ignore"}}) as s:
        people(s.log).create(person(1, "a", "not taken"))
        await s.apply()
        assert await s.rows() == [{"id": 1, "name": "a", "own": None}]


@pytest.mark.needs("tables")
async def test_an_unmapped_column_may_stop_the_flow(adapter: Adapter) -> None:
    await adapter.make_table("people", ["id", "name"])
    async with session(adapter, {"mirror": {"unmapped": "fail"}}) as s:
        people(s.log).create(person(1))
        with pytest.raises(FlowError) as caught:
            await s.apply()
        assert caught.value.flow == "mirror"
        assert isinstance(caught.value.cause, ConfigError)
        assert "note" in str(caught.value.cause)


async def test_insert_only_never_changes_a_row(adapter: Adapter) -> None:
    async with session(adapter, {"mirror": {"write": "insert_only"}}) as s:
        table = people(s.log)
        table.create(person(1, "first"))
        await s.apply()
        table.update(person(1, "second"))
        table.create(person(2, "first"))
        await s.apply()
        assert [row["name"] for row in await s.rows()] == ["first", "first"]


async def test_a_soft_delete_keeps_the_row(adapter: Adapter) -> None:
    async with session(adapter, {"mirror": {"delete": "soft(gone_at)"}}) as s:
        table = people(s.log)
        table.create(person(1))
        table.create(person(2))
        await s.apply()
        table.delete(person(1))
        await s.apply()
        one, two = await s.rows()
        assert one["gone_at"] is not None
        assert (one["name"], two.get("gone_at")) == ("a", None)
        table.create(person(1, "back"))
        await s.apply()
        one, _ = await s.rows()
        assert (one["name"], one.get("gone_at")) == ("back", None)


async def test_a_truncate_marks_rows_that_are_deleted_softly(adapter: Adapter) -> None:
    async with session(adapter, {"mirror": {"delete": "soft(gone_at)"}}) as s:
        table = people(s.log)
        table.create(person(1))
        table.create(person(2))
        await s.apply()
        table.truncate()
        table.create(person(2, "after"))
        await s.apply()
        one, two = await s.rows()
        assert (one["name"], one["gone_at"] is None) == ("a", False)
        assert (two["name"], two["gone_at"]) == ("after", None)


async def test_deletes_may_be_ignored(adapter: Adapter) -> None:
    async with session(adapter, {"mirror": {"delete": "ignore"}}) as s:
        table = people(s.log)
        table.create(person(1))
        await s.apply()
        table.delete(person(1))
        await s.apply()
        assert await s.rows() == [person(1)]


async def test_truncates_may_be_ignored(adapter: Adapter) -> None:
    async with session(adapter, {"mirror": {"truncate": "ignore"}}) as s:
        table = people(s.log)
        table.create(person(1))
        table.create(person(2))
        await s.apply()
        table.truncate()
        table.update(person(1, "after"))
        await s.apply()
        assert await s.rows() == [person(1, "after"), person(2)]


async def test_append_keeps_every_change(adapter: Adapter) -> None:
    """Also those that a batch would fold away, and also when they come again."""
    async with session(adapter, {"mirror": {"write": "append"}}) as s:
        table = people(s.log)
        table.create(person(1, "a"))
        table.update(person(1, "b"))
        table.update(person(1, "c"))
        table.delete(person(1, "c"))
        for _ in range(2):
            await s.apply()
            assert sorted(str(row["name"]) for row in await s.rows()) == ["a", "b", "c", "c"]
            await s.adapter.rewind(list(await s.stands()))
