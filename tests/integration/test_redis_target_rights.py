"""The rule that is printed for the user of a Redis target is whole: one who has nothing applies with it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis

from consumers.targets.registry import make_target
from streamer.config import Config, RedisTarget
from streamer.doctor.check import Check, Findings, Level
from streamer.doctor.redis_target import check_redis_target
from streamer.errors import ConfigError
from streamer.sandbox import ValkeyServer
from tests.harness.feeder import Feeder, applying
from tests.harness.redis_target import Flows, redis_config_of

WAIT_S = 60.0
COLUMNS = [("id", "bigint", "number"), ("name", "text", "text"), ("points", "integer", "number")]
FLOWS: Flows = {
    "hashes": {"to": "copy.h"},
    "texts": {"from": "{source}.public.orders", "to": "copy.j", "as": "json", "key": "order:[{id}]:text"},
    "board": {"to": "copy.z", "as": "zset", "member": "id", "score": "points"},
    "members": {"from": "{source}.public.orders", "to": "copy.s", "as": "set", "member": "id", "key": "all"},
    "soft": {"to": "copy.d", "delete": "soft(gone)", "ttl": "1h"},
    "history": {"to": "copy.a", "write": "append"},
}


@asynccontextmanager
async def redis_at(url: str) -> AsyncIterator[Redis]:
    client = Redis.from_url(url, protocol=2, decode_responses=True)
    try:
        yield client
    finally:
        await client.aclose()


@pytest.fixture
async def admin(valkey_server: ValkeyServer) -> AsyncIterator[Redis]:
    """Of an empty server of the session's; the user `ann` may do nothing."""
    valkey_server.start()
    async with redis_at(valkey_server.url) as client:
        await client.flushall()
        await client.execute_command("ACL", "SETUSER", "ann", "reset", "on", ">pw")
        yield client
        await client.execute_command("ACL", "DELUSER", "ann")
        await client.flushall()


def ann(server: ValkeyServer) -> str:
    return f"redis://ann:pw@{server.host}:{server.port}/0"


def flows_of(feeder: Feeder) -> Flows:
    return {
        name: {k: v.replace("{source}", feeder.source) if k == "from" else v for k, v in keys.items()}
        for name, keys in FLOWS.items()
    }


async def doctor_says(config: Config) -> dict[str, Check]:
    findings = Findings("target copy")
    target = config.targets["copy"]
    assert isinstance(target, RedisTarget)
    await check_redis_target(findings, config, target, {})
    return {check.check: check for check in findings.checks}


async def refusals(client: Redis) -> list[Any]:
    """What the server's ACL has refused, but for what is asked in vain: rights, the client's name."""
    found = await client.execute_command("ACL LOG")
    texts = [str(entry["object"] if isinstance(entry, dict) else entry[7]) for entry in found]
    return [text for text in texts if text not in ("acl|dryrun", "client|setinfo")]


async def until(condition: Callable[[], Awaitable[bool]], what: str) -> None:
    deadline = time.monotonic() + WAIT_S
    while not await condition():
        assert time.monotonic() < deadline, what


async def test_a_user_with_nothing_gets_the_printed_rule_and_applies(
    kafka: str, kafka_name: str, valkey_server: ValkeyServer, admin: Redis
) -> None:
    """Every layout, with keys of the flows' own; deletes, a truncate, a row that is refused and parked."""
    async with Feeder(kafka, kafka_name) as feeder:
        orders = await feeder.table("orders", COLUMNS)
        config = redis_config_of(feeder, ann(valkey_server), flows_of(feeder))
        target = make_target(config.targets["copy"], f"{config.name}.copy", list(config.flows.values()))
        with pytest.raises(ConfigError) as denied:
            await target.open()
        await target.close()
        found = (await doctor_says(config))["rights"]
        assert found.level is Level.FAIL
        (rule,) = found.sql
        assert rule in denied.value.fix, "what apply prints is what doctor prints"
        for keys in ("~_tailrace:*", "~h:*:*", "~order:\\[*\\]:text", "~z:*", "~all", "~d:*:*", "~a:*:*"):
            assert keys in rule.rstrip(")").split()
        await admin.execute_command(*rule.split())
        assert all(c.level in (Level.OK, Level.NOTE) for c in (await doctor_says(config)).values())
        await admin.execute_command("ACL LOG RESET")

        async with applying(config) as run:
            for number in range(20):
                orders.create({"id": number, "name": "n", "points": number}, 8 * number + 8)
            orders.update({"id": 3, "name": None, "points": None}, 200)
            orders.delete({"id": 4, "name": None, "points": None}, 208)
            orders.create({"id": 30, "name": "x", "points": 1}, 216)
            orders.raw(b'{"id":31}', b"{ this is no JSON")
            await feeder.flush()
            await run.settled(feeder)

            async def is_there() -> bool:
                return await admin.hgetall("h:orders:30") == {"id": "30", "name": "x", "points": "1"}

            await until(is_there, "rows")
            assert await admin.exists("order:[30]:text", "all", "z:orders", "d:orders:3") == 4
            assert await admin.scard("_tailrace:parked") > 0
            orders.truncate(400)
            orders.create({"id": 40, "name": "y", "points": 1}, 408)
            await feeder.flush()
            await run.settled(feeder)
            await until(lambda: _members_are(admin, {"40"}), "truncated")
        assert await refusals(admin) == []


async def _members_are(client: Redis, wanted: set[str]) -> bool:
    return bool(await client.smembers("all") == wanted)


@pytest.mark.parametrize(
    ("has", "lacks"),
    [
        (("~*", "+@all", "-hset", "-rpush"), "may not run HSET, RPUSH"),
        (("~_tailrace:*", "+@all"), "may not write keys h:*:*"),
        (("~h:*", "+@all"), "may not read the key _tailrace:identity"),
    ],
)
async def test_what_is_lacking_is_named_exactly_and_one_rule_gives_it(
    kafka: str,
    kafka_name: str,
    valkey_server: ValkeyServer,
    admin: Redis,
    has: tuple[str, ...],
    lacks: str,
) -> None:
    """The rule is taken whatever the user has already, all keys among it."""
    await admin.execute_command("ACL", "SETUSER", "ann", *has)
    async with Feeder(kafka, kafka_name) as feeder:
        config = redis_config_of(feeder, ann(valkey_server), {"hashes": {"to": "copy.h"}})
    found = (await doctor_says(config))["rights"]
    assert found.what == f"the user 'ann' {lacks}"
    await admin.execute_command(*found.sql[0].split())
    assert (await doctor_says(config))["rights"].level is Level.OK
