"""Whom the crash run kills: everybody at least once, as far as its rounds allow; and what a writer sends."""

from __future__ import annotations

from random import Random

import pytest

from tests.crash.redis.expected import Expected, Log
from tests.crash.redis.topics import Topics
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


@pytest.mark.parametrize(
    ("lost", "rows", "stale"),
    [
        (0, ["1-0", "7-0"], ["1-0"]),
        (2, ["1-0", "3-0", "7-0"], []),
        (1, ["3-0", "10-0", "7-0"], ["10-0"]),
        (2, ["2-0", "10-0", "3-0", "7-0", "4-0"], ["10-0", "2-0"]),
        (5, ["8-0", "7-0"], ["8-0"]),
    ],
)
def test_the_judge_of_a_redis_run_lets_pass_what_a_stream_has_lost_and_no_more(
    lost: int, rows: list[str], stale: list[str]
) -> None:
    """Of a stream whose first and only entry is 7-0; and of one that is not there, nothing."""
    topics = Topics("localhost:0", "game", 1)
    topics.rows["logs"] = {(0, "a", entry): {} for entry in [*rows, "7-0"]}
    wanted = Expected(rows={"logs": {(0, "a", "7-0"): {}}}, logs={(0, "a"): Log((7, 0), lost)})
    missing, found = topics.differences(wanted)
    assert missing == []
    assert sorted(text.split("'")[3] for text in found) == stale
    _, gone = topics.differences(Expected())
    assert len(gone) == len(topics.rows["logs"])
