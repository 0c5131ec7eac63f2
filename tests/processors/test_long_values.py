"""Values that an update leaves out of the log (unchanged TOAST) are those of the row before."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from consumers.processors import Change, Changes, Derived, Row, agent, filter_
from consumers.processors.context import Definition
from consumers.processors.longs import long_values, with_long, without_long
from streamer.changes.kinds import UNAVAILABLE
from tests.harness.feeder import Feeder
from tests.harness.processing import config_of, processing

COLUMNS = [("id", "integer", "number"), ("n", "integer", "number"), ("body", "text", "text")]


@agent
async def streaming(changes: Changes) -> AsyncIterator[Derived]:
    async for change in changes:
        yield change.to(change.after)


@agent
async def returning(change: Change) -> Row | None:
    return change.after


@pytest.mark.parametrize("definition", [streaming, returning, filter_(lambda row: row["n"] > 0)])
async def test_every_body_sees_whole_rows(definition: Definition, feeder: Feeder, tmp_path: Path) -> None:
    notes = await feeder.table("notes", COLUMNS)
    body = "x" * 3000
    notes.update({"id": 1, "n": 1, "body": body}, lsn=100)
    notes.update({"id": 1, "n": 2, "body": UNAVAILABLE}, lsn=101)
    await feeder.flush()
    config = config_of(feeder, [notes.topic], tmp_path)
    async with processing(config, definition, state="rocksdb") as made:
        await made.rows({'{"id":1}': {"id": 1, "n": 2, "body": body}})
    notes.update({"id": 1, "n": 3, "body": UNAVAILABLE}, lsn=102)
    notes.update({"id": 2, "n": 4, "body": UNAVAILABLE}, lsn=103)  # nobody has seen its body: parked
    notes.update({"id": 1, "n": 5, "body": UNAVAILABLE}, lsn=104)
    await feeder.flush()
    async with processing(config, definition, state="rocksdb") as made:
        await made.rows({'{"id":1}': {"id": 1, "n": 5, "body": body}})
        await made.until(lambda: made.detail.get("parked") == 1, "the row that was never whole")


def test_only_what_may_be_moved_out_of_a_row_is_kept() -> None:
    assert long_values({"id": 1, "a": "x" * 23, "b": "uuid-".ljust(36, "0"), "c": None}) == {}
    assert long_values({"id": 1, "a": "x" * 23, "b": "y" * 250}) == {"b": "y" * 250}
    assert long_values({"id": 1, "v": [0] * 300}) == {"v": [0] * 300}


@pytest.mark.parametrize("own", [None, b"", b'[["a",null]]'])
def test_an_agents_note_keeps_its_own_part(own: bytes | None) -> None:
    assert without_long(with_long(own, {"body": "x"})) == (own, {"body": "x"})
    assert without_long(own) == (own, {})
