"""Two captures of one Redis source on one host, as processes: one of them captures, whatever happens."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import redis.asyncio as aioredis

from tests.acceptance.test_redis_walk import equal, game, write
from tests.harness.pipeline import Child, Pipeline

__all__ = ["game"]  # the fixture

TAKEN_OVER_S = 40.0  # Kafka gives a process that stands still up 10 s after it was heard last


async def states(game: Pipeline) -> dict[int, str]:
    return {record.pid: record.state for record in await game.status("capture")}


def copies(game: Pipeline) -> list[str]:
    folder = Path(game.config_path).parent / ".tailrace" / "shadow"
    return sorted(path.name for path in folder.glob("*.db"))


async def taken_over(game: Pipeline, client: aioredis.Redis) -> tuple[Child, Child]:
    """(asleep, at work): the first was stopped, and the second has taken its place."""
    first = game.start("capture")
    await game.state("capture", "streaming", child=first)
    second = game.start("capture")
    await game.state("capture", "standby", child=second)
    await write(client, 1)
    await equal(game, client)
    os.kill(first.pid, signal.SIGSTOP)
    await game.state("capture", "streaming", child=second, timeout_s=TAKEN_OVER_S)
    await write(client, 2)
    await equal(game, client)
    return first, second


@pytest.mark.thorough
async def test_h30_a_capture_that_wakes_up_leaves_the_other_at_work(
    game: Pipeline, client: aioredis.Redis
) -> None:
    game.start("apply")
    first, second = await taken_over(game, client)
    assert copies(game) == [f"{game.source}.1.db", f"{game.source}.db"]
    os.kill(first.pid, signal.SIGCONT)
    first.killed = True  # it may end with an error, or wait as the new standby
    await write(client, 3)
    await equal(game, client)

    async def gave_way() -> bool:
        return not first.running or (await states(game))[first.pid] == "standby"

    await game.until("the woken one has ended, or stands by", gave_way)
    assert second.running
    assert (await states(game))[second.pid] == "streaming"
    second.kill()
    third = first if first.running else game.start("capture")
    await write(client, 4)
    await game.state("capture", "streaming", child=third)
    await equal(game, client)
    assert copies(game) == [f"{game.source}.db"]


@pytest.mark.thorough
async def test_h30_a_capture_that_is_killed_in_its_sleep_leaves_the_other_at_work(
    game: Pipeline, client: aioredis.Redis
) -> None:
    game.start("apply")
    first, second = await taken_over(game, client)
    first.kill()
    await write(client, 3)
    await equal(game, client)
    assert (await states(game))[second.pid] == "streaming"
