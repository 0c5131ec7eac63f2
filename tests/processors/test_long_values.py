"""Values that an update leaves out of the log (unchanged TOAST) are those of the row before."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import chain
from pathlib import Path

import pytest

from consumers.processors import Change, Changes, Derived, Row, agent, filter_
from consumers.processors.context import Definition
from consumers.processors.helpers import aggregate, count, min_
from consumers.processors.longs import long_values, with_long, without_long
from consumers.processors.operations import parked_keys
from consumers.processors.parked import REFUSED_MIN
from consumers.processors.testing import derive
from consumers.testing import Log
from streamer.backfills import read_runs
from streamer.changes.backfill import NEEDS_REREAD
from streamer.changes.kinds import UNAVAILABLE
from streamer.config import DeadLetterLimits
from tests.harness.feeder import POLL_S, WAIT_S, Feeder, Table
from tests.harness.processing import NAME, Processing, config_of, processing

COLUMNS = [("id", "integer", "number"), ("n", "integer", "number"), ("body", "text", "text")]
BODY = "x" * 3000


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


@pytest.mark.parametrize("definition", [streaming, returning, filter_(lambda row: row["n"] > 0)])
def test_h06_a_create_takes_nothing_of_the_row_that_a_truncate_took(definition: Definition) -> None:
    """The truncate is another partition's, and not heard of yet when the row of a changed key comes."""
    log = Log("shop")
    notes = log.table("notes", {"id": "integer", "n": "integer", "body": "text"})
    notes.create({"id": 1, "n": 1, "body": BODY})
    notes.create({"id": 1, "n": 2, "body": UNAVAILABLE})
    with pytest.raises(AssertionError, match="'code': 'NotInLog'"):
        derive(definition, log)


DERIVED: list[tuple[Definition, list[str], dict[str, Row]]] = [
    (returning, [], {'{"id":7}': {"id": 7, "n": 3, "body": BODY}}),
    (streaming, [], {'{"id":7}': {"id": 7, "n": 3, "body": BODY}}),
    (filter_(lambda row: row["n"] > 0), [], {'{"id":7}': {"id": 7, "n": 3, "body": BODY}}),
    (aggregate(by=["n"], notes=count(), least=min_("id")), [], {'{"n":3}': {"n": 3, "notes": 1, "least": 7}}),
]


async def all_read(made: Processing) -> None:
    def check() -> bool:
        return made.detail.get("tasks") == [0, 1] and made.detail["lag_records"] == 0

    await made.until(check, "all is read")


def key_changed(notes: Table, lsn: int) -> None:
    """Id 1 becomes id 7, as capture publishes it."""
    notes.delete({"id": 1}, lsn=lsn)
    notes.create({"id": 7, "n": 2, "body": UNAVAILABLE}, lsn=lsn, ordinal=1)


@pytest.mark.parametrize(
    ("definition", "key", "rows"), DERIVED, ids=["function", "stream", "filter", "groups"]
)
async def test_a_row_read_again_frees_its_key(
    definition: Definition, key: list[str], rows: dict[str, Row], feeder: Feeder, tmp_path: Path
) -> None:
    """With what waits behind it, and by a worker that has not parked it."""
    notes = await feeder.table("notes", COLUMNS)
    config = config_of(feeder, [notes.topic], tmp_path, key=key)
    notes.create({"id": 1, "n": 1, "body": BODY}, lsn=100)
    key_changed(notes, lsn=101)
    notes.update({"id": 7, "n": 3, "body": UNAVAILABLE}, lsn=102)
    await feeder.flush()
    async with processing(config, definition) as made:
        await made.rows({})
        await made.until(lambda: made.detail.get("parked") == 1, "the new key is parked")
    notes.read({"id": 7, "n": 3, "body": BODY}, lsn=102)  # no newer than what waits
    notes.update({"id": 7, "n": 3, "body": UNAVAILABLE}, lsn=103)
    await feeder.flush()
    async with processing(config, definition) as made:
        await all_read(made)
        assert made.detail["parked"] == 1
        notes.read({"id": 7, "n": 3, "body": BODY}, lsn=104)
        await feeder.flush()
        await made.rows(rows)
        await made.until(lambda: made.detail.get("parked") == 0, "the key is free")
        notes.delete({"id": 7}, lsn=105)
        key_changed(notes, lsn=106)
        await feeder.flush()
        await made.until(lambda: made.detail.get("parked") == 1, "the new key is parked again")
        await made.rows({})
        notes.delete({"id": 7}, lsn=107)
        await feeder.flush()
        await made.until(lambda: made.detail.get("parked") == 0, "the deleted row's key is free")
    async with processing(config, definition) as made:
        await all_read(made)
        assert made.detail["parked"] == 0


async def test_what_a_body_refuses_waits_for_a_person(feeder: Feeder, tmp_path: Path) -> None:
    """Also the row that has taken the place of one whose value is not in the log."""
    notes = await feeder.table("notes", COLUMNS)
    key_changed(notes, lsn=101)
    await feeder.flush()
    config = config_of(feeder, [notes.topic], tmp_path)
    async with processing(config, filter_(lambda row: 6 // row["n"] > 0)) as made:
        await made.until(lambda: made.detail.get("parked") == 1, "the new key is parked")
        notes.read({"id": 7, "n": 0, "body": BODY}, lsn=102)
        notes.read({"id": 7, "n": 3, "body": BODY}, lsn=103)
        await feeder.flush()
        await made.until(lambda: made.detail.get("refused") == 2, "the row is refused")
        await all_read(made)
        [parked] = await parked_keys(config, NAME)
        assert [item.code for item in parked.items] == ["ZeroDivisionError", ""]


async def test_rows_that_are_not_whole_are_asked_for(feeder: Feeder, tmp_path: Path) -> None:
    """More of them than may wait for a person."""
    notes = await feeder.table("notes", COLUMNS, key=("n", "id"))
    for number in range(REFUSED_MIN + 1):
        notes.create({"id": number, "n": 2, "body": UNAVAILABLE}, lsn=101, ordinal=number)
    await feeder.flush()
    config = config_of(feeder, [notes.topic], tmp_path)
    wanted = [(number, 2) for number in range(REFUSED_MIN + 1)]
    async with processing(config, returning, limits=DeadLetterLimits(limit=5)) as made:
        await made.until(lambda: made.detail.get("parked") == REFUSED_MIN + 1, "the keys are parked")
        async with asyncio.timeout(WAIT_S):
            while True:
                runs = list((await read_runs(feeder.brokers, None, feeder.name)).values())
                if sorted(chain.from_iterable(run.keys() for run in runs)) == wanted:
                    break
                await asyncio.sleep(POLL_S)
        assert not made.task.done()
    for request in [run.request for run in runs]:
        assert request is not None
        assert (request.source, request.place, request.why) == (feeder.source, "public.notes", NEEDS_REREAD)
        assert (request.deletes, request.by) == (True, f"process {NAME}")


def test_only_what_may_be_moved_out_of_a_row_is_kept() -> None:
    assert long_values({"id": 1, "a": "x" * 23, "b": "uuid-".ljust(36, "0"), "c": None}) == {}
    assert long_values({"id": 1, "a": "x" * 23, "b": "y" * 250}) == {"b": "y" * 250}
    assert long_values({"id": 1, "v": [0] * 300}) == {"v": [0] * 300}


@pytest.mark.parametrize("own", [None, b"", b'[["a",null]]'])
def test_an_agents_note_keeps_its_own_part(own: bytes | None) -> None:
    assert without_long(with_long(own, {"body": "x"})) == (own, {"body": "x"})
    assert without_long(own) == (own, {})
