"""A Redis source and a Postgres target as real processes: the copy equals Redis, whatever happens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
import redis.asyncio as aioredis

from streamer.sandbox import ValkeyServer
from tests.harness.pipeline import Pipeline, execute

ENTITIES = {
    "players": {"pattern": "player:{id}", "type": "hash", "columns": {"score": "int", "name": "text"}},
    "scores": {"pattern": "board:{period}", "type": "zset", "rows": {"member": "user_id", "score": "points"}},
    "sessions": {"pattern": "session:{sid}", "type": "string", "value": "json"},
    "leaderboard": {
        "pivot": "user_id",
        "exists": {"any": ["daily", "weekly"]},
        "columns": {
            "daily": {"zset": "board:daily", "cast": "int"},
            "weekly": {"zset": "board:weekly", "cast": "int"},
            "name": {"hash": "user:{user_id}", "field": "name"},
        },
    },
}
TABLES = {
    "players": "SELECT id, score::text, name FROM game.players",
    "scores": "SELECT period, user_id, points::text FROM game.scores",
    "sessions": "SELECT sid, value::text FROM game.sessions",
    "leaderboard": "SELECT user_id, daily::text, weekly::text, name FROM game.leaderboard",
}


@pytest.fixture
async def game(
    tmp_path: Path, redis_server: ValkeyServer, target_database: str, kafka: str, kafka_name: str
) -> AsyncIterator[Pipeline]:
    """Not started; everything of the source goes to schema `game` of the fresh target."""
    source = f"{kafka_name}_game"
    async with Pipeline(
        tmp_path / "pipeline",
        source_url=redis_server.url,
        target_url=target_database,
        brokers=kafka,
        name=kafka_name,
        flows={"mirror": {"from": f"{source}.*", "to": "copy.game", "hold_deletes_above": "100%"}},
    ) as pipeline:
        pipeline.source = source
        pipeline.config["sources"] = {
            source: {"kind": "redis", "url": redis_server.url, "entities": ENTITIES}
        }
        pipeline.write_config()
        yield pipeline


async def in_redis(client: aioredis.Redis) -> dict[str, set[tuple[Any, ...]]]:
    """What the tables should hold."""
    found: dict[str, set[tuple[Any, ...]]] = {name: set() for name in TABLES}
    boards: dict[str, dict[str, float]] = {}
    names: dict[str, str] = {}
    async for raw in client.scan_iter(count=1000):
        key = raw.decode()
        head, _, tail = key.partition(":")
        if head == "player":
            fields = await client.hgetall(key)
            score, name = fields.get(b"score"), fields.get(b"name")
            found["players"].add((tail, score and score.decode(), name and name.decode()))
        elif head == "board":
            boards[tail] = {m.decode(): s for m, s in await client.zrange(key, 0, -1, withscores=True)}
            found["scores"] |= {(tail, member, f"{score:g}") for member, score in boards[tail].items()}
        elif head == "session":
            found["sessions"].add((tail, (await client.get(key)).decode()))
        elif head == "user":
            names[tail] = (await client.hget(key, "name")).decode()
    daily, weekly = boards.get("daily", {}), boards.get("weekly", {})
    for user in {*daily, *weekly}:
        scores = [f"{board[user]:g}" if user in board else None for board in (daily, weekly)]
        found["leaderboard"].add((user, *scores, names.get(user)))
    return found


async def in_target(pipeline: Pipeline) -> dict[str, set[tuple[Any, ...]]]:
    async with await psycopg.AsyncConnection.connect(pipeline.target_url, autocommit=True) as connection:
        return {
            name: {tuple(row) for row in await (await connection.execute(query.encode())).fetchall()}
            for name, query in TABLES.items()
        }


async def equal(pipeline: Pipeline, client: aioredis.Redis) -> None:
    wanted = await in_redis(client)
    found: dict[str, set[tuple[Any, ...]]] = {}

    async def same() -> bool:
        try:
            found.update(await in_target(pipeline))
        except psycopg.errors.UndefinedTable:
            return False
        return found == wanted

    try:
        await pipeline.until("the target equals Redis", same)
    except AssertionError as error:
        differ = {name: (wanted[name] ^ found.get(name, set())) for name in TABLES}
        raise AssertionError(
            f"{ {n: sorted(map(str, d))[:6] for n, d in differ.items() if d} }\n{error}"
        ) from None


async def write(client: aioredis.Redis, round_: int) -> None:
    """Of everything some, again and again other ones."""
    async with client.pipeline(transaction=False) as pipe:
        for n in range(200):
            pipe.set(f"session:{round_ % 3}-{n}", f"[{n}]")
            pipe.hset(f"player:{n}", mapping={"score": str(n * round_), "name": f"p{n}"})
            pipe.zadd("board:daily", {f"u{n}": n + round_})
            pipe.zadd("board:weekly", {f"u{n * 2}": n * round_})
            pipe.hset(f"user:u{n}", "name", f"n{n % 7}.{round_}")
        pipe.delete(*(f"player:{n}" for n in range(round_, 200, 5)))
        pipe.zrem("board:daily", *(f"u{n}" for n in range(round_, 200, 3)))
        await pipe.execute()


async def test_a_copy_of_redis_in_postgres(game: Pipeline, client: aioredis.Redis) -> None:
    await write(client, 1)
    run = game.start("run")
    await equal(game, client)
    await write(client, 2)
    await client.rename("board:weekly", "board:daily")
    await equal(game, client)
    await game.state("capture", "streaming")
    code, text = await game.run("status")
    assert "mirror" in text
    assert game.source in text
    assert code == 0, text
    assert await run.stop() == 0


@pytest.mark.thorough
async def test_h20_a_killed_capture_finds_what_was_deleted_meanwhile(
    game: Pipeline, client: aioredis.Redis
) -> None:
    game.start("apply")
    capture = game.start("capture")
    await write(client, 1)
    await equal(game, client)
    for round_ in range(2, 5):
        await write(client, round_)
        capture.kill()
        await client.delete(*(f"player:{n}" for n in range(round_, 200, 7)), "board:weekly")
        capture = game.start("capture")
        await write(client, round_ + 3)
        await equal(game, client)


@pytest.mark.thorough
async def test_a_reset_removes_what_only_the_target_has(game: Pipeline, client: aioredis.Redis) -> None:
    apply = game.start("apply")
    capture = game.start("capture")
    await write(client, 1)
    await equal(game, client)
    epoch = (await game.state("capture", "streaming", child=capture)).detail["epoch"]
    assert await capture.stop() == 0
    await execute(
        game.target_url,
        "INSERT INTO game.sessions (sid, value, _tailrace_epoch, _tailrace_lsn, _tailrace_ordinal)"
        " VALUES ('stray', '1', 1, 1, 0)",
    )
    code, text = await game.run("reset", game.source, "--yes")
    assert code == 0, text
    assert f"epoch {epoch + 1}" in text
    game.start("capture")
    await equal(game, client)
    assert await apply.stop() == 0


@pytest.mark.thorough
async def test_a_flushed_cache_empties_nothing_before_it_is_approved(
    game: Pipeline, client: aioredis.Redis
) -> None:
    del game.config["flows"]["mirror"]["hold_deletes_above"]
    game.write_config()
    game.start("apply")
    game.start("capture")
    await write(client, 1)
    await equal(game, client)
    rows = {name: len(rows) for name, rows in (await in_target(game)).items()}
    await client.flushall()

    async def held() -> bool:
        flows = [record.detail.get("flows", {}) for record in await game.status("apply")]
        return [flow["mirror"]["state"].lower() for flow in flows if flow] == ["held"]

    await game.until("the flow is held", held)
    assert {name: len(rows) for name, rows in (await in_target(game)).items()} == rows
    code, text = await game.run("approve", "mirror")
    assert code == 0, text
    await equal(game, client)
