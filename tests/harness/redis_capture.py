"""A capture of a Redis source inside the test's process, its server, and the fold of what it publishes."""

from __future__ import annotations

from base64 import b64decode
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import pytest
import redis.asyncio as aioredis
from aiokafka import TopicPartition
from aiokafka.structs import ConsumerRecord

from streamer.changes.topics import bad_topic, entity_topic, message_topic, shadow_topic
from streamer.config import Config, load
from streamer.kafka import admin, offset_ranges, read_to_end
from streamer.publisher.topics import describe
from streamer.sandbox import ValkeyServer
from tests.harness.capture import PARTITIONS, Capture, capturing, fails, until

ENTITIES: dict[str, Any] = {
    "players": {"pattern": "player:{id}", "type": "hash", "columns": {"score": "int", "name": "text"}},
    "scores": {
        "pattern": "board:{period}",
        "type": "zset",
        "rows": {"member": "user_id", "score": "points"},
    },
    "sessions": {"pattern": "session:{sid}", "type": "string", "value": "json"},
    "notes": {"pattern": "note:{id}", "type": "string", "expires_at": "until"},
    "fields": {"pattern": "field:{id}", "type": "hash", "rows": {"field": "f", "value": "v"}},
    "tags": {"pattern": "tag:{id}", "type": "set", "rows": {"member": "tag"}},
    "whole": {"pattern": "whole:{id}", "type": "set"},
    "queue": {"pattern": "queue:{id}", "type": "list", "rows": {"index": "i", "value": "v"}},
    "lists": {"pattern": "list:{id}", "type": "list"},
    "log": {"pattern": "log:{id}", "type": "stream", "rows": {"id": "entry"}},
}


@dataclass
class Fold:
    """One entity's topic, read from its start."""

    records: list[ConsumerRecord[bytes, bytes]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)
    rows: dict[bytes, dict[str, Any]] = field(default_factory=dict)  # by key, deletes taken out
    floors: list[int] = field(default_factory=list)  # epochs

    def ops(self, key: bytes | None = None) -> str:
        """c, u, d, r in the order of the log; of one key when it is given."""
        chosen = [r for r in self.records if r.value is not None and key in (None, r.key)]
        return "".join(op for op in (orjson.loads(r.value)["op"] for r in chosen) if op != "m")

    @property
    def plain(self) -> list[dict[str, Any]]:
        """The rows, sorted by key."""
        return [self.rows[key] for key in sorted(self.rows)]


class RedisCapture(Capture):
    """A capture of the source `game`."""

    source = "game"

    def detail(self, name: str) -> Any:
        return self.status.record.detail.get(name)

    async def healed(self, gaps: int) -> None:
        """So many gaps were seen, and none is open."""
        await self.until(
            lambda: (self.detail("gaps_seen") or 0) >= gaps and self.detail("unhealed_since_us") is None
        )


capturing_redis = partial(capturing, kind=RedisCapture)
fails_redis = partial(fails, kind=RedisCapture)


async def until_rows(config: Config, entity: str, wanted: dict[bytes, dict[str, object]]) -> Fold:
    """Until the fold of the entity's topic is this."""
    found = Fold()

    async def equal() -> bool:
        nonlocal found
        found = await fold(config, entity)
        return found.rows == wanted

    with suppress(TimeoutError):
        await until(equal)
    assert found.rows == wanted
    return found


async def until_count(config: Config, entity: str, rows: int) -> Fold:
    found = Fold()

    async def counted() -> bool:
        nonlocal found
        found = await fold(config, entity)
        return len(found.rows) == rows

    with suppress(TimeoutError):
        await until(counted)
    assert len(found.rows) == rows
    return found


async def gap_messages(config: Config) -> list[dict[str, Any]]:
    found = [m["message"] for m in await messages(config)]
    assert {m["prefix"] for m in found} <= {"tailrace.gap"}
    return [orjson.loads(b64decode(m["content"])) for m in found]


def keyed(rows: list[dict[str, object]], *key: str) -> dict[bytes, dict[str, object]]:
    """Rows by the JSON of their key's columns."""
    return {orjson.dumps({name: row[name] for name in key}): row for row in rows}


async def read_topic(config: Config, topic: str, partitions: int = 1) -> list[ConsumerRecord[bytes, bytes]]:
    async with admin(config.kafka.brokers, None) as client:
        if topic not in await describe(client):
            return []
    places = [TopicPartition(topic, p) for p in range(partitions)]
    ranges = await offset_ranges(config.kafka.brokers, None, places)
    return await read_to_end(config.kafka.brokers, None, ranges, committed=True)


async def fold(config: Config, entity: str, source: str = "game") -> Fold:
    """Read an entity's topic; versions must rise within each key, and a tombstone follows each delete."""
    found = Fold()
    found.records = await read_topic(config, entity_topic(source, entity), PARTITIONS)
    versions: dict[bytes, tuple[int, int, int]] = {}
    deleted: set[bytes] = set()
    for record in found.records:
        key = record.key
        if record.value is None:
            assert key in deleted, f"a tombstone without a delete: {key!r}"
            deleted.discard(key)
            continue
        value = orjson.loads(record.value)
        origin = value["source"]
        version = (origin["epoch"], origin["commit_lsn"], origin["ordinal"])
        if value["op"] == "m":
            found.floors.append(origin["epoch"])
            continue
        found.events.append(value)
        assert key not in deleted, f"an event between a delete and its tombstone: {key!r}"
        assert versions.get(key, (0, 0, -1)) < version, f"{key!r}: {versions.get(key)} then {version}"
        versions[key] = version
        if value["op"] == "d":
            found.rows.pop(key, None)
            deleted.add(key)
        else:
            found.rows[key] = value["after"]
    assert not deleted
    return found


async def messages(config: Config, source: str = "game") -> list[dict[str, Any]]:
    records = await read_topic(config, message_topic(source), PARTITIONS)
    return [orjson.loads(r.value) for r in records if r.value is not None]


async def bad_values(config: Config, source: str = "game") -> list[dict[str, Any]]:
    return [orjson.loads(r.value) for r in await read_topic(config, bad_topic(config.name, source))]


async def shadow_records(config: Config, source: str = "game") -> dict[bytes, bytes | None]:
    return {r.key: r.value for r in await read_topic(config, shadow_topic(config.name, source))}


@pytest.fixture
def redis_server(tmp_path: Path, redis_program: Path | None) -> Iterator[ValkeyServer]:
    """A server of the test's own, to flush, stop and start again."""
    folder = tmp_path / "valkey"
    folder.mkdir()
    with ValkeyServer(folder, program=redis_program) as server:
        yield server


@pytest.fixture
async def client(redis_server: ValkeyServer) -> AsyncIterator[aioredis.Redis]:
    connection = aioredis.from_url(redis_server.url)
    yield connection
    await connection.aclose()


@pytest.fixture
def make_redis_config(tmp_path: Path, kafka: str, kafka_name: str) -> Callable[..., Config]:
    """`entities`: of ENTITIES by name, or whole; other keys go to the source."""

    def make(url: str, entities: Any = ("players", "scores", "sessions"), **source: Any) -> Config:
        chosen = entities if isinstance(entities, dict) else {name: ENTITIES[name] for name in entities}
        path = tmp_path / "tailrace.yaml"
        document = {
            "name": kafka_name,
            "kafka": {"brokers": kafka, "topics": {"partitions": PARTITIONS}},
            "sources": {"game": {"kind": "redis", "url": url, "entities": chosen, **source}},
        }
        path.write_bytes(orjson.dumps(document))
        return load(path)

    return make


@pytest.fixture
async def clean_game_topics(kafka: str) -> AsyncIterator[None]:
    """Data topics are named by the source, which is `game` in every such test."""
    yield
    async with admin(kafka, None) as client:
        names = [name for name in await describe(client) if name.startswith("game.")]
        if names:
            await client.delete_topics(names)

        async def gone() -> bool:
            return not any(name.startswith("game.") for name in await describe(client))

        await until(gone)
