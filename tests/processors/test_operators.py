"""What helpers make of awkward rows: as the SQL has it, or refused with a cure. By the code of a worker."""

from __future__ import annotations

import json
import logging
import sys
from itertools import count as counted
from typing import Any

import pytest

from consumers.processors import (
    Definition,
    Given,
    Row,
    aggregate,
    avg,
    count,
    expand,
    explode,
    filter_,
    flatten,
    join,
    lookup,
    map_,
    max_,
    min_,
    outbox_router,
    rename,
    sum_,
    top,
    window,
)
from consumers.processors.testing import derive
from consumers.testing import Log, LogTable
from streamer.changes.kinds import UNAVAILABLE
from streamer.errors import ConfigError
from tests.harness import partitions

STAFF, LEFT, RIGHT = "shop.public.staff", "shop.public.l", "shop.public.r"


def table(of: str, log: Log, /, **columns: Any) -> LogTable:
    return log.table(of, {"id": "integer", **columns})


def test_a_table_joined_with_itself() -> None:
    log = Log("shop", clock_us=counted(1_000_000, 1_000).__next__)  # which tells what came first
    staff = table("staff", log, name="text", boss="integer")
    for id_, name, boss in ((1, "Ann", None), (3, "Cy", 2), (2, "Bo", 1), (4, "Di", 4)):
        staff.create({"id": id_, "name": name, "boss": boss})
    bossed = join(STAFF, STAFF, on={"boss": "id"}, take={"name": "boss_name"}, keep=["id", "name"])
    shown = {1: ("Ann", None), 2: ("Bo", "Ann"), 3: ("Cy", "Bo"), 4: ("Di", "Di")}
    assert by_id(bossed, log) == shown
    staff.update({"id": 2, "name": "Bob", "boss": 1})
    staff.update({"id": 4, "name": "Di", "boss": 1})
    staff.delete({"id": 1})
    assert by_id(bossed, log) == {2: ("Bob", None), 3: ("Cy", "Bob"), 4: ("Di", None)}
    found = lookup(STAFF, STAFF, on={"boss": "id"}, take={"name": "boss_name"}, keep=["id", "name"])
    assert by_id(found, log)[4] == ("Di", "Ann")


def by_id(definition: Definition, log: Log) -> dict[int, tuple[Any, ...]]:
    rows = derive(definition, log).rows
    return {row["id"]: tuple(value for name, value in row.items() if name != "id") for row in rows}


@pytest.mark.parametrize(
    "definition",
    [
        aggregate(by=["kind"], n=count()),
        map_(lambda row: row),
        flatten(),
        outbox_router(route="kind", key="kind", payload="n"),
        join(LEFT, LEFT, on={"n": "n"}, take={"kind": "other"}),
    ],
    ids=lambda definition: type(definition).__name__,
)
def test_a_table_without_a_key_is_refused(definition: Definition) -> None:
    """Also with REPLICA IDENTITY FULL: a truncate, or a second copy, does not say which rows were there."""
    log = Log("shop")
    rows = log.table("l", {"kind": "text", "n": "integer"}, key=(), identity="f")
    rows.create({"kind": "a", "n": 1})
    with pytest.raises(AssertionError, match=r"the table has no key: .*\n?.*give the table a primary key"):
        derive(definition, log)


def test_rows_from_before_the_key_are_left_out_and_it_is_said(caplog: pytest.LogCaptureFixture) -> None:
    log = Log("shop")
    given = Given("made", (LEFT,), "out", (), {LEFT: [log.table("l", {"n": "integer"}, key=("n",)).record]})
    hops = partitions.Log(aggregate(by=["n"], rows=count()).hops(given), lambda n: 0)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            hops.write(LEFT, "c", {}, {"n": 1})
        hops.write(LEFT, "c", {"n": 1}, {"n": 1})
        hops.drain()
    assert hops.rows() == [{"n": 1, "rows": 1}]
    [said] = given.doubts.values()
    assert "came before the table had its key are left out" in said
    assert caplog.text.count("left out") == 1


MOOD = ("mood", "text")


@pytest.mark.parametrize("measure", [min_("mood"), max_("mood"), top(2, "mood")], ids=["min", "max", "top"])
def test_an_order_that_is_not_known_is_refused(measure: Any) -> None:
    """An enum's labels are not in its schema record, and their order is not that of their texts."""
    log = Log("shop")
    table("l", log, mood=MOOD, kind="text").create({"id": 1, "mood": "sad", "kind": "a"})
    with pytest.raises(AssertionError, match="column mood: a value of type mood has no order here"):
        derive(aggregate(by=["kind"], found=measure), log)
    assert derive(aggregate(by=["mood"], n=count()), log).rows == [{"mood": "sad", "n": 1}]


@pytest.mark.parametrize(
    ("type_", "value"), [("interval", "P1D"), (("citext", "text"), "Ann"), (("public.citext", "text"), "Ann")]
)
def test_a_group_whose_values_have_several_texts_is_refused(type_: Any, value: str) -> None:
    log = Log("shop")
    table("l", log, by=type_).create({"id": 1, "by": value})
    with pytest.raises(
        AssertionError, match=r"column by: it is of (interval|citext), which `by` cannot have"
    ):
        derive(aggregate(by=["by"], n=count()), log)


def test_joins_of_numbers_of_any_type_and_size() -> None:
    log = Log("shop")
    lefts = table("l", log, n="numeric", code=("character(5)", "text"))
    rights = table("r", log, n="double precision", code="text")
    for id_, n in enumerate(("18446744073709551616", "1.50", "7", None, "-1" + "0" * 40)):
        lefts.create({"id": id_, "n": n, "code": "ab   "})
    for id_, number in enumerate((2.0**64, 1.5, 7.0, None, 8.0)):
        rights.create({"id": id_, "n": number, "code": "ab"})
    numbers = join(LEFT, RIGHT, on={"n": "n"}, take={"id": "found"}, keep=["id"])
    assert by_id(numbers, log) == {0: (0,), 1: (1,), 2: (2,), 3: (None,), 4: (None,)}
    padded = join(LEFT, RIGHT, on={"code": "code"}, take={"id": "found"}, keep=["id"], inner=True)
    assert len(derive(padded, log, key=("id", "found")).rows) == 25


LINES = (
    '[{"price": 1.10, "n": 3}, {"price": 12345678901234567890.123456789, "n": 1e2}, {"price": 7, "n": null}]'
)


def test_declared_numbers_keep_their_digits() -> None:
    log = Log("shop")
    table("l", log, lines="jsonb").create({"id": 1, "lines": LINES})
    types = {"price": "numeric", "n": "text"}
    found = derive(explode("lines", types=types), log, key=("id", "position")).rows
    assert [(row["price"], row["n"]) for row in found] == [
        ("1.10", "3"),
        ("12345678901234567890.123456789", "1e2"),
        ("7", None),
    ]
    log = Log("shop")
    held = '{"a": 1e400, "b": {"c": 0.10}, "d": [1.50, 2], "e": {"f": 1}, "g": true}'
    table("l", log, held="jsonb").create({"id": 1, "held": held})
    types = {"held_a": "numeric", "held_b_c": "numeric(3,2)", "held_e": "jsonb", "held_d": "numeric[]"}
    [row] = derive(expand(["held"], types=types), log).rows
    assert row == {
        "id": 1,
        "held_a": "1" + "0" * 400,
        "held_b_c": "0.10",
        "held_d": ["1.50", "2"],
        "held_e": '{"f": 1}',
        "held_g": True,
    }


@pytest.mark.parametrize("number", ["1e400", "9223372036854775808"])
def test_a_number_that_no_inferred_type_holds_names_the_cure(number: str) -> None:
    log = Log("shop")
    table("l", log, held="jsonb").create({"id": 1, "held": f'{{"a": {number}}}'})
    with pytest.raises(AssertionError, match=r"declare it: types=\{'held_a': 'numeric'\}"):
        derive(expand(), log)


def test_members_that_are_named_as_the_rows_columns() -> None:
    log = Log("shop")
    table("l", log, lines="jsonb").create({"id": 1, "lines": '[{"id": 9, "position": 4}]'})
    with pytest.raises(AssertionError, match=r'id would be two columns: .*\n?.*prefix="line_"'):
        derive(explode("lines"), log, key=("id", "position"))
    [row] = derive(explode("lines", prefix="line_"), log, key=("id", "position")).rows
    assert row == {"id": 1, "position": 0, "line_id": 9, "line_position": 4}
    log = Log("shop")
    table("l", log, a="jsonb", a_b="text").create({"id": 1, "a": '{"b": 2}', "a_b": "x"})
    with pytest.raises(AssertionError, match=r"a_b would be two columns: .*\n?.*separator="):
        derive(expand(), log)


@pytest.mark.parametrize(
    ("held", "what"), [('{"a":1}', "column lines: is no JSON array"), ("7", "no JSON arr")]
)
def test_what_is_no_array_is_refused(held: str, what: str) -> None:
    log = Log("shop")
    table("l", log, lines="jsonb").create({"id": 1, "lines": held})
    with pytest.raises(AssertionError, match=what):
        derive(explode("lines"), log, key=("id", "position"))


def pairs(**options: Any) -> Definition:
    return join(LEFT, RIGHT, on={"n": "n"}, take={"rid": "rid"}, **options)


def test_a_key_that_a_row_without_a_match_has_not_is_refused() -> None:
    log = Log("shop")
    lefts = table("l", log, n="integer")
    lefts.create({"id": 1, "n": 1})
    rights = log.table("r", {"k": "integer", "n": "integer", "rid": "integer"}, key=("k",))
    with pytest.raises(ConfigError, match="a row without a match has no rid") as raised:
        derive(pairs(), log, key=("id", "rid"))
    assert "inner=True" in raised.value.fix
    with pytest.raises(ConfigError, match="the derived row has no m, which is of its key"):
        derive(pairs(inner=True, keep=["id"]), log, key=("id", "m"))
    rights.create({"k": 1, "n": 1, "rid": 5})
    assert derive(pairs(inner=True), log, key=("id", "rid")).rows == [{"id": 1, "n": 1, "rid": 5}]
    assert derive(pairs(), log, key=("n",)).rows == [{"n": 1, "id": 1, "rid": 5}]
    lefts.create({"id": 2, "n": None})
    with pytest.raises(AssertionError, match="n is null, and of the derived row's key"):
        derive(pairs(), log, key=("n",))
    rights.create({"k": 2, "n": 1, "rid": None})
    with pytest.raises(AssertionError, match="rid is null, and of the derived row's key"):
        derive(pairs(inner=True), log, key=("id", "rid"))


def shout(row: Row) -> Row:
    row["note"] = "!"
    row["tags"].append("x")
    return row


def test_a_body_that_changes_its_row_changes_nothing_else() -> None:
    """What an update leaves out of the log is that of the row, and not what the body made of it."""
    log = Log("shop")
    notes = table("l", log, note="text", tags=("text[]", "array:text"), n="integer")
    long, tags = "x" * 3_000, ["long tag"] * 40
    notes.create({"id": 1, "note": long, "tags": tags, "n": 1})
    notes.update({"id": 1, "note": UNAVAILABLE, "tags": UNAVAILABLE, "n": 2})
    assert derive(map_(shout), log).rows == [{"id": 1, "note": "!", "tags": [*tags, "x"], "n": 2}]
    assert derive(filter_(shout), log).rows[0]["n"] == 2
    counted = aggregate(by=["note"], where=lambda row: bool(shout(row)), n=sum_("n"))
    assert derive(counted, log).rows == [{"note": long, "n": 2}]


def test_groups_without_a_key_or_with_two_columns_of_a_name_are_refused() -> None:
    with pytest.raises(ConfigError, match="`by` names no column") as raised:
        aggregate(by=[], n=count())
    assert "group by a column" in raised.value.fix
    with pytest.raises(ConfigError, match="status would be two columns"):
        aggregate(by=["status"], status=count())
    with pytest.raises(ConfigError, match="window_start would be two columns"):
        window("at", "1h", window_start=count())
    with pytest.raises(ConfigError, match="at would be two columns"):
        window("at", "1h", by=["at"], start="at")


def test_a_column_that_a_row_has_already_is_no_other_ones_name() -> None:
    log = Log("shop")
    table("l", log, n="integer", m="integer").create({"id": 1, "n": 2, "m": 3})
    assert derive(rename({"n": "m", "m": "n"}), log).rows == [{"id": 1, "n": 3, "m": 2}]
    assert derive(rename({"n": "m"}, drop=["m"]), log).rows == [{"id": 1, "m": 2}]
    with pytest.raises(AssertionError, match=r"(?s)m would be two columns: the row has one .* drop=\['m'\]"):
        derive(rename({"n": "m"}), log)


def test_a_column_that_is_not_there_is_said_once_and_no_more_when_it_comes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = Log("shop")
    schemas = {LEFT: [table("l", log, qty="integer").record]}
    given = Given("made", (LEFT,), "out", (), schemas)
    definition = rename({"qqty": "amount", "id": "number"}, drop=["prize"])
    hops = partitions.Log(definition.hops(given), lambda n: 0)
    with caplog.at_level(logging.WARNING):
        for id_ in (1, 2):
            hops.write(LEFT, "c", {"id": id_}, {"id": id_, "qty": 1})
            with pytest.raises(Exception, match="has no 'id', which is of its key"):
                hops.drain()
    assert sorted(given.doubts.values()) == [
        f"it names the column 'prize', and rows of {LEFT} have id, qty",
        f"it names the column 'qqty', and rows of {LEFT} have id, qty",
    ]
    assert caplog.text.count("it names the column") == 2
    schemas[LEFT].append(table("l", log, qqty="integer", prize="integer").record)
    hops.write(LEFT, "c", {"id": 3}, {"id": 3, "qqty": 1, "prize": 2})
    with pytest.raises(Exception, match="has no 'id'"):
        hops.drain()
    assert given.doubts == {}


def test_a_sum_of_more_digits_than_pythons_guard_lets_pass() -> None:
    guard = sys.get_int_max_str_digits()
    log = Log("shop")
    wide = table("wide", log, g="integer", n="numeric")
    for id_, text in ((1, "9" * 5_000), (2, "1"), (3, "0." + "5" * 3_000), (4, "-" + "9" * 5_000)):
        wide.create({"id": id_, "g": 1, "n": text})
    try:
        (row,) = derive(aggregate(by=["g"], all=sum_("n")), log).rows
    finally:
        sys.set_int_max_str_digits(guard)
    assert row["all"] == "1." + "5" * 3_000


def test_a_sum_of_floats_beyond_their_range_is_infinite_until_it_is_not() -> None:
    log = Log("shop")
    rough = table("rough", log, g="integer", n="double precision")
    measured = aggregate(by=["g"], all=sum_("n"), mean=avg("n"))
    for id_ in (1, 2):
        rough.create({"id": id_, "g": 1, "n": -1.7e308})
    (row,) = derive(measured, log).rows
    assert (row["all"], row["mean"]) == ("-Infinity", -1.7e308)
    rough.delete({"id": 1})
    (row,) = derive(measured, log).rows
    assert (row["all"], row["mean"]) == (-1.7e308, -1.7e308)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"take": {"name": "status"}}, "status would be two columns: shop.public.l has it, too"),
        ({"take": ["name"], "keep": ["id", "nope"]}, "the row has no column 'nope'; it has id, of, status"),
    ],
)
def test_a_join_names_the_column_that_does_not_fit(given: dict[str, Any], said: str) -> None:
    log = Log("shop")
    left = log.table("l", {"id": "integer", "of": "integer", "status": "text"})
    right = log.table("r", {"id": "integer", "name": "text"})
    left.create({"id": 1, "of": 1, "status": "open"})
    right.create({"id": 1, "name": "Ann"})
    of = join("shop.public.l", "shop.public.r", on={"of": "id"}, **given)
    with pytest.raises(AssertionError, match=said):
        derive(of, log)


def test_equal_values_of_top_stand_in_the_order_of_their_keys() -> None:
    log = Log("shop")
    orders = log.table("orders", {"of": "integer", "id": "integer", "total": "numeric"}, key=("of", "id"))
    for id_ in (9, 10, 100, -1):
        orders.create({"of": 1, "id": id_, "total": "5"})
    orders.create({"of": 1, "id": 7, "total": "6"})
    for least, ids in ((False, [7, -1, 9, 10, 100]), (True, [-1, 9, 10, 100, 7])):
        best = aggregate(by=["of"], best=top(9, "total", take=["id"], least=least))
        [row] = derive(best, log).rows
        assert [each["id"] for each in json.loads(row["best"])] == ids
    orders.delete({"of": 1, "id": 9})
    [row] = derive(aggregate(by=["of"], best=top(3, "total", take=["id"])), log).rows
    assert [each["id"] for each in json.loads(row["best"])] == [7, -1, 10]
