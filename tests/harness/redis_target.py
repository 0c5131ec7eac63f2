"""Configs that lead a feeder's topics into a Redis target, and sources whose rows it must have in the end."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from typing import Any

import yaml
from redis.asyncio import Redis, RedisCluster

from consumers.targets.base import Batch, Target
from consumers.targets.registry import make_target
from consumers.testing import Log
from streamer.config import Config, Flow, parse
from tests.harness.feeder import Feeder, Table

Flows = dict[str, dict[str, Any]]
COLUMNS = [("id", "bigint", "number"), ("name", "text", "text"), ("points", "integer", "number")]
FLOWS: Flows = {
    "hashes": {"to": "copy.h"},
    "texts": {"to": "copy.j", "as": "json"},
    "board": {"to": "copy.z", "as": "zset", "member": "id", "score": "points"},
    "members": {"to": "copy.s", "as": "set", "member": "id"},
}


def redis_config_text(feeder: Feeder, url: str, flows: Flows | None = None) -> str:
    """`flows`: name -> keys; all tables as hashes to schema `mirror` unless given."""
    wanted = flows or {"mirror": {}}
    source = {"kind": "postgres", "url": "postgresql://nobody@localhost/none", "tables": {"public.*": {}}}
    base = {"from": f"{feeder.source}.public.*", "to": "copy.mirror"}
    return yaml.safe_dump(
        {
            "name": feeder.name,
            "kafka": {"brokers": feeder.brokers},
            "sources": {feeder.source: source},
            "targets": {"copy": {"kind": "redis", "url": url}},
            "flows": {name: {**base, **keys} for name, keys in wanted.items()},
        }
    )


def redis_config_of(feeder: Feeder, url: str, flows: Flows | None = None) -> Config:
    return parse(redis_config_text(feeder, url, flows), Path("tailrace.yaml"), environ={})


class Source:
    """Random changes of one table, and what it holds."""

    def __init__(self, table: Table, seed: int) -> None:
        self.table = table
        self.random = Random(seed)
        self.rows: dict[int, dict[str, Any]] = {}
        self.lsn = 0

    def change(self) -> None:
        self.lsn += 8
        random, number = self.random, self.random.randrange(60)
        if number in self.rows and random.random() < 0.3:
            del self.rows[number]
            self.table.delete({"id": number, "name": None, "points": None}, self.lsn)
            return
        points = None if random.random() < 0.2 else random.randrange(100)
        row = {"id": number, "name": f"n{self.lsn}", "points": points}
        if number in self.rows:
            self.table.update(row, self.lsn)
        else:
            self.table.create(row, self.lsn)
        self.rows[number] = row

    def truncate(self) -> None:
        self.lsn += 8
        self.rows.clear()
        self.table.truncate(self.lsn)

    async def is_in(self, client: Redis | RedisCluster) -> bool:
        hashes = {n: {k: str(v) for k, v in row.items() if v is not None} for n, row in self.rows.items()}
        board = {str(n): float(row["points"]) for n, row in self.rows.items() if row["points"] is not None}
        found_hashes = {int(k.rpartition(":")[2]): await client.hgetall(k) async for k in keys(client, "h")}
        found_texts = {
            int(k.rpartition(":")[2]): json.loads(await client.get(k) or "null")  # deleted since it was seen
            async for k in keys(client, "j")
        }
        return (
            found_hashes == hashes
            and found_texts == self.rows
            and dict(await client.zrange("z:orders", 0, -1, withscores=True)) == board
            and await client.smembers("s:orders") == {str(n) for n in self.rows}
        )


async def keys(client: Redis | RedisCluster, schema: str) -> AsyncIterator[str]:
    async for key in client.scan_iter(match=f"{schema}:orders:*", count=1000):
        yield key


@asynccontextmanager
async def source_of(kafka: str, kafka_name: str, seed: int) -> AsyncIterator[tuple[Feeder, Source]]:
    async with Feeder(kafka, kafka_name) as feeder:
        yield feeder, Source(await feeder.table("orders", COLUMNS), seed)


# Without Kafka: one target, a log of made-up changes


class Stage:
    def __init__(self, url: str, flow: dict[str, Any]) -> None:
        given = {"from": "shop.public.people", "to": "copy.mirror", **flow}
        source = {"kind": "postgres", "url": "postgresql://u@localhost/none", "tables": {"public.*": {}}}
        text = {
            "name": "acme",
            "sources": {"shop": source},
            "targets": {"copy": {"kind": "redis", "url": url}},
            "flows": {"people": given},
        }
        self.config = config = parse(json.dumps(text), Path("tailrace.yaml"), environ={})
        self.flows: list[Flow] = list(config.flows.values())
        self.target: Target = make_target(config.targets["copy"], "acme.copy", self.flows)
        self.log = Log("shop", partitions=1)

    async def apply(self) -> Any:
        return await self.log.apply(self.target, self.flows)

    async def batch(self) -> Batch:
        """What the next `apply` would write."""
        places = await self.target.checkpoints(self.log.places(self.flows))
        return await self.log.batch(self.flows, {place: stand.next_offset for place, stand in places.items()})


@asynccontextmanager
async def stage(url: str, **flow: Any) -> AsyncIterator[Stage]:
    found = Stage(url, flow)
    await found.target.open()
    try:
        yield found
    finally:
        await found.target.close()
