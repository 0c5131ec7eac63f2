"""The tables of the demo's shop and the transactions that its clerks and customers make.

Owns: DDL, first rows, and one coroutine a kind of transaction; each takes a connection that is in a
transaction and a `random.Random`, and returns what it changed. It must not commit, pace or retry:
that is workload.py. Rows are picked by a random pivot in the key, so no state is kept between them.

Between them the tables show what a copy has to get right: text that TOAST moves out of line and
updates that leave it alone, NULLs, odd characters, numbers at their edges, key changes (products by
default identity, carts by full), a composite key, a table without a key, a TRUNCATE, one transaction
as large as a nightly import.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import date, timedelta
from decimal import Decimal
from random import Random
from typing import Any

import orjson
from psycopg import AsyncConnection, Rollback

TABLES = ("customers", "products", "orders", "order_lines", "carts", "page_views")

DDL = """
CREATE TABLE customers (
    id bigint PRIMARY KEY, name text NOT NULL, email varchar(120), born date, balance numeric(12, 2),
    vip boolean, tags text[], notes text, profile jsonb, seen_at timestamptz);
CREATE TABLE products (
    sku text PRIMARY KEY, title text NOT NULL, price numeric(12, 4), stock integer NOT NULL, weight_kg real,
    attributes jsonb, thumbnail bytea, discontinued boolean, changed_at timestamp);
CREATE TABLE orders (
    id bigint PRIMARY KEY, customer_id bigint NOT NULL, status text NOT NULL, total numeric,
    rate double precision, placed_at timestamptz NOT NULL, delivered_on date, note text);
CREATE TABLE order_lines (
    order_id bigint NOT NULL, line integer NOT NULL, sku text, quantity smallint NOT NULL,
    price numeric(12, 4), gift boolean, engraving text, packed_at time, PRIMARY KEY (order_id, line));
CREATE TABLE carts (
    id uuid PRIMARY KEY, customer_id bigint, items jsonb, comment text, expires_in interval,
    opened_at timestamptz);
ALTER TABLE carts REPLICA IDENTITY FULL;
CREATE TABLE page_views (
    customer_id bigint, path text, took_ms double precision, referrer text, seen_at timestamptz);
ALTER TABLE page_views REPLICA IDENTITY FULL;
"""

FIRST_CUSTOMERS = 2_000
FIRST_PRODUCTS = 1_000
FIRST_ORDERS = 3_000
LINES_PER_ORDER = 2
NOTE_BYTES = 12_000  # incompressible text beyond PostgreSQL's 2 kB TOAST threshold stays out of line
BIG_ID = 1_000_000_000  # the ids of the import; above every other, so that imports do not collide

ODD_NAMES = (
    "Zoë Ångström-Łukasz",
    "O'Brien; DROP TABLE customers; --",
    'Quote " and backslash \\ and \\N',
    "tab\there, newline\nthere, return\rtoo",
    "日本語の名前",
    "שלום עולם",
    "e\u0301 is not \u00e9",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467 \U0010fffd",
    "\x01\x1f\x7f control",
    "",
    " leading and trailing ",
    '{"json": [1, null]}',
    "null",
    "line\u2028separator",
)
STATUSES = ("placed", "paid", "packed", "sent", "delivered", "returned")
REALS = (0.0, -0.0, 1.5, 1e-30, 3.4e38, float("inf"), float("nan"))
DOUBLES = (0.1, -0.0, 1e308, 5e-324, 123456789.123456789, float("-inf"), float("nan"))
AMOUNTS = (Decimal("0.00"), Decimal("-1.50"), Decimal("9999999999.99"), Decimal("12.30"), Decimal("NaN"))

Connection = AsyncConnection[Any]
Changes = Counter[str]  # (rows changed) a table
Act = Callable[[Connection, Random], Awaitable[Changes]]


async def create(connection: Connection, random: Random) -> None:
    """Make the tables and their first rows; autocommit or not is the caller's choice."""
    await connection.execute(DDL.encode())
    customers = [customer(random, i) for i in range(FIRST_CUSTOMERS)]
    products = [product(random, f"SKU-{i:05}") for i in range(FIRST_PRODUCTS)]
    await _copy(connection, "customers", customers)
    await _copy(connection, "products", products)
    orders, lines = [], []
    for i in range(FIRST_ORDERS):
        orders.append(order(random, i, random.randrange(FIRST_CUSTOMERS)))
        lines += [order_line(random, i, line) for line in range(1, LINES_PER_ORDER + 1)]
    await _copy(connection, "orders", orders)
    await _copy(connection, "order_lines", lines)
    await _copy(connection, "page_views", [page_view(random) for _ in range(FIRST_CUSTOMERS)])
    await _copy(connection, "carts", [cart(random) for _ in range(FIRST_CUSTOMERS)])


async def _copy(connection: Connection, table: str, rows: list[tuple[Any, ...]]) -> None:
    async with connection.cursor() as cursor, cursor.copy(f"COPY {table} FROM STDIN".encode()) as copy:
        for row in rows:
            await copy.write_row(row)


# -- rows


def words(random: Random) -> str:
    return random.choice(ODD_NAMES) if random.random() < 0.2 else f"name {random.randrange(10**6)}"


def long_text(random: Random) -> str:
    return random.randbytes(NOTE_BYTES // 2).hex()


def document(random: Random) -> str:
    return orjson.dumps({"k": words(random), "n": random.choice([None, 1, 0.5, [1, {"a": "é"}]])}).decode()


def customer(random: Random, key: int) -> tuple[Any, ...]:
    notes = long_text(random) if random.random() < 0.05 else random.choice([None, words(random)])
    tags = random.choice([None, [], ["a", None, 'q"\\,{}'], ["vip", words(random)]])
    return (
        key,
        words(random),
        f"{key}@example.org" if random.random() < 0.9 else None,
        date(1950, 1, 1) + timedelta(days=random.randrange(20_000)),
        random.choice(AMOUNTS),
        random.choice([True, False, None]),
        tags,
        notes,
        document(random),
        _moment(random),
    )


def product(random: Random, sku: str) -> tuple[Any, ...]:
    thumbnail = random.choice([None, b"", b"\x00\xff\\x", random.randbytes(40)])
    return (
        sku,
        words(random),
        Decimal(random.randrange(10**8)).scaleb(-4),
        random.randrange(500),
        random.choice(REALS),
        document(random),
        thumbnail,
        random.choice([True, False, None]),
        f"2024-02-29 23:59:{random.randrange(60):02}.{random.randrange(10**6):06}",
    )


def order(random: Random, key: int, customer_id: int) -> tuple[Any, ...]:
    return (
        key,
        customer_id,
        random.choice(STATUSES),
        Decimal(random.randrange(10**9)).scaleb(-random.randrange(8)),
        random.choice(DOUBLES),
        _moment(random),
        random.choice([None, "infinity", "2026-01-31", "0044-03-15 BC"]),
        random.choice([None, words(random)]),
    )


def order_line(random: Random, order_id: int, line: int) -> tuple[Any, ...]:
    return (
        order_id,
        line,
        f"SKU-{random.randrange(FIRST_PRODUCTS):05}",
        random.randrange(1, 20),
        Decimal(random.randrange(10**7)).scaleb(-4),
        random.choice([True, False, None]),
        random.choice([None, words(random)]),
        random.choice([None, "13:51:30.123456", "24:00:00"]),
    )


def cart(random: Random) -> tuple[Any, ...]:
    return (
        _uuid(random),
        random.randrange(FIRST_CUSTOMERS),
        document(random),
        long_text(random) if random.random() < 0.1 else random.choice([None, words(random)]),
        random.choice([None, "1 year 2 mons 3 days 04:05:06.78", "-3 days", "90 minutes"]),
        _moment(random),
    )


def page_view(random: Random) -> tuple[Any, ...]:
    path = f"/p/{random.randrange(50)}"
    return (
        random.randrange(100),
        path,
        random.choice(DOUBLES),
        random.choice([None, "direct"]),
        _moment(random),
    )


def _uuid(random: Random) -> str:
    return random.randbytes(16).hex()


def _moment(random: Random) -> str:
    return (
        f"2025-{random.randrange(1, 13):02}-1{random.randrange(10)} 12:00:00.{random.randrange(10**6):06}+02"
    )


# -- transactions


async def _insert(connection: Connection, table: str, rows: list[tuple[Any, ...]]) -> Changes:
    """Skips keys that are there already: two clerks may have drawn the same one."""
    places = ", ".join(["%s"] * len(rows[0]))
    count = 0
    async with connection.cursor() as cursor:
        statement = f"INSERT INTO {table} VALUES ({places}) ON CONFLICT DO NOTHING".encode()
        for row in rows:
            await cursor.execute(statement, row)
            count += cursor.rowcount
    return Counter({table: count})


async def _run(connection: Connection, table: str, statement: str, *values: Any) -> Changes:
    cursor = await connection.execute(statement.encode(), values)
    return Counter({table: cursor.rowcount})


async def place_order(connection: Connection, random: Random) -> Changes:
    key = random.randrange(10**8)
    lines = [order_line(random, key, line) for line in range(1, random.randrange(2, 7))]
    changes = await _insert(connection, "orders", [order(random, key, random.randrange(FIRST_CUSTOMERS))])
    changes += await _insert(connection, "order_lines", lines)
    # In one order everywhere, so that two clerks do not wait for each other in a circle.
    for sku in sorted(str(line[2]) for line in lines):
        changes += await _run(
            connection, "products", "UPDATE products SET stock = stock - 1 WHERE sku = %s", sku
        )
    return changes


async def advance_orders(connection: Connection, random: Random) -> Changes:
    return await _run(
        connection,
        "orders",
        "UPDATE orders SET status = %s, note = coalesce(note, 'moved') WHERE id IN (SELECT id FROM orders"
        " WHERE id >= %s AND id < 1000000000 ORDER BY id LIMIT 8 FOR UPDATE)",
        random.choice(STATUSES),
        random.randrange(10**8),
    )


async def cancel_order(connection: Connection, random: Random) -> Changes:
    pivot = random.randrange(10**8)
    cursor = await connection.execute(
        b"SELECT id FROM orders WHERE id >= %s AND id < 1000000000 ORDER BY id LIMIT 1 FOR UPDATE", [pivot]
    )
    found = await cursor.fetchone()
    if found is None:
        return Counter()
    changes = await _run(connection, "order_lines", "DELETE FROM order_lines WHERE order_id = %s", found[0])
    return changes + await _run(connection, "orders", "DELETE FROM orders WHERE id = %s", found[0])


async def new_customers(connection: Connection, random: Random) -> Changes:
    keys = sorted(random.randrange(10**6) for _ in range(3))
    return await _insert(connection, "customers", [customer(random, key) for key in keys])


async def touch_customer(connection: Connection, random: Random) -> Changes:
    """Leaves `notes` alone: where it is TOASTed the change travels without it."""
    return await _run(
        connection,
        "customers",
        "UPDATE customers SET balance = %s, seen_at = clock_timestamp() WHERE id = %s",
        random.choice(AMOUNTS),
        random.randrange(FIRST_CUSTOMERS),
    )


async def write_notes(connection: Connection, random: Random) -> Changes:
    return await _run(
        connection,
        "customers",
        "UPDATE customers SET notes = %s, name = %s, profile = NULL WHERE id = %s",
        long_text(random),
        words(random),
        random.randrange(FIRST_CUSTOMERS),
    )


async def forget_customer(connection: Connection, random: Random) -> Changes:
    return await _run(
        connection,
        "customers",
        "DELETE FROM customers WHERE id = (SELECT id FROM customers WHERE id >= %s ORDER BY id LIMIT 1"
        " FOR UPDATE)",
        random.randrange(10**6),
    )


async def rename_product(connection: Connection, random: Random) -> Changes:
    """A key change, to a name that may hold anything."""
    return await _run(
        connection,
        "products",
        "UPDATE products SET sku = %s, title = %s WHERE sku = (SELECT sku FROM products WHERE sku >= %s"
        " ORDER BY sku LIMIT 1 FOR UPDATE) AND NOT EXISTS (SELECT FROM products WHERE sku = %s)",
        new := f"{random.choice(ODD_NAMES)}-{random.randrange(10**6)}",
        words(random),
        f"SKU-{random.randrange(FIRST_PRODUCTS):05}",
        new,
    )


async def swap_products(connection: Connection, random: Random) -> Changes:
    """Two rows exchange their keys, by way of a third."""
    one, other = sorted(random.sample(range(FIRST_PRODUCTS), 2))
    changes: Changes = Counter()
    for old, new in ((one, "swap"), (other, one), ("swap", other)):
        names = [k if isinstance(k, str) else f"SKU-{k:05}" for k in (new, old)]
        changes += await _run(connection, "products", "UPDATE products SET sku = %s WHERE sku = %s", *names)
    return changes


async def stock_products(connection: Connection, random: Random) -> Changes:
    rows = [product(random, f"SKU-{random.randrange(FIRST_PRODUCTS):05}") for _ in range(2)]
    return await _insert(connection, "products", sorted(rows))


async def open_carts(connection: Connection, random: Random) -> Changes:
    return await _insert(connection, "carts", [cart(random) for _ in range(4)])


async def change_cart(connection: Connection, random: Random) -> Changes:
    """A key change under full identity, with a comment that may be TOASTed and is not changed."""
    return await _run(
        connection,
        "carts",
        "UPDATE carts SET id = %s, items = %s WHERE id = (SELECT id FROM carts WHERE id >= %s ORDER BY id"
        " LIMIT 1 FOR UPDATE SKIP LOCKED)",
        _uuid(random),
        document(random),
        _uuid(random),
    )


async def close_cart(connection: Connection, random: Random) -> Changes:
    return await _run(
        connection,
        "carts",
        "DELETE FROM carts WHERE id = (SELECT id FROM carts WHERE id >= %s ORDER BY id LIMIT 1"
        " FOR UPDATE SKIP LOCKED)",
        _uuid(random),
    )


async def view_pages(connection: Connection, random: Random) -> Changes:
    views = [page_view(random) for _ in range(6)]
    return await _insert(connection, "page_views", [*views, views[0]])  # twins are allowed without a key


async def correct_view(connection: Connection, random: Random) -> Changes:
    """One of several equal rows goes or changes; there is no key to tell them apart."""
    statement = random.choice(
        (
            "DELETE FROM page_views WHERE ctid = (SELECT ctid FROM page_views WHERE customer_id = %s LIMIT 1"
            " FOR UPDATE SKIP LOCKED)",
            "UPDATE page_views SET referrer = 'corrected' WHERE ctid = (SELECT ctid FROM page_views"
            " WHERE customer_id = %s LIMIT 1 FOR UPDATE SKIP LOCKED)",
        )
    )
    return await _run(connection, "page_views", statement, random.randrange(100))


async def change_mind(connection: Connection, random: Random) -> Changes:
    """The same rows again and again in one transaction; half of it is taken back."""
    changes = await new_customers(connection, random)
    async with connection.transaction() as savepoint:
        await forget_customer(connection, random)
        await place_order(connection, random)
        if random.random() < 0.9:
            raise Rollback(savepoint)
    for _ in range(3):
        changes += await touch_customer(connection, random)
    return changes


ACTS: tuple[tuple[Act, int], ...] = (  # (transaction, how often)
    (place_order, 30),
    (advance_orders, 12),
    (cancel_order, 8),
    (new_customers, 8),
    (touch_customer, 15),
    (write_notes, 2),
    (forget_customer, 5),
    (rename_product, 4),
    (swap_products, 2),
    (stock_products, 4),
    (open_carts, 6),
    (change_cart, 5),
    (close_cart, 4),
    (view_pages, 8),
    (correct_view, 6),
    (change_mind, 2),
)


async def big_import(connection: Connection, random: Random, rows: int) -> Changes:
    """One transaction of `rows` row changes: order lines of one nightly import."""
    order_id = BIG_ID + random.randrange(10**6)
    return await _run(
        connection,
        "order_lines",
        "INSERT INTO order_lines SELECT %s, n, 'SKU-' || n %% 1000, 1 + n %% 9, n * 0.0001, n %% 2 = 0,"
        " CASE WHEN n %% 3 = 0 THEN 'batch ' || n END, '08:00' FROM generate_series(1, %s) n"
        " ON CONFLICT DO NOTHING",
        order_id,
        rows,
    )


async def empty_carts(connection: Connection, _random: Random) -> Changes:
    """TRUNCATE: counts as one change."""
    await connection.execute(b"TRUNCATE carts")
    return Counter({"carts": 1})
