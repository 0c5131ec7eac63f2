"""Keys too large for a batch, pivots, several databases, and a stop in the middle of things."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis.asyncio as aioredis

from streamer.config import Config
from streamer.redis import reread
from streamer.sandbox import ValkeyServer
from tests.harness.redis_capture import capturing_redis, fold, keyed, until_count, until_rows

pytestmark = pytest.mark.usefixtures("clean_game_topics")

MEMBERS = 12_000  # beyond what a batch reads of one key

PIVOT = {
    "leaderboard": {
        "pivot": "user_id",
        "exists": {"any": ["daily", "weekly"]},
        "columns": {
            "daily": {"zset": "board:daily", "cast": "int"},
            "weekly": {"zset": "board:weekly", "cast": "int"},
            "name": {"hash": "user:{user_id}", "field": "name"},
        },
    }
}


@pytest.mark.thorough
async def test_h21_a_large_zset_is_read_in_steps_and_its_gone_members_are_found(
    redis_server: ValkeyServer, client: aioredis.Redis, make_redis_config: Callable[..., Config]
) -> None:
    assert MEMBERS > reread.BIG_ELEMENTS
    await client.zadd("board:daily", {f"u{n}": n for n in range(MEMBERS)})
    config = make_redis_config(redis_server.url, ["scores"])
    async with capturing_redis(config):
        await until_count(config, "scores", MEMBERS)
        await client.zadd("board:daily", {"u5": -1, "new": 3})
        await client.zrem("board:daily", *(f"u{n}" for n in range(100, 1200)))
        found = await until_count(config, "scores", MEMBERS + 1 - 1100)
        assert found.ops(b'{"period":"daily","user_id":"u5"}') == "ru"
        assert found.ops(b'{"period":"daily","user_id":"new"}') == "c"
        assert found.ops(b'{"period":"daily","user_id":"u100"}') == "rd"
        assert found.ops(b'{"period":"daily","user_id":"u2000"}') == "r"
        await client.zremrangebyrank("board:daily", 10, -1)
        await until_count(config, "scores", 10)
        await client.delete("board:daily")
        await until_count(config, "scores", 0)


@pytest.mark.thorough
async def test_large_keys_of_the_other_types(
    redis_server: ValkeyServer, client: aioredis.Redis, make_redis_config: Callable[..., Config]
) -> None:
    await client.hset("field:f", mapping={f"f{n}": n for n in range(MEMBERS)})
    await client.sadd("whole:w", *(f"{n:05}" for n in range(MEMBERS)))
    await client.rpush("queue:q", *range(MEMBERS))
    await client.set("note:n", "x" * (reread.BIG_BYTES + 1))
    config = make_redis_config(redis_server.url, ["fields", "whole", "queue", "notes"])
    async with capturing_redis(config):
        await until_count(config, "fields", MEMBERS)
        await until_count(config, "queue", MEMBERS)
        whole = await until_count(config, "whole", 1)
        assert whole.plain[0]["value"].count(",") == MEMBERS - 1
        notes = await until_count(config, "notes", 1)
        assert len(notes.plain[0]["value"]) == reread.BIG_BYTES + 1
        await client.hdel("field:f", "f7")
        await client.rpop("queue:q", 2000)
        await until_count(config, "fields", MEMBERS - 1)
        await until_count(config, "queue", MEMBERS - 2000)


async def test_a_pivot_whose_shared_key_was_of_another_type_for_a_while(
    redis_server: ValkeyServer, client: aioredis.Redis, make_redis_config: Callable[..., Config]
) -> None:
    """Its rows stay meanwhile; when the key is right again, those that it does not name any more go."""
    config = make_redis_config(redis_server.url, PIVOT)
    await client.zadd("board:weekly", {"u1": 1, "u2": 2})

    def row(name: str, weekly: int) -> dict[str, object]:
        return {"user_id": name, "daily": None, "weekly": weekly, "name": None}

    async with capturing_redis(config) as capture:
        await until_rows(config, "leaderboard", keyed([row("u1", 1), row("u2", 2)], "user_id"))
        await client.set("board:weekly", "a string")
        await capture.until(lambda: sum(capture.detail("bad").values()) >= 2)
        async with client.pipeline(transaction=True) as line:
            await line.delete("board:weekly").zadd("board:weekly", {"u3": 3}).execute()
        await until_rows(config, "leaderboard", keyed([row("u3", 3)], "user_id"))
        await client.set("board:weekly", "a string")
        await capture.until(lambda: sum(capture.detail("bad").values()) >= 3)
        await client.delete("board:weekly")
        await until_count(config, "leaderboard", 0)


async def test_a_pivot_is_made_of_several_keys(
    redis_server: ValkeyServer, client: aioredis.Redis, make_redis_config: Callable[..., Config]
) -> None:
    config = make_redis_config(redis_server.url, PIVOT)
    await client.zadd("board:daily", {"u1": 1, "u2": 2})
    await client.hset("user:u1", "name", "Ann")
    one = {"user_id": "u1", "daily": 1, "weekly": None, "name": "Ann"}
    two = {"user_id": "u2", "daily": 2, "weekly": None, "name": None}
    async with capturing_redis(config):
        await until_rows(config, "leaderboard", keyed([one, two], "user_id"))
        await client.zadd("board:weekly", {"u2": 20, "u3": 30})
        await client.hset("user:u3", "name", "Cid")
        await client.zrem("board:daily", "u1")
        await until_rows(
            config,
            "leaderboard",
            keyed(
                [
                    {**two, "weekly": 20},
                    {"user_id": "u3", "daily": None, "weekly": 30, "name": "Cid"},
                ],
                "user_id",
            ),
        )
    await client.delete("board:daily", "user:u3")
    await client.zadd("board:weekly", {"u4": 4})
    async with capturing_redis(config) as capture:
        await capture.healed(1)
        found = await until_rows(
            config,
            "leaderboard",
            keyed(
                [
                    {"user_id": "u2", "daily": None, "weekly": 20, "name": None},
                    {"user_id": "u3", "daily": None, "weekly": 30, "name": None},
                    {"user_id": "u4", "daily": None, "weekly": 4, "name": None},
                ],
                "user_id",
            ),
        )
        assert found.ops(b'{"user_id":"u1"}') == "rd"
        await client.flushall()
        await capture.healed(2)
        await until_count(config, "leaderboard", 0)


async def test_several_databases_are_told_apart(
    redis_server: ValkeyServer, client: aioredis.Redis, make_redis_config: Callable[..., Config]
) -> None:
    entities = {"notes": {"pattern": "note:{id}", "type": "string", "databases": [0, 3]}}
    config = make_redis_config(redis_server.url, entities)
    third = aioredis.from_url(redis_server.url.removesuffix("/0") + "/3")
    await third.set("note:a", "three")
    async with capturing_redis(config):
        await client.set("note:a", "zero")
        rows = [{"db": 0, "id": "a", "value": "zero"}, {"db": 3, "id": "a", "value": "three"}]
        found = await until_rows(config, "notes", keyed(rows, "db", "id"))
        assert {e["source"]["db"] for e in found.events} == {"0", "3"}
        await third.move("note:a", 1)
        await until_rows(config, "notes", keyed(rows[:1], "db", "id"))
    await third.aclose()


@pytest.mark.thorough
async def test_keys_of_any_bytes(
    redis_server: ValkeyServer, client: aioredis.Redis, make_redis_config: Callable[..., Config]
) -> None:
    config = make_redis_config(redis_server.url, ["notes"])
    names = [b"\xff\x00", b'"quoted"', b"100%", "žluť".encode(), b"[a]*?"]
    async with capturing_redis(config):
        for name in names:
            await client.set(b"note:" + name, name)
        found = await until_count(config, "notes", len(names))
        assert {row["id"] for row in found.plain} >= {'"quoted"', "100%", "žluť", "[a]*?"}
        await client.delete(*(b"note:" + name for name in names))
        await until_count(config, "notes", 0)
    assert len((await fold(config, "notes")).events) == 2 * len(names)
