"""A few rounds of the crash run; `make crash ROUNDS=200` has many."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamer.sandbox import KafkaServer, PostgresServer, Sandbox
from tests.crash.run import VICTIMS, CrashRun, Place, Shared

ROUNDS = 3
SEED = 20


async def test_kill_9_of_both_processes_and_the_target(
    tmp_path: Path,
    postgres_server: PostgresServer,
    postgres_target_server: PostgresServer,
    database: str,
    target_database: str,
    kafka_server: KafkaServer,
    kafka_name: str,
) -> None:
    """Each once, in one round."""
    places = Place(postgres_server, database), Place(postgres_target_server, target_database)
    victims = ["apply", "capture", "target"]
    shared = Shared(places, kafka_server)
    score = await CrashRun(tmp_path, shared, seed=SEED, name=kafka_name, victims=victims, load_s=2.0).run(1)
    assert score.ok, "\n".join([str(score), *score.notes])
    assert sorted(score.kills) == victims


@pytest.mark.thorough
async def test_kill_9_of_every_part_under_load(tmp_path: Path, servers: Sandbox) -> None:
    score = await CrashRun(tmp_path, servers, seed=SEED).run(ROUNDS)
    assert score.ok, "\n".join([str(score), *score.notes])
    assert score.kills.total() >= ROUNDS


@pytest.mark.slow
@pytest.mark.parametrize("victim", VICTIMS)
async def test_many_rounds_on_one_victim(tmp_path: Path, servers: Sandbox, victim: str) -> None:
    score = await CrashRun(tmp_path, servers, seed=SEED, victims=[victim]).run(10)
    assert score.ok, "\n".join([str(score), *score.notes])
