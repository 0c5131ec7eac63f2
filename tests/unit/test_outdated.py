"""What of a batch is older than the copy that replaces it, and when a flow may pass over it."""

from __future__ import annotations

from typing import Any

import pytest

from consumers.apply.assemble import Prepared
from consumers.apply.fold import BOTTOM, PartitionFold, Reread, Version, Write
from consumers.apply.outdated import Outdated
from consumers.apply.resets import Copy
from consumers.targets.base import Batch, FlowError, TableChanges
from streamer.changes.envelope import Change
from streamer.changes.schema import SchemaRecord
from streamer.config import Flow
from streamer.errors import ConfigError, FatalError

RECORD = SchemaRecord(source="shop", schema="public", table="t", identity="d", columns=())
COPY = 5
UNFIT = FlowError("mirror", ConfigError("its key is (b), and the flow's is (a)"))


def outdated(copies: tuple[int, ...] = (COPY,), *, floors: bool = True, **keys: Any) -> Outdated:
    async def copied_since(_: str, epoch: int) -> Copy | None:
        newer = [copy for copy in copies if copy > epoch]
        return Copy(max(newer), True, floors, {}) if newer else None

    flow = Flow.model_validate({"__name__": "mirror", "from": "shop.public.t", "to": "copy", **keys})
    return Outdated([flow], copied_since)


def batch(*epochs: int, floor: Version = BOTTOM) -> Prepared:
    """A row of each epoch, and another one to be read again, in a schema of its own."""
    fold = PartitionFold(0)
    for number, epoch in enumerate(epochs):
        key, change = b"%d" % number, Change("u", None, {}, epoch, 1, 0, f"s{epoch}", 0, 0, None)
        fold.rows[key] = Write({}, change, number)
        fold.rereads[b"x" + key] = Reread(key, change, "")
    ids = {f"s{epoch}" for epoch in epochs} | {RECORD.id}
    table = TableChanges("mirror", "shop.public.t", RECORD, "m", "t", [fold], ids, floor, ready=object())
    return Prepared(Batch([table], [], {}, "c"), 0)


async def test_h22_what_is_older_than_the_copy_is_passed_over_once_it_is_in_the_way() -> None:
    passing = outdated()
    mixed, before = batch(3, 5, 6, floor=(3, 0, 0)), batch(4, floor=(4, 0, 0))
    passing.take_out(mixed)
    assert len(mixed.batch.tables[0].folds[0].rows) == 3, "nothing stood in the way so far"
    assert await passing.is_in_the_way(UNFIT, mixed)
    (table,) = mixed.batch.tables
    assert table.schema_ids == {"s5", "s6", RECORD.id}
    assert (table.floor, table.ready, len(table.folds[0].rereads)) == (BOTTOM, None, 2)
    assert not await passing.is_in_the_way(UNFIT, mixed), "it is the copy itself that does not fit"
    passing.take_out(before)
    assert before.batch.tables == []
    ends = batch(floor=(COPY, 0, 0))
    passing.take_out(ends)
    assert len(ends.batch.tables) == 1, "the copy's own floor"


@pytest.mark.parametrize(
    ("made", "error"),
    [
        (outdated(()), UNFIT),
        (outdated(floors=False), UNFIT),
        (outdated(write="append"), UNFIT),
        (outdated(delete="ignore"), UNFIT),
        (outdated(version="none"), UNFIT),
        (outdated(), FlowError("mirror", FatalError("the registry lacks a record"))),
    ],
)
async def test_h22_a_flow_stops_where_no_copy_replaces_what_does_not_fit(
    made: Outdated, error: FlowError
) -> None:
    prepared = batch(3, 5)
    assert not await made.is_in_the_way(error, prepared)
    assert len(prepared.batch.tables[0].folds[0].rows) == 2
