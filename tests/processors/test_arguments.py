"""Wrong arguments of helpers and of `@agent`: refused when the definition is made, each with its cure."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from operator import itemgetter
from typing import Any

import pytest

from consumers.processors import (
    agent,
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
    route,
    sum_,
    top,
    window,
)
from streamer.errors import ConfigError


async def later(row: Any) -> Any:
    return row


async def stream(row: Any) -> AsyncIterator[Any]:
    yield row


def several(row: Any) -> Iterator[Any]:
    yield row


class Awaited:
    async def __call__(self, row: Any) -> Any:
        return row


class Sized:
    def __call__(self, row: Any) -> Any:
        return len(row)


joined: Any = partial(join, "l", "r")
grouped: Any = partial(aggregate, n=count())


@pytest.mark.parametrize(
    ("make", "where", "what", "fix"),
    [
        (lambda: rename("a"), "rename(columns)", "'a' is no mapping", '{"total": "amount"}'),
        (
            lambda: rename({"a": "x", "b": "x"}),
            "rename(columns)",
            "x would be two columns",
            "name of its own",
        ),
        (lambda: rename({"a": 1}), "rename(columns)", "1 is no column's name", "as a text"),
        (lambda: rename({}, drop="note"), "rename(.., drop=..)", "is no list of columns", '["note"]'),
        (lambda: agent(columns=["x"]), "@agent(columns=..)", "['x'] is no mapping", "write a dict"),
        (lambda: agent(columns={"x": 1}), "@agent(columns=..)", "1 is no column's name", "as a text"),
        (lambda: map_(dict, columns=["x"]), "map_(.., columns=..)", "is no mapping", "write a dict"),
        (lambda: grouped(by="id"), "aggregate(by=..)", "'id' is no list of columns", '["id"]'),
        (lambda: grouped(by=[1]), "aggregate(by=..)", "1 is no column's name", "as a text"),
        (lambda: grouped(by=5), "aggregate(by=..)", "5 is no list", "write a list"),
        (lambda: grouped(by={"a": 1}), "aggregate(by=..)", "1 is no column's name", "as a text"),
        (lambda: grouped(by=["a"], where=later), "aggregate(.., where=..)", "later is async", "write `def`"),
        (lambda: window("at", "1h", by="x"), "window(by=..)", "'x' is no list of columns", '["x"]'),
        (lambda: window(5, "1h"), "window(time, ..)", "5 is no column's name", "as a text"),
        (lambda: window("at", 5), "", "size 5 is no length of time", '"15m"'),
        (lambda: window("at", "1h", where="x"), "window(.., where=..)", "'x' is no function", "row['x']"),
        (lambda: joined(on={}, take=["x"]), "join(.., on={})", "`on` names no columns", "on={"),
        (
            lambda: joined(on="id", take=["x"]),
            "join(.., on=..)",
            "'id' is no mapping",
            '{"customer_id": "id"}',
        ),
        (lambda: joined(on={"a": "b"}, take="name"), "join(.., take=..)", "is no list", '["name"]'),
        (
            lambda: joined(on={"a": "b"}, take={"x": "z", "y": "z"}),
            "join(.., take=..)",
            "z would be two columns",
            "name of its own",
        ),
        (
            lambda: joined(on={"a": "b"}, take=["id"], keep=["id"]),
            "join(.., take=..)",
            "id would be two columns",
            "name of its own",
        ),
        (lambda: joined(on={"a": "b"}, take=["x"], keep="id"), "join(.., keep=..)", "is no list", '["id"]'),
        (
            lambda: join(5, "r", on={"a": "b"}, take=["x"]),
            "join(..): its first topic",
            "5 is no topic",
            "`in:`",
        ),
        (
            lambda: lookup("l", "r", on=[], take=["x"]),
            "lookup(.., on=..)",
            "[] is no mapping",
            "write a dict",
        ),
        (lambda: top("3", "total"), "top(n, ..)", "'3' is no whole number", "without quotes"),
        (lambda: top(True, "total"), "top(n, ..)", "True is no whole number", "without quotes"),
        (lambda: top(3, "total", take="id"), "top(.., take=..)", "is no list of columns", '["id"]'),
        (lambda: top(3, 4), "top(.., column)", "4 is no column's name", "as a text"),
        (lambda: sum_(1), "sum_(column)", "1 is no column's name", "as a text"),
        (lambda: sum_("n", type=1), "sum_(.., type=..)", "1 is no column's name", "as a text"),
        (lambda: count(1), "count(column)", "1 is no column's name", "as a text"),
        (lambda: avg(["n"]), "avg(column)", "['n'] is no column's name", "as a text"),
        (lambda: min_(None), "min_(column)", "None is no column's name", "as a text"),
        (lambda: max_(""), "max_(column)", "'' is no column's name", "as a text"),
        (lambda: filter_(5), "filter_(keep)", "5 is no function", "lambda row: row["),
        (lambda: filter_(later), "filter_(keep)", "later is async", "write `def`"),
        (lambda: filter_(partial(later)), "filter_(keep)", "partial is async", "write `def`"),
        (lambda: filter_(Awaited()), "filter_(keep)", "Awaited is async", "write `def`"),
        (lambda: filter_(later({})), "filter_(keep)", "is no function", "lambda row: row["),
        (lambda: filter_(several), "filter_(keep)", "several has `yield`", "write `return`"),
        (lambda: map_(stream), "map_(body)", "stream is async", "write `def`"),
        (lambda: map_(lambda: 1), "map_(body)", "does not take one row", "lambda row: {**row"),
        (lambda: map_(lambda row, other: 1), "map_(body)", "does not take one row", "let it take one"),
        (lambda: map_(object), "map_(body)", "object does not take one row", "let it take one"),
        (lambda: route("status"), "route(table)", "'status' is no function", "lambda row: row['status']"),
        (lambda: route(len, later), "route(.., body)", "later is async", "write `def`"),
        (lambda: flatten(5), "flatten(body)", "5 is no function", "lambda row: {**row"),
        (lambda: explode(["lines"]), "explode(column)", "['lines'] is no column's name", "as a text"),
        (lambda: explode("lines", prefix=None), "explode(.., prefix=..)", "None is no text", "in quotes"),
        (lambda: explode("lines", types=["x"]), "explode(.., types=..)", "is no mapping", "write a dict"),
        (lambda: expand("address"), "expand(columns)", "is no list of columns", '["address"]'),
        (lambda: expand(separator=1), "expand(.., separator=..)", "1 is no text", "in quotes"),
        (lambda: expand(types="x"), "expand(.., types=..)", "'x' is no mapping", "write a dict"),
        (
            lambda: outbox_router(route="topic", key=1, payload="body"),
            "outbox_router(key=..)",
            "1 is no column's name",
            "as a text",
        ),
    ],
)
def test_an_argument_that_is_none_is_refused_where_it_is_written(
    make: Callable[[], Any], where: str, what: str, fix: str
) -> None:
    with pytest.raises(ConfigError) as raised:
        make()
    assert raised.value.where == where
    assert what in raised.value.what
    assert fix in raised.value.fix


@pytest.mark.parametrize(
    "body",
    [dict, partial(dict, large=True), itemgetter("row"), Sized(), len, lambda row, more=1: row, "{}".format],
)
def test_whatever_takes_a_row_is_a_function(body: Any) -> None:
    """Builtins do not tell what they take."""
    for helper in (map_, filter_, route, flatten):
        helper(body)
    map_(several)


def test_lists_of_columns_have_one_order_in_every_process() -> None:
    assert tuple(aggregate(by={"b", "a", "c"}, n=count()).by) == ("a", "b", "c")
    assert tuple(aggregate(by=dict.fromkeys(("b", "a")).keys(), n=count()).by) == ("b", "a")
