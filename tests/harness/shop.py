"""A shop's tables and everything that can happen to their rows, at random; its labels stay as they are."""

from __future__ import annotations

import asyncio
import time
from random import Random

import psycopg
from orjson import dumps

TABLES = (
    """
    CREATE TABLE orders (
        id int PRIMARY KEY, customer_id int, status text NOT NULL, code text NOT NULL, total numeric(12,2),
        qty int, weight float8, placed timestamptz, note text, lines jsonb, address jsonb,
        stamp bigint NOT NULL)
    """,
    "CREATE TABLE customers (id int PRIMARY KEY, name text, region text)",
    "CREATE SEQUENCE stamps",
    "CREATE TABLE labels (word text PRIMARY KEY, label text NOT NULL)",
    "CREATE TABLE outbox (id bigserial PRIMARY KEY, topic text NOT NULL, about text, body text NOT NULL)",
    "CREATE TABLE sent (id bigint PRIMARY KEY, topic text NOT NULL, about text, body text NOT NULL)",
)
ORDERS, CUSTOMERS = 120, 15  # ids; few, so that most are met again
WORDS = ("open", "paid", "sent", "cancelled")
LABELLED = WORDS[:3]  # a row of the last one finds no label
MESSAGES = ("mail", "bills")  # topics of the outbox
NAMES = ("Ann", "Änne", "anna", "Bo", "Zoë", 'a\'s "b"\\')
LONG_CHARS = 2_600  # moved out of the row, and so left out of an update
STATEMENTS_LIMIT = 6  # of a transaction


class Shop:
    """`await open()`, then `await work(...)`; every choice comes from the seed."""

    def __init__(self, url: str, seed: int) -> None:
        self._url = url
        self._random = Random(seed)
        self.changes = 0

    async def open(self, statements: int = 60) -> None:
        async with await self._connect() as connection:
            for table in TABLES:
                await connection.execute(table.encode())
            for word in LABELLED:
                await connection.execute(f"INSERT INTO labels VALUES ('{word}', 'is {word}')".encode())
            for _ in range(statements):
                await connection.execute(self._one().encode())

    async def touch(self) -> None:
        """Every order anew: rows of a first copy have one version, and none of them is the last."""
        async with await self._connect() as connection:
            await connection.execute("UPDATE orders SET stamp = nextval('stamps')")

    async def work(self, transactions: int, pause_s: float = 0.0) -> None:
        async with await self._connect() as connection:
            for _ in range(transactions):
                await self._transaction(connection)
                if pause_s:
                    await asyncio.sleep(pause_s)

    async def work_for(self, seconds: float, pause_s: float) -> None:
        until_s = time.monotonic() + seconds
        async with await self._connect() as connection:
            while time.monotonic() < until_s:
                await self._transaction(connection)
                await asyncio.sleep(pause_s)

    async def _connect(self) -> psycopg.AsyncConnection:
        return await psycopg.AsyncConnection.connect(self._url, autocommit=True, prepare_threshold=None)

    async def _transaction(self, connection: psycopg.AsyncConnection) -> None:
        async with connection.transaction(force_rollback=self._random.random() < 0.03):
            for _ in range(self._random.randint(1, STATEMENTS_LIMIT)):
                await connection.execute(self._one().encode())
                self.changes += 1
            if self._random.random() < 0.2:
                await connection.execute(self._message().encode())

    def _one(self) -> str:
        chance = self._random.random()
        number, other = self._random.randrange(ORDERS), self._random.randrange(ORDERS)
        if chance < 0.35:
            return (
                f"INSERT INTO orders VALUES ({number}, {self._order()}) ON CONFLICT (id) DO UPDATE SET"
                " (customer_id, status, code, total, qty, weight, placed, note, lines, address, stamp) ="
                " (EXCLUDED.customer_id, EXCLUDED.status, EXCLUDED.code, EXCLUDED.total, EXCLUDED.qty,"
                " EXCLUDED.weight, EXCLUDED.placed, EXCLUDED.note, EXCLUDED.lines, EXCLUDED.address,"
                " EXCLUDED.stamp)"
            )
        if chance < 0.62:
            return f"UPDATE orders SET {self._some()}, stamp = nextval('stamps') WHERE id = {number}"
        if chance < 0.68:  # a key change: the row's long note comes along
            return (
                f"UPDATE orders SET id = {other}, note = {self._note()}, stamp = nextval('stamps')"
                f" WHERE id = {number} AND NOT EXISTS (SELECT FROM orders WHERE id = {other})"
            )
        if chance < 0.82:
            return f"DELETE FROM orders WHERE id = {number}"
        customer, another = self._random.randrange(CUSTOMERS), self._random.randrange(CUSTOMERS)
        if chance < 0.92:
            return (
                f"INSERT INTO customers VALUES ({customer}, {self._name()}, '{self._random.choice(WORDS)}')"
                " ON CONFLICT (id) DO UPDATE SET (name, region) = (EXCLUDED.name, EXCLUDED.region)"
            )
        if chance < 0.95:
            return f"DELETE FROM customers WHERE id = {customer}"
        if chance < 0.995:
            return (
                f"UPDATE customers SET id = {another} WHERE id = {customer}"
                f" AND NOT EXISTS (SELECT FROM customers WHERE id = {another})"
            )
        return "TRUNCATE orders" if chance < 0.998 else "TRUNCATE customers"

    def _message(self) -> str:
        """`sent` has what was ever put into the outbox, as it was then."""
        chance = self._random.random()
        if chance < 0.1:
            return "UPDATE outbox SET body = 'changed' WHERE id % 3 = 0"
        if chance < 0.25:
            return f"DELETE FROM outbox WHERE id % 5 = {self._random.randrange(5)}"
        topic, about = self._random.choice(MESSAGES), self._customer()
        return (
            "WITH made AS (INSERT INTO outbox (topic, about, body) VALUES"
            f" ('{topic}', ({about})::text, '{self._random.randrange(10**6)}') RETURNING *)"
            " INSERT INTO sent SELECT * FROM made"
        )

    def _order(self) -> str:
        return ", ".join(
            [
                self._customer(),
                self._status(),
                self._code(),
                self._total(),
                self._quantity(),
                self._weight(),
                self._placed(),
                self._note(),
                self._lines(),
                self._address(),
                "nextval('stamps')",
            ]
        )

    def _some(self) -> str:
        choices = {
            "customer_id": self._customer(),
            "status": self._status(),
            "code": self._code(),
            "total": self._total(),
            "qty": self._quantity(),
            "weight": self._weight(),
            "placed": self._placed(),
            "lines": self._lines(),
            "address": self._address(),
        }
        picked = self._random.sample(sorted(choices), self._random.randint(1, 3))
        return ", ".join(f"{name} = {choices[name]}" for name in picked)

    def _or_null(self, text: str) -> str:
        return "NULL" if self._random.random() < 0.1 else text

    def _customer(self) -> str:
        return self._or_null(str(self._random.randrange(CUSTOMERS)))

    def _status(self) -> str:
        return f"'{self._random.choice(WORDS)}'"

    def _code(self) -> str:
        return f"'c{self._random.randrange(25)}'"

    def _name(self) -> str:
        return self._or_null("'" + self._random.choice(NAMES).replace("'", "''") + "'")

    def _total(self) -> str:
        return self._or_null(f"{self._random.randint(-5_000, 20_000) / 100:.2f}")

    def _quantity(self) -> str:
        return self._or_null(str(self._random.choice((0, 1, 7, 2_000_000_000))))

    def _weight(self) -> str:
        """Of few bits, so that Postgres's sum does not depend on the order."""
        return self._or_null(str(self._random.randint(-64, 640) / 64))

    def _placed(self) -> str:
        minutes = self._random.randrange(600)
        return self._or_null(f"timestamptz '2026-03-29T00:00:00.5Z' + interval '{minutes} minutes'")

    def _note(self) -> str:
        if self._random.random() < 0.2:
            text = "".join(self._random.choices("abcdefghijklmnopqrstuvwxyz0123456789", k=LONG_CHARS))
            return f"'{text}'"
        return self._or_null(f"'note {self._random.randrange(9)}'")

    def _lines(self) -> str:
        lines = [{"sku": f"s{self._random.randrange(9)}", "n": n} for n in range(self._random.randrange(4))]
        return self._or_null(f"'{dumps(lines).decode()}'")

    def _address(self) -> str:
        address = {"city": self._random.choice(WORDS), "at": {"lat": self._random.randrange(9)}}
        if self._random.random() < 0.2:
            del address["at"]
        return self._or_null(f"'{dumps(address).decode()}'")
