"""Faults of a Redis source under load, a few of them; `make crash-redis ROUNDS=200` has many. And a flush."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
import redis.asyncio as aioredis

from streamer.sandbox import Sandbox, ValkeyServer
from tests.crash.redis.faults import FAULTS
from tests.crash.redis.run import RedisCrashRun, Score
from tests.harness.pipeline import Pipeline

SEED = 20
LOAD_S = 2.0
OPS_PER_S = 5_000
BIG_MEMBERS = 12_000  # read in steps
FEW = ["cut", "server", "capture"]
KEYS_AT_ONCE = 5_000


def report(score: Score) -> str:
    return "\n".join([str(score), *score.notes])


@pytest.mark.thorough
async def test_h21_faults_under_load_lose_nothing(
    tmp_path: Path, redis_server: ValkeyServer, kafka: str, kafka_name: str
) -> None:
    run = RedisCrashRun(
        tmp_path,
        redis_server,
        kafka,
        seed=SEED,
        name=kafka_name,
        faults=FEW,
        load_s=LOAD_S,
        ops_per_s=OPS_PER_S,
        big_members=BIG_MEMBERS,
    )
    score = await run.run(1)
    assert score.ok, report(score)
    assert score.faults.total() >= 1
    assert score.gaps.total() >= 1
    assert score.rows > BIG_MEMBERS


@pytest.fixture
def crash_servers(redis_program: Path | None, kafka_archive: None) -> Iterator[Sandbox]:
    """A Kafka of the test's own, to kill."""
    with Sandbox(postgres=0, valkey=0, kafka=1, fast=True) as sandbox:
        sandbox.add_valkey(program=redis_program).start()
        yield sandbox


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
async def test_many_faults_of_one_kind(tmp_path: Path, crash_servers: Sandbox, fault: str) -> None:
    score = await RedisCrashRun(
        tmp_path,
        crash_servers.valkey[0],
        crash_servers.kafka.bootstrap,
        seed=SEED,
        kafka_server=crash_servers.kafka,
        faults=[fault],
    ).run(3)
    assert score.ok, report(score)


@pytest.mark.thorough
@pytest.mark.parametrize("rows", [2_000, pytest.param(100_000, marks=pytest.mark.slow)])
async def test_a_flush_deletes_nothing_before_it_is_approved(
    tmp_path: Path, redis_server: ValkeyServer, target_database: str, kafka: str, kafka_name: str, rows: int
) -> None:
    """FLUSHALL on the source, which is written to again at once."""
    source = f"{kafka_name}_game"
    async with (
        aioredis.from_url(redis_server.url) as client,
        Pipeline(
            tmp_path,
            source_url=redis_server.url,
            target_url=target_database,
            brokers=kafka,
            name=kafka_name,
            flows={"mirror": {"from": f"{source}.*", "to": "copy.game"}},
        ) as game,
    ):
        entities = {"sessions": {"pattern": "session:{sid}", "type": "string"}}
        game.source = source
        game.config["sources"] = {source: {"kind": "redis", "url": redis_server.url, "entities": entities}}
        game.write_config()
        for at in range(0, rows, KEYS_AT_ONCE):
            await client.mset({f"session:{n}": n for n in range(at, min(at + KEYS_AT_ONCE, rows))})
        game.start("run")

        query = "SELECT count(*) FROM game.sessions WHERE sid <> 'after'"

        async def there(count: int) -> bool:
            try:
                return bool(await game.target_value(query) == count)
            except psycopg.errors.UndefinedTable:
                return False

        async def in_state(state: str) -> bool:
            flows = [record.detail["flows"]["mirror"] for record in await game.status("apply")]
            return [flow["state"].lower() for flow in flows] == [state]

        async def swept() -> bool:
            (capture,) = await game.status("capture")
            scan = capture.detail["last_scan"]
            return scan is not None and bool(scan["gone"] == rows)

        await game.until("all rows are in the target", lambda: there(rows))
        await client.flushall()
        await client.mset({"session:after": "1"})
        await game.until("every delete is in Kafka", swept)
        await game.until("the flow is held", lambda: in_state("held"))
        assert await there(rows)
        code, text = await game.run("approve", "mirror")
        assert code == 0, text
        await game.until("the deletes are in the target", lambda: there(0))
        await game.until("the flow goes on", lambda: in_state("streaming"))
