"""A store that loses a table, or all it has, behind the target's back."""

from __future__ import annotations

import pytest

from consumers.targets.base import FlowError, Look, TableLost
from tests.conformance.adapters.base import Adapter
from tests.conformance.sessions import PEOPLE, Session, people, person, session


async def lost(s: Session) -> TableLost:
    """The error of the next batch."""
    with pytest.raises(FlowError) as caught:
        await s.apply()
    assert isinstance(caught.value.cause, TableLost)
    return caught.value.cause


@pytest.mark.needs("ddl")
async def test_a_table_that_is_gone_is_not_made_again(adapter: Adapter) -> None:
    """By whichever session, whatever it knew of the table, and also for a new version of its rows."""
    async with session(adapter) as s:
        table = people(s.log)
        table.create(person(1))
        await s.apply()
        await adapter.drop_table("people")
        table.create(person(2))
        before = await s.stands()
        error = await lost(s)
        assert (error.flow, error.topic, error.epoch) == ("mirror", table.topic, 1)
        for words in (
            "people",
            "is missing",
            "restore it",
            "goes on by itself",
            "`tailrace reset shop --yes`",
        ):
            assert words in str(error)
        people(s.log, {**PEOPLE, "more": "text"}).create({**person(3), "more": "m"})
        async with s.another() as other:
            await lost(other)
        assert await s.rows() == []
        assert await s.stands() == before


@pytest.mark.needs("ddl")
async def test_a_table_that_came_back_takes_what_waits(adapter: Adapter) -> None:
    async with session(adapter) as s:
        table = people(s.log)
        table.create(person(1))
        await s.apply()
        await adapter.drop_table("people")
        table.create(person(2))
        await lost(s)
        await adapter.make_table("people", [*PEOPLE, *adapter.beside])
        await s.apply()
        assert await s.rows() == [person(2)]


@pytest.mark.needs("ddl")
async def test_a_copy_of_a_newer_epoch_makes_the_table_again(adapter: Adapter) -> None:
    """The loop says so, which knows of the source's reset; what that has written is lost no less."""
    async with session(adapter) as s:
        table = people(s.log)
        table.create(person(1), 100)
        await s.apply()
        await adapter.drop_table("people")
        table.update(person(1, "old"), 110)
        for n in (1, 2):
            table.read(person(n, "new"), 50, epoch=2)
        table.floor(2)
        batch = await s.batch()
        batch.remakes.add(("mirror", table.topic))
        await s.target.apply(batch)
        assert await s.rows() == [person(1, "new"), person(2, "new")]
        await adapter.drop_table("people")
        table.create(person(3), 60, epoch=2)
        assert (await lost(s)).epoch == 2


@pytest.mark.needs("ddl")
async def test_a_flow_that_begins_makes_its_table(adapter: Adapter) -> None:
    """Also where the topic's other flow, or another topic of the flow, has written long before; and where a
    person has set the checkpoints back to 0, to have all of it again."""
    async with session(adapter) as s:
        people(s.log).create(person(1))
        await s.apply()
        things = s.log.table("things", PEOPLE)
        things.create(person(5))
        await s.apply()
        assert await s.rows("things") == [person(5)]
    more = {"second": {"from": "shop.public.people", "to": "copy.second"}}
    async with session(adapter, more, log=s.log) as second:
        await second.apply()
        assert await adapter.read_rows("people", "second") == [person(1)]
    async with session(adapter, log=s.log) as again:
        await adapter.drop_table("people")
        await adapter.rewind([place for place in s.log.places(s.flows) if place.topic.endswith("people")])
        await again.apply()
        assert await again.rows() == [person(1)]


async def test_a_look_tells_where_the_store_is_and_makes_nothing(adapter: Adapter) -> None:
    async with session(adapter) as s:
        people(s.log).create(person(1))
        places = s.log.places(s.flows)
        assert (await s.target.look(places)).stands == {}
        await s.apply()
        look = await s.target.look(places)
        assert look.stands == await s.stands()
        assert look.id == s.target.id != ""
        await adapter.rewind(places)
        assert set((await s.target.look(places)).stands.values()) == {0}
        assert await s.target.look([]) == Look(look.id, {})
