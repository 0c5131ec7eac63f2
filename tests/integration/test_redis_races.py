"""What changes between two reads of one thing: a later comparison must not take it for settled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import redis.asyncio as aioredis

from streamer.config import Config, RedisSource
from streamer.redis import ahead
from streamer.redis.ahead import Ahead
from streamer.redis.chunks import COUNT, Chunks, ChunkWalk
from streamer.redis.connection import connect
from streamer.redis.entities import Entities
from streamer.redis.pivot import PivotEntity, PivotRow
from streamer.redis.reread import Reread
from streamer.redis.shadow import Shadow
from streamer.sandbox import ValkeyServer
from tests.harness.redis_capture import ENTITIES, capturing_redis, until_count
from tests.integration.test_redis_large import MEMBERS as LARGE
from tests.integration.test_redis_large import PIVOT

MEMBERS = 3_000


async def test_h21_a_member_that_comes_back_for_a_moment_is_found_missing(valkey: str) -> None:
    """Gone from its chunk, there when it is asked for, gone when the chunks are scanned again."""
    async with aioredis.from_url(valkey) as client, connect(valkey, application="test") as connection:
        await client.delete("zset")
        await client.zadd("zset", {f"m{n}": n for n in range(MEMBERS)})
        reread, chunks = Reread(connection), Chunks("zset", None)

        async def walk() -> tuple[ChunkWalk, list[bytes]]:
            steps, cursor = ChunkWalk(reread, chunks, 0, b"zset"), b"0"
            while True:
                cursor = (await steps.step(cursor)).after
                if cursor == b"0":
                    return steps, steps.end()

        assert (await walk())[1] == []
        await client.zrem("zset", "m7")
        steps, missing = await walk()
        assert missing == [b"m7"]
        steps.returned(missing)  # it was there again when it was asked for
        steps, missing = await walk()
        assert missing == [b"m7"]
        steps.returned(missing)
        await client.zadd("zset", {"m7": 1})
        assert (await walk())[1] == []
        await client.zrem("zset", "m7")
        assert (await walk())[1] == [b"m7"]
        assert (await walk())[1] == []


async def test_h21_values_of_any_bytes_do_not_hide_a_change_in_a_chunk(valkey: str) -> None:
    """What stands between two values of a chunk may stand inside of one as well."""
    async with aioredis.from_url(valkey) as client, connect(valkey, application="test") as connection:
        await client.delete("hash")
        await client.hset("hash", mapping={f"f{n}": "v" for n in range(MEMBERS)})
        found = (await client.execute_command("HSCAN", "hash", 0, "COUNT", COUNT))[1]
        one, other = list(found)[:2]  # side by side in a chunk
        await client.hset("hash", mapping={one: b"x\0" + other + b"\0y", other: b"z"})
        reread, chunks = Reread(connection), Chunks("hash", None)
        changed: dict[bytes, bytes] = {}
        for _ in range(2):
            steps, cursor = ChunkWalk(reread, chunks, 0, b"hash"), b"0"
            changed.clear()
            while True:
                step = await steps.step(cursor)
                changed.update(step.changed)
                cursor = step.after
                if cursor == b"0":
                    break
            assert steps.end() == []
            await client.hset("hash", mapping={one: b"x", other: b"y\0" + other + b"\0z"})
        assert changed == {one: b"x", other: b"y\0" + other + b"\0z"}


class Board:
    """A pivot, a shadow that nothing is in, and what was read of a row."""

    def __init__(self, config: Config, folder: Path) -> None:
        source = config.sources["game"]
        assert isinstance(source, RedisSource)
        self.entities = Entities(source)
        self.shadow = Shadow(folder / "s.db", cluster="c", fingerprint="f", place_of=self.entities.place)
        self.overflows: list[str] = []
        self.ahead = Ahead(self.entities, self.shadow, overflow=self.overflows.append)
        pivot = self.entities.entity("leaderboard")
        assert isinstance(pivot, PivotEntity)
        self.pivot = pivot

    def row(self, user: bytes) -> PivotRow:
        return self.pivot.row(0, user)

    def compared(self, members: dict[bytes, float]) -> None:
        match = self.entities.match(0, b"board:daily")
        assert match is not None
        feed = match.feeds[0].members
        assert feed is not None
        place = match.members_place(feed)
        self.shadow.diff(place, feed.member_rows(place, members.items(), None, []))


def test_rows_read_ahead_of_the_key_that_they_share_wait_for_it(
    make_redis_config: Callable[..., Config], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = Board(make_redis_config("redis://127.0.0.1:1/0", PIVOT), tmp_path)
    one, two = board.row(b"u1"), board.row(b"u2")
    key = 0, b"board:daily"
    waits = {(board.pivot, 0, b"u1"): None}
    board.compared({b"u2": 2.0})
    board.ahead.note([one, two], [[1.0, None, None], [2.0, None, b"Bob"]])
    assert board.ahead.take(*key) == waits, "the shadow has no u1 yet"
    assert board.ahead.take(*key) == {}
    board.compared({b"u1": 1.0, b"u2": 2.0})
    board.ahead.note([one, two], [[1.0, None, None], [2.0, None, None]])
    assert board.ahead.take(*key) == {}, "all as it was compared"
    board.ahead.note([one], [[None, None, None]])
    assert board.ahead.take(*key) == waits, "gone since"
    board.ahead.note([one], [[3.0, 5.0, None]])
    assert board.ahead.take(0, b"board:weekly") == waits
    assert board.ahead.take(*key) == waits
    monkeypatch.setattr(ahead, "ROWS_LIMIT", 1)
    board.ahead.note([one, two], [[None, None, None], [None, None, None]])
    assert len(board.overflows) == 1
    assert board.ahead.take(*key) == {}


@pytest.mark.thorough
@pytest.mark.usefixtures("clean_game_topics")
async def test_a_scan_reads_the_rows_of_members_that_have_not_changed(
    redis_server: ValkeyServer, client: aioredis.Redis, make_redis_config: Callable[..., Config]
) -> None:
    """What the shadow holds of a sorted set says nothing of the rows that a pivot makes of it."""
    scores = {"scores": ENTITIES["scores"]}
    await client.zadd("board:daily", {"u1": 1, "u2": 2})
    await client.zadd("board:weekly", {f"w{n}": n for n in range(LARGE)})
    async with capturing_redis(make_redis_config(redis_server.url, scores)):
        await until_count(make_redis_config(redis_server.url, scores), "scores", LARGE + 2)
    config = make_redis_config(redis_server.url, {**scores, **PIVOT})
    async with capturing_redis(config):
        found = await until_count(config, "leaderboard", LARGE + 2)
    assert found.rows[b'{"user_id":"u2"}'] == {"user_id": "u2", "daily": 2, "weekly": None, "name": None}


@pytest.mark.usefixtures("clean_game_topics")
async def test_a_first_copy_begins_with_the_keys_that_rows_share(
    redis_server: ValkeyServer,
    client: aioredis.Redis,
    make_redis_config: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """So that rows do not wait for them, however many there are."""
    monkeypatch.setattr(ahead, "ROWS_LIMIT", 10)
    await client.zadd("board:daily", {f"u{n}": n for n in range(300)})
    async with client.pipeline() as pipe:
        for n in range(300):
            pipe.hset(f"user:u{n}", "name", f"name {n}")
        await pipe.execute()
    async with capturing_redis(make_redis_config(redis_server.url, PIVOT)) as capture:
        await until_count(capture.config, "leaderboard", 300)
        assert capture.detail("gaps_seen") == 0
