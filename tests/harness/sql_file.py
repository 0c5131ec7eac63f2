"""The sql target on a SQLite file, fed by a log in memory, batch by batch."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from consumers.apply.checkpoint import Place
from consumers.targets.base import FlowError, Outcome
from consumers.targets.sql import SqlTarget
from consumers.testing import Log, LogTable
from streamer.config import Flow, parse
from streamer.config import SqlTarget as Settings
from streamer.errors import ConfigError

SOURCE = "shop"
PEOPLE = {"id": "integer", "name": "text", "email": "text"}
TO_PEOPLE = {"from": f"{SOURCE}.public.people", "to": "lite.main.people"}


@dataclass(slots=True)
class Lite:
    """`apply()` writes what the log has and the target does not have yet, in one batch."""

    file: Path
    target: SqlTarget
    flows: list[Flow]
    log: Log

    async def apply(self) -> Outcome:
        return await self.log.apply(self.target, self.flows)

    async def refused(self) -> str:
        """The error that stops the flow."""
        with pytest.raises(FlowError) as caught:
            await self.apply()
        assert isinstance(caught.value.cause, ConfigError)
        return str(caught.value.cause)

    async def part(self, partition: int) -> Outcome:
        """One partition's rest alone."""
        places = [place for place in self.log.places(self.flows) if place.partition == partition]
        checkpoints = await self.target.checkpoints(places)
        starts: dict[Place, int] = {place: c.next_offset for place, c in checkpoints.items()}
        batch = await self.log.batch(self.flows, starts)
        return await self.target.apply(batch) if batch.moves else Outcome()

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        return run(self.file, query)

    def rewind(self) -> None:
        run(self.file, "UPDATE _tailrace_checkpoints SET next_offset = 0")


def run(file: Path, *statements: str) -> list[tuple[Any, ...]]:
    """What the last one gives."""
    rows: list[tuple[Any, ...]] = []
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        for statement in statements:
            rows = connection.execute(statement).fetchall()
    return rows


def target_of(file: Path, flows: dict[str, dict[str, Any]], group: str = "acme.lite") -> SqlTarget:
    text = yaml.safe_dump(
        {
            "name": "acme",
            "sources": {SOURCE: {"kind": "postgres", "url": "postgresql://u@h/d", "tables": {"*.*": {}}}},
            "targets": {"lite": {"kind": "sql", "url": f"sqlite:///{file}"}},
            "flows": {
                name: {"from": f"{SOURCE}.public.*", "to": "lite", **flow} for name, flow in flows.items()
            },
        }
    )
    config = parse(text, Path("tailrace.yaml"), environ={})
    settings = config.targets["lite"]
    assert isinstance(settings, Settings)
    return SqlTarget(settings, group, list(config.flows.values()))


@asynccontextmanager
async def lite(
    file: Path, *flows: dict[str, Any], partitions: int = 2, log: Log | None = None
) -> AsyncIterator[Lite]:
    """`flows`: their keys; one of every table of the schema `public` unless they say otherwise."""
    target = target_of(file, {f"flow{n}": flow for n, flow in enumerate(flows or ({},))})
    await target.open()
    try:
        yield Lite(file, target, list(target._flows), log or Log(SOURCE, partitions=partitions))
    finally:
        await target.close()


def person(n: int, name: str = "a", email: str | None = None) -> dict[str, Any]:
    return {"id": n, "name": name, "email": email}


def people(at: Lite) -> LogTable:
    return at.log.table("people", PEOPLE)
