"""What stands still and what only has much to do, how late it is, and the thread that ends a process whose
event loop does not turn."""

from __future__ import annotations

import subprocess
import sys

import pytest

from consumers.processors.behind import Behind, Pace
from consumers.processors.membership import REVOKE_S
from consumers.processors.standing import TURNS, Doing, Lag, Standing
from consumers.processors.watch import LOCK_S, LOOK_S, SLACK_S, STAND_STILL_S
from consumers.schedule import watch as watcher
from consumers.schedule.watchdog import HOLD_S, PROCESS_STILL_S
from consumers.supervisor import BACKOFF_FIRST_S
from streamer.errors import EXIT_RUNTIME
from streamer.status import INTERVAL_S
from tests.harness.pipeline import REPO

PROGRAM = """
import asyncio, sys, time
from types import SimpleNamespace
from consumers.processors.watch import Watch

async def main():
    worker = SimpleNamespace(names=SimpleNamespace(processor="made"))
    told = lambda error: print(error.what, file=sys.stderr, flush=True)
    watch = Watch(worker, stand_still_s=1.0, look_s=0.1, last_word=told)
    await asyncio.sleep(2.5)  # as the start takes, before the watch runs
    print("started", file=sys.stderr, flush=True)
    time.sleep(30)

asyncio.run(main())
"""


@pytest.mark.thorough
def test_a_slow_start_is_no_standstill_and_the_last_word_is_the_reason() -> None:
    ended = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=REPO, stderr=subprocess.PIPE, text=True, timeout=60, check=False
    )
    assert ended.returncode == EXIT_RUNTIME
    started, *stacks, last = ended.stderr.splitlines()
    assert started == "started"
    assert any("in main" in line for line in stacks)
    assert last == "the event loop stood still for 1 s: the process ends"


ORDERS, FLOORS = (0, "orders"), (0, "out.__floors")
OTHER = (1, "orders")


def test_who_works_does_not_stand_still() -> None:
    """A floor that covers many rows, or a body that takes its time: one record, or one round, for minutes."""
    standing = Standing(15.0)
    lags = {ORDERS: Lag(7, 0), FLOORS: Lag(0, 2), OTHER: Lag(7, 900)}
    for second in range(100):
        doing = {0: Doing(second * 3000, works=True), 1: Doing(5, works=False)}  # and 1 waits for its turn
        assert standing.look(lags, doing, 9, float(second)) is None


def test_who_has_changes_in_hand_and_does_none_stands_still() -> None:
    """Though another task of the worker goes on."""
    standing = Standing(15.0)
    lags = {ORDERS: Lag(7, 5), OTHER: Lag(7, 5)}
    for second in range(16):
        doing = {0: Doing(3, works=True), 1: Doing(second, works=True)}
        assert standing.look(lags, doing, 9, float(second)) is None
    found = standing.look(lags, {0: Doing(3, works=True), 1: Doing(16, works=True)}, 9, 16.0)
    assert found == (ORDERS, "5 records wait at offset 7, and nothing was done for 16 s")


def test_a_worker_that_does_nothing_stands_still() -> None:
    standing = Standing(15.0)
    doing = {0: Doing(3, works=False)}
    assert standing.look({ORDERS: Lag(7, 0)}, doing, 9, 0.0) is None
    assert standing.look({ORDERS: Lag(7, 0)}, doing, 9, 50.0) is None  # nothing to do
    assert standing.look({ORDERS: Lag(7, 1)}, doing, 9, 60.0) is None
    assert standing.look({ORDERS: Lag(7, 1)}, doing, 9, 65.0) is None
    assert standing.look({ORDERS: Lag(7, 1)}, doing, 9, 66.0) == (
        ORDERS, "1 records wait at offset 7, and nothing was done for 16 s",
    )  # fmt: skip
    standing.forget()
    assert standing.look({ORDERS: Lag(7, 1)}, doing, 9, 99.0) is None


def test_a_fetch_that_never_comes_stands_still_though_all_else_goes_on() -> None:
    standing = Standing(15.0)
    turns = TURNS * 3
    for second in range(20):
        lags = {ORDERS: Lag(7, 5), FLOORS: Lag(second, 1)}
        doing = {0: Doing(second, works=second % 2 == 0)}
        rounds = min(second, turns)  # it may be their turn yet
        assert standing.look(lags, doing, rounds, float(second)) is None
    found = standing.look(lags, doing, turns + 1, 20.0)
    assert found == (
        ORDERS,
        f"5 records wait at offset 7, and they were not read for 20 s, in {turns + 1} rounds",
    )


S = 1_000_000


def test_a_standstill_ends_and_is_told_within_30_s() -> None:
    """Each one alone: what the thread cannot end the kernel does, and what starts again and again is told."""
    ended_s = max(STAND_STILL_S, REVOKE_S + SLACK_S) + 2 * LOOK_S + LOCK_S
    assert ended_s + BACKOFF_FIRST_S < 30.0
    assert PROCESS_STILL_S + HOLD_S["stalled"] + LOOK_S + INTERVAL_S + watcher.LOOK_S < 30.0


def test_a_change_after_a_quiet_hour_is_not_an_hour_late() -> None:
    behind = Behind()
    assert behind.look({0: Pace(0, 10 * S)}, 11 * S) == 0.0
    assert behind.look({0: Pace(0, 10 * S)}, 3600 * S) == 0.0
    assert behind.look({0: Pace(4, 10 * S)}, 3601 * S) == 1.0  # it has come since
    assert behind.look({0: Pace(4, 10 * S)}, 3630 * S) == 30.0  # and grows while it waits
    assert behind.look({0: Pace(3, 3590 * S)}, 3640 * S) == 50.0  # its commit is known by now
    assert behind.look({0: Pace(0, 3620 * S), 1: Pace(2, 3600 * S)}, 3641 * S) == 41.0  # the worst of them
    assert behind.look({2: Pace(9, 0)}, 3642 * S) == 0.0  # of what was there at the start nothing is known
