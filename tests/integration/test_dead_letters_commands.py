"""`tailrace dead-letters` as processes, beside an apply on a real Kafka and a real Postgres."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.harness.capture import run as execute
from tests.harness.feeder import Feeder, applying, config_of, config_text
from tests.harness.parked import COLUMNS, MADE, MEND, NAMES, QUEUES, ask, command, row, tailrace


async def test_commands_list_and_retry(feeder: Feeder, target_database: str, tmp_path: Path) -> None:
    await execute(target_database, *MADE)
    table = await feeder.table("people", COLUMNS, partitions=1)
    table.create(row(1, "bad"), 100)
    await feeder.flush()
    file = tmp_path / "tailrace.yaml"
    file.write_text(config_text(feeder, target_database))
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, QUEUES, [('{"id":1}', 1, 100, "23514")])
        (parked,) = await command(file, "list")
        assert (parked["table"], parked["key"]) == ("public.people", '{"id":1}')
        await execute(target_database, MEND)
        assert (await command(file, "retry"))["done"] == 1
        await run.rows(target_database, NAMES, [(1, "bad")])


@pytest.mark.thorough
async def test_commands_that_nothing_fits_say_what_there_is(
    feeder: Feeder, target_database: str, tmp_path: Path
) -> None:
    await execute(target_database, *MADE)
    table = await feeder.table("people", COLUMNS, partitions=1)
    table.create(row(1, "bad"), 100)
    await feeder.flush()
    file = tmp_path / "tailrace.yaml"
    file.write_text(config_text(feeder, target_database))
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, QUEUES, [('{"id":1}', 1, 100, "23514")])
        there = 'nothing that is parked in copy fits --key 7; parked is: public.people {"id":1} [23514]\n'
        assert await said(file, "show", "--key", "7", code=1) == there
        assert await said(file, "retry", "--key", "7", code=1) == there
        assert await said(file, "discard", "--key", "7", "--dry-run", code=1) == there
        assert await said(file, "list", "--key", "7", code=0) == there
        assert (await command(file, "discard", "--key", "7", code=1))["done"] == 0
        error = (await command(file, "retry", "--flow", "miror", code=64))["error"]
        assert error["what"] == "no flow 'miror' goes to copy"
        assert error["fix"] == "did you mean 'mirror'?"
        await ask(target_database, "discard")
        await run.rows(target_database, QUEUES, [])
        assert await said(file, "retry", code=1) == "nothing is parked in copy\n"


@pytest.mark.thorough
async def test_a_discarded_delete_says_that_its_row_stays(
    feeder: Feeder, target_database: str, tmp_path: Path
) -> None:
    await execute(
        target_database,
        *MADE,
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'never'; END $$",
        "CREATE TRIGGER keep BEFORE DELETE ON mirror.people FOR EACH ROW EXECUTE FUNCTION keep()",
        "ALTER TABLE mirror.people ENABLE ALWAYS TRIGGER keep",
    )
    table = await feeder.table("people", COLUMNS, partitions=1)
    for n in (1, 2):
        table.create(row(n), 100, n)
    await feeder.flush()
    file = tmp_path / "tailrace.yaml"
    file.write_text(config_text(feeder, target_database))
    async with applying(config_of(feeder, target_database)) as run:
        await run.rows(target_database, NAMES, [(1, "good"), (2, "good")])
        table.delete(row(1), 200)
        table.update(row(2, "bad"), 200, 1)
        await feeder.flush()
        parked = [('{"id":1}', 1, 200, "P0001"), ('{"id":2}', 1, 200, "23514")]
        await run.rows(target_database, QUEUES, parked)
        stays = (
            "1 of them is a delete: discarded, what the target has of the row stays although the source has"
            ' it no more: public.people {"id":1} [P0001]\n'
        )
        assert (await said(file, "discard", "--yes", "--dry-run", code=0)).endswith(stays)
        assert await said(file, "discard", "--yes", code=0) == f"2 keys discarded\n{stays}"
        await run.rows(target_database, NAMES, [(1, "good"), (2, "good")])


async def said(file: Path, name: str, *arguments: str, code: int) -> str:
    """`tailrace dead-letters NAME copy`, for people."""
    process = await tailrace("dead-letters", name, "copy", *arguments, "-c", str(file))
    out, err = await process.communicate()
    assert process.returncode == code, (out, err)
    return out.decode()


@pytest.mark.thorough
async def test_commands_list_show_retry_and_discard(
    feeder: Feeder, target_database: str, tmp_path: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    await execute(target_database, *MADE)
    people = await feeder.table("people", COLUMNS, partitions=1)
    dates = await feeder.table("dates", [("id", "integer", "number"), ("day", "date", "date")])
    for n in (1, 2, 3):
        people.create(row(n, "bad"), 100, n)
    dates.create({"id": 1, "day": "2026-02-30"}, 110)
    await feeder.flush()
    file = tmp_path / "tailrace.yaml"
    flows = {"people": "public.people", "dates": "public.dates"}
    file.write_text(config_text(feeder, target_database, flows=flows))

    async with applying(config_of(feeder, target_database, flows=flows)) as run:
        await run.rows(target_database, "SELECT count(*) FROM _tailrace.parked", [(4,)])
        assert {(e["table"], e["key"]) for e in await command(file, "list")} == {
            ("public.dates", '{"id":1}'),
            *(("public.people", f'{{"id":{n}}}') for n in (1, 2, 3)),
        }
        assert len(await command(file, "list", "--flow", "people")) == 3
        assert len(await command(file, "list", "--table", "public.da*")) == 1
        assert len(await command(file, "list", "--table", "people", "--key", "2")) == 1
        assert len(await command(file, "list", "--key", '{"id":1}')) == 2
        assert [e["reason"]["code"] for e in await command(file, "list", "--reason", "22008")] == ["22008"]
        assert len(await command(file, "list", "--reason", "constraint")) == 3
        assert await command(file, "list", "--reason", "no such words") == []
        (shown,) = await command(file, "show", "--table", "people", "--key", "3")
        assert shown["queue"][0]["payload"]["after"] == row(3, "bad")

        assert len((await command(file, "retry", "--flow", "people", "--dry-run"))["keys"]) == 3
        assert (await command(file, "retry", "--table", "people", code=1))["refused"][0]["attempts"] == 2
        await execute(target_database, MEND)
        done = await command(file, "retry", "--key", '{"id":2}')
        assert (done["done"], done["refused"], done["unanswered"]) == (1, [], 0)
        await run.rows(target_database, NAMES, [(2, "bad")])
        assert "--yes" in (await command(file, "discard", code=64))["error"]["fix"]
        assert (await command(file, "discard", "--table", "dates"))["done"] == 1
        assert (await command(file, "retry"))["done"] == 2
        await run.rows(target_database, NAMES, [(1, "bad"), (2, "bad"), (3, "bad")])
        assert await command(file, "list") == []
        dates.create({"id": 2, "day": "2026-02-30"}, 200)
        await feeder.flush()
        await run.rows(target_database, "SELECT count(*) FROM _tailrace.parked", [(1,)])
    assert (await command(file, "retry", "--wait", "1", code=3))["unanswered"] == 1
    (marked,) = await command(file, "list")
    assert marked["asked"] == "retry"
    assert "@" in marked["asked_by"]
    async with applying(config_of(feeder, target_database, flows=flows)) as run:
        await run.rows(target_database, "SELECT attempts, asked FROM _tailrace.parked", [(2, "")])
