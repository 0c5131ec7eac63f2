"""What gates keep in a target: what is held, what was decided, how much was deleted of late."""

from __future__ import annotations

from dataclasses import replace

import pytest

from consumers.apply.checkpoint import Place
from consumers.targets.base import GATE_WINDOW_S, Gate
from tests.conformance.adapters.base import SCHEMA, Adapter
from tests.conformance.sessions import below, people, person, session


async def test_a_gate_is_held_then_decided(adapter: Adapter) -> None:
    async with session(adapter) as s, s.another() as other:
        assert await s.target.gates() == []
        assert await s.target.decide("mirror", "approved", "ann@host", 900) == []
        gate = Gate("mirror", "shop.public.people", "deletes", "held", 40, 100, 500, 600)
        second = replace(gate, topic="shop.public.things", kind="truncate")
        elsewhere = replace(gate, flow="other")
        for held in (gate, second, elsewhere):
            await s.target.hold(held)
        await s.target.hold(replace(gate, rows=70, since_us=700, up_to_us=800))
        more = replace(gate, rows=70, up_to_us=800)
        assert sorted(await other.target.gates(), key=lambda g: (g.flow, g.topic)) == [
            more,
            second,
            elsewhere,
        ]

        decided = await other.target.decide("mirror", "approved", "ann@host", 900)
        done = [
            replace(known, state="approved", decided_by="ann@host", up_to_us=900) for known in (more, second)
        ]
        assert sorted(decided, key=lambda g: g.topic) == done
        assert await other.target.decide("mirror", "refused", "eve@host", 950) == []
        assert sorted(await s.target.gates(), key=lambda g: (g.flow, g.topic)) == [*done, elsewhere]

        again = replace(gate, since_us=1000, up_to_us=1100)
        await s.target.hold(again)
        assert again in await other.target.gates()


async def test_a_note_takes_no_decision_back(adapter: Adapter) -> None:
    """Of a process that has looked at the gates right before the decision, or has one of an emptied store."""
    async with session(adapter) as s, s.another() as other:
        gate = Gate("mirror", "shop.public.people", "deletes", "held", 40, 100, 500, 600)
        old = replace(gate, state="approved", decided_by="bob@host", up_to_us=550)
        await s.target.hold(gate)
        await other.target.hold(old)
        assert await s.target.gates() == [gate]
        decided = await other.target.decide("mirror", "refused", "ann@host", 900)
        await other.target.hold(old)
        for again in (gate, replace(gate, rows=70, since_us=550, up_to_us=900)):
            await s.target.hold(again)
            assert await other.target.gates() == decided
        far = round(GATE_WINDOW_S * 1e6)
        for other_one in (
            replace(gate, up_to_us=901),
            replace(gate, kind="truncate"),
            replace(gate, since_us=10 * far, up_to_us=10 * far),
        ):
            await s.target.hold(other_one)
            assert await other.target.gates() == [other_one]
            await other.target.decide("mirror", "approved", "ann@host", 20 * far)
        await s.target.hold(replace(gate, since_us=9 * far - 1))
        assert [known.state for known in await other.target.gates()] == ["held"]
        brought = replace(old, topic="shop.public.things")
        await s.target.hold(brought)
        assert brought in await other.target.gates()


async def test_deletes_are_counted_with_the_rows(adapter: Adapter) -> None:
    async with session(adapter) as s, s.another() as other:
        table = people(s.log)
        for number in range(20):
            table.create(person(number))
        await s.apply()
        assert await other.target.count_rows("mirror", SCHEMA, "people") == 20
        assert await other.target.count_rows("mirror", SCHEMA, "nothing") == 0
        assert await other.target.recent_deletes("mirror", table.topic, 600) == 0
        for number in range(12):
            table.delete(person(number))
        batch = await s.batch()
        batch.deleted = {
            Place("mirror", table.topic, fold.partition): len(fold.deletes) for fold in batch.tables[0].folds
        }
        assert sum(batch.deleted.values()) == 12
        await s.target.apply(batch)
        assert await other.target.recent_deletes("mirror", table.topic, 600) == 12
        assert await other.target.recent_deletes("mirror", "shop.public.things", 600) == 0
        assert await other.target.recent_deletes("other", table.topic, 600) == 0
        assert await other.target.count_rows("mirror", SCHEMA, "people") == 8


async def test_what_a_floor_would_take_is_counted_without_taking_it(adapter: Adapter) -> None:
    async with session(adapter) as s:
        table = people(s.log)
        for number in range(20):
            table.create(person(number))
        await s.apply()
        assert await below(s, table, (1, 0, 0)) == 0
        assert await below(s, table, (2, 0, 0)) == 20
        for number in range(8):
            table.read(person(number, "of the second epoch"), epoch=2)
        await s.apply()
        assert await below(s, table, (2, 0, 0)) == 12
        assert len(await s.rows()) == 20
        table.floor(2)
        await s.apply()
        assert len(await s.rows()) == 8
        assert await below(s, table, (2, 0, 0)) == 0


async def deleted_softly(adapter: Adapter, keys: dict[str, str]) -> None:
    async with session(adapter, {"mirror": {"delete": "soft(gone_at)", **keys}}) as s:
        table = people(s.log)
        for number in range(6):
            table.create(person(number))
        await s.apply()
        table.delete(person(0))
        await s.apply()
        table.read(person(1, "of the second epoch"), epoch=2)
        await s.apply()
        assert await below(s, table, (2, 0, 0)) == 4
        assert len(await s.rows()) == 6


async def test_a_floor_takes_no_row_that_is_deleted_softly_already(adapter: Adapter) -> None:
    await deleted_softly(adapter, {})


@pytest.mark.needs("ddl", "keyless")
async def test_a_floor_takes_no_row_whose_version_beside_it_is_above(adapter: Adapter) -> None:
    await deleted_softly(adapter, {"version": "side"})
