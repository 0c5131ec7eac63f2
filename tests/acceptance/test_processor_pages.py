"""What docs/processors.md and config/examples/orders_by_customer say is run as it stands there."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import yaml
from redis.asyncio import Redis

from streamer.sandbox import Sandbox
from tests.harness.page import block, blocks
from tests.harness.pipeline import REPO, Pipeline, execute

PAGE = REPO / "docs" / "processors.md"
EXAMPLE = REPO / "config" / "examples" / "orders_by_customer"
EXAMPLES = ("### Orders with their customers' names", "### Revenue per customer")
OWN_AGENT = "### An agent of your own, with a table"
LONG_S = 90.0  # `tailrace run` starts five processes, each importing for itself

SHOP = (
    "INSERT INTO customers SELECT n, 'customer ' || n FROM generate_series(1, 8) n",
    "INSERT INTO orders SELECT n, nullif(n % 10, 0), CASE n % 4 WHEN 0 THEN 'cancelled' ELSE 'paid' END,"
    " n * 1.25 FROM generate_series(1, 60) n",
)
CHANGES = (
    "UPDATE customers SET name = 'renamed' WHERE id = 3",
    "INSERT INTO customers VALUES (9, 'late')",
    "DELETE FROM customers WHERE id = 5",
    "UPDATE orders SET customer_id = 1, total = total + 0.01 WHERE id % 7 = 0",
    "UPDATE orders SET status = 'cancelled' WHERE id % 11 = 0",
    "UPDATE orders SET id = id + 1000 WHERE id % 13 = 0",
    "DELETE FROM orders WHERE id < 6",
)
EXAMPLE_SHOP = (
    "INSERT INTO orders SELECT n, n % 9, CASE n % 5 WHEN 0 THEN 'cancelled' ELSE 'paid' END, n * 1.10,"
    " '2026-03-01T00:00Z'::timestamptz + n * interval '7 hours' FROM generate_series(1, 80) n",
)
EXAMPLE_CHANGES = (
    "UPDATE orders SET customer_id = 20, total = 0.07 WHERE id % 6 = 0",
    "UPDATE orders SET status = 'cancelled' WHERE customer_id = 2",
    "DELETE FROM orders WHERE id % 8 = 0",
)


@pytest.fixture
def three(kafka_archive: None, sandbox_folder: Path | None) -> Iterator[Sandbox]:
    """Topics are named as the pages name them, so Kafka is the test's own."""
    with Sandbox(postgres=2, kafka=1, valkey=1, fast=True, dir=sandbox_folder) as sandbox:
        yield sandbox


class Pages(Pipeline):
    """The processes of a config that is there already."""

    def write_config(self) -> None:
        pass


@asynccontextmanager
async def running(
    folder: Path, config: str, sandbox: Sandbox, monkeypatch: pytest.MonkeyPatch, name: str
) -> AsyncIterator[Pages]:
    """`tailrace run` of the config in a fresh database on each side."""
    urls = []
    for server in sandbox.postgres:
        await execute(server.url, f"CREATE DATABASE {name}")
        urls.append(server.url_of(name))
    monkeypatch.setenv("KAFKA", sandbox.kafka.bootstrap)
    monkeypatch.setenv("SHOP_URL", urls[0])
    monkeypatch.setenv("REPORTS_URL", urls[1])
    monkeypatch.setenv("CACHE_URL", sandbox.valkey[0].url)
    async with Pages(
        folder, source_url=urls[0], target_url=urls[1], brokers=sandbox.kafka.bootstrap, name=name
    ) as pipeline:
        pipeline.config_path.write_text(config, encoding="utf-8")
        pipeline.slot = f"tailrace_{yaml.safe_load(os.path.expandvars(config))['name']}_shop"
        yield pipeline


async def equal(pipeline: Pages, query: str, table: str) -> None:
    wanted = await rows(pipeline.source_url, query)
    names = ", ".join(f'"{name}"' for name in await columns(pipeline.source_url, query))
    found: Any = None

    async def check() -> bool:
        nonlocal found
        try:
            found = await rows(pipeline.target_url, f"SELECT {names} FROM {table}")
        except psycopg.errors.UndefinedTable:
            return False
        return bool(found == wanted)

    try:
        await pipeline.until(f"{table} is what its query gives", check, LONG_S)
    except AssertionError as error:
        raise AssertionError(f"{found}\nis not\n{wanted}\n{error}") from None


async def rows(url: str, query: str) -> list[str]:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        found = await connection.execute(f"SELECT q::text FROM ({query}) q ORDER BY 1".encode())
        return [text for (text,) in await found.fetchall()]


async def columns(url: str, query: str) -> list[str]:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        found = await connection.execute(f"SELECT * FROM ({query}) q LIMIT 0".encode())
        return [column.name for column in found.description or ()]


def test_the_page_names_every_helper_as_it_is_imported() -> None:
    """The import of the page works, and has what the table and the measures have."""
    names: dict[str, Any] = {}
    exec(block(PAGE, "## Helpers", "python"), names)
    text = PAGE.read_text(encoding="utf-8")
    table = set(re.findall(r"^\| `(\w+)\(", text, re.MULTILINE))
    measures = set(re.findall(r"`(\w+)\(", text[text.index("\nMeasures: ") :].split("\n\n", 1)[0])) - {
        "aggregate"
    }
    assert table | measures == names.keys() - {"__builtins__"}


@pytest.mark.thorough
async def test_the_pages_worked_examples(
    three: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, whole = blocks(PAGE, "## Worked examples")[:2]
    config = yaml.safe_load(whole.text)
    for heading in (*EXAMPLES, OWN_AGENT):
        code = block(PAGE, heading, "python")
        (tmp_path / code.split("\n", 1)[0].removeprefix("# ")).write_text(code, encoding="utf-8")
        for section, entries in yaml.safe_load(block(PAGE, heading, "yaml")).items():
            config.setdefault(section, {}).update(entries)
    async with running(tmp_path, yaml.safe_dump(config), three, monkeypatch, "pages") as pipeline:
        await execute(pipeline.source_url, *shop.text.strip().splitlines(), *SHOP)
        pipeline.start("run")
        queries = [(block(PAGE, heading, "sql"), heading) for heading in EXAMPLES]
        tables = ("named_orders", "revenue")
        for (query, _), table in zip(queries, tables, strict=True):
            await equal(pipeline, query, table)
        await execute(pipeline.source_url, *CHANGES)
        for (query, _), table in zip(queries, tables, strict=True):
            await equal(pipeline, query, table)
        *_, statements, shown = blocks(PAGE, OWN_AGENT)
        await execute(pipeline.source_url, *statements.text.strip().splitlines())
        wanted = [tuple(line.split(" | ")) for line in shown.text.strip().splitlines()]

        async def lowest() -> bool:
            query = "SELECT id::text, name, lowest::text FROM lowest_prices ORDER BY id"
            async with await psycopg.AsyncConnection.connect(pipeline.target_url) as connection:
                try:
                    return await (await connection.execute(query)).fetchall() == wanted
                except psycopg.errors.UndefinedTable:
                    return False

        await pipeline.until("the agent's table is as the page shows it", lowest)
        assert (await pipeline.run("reconcile", "revenue"))[0] == 0


@pytest.mark.thorough
async def test_the_example_of_revenue_per_customer(
    three: Sandbox, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    readme = (EXAMPLE / "README.md").read_text(encoding="utf-8")
    ddl, report, query = re.findall(r"^```sql\n(.*?)^```$", readme, re.MULTILINE | re.DOTALL)
    (tmp_path / "processors.py").write_bytes((EXAMPLE / "processors.py").read_bytes())
    config = (EXAMPLE / "tailrace.yaml").read_text(encoding="utf-8")
    async with running(tmp_path, config, three, monkeypatch, "example") as pipeline:
        await execute(pipeline.source_url, ddl, *EXAMPLE_SHOP)
        pipeline.start("run")
        await equal(pipeline, query, "revenue_by_customer")
        await execute(pipeline.source_url, *EXAMPLE_CHANGES)
        await equal(pipeline, query, "revenue_by_customer")
        board = f"SELECT customer_id::text, revenue::float8 FROM ({query}) q"
        async with await psycopg.AsyncConnection.connect(pipeline.source_url) as connection:
            wanted = dict(await (await connection.execute(board.encode())).fetchall())

        async def shown() -> bool:
            async with Redis.from_url(three.valkey[0].url, decode_responses=True) as client:
                return dict(await client.zrange("board:revenue", 0, -1, withscores=True)) == wanted

        await pipeline.until("the leaderboard is the query's", shown)
        best = f"SELECT * FROM ({query}) q ORDER BY revenue DESC LIMIT 10"
        shown_rows = await rows(pipeline.target_url, report.partition("\n")[2].strip().rstrip(";"))
        assert shown_rows == await rows(pipeline.source_url, best)
