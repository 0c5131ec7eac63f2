"""FLUSHALL of a Redis source empties nothing before a person has approved it: real servers, all the way."""

from __future__ import annotations

from collections.abc import Callable

import orjson
import psycopg
import pytest
import redis.asyncio as aioredis

from consumers.commands.gates import decide_held
from streamer.config import Config, load
from streamer.sandbox import ValkeyServer
from tests.harness.feeder import applying
from tests.harness.redis_capture import capturing_redis

pytestmark = pytest.mark.usefixtures("clean_game_topics")

KEYS = [
    2_000,
    pytest.param(20_000, marks=pytest.mark.thorough),
    pytest.param(100_000, marks=pytest.mark.slow),
]
STEP = 1_000
COUNT = "SELECT count(*) FROM public.sessions"


async def count(url: str) -> int:
    async with await psycopg.AsyncConnection.connect(url) as connection:
        row = await (await connection.execute(COUNT)).fetchone()
    assert row is not None
    return int(row[0])


@pytest.mark.parametrize("keys", KEYS)
async def test_flushall_empties_nothing_before_it_is_approved(
    redis_server: ValkeyServer,
    client: aioredis.Redis,
    make_redis_config: Callable[..., Config],
    target_database: str,
    keys: int,
) -> None:
    """With no key in the config that asks for it: 10% is the default of a Redis source."""
    path = make_redis_config(redis_server.url, ["sessions"]).path
    document = orjson.loads(path.read_bytes())
    document["targets"] = {"copy": {"kind": "postgres", "url": target_database}}
    document["flows"] = {"sessions": {"from": "game.sessions", "to": "copy.public.sessions"}}
    path.write_bytes(orjson.dumps(document))
    config = load(path)
    for start in range(0, keys, STEP):
        await client.mset({f"session:{n}": str(n) for n in range(start, start + STEP)})
    async with capturing_redis(config) as capture, applying(config) as run:
        await run.rows(target_database, COUNT, [(keys,)])
        await client.flushall()
        await client.set("session:new", "1")
        await capture.healed(1)
        await run.until(lambda: run.flow("sessions").get("state") == "held", "held")
        reason = run.flow("sessions")["reason"]
        assert f"{keys:,} of {keys:,}"[:-1] in reason
        assert "rows of sessions would be deleted" in reason
        assert await count(target_database) >= keys
        (gate,) = await decide_held(config, "sessions", "approved")
        assert gate.kind == "deletes"
        await run.rows(target_database, "SELECT sid FROM public.sessions", [("new",)])
        await run.until(lambda: run.flow("sessions").get("state") == "streaming", "streaming")
