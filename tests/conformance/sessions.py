"""A session with the target under test, and the log that is applied to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from consumers.apply.checkpoint import Place
from consumers.apply.fold import Version
from consumers.targets.base import Batch, Outcome, TableChanges, Target
from consumers.testing import Log, LogTable
from streamer.config import Config, Flow
from tests.conformance.adapters.base import SCHEMA, SOURCE, Adapter, Row

PEOPLE = {"id": "integer", "name": "text", "note": "text"}


@dataclass(slots=True)
class Session:
    """`target` is open. `apply()` writes all of the log that is not in the target yet."""

    adapter: Adapter
    config: Config
    target: Target
    flows: list[Flow]
    log: Log

    async def apply(self) -> Outcome:
        return await self.log.apply(self.target, self.flows)

    async def stands(self) -> dict[Place, int]:
        found = await self.target.checkpoints(self.log.places(self.flows))
        return {place: checkpoint.next_offset for place, checkpoint in found.items()}

    async def batch(self) -> Batch:
        """What `apply` would write."""
        return await self.log.batch(self.flows, await self.stands())

    async def rows(self, table: str = "people") -> list[Row]:
        return sorted(await self.adapter.read_rows(table), key=lambda row: (row["id"], str(row)))

    @asynccontextmanager
    async def another(self) -> AsyncIterator[Session]:
        """A second session with the same store, as another process of the group has."""
        target = self.adapter.target(self.config)
        await target.open()
        try:
            yield Session(self.adapter, self.config, target, self.flows, self.log)
        finally:
            await target.close()


@asynccontextmanager
async def session(
    adapter: Adapter, flows: dict[str, dict[str, Any]] | None = None, *, log: Log | None = None
) -> AsyncIterator[Session]:
    config = adapter.config(flows)
    target = adapter.target(config)
    await target.open()
    try:
        yield Session(adapter, config, target, list(config.flows.values()), log or Log(SOURCE))
    finally:
        await target.close()


def people(log: Log, columns: dict[str, str] | None = None, key: Sequence[str] = ("id",)) -> LogTable:
    return log.table("people", columns or PEOPLE, key, identity="d" if key else "f")


def person(number: int, name: str = "a", note: str | None = None) -> Row:
    return {"id": number, "name": name, "note": note}


async def below(s: Session, table: LogTable, floor: Version) -> int:
    """How many rows of people a floor would take."""
    changes = TableChanges(
        "mirror", table.topic, table.record, SCHEMA, "people", [], {table.record.id}, floor
    )
    return await s.target.count_below(changes, 1000)
