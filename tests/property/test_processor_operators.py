"""The helpers of processors equal the SQL they stand for, whatever order partitions are handled in.

The model is SQLite's: after random inserts, updates, key changes, deletes and truncates, with the hops'
queues handled in a random interleaving, the derived rows are those of the query.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from orjson import loads

from consumers.processors import helpers
from consumers.processors.context import Definition, Row
from consumers.processors.operators.ordering import sortable
from streamer.changes.kinds import UNAVAILABLE
from streamer.errors import BadRecordError
from tests.harness import partitions

ORDERS, CUSTOMERS = "shop.public.orders", "shop.public.customers"

_order = st.fixed_dictionaries(
    {
        "id": st.integers(1, 4),
        "customer_id": st.sampled_from([1, 1, 2, 3, None]),
        "amount": st.sampled_from([1, 2, 2, -3, None]),
        "item": st.sampled_from(["a", "a", "ab", ""]),
        "made": st.integers(0, 7199),
    }
)
_customer = st.fixed_dictionaries({"id": st.integers(1, 4), "name": st.sampled_from(["x", "y", "z"])})
_act = st.one_of(
    st.tuples(st.just("order"), _order),
    st.tuples(st.just("order"), _order),
    st.tuples(st.just("customer"), _customer),
    st.tuples(st.just("drop order"), st.integers(1, 4)),
    st.tuples(st.just("drop customer"), st.integers(1, 4)),
    st.tuples(st.just("rekey order"), st.tuples(st.integers(1, 4), st.integers(1, 4))),
    st.tuples(st.just("truncate orders"), st.none()),
    st.tuples(st.just("work"), st.integers(1, 6)),
)
_acts = st.lists(_act, min_size=1, max_size=60)

_PROPERTY = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])


class Shop:
    """The tables in SQLite, and the log of what is done to them."""

    def __init__(
        self, definition: Definition, inputs: list[str], key: list[str], data: st.DataObject
    ) -> None:
        choose = data.draw(st.randoms(use_true_random=False))
        hops = definition.hops(partitions.given(inputs, key))
        self.log = partitions.Log(hops, choose.randrange)
        self._inputs = inputs
        self.changed: dict[int, int] = {}  # order -> when its row was last written
        self._moments = 0
        self.db = sqlite3.connect(":memory:")
        self.db.row_factory = sqlite3.Row
        self.db.execute("CREATE TABLE orders (id INTEGER PRIMARY KEY, customer_id, amount, item, made)")
        self.db.execute("CREATE TABLE customers (id INTEGER PRIMARY KEY, name)")

    def play(self, acts: list[tuple[str, Any]]) -> None:
        for what, argument in acts:
            getattr(self, f"_{what.replace(' ', '_')}")(argument)
        self.log.drain()

    def _write(self, topic: str, op: str, id_: int, after: Row | None) -> None:
        if topic in self._inputs:
            self.log.write(topic, op, {"id": id_}, after)

    def _put(self, table: str, topic: str, row: Row) -> None:
        if topic == ORDERS:
            self._moments += 1
            self.changed[row["id"]] = self._moments
        names = ", ".join(row)
        places = ", ".join("?" for _ in row)
        self.db.execute(f"INSERT OR REPLACE INTO {table} ({names}) VALUES ({places})", list(row.values()))
        sent = dict(row)
        if "made" in row:
            sent["made"] = (
                f"2026-01-01T{row['made'] // 3600:02}:{row['made'] // 60 % 60:02}:{row['made'] % 60:02}Z"
            )
        self._write(topic, "u", row["id"], sent)

    def _order(self, row: Row) -> None:
        self._put("orders", ORDERS, row)

    def _customer(self, row: Row) -> None:
        self._put("customers", CUSTOMERS, row)

    def _drop_order(self, id_: int) -> None:
        if self.db.execute("DELETE FROM orders WHERE id = ?", [id_]).rowcount:
            self._write(ORDERS, "d", id_, None)

    def _drop_customer(self, id_: int) -> None:
        if self.db.execute("DELETE FROM customers WHERE id = ?", [id_]).rowcount:
            self._write(CUSTOMERS, "d", id_, None)

    def _rekey_order(self, ids: tuple[int, int]) -> None:
        old, new = ids
        row = self.db.execute("SELECT * FROM orders WHERE id = ?", [old]).fetchone()
        taken = self.db.execute("SELECT 1 FROM orders WHERE id = ?", [new]).fetchone()
        if row is not None and taken is None:
            self._drop_order(old)
            self._order({**dict(row), "id": new})

    def _truncate_orders(self, _: None) -> None:
        for (id_,) in self.db.execute("SELECT id FROM orders").fetchall():
            self._drop_order(id_)

    def _work(self, steps: int) -> None:
        for _ in range(steps):
            self.log.step()

    def query(self, sql: str) -> list[Row]:
        return [dict(row) for row in self.db.execute(sql)]


def _sorted(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: sorted((name, repr(value)) for name, value in row.items()))


def _same(shop: Shop, sql: str, table: str | None = None) -> None:
    derived = [{k: v for k, v in row.items() if k != "made"} for row in shop.log.rows(table)]
    assert _sorted(derived) == _sorted(shop.query(sql))


@_PROPERTY
@given(_acts, st.data())
def test_aggregate_is_group_by(acts: list[Any], data: st.DataObject) -> None:
    definition = helpers.aggregate(
        by=["customer_id"],
        orders=helpers.count(),
        amounts=helpers.count("amount"),
        total=helpers.sum_("amount"),
        least=helpers.min_("amount"),
        most=helpers.max_("amount"),
        first=helpers.min_("item"),
        last=helpers.max_("item"),
    )
    shop = Shop(definition, [ORDERS], [], data)
    shop.play(acts)
    _same(
        shop,
        "SELECT customer_id, count(*) AS orders, count(amount) AS amounts, sum(amount) AS total,"
        " min(amount) AS least, max(amount) AS most, min(item) AS first, max(item) AS last"
        " FROM orders WHERE customer_id IS NOT NULL GROUP BY customer_id",
    )
    for store in (store for hop in shop.log.stores for store in hop):
        held = list(store.scan(b"index", reverse=False))
        assert len(held) <= 4 * shop.db.execute("SELECT count(*) FROM orders").fetchone()[0]


@_PROPERTY
@given(_acts, st.data())
def test_top_is_order_by_limit(acts: list[Any], data: st.DataObject) -> None:
    definition = helpers.aggregate(by=["item"], best=helpers.top(2, "amount", take=["amount"]))
    shop = Shop(definition, [ORDERS], [], data)
    shop.play(acts)
    derived = {row["item"]: [r["amount"] for r in loads(row["best"])] for row in shop.log.rows()}
    expected: dict[str, list[int]] = {}
    for row in shop.query("SELECT item, amount FROM orders ORDER BY amount DESC"):
        best = expected.setdefault(row["item"], [])
        if row["amount"] is not None and len(best) < 2:
            best.append(row["amount"])
    assert derived == expected


@_PROPERTY
@given(_acts, st.booleans(), st.data())
def test_join_is_a_join(acts: list[Any], inner: bool, data: st.DataObject) -> None:
    definition = helpers.join(
        ORDERS,
        CUSTOMERS,
        on={"customer_id": "id"},
        take={"name": "customer"},
        keep=["id", "amount"],
        inner=inner,
    )
    shop = Shop(definition, [ORDERS, CUSTOMERS], [], data)
    shop.play(acts)
    kind = "" if inner else "LEFT"
    _same(
        shop,
        f"SELECT o.id, o.amount, c.name AS customer FROM orders o {kind} JOIN customers c"
        " ON o.customer_id = c.id",
    )


@_PROPERTY
@given(_acts, st.booleans(), st.data())
def test_join_of_a_table_with_itself(acts: list[Any], inner: bool, data: st.DataObject) -> None:
    definition = helpers.join(
        ORDERS, ORDERS, on={"customer_id": "id"}, take={"item": "of"}, keep=["id"], inner=inner
    )
    shop = Shop(definition, [ORDERS], [], data)
    shop.play(acts)
    kind = "" if inner else "LEFT"
    _same(shop, f"SELECT l.id, r.item AS of FROM orders l {kind} JOIN orders r ON l.customer_id = r.id")


@_PROPERTY
@given(_acts, st.data())
def test_join_of_many_to_many_has_a_row_a_pair(acts: list[Any], data: st.DataObject) -> None:
    definition = helpers.join(
        ORDERS,
        CUSTOMERS,
        on={"item": "name"},
        take={"id": "customer"},
        keep=["id", "item"],
        inner=True,
    )
    acts = [
        ("order", {**a, "item": {"": "x", "a": "y"}.get(a["item"], "z")}) if w == "order" else (w, a)
        for w, a in acts
    ]
    shop = Shop(definition, [ORDERS, CUSTOMERS], ["id", "customer"], data)
    shop.play(acts)
    _same(
        shop,
        "SELECT o.id, o.item, c.id AS customer FROM orders o JOIN customers c ON o.item = c.name",
    )


@_PROPERTY
@given(_acts, st.data())
def test_filter_is_where(acts: list[Any], data: st.DataObject) -> None:
    definition = helpers.filter_(lambda row: row["amount"] is not None and row["amount"] > 0)
    shop = Shop(definition, [ORDERS], [], data)
    shop.play(acts)
    _same(shop, "SELECT id, customer_id, amount, item FROM orders WHERE amount > 0")


@_PROPERTY
@given(_acts, st.data())
def test_rename_and_route(acts: list[Any], data: st.DataObject) -> None:
    renaming = Shop(helpers.rename({"item": "thing"}, drop=["amount"]), [ORDERS], [], data)
    renaming.play(acts)
    _same(renaming, "SELECT id, customer_id, item AS thing FROM orders")
    routing = Shop(helpers.route(lambda row: f"of_{row['item']}"), [ORDERS], [], data)
    routing.play(acts)
    for item in ("a", "ab", ""):
        _same(
            routing, f"SELECT id, customer_id, amount, item FROM orders WHERE item = '{item}'", f"of_{item}"
        )


@_PROPERTY
@given(_acts, st.data())
def test_a_derived_key_that_is_not_the_inputs(acts: list[Any], data: st.DataObject) -> None:
    """One row a customer, of the order that was the last to change, whichever message came first."""
    definition = helpers.map_(lambda row: None if row["customer_id"] is None else row)
    shop = Shop(definition, [ORDERS], ["customer_id"], data)
    shop.play(acts)
    last: dict[int, int] = {}
    for row in sorted(shop.query("SELECT * FROM orders"), key=lambda row: shop.changed[row["id"]]):
        if row["customer_id"] is not None:
            last[row["customer_id"]] = row["id"]
    assert {row["customer_id"]: row["id"] for row in shop.log.rows()} == last


@_PROPERTY
@given(_acts, st.sampled_from([(600, None), (3600, None), (1200, 600)]), st.data())
def test_windows_are_groups_of_time(
    acts: list[Any], sizes: tuple[int, int | None], data: st.DataObject
) -> None:
    size, every = sizes
    definition = helpers.window(
        "made", f"{size}s", every=None if every is None else f"{every}s", by=["item"], orders=helpers.count()
    )
    shop = Shop(definition, [ORDERS], [], data)
    shop.play(acts)
    step = every or size
    expected: dict[tuple[str, int], int] = {}
    for row in shop.query("SELECT item, made FROM orders"):
        start = row["made"] // step * step
        while start + size > row["made"]:
            expected[row["item"], start] = expected.get((row["item"], start), 0) + 1
            start -= step
    derived = {(row["item"], _since_midnight(row["window_start"])): row["orders"] for row in shop.log.rows()}
    assert derived == expected


def _since_midnight(text: str) -> int:
    day, clock = text.removesuffix("Z").split("T")
    hours, minutes, seconds = map(int, clock.split(":"))
    return hours * 3600 + minutes * 60 + seconds - (86_400 if day == "2025-12-31" else 0)


def test_a_lookup_keeps_what_it_was_joined_with() -> None:
    definition = helpers.lookup(ORDERS, CUSTOMERS, on={"customer_id": "id"}, take=["name"], keep=["id"])
    log = partitions.Log(definition.hops(partitions.given([ORDERS, CUSTOMERS])), lambda n: 0)
    log.write(CUSTOMERS, "c", {"id": 1}, {"id": 1, "name": "x"})
    log.drain()
    log.write(ORDERS, "c", {"id": 7}, {"id": 7, "customer_id": 1})
    log.drain()
    log.write(CUSTOMERS, "u", {"id": 1}, {"id": 1, "name": "y"})
    log.drain()
    assert log.rows() == [{"id": 7, "name": "x"}]
    log.write(ORDERS, "u", {"id": 7}, {"id": 7, "customer_id": 1})
    log.drain()
    assert log.rows() == [{"id": 7, "name": "y"}]
    log.write(ORDERS, "d", {"id": 7}, None)
    log.drain()
    assert log.rows() == []


@_PROPERTY
@given(_acts, st.data())
def test_flatten_is_the_table(acts: list[Any], data: st.DataObject) -> None:
    shop = Shop(helpers.flatten(), [ORDERS], [], data)
    shop.play(acts)
    held: dict[bytes | None, Row] = {}
    for _, key, value in shop.log.published:
        if value is None:
            del held[key]
        else:
            held[key] = loads(value)
    assert shop.log.derived == {}
    rows = [{k: v for k, v in row.items() if k != "made"} for row in held.values()]
    assert _sorted(rows) == _sorted(shop.query("SELECT id, customer_id, amount, item FROM orders"))


def test_an_outbox_sends_what_is_inserted_once() -> None:
    topic = "shop.public.outbox"
    definition = helpers.outbox_router(route="kind", key="about", payload="body")
    log = partitions.Log(definition.hops(partitions.given([topic])), lambda n: 0)
    row = {"id": 1, "kind": "mail", "about": "ann", "body": '{"to":"ann"}'}
    log.write(topic, "c", {"id": 1}, row)
    log.write(topic, "u", {"id": 1}, {**row, "sent": True})
    log.write(topic, "d", {"id": 1}, None)
    log.write(topic, "c", {"id": 1}, {**row, "kind": "bill", "about": None, "body": {"n": 2}})
    log.drain()
    assert log.published == [("mail", b"ann", b'{"to":"ann"}'), ("bill", None, b'{"n":2}')]


def test_an_outbox_row_without_a_topic_is_a_bad_row() -> None:
    definition = helpers.outbox_router(route="kind", key="about", payload="body")
    log = partitions.Log(definition.hops(partitions.given([ORDERS])), lambda n: 0)
    log.write(ORDERS, "c", {"id": 1}, {"id": 1, "kind": None, "about": "a", "body": "b"})
    with pytest.raises(BadRecordError, match="kind is null or empty"):
        log.drain()
    log.write(ORDERS, "c", {"id": 2}, {"id": 2, "about": "a", "body": "b"})
    with pytest.raises(BadRecordError, match="no column 'kind'; it has id, about, body"):
        log.drain()


def test_json_columns_become_columns_and_rows() -> None:
    expanding = helpers.expand(["address"]).body
    row = {"id": 1, "address": '{"city":"Wien","geo":{"lat":48.2},"tags":["a"]}', "other": '{"a":1}'}
    assert expanding(row) == {
        "id": 1,
        "address_city": "Wien",
        "address_geo_lat": 48.2,
        "address_tags": '["a"]',
        "other": '{"a":1}',
    }
    lines = helpers.explode("lines", value="sku")
    log = partitions.Log(lines.hops(partitions.given([ORDERS], ["id", "position"])), lambda n: 0)
    log.write(ORDERS, "c", {"id": 1}, {"id": 1, "lines": '["x",{"sku":"y","n":2}]'})
    log.drain()
    assert log.rows() == [
        {"id": 1, "position": 0, "sku": "x"},
        {"id": 1, "position": 1, "sku": "y", "n": 2},
    ]
    log.write(ORDERS, "u", {"id": 1}, {"id": 1, "lines": None})
    log.drain()
    assert log.rows() == []


def test_an_unchanged_large_value_is_that_of_the_row_before() -> None:
    """An UPDATE leaves an unchanged TOAST value out of the log; a derived row needs it all the same."""
    body = "x" * 3000
    log = partitions.Log(
        helpers.filter_(lambda row: row["n"] > 0).hops(partitions.given([ORDERS])), lambda n: 0
    )
    log.write(ORDERS, "c", {"id": 1}, {"id": 1, "n": 1, "body": body})
    log.write(ORDERS, "u", {"id": 1}, {"id": 1, "n": 2, "body": UNAVAILABLE})
    log.write(ORDERS, "u", {"id": 1}, {"id": 1, "n": 3, "body": UNAVAILABLE})
    log.drain()
    assert log.rows() == [{"id": 1, "n": 3, "body": body}]
    log.write(ORDERS, "u", {"id": 2}, {"id": 2, "n": 1, "body": UNAVAILABLE})
    with pytest.raises(BadRecordError, match="body is not in the log"):
        log.drain()


_numeric = st.one_of(
    st.decimals(allow_nan=False, allow_infinity=False, places=None, min_value=-(10**9), max_value=10**9),
    st.integers(-(10**30), 10**30).map(Decimal),
)


@given(_numeric, _numeric)
def test_numbers_sort_as_their_bytes(a: Decimal, b: Decimal) -> None:
    left, right = sortable(format(a, "f"), "numeric"), sortable(format(b, "f"), "numeric")
    assert (left < right, left == right) == (a < b, a == b)


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("numeric", ["-Infinity", "-10", "-9.5", "-0.01", "0", "0.001", "1", "1.5", "10", "Infinity", "NaN"]),
        ("float", ["-Infinity", -1e300, -1.5, 0, 1e-300, 1.5, 2, 1e300, "Infinity", "NaN"]),
        ("date", ["-infinity", "0044-03-15 BC", "0001-01-01", "2016-11-04", "12016-01-01", "infinity"]),
        ("timestamptz", ["2016-11-04T13:51:30Z", "2016-11-04T13:51:30.25Z", "2016-11-04T13:51:30.5Z"]),
        ("bool", [False, True]),
        ("text", ["", "10", "9", "a", "ab", "b"]),
    ],
)
def test_values_sort_as_their_bytes(kind: str, values: list[Any]) -> None:
    found = [sortable(value, kind) for value in values]
    assert found == sorted(found)
    assert len(set(found)) == len(found)


def _numerics() -> Iterator[st.SearchStrategy[str]]:
    yield st.decimals(
        allow_nan=False, allow_infinity=False, places=2, min_value=-(10**6), max_value=10**6
    ).map(str)
    yield st.integers(-(10**25), 10**25).map(str)
    yield st.sampled_from(["0.000000001", "-0.5", "123.4500"])


@given(st.lists(st.one_of(*_numerics()), min_size=1, max_size=12), st.data())
def test_sums_are_exact_and_take_back_all(values: list[str], data: st.DataObject) -> None:
    """What is left after some are taken back has their sum, with the largest scale that is left."""
    gone = data.draw(st.integers(0, len(values) - 1))
    measure = helpers.sum_("v")
    kinds = {"v": "numeric"}
    state: dict[str, Any] = {}
    entry: Any = None
    for value in values:
        measure.add(state, measure.take({"v": value}, kinds), entry)
    for value in values[:gone]:
        measure.remove(state, measure.take({"v": value}, kinds), entry)
    left = values[gone:]
    scale = max(len(value.partition(".")[2]) for value in left)
    digits = sum(int(value.replace(".", "")) * 10 ** (scale - len(value.partition(".")[2])) for value in left)
    assert measure.result(state, entry) == _decimal(digits, scale)


def _decimal(digits: int, scale: int) -> str:
    text = str(abs(digits)).rjust(scale + 1, "0")
    shown = text if scale == 0 else f"{text[:-scale]}.{text[-scale:]}"
    return f"-{shown}" if digits < 0 else shown
