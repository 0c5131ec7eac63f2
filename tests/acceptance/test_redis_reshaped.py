"""An entity of Redis that gets other columns, or another key: the cure that is printed mends its copy."""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis.asyncio as aioredis

from streamer.sandbox import ValkeyServer
from tests.harness.pipeline import Pipeline, execute

ROWS = {"member": "user_id", "score": "points"}
BEFORE: dict[str, Any] = {
    "cast": {"pattern": "cast:{id}", "type": "zset", "rows": ROWS},
    "renamed": {"pattern": "renamed:{id}", "type": "zset", "rows": ROWS},
    "split": {"pattern": "split:{id}", "type": "zset"},
}
AFTER: dict[str, Any] = {
    "cast": {**BEFORE["cast"], "columns": {"points": "int"}},
    "renamed": {**BEFORE["renamed"], "rows": {"member": "who", "score": "points"}},
    "split": {**BEFORE["split"], "rows": ROWS},
}


COPIED = [("d", "u1", 1.0), ("d", "u2", 2.0)]


class Copy:
    """The target's tables, of either kind."""

    def __init__(self, url: str, file: Path | None) -> None:
        self._url = url
        self._file = file

    async def run(self, statement: str) -> None:
        if self._file is None:
            await execute(self._url, statement)
            return
        with closing(sqlite3.connect(self._file, isolation_level=None)) as line:
            line.execute(statement)

    async def rows(self, table: str) -> list[tuple[Any, ...]]:
        """The first three columns."""
        try:
            if self._file is None:
                async with await psycopg.AsyncConnection.connect(self._url) as connection:
                    cursor = await connection.execute(f"SELECT * FROM game.{table}".encode())
                    return sorted(row[:3] for row in await cursor.fetchall())
            with closing(sqlite3.connect(f"file:{self._file}?mode=ro", uri=True)) as line:
                return sorted(row[:3] for row in line.execute(f"SELECT * FROM {table}"))
        except (sqlite3.OperationalError, psycopg.errors.UndefinedTable):
            return []


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["postgres", "sqlite"])
async def test_the_printed_cure_of_an_entity_with_another_key_or_type(
    tmp_path: Path, redis_server: ValkeyServer, target_database: str, kafka: str, kafka_name: str, kind: str
) -> None:
    source, folder = f"{kafka_name}_game", tmp_path / "pipeline"
    copy = Copy(target_database, folder / "copy.db" if kind == "sqlite" else None)
    to = "copy.main" if kind == "sqlite" else "copy.game"
    async with (
        aioredis.from_url(redis_server.url) as client,
        Pipeline(
            folder,
            source_url=redis_server.url,
            target_url=target_database,
            brokers=kafka,
            name=kafka_name,
            flows={name: {"from": f"{source}.{name}", "to": to} for name in BEFORE},
        ) as game,
    ):
        game.source = source
        game.config["sources"] = {source: {"kind": "redis", "url": redis_server.url, "entities": BEFORE}}
        if kind == "sqlite":
            game.config["targets"] = {"copy": {"kind": "sql", "url": "sqlite:///copy.db"}}
        game.write_config()

        async def there() -> bool:
            return all([await copy.rows(name) for name in BEFORE])

        async def captured() -> bool:
            """Changes that nothing applies yet."""
            records = [r for r in await game.status("capture") if r.pid == alone.pid]
            published = [record.detail.get("tables") or {} for record in records]
            return any(t and all(entity["captured"] for entity in t.values()) for t in published)

        async def anew() -> bool:
            return all([await copy.rows(name) == COPIED for name in AFTER])

        async def says(pattern: str) -> bool:
            found = re.search(pattern, run.log(), re.DOTALL)
            told[:] = found.groups() if found else ()
            return bool(told)

        async def reset() -> None:
            await run.stop()
            code, text = await game.run("reset", source, "--yes")
            assert code == 0, text

        told: list[str] = []
        for name in BEFORE:
            await client.zadd(f"{name}:d", {"u1": 1, "u2": 2})
        run = game.start("run")
        await game.until("the rows are there", there)
        await run.stop()
        alone = game.start("capture")
        for name in BEFORE:
            await client.zadd(f"{name}:d", {"u1": 3, "u3": 3})
        await game.until("changes wait", captured)
        await alone.stop()
        for name in BEFORE:
            await client.delete(f"{name}:d")
            await client.zadd(f"{name}:d", {"u1": 1, "u2": 2})
        game.config["sources"][source]["entities"] = AFTER
        game.write_config()
        run = game.start("run")
        await game.until("the capture stops", lambda: says(r"the row key ([^\n]*)\n[^\n]*?-> ([^\n]*)"))
        what, cure = told
        assert "of entity renamed was (id, user_id) and is (id, who)" in what
        assert "of entity split was (id) and is (id, user_id)" in what
        assert "entity cast" not in what
        assert f"drop the tables that have the old one ({to}.renamed, {to}.split)" in cure
        assert f"`tailrace reset {source} --yes`" in cure
        for name in ("renamed", "split"):
            await copy.run(f"DROP TABLE {'' if kind == 'sqlite' else 'game.'}{name}")
        await reset()
        run = game.start("run")
        await game.until("the flow stops", lambda: says(r"flow cast stops: [^\n]*\n[^\n]*?-> ([^\n]*)"))
        # What stands in front of the statement that mends the table.
        statement = told[0].split("Tailrace made, " if kind == "sqlite" else "-> ", 1)[-1].partition(";")[0]
        await copy.run(statement)
        if "tailrace reset" in told[0]:
            await reset()
            game.start("run")
        await game.until("all is copied anew", anew)
