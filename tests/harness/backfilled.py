"""A table to be copied, and what backfills have published of it."""

from __future__ import annotations

from typing import Any

from streamer.config import Config
from tests.harness.capture import events, values

ROWS = 5_000
TABLE = (
    "CREATE TABLE t (id int PRIMARY KEY, v text)",
    f"INSERT INTO t SELECT g, 'v' || g FROM generate_series(1, {ROWS}) g",
)


async def again(config: Config, table: str) -> list[dict[str, Any]]:
    """What backfills have published of a table."""
    found = values(await events(config, table))
    return [value for value in found if value["source"]["snapshot"] == "incremental"]
