"""What a derived row may hold, and how it is written: names of columns and tables, types that change, NaN."""

from __future__ import annotations

import json
from collections.abc import Sequence
from decimal import Decimal
from math import inf, nan
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.apply.mapping import map_columns
from consumers.processors import Change, agent
from consumers.processors.fitting import Exact, fitted, is_plain
from consumers.processors.helpers import flatten, map_, route
from consumers.processors.names import Names, routed_table
from consumers.processors.shapes import Shapes, inferred, whole
from consumers.processors.testing import OUT, derive
from consumers.testing import Log
from streamer.changes.kinds import decoder_for
from streamer.changes.schema import Column, SchemaRecord
from streamer.config import Flow
from streamer.errors import BadRecordError, ConfigError


def rows_of(*rows: dict[str, Any]) -> Log:
    log = Log("shop")
    orders = log.table("orders", {"id": "integer", "status": "text"})
    for row in rows:
        orders.create(row)
    return log


def shapes(
    types: dict[str, str], said: list[str] | None = None, known: Sequence[SchemaRecord] = ()
) -> Shapes:
    told = [] if said is None else said
    return Shapes("made", "out", types=lambda: types, inputs={}, known=known, said=told.append)


# Values


@pytest.mark.parametrize(
    ("kind", "value", "form"),
    [
        ("number", "5", 5),
        ("number", "five", "five"),  # a target says what is wrong with it
        ("numeric", 5, "5"),
        ("numeric", 2**70, str(2**70)),
        ("numeric", 1e21, "1000000000000000000000"),
        ("numeric", nan, "NaN"),
        ("text", 5, "5"),
        ("text", 1.5, "1.5"),
        ("text", True, "true"),
        ("float", "1.50", 1.5),
        ("float", -inf, "-Infinity"),
        ("float", "NaN", "NaN"),
        ("array:float", [1.5, [nan]], [1.5, ["NaN"]]),
        ("array:numeric", [1, None], ["1", None]),
        ("json", {"a": [1.5]}, {"a": [1.5]}),
    ],
)
def test_a_value_is_written_as_its_columns_kind_is(kind: str, value: Any, form: Any) -> None:
    assert not is_plain(kind, value) or value == form
    assert fitted(kind, value, "out.n") == form
    if form != "five" and kind != "json":
        decoder_for(kind)(form)  # as a target takes it


@pytest.mark.parametrize(
    ("kind", "value"),
    [("number", nan), ("text", inf), ("json", {"a": [nan]}), ("bool", nan), ("vector", [inf])],
)
def test_what_json_does_not_have_is_refused_and_not_null(kind: str, value: Any) -> None:
    with pytest.raises(BadRecordError, match="which JSON does not have"):
        fitted(kind, value, "out.n")


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("text", "a\0"),
        ("number", "\0"),
        ("array:text", ["a", ["\0"]]),
        ("json", {"a": ["\0"]}),
        ("json", {"\0": 1}),
        ("json", ["a", "b\0"]),
    ],
)
def test_a_text_that_no_target_can_have_is_refused_where_it_is_made(kind: str, value: Any) -> None:
    assert not is_plain(kind, value)
    with pytest.raises(BadRecordError, match="NUL character"):
        fitted(kind, value, "out.t")
    body = map_(lambda row: {**row, "made": value})
    with pytest.raises(AssertionError, match=r"derived\.made: a text has a NUL character"):
        derive(body, rows_of({"id": 1, "status": "a"}))
    flat = derive(flatten(lambda row: {**row, "made": value}), rows_of({"id": 1, "status": "a"}))
    assert json.loads(flat.sent[0].value or b"null")["made"] == value  # other readers may have it


def test_a_row_above_the_message_limit_is_refused_with_its_cure() -> None:
    body = map_(lambda row: {**row, "made": "x" * 2**23})
    with pytest.raises(AssertionError, match=r"above the message limit(.|\n)*let the row have less in it"):
        derive(body, rows_of({"id": 1, "status": "a"}))


def test_nan_of_a_body_stays_nan() -> None:
    rough = map_(lambda row: {**row, "rough": nan if row["id"] == 1 else -inf, "fine": 0.5})

    @agent
    async def own(change: Change) -> Any:
        assert change.after is not None
        return {"id": change.key["id"], "rough": nan if change.key["id"] == 1 else -inf}

    log = rows_of({"id": 1, "status": "a"}, {"id": 2, "status": "b"})
    for definition in (rough, own):
        assert [row["rough"] for row in derive(definition, log).rows] == ["NaN", "-Infinity"]
    by_rough = map_(lambda row: {"status": row["status"], "rough": nan})  # by way of a hop
    assert [row["rough"] for row in derive(by_rough, log, key=["status"]).rows] == ["NaN", "NaN"]
    plain = derive(flatten(lambda row: {**row, "rough": nan}), log).sent
    assert [json.loads(sent.value or b"null")["rough"] for sent in plain] == ["NaN", "NaN"]
    with pytest.raises(AssertionError, match="which JSON does not have"):
        derive(map_(lambda row: {**row, "many": [1.0, nan]}), log)
    with pytest.raises(BadRecordError, match="its key has n = nan"):
        whole(shapes({}).fit(None, 1, {"n": nan}, {"n": nan}), {"n": nan}, {"n": nan})


def test_exact_numbers_of_a_body_stay_exact() -> None:
    log = rows_of({"id": 1, "status": "a"})
    exact = map_(lambda row: {**row, "price": Decimal("1.50"), "wide": 2**70})
    for key in ((), ("status",)):
        (row,) = derive(exact, log, key=key).rows
        assert (row["price"], row["wide"]) == ("1.50", str(2**70))
    kinds = [inferred("n", value).type for value in (Decimal(1), Exact("1.50"), "1.50", nan, "NaN")]
    assert kinds == ["numeric", "numeric", "text", "double precision", "double precision"]


# Names


@pytest.mark.parametrize(
    ("name", "what"),
    [
        (5, "named 5, which is no text"),
        ("", "is named ''"),
        ("x" * 64, "more than 63 bytes"),
        ("\u00fc" * 32, "more than 63 bytes"),
        ("a\0b", "that no text in Postgres has"),
        ("\ud800", "that no text in Postgres has"),
        ("_tailrace_lsn", "is Tailrace's own"),
    ],
)
def test_a_column_that_no_target_can_have_is_refused_where_it_is_made(name: Any, what: str) -> None:
    found = shapes({})
    with pytest.raises(BadRecordError, match=what):
        found.fit(None, 1, {"id": 1}, {"id": 1, name: 1})
    shape = found.fit(None, 1, {"id": 1}, {"id": 1, "x" * 63: 1})
    assert shape.names == {"id", "x" * 63}  # nothing of the refused one stays


@pytest.mark.parametrize("name", [5, ""])
def test_a_schema_record_with_such_a_column_stops_its_flow_by_name(name: Any) -> None:
    columns = (Column("id", "integer", -1, "number", True), Column(name, "text", -1, "text", False))
    record = SchemaRecord("made", "", "out", "d", columns)
    flow = Flow.model_validate({"__name__": "f", "from": "out", "to": "copy.public.out"})
    with pytest.raises(ConfigError, match=f"column named {name!r}, which no table can have"):
        map_columns(flow, record, None)


@pytest.mark.parametrize(
    ("value", "table"),
    [
        ("open", "open"),
        ("in_progress", "in_progress"),
        ("in progress", "in_x0020_progress"),
        ("in_x0020_progress", "in_x005F_x0020_progress"),
        ("a.b", "a_x002E_b"),
        ("\u00fc", "_x00FC_"),
        ("eu-west", "eu-west"),
        (2026, "2026"),
    ],
)
def test_a_routed_table_is_named_as_sql_xml_names(value: Any, table: str) -> None:
    assert routed_table(value, "out") == table


@given(st.text("ab_x.0F \u00fc-", min_size=1), st.text("ab_x.0F \u00fc-", min_size=1))
def test_two_values_never_share_a_topic(one: str, other: str) -> None:
    try:
        names = [Names("n", "p", "out").routed(routed_table(value, "out")) for value in (one, other)]
    except BadRecordError:
        return
    merged = [name.replace(".", "_") for name in names]  # Kafka keeps such names apart from each other
    assert (merged[0] == merged[1]) == (one == other)


@pytest.mark.parametrize(
    ("value", "what"),
    [
        (None, "routed to nothing"),
        ("", "routed to an empty text"),
        (True, "routed to a bool"),
        ("__state", "a name of Tailrace's own"),
        ("__floors", "a name of Tailrace's own"),
        ("__hop1", "a name of Tailrace's own"),
        ("dead_letters", "a name of Tailrace's own"),
        ("x" * 250, "no topic can have so long a name"),
    ],
)
def test_a_value_that_names_no_table_is_refused(value: Any, what: str) -> None:
    with pytest.raises(BadRecordError, match=what):
        routed_table(value, "out")
    with pytest.raises(AssertionError, match=what):
        derive(route(lambda row: value), rows_of({"id": 1, "status": "a"}))


def test_rows_of_a_router_are_in_the_table_that_their_records_name() -> None:
    log = rows_of({"id": 1, "status": "in progress"}, {"id": 2, "status": "in_progress"})
    made = derive(route(lambda row: row["status"]), log)
    assert {sent.topic for sent in made.sent} == {f"{OUT}.in_x0020_progress", f"{OUT}.in_progress"}
    for sent in made.sent:
        assert sent.event is not None
        assert sent.topic == f"{OUT}.{sent.event['source']['table']}"
    assert [row["id"] for row in made.rows_of("in_x0020_progress")] == [1]


# Types that change


def test_a_type_that_changes_is_the_columns_from_then_on() -> None:
    types, said = {"id": "integer", "n": "integer"}, list[str]()
    found = shapes(types, said)
    before = found.fit(None, 1, {"id": 1}, {"id": 1, "n": 5})
    types["n"] = "text"
    assert found.fit(None, 1, {"id": 1}, {"id": 1, "n": 5}) is before  # until the inputs' records are read on
    found.asked(())
    after = found.fit(None, 1, {"id": 2}, {"id": 2, "n": "six"})
    assert [(column.name, column.type, column.key) for column in after.record.columns] == [
        ("id", "integer", True),
        ("n", "text", False),
    ]
    assert after.id != before.id
    assert whole(after, {"id": 1}, {"id": 1, "n": 5})["n"] == "5"  # a change of before that comes behind it
    assert said == [
        "column n of out is text now, and was integer: where values do not fit a target's column any more,"
        " alter that, then `tailrace dead-letters retry`"
    ]
    again = shapes({"n": "bigint"}, known=[after.record])  # a start, with what was known before it
    assert [c.type for c in again.fit(None, 1, {"id": 1}, {"id": 1, "n": 5}).record.columns] == [
        "integer",
        "bigint",
    ]
