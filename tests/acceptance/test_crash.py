"""A few rounds of the crash run; `make crash ROUNDS=200` has many."""

from __future__ import annotations

from pathlib import Path

import pytest

from streamer.sandbox import Sandbox
from tests.crash.run import VICTIMS, CrashRun

ROUNDS = 3
SEED = 20


async def test_kill_9_of_both_processes_and_the_target(tmp_path: Path, servers: Sandbox) -> None:
    score = await CrashRun(tmp_path, servers, seed=SEED, victims=["capture", "apply", "target"]).run(2)
    assert score.ok, "\n".join([str(score), *score.notes])
    assert score.kills.total() >= 2


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
