"""Rows of a processor, in every kind of target: versions by their offsets, deletes, and a reset's floor."""

from __future__ import annotations

from collections import Counter
from typing import Any

from consumers.processors import Change, Given, Row, agent
from consumers.processors.rehearsal import Rehearsal
from consumers.testing import Log
from tests.conformance.adapters.base import SCHEMA, SOURCE, Adapter
from tests.conformance.sessions import Session, people, person

OUT = "derived"


@agent
async def loud(change: Change) -> Row | None:
    row = change.after
    assert row is not None
    return None if row["note"] == "hidden" else {**row, "name": row["name"].upper()}


async def test_h15_derived_rows_are_applied_like_captured_ones(adapter: Adapter) -> None:
    config = adapter.config(
        {"mirror": {"from": OUT, "to": f"copy.{SCHEMA}.people"}},
        processors={"loud": {"agent": "a:b", "in": [f"{SOURCE}.public.people"], "out": OUT}},
    )
    source, out = Log(SOURCE), Log(OUT)
    table = people(source)
    given = Given("loud", (table.topic,), OUT, (), {table.topic: [table.record]})
    rehearsal = Rehearsal(loud, given, partitions=source.partitions)
    target = adapter.target(config)
    s = Session(adapter, config, target, list(config.flows.values()), out)
    handled = Counter[Any]()

    async def derive() -> None:
        for place, records in source.records.items():
            for record in records[handled[place] :]:
                for sent in await rehearsal.handle(record):
                    assert sent.topic == OUT
                    out.append(sent.topic, sent.key, sent.value)
            handled[place] = len(records)
        out.schemas |= rehearsal.schemas

    await target.open()
    try:
        table.create(person(1, "a"))
        table.create(person(2, "b"))
        table.create(person(3, "c"))
        await derive()
        await s.apply()
        assert await s.rows() == [person(1, "A"), person(2, "B"), person(3, "C")]
        table.update(person(1, "again"))
        table.update(person(2, "b", "hidden"))
        table.delete(person(3))
        await derive()
        await s.apply()
        assert await s.rows() == [person(1, "AGAIN")]
        table.create(person(3, "back"))
        await derive()
        await s.apply()
        applied = [person(1, "AGAIN"), person(3, "BACK")]
        assert await s.rows() == applied
        places = out.places(s.flows)
        await adapter.rewind(places)
        await s.apply()  # all of it once more: nothing goes back
        assert await s.rows() == applied
    finally:
        await rehearsal.close()
        await target.close()
