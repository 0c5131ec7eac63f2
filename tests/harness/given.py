"""A Postgres target on tables that are there already, fed by a log in memory, batch by batch."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import yaml

from consumers.apply.checkpoint import Place
from consumers.targets.base import FlowError, Outcome
from consumers.targets.postgres import PostgresTarget
from consumers.testing import Log, LogTable
from streamer.config import Flow, parse
from streamer.config import PostgresTarget as Settings

SOURCE = "shop"
PEOPLE = {"id": "integer", "full_name": "text", "seen": "text", "extra": "text"}


@dataclass(slots=True)
class Given:
    """`apply()` writes what the log has and the target does not have yet, in one batch."""

    url: str
    target: PostgresTarget
    flows: list[Flow]
    log: Log

    async def apply(self) -> Outcome:
        return await self.log.apply(self.target, self.flows)

    async def refused(self) -> str:
        """The error that stops the flow."""
        try:
            await self.apply()
        except FlowError as error:
            return str(error.cause)
        raise AssertionError("the batch went through")

    async def rows(self, query: str) -> list[tuple[Any, ...]]:
        return await rows(self.url, query)

    async def rewind(self) -> None:
        """All of the log again."""
        await execute(self.url, "UPDATE _tailrace.checkpoints SET next_offset = 0")

    async def part(self, partition: int) -> Outcome:
        """One partition's rest alone."""
        places = [place for place in self.log.places(self.flows) if place.partition == partition]
        checkpoints = await self.target.checkpoints(places)
        starts: dict[Place, int] = {place: c.next_offset for place, c in checkpoints.items()}
        batch = await self.log.batch(self.flows, starts)
        return await self.target.apply(batch) if batch.moves else Outcome()


async def execute(url: str, *statements: str) -> None:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        for statement in statements:
            await connection.execute(statement)


async def rows(url: str, query: str) -> list[tuple[Any, ...]]:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        await connection.execute("SET TimeZone = 'UTC'")
        return await (await connection.execute(query)).fetchall()


@asynccontextmanager
async def given(url: str, flow: dict[str, Any] | None = None, *, partitions: int = 2) -> AsyncIterator[Given]:
    """`flow`: its keys; from every table to the schema `own` unless they say otherwise."""
    text = yaml.safe_dump(
        {
            "name": "acme",
            "sources": {SOURCE: {"kind": "postgres", "url": url, "tables": {"public.*": {}}}},
            "targets": {"copy": {"kind": "postgres", "url": url}},
            "flows": {"mirror": {"from": f"{SOURCE}.public.*", "to": "copy.own", **(flow or {})}},
        }
    )
    config = parse(text, Path("tailrace.yaml"), environ={})
    settings = config.targets["copy"]
    assert isinstance(settings, Settings)
    flows = list(config.flows.values())
    target = PostgresTarget(settings, "acme.copy", flows)
    await target.open()
    try:
        yield Given(url, target, flows, Log(SOURCE, partitions=partitions))
    finally:
        await target.close()


def person(
    n: int, name: str = "a", seen: str | None = "2026-01-02 03:04:05+02", extra: str = "x"
) -> dict[str, Any]:
    return {"id": n, "full_name": name, "seen": seen, "extra": extra}


def people(at: Given) -> LogTable:
    return at.log.table("people", PEOPLE)
