"""Helpers beside the SQL that they stand for: real capture, workers, apply, and every kind of change."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path
from uuid import UUID

import psycopg
import pytest
from orjson import dumps

from streamer.changes.topics import partition_for
from tests.harness.deriving import Deriving
from tests.harness.pipeline import execute
from tests.harness.shop import Shop
from tests.harness.starter import Starter
from tests.processors.derivations import HELPERS, OF_THE_SHOP, OTHERS

Make = Callable[..., Deriving]


@pytest.fixture
def deriving(
    tmp_path: Path, database: str, target_database: str, kafka: str, kafka_name: str, starter: Starter
) -> Make:
    def make(*helpers: str) -> Deriving:
        made = Deriving(
            tmp_path,
            helpers=helpers,
            source_url=database,
            target_url=target_database,
            brokers=kafka,
            name=kafka_name,
        )
        made.starter = starter
        return made

    return make


async def test_an_aggregate_and_a_join_equal_their_queries(deriving: Make) -> None:
    async with deriving("by_customer", "named") as pipeline:
        shop = Shop(pipeline.source_url, seed=1)
        await shop.open()
        pipeline.start_all()
        await shop.work(120)
        await pipeline.equal_to_queries()


MEASURED = """
CREATE TABLE measured (
    id int PRIMARY KEY, owner uuid NOT NULL, i integer, b bigint, n numeric(12,3), f float8, at timestamptz,
    day date, flag boolean)
"""
LARGE = 9_000_000_000_000_000_000  # two are more than a bigint holds


def far_apart(account: str) -> int:
    """An id whose row is read by one of two workers, while the other keeps its group."""
    group = partition_for(dumps({"account": account}), 4)
    return next(n for n in count(1) if partition_for(dumps({"id": n}), 4) % 2 != group % 2)


@pytest.mark.thorough
async def test_columns_have_the_querys_types_whoever_sees_them_first(deriving: Make) -> None:
    """Workers that were there before the first event: neither knows a type, and one never sees the input."""
    async with deriving("typed") as pipeline:
        await execute(pipeline.source_url, MEASURED)
        pipeline.start("capture")
        await pipeline.working(pipeline.start_worker("typed"), pipeline.start_worker("typed"))
        pipeline.start("apply")
        account = str(UUID(int=7))
        first, other = far_apart(account), UUID(int=8)
        await execute(
            pipeline.source_url,
            f"INSERT INTO measured VALUES ({first}, '{account}', NULL, NULL, '1.5', '0.1',"
            " '2026-01-01T00:00Z', '2026-01-01', false)",
        )
        await pipeline.equal_to_queries()
        await execute(
            pipeline.source_url,
            f"INSERT INTO measured SELECT {first} + n, '{account}', 2147483647, {LARGE}, n / 8.0, 0.5 / n,"
            " '2025-12-31T23:59:59.999999Z', '-infinity', true FROM generate_series(1, 3) n",
            f"INSERT INTO measured VALUES (0, '{other}')",
            f"UPDATE measured SET i = -1 WHERE id = {first} + 1",
        )
        await pipeline.equal_to_queries()
        assert await types(pipeline.target_url, "SELECT * FROM mirror.typed") == await types(
            pipeline.source_url, HELPERS["typed"].queries[""]
        )


async def types(url: str, query: str) -> dict[str, str]:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        await connection.execute(f"CREATE TEMP VIEW shown AS {query}".encode())
        found = await connection.execute(
            "SELECT attname, atttypid::regtype::text FROM pg_attribute"
            " WHERE attrelid = 'shown'::regclass AND attname NOT LIKE '\\_tailrace%'"
        )
        return dict(await found.fetchall())


async def test_h07_a_row_of_a_new_key_is_derived_though_its_event_is_not_whole(deriving: Make) -> None:
    """The update of the key leaves the note out of the log; `by_customer` does not even read it."""
    async with deriving("by_customer", "named", "dear", "owned") as pipeline:
        shop = Shop(pipeline.source_url, seed=3)
        await shop.open(statements=0)
        order = "'open', 'c' || n, 60, 1, 1, now(), repeat('x', 5000) || n, NULL, NULL, n"
        await execute(
            pipeline.source_url,
            "ALTER TABLE orders ALTER note SET STORAGE EXTERNAL",
            f"INSERT INTO orders SELECT n, n % 3, {order} FROM generate_series(1, 9) n",
        )
        pipeline.start_all()
        await pipeline.equal_to_queries()
        await execute(
            pipeline.source_url,
            "UPDATE orders SET id = id + 100 WHERE id < 6",
            "UPDATE orders SET total = 70, customer_id = 7 WHERE id = 103",
            "UPDATE orders SET note = 'short' WHERE id = 104",
            "DELETE FROM orders WHERE id = 105",
        )
        await pipeline.equal_to_queries(fenced=True)


@pytest.mark.thorough
@pytest.mark.parametrize("helpers", [OF_THE_SHOP, OTHERS], ids=["copied", "others"])
async def test_every_helper_equals_its_query(deriving: Make, helpers: tuple[str, ...]) -> None:
    async with deriving(*helpers) as pipeline:
        shop = Shop(pipeline.source_url, seed=2)
        await shop.open()
        pipeline.start_all()
        await pipeline.state("capture", "streaming")
        await pipeline.derived()  # labels among it, which rows that come from here on find
        await shop.touch()
        for _ in range(2):
            await shop.work(150, pause_s=0.005)
            await pipeline.equal_to_queries(fenced=True)
