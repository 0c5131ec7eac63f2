"""The Redis target on a cluster of three masters, as hashes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest
from redis.asyncio import Redis, RedisCluster

from consumers.apply.checkpoint import Place
from consumers.targets.redis_layout import CLUSTER
from consumers.targets.redis_write import place_field
from tests.conformance.adapters.base import Adapter
from tests.conformance.adapters.redis import RedisHashAdapter
from tests.harness.redis_cluster import Cluster


class RedisClusterAdapter(RedisHashAdapter):
    """Rows are written before their checkpoint, and those of other slots before a refused one is found."""

    writes_whole: ClassVar[bool] = False
    killed_at: ClassVar[str | None] = "consumers.targets.redis_cluster_rows:send_state"
    sweeps: ClassVar[int] = 8  # a sweep looks at a part of the slots
    dearness: ClassVar[int] = 5  # a truncate goes to each of 16,384 slots

    @classmethod
    @asynccontextmanager
    async def ready(cls, request: pytest.FixtureRequest) -> AsyncIterator[Adapter]:
        cluster = request.getfixturevalue("redis_cluster")
        assert isinstance(cluster, Cluster)
        yield cls(cluster.url)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Any]:
        client = RedisCluster.from_url(self.address, protocol=2)
        try:
            await client.initialize()
            yield client
        finally:
            await client.aclose()

    async def cut(self) -> None:
        async with self.client() as client:
            for node in client.get_primaries():
                async with Redis(host=node.host, port=int(node.port), **_login(client)) as line:
                    await line.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    async def rewind(self, places: Sequence[Place], offset: int = 0) -> None:
        key = CLUSTER.key("checkpoints")
        async with self.client() as client:
            for place in places:
                _, _, rest = (await client.hget(key, place_field(place))).partition(b" ")
                await client.hset(key, place_field(place), b"%d %b" % (offset, rest))

    async def before_the_kill(self, *args: Any) -> None:
        """The rows have been answered for."""


def _login(client: RedisCluster) -> dict[str, Any]:
    kwargs = client.get_connection_kwargs()
    return {"username": kwargs.get("username"), "password": kwargs.get("password"), "protocol": 2}
