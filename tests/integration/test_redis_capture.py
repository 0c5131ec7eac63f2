"""Redis capture on real servers: what it publishes of every operation, and what a restart finds."""

from __future__ import annotations

import time
from base64 import b64decode
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest
import redis.asyncio as aioredis

from consumers.views import build
from streamer.changes.topics import bad_topic
from streamer.config import Config
from streamer.errors import ConfigError
from streamer.runner import reset_source
from streamer.sandbox import ValkeyServer
from tests.harness.redis_capture import (
    ENTITIES,
    bad_values,
    capturing_redis,
    fails_redis,
    fold,
    gap_messages,
    keyed,
    shadow_records,
    until_count,
    until_rows,
)

pytestmark = pytest.mark.usefixtures("clean_game_topics")


async def test_every_change_of_a_string_becomes_its_event(
    redis_server: ValkeyServer, client: aioredis.Redis, make_redis_config: Callable[..., Config]
) -> None:
    await client.set("session:a", '{"n": 1}')
    config = make_redis_config(redis_server.url, ["sessions"])
    key = b'{"sid":"a"}'
    async with capturing_redis(config):
        await until_rows(config, "sessions", {key: {"sid": "a", "value": '{"n": 1}'}})
        await client.set("session:a", '{"n": 2}')
        await until_rows(config, "sessions", {key: {"sid": "a", "value": '{"n": 2}'}})
        await client.delete("session:a")
        await until_rows(config, "sessions", {})
        await client.set("session:a", "3")
        await client.set("session:b", "4")
        await client.rename("session:b", "session:c")
        found = await until_rows(
            config,
            "sessions",
            {key: {"sid": "a", "value": "3"}, b'{"sid":"c"}': {"sid": "c", "value": "4"}},
        )
    assert found.ops(key) == "rudc"
    (first,) = (event["source"] for event in found.events if event["op"] == "r")
    assert first["connector"] == "redis"
    assert first["db"] == "0"
    assert first["txId"] is None
    assert (first["schema"], first["table"], first["snapshot"]) == ("game", "sessions", "true")


async def test_every_type_in_every_form(
    redis_server: ValkeyServer, client: aioredis.Redis, make_redis_config: Callable[..., Config]
) -> None:
    config = make_redis_config(redis_server.url, list(ENTITIES))
    until_us = 4_000_000_000_000_000
    async with capturing_redis(config):
        await client.hset("player:1", mapping={"score": "7", "name": "Ann", "other": "x"})
        await client.zadd("board:daily", {"u1": 1, "u2": 2.5})
        await client.set("session:s", "[1]")
        await client.set("note:n", "text", pxat=until_us // 1000)
        await client.hset("field:f", mapping={"a": "1", "b": "2"})
        await client.sadd("tag:t", "x", "y")
        await client.sadd("whole:w", "b", "a")
        await client.rpush("queue:q", "p", "q")
        await client.rpush("list:l", "m", "n")
        await client.xadd("log:g", {"k": "v"})
        await until_rows(config, "players", keyed([{"id": "1", "score": 7, "name": "Ann"}], "id"))
        await until_rows(
            config,
            "scores",
            keyed(
                [
                    {"period": "daily", "user_id": "u1", "points": 1.0},
                    {"period": "daily", "user_id": "u2", "points": 2.5},
                ],
                "period",
                "user_id",
            ),
        )
        await until_rows(config, "sessions", keyed([{"sid": "s", "value": "[1]"}], "sid"))
        await until_rows(
            config, "notes", keyed([{"id": "n", "value": "text", "until": "2096-10-02T07:06:40Z"}], "id")
        )
        await until_rows(
            config,
            "fields",
            keyed([{"id": "f", "f": "a", "v": "1"}, {"id": "f", "f": "b", "v": "2"}], "id", "f"),
        )
        await until_rows(
            config, "tags", keyed([{"id": "t", "tag": "x"}, {"id": "t", "tag": "y"}], "id", "tag")
        )
        await until_rows(config, "whole", keyed([{"id": "w", "value": '["a","b"]'}], "id"))
        await until_rows(
            config,
            "queue",
            keyed([{"id": "q", "i": 0, "v": "p"}, {"id": "q", "i": 1, "v": "q"}], "id", "i"),
        )
        await until_rows(config, "lists", keyed([{"id": "l", "value": '["m","n"]'}], "id"))

        await client.hdel("player:1", "name")
        await client.zincrby("board:daily", 4, "u1")
        await client.zrem("board:daily", "u2")
        await client.persist("note:n")
        await client.hdel("field:f", "a")
        await client.srem("tag:t", "x")
        await client.sadd("whole:w", "c")
        await client.lpop("queue:q")
        await client.delete("list:l")
        await client.xadd("log:g", {"k": "w"})
        await until_rows(config, "players", keyed([{"id": "1", "score": 7, "name": None}], "id"))
        scores = await until_rows(
            config,
            "scores",
            keyed([{"period": "daily", "user_id": "u1", "points": 5.0}], "period", "user_id"),
        )
        assert scores.ops(b'{"period":"daily","user_id":"u1"}') == "cu"
        assert scores.ops(b'{"period":"daily","user_id":"u2"}') == "cd"
        gone = next(e for e in scores.events if e["op"] == "d")
        assert gone["before"] == {"period": "daily", "user_id": "u2", "points": None}
        await until_rows(config, "notes", keyed([{"id": "n", "value": "text", "until": None}], "id"))
        await until_rows(config, "fields", keyed([{"id": "f", "f": "b", "v": "2"}], "id", "f"))
        await until_rows(config, "tags", keyed([{"id": "t", "tag": "y"}], "id", "tag"))
        await until_rows(config, "whole", keyed([{"id": "w", "value": '["a","b","c"]'}], "id"))
        await until_rows(config, "queue", keyed([{"id": "q", "i": 0, "v": "q"}], "id", "i"))
        await until_rows(config, "lists", {})
        assert (await until_count(config, "log", 2)).ops() == "cc"


async def test_h20_deletes_that_nobody_watched_are_found_at_the_next_start(
    redis_server: ValkeyServer, client: aioredis.Redis, make_redis_config: Callable[..., Config]
) -> None:
    await client.mset({f"session:{n}": str(n) for n in range(50)})
    await client.zadd("board:daily", {f"u{n}": n for n in range(50)})
    config = make_redis_config(redis_server.url)
    async with capturing_redis(config) as capture:
        await until_count(config, "sessions", 50)
        first = capture.detail("epoch")
    await client.delete(*(f"session:{n}" for n in range(1, 50)), "board:daily")
    await client.set("session:new", "1")
    async with capturing_redis(config) as capture:
        await capture.healed(1)
    found = await until_count(config, "sessions", 2)
    assert found.ops(b'{"sid":"0"}') == "r", "what has not changed is not published again"
    assert found.ops(b'{"sid":"1"}') == "rd"
    deletes = [r for r in found.records if r.value is not None and orjson.loads(r.value)["op"] == "d"]
    assert {r.headers for r in deletes} == {(("sweep", b"49"),)}
    scores = await fold(config, "scores")
    assert not scores.rows
    assert [orjson.loads(r.value)["source"]["epoch"] for r in deletes] == [first + 1] * 49
    told = await gap_messages(config)
    assert [m["state"] for m in told] == ["open", "healed"]
    assert told[0]["reason"] == "connection"


async def test_h20_the_shadow_is_made_anew_from_its_topic(
    redis_server: ValkeyServer, client: aioredis.Redis, make_redis_config: Callable[..., Config]
) -> None:
    await client.mset({f"session:{n}": str(n) for n in range(300)})
    config = make_redis_config(redis_server.url)
    async with capturing_redis(config):
        await until_count(config, "sessions", 300)
    for file in (config.base / ".tailrace" / "shadow").iterdir():
        file.unlink()
    await client.delete("session:7")
    await client.set("session:8", '"changed"')
    async with capturing_redis(config) as capture:
        await capture.healed(1)
        assert capture.detail("shadow_rows") == 299
    found = await until_count(config, "sessions", 299)
    assert len(found.events) == 302
    assert len([v for v in (await shadow_records(config)).values() if v is not None]) == 299


async def test_h22_another_row_key_stops_the_capture_until_the_source_is_reset(
    redis_server: ValkeyServer, client: aioredis.Redis, make_redis_config: Callable[..., Config]
) -> None:
    await client.zadd("board:daily", {"u1": 1})
    scores, players = ENTITIES["scores"], ENTITIES["players"]
    async with capturing_redis(make_redis_config(redis_server.url, {"scores": scores})) as capture:
        epoch = capture.detail("epoch")
    other = {**scores, "rows": {"member": "who", "score": "points"}, "columns": {"points": "int"}}
    config = make_redis_config(redis_server.url, {"scores": other, "players": players})
    error = await fails_redis(config)
    assert isinstance(error, ConfigError)
    assert error.what.startswith("the row key of entity scores was (period, user_id) and is (period, who)")
    assert "give back the old key" in error.fix
    assert "`tailrace reset game --yes`" in error.fix
    assert await reset_source(config, "game", brokers=config.kafka.brokers) == epoch + 1
    async with capturing_redis(config):
        row = {"period": "daily", "who": "u1", "points": 1}
        found = await until_count(config, "scores", 2)  # the floor takes out the one of before
        assert found.plain[1] == row
    numbered = {**other, "key": {"period": "int"}}
    error = await fails_redis(make_redis_config(redis_server.url, {"scores": numbered}))
    assert "(period text, who text) and is (period bigint, who text)" in str(error)


async def test_what_an_entity_cannot_use_goes_to_the_topic_of_bad_values(
    redis_server: ValkeyServer, client: aioredis.Redis, make_redis_config: Callable[..., Config]
) -> None:
    await client.set("session:torn", "{")
    await client.hset("player:1", mapping={"score": "many", "name": "Ann"})
    config = make_redis_config(redis_server.url)
    async with capturing_redis(config) as capture:
        await client.set("session:good", "1")
        await until_rows(config, "sessions", keyed([{"sid": "good", "value": "1"}], "sid"))
        await client.set("session:good", "now it is none")
        await client.set("player:2", "a string")
        await client.hset("player:3", mapping={"score": "3", "name": "Bob"})
        await until_count(config, "players", 1)
        await client.set("player:3", "a string")  # one event, unlike a DEL and a SET
        await until_count(config, "players", 0)
        await capture.until(lambda: capture.detail("bad") == {"sessions": 2, "players": 3})
        found_us = capture.detail("bad_last_us")
        assert capture.status.record.started_us < found_us <= time.time() * 1e6
        (note,) = build(config, [capture.status.record], found_us).sources[0]["findings"]
        last = datetime.fromtimestamp(found_us / 1e6, UTC).isoformat(timespec="seconds")
        assert note.startswith(f"5 values could not be used (players 3, sessions 2), the last at {last}")
        assert note.endswith(f"the topic {bad_topic(config.name, 'game')}")
        kept = await fold(config, "sessions")
        assert kept.rows == keyed([{"sid": "good", "value": "1"}], "sid"), "the last good value stays"
    found = await bad_values(config)
    assert {(b["entity"], b["key"]) for b in found} == {
        ("sessions", "session:torn"),
        ("sessions", "session:good"),
        ("players", "player:1"),
        ("players", "player:2"),
        ("players", "player:3"),
    }
    torn = next(b for b in found if b["key"] == "session:torn")
    assert b64decode(torn["payload"]) == b"{"
    assert "is not JSON" in torn["reason"]
    untyped = next(b for b in found if b["key"] == "player:1")
    assert orjson.loads(b64decode(untyped["payload"])) == {"score": "many", "name": "Ann"}
    wrong = next(b for b in found if b["key"] == "player:2")
    assert wrong["reason"] == "the key is a string, and the entity takes a hash"


async def test_a_value_above_the_message_limit_is_named_with_what_a_redis_source_can_do(
    redis_server: ValkeyServer, client: aioredis.Redis, make_redis_config: Callable[..., Config]
) -> None:
    await client.set("note:big", "x" * 70_000)
    made = make_redis_config(redis_server.url, ("notes", "sessions"))
    topics = made.kafka.topics.model_copy(update={"max_message_bytes": 64 * 2**10})
    config = made.model_copy(update={"kafka": made.kafka.model_copy(update={"topics": topics})})
    error = str(await fails_redis(config))
    assert 'its key is {"id":"big"}' in error
    assert "shorten or delete the key" in error
    assert "sources.game.entities. Until then nothing of game is captured" in error
    assert "`tables:`" not in error
    await client.delete("note:big")
    async with capturing_redis(config):
        await client.set("note:n", "short")
        await until_rows(config, "notes", keyed([{"id": "n", "value": "short", "until": None}], "id"))


async def test_a_wrong_password_and_missing_rights_are_named(
    redis_server: ValkeyServer, client: aioredis.Redis, make_redis_config: Callable[..., Config]
) -> None:
    place = f"{redis_server.host}:{redis_server.port}/0"
    error = await fails_redis(make_redis_config(f"redis://:mistyped@{place}"))
    assert isinstance(error, ConfigError)
    assert "password" in str(error)
    assert "mistyped" not in str(error)
    await client.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-scan")
    error = await fails_redis(make_redis_config(f"redis://app:pw@{place}"))
    assert "SCAN" in str(error).upper()
    assert "ACL SETUSER app" in str(error)


@pytest.mark.thorough
async def test_a_replica_is_captured_as_well(
    redis_server: ValkeyServer,
    client: aioredis.Redis,
    make_redis_config: Callable[..., Config],
    replica: ValkeyServer,
) -> None:
    config = make_redis_config(replica.url)
    async with capturing_redis(config):
        await client.set("session:a", "1", px=200)
        await client.zadd("board:daily", {"u1": 1})
        await until_count(config, "scores", 1)
        found = await until_count(config, "sessions", 0)
        await client.set("session:b", "1")
        await until_count(config, "sessions", 1)
    assert found.ops(b'{"sid":"a"}') in ("", "cd")


@pytest.fixture
def replica(redis_server: ValkeyServer, redis_program: Path | None, tmp_path: Path) -> Iterator[ValkeyServer]:
    folder = tmp_path / "replica"
    folder.mkdir()
    settings = {
        "replicaof": f"{redis_server.host} {redis_server.port}",
        "masterauth": redis_server.password,
        "repl-diskless-sync-delay": "0",
    }
    with ValkeyServer(folder, program=redis_program, settings=settings) as server:
        yield server
