"""Streams: what is trimmed stays, and a stream that is no more takes its rows with it."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from typing import Any

import orjson
import pytest
import redis.asyncio as aioredis

from streamer.config import Config
from streamer.redis import heal
from streamer.sandbox import ValkeyServer
from tests.harness.capture import until
from tests.harness.redis_capture import bad_values, capturing_redis, fold, keyed, until_count, until_rows

pytestmark = pytest.mark.usefixtures("clean_game_topics")


async def add(pipe: aioredis.Redis, name: str, *numbers: int) -> None:
    for n in numbers:
        await pipe.xadd(name, {"n": str(n)}, id=f"{n}-0")


def rows_of(**ids: list[int]) -> dict[bytes, dict[str, object]]:
    return keyed(
        [
            {"id": name, "entry": f"{n}-0", "fields": f'{{"n":"{n}"}}'}
            for name, numbers in ids.items()
            for n in numbers
        ],
        "id",
        "entry",
    )


async def test_a_stream_that_is_made_again_at_once_holds_its_own_entries_only(
    redis_server: ValkeyServer, client: aioredis.Redis, make_redis_config: Callable[..., Config]
) -> None:
    config = make_redis_config(redis_server.url, ["log"])
    async with capturing_redis(config):
        await add(client, "log:a", 50, 60)
        await until_rows(config, "log", rows_of(a=[50, 60]))
        await add(client, "misc", 10, 55, 90)
        await client.rename("misc", "log:a")  # with ids below the last one known
        await until_rows(config, "log", rows_of(a=[10, 55, 90]))
        for ids in [20, 95], [96, 97]:  # ... and only above it
            async with client.pipeline() as pipe:
                pipe.delete("log:a")
                await add(pipe, "log:a", *ids)
                await pipe.execute()
            found = await until_rows(config, "log", rows_of(a=ids))
        assert found.ops(b'{"id":"a","entry":"95-0"}') == "cd"


@pytest.mark.parametrize("emptied", ["FLUSHDB", "SWAPDB 0 1"])
async def test_h21_a_stream_that_is_made_again_in_an_emptied_database_holds_its_own_entries_only(
    emptied: str,
    redis_server: ValkeyServer,
    client: aioredis.Redis,
    make_redis_config: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its entries are read before the scan. No more rows stay than it has lost entries, the last ones."""
    config = make_redis_config(redis_server.url, ["log"])
    made = False
    run = heal.Heal.run

    async def run_after_notifications(self: heal.Heal, why: str) -> bool:
        if made:
            await until_entry(config, b'{"id":"one","entry":"9-0"}')
            await until_entry(config, b'{"id":"cut","entry":"9-0"}')
        return await run(self, why)

    monkeypatch.setattr(heal.Heal, "run", run_after_notifications)
    async with capturing_redis(config) as capture:
        for name in "one", "cut", "none":
            await add(client, f"log:{name}", 1, 2, 3)
        await until_count(config, "log", 9)
        gaps, made = capture.detail("gaps_seen"), True
        async with client.pipeline() as pipe:
            pipe.execute_command(*emptied.split())
            await add(pipe, "log:one", 9)
            await add(pipe, "log:cut", 7, 8, 9)
            await add(pipe, "log:none", 9)
            pipe.xtrim("log:cut", maxlen=1, approximate=False)
            pipe.xdel("log:none", "9-0")
            await pipe.execute()
        await capture.healed(gaps + 1)
        await until_rows(config, "log", rows_of(one=[9], cut=[2, 3, 9]))


@pytest.mark.parametrize("emptied", [True, False])
async def test_h21_a_stream_that_is_made_again_behind_the_scan_holds_its_own_entries_only(
    emptied: bool,
    redis_server: ValkeyServer,
    client: aioredis.Redis,
    make_redis_config: Callable[..., Config],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SCAN does not meet it any more, and its notification has come before the reverse pass."""
    config = make_redis_config(redis_server.url, ["log"])
    gone = False
    scan = heal.full

    async def then_made(*args: Any) -> AsyncGenerator[tuple[int, list[bytes]], None]:
        async for batch in scan(*args):
            yield batch
        if gone:
            await add(client, "log:a", 9)
            await until_entry(config, b'{"id":"a","entry":"9-0"}')

    monkeypatch.setattr(heal, "full", then_made)
    async with capturing_redis(config) as capture:
        await add(client, "log:a", 1, 2, 3)
        await until_rows(config, "log", rows_of(a=[1, 2, 3]))
        if emptied:
            gone = True
            gaps = capture.detail("gaps_seen")
            await client.flushdb()
            await capture.healed(gaps + 1)
            await until_rows(config, "log", rows_of(a=[9]))
    if not gone:
        gone = True
        await client.delete("log:a")
        async with capturing_redis(config) as capture:
            await capture.healed(1)
            await until_rows(config, "log", rows_of(a=[9]))


async def until_entry(config: Config, key: bytes) -> None:
    async def there() -> bool:
        return key in (await fold(config, "log")).rows

    await until(there)


async def test_h21_a_stream_that_was_made_again_while_nobody_watched(
    redis_server: ValkeyServer, client: aioredis.Redis, make_redis_config: Callable[..., Config]
) -> None:
    """What was trimmed or deleted entry by entry stays; what is of another stream, or of a future that never
    came, goes."""
    config = make_redis_config(redis_server.url, ["log"])
    before = {"trimmed": 6, "emptied": 3, "deleted": 4, "made": 3, "old": 5, "lower": 3}
    for name, count in before.items():
        await add(client, f"log:{name}", *range(1, count + 1))
        if name == "old":
            await client.xtrim("log:old", maxlen=count - 1, approximate=False)
            await add(client, "misc", 1, 2, 3)
            await client.xtrim("misc", maxlen=2, approximate=False)
    whole = {name: list(range(1, count + 1)) for name, count in before.items()}
    whole["old"] = [2, 3, 4, 5]
    async with capturing_redis(config):
        await until_rows(config, "log", rows_of(**whole))
    await client.xtrim("log:trimmed", maxlen=2, approximate=False)
    await client.xtrim("log:emptied", maxlen=0, approximate=False)
    await client.xdel("log:deleted", "2-0")
    await client.delete("log:made", "log:lower")
    await add(client, "log:made", 9)
    await add(client, "log:lower", 1)
    await client.rename("misc", "log:old")  # as a server that comes back with older data
    await add(client, "log:old", 6)
    wanted = {**whole, "made": [9], "lower": [1], "old": [2, 3, 6]}
    async with capturing_redis(config) as capture:
        await capture.healed(1)
        found = await until_rows(config, "log", rows_of(**wanted))
    swept = {(orjson.loads(r.key)["id"], int(value)) for r in found.records for _, value in r.headers}
    assert swept == {("made", 3), ("lower", 2), ("old", 2)}


async def test_a_new_expiry_changes_the_entries_that_were_read_before(
    redis_server: ValkeyServer, client: aioredis.Redis, make_redis_config: Callable[..., Config]
) -> None:
    log = {"pattern": "log:{id}", "type": "stream", "rows": {"id": "entry"}, "key": {"id": "int"}}
    config = make_redis_config(redis_server.url, {"log": {**log, "expires_at": "until"}})
    async with capturing_redis(config) as capture:
        await add(client, "log:7", 1, 2)
        await until_count(config, "log", 2)
        await add(client, "log:seven", 1)
        await capture.until(lambda: capture.detail("bad") == {"log": 1})
        await client.expireat("log:7", 4102444800)
        entry: dict[str, object] = {"id": 7, "until": "2100-01-01T00:00:00Z"}
        rows = [{**entry, "entry": f"{n}-0", "fields": f'{{"n":"{n}"}}'} for n in (1, 2)]
        assert (await until_rows(config, "log", keyed(rows, "id", "entry"))).ops() == "ccuu"
    assert [bad["key"] for bad in await bad_values(config)] == ["log:seven"]
