"""A capture of one source inside the test's process, and what it has published."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import orjson
import psycopg
import pytest
from aiokafka import TopicPartition
from aiokafka.structs import ConsumerRecord

from streamer.changes.lsn import parse_lsn
from streamer.changes.position import epoch_without_position
from streamer.config import Config, load
from streamer.errors import BadRecordError, ConfigError, FatalError
from streamer.kafka import admin, offset_ranges, read_to_end
from streamer.postgres import stream
from streamer.runner import run_capture
from streamer.status import StatusWriter

WAIT_S = 60.0
PARTITIONS = 2


class Capture:
    """A capture of `source` in this process."""

    source = "shop"

    def __init__(self, config: Config) -> None:
        self.config = config
        self.stop = asyncio.Event()
        self.status = StatusWriter(
            config.kafka.brokers, config.kafka.security, config.name, kind="capture", part_name=self.source
        )
        self.task: asyncio.Task[None] | None = None

    def start(self) -> None:
        brokers = self.config.kafka.brokers
        work = run_capture(self.config, self.source, brokers=brokers, stop=self.stop, status=self.status)
        self.task = asyncio.create_task(work)

    async def until(self, reached: Callable[[], bool]) -> None:
        """Wait for a state; the capture's own error, if it ends with one, is raised."""
        assert self.task is not None
        async with asyncio.timeout(WAIT_S):
            while not reached():
                if self.task.done():
                    await self.task
                    raise AssertionError("the capture ended before the state was reached")
                await asyncio.sleep(0.02)

    @property
    def findings(self) -> list[str]:
        return list(self.status.record.detail.get("findings") or ())

    @property
    def looks(self) -> int:
        """How often the catalogue has been looked at in this session."""
        return int(self.status.record.detail.get("looks") or 0)

    async def state(self, state: str) -> None:
        await self.until(lambda: self.status.record.state == state)

    async def position_at(self, lsn: int) -> None:
        await self.until(lambda: (self.status.record.detail.get("lsn") or 0) >= lsn)

    async def caught_up(self) -> None:
        await self.position_at(await current_lsn(self.config.sources["shop"].url.get_secret_value()))

    async def end(self) -> None:
        self.stop.set()
        if self.task is not None:
            async with asyncio.timeout(WAIT_S):
                await self.task

    async def kill(self) -> None:
        """As kill -9 does it: nothing is flushed or confirmed. (Its sockets close.)"""
        assert self.task is not None
        self.task.cancel()
        await asyncio.wait([self.task])


C = TypeVar("C", bound=Capture)


@asynccontextmanager
async def capturing(config: Config, kind: type[C] = Capture) -> AsyncIterator[C]:
    capture = kind(config)
    capture.start()
    try:
        await capture.state("streaming")
        yield capture
    finally:
        await capture.end()


async def fails(config: Config, kind: type[C] = Capture) -> Exception:
    """The error that the capture ends with."""
    capture = kind(config)
    capture.start()
    assert capture.task is not None
    async with asyncio.timeout(WAIT_S):
        with pytest.raises((BadRecordError, ConfigError, FatalError)) as caught:
            await capture.task
    assert capture.status.record.state == "error"
    return caught.value


@pytest.fixture
def make_config(
    tmp_path: Path, kafka: str, kafka_name: str, clean_topics: None, look_often: None
) -> Callable[..., Config]:
    def make(url: str, **source: Any) -> Config:
        entry = {
            "kind": "postgres",
            "url": url,
            "tables": {"public.*": {}},
            "slot": {"name": kafka_name},
            "publication": {"name": kafka_name},
            "heartbeat": "1s",
        }
        path = tmp_path / "tailrace.yaml"
        document = {
            "name": kafka_name,
            "kafka": {"brokers": kafka, "topics": {"partitions": PARTITIONS}},
            "sources": {"shop": {**entry, **source}},
        }
        path.write_bytes(orjson.dumps(document))
        return load(path)

    return make


async def current_lsn(url: str) -> int:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        row = await (await connection.execute("SELECT pg_current_wal_lsn()::text")).fetchone()
    assert row is not None
    return parse_lsn(row[0])


async def run(url: str, *statements: str) -> None:
    async with await psycopg.AsyncConnection.connect(url, autocommit=True) as connection:
        for statement in statements:
            await connection.execute(statement)


async def until(reached: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(WAIT_S):
        while not await reached():  # noqa: ASYNC110  a server's state, which tells nobody when it changes
            await asyncio.sleep(0.05)


async def until_another_epoch(target_url: str) -> None:
    """Before positions are lost: without them the epoch is the clock's, in whole seconds, and to be above
    what the target has it may not be of the same second."""
    async with await psycopg.AsyncConnection.connect(target_url) as connection:
        cursor = await connection.execute("SELECT max(last_epoch) FROM _tailrace.checkpoints")
        (begun,) = await cursor.fetchone() or (0,)

    async def later() -> bool:
        return epoch_without_position(time.time()) > begun

    await until(later)


async def events(config: Config, table: str) -> list[ConsumerRecord[bytes, bytes]]:
    """The committed records of a table's topic."""
    topic = f"shop.public.{table}"
    places = [TopicPartition(topic, p) for p in range(PARTITIONS)]
    ranges = await offset_ranges(config.kafka.brokers, None, places)
    return await read_to_end(config.kafka.brokers, None, ranges, committed=True)


def values(records: list[ConsumerRecord[bytes, bytes]], *, floors: bool = False) -> list[dict[str, Any]]:
    """Events in the order of their versions: those of rows, or the floors that end a first copy."""
    found = [orjson.loads(r.value) for r in records if r.value is not None]
    found = [value for value in found if (value["op"] == "m") == floors]
    return sorted(
        found, key=lambda v: (v["source"]["epoch"], v["source"]["commit_lsn"], v["source"]["ordinal"])
    )


async def confirmed_lsn(config: Config) -> int:
    source = config.sources["shop"]
    async with await psycopg.AsyncConnection.connect(source.url.get_secret_value()) as connection:
        cursor = await connection.execute(
            "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = %s",
            (source.slot.name,),
        )
        row = await cursor.fetchone()
    assert row is not None
    return parse_lsn(row[0])


@pytest.fixture
async def clean_topics(kafka: str) -> AsyncIterator[None]:
    """Data topics are named by the source, which is `shop` in every such test."""
    yield
    async with admin(kafka, None) as client:

        async def gone() -> bool:
            return not [t for t in await client.list_topics() if t.startswith("shop.")]

        if not await gone():
            await client.delete_topics([t for t in await client.list_topics() if t.startswith("shop.")])
        await until(gone)


@pytest.fixture
def look_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seconds between looks at the catalogue, and until an idle position is recorded, are long for a test."""
    monkeypatch.setattr(stream, "LOOK_S", 0.1)
    monkeypatch.setattr(stream, "INSPECT_S", 0.3)
    monkeypatch.setattr(stream, "IDLE_FLUSH_S", 0.2)
