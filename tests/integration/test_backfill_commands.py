"""`tailrace backfill` and `tailrace backfills` against a capture that runs."""

from __future__ import annotations

import asyncio
import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from consumers.commands.backfill import LINE_S
from streamer.backfills import read_runs
from streamer.changes.backfill import Run, State
from streamer.errors import EXIT_FINDING, EXIT_INCOMPLETE, EXIT_OK, EXIT_RUNTIME, EXIT_USAGE
from tests.harness.pipeline import STATE_S, Child, Pipeline, execute

ROWS = 3_000
SLOW = ("--rate", "500/s")  # some seconds for all rows
TABLES = (
    "CREATE TABLE orders (id int PRIMARY KEY, v text)",
    f"INSERT INTO orders SELECT g, 'v' || g FROM generate_series(1, {ROWS}) g",
    "CREATE TABLE prices (region uuid, amount numeric(10,2), v text, PRIMARY KEY (region, amount))",
    "INSERT INTO prices SELECT ('a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a' || lpad(g::text, 2, '0'))::uuid, g, 'p'"
    " FROM generate_series(1, 20) g",
    "CREATE TABLE notes (v text)",
    "INSERT INTO notes VALUES ('a')",
)


@pytest.fixture
async def shop(pipeline: Pipeline) -> Pipeline:
    """Its capture streams."""
    await execute(pipeline.source_url, *TABLES)
    capture = pipeline.start("capture")
    await pipeline.state("capture", "streaming", child=capture)
    return pipeline


async def runs(pipeline: Pipeline) -> list[Run]:
    return list((await read_runs(pipeline.brokers, None, pipeline.name)).values())


async def started(child: Child, words: str) -> None:
    """Until a command that goes on has said this."""
    deadline = time.monotonic() + STATE_S
    while words not in child.log():
        assert child.running, child.log_tail()
        assert time.monotonic() < deadline, child.log_tail()
        await asyncio.sleep(0.05)


def last(out: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return found


@pytest.mark.thorough
async def test_a_backfill_is_followed_to_its_end(shop: Pipeline) -> None:
    code, out = await shop.run("backfill", shop.source, "orders", "--rate", "2000/s")
    assert code == EXIT_OK, out
    (run,) = await runs(shop)
    assert run.progress is not None
    assert run.request is not None
    assert (run.progress.state, run.progress.rows, run.request.rate) == (State.DONE, ROWS, 2000)
    first, *_, end = out.splitlines()
    assert first == f"asked for backfill {run.run} of {shop.source} public.orders"
    assert end.startswith(f"{run.run}: public.orders: done: {ROWS:,} rows in ")

    code, out = await shop.run("backfill", shop.source, "public.orders", "--where", "id <= 7", "--json")
    assert (code, last(out)["state"], last(out)["rows"]) == (EXIT_OK, "done", 7)
    assert all(json.loads(line)["table"] == "public.orders" for line in out.splitlines())

    code, out = await shop.run("backfill", shop.source, "orders", "--where", "nothing = 7")
    assert code == EXIT_FINDING
    assert 'failed: column "nothing" does not exist' in out

    code, out = await shop.run("backfills", "--json")
    assert code == EXIT_OK
    assert [(each["state"], each["rows"]) for each in json.loads(out)] == [
        ("done", ROWS),
        ("done", 7),
        ("failed", 0),
    ]
    code, out = await shop.run("backfills", "list", "--source", shop.source)
    assert run.run in out


async def test_all_tables_that_have_a_key(shop: Pipeline) -> None:
    code, out = await shop.run("backfill", shop.source, "--all")
    assert code == EXIT_OK, out
    assert "left out: public.notes has no key" in out
    done = {run.request.place: run.progress.rows for run in await runs(shop) if run.request and run.progress}
    assert done == {"public.orders": ROWS, "public.prices": 20}


@pytest.mark.thorough
async def test_given_keys_have_the_form_that_they_have_in_kafka(shop: Pipeline, tmp_path: Path) -> None:
    """Upper case, other spellings of a number, an object or an array: the same keys, and each once."""
    keys = tmp_path / "keys"
    keys.write_text(
        "# region, amount\n\n"
        '["A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A01", 1]\n'
        '{"amount": 1, "region": "a0eebc999c0b4ef8bb6d6bb9bd380a01"}\n'
        '{"amount": "2.00", "region": "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a02"}\n'
        '["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a99", 99.5]\n'
    )
    code, out = await shop.run(
        "backfill", shop.source, "prices", "--keys", str(keys), "--delete-missing", "--json"
    )
    assert code == EXIT_OK, out
    (run,) = await runs(shop)
    assert run.keys() == [
        ("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a01", "1"),
        ("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a02", "2.00"),
        ("a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a99", "99.5"),
    ]
    end = last(out)
    # The second delete is of 1, as which the target may have the row that the source spells 1.00.
    assert (end["state"], end["rows"], end["deletes"], end["estimated_rows"]) == ("done", 2, 2, 3)

    numbers = tmp_path / "numbers"
    numbers.write_text("7\n[8]\n")
    code, out = await shop.run("backfill", shop.source, "orders", "--keys", str(numbers))
    assert code == EXIT_OK, out
    assert "done: 2 rows" in out

    numbers.write_text("7\n\nseven\n")
    code, out = await shop.run("backfill", shop.source, "orders", "--keys", str(numbers))
    assert code == EXIT_USAGE
    assert f"{numbers}:3: column id (integer): an integer was expected, not 'seven'" in out


@pytest.mark.thorough
async def test_ctrl_c_leaves_it_running(shop: Pipeline) -> None:
    command = shop.start("backfill", shop.source, "orders", *SLOW)
    await started(command, "running")
    command.popen.send_signal(signal.SIGINT)
    assert await command.wait() == EXIT_INCOMPLETE
    (run,) = await runs(shop)
    assert f"left running: {run.run}" in command.log()
    assert not run.state.over

    code, out = await shop.run("backfills", "pause", run.run)
    assert (code, "paused" in out) == (EXIT_OK, True), out
    code, out = await shop.run("backfills", "resume", run.run[:-2])
    assert (code, "running" in out) == (EXIT_OK, True), out
    code, out = await shop.run("backfills", "cancel", run.run, "--json")
    assert (code, json.loads(out)["state"]) == (EXIT_OK, "cancelled")
    code, out = await shop.run("backfills", "resume", run.run)
    assert (code, "it is over" in out) == (EXIT_FINDING, True), out
    code, out = await shop.run("backfills", "pause", "nothing")
    assert (code, "there is no backfill 'nothing'" in out) == (EXIT_USAGE, True), out


@pytest.mark.thorough
async def test_who_follows_a_run_that_is_cancelled_is_told(shop: Pipeline) -> None:
    command = shop.start("backfill", shop.source, "orders", *SLOW)
    await started(command, "running")
    (run,) = await runs(shop)
    assert (await shop.run("backfills", "cancel", run.run))[0] == EXIT_OK
    assert await command.wait() == EXIT_FINDING
    assert f"{run.run}: public.orders: cancelled" in command.log()


@pytest.mark.thorough
async def test_without_a_capture_it_is_said_within_seconds(shop: Pipeline) -> None:
    await shop.running("capture")[0].stop()
    began_s = time.monotonic()
    code, out = await shop.run("backfill", shop.source, "orders")
    assert time.monotonic() - began_s < LINE_S * 2
    assert code == EXIT_RUNTIME
    assert f"nobody would do it: capture:{shop.source} was stopped" in out
    assert f"`tailrace capture {shop.source}`" in out
    assert await runs(shop) == []

    code, out = await shop.run("backfill", shop.source, "orders", "--detach")
    assert (code, f"it waits: capture:{shop.source} was stopped" in out) == (EXIT_OK, True), out
    (run,) = await runs(shop)
    code, out = await shop.run("backfills", "pause", run.run)
    assert (code, "has not answered" in out) == (EXIT_INCOMPLETE, True), out
    shop.start("capture")
    code, out = await shop.run("backfills", "resume", run.run)
    assert code == EXIT_OK, out

    async def done() -> bool:
        return (await runs(shop))[0].state is State.DONE

    await shop.until("the backfill is done", done)


@pytest.mark.thorough
async def test_a_capture_that_goes_is_said_to_who_follows(shop: Pipeline) -> None:
    command = shop.start("backfill", shop.source, "orders", *SLOW)
    await started(command, "running")
    shop.running("capture")[0].kill()
    await started(command, "it goes on when a capture runs")
    shop.start("capture")
    assert await command.wait() == EXIT_OK
    assert "done: " in command.log().splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["order"], ["captures no table 'order'", "did you mean 'orders'?"]),
        (["public.ordres"], ["did you mean 'public.orders'?"]),
        (["notes"], ["public.notes has no key", "give it a primary key, then stop `tailrace run`"]),
    ],
)
async def test_tables_that_cannot_be(words: list[str], said: list[str], shop: Pipeline) -> None:
    code, out = await shop.run("backfill", shop.source, *words)
    assert code == EXIT_USAGE
    assert all(each in out for each in said), out
    assert await runs(shop) == []
