"""A key's column that gets another JSON form in its source: one row is never found by two keys."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from consumers.processors import Given, aggregate, count, filter_, join, map_
from consumers.processors.context import Change
from consumers.processors.key_forms import KeyForms, NotedForms, form_of
from consumers.processors.memory import MemoryStore
from consumers.processors.operations import reset_processor
from consumers.processors.state import Overlay
from consumers.processors.testing import derive
from consumers.testing import Log
from streamer.changes.schema import SchemaRecord
from streamer.changes.topics import partition_for
from streamer.errors import FatalError
from tests.harness.feeder import Feeder
from tests.harness.processing import NAME, config_of, processing, records_of

END_S = 10.0
ORDERS = "shop.public.orders"
INTEGER = {"id": "integer", "buyer": "integer"}
NUMERIC = {"id": "numeric", "buyer": "integer"}
OTHER_BUYER = {"id": "integer", "buyer": "numeric"}

ALL = filter_(lambda row: True)
PER_BUYER = aggregate(by=["buyer"], n=count())


async def test_a_processor_stops_at_another_form_of_its_key_and_derives_all_in_it_after_a_reset(
    feeder: Feeder, tmp_path: Path
) -> None:
    orders = await feeder.table("orders", [("id", "integer", "number")])
    moved = [
        n for n in range(40) if partition_for(b'{"id":%d}' % n, 2) != partition_for(b'{"id":"%d"}' % n, 2)
    ]
    for number in moved:
        orders.create({"id": number}, lsn=100 + number)
    await feeder.flush()
    config = config_of(feeder, [orders.topic], tmp_path)
    async with processing(config, ALL) as made:
        await made.rows({f'{{"id":{number}}}': {"id": number} for number in moved})
        altered = await feeder.table("orders", [("id", "numeric", "numeric")])
        for number in moved:
            altered.read({"id": str(number)}, lsn=200, epoch=2)
        altered.floor(2)
        await feeder.flush()
        with pytest.raises(FatalError, match=rf"(?s)id of the key .* `tailrace reset {NAME}`"):
            async with asyncio.timeout(END_S):
                await asyncio.shield(made.task)
    async with processing(config, ALL) as made:  # nothing but the reset lets it go on
        with pytest.raises(FatalError, match=r"id of the key .* is numeric"):
            async with asyncio.timeout(END_S):
                await asyncio.shield(made.task)
    epoch = await reset_processor(config, NAME)
    async with processing(config, ALL) as made:
        floor, records = False, []
        while not floor:
            assert not made.task.done()
            records = await records_of(made.brokers, made.out)
            floor = any(record.key is None for record in records)
        events = [(record.key, json.loads(record.value)) for record in records if record.key and record.value]
        derived = {key: event["after"] for key, event in events if event["source"]["epoch"] == epoch}
        assert derived == {b'{"id":"%d"}' % number: {"id": str(number)} for number in moved}
        await made.until(
            lambda: made.detail.get("doubts") == [], "the source's floor to have covered the rest"
        )


def log_of(*versions: dict[str, str]) -> tuple[Log, list[Any]]:
    log = Log("shop")
    return log, [log.table("orders", columns) for columns in versions]


@pytest.mark.parametrize(
    ("was", "now", "one_form"),
    [
        ("integer", "bigint", True),
        ("int", "smallint", True),
        ("character varying(20)", "text", True),
        ("numeric(10,2)", "numeric(12,2)", True),
        ("timestamp(3) without time zone", "timestamp without time zone", True),
        ("integer", "numeric", False),
        ("numeric", "numeric(10,2)", False),
        ("numeric(10,2)", "numeric(10,4)", False),
        ("text", "integer", False),
        ("uuid", "text", False),
        ("timestamp without time zone", "timestamp with time zone", False),
        ("character(4)", "character(6)", False),
    ],
)
def test_what_prints_equal_values_alike_has_one_form(was: str, now: str, one_form: bool) -> None:
    assert (form_of(was) == form_of(now)) is one_form
    assert form_of("numeric(10,2)", trimmed=True) == form_of("numeric", trimmed=True)


def test_rows_of_another_form_than_the_newest_are_left_out_of_what_begins_anew() -> None:
    log, [was, now] = log_of(INTEGER, NUMERIC)
    for id_ in (1, 2):
        was.create({"id": id_, "buyer": 7})
    now.update({"id": "2", "buyer": 7})
    assert derive(ALL, log).rows == [{"id": "2", "buyer": 7}]
    assert derive(PER_BUYER, log).rows == [{"buyer": 7, "n": 1}]
    log, [was, now] = log_of(OTHER_BUYER, INTEGER)
    was.create({"id": 1, "buyer": "7"})
    now.update({"id": 1, "buyer": 7})
    was.create({"id": 2, "buyer": "7"})
    assert derive(PER_BUYER, log).rows == [{"buyer": 7, "n": 1}]
    by_buyer = map_(lambda row: {"buyer": row["buyer"]})
    assert [sent.key for sent in derive(by_buyer, log, key=["buyer"]).sent] == [b'{"buyer":7}']


def test_a_derived_key_that_nobody_types_keeps_the_form_of_its_first_value() -> None:
    log, [was, now] = log_of(OTHER_BUYER, INTEGER)
    was.create({"id": 1, "buyer": "7"})
    now.create({"id": 2, "buyer": 7})
    of = map_(lambda row: {"of": row["buyer"]})
    assert {sent.key for sent in derive(of, log, key=["of"]).sent} == {b'{"of":"7"}'}


class Tasks:
    """Of one processor, over a topic whose schema records come one by one."""

    def __init__(self, definition: Any, *records: SchemaRecord, key: tuple[str, ...] = ()) -> None:
        self.given = Given("made", (ORDERS,), "out", key, {ORDERS: list(records)})
        self._forms = KeyForms(definition, self.given)

    def knows(self, *records: SchemaRecord) -> None:
        self.given.schemas[ORDERS] = list(records)  # type: ignore[index]

    def task(self, overlay: Overlay | None = None, *, end: int = 0, fresh: bool = True) -> NotedForms:
        noted = NotedForms(self._forms, 0, overlay or Overlay(MemoryStore()))
        noted.begin(ORDERS, end, fresh=fresh)
        return noted


def change(record: SchemaRecord, offset: int = 5, version: int = 1) -> Change:
    return Change(ORDERS, 0, offset, "u", {}, None, {}, (1, version, 0), 0, record.id)


@pytest.fixture
def records() -> Callable[..., list[SchemaRecord]]:
    return lambda *versions: [table.record for table in log_of(*versions)[1]]


def test_what_comes_in_another_form_stops_and_what_stood_there_is_left_out(
    records: Callable[..., list[SchemaRecord]],
) -> None:
    was, now = records(INTEGER, NUMERIC)
    tasks = Tasks(ALL, was)
    overlay = Overlay(MemoryStore())
    state = tasks.task(overlay, end=3)
    assert state.fits(change(was))
    tasks.knows(was, now)
    with pytest.raises(FatalError, match=r"column id of the key of .* is numeric .* its state is of integer"):
        state.fits(change(now))
    with pytest.raises(FatalError, match="its state is of integer"):
        tasks.task(overlay)
    begun_anew = tasks.task(end=6)
    assert begun_anew.fits(change(now))
    assert not begun_anew.fits(change(was, offset=5, version=9))
    [doubt] = tasks.given.doubts.values()
    assert "did not change since their id was integer (it is numeric) are left out" in doubt
    begun_anew.covered(ORDERS, (1, 8, 0))
    assert tasks.given.doubts
    begun_anew.covered(ORDERS, (2, 0, 0))
    assert not tasks.given.doubts
    with pytest.raises(FatalError, match=r"is integer .* its state is of numeric"):
        begun_anew.fits(change(was, offset=6))  # changed back


def test_tasks_without_an_event_note_what_the_others_do(records: Callable[..., list[SchemaRecord]]) -> None:
    was, now = records(INTEGER, NUMERIC)
    tasks = Tasks(ALL)
    one, other = tasks.task(), tasks.task()
    tasks.knows(was)
    assert one.fits(change(was))
    tasks.knows(was, now)
    with pytest.raises(FatalError, match="its state is of integer"):
        other.fits(change(now, offset=0))


def test_a_state_of_a_version_that_noted_nothing_goes_on_where_there_was_one_form(
    records: Callable[..., list[SchemaRecord]],
) -> None:
    wider = {**INTEGER, "id": "bigint", "note": "text"}
    was, wide, now = records(INTEGER, wider, NUMERIC)
    assert Tasks(ALL, was, wide).task(fresh=False).fits(change(wide))
    with pytest.raises(FatalError, match=r"(?s)its state is of integer.*`tailrace reset made`"):
        Tasks(ALL, was, now).task(fresh=False)


@pytest.mark.parametrize(
    ("definition", "key"),
    [
        (PER_BUYER, ()),
        (map_(lambda row: row), ("buyer",)),
        (join("l", ORDERS, on={"id": "id"}, take={"buyer": "of"}, inner=True), ("of",)),
    ],
)
def test_columns_that_the_derived_key_is_made_of_count_as_the_inputs_own(
    definition: Any, key: tuple[str, ...], records: Callable[..., list[SchemaRecord]]
) -> None:
    was, now = records(INTEGER, OTHER_BUYER)
    overlay = Overlay(MemoryStore())
    assert Tasks(definition, was, key=key).task(overlay).fits(change(was))
    with pytest.raises(FatalError, match=r"of the derived rows' key is numeric .* its state is of integer"):
        Tasks(definition, was, now, key=key).task(overlay)
    assert Tasks(ALL, was).task().fits(change(now))  # whose key has nothing of it


def test_inputs_that_give_a_derived_key_two_forms_are_refused() -> None:
    """GROUP BY over a UNION ALL has one type; 7 and "7" would be two groups here."""
    log = Log("shop")
    log.table("orders", INTEGER).create({"id": 1, "buyer": 7})
    assert derive(PER_BUYER, log).rows == [{"buyer": 7, "n": 1}]
    log.table("archive", OTHER_BUYER).create({"id": 2, "buyer": "7"})
    two = r"buyer of the derived rows' key is \w+ in shop.public.\w+ and \w+ in shop.public.\w+: one derived"
    with pytest.raises(FatalError, match=two) as raised:
        derive(PER_BUYER, log)
    assert "`map_`" in raised.value.fix
    assert len(derive(ALL, log).rows) == 2  # whose keys are the inputs' own
    log = Log("shop")
    log.table("orders", INTEGER).create({"id": 1, "buyer": 7})
    log.table("wide", {"id": "integer", "buyer": "bigint"}).create({"id": 3, "buyer": 7})
    assert derive(PER_BUYER, log).rows == [{"buyer": 7, "n": 2}]


def test_a_second_inputs_first_schema_record_is_compared_with_the_others() -> None:
    log = Log("shop")
    orders, archive = log.table("orders", INTEGER), log.table("archive", OTHER_BUYER)
    given = Given("made", (ORDERS, archive.topic), "out", (), {ORDERS: [orders.record], archive.topic: []})
    task = NotedForms(KeyForms(PER_BUYER, given), 0, Overlay(MemoryStore()))
    for topic in given.inputs:
        task.begin(topic, 0, fresh=True)
    given.schemas[archive.topic] = [archive.record]  # type: ignore[index]
    came = change(archive.record)
    came.topic = archive.topic
    with pytest.raises(FatalError, match="one derived row would have two keys"):
        task.fits(came)
