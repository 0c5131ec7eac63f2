"""Whom the crash run kills: everybody at least once, as far as its rounds allow; and what a writer sends."""

from __future__ import annotations

from random import Random

import pytest

from tests.crash.redis.writer import RESTORE, Mill
from tests.crash.run import KILLS_A_ROUND, VICTIMS, victims_of_round


def plan(seed: int, rounds: int) -> list[list[str]]:
    random, killed, found = Random(seed), set[str](), list[list[str]]()
    for number in range(1, rounds + 1):
        found.append(victims_of_round(random, sorted(VICTIMS), killed, rounds - number + 1))
        killed |= set(found[-1])
    return found


@pytest.mark.parametrize("rounds", [2, 3, 5])
def test_nobody_is_spared_when_the_rounds_allow_it(rounds: int) -> None:
    for seed in range(300):
        found = plan(seed, rounds)
        assert {victim for chosen in found for victim in chosen} == set(VICTIMS)
        assert all(1 <= len(chosen) <= KILLS_A_ROUND for chosen in found)


def test_too_few_rounds_kill_as_many_as_they_can() -> None:
    for seed in range(50):
        [chosen] = plan(seed, 1)
        assert len(set(chosen)) == KILLS_A_ROUND


def test_the_seed_names_the_plan() -> None:
    assert plan(7, 4) == plan(7, 4)
    assert len({str(plan(seed, 4)) for seed in range(20)}) > 10


def test_the_writer_of_a_redis_run_sends_every_command_that_leaves_a_mark() -> None:
    mill = Mill(7, big_members=10, calamities=True)
    sent = {command[0] for operation in mill.operations * 500 for command in operation()}
    wanted = b"SET DEL EXPIRE RENAME HSET ZADD ZINCRBY ZREM FLUSHDB SWAPDB MULTI EVAL COPY MOVE XADD".split()
    assert sent >= set(wanted)
    assert b"RESTORE" in RESTORE
