"""The Redis target, as hashes and as JSON, on a Valkey that is emptied for each test."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar
from urllib.parse import urlsplit

import pytest
from hiredis import pack_command
from redis.asyncio import Redis

from consumers.apply.checkpoint import Place
from consumers.targets import redis_batch_script as scripts
from consumers.targets.base import Batch, Outcome, Target
from consumers.targets.redis import RedisTarget
from consumers.targets.redis_write import Request, place_field
from streamer import config as settings
from tests.conformance.adapters.base import NAME, SCHEMA, Adapter, Row

PEOPLE = ("id", "name", "note")


class RedisAdapter(Adapter):
    """`layout`: the flows' `as`."""

    abilities: ClassVar[frozenset[str]] = frozenset({"durable", "schemas"})
    killed_at: ClassVar[str | None] = "consumers.targets.redis_one:send"
    tells_versions: ClassVar[bool] = False
    layout: ClassVar[str]

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._refused: dict[str, str] = {}

    @classmethod
    @asynccontextmanager
    async def ready(cls, request: pytest.FixtureRequest) -> AsyncIterator[Adapter]:
        adapter = cls(request.getfixturevalue("valkey"))
        for step in range(2):
            async with adapter.client() as client:
                await client.flushall()
            if not step:
                yield adapter

    def settings(self) -> dict[str, Any]:
        return {"kind": "redis", "url": self.address}

    def flow(self, keys: dict[str, Any]) -> dict[str, Any]:
        return {**keys, "as": self.layout}

    def target(self, config: settings.Config, group: str = f"{NAME}.copy") -> Target:
        given = config.targets["copy"]
        assert isinstance(given, settings.RedisTarget)
        return _Occupied(given, group, list(config.flows.values()), self)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Redis]:
        client = Redis.from_url(self.address, protocol=2)
        try:
            yield client
        finally:
            await client.aclose()

    async def read_rows(self, table: str, schema: str = SCHEMA) -> list[Row]:
        rows = []
        async with self.client() as client:
            async for key in client.scan_iter(match=f"{schema}:{table}:*", _type=self.redis_type):
                row = await self.read(client, key)
                if row is not None:
                    rows.append(row)
        return rows

    redis_type: ClassVar[str]

    async def read(self, client: Redis, key: bytes) -> Row | None:
        """None: it was deleted since the scan."""
        raise NotImplementedError

    async def cut(self) -> None:
        async with self.client() as client:
            await client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    async def refuse(self, table: str, columns: Sequence[str], word: str) -> None:
        """A key that somebody else holds, with another type: what this store refuses a row for."""
        self._refused[table] = word

    async def accept(self, table: str) -> None:
        del self._refused[table]
        async with self.client() as client:
            async for key in client.scan_iter(match=f"{SCHEMA}:{table}:*", _type="list"):
                await client.delete(key)

    async def occupy(self, batch: Batch) -> None:
        for changes in batch.tables:
            word = self._refused.get(changes.table)
            for fold in changes.folds:
                for write in fold.writes():
                    if word is not None and write.row.get("name") == word:
                        async with self.client() as client:
                            await client.rpush(
                                f"{changes.schema}:{changes.table}:{write.row['id']}", "theirs"
                            )

    async def make_table(self, table: str, columns: Sequence[str]) -> None:
        raise NotImplementedError("Redis has no tables")

    async def rewind(self, places: Sequence[Place], offset: int = 0) -> None:
        async with self.client() as client:
            for place in places:
                known = await client.hget("_tailrace:checkpoints", place_field(place))
                _, _, rest = known.partition(b" ")
                await client.hset("_tailrace:checkpoints", place_field(place), b"%d %b" % (offset, rest))

    async def tombstones(self) -> int:
        count = 0
        async with self.client() as client:
            async for key in client.scan_iter(match="_tailrace:gone:*"):
                count += await client.zcard(key)
        return count

    async def before_the_kill(self, *args: Any) -> None:
        """Rows and checkpoints are one command: all of it but its last bytes is in the server."""
        request = args[1]
        assert isinstance(request, Request)
        parts = ("EVAL", scripts.APPLY, len(request.keys), *request.keys, *request.args)
        command = pack_command(parts)
        url = urlsplit(self.address)
        _, writer = await asyncio.open_connection(url.hostname, url.port)
        writer.write(pack_command(("AUTH", url.password or "")) + command[:-10])
        await writer.drain()
        async with self.client() as client:
            await client.ping()


class _Occupied(RedisTarget):
    def __init__(
        self, given: settings.RedisTarget, group: str, flows: Sequence[settings.Flow], adapter: RedisAdapter
    ) -> None:
        super().__init__(given, group, flows)
        self._adapter = adapter

    async def apply(self, batch: Batch) -> Outcome:
        await self._adapter.occupy(batch)
        return await super().apply(batch)


class RedisHashAdapter(RedisAdapter):
    """A hash has no field for null: columns that a flow is known to send are filled in."""

    layout = "hash"
    redis_type = "hash"

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._columns: dict[str, tuple[str, ...]] = {"people": PEOPLE}

    def flow(self, keys: dict[str, Any]) -> dict[str, Any]:
        columns: Mapping[str, Any] = keys.get("columns", {})
        self._columns["people"] = tuple(str(columns.get(name, name)) for name in PEOPLE)
        if keys.get("delete", "").startswith("soft("):
            self._columns["people"] += (keys["delete"][len("soft(") : -1],)
        return super().flow(keys)

    async def read_rows(self, table: str, schema: str = SCHEMA) -> list[Row]:
        rows = await super().read_rows(table, schema)
        return [{**dict.fromkeys(self._columns.get(table, ())), **row} for row in rows]

    async def read(self, client: Redis, key: bytes) -> Row | None:
        found = {name.decode(): value.decode() for name, value in (await client.hgetall(key)).items()}
        return {**found, "id": int(found["id"])} if found else None


class RedisJsonAdapter(RedisAdapter):
    layout = "json"
    redis_type = "string"

    async def read(self, client: Redis, key: bytes) -> Row | None:
        row: Row | None = json.loads(await client.get(key) or "null")
        return row
