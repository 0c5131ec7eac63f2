"""Backfills of a Redis source on a real server: published again though nothing differs."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import orjson
import pytest
import redis.asyncio as aioredis
from aiokafka import TopicPartition

from streamer.backfills import ask
from streamer.changes.backfill import Progress, Request, State, Wanted
from streamer.config import Config, load
from streamer.kafka import offset_ranges
from streamer.redis.reread import BIG_ELEMENTS
from streamer.sandbox import ValkeyServer
from tests.harness.backfill import reach, recorded, shown, tell
from tests.harness.capture import PARTITIONS, until
from tests.harness.feeder import Feeder, applying
from tests.harness.redis_capture import RedisCapture, capturing_redis, fold, read_topic

_numbers = itertools.count(1)
PLAYERS = 1_200
PIVOT = {
    "players": {"pattern": "player:{id}", "type": "hash", "columns": {"score": "int"}},
    "stats": {
        "pivot": "user_id",
        "columns": {
            "daily": {"zset": "score:daily"},
            "level": {"hash": "player:{user_id}", "field": "level"},
        },
    },
}


@pytest.fixture
def make_config(
    make_redis_config: Callable[..., Config], redis_server: ValkeyServer, clean_game_topics: None
) -> Callable[..., Config]:
    return partial(make_redis_config, redis_server.url)


async def request(
    capture: RedisCapture, entity: str, keys: Iterable[Sequence[Any]] | None = None, **more: Any
) -> str:
    config = capture.config
    run = f"run{next(_numbers)}"
    now_us = time.time_ns() // 1000
    asked = Request(run, capture.source, entity=entity, by="test", asked_us=now_us, **more)
    await ask(config.kafka.brokers, None, config.name, asked, keys)
    return run


async def backfill(
    capture: RedisCapture, entity: str, keys: Iterable[Sequence[Any]] | None = None, **more: Any
) -> Progress:
    run = await request(capture, entity, keys, **more)
    await reach(capture, run, lambda entry: entry["state"].over)
    return await recorded(capture.config, run)


async def players(server: aioredis.Redis, count: int = PLAYERS) -> None:
    async with server.pipeline(transaction=False) as line:
        for number in range(count):
            line.hset(f"player:{number}", mapping={"score": number, "name": f"n{number}"})
        await line.execute()


async def test_an_entity_is_published_again(
    client: aioredis.Redis, make_config: Callable[..., Config]
) -> None:
    await players(client)
    await client.set("session:1", '{"a": 1}')
    config = make_config()
    async with capturing_redis(config) as capture:
        before = await fold(config, "players")
        progress = await backfill(capture, "players")
    assert (progress.state, progress.rows, progress.deletes) == (State.DONE, PLAYERS, 0)
    after = await fold(config, "players")
    assert after.rows == before.rows
    assert len(after.events) == len(before.events) + PLAYERS
    assert {event["op"] for event in after.events[len(before.events) :]} == {"r"}
    assert (await fold(config, "sessions")).ops() == "r"  # of the first copy: only what was asked for


async def test_large_keys_of_every_member(client: aioredis.Redis, make_config: Callable[..., Config]) -> None:
    members = BIG_ELEMENTS * 3
    await client.zadd("board:all", {f"u{n}": n for n in range(members)})
    await client.zadd("board:few", {"u1": 1})
    config = make_config()
    async with capturing_redis(config) as capture:
        progress = await backfill(capture, "scores")
        again = await backfill(capture, "scores")
    assert (progress.rows, again.rows) == (members + 1, members + 1)
    found = await fold(config, "scores")
    assert len(found.rows) == members + 1
    assert len(found.events) == 3 * (members + 1)


async def test_given_keys_and_the_deletes_of_those_that_are_not_there(
    client: aioredis.Redis, make_config: Callable[..., Config]
) -> None:
    """Also of one that never was published: a copy may have it all the same."""
    await players(client, 10)
    await client.zadd("board:day", {"u1": 1, "u2": 2})
    config = make_config()
    async with capturing_redis(config) as capture:
        progress = await backfill(capture, "players", [("3",), ("nobody",), ("4",)], deletes=True)
        assert (progress.state, progress.rows, progress.deletes, progress.estimated_rows) == (
            State.DONE,
            2,
            1,
            3,
        )
        exploded = await backfill(capture, "scores", [("day", "u2"), ("day", "u9")], deletes=True)
        assert (exploded.rows, exploded.deletes) == (2, 1)  # a key's members come together
        quiet = await backfill(capture, "players", [("nobody",)])
        assert (quiet.rows, quiet.deletes) == (0, 0)
    found = await fold(config, "players")
    assert found.ops(b'{"id":"3"}') == "rr"
    assert found.ops(b'{"id":"5"}') == "r"
    assert found.ops(b'{"id":"nobody"}') == "d"
    assert (await fold(config, "scores")).ops(b'{"period":"day","user_id":"u9"}') == "d"


async def test_rows_of_a_pivot(client: aioredis.Redis, make_config: Callable[..., Config]) -> None:
    await client.zadd("score:daily", {"u1": 1, "u2": 2})
    await client.hset("player:u1", mapping={"score": 7, "level": "gold"})
    config = make_config(entities=PIVOT)
    async with capturing_redis(config) as capture:
        assert (await backfill(capture, "stats")).rows == 2
        assert (await backfill(capture, "stats", [("u1",), ("u9",)], deletes=True)).deletes == 1
        await backfill(capture, "players")
    found = await fold(config, "stats")
    assert found.ops(b'{"user_id":"u1"}') == "rrr"
    assert found.ops(b'{"user_id":"u2"}') == "rr"
    assert found.ops(b'{"user_id":"u9"}') == "d"
    assert (await fold(config, "players")).ops() == "rr"


@pytest.mark.thorough
async def test_it_is_paused_cancelled_and_kept_to_its_rate(
    client: aioredis.Redis, make_config: Callable[..., Config]
) -> None:
    await players(client)
    config = make_config()
    async with capturing_redis(config) as capture:
        run = await request(capture, "players", rate=100)
        await reach(capture, run, lambda entry: entry["rows"] > 0)
        await tell(capture, run, Wanted.PAUSE)
        paused = await reach(capture, run, lambda entry: entry["state"] is State.PAUSED)
        assert paused["reason"] == "by test"
        other = await backfill(capture, "players", [("1",)])
        assert other.state is State.DONE  # a run that waits is in nobody's way
        assert shown(capture, run)["rows"] == paused["rows"] < PLAYERS
        await tell(capture, run, Wanted.RUN)
        began_s, rows = time.monotonic(), paused["rows"]
        later = await reach(capture, run, lambda entry: entry["rows"] >= rows + 150)
        assert later["rows"] - rows <= 100 * (time.monotonic() - began_s) + 100
        await tell(capture, run, Wanted.CANCEL)
        cancelled = await reach(capture, run, lambda entry: entry["state"].over)
    assert (cancelled["state"], cancelled["rows"] < PLAYERS) == (State.CANCELLED, True)


@pytest.mark.thorough
async def test_a_killed_capture_begins_again_and_says_so(
    client: aioredis.Redis, make_config: Callable[..., Config]
) -> None:
    """Given keys go on where they were."""
    await players(client)
    config = make_config()
    async with capturing_redis(config) as capture:
        run = await request(capture, "players", rate=300)
        keyed = await request(capture, "players", [(str(n),) for n in range(PLAYERS)], rate=300)
        await reach(capture, run, lambda entry: entry["rows"] >= 100)
        done = (await reach(capture, keyed, lambda entry: entry["rows"] >= 100))["rows"]
        await capture.kill()
        capture.start()
        await capture.state("streaming")
        entry = await reach(capture, run, lambda entry: entry["reread"] == 1)
        assert "begins again" in entry["reason"]
        entry = await reach(capture, keyed, lambda entry: entry["state"] is State.RUNNING)
        assert 0 < entry["rows"] <= done + 300
        for each in (run, keyed):
            await reach(capture, each, lambda entry: entry["state"].over)
        assert shown(capture, run)["rows"] == PLAYERS
        assert shown(capture, keyed)["rows"] <= PLAYERS


@pytest.mark.parametrize(
    ("entity", "more", "reason"),
    [
        ("nothing", {}, "no entity 'nothing'"),
        ("players", {"where": "score > 7"}, "no SQL for a condition"),
    ],
)
async def test_what_cannot_be_fails_and_says_why(
    entity: str, more: dict[str, Any], reason: str, make_config: Callable[..., Config]
) -> None:
    config = make_config()
    async with capturing_redis(config) as capture:
        progress = await backfill(capture, entity, **more)
    assert progress.state is State.FAILED
    assert reason in progress.reason


async def test_a_failed_run_is_given_up_by_a_person_or_by_a_later_one_of_the_whole_entity(
    client: aioredis.Redis, make_config: Callable[..., Config]
) -> None:
    await players(client, 5)
    async with capturing_redis(make_config()) as capture:
        names = [await request(capture, "players", where="score > 7") for _ in range(3)]
        for name in names:
            await reach(capture, name, lambda entry: entry["state"] is State.FAILED)
        await tell(capture, names[0], Wanted.CANCEL)
        await reach(capture, names[0], lambda entry: entry["state"] is State.CANCELLED)
        before = await recorded(capture.config, names[1])
        await tell(capture, names[1], Wanted.RUN)

        async def failed_again() -> bool:
            return (await recorded(capture.config, names[1])).ended_us != before.ended_us

        await until(failed_again)
        await backfill(capture, "players")
        for name in names[1:]:
            await reach(capture, name, lambda entry: entry["state"] is State.CANCELLED)


async def test_the_shadow_stays_what_was_published(
    client: aioredis.Redis, make_config: Callable[..., Config]
) -> None:
    """After a backfill a change is an update, and what did not change is not told again."""
    await players(client, 5)
    config = make_config()
    async with capturing_redis(config) as capture:
        await backfill(capture, "players")
        rows = capture.detail("shadow_rows")
        await client.hset("player:1", "score", 99)
        await client.delete("player:2")
        await capture.until(lambda: capture.detail("shadow_rows") == rows - 1)
    async with capturing_redis(config) as capture:
        await capture.healed(1)
    found = await fold(config, "players")
    assert found.ops(b'{"id":"1"}') == "rru"
    assert found.ops(b'{"id":"2"}') == "rrd"
    assert found.ops(b'{"id":"3"}') == "rr"
    assert rows == 5
    assert orjson.loads((await read_topic(config, f"{config.name}.__backfills"))[-1].value or b"null")


@pytest.mark.thorough
async def test_a_flow_added_late_gets_what_its_log_has_lost(
    client: aioredis.Redis, make_config: Callable[..., Config], target_database: str, feeder: Feeder
) -> None:
    await players(client, 50)
    config = make_config()
    async with capturing_redis(config) as capture:
        topic = "game.players"
        ranges = await offset_ranges(
            config.kafka.brokers, None, [TopicPartition(topic, p) for p in range(PARTITIONS)]
        )
        await feeder.delete_records(topic, {place.partition: end for place, (_, end) in ranges.items()})
        await client.delete("player:7")
        await client.hset("player:8", "score", 88)
        document = orjson.loads(config.path.read_bytes())
        document["targets"] = {"copy": {"kind": "postgres", "url": target_database}}
        document["flows"] = {"players": {"from": "game.players", "to": "copy.mirror.players"}}
        config.path.write_bytes(orjson.dumps(document))
        async with applying(load(config.path)) as apply:
            expected = [(str(n), 88 if n == 8 else n) for n in range(50) if n != 7]
            query = "SELECT id, score FROM mirror.players ORDER BY id::int"
            await apply.rows(target_database, query, expected)
        (entry,) = capture.detail("backfills")
    assert entry["run"].startswith("flow:copy.players:players:")
    assert entry["rows"] == 49
