"""The memory target: its store is in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any, ClassVar

import pytest

from consumers.apply.checkpoint import Place
from consumers.targets.base import Target
from consumers.targets.memory import MemoryStore, MemoryTarget, forget_memory, memory_store
from streamer import config as settings
from tests.conformance.adapters.base import NAME, SCHEMA, Adapter, Row


class MemoryAdapter(Adapter):
    abilities: ClassVar[frozenset[str]] = frozenset({"keyless", "tables", "schemas"})

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._sessions: list[MemoryTarget] = []

    @classmethod
    @asynccontextmanager
    async def ready(cls, request: pytest.FixtureRequest) -> AsyncIterator[Adapter]:
        forget_memory(NAME, "copy")
        yield cls("")
        forget_memory(NAME, "copy")

    @property
    def store(self) -> MemoryStore:
        return memory_store(self.name, "copy")

    def settings(self) -> dict[str, Any]:
        return {"kind": "memory"}

    def target(self, config: settings.Config, group: str = f"{NAME}.copy") -> Target:
        given = config.targets["copy"]
        assert isinstance(given, settings.MemoryTarget)
        session = MemoryTarget(given, group, list(config.flows.values()), store=self.store)
        self._sessions.append(session)
        return session

    async def read_rows(self, table: str, schema: str = SCHEMA) -> list[Row]:
        return self.store.rows(schema, table)

    async def cut(self) -> None:
        for session in self._sessions:
            await session.close()

    async def refuse(self, table: str, columns: Sequence[str], word: str) -> None:
        def rule(row: Row) -> str | None:
            return f"the name may not be {word!r}" if row["name"] == word else None

        self.store.rules[SCHEMA, table] = rule

    async def accept(self, table: str) -> None:
        del self.store.rules[SCHEMA, table]

    async def make_table(self, table: str, columns: Sequence[str]) -> None:
        self.store.make_table(SCHEMA, table, columns)

    async def rewind(self, places: Sequence[Place], offset: int = 0) -> None:
        stands = self.store.stands
        for place in places:
            stands[place] = replace(stands[place], next_offset=offset)

    async def tombstones(self) -> int:
        return len(self.store.tombstones)
