"""`tailrace reconcile` with Redis on either side, as processes: equal, drift by name, repaired by the log."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import redis.asyncio as aioredis

from streamer.sandbox import ValkeyServer
from tests.harness.pipeline import Pipeline, execute
from tests.harness.reconcile import KINDS, counts, proved, reconcile, samples, sqlite_target

ENTITIES: dict[str, Any] = {
    "players": {"pattern": "player:{id}", "type": "hash", "columns": {"score": "int", "name": "text"}},
    "scores": {
        "pattern": "board:{period}",
        "type": "zset",
        "rows": {"member": "user_id", "score": "points"},
    },
    "sessions": {"pattern": "session:{sid}", "type": "string", "value": "json", "expires_at": "until"},
}
ITEM = (
    "CREATE TABLE item (id bigint PRIMARY KEY, name text, price numeric(10,2), ok bool, big float8)",
    "INSERT INTO item SELECT n, 'item ' || n, n * 0.5, n % 2 = 0, -n * 0.0 FROM generate_series(1, 300) n",
    "INSERT INTO item VALUES (1000, '', NULL, NULL, 'NaN'), (1001, NULL, -1, true, '-Infinity')",
)

VERSION = "_tailrace_epoch, _tailrace_lsn, _tailrace_ordinal"  # without it the first copy's floor takes a row


@pytest.fixture
async def pair(pipeline: Pipeline, redis_server: ValkeyServer, tmp_path: Path) -> AsyncIterator[Pair]:
    """A Postgres and a Redis, each a source and a target: database 0 is the source, 1 the target."""
    source = aioredis.from_url(redis_server.url)
    target = aioredis.from_url(redis_server.url.removesuffix("/0") + "/1")
    yield Pair(pipeline, redis_server, source, target, tmp_path / "lite.db")
    await source.aclose()
    await target.aclose()


class Pair:
    def __init__(
        self,
        pipeline: Pipeline,
        server: ValkeyServer,
        source: aioredis.Redis,
        target: aioredis.Redis,
        lite: Path,
    ) -> None:
        self.pipeline = pipeline
        self.server = server
        self.source = source
        self.target = target
        self.lite = lite
        self.cache = f"{pipeline.name}_cache"

    def configure(self, flows: dict[str, Any], entities: dict[str, Any] = ENTITIES) -> None:
        config = self.pipeline.config
        url = self.server.url.removesuffix("/0")
        config["sources"][self.cache] = {"kind": "redis", "url": f"{url}/0", "entities": entities}
        config["targets"] |= {"back": {"kind": "redis", "url": f"{url}/1"}, "lite": sqlite_target(self.lite)}
        config["flows"] = flows
        self.pipeline.write_config()


@pytest.mark.thorough
async def test_every_pair_is_proved_and_faults_are_named(pair: Pair) -> None:
    pipeline, source, target = pair.pipeline, pair.source, pair.target
    shop, cache = f"{pipeline.source}.public.item", pair.cache
    pair.configure(
        {
            "copies": {"from": f"{cache}.*", "to": "copy.cache"},
            "lite": {"from": f"{cache}.players", "to": "lite.main"},
            "again": {"from": f"{cache}.players", "to": "back.again"},
            "boards": {
                "from": f"{cache}.scores",
                "to": "back.boards",
                "as": "zset",
                "key": "copy:{period}",
                "member": "user_id",
                "score": "points",
            },
            "hashes": {"from": shop, "to": "back.h"},
            "texts": {"from": shop, "to": "back.j", "as": "json"},
            "prices": {"from": shop, "to": "back.z", "as": "zset", "member": "id", "score": "price"},
        }
    )
    for n in range(300):
        await source.hset(f"player:{n}", mapping={"score": n, "name": f"n {n}"})
        await source.set(
            f"session:{n}", '{"b":1.50, "a":["x",null,true,-0.0,1e3]}', ex=10_000 if n % 2 else None
        )
    await source.hset(b"player:\xff", mapping={"score": -1})
    await source.zadd("board:daily", {f"u{n}": n / 3 for n in range(2500)})
    await source.zadd("board:all", {"u1": float("-inf"), "u2": -0.0})
    await execute(pipeline.source_url, *ITEM)
    pipeline.start("run")
    report = await proved(pipeline)
    rows = {(t["flow"], t["source"]): (t["source_rows"], t["target_rows"]) for t in report["tables"]}
    assert rows == {
        ("copies", "players"): (301, 301),
        ("copies", "scores"): (2502, 2502),
        ("copies", "sessions"): (300, 300),
        ("lite", "players"): (301, 301),
        ("again", "players"): (301, 301),
        ("boards", "scores"): (2502, 2502),
        ("hashes", "public.item"): (302, 302),
        ("texts", "public.item"): (302, 302),
        ("prices", "public.item"): (301, 301),  # one has no score
    }
    await execute(
        pipeline.target_url,
        "DELETE FROM cache.players WHERE id = '7'",
        "UPDATE cache.players SET score = 0 WHERE id = '8'",
        f"INSERT INTO cache.players (id, {VERSION}) SELECT 'x', {VERSION} FROM cache.players LIMIT 1",
        "UPDATE cache.scores SET points = 0 WHERE user_id = 'u1' AND period = 'all'",
        """UPDATE cache.sessions SET value = '{"a":["x",null,true,-0.0,1e3],"b":1.5}' WHERE sid = '9'""",
    )
    await target.delete("again:players:7")
    await target.zadd("copy:all", {"u1": 0.0})
    await target.hset("h:item:4", "price", "2.0")
    await target.hdel("h:item:1000", "name")
    await target.rename("j:item:5", "j:item:5000")
    await target.zadd("z:item", {"6": 3.5, "7": 3.0, "9999": 1})
    code, report = await reconcile(pipeline)
    assert (code, report["verdict"]) == (1, "drift")
    found: dict[str, set[tuple[str, ...]]] = {t["flow"]: set() for t in report["tables"]}
    for table in report["tables"]:
        found[table["flow"]] |= {(s["kind"], *s["key"]) for s in table["samples"]}
    assert found == {
        "copies": {
            ("missing", "7"),
            ("different", "8"),
            ("extra", "x"),
            ("different", "all", "u1"),
            ("different", "9"),
        },
        "lite": set(),
        "again": {("missing", "7")},
        "boards": {("different", "all", "u1")},
        "hashes": {("different", "4"), ("different", "1000")},
        "texts": {("missing", "5"), ("extra", "5000")},
        "prices": {("different", "6"), ("different", "7"), ("extra", "9999")},
    }
    code, report = await reconcile(pipeline, "--repair", "--delete-extra", "--refuse-above", "50%")
    assert (code, report["verdict"]) == (4, "repaired"), report
    assert (await proved(pipeline))["verdict"] == "equal"


def drifted(report: dict[str, Any]) -> dict[str, dict[str, int]]:
    """What is drift, by source's table."""
    return {
        t["source"]: {kind: count for kind, count in counts(t).items() if kind in KINDS}
        for t in report["tables"]
    }


@asynccontextmanager
async def toggling(client: aioredis.Redis) -> AsyncIterator[None]:
    """Keys and members that come, go and change to and fro all the time."""

    ended = asyncio.Event()

    async def write() -> None:
        for n in itertools.takewhile(lambda _: not ended.is_set(), itertools.count()):
            key = n % 20
            async with client.pipeline(transaction=False) as line:
                line.hset(f"player:{key}", mapping={"score": n % 2, "name": "hot"})
                line.set(f"session:{key}", "1", px=5) if n % 3 else line.delete(f"session:{key}")
                line.zadd("board:daily", {f"u{key}": n % 2}) if n % 5 else line.zrem("board:daily", f"u{key}")
                line.hset(f"player:{100 + n % 200}", mapping={"score": n, "name": f"n{n}"})
                await line.execute()
            await asyncio.sleep(0.002)

    task = asyncio.create_task(write(), name="writer")
    try:
        yield
    finally:
        ended.set()  # the client may lose a cancellation
        await task


@pytest.mark.thorough
async def test_h19_what_is_on_its_way_is_no_drift_and_a_lost_notification_is(pair: Pair) -> None:
    pipeline, source = pair.pipeline, pair.source
    flow = {"from": f"{pair.cache}.*", "to": "copy.cache", "hold_deletes_above": "100%"}
    pair.configure({"copies": flow})
    await source.zadd("board:daily", {f"u{n}": n for n in range(1500)})
    async with source.pipeline(transaction=False) as line:
        for n in range(300):
            line.hset(f"player:{n}", mapping={"score": n, "name": f"n {n}"})
        await line.execute()
    pipeline.start("run")
    await proved(pipeline)
    async with toggling(source):
        for _ in range(4):
            code, report = await reconcile(pipeline)
            assert code == 0, (drifted(report), [t["reason"] for t in report["tables"]])
    await proved(pipeline)
    # Between two looks at the setting: nobody is told, and no sign shows.
    setting = str((await source.config_get("notify-keyspace-events"))["notify-keyspace-events"])
    async with source.pipeline() as line:
        line.config_set("notify-keyspace-events", "")
        line.hset("player:50", "score", 999)
        line.delete("player:51")
        line.zadd("board:daily", {"u1400": -1})
        line.config_set("notify-keyspace-events", setting)
        await line.execute()
    code, report = await reconcile(pipeline)
    assert code == 1
    assert samples(report) == {
        ("different", "50"),
        ("extra", "51"),
        ("different", "daily", "u1400"),
    }
    code, report = await reconcile(pipeline, "--repair")
    assert (code, samples(report)) == (1, samples(report) | {("extra", "51")})
    code, report = await reconcile(pipeline, "--repair", "--delete-extra")
    assert (code, report["verdict"]) == (4, "repaired"), report
    assert (await reconcile(pipeline))[0] == 0
