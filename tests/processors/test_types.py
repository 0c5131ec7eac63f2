"""Types of derived columns are those of the inputs, whenever their schema records come; sums keep theirs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from consumers.processors.helpers import aggregate, max_, min_, rename, sum_
from consumers.processors.memory import MemoryStore
from consumers.processors.operators.inputs import BIGINT
from consumers.processors.operators.measures import Entry, Sum
from consumers.processors.schemas import InputSchemas
from consumers.processors.shapes import Shapes, UnknownType
from consumers.processors.state import Overlay, StateTable
from tests.harness.feeder import Feeder
from tests.harness.processing import NAME, config_of, processing

COLUMNS = [
    ("id", "integer", "number"),
    ("owner", "uuid", "text"),
    ("i", "integer", "number"),
    ("b", "bigint", "number"),
    ("n", "numeric(12,3)", "numeric"),
    ("f", "real", "float"),
    ("at", "timestamp with time zone", "timestamptz"),
]
OWNER = "00000000-0000-0000-0000-000000000007"
ROW = {"id": 1, "owner": OWNER, "i": 2, "b": 2**62, "n": "1.500", "f": 0.5, "at": "2026-01-01T00:00:00Z"}


async def test_a_helpers_columns_have_types_from_the_first_event_on(feeder: Feeder, tmp_path: Path) -> None:
    table = await feeder.table("measured", COLUMNS)
    definition = aggregate(
        by={"account": "owner"},
        whole=sum_("i"),
        wide=sum_("b"),
        exact=sum_("n"),
        rough=sum_("f"),
        first=min_("at"),
        last=max_("at"),
    )
    config = config_of(feeder, [table.topic], tmp_path)
    async with processing(config, definition) as made:
        await made.until(lambda: made.detail.get("tasks") == [0, 1], "to run, with nothing to read")
        for number in (1, 2):
            table.create({**ROW, "id": number}, lsn=100 + number)
        await feeder.flush()
        times = dict.fromkeys(("first", "last"), ROW["at"])
        sums = {"whole": 4, "wide": str(2**63), "exact": "3.000", "rough": 1.0}
        await made.rows({f'{{"account":"{OWNER}"}}': {"account": OWNER, **sums, **times}})
        assert made.detail["inferred"] == {}
    known = InputSchemas(config, NAME, [])
    await known.read()
    [record] = known.own
    assert {column.name: column.type for column in record.columns} == {
        "account": "uuid",
        "whole": "bigint",
        "wide": "numeric",
        "exact": "numeric",
        "rough": "real",
        "first": "timestamp with time zone",
        "last": "timestamp with time zone",
    }


async def test_what_a_helper_doubts_is_in_the_heartbeats(feeder: Feeder, tmp_path: Path) -> None:
    table = await feeder.table("measured", COLUMNS[:1])
    table.create({"id": 1}, lsn=100)
    await feeder.flush()
    async with processing(config_of(feeder, [table.topic], tmp_path), rename({"iid": "number"})) as made:
        doubt = f"it names the column 'iid', and rows of {table.topic} have id"
        await made.until(lambda: made.detail.get("doubts") == [doubt], "the misspelt column to be told")
        await made.rows({'{"id":1}': {"id": 1}})


def test_a_type_that_is_not_known_is_asked_for_before_it_is_inferred() -> None:
    types: dict[str, str] = {"id": "bigint"}
    said: list[str] = []
    shapes = Shapes("made", "out", types=lambda: types, inputs={}, known=[], said=said.append, asks=True)
    with pytest.raises(UnknownType) as unknown:
        shapes.fit(None, 1, {"id": 1}, {"id": 1, "total": "1.50", "share": "a", "later": None})
    assert unknown.value.columns == {"total", "share"}
    types["total"] = "numeric"  # as the schema records that were read on have it
    shapes.asked(unknown.value.columns)
    shape = shapes.fit(None, 1, {"id": 1}, {"id": 1, "total": "1.50", "share": "a", "later": None})
    assert [(c.name, c.type) for c in shape.record.columns] == [
        ("id", "bigint"),
        ("total", "numeric"),
        ("share", "text"),
    ]
    assert said == ["column share of out is taken for text, by its first value"]


def test_a_sum_outlives_a_change_of_its_columns_type() -> None:
    measure = Sum("n")
    state: dict[str, Any] = {}
    entry = Entry(StateTable(Overlay(MemoryStore()), "sums", 100), b"")
    for taken in (["number", 3], ["numeric", "1.50"], ["float", 0.25]):
        measure.add(state, taken, entry)
    assert measure.result(state, entry) == 4.75
    measure.remove(state, ["numeric", "1.50"], entry)
    measure.remove(state, ["number", 3], entry)
    assert measure.result(state, entry) == 0.25
    measure.remove(state, ["float", 0.25], entry)
    assert measure.result(state, entry) is None
    for _ in range(2):
        measure.add(state, [BIGINT, 2**62], entry)
    assert measure.result(state, entry) == str(2**63)  # more than a bigint holds, as Postgres gives it
