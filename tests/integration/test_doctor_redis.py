"""The doctor on Redis sources: each thing that is wrong is named with what mends it, and the mend mends."""

from __future__ import annotations

from collections.abc import Callable

import redis.asyncio as aioredis

from streamer.config import Config
from streamer.doctor import Check, Level, examine
from streamer.sandbox import ValkeyServer
from tests.harness.redis_capture import ENTITIES


async def checks(config: Config) -> dict[str, Check]:
    """Of the source, by name; the last of each."""
    report = await examine(config)
    return {check.check: check for check in report.checks if check.subject == "source game"}


async def test_a_fresh_server_needs_nothing_and_is_left_as_it_is(
    redis_server: ValkeyServer, client: aioredis.Redis, make_redis_config: Callable[..., Config]
) -> None:
    await client.set("session:a", "1")
    found = await checks(make_redis_config(redis_server.url, list(ENTITIES)))
    assert {name for name, check in found.items() if not check.ok} == set()
    assert "1 keys in database 0" in found["keys"].what
    assert found["notifications"].level is Level.NOTE
    assert "capture adds" in found["notifications"].what
    assert await client.config_get("notify-keyspace-events") == {"notify-keyspace-events": ""}


async def test_missing_notifications_are_told_with_the_command_that_sets_them(
    redis_server: ValkeyServer, client: aioredis.Redis, make_redis_config: Callable[..., Config]
) -> None:
    config = make_redis_config(redis_server.url, notifications="check")
    found = (await checks(config))["notifications"]
    assert found.level is Level.FAIL
    assert found.sql[0].startswith("CONFIG SET notify-keyspace-events ")
    await client.execute_command(*found.sql[0].split())
    assert (await checks(config))["notifications"].level is Level.OK


async def test_a_missing_right_is_told_with_the_rule_that_gives_it(
    redis_server: ValkeyServer, client: aioredis.Redis, make_redis_config: Callable[..., Config]
) -> None:
    """One for all that is missing, also in the subscription; that it is enough, test_redis_rights shows."""
    rules = ("on", ">pw", "~*", "&*", "+@all", "-zscan", "-psubscribe", "-config")
    await client.execute_command("ACL", "SETUSER", "app", *rules)
    config = make_redis_config(f"redis://app:pw@{redis_server.host}:{redis_server.port}/0")
    found = await checks(config)
    assert found["rights"].what == "the user 'app' may not run CONFIG GET, ZSCAN, CONFIG SET, PSUBSCRIBE"
    assert "cannot be read" in found["notifications"].what
    (rule,) = found["rights"].sql
    assert rule.startswith("ACL SETUSER app (+")
    await client.execute_command(*rule.split())
    found = await checks(config)
    assert {name for name, check in found.items() if not check.ok} == set()


async def test_the_channels_that_are_probed_are_those_of_capture(
    redis_server: ValkeyServer,
    client: aioredis.Redis,
    make_redis_config: Callable[..., Config],
    kafka_name: str,
) -> None:
    channels = (f"&__tailrace__:{kafka_name}:game", "&__keyspace@0__:session:*")
    await client.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all", *channels)
    config = make_redis_config(f"redis://app:pw@{redis_server.host}:{redis_server.port}/0", ["sessions"])
    assert (await checks(config))["rights"].ok
    await client.execute_command(
        "ACL", "SETUSER", "app", "resetchannels", "&__tailrace__:doctor", channels[1]
    )
    found = (await checks(config))["rights"]
    assert found.what == f"the user 'app' may not use the channel __tailrace__:{kafka_name}:game"


async def test_a_setting_that_cannot_be_read_is_a_risk_where_it_is_not_ours_to_set(
    redis_server: ValkeyServer, client: aioredis.Redis, make_redis_config: Callable[..., Config]
) -> None:
    await client.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-config")
    url = f"redis://app:pw@{redis_server.host}:{redis_server.port}/0"
    found = await checks(make_redis_config(url, notifications="check"))
    assert found["rights"].ok
    assert found["notifications"].level is Level.WARN
    (rule,) = found["notifications"].sql
    assert "+config|set" not in rule
    await client.execute_command(*rule.split())
    assert (
        "which lacks" in (await checks(make_redis_config(url, notifications="check")))["notifications"].what
    )


async def test_a_wrong_password_is_told_without_it(
    redis_server: ValkeyServer, make_redis_config: Callable[..., Config]
) -> None:
    config = make_redis_config(f"redis://:mistyped@{redis_server.host}:{redis_server.port}/0")
    found = await checks(config)
    assert not found["login"].ok
    assert "mistyped" not in str(found["login"])


async def test_a_server_that_is_away_is_told(
    redis_server: ValkeyServer, make_redis_config: Callable[..., Config]
) -> None:
    config = make_redis_config(redis_server.url)
    redis_server.kill()
    assert not (await checks(config))["reachable"].ok
