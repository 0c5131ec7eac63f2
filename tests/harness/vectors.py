"""A pgvector target with an embedding function that says what it was asked, fed by a log in memory."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from consumers.targets.base import FlowError, Outcome
from consumers.targets.vectors import VectorTarget
from consumers.testing import Log, LogTable
from streamer.config import Config, Flow, parse
from streamer.config import VectorTarget as Settings
from streamer.errors import ConfigError
from tests.harness.given import rows
from tests.harness.recorder import DIMENSIONS

COLUMNS = {"id": "integer", "title": "text", "body": "text", "tag": "text"}


def note(number: int, title: str = "t", body: str | None = "b", tag: str | None = "x") -> dict[str, Any]:
    return {"id": number, "title": title, "body": body, "tag": tag}


def config_for(url: str, flow: dict[str, Any] | None = None, target: dict[str, Any] | None = None) -> Config:
    wanted = {
        "from": "shop.public.*",
        "to": "vectors.search",
        "text": "{title}\n\n{body}",
        "embed": "recorded:embed",
        "dimensions": DIMENSIONS,
        **(flow or {}),
    }
    text = yaml.safe_dump(
        {
            "name": "acme",
            "sources": {"shop": {"kind": "postgres", "url": url, "tables": {"public.*": {}}}},
            "targets": {"vectors": {"kind": "pgvector", "url": url, **(target or {})}},
            "flows": {"notes": {k: v for k, v in wanted.items() if v is not None}},
        }
    )
    return parse(text, Path("tailrace.yaml"), environ={})


@dataclass
class Notes:
    url: str
    target: VectorTarget
    flows: list[Flow]
    log: Log
    table: LogTable

    async def apply(self) -> Outcome:
        return await self.log.apply(self.target, self.flows)

    async def stops(self) -> str:
        with pytest.raises(FlowError) as caught:
            await self.apply()
        assert isinstance(caught.value.cause, ConfigError)
        return str(caught.value.cause)

    async def chunks(self, columns: str = "id, _tailrace_chunk, text, tag") -> list[tuple[Any, ...]]:
        return await rows(self.url, f"SELECT {columns} FROM search.notes ORDER BY id, _tailrace_chunk")


@asynccontextmanager
async def opened(
    url: str,
    flow: dict[str, Any] | None = None,
    target: dict[str, Any] | None = None,
    log: Log | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> AsyncIterator[Notes]:
    config = config_for(url, flow, target)
    settings = config.targets["vectors"]
    assert isinstance(settings, Settings)
    flows = list(config.flows.values())
    session = VectorTarget(settings, "acme.vectors", flows, clock=clock)
    await session.open()
    log = log or Log("shop")
    try:
        yield Notes(url, session, flows, log, log.table("notes", COLUMNS))
    finally:
        await session.close()
