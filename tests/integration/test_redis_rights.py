"""The rule that is printed for the user of a Redis source is whole: one who has nothing captures with it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import redis.asyncio as aioredis

from streamer.config import Config
from streamer.doctor import Check, Level, examine
from streamer.sandbox import ValkeyServer
from tests.harness.redis_capture import (
    ENTITIES,
    capturing_redis,
    fails_redis,
    keyed,
    until_count,
    until_rows,
)
from tests.harness.tiers import corners

pytestmark = pytest.mark.usefixtures("clean_game_topics")

PIVOT = {
    "pivot": "user_id",
    "columns": {"daily": {"zset": "rank:daily"}, "name": {"hash": "person:{user_id}", "field": "name"}},
}
MANY = 3000  # members: above every limit of what one step reads
LONG = "x" * 400_000  # bytes


async def give(client: aioredis.Redis, rule: str) -> None:
    """Run a line as an administrator would type it."""
    assert await client.execute_command(*rule.split()) in (True, b"OK")


async def refusals(client: aioredis.Redis) -> list[bytes]:
    """What the server's ACL has refused: commands, keys, channels."""
    return [
        dict(zip(e[::2], e[1::2], strict=True))[b"object"] for e in await client.execute_command("ACL LOG")
    ]


async def rights_of(config: Config) -> Check:
    report = await examine(config)
    (check,) = [c for c in report.checks if c.subject == "source game" and c.check == "rights"]
    return check


def app(server: ValkeyServer) -> str:
    return f"redis://app:pw@{server.host}:{server.port}/0"


async def test_a_user_with_nothing_gets_the_printed_rule_and_captures(
    redis_server: ValkeyServer, client: aioredis.Redis, make_redis_config: Callable[..., Config]
) -> None:
    """Each type, large keys in steps, a pivot, notifications, a gap and the scan that heals it."""
    await client.hset("player:1", mapping={"score": 7, "name": "ann"})
    await client.hset("field:f", mapping={str(n): "v" for n in range(MANY)})
    await client.zadd("board:daily", {str(n): n for n in range(MANY)})
    await client.sadd("tag:t", *range(MANY))
    await client.rpush("queue:q", *range(MANY))
    await client.set("note:long", LONG)
    await client.xadd("log:g", {"k": "v"}, id="1-0")
    await client.zadd("rank:daily", {"u": 5})
    await client.hset("person:u", "name", "una")
    await client.execute_command("ACL", "SETUSER", "app", "on", ">pw")
    config = make_redis_config(app(redis_server), {**ENTITIES, "users": PIVOT})
    error = await fails_redis(config)
    found = await rights_of(config)
    assert found.level is Level.FAIL
    assert "may not run SELECT" in found.what
    (rule,) = found.sql
    assert rule in str(error), "what capture prints is what doctor prints"
    await give(client, rule)
    assert (await rights_of(config)).level is Level.OK
    await client.execute_command("ACL LOG RESET")

    async with capturing_redis(config) as capture:
        await until_count(config, "scores", MANY)
        await until_count(config, "fields", MANY)
        await until_count(config, "tags", MANY)
        await until_count(config, "queue", MANY)
        await until_count(config, "log", 1)
        await until_rows(config, "notes", keyed([{"id": "long", "value": LONG, "until": None}], "id"))
        await client.zrem("board:daily", "7")
        await client.hdel("field:f", "7")
        await client.srem("tag:t", "7")
        await client.zadd("rank:daily", {"u": 6})
        await until_count(config, "scores", MANY - 1)
        await until_count(config, "fields", MANY - 1)
        await until_count(config, "tags", MANY - 1)
        await until_rows(config, "users", keyed([{"user_id": "u", "daily": 6.0, "name": "una"}], "user_id"))
        await client.flushdb()
        await client.set("session:after", "1")
        await client.xadd("log:g", {"k": "v"}, id="2-0")
        await capture.healed(1)
        await until_count(config, "scores", 0)
        await until_rows(config, "sessions", keyed([{"sid": "after", "value": "1"}], "sid"))
        assert capture.detail("findings") == []
    assert await refusals(client) == []


@pytest.mark.parametrize(
    ("has", "lacks"),
    corners([
        (("~*", "&*", "+@all", "-zscan", "-hscan", "-psubscribe", "-ping"), "may not run HSCAN, "
         "PING, PSUBSCRIBE"),
        (("~*", "&*", "+@all", "-publish"), "may not run PUBLISH"),
        (("~*", "&*", "+@all", "-config|set", "-type"), "may not run TYPE, CONFIG SET"),
        (("~player:*", "&*", "+@all"), "may not read keys of session:{sid}"),
        (("~*", "&__keyspace@0__:player:*", "+@all"), "may not use the channel __tailrace__:{name}:game, the "
         "channel __keyspace@0__:session:*"),
        (("~*", "&__tailrace__:*", "+@all"), "may not use the channel __keyspace@0__:player:*, the channel "
         "__keyspace@0__:session:*"),
        (("~*", "resetchannels", "&__keyspace@0__:player:*", "&__keyspace@0__:session:*", "+@all"),
         "may not use the channel __tailrace__:{name}:game"),
    ], ("~*", "&*", "+@all", "-publish"), ("~player:*", "&*", "+@all")),
)  # fmt: skip
async def test_what_is_lacking_is_named_exactly_and_one_rule_gives_it(
    redis_server: ValkeyServer,
    client: aioredis.Redis,
    make_redis_config: Callable[..., Config],
    kafka_name: str,
    has: tuple[str, ...],
    lacks: str,
) -> None:
    """The rule is taken whatever the user has already, all keys and channels among it."""
    await client.execute_command("ACL", "SETUSER", "app", "on", ">pw", *has)
    config = make_redis_config(app(redis_server), ["players", "sessions"])
    found = await rights_of(config)
    assert found.what == f"the user 'app' {lacks.replace('{name}', kafka_name)}"
    (rule,) = found.sql
    await give(client, rule)
    assert (await rights_of(config)).level is Level.OK
    await client.set("session:1", "1")
    async with capturing_redis(config):
        await until_rows(config, "sessions", keyed([{"sid": "1", "value": "1"}], "sid"))


async def test_a_password_in_the_users_name_is_no_wrong_password(
    redis_server: ValkeyServer, client: aioredis.Redis, make_redis_config: Callable[..., Config]
) -> None:
    await client.execute_command("ACL", "SETUSER", "AUTHOR", "on", ">pw", "~*", "&*", "+@all", "-scan")
    url = app(redis_server).replace("app:", "AUTHOR:")
    error = await fails_redis(make_redis_config(url))
    assert "the user 'AUTHOR' may not run SCAN" in str(error)
    assert "ACL SETUSER AUTHOR (" in str(error)


async def test_names_that_an_acl_cannot_hold(
    redis_server: ValkeyServer, client: aioredis.Redis, make_redis_config: Callable[..., Config]
) -> None:
    await client.execute_command("ACL", "SETUSER", "app", "on", ">pw")
    entity = {"pattern": 'a "b" (c):{id}', "type": "string"}
    config = make_redis_config(app(redis_server), {"odd": entity})
    (rule,) = (await rights_of(config)).sql
    await give(client, rule)
    async with capturing_redis(config):
        await client.set('a "b" (c):1', "v")
        await until_rows(config, "odd", keyed([{"id": "1", "value": "v"}], "id"))
