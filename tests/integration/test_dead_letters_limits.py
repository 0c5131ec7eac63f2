"""Too many refused rows are no row's fault: the target pauses, and goes on by itself."""

from __future__ import annotations

import pytest

from consumers.apply import writing
from tests.harness.capture import run as execute
from tests.harness.feeder import Feeder, applying, config_of
from tests.harness.parked import COLUMNS, MADE, MEND, NAMES, ask, letters, row


async def test_h24_above_the_limit_the_target_pauses_and_goes_on_by_itself(
    feeder: Feeder, target_database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writing, "LIMIT_PROBE_S", 0.2)
    await execute(target_database, *MADE)
    table = await feeder.table("people", COLUMNS, partitions=1)
    for n in range(4):
        table.create(row(n, "bad"), 100, n)
    await feeder.flush()
    parked = "SELECT count(*) FROM _tailrace.parked"
    async with applying(config_of(feeder, target_database, dead_letters="{limit: 5}")) as run:
        await run.rows(target_database, parked, [(4,)])
        table.create(row(10, "bad"), 200)
        table.create(row(11, "bad"), 200, 1)
        table.create(row(12), 200, 2)
        await feeder.flush()
        await run.until(lambda: run.status.record.state == "error", "the pause")
        reason = run.status.record.reason
        assert "4 keys are parked and 2 more" in reason
        assert "limit is 5" in reason
        assert "tailrace dead-letters retry copy" in reason
        assert "`dead_letters: {limit: N}` below targets.copy" in reason
        assert len(await letters(feeder)) == 4
        await run.rows(target_database, NAMES, [])
        await ask(target_database, "discard")  # carried out while it pauses
        await run.rows(target_database, NAMES, [(12, "good")])
        await run.rows(target_database, parked, [(2,)])
        await run.until(lambda: run.status.record.state == "streaming", "going on")
        for n in range(20, 24):
            table.create(row(n, "bad"), 300, n)
        await feeder.flush()
        await run.until(lambda: run.status.record.state == "error", "the pause")
        await execute(target_database, MEND)  # nobody asks for anything
        await run.rows(target_database, "SELECT count(*) FROM mirror.people", [(5,)])
        await run.until(lambda: run.status.record.state == "streaming", "going on")
        await run.rows(target_database, parked, [(2,)])


async def test_h24_above_the_limit_of_records_that_do_not_decode(
    feeder: Feeder, target_database: str
) -> None:
    table = await feeder.table("people", COLUMNS, partitions=1)
    table.create(row(1), 100)
    for n in range(2, 8):
        table.raw(table.key_of(row(n)), b"nothing")
    await feeder.flush()
    async with applying(config_of(feeder, target_database, dead_letters="{limit: 5}")) as run:
        await run.until(lambda: run.status.record.state == "error", "the pause")
        assert "records of 6 more are no change events, the limit is 5" in run.status.record.reason
        assert table.topic in run.status.record.reason
    assert await letters(feeder) == []


async def test_h24_a_tenth_of_a_minutes_rows_is_no_rows_fault(feeder: Feeder, target_database: str) -> None:
    await execute(target_database, *MADE)
    table = await feeder.table("people", COLUMNS, partitions=1)
    for n in range(400):
        table.create(row(n, "bad" if n % 3 == 0 else "good"), 100, n)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.until(lambda: run.status.record.state == "error", "the pause")
        assert "of the last minute's 400 rows are refused, the limit is 10%" in run.status.record.reason
        assert await letters(feeder) == []
        await run.rows(target_database, "SELECT count(*) FROM mirror.people", [(0,)])


async def test_h24_rows_that_really_are_bad_are_parked_above_a_higher_limit(
    feeder: Feeder, target_database: str
) -> None:
    """There is nothing to mend in the table: the operator lets more of them wait, and the others flow."""
    await execute(target_database, *MADE)
    table = await feeder.table("people", COLUMNS, partitions=1)
    for n in range(400):
        table.create(row(n, "bad" if n % 3 == 0 else "good"), 100, n)
    await feeder.flush()
    async with applying(config_of(feeder, target_database)) as run:
        await run.until(lambda: run.status.record.state == "error", "the pause")
        assert "`dead_letters: {share: N%}` below targets.copy" in run.status.record.reason
        await run.stop()
    async with applying(config_of(feeder, target_database, dead_letters="{share: 40%}")) as run:
        await run.rows(target_database, "SELECT count(*) FROM mirror.people", [(266,)])
        await run.rows(target_database, "SELECT count(*) FROM _tailrace.parked", [(134,)])
        assert run.status.record.state == "streaming"
        assert len(await letters(feeder)) == 134
        await execute(target_database, MEND)
        await ask(target_database, "retry")
        await run.rows(target_database, "SELECT count(*) FROM mirror.people", [(400,)])
